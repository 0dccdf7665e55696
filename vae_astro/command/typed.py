"""What was typed behind a command, in Hydra's words, and what it replaces in an earlier run."""

from __future__ import annotations

import re
from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf

__all__ = ["is_typed", "key_of", "take_over"]


def key_of(word: str) -> str:
    """The setting that an override is of, a group or a dotted key.

    >>> [key_of(word) for word in ("beta.end=0.1", "+beta.end=0.1", "~beta.end", "hydra/help=a")]
    ['beta.end', 'beta.end', 'beta.end', 'hydra.help']
    """
    return re.sub(r"@.*", "", word.lstrip("+~").partition("=")[0]).replace("/", ".")


def is_typed(key: str, words: Iterable[str]) -> bool:
    """Whether the overrides ``words`` set ``key``, or a key below it."""
    return any(f"{key_of(word)}.".startswith(f"{key}.") for word in words)


def take_over(settings: DictConfig, now: DictConfig, words: Iterable[str]) -> None:
    """Replace in the ``settings`` of an earlier run what is typed now.

    Parameters
    ----------
    settings : DictConfig
        Changed in place: whole groups, or single values.
    now : DictConfig
        As Hydra composes it with these words.
    words : iterable of str
        Overrides.
    """
    for word in words:
        key = key_of(word)
        OmegaConf.update(settings, key, OmegaConf.select(now, key), merge=False)
