"""What every reader offers: the sources below a root, and the stamps in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from vae_astro.data.sources.root import FileVersion, Root
from vae_astro.data.stamp import Reject, Stamp, StampBlock

__all__ = ["Source", "StampReader"]


class Source(NamedTuple):
    """What is read in one go and, if it changes, read again: a file, or a part of a large one.

    Attributes
    ----------
    files : tuple of FileVersion
        The file as it was listed, then those that belong to it: other bands, weights, catalogues.
    part : tuple of int, optional
        First row, plane or HDU and the one after the last; None for all.
    n_bytes : int
        How much it will take in a store, roughly; sources are shared out by it.
    """

    files: tuple[FileVersion, ...]
    part: tuple[int, int] | None = None
    n_bytes: int = 0

    @property
    def name(self) -> str:
        """Of the file, relative to the root."""
        return self.files[0].name


class StampReader(Protocol):
    """What a store asks of a shape that stamps come in.

    A reader is a frozen dataclass of plain values: its ``repr`` is part of the store's key, so a
    change of any setting makes a new store. It is sent to other processes.
    """

    @property
    def band_names(self) -> tuple[str, ...] | None:
        """Names of the bands, or None if only the files can tell how many there are."""

    @property
    def has_noise(self) -> bool:
        """Whether every stamp comes with its noise, pixel by pixel."""

    def find(self, root: Root) -> list[Source]:
        """Every source below ``root`` that this reader claims, in sorted order.

        Raises
        ------
        InputError
            If there is none; the message says what is there instead.
        """

    def read(self, sources: Sequence[Source], root: Root) -> Iterator[Stamp | StampBlock | Reject]:
        """All stamps of the sources in their order.

        What cannot be read becomes a `Reject`, never an exception; so does a file that has changed
        since it was listed. Memory does not grow with the number of sources.
        """
