"""The one error a user's mistake ends in."""

__all__ = ["InputError"]


class InputError(ValueError):
    """What the user gave cannot be used.

    The message names what was given, what was expected and the key or file to change. The commands
    print it without a traceback and leave with exit status 2.
    """
