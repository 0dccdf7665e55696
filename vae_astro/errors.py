"""The one error a user's mistake ends in, and what messages have in common."""

from collections.abc import Iterable

__all__ = ["InputError", "first_of"]


class InputError(ValueError):
    """What the user gave cannot be used.

    The message names what was given, what was expected and the key or file to change. The commands
    print it without a traceback and leave with exit status 2.
    """


def first_of(items: Iterable[object], most: int) -> str:
    """The first of what may be many, in a message.

    >>> first_of("abc", 3), first_of(range(9), 3), first_of([], 3)
    ('a, b, c', '0, 1, 2, ...', '')
    """
    words = [str(item) for item in items]
    return ", ".join([*words[:most], *(["..."] if len(words) > most else [])])
