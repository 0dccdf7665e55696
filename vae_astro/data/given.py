"""Stamps in whatever form a person holds them: arrays, NDData, lists of those, names of files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union

import numpy as np
import torch

from vae_astro.data.raw import RawStamps, as_stamps, filled, refuse_other_sizes
from vae_astro.data.sources.fits.reader import FitsReader
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Reject, Stamp, fit_to_size
from vae_astro.errors import InputError

if TYPE_CHECKING:
    from astropy.nddata import NDData

__all__ = ["Stamps", "given_stamps"]

Stamps: TypeAlias = Union[
    np.ndarray, torch.Tensor, "NDData", str, os.PathLike[str], Sequence["Stamps"], Sequence[Any]
]
"""What `given_stamps` takes."""


def given_stamps(
    stamps: Stamps, band_names: Sequence[str] | None, size: int | None = None
) -> Iterator[RawStamps]:
    """Stamps piece by piece; what is in memory is checked before the first is handed on.

    Parameters
    ----------
    stamps : ndarray, Tensor, NDData, str, Path, or a list of those
        Arrays, `~astropy.nddata.NDData` and `~astropy.nddata.CCDData`: one stamp (H, W) or
        (C, H, W), or many, (N, H, W) with one band or (N, C, H, W). A list is stacked first, also
        one of lists. Of an NDData the mask and the uncertainty count. A name is that of a FITS file
        or of a folder of them, read as ``data=fits`` has it.
    band_names : sequence of str or None
        As `as_stamps` has it.
    size : int, optional
        To which stamps of a list are brought where their sizes differ.

    Raises
    ------
    InputError
        No stamps, of another shape or type, of units that differ, or a file that cannot be read.
    """
    names = _names_of(stamps)
    if names is None:
        leaf = _gathered(stamps, size)
        pixels = as_stamps(leaf.pixels, band_names)
        noise = None if leaf.noise is None else leaf.noise.reshape(pixels.shape)
        return iter([RawStamps(pixels, noise)])
    for name in names:  # a name that is wrong is told before a file is read
        if "://" not in name and not os.path.exists(name):
            raise InputError(
                f"{name or 'an empty name'} does not exist; give a FITS file or a folder of them"
            )
    return _from_files(names, band_names)


class _Leaf(NamedTuple):
    """Pixels, their standard deviation and their unit."""

    pixels: np.ndarray
    noise: np.ndarray | None
    unit: Any


def _names_of(stamps: Any) -> list[str] | None:
    """Names of files, if that is what was given."""
    if isinstance(stamps, str | os.PathLike):
        return [os.path.expanduser(os.fspath(stamps))]
    if isinstance(stamps, list | tuple) and stamps:
        named = [isinstance(each, str | os.PathLike) for each in stamps]
        if all(named):
            return [os.path.expanduser(os.fspath(each)) for each in stamps]
        if any(named):
            other = next(each for each, is_name in zip(stamps, named, strict=True) if not is_name)
            raise InputError(
                f"the list holds names of files and a {type(other).__name__}; give one or the other"
            )
    return None


# -- in memory -----------------------------------------------------------------------------------


def _gathered(stamps: Any, size: int | None) -> _Leaf:
    if "astropy.units" in sys.modules:  # slow to import, and who has such a thing has done it
        from vae_astro.data.with_units import taken_apart

        if (parts := taken_apart(stamps)) is not None:
            return _Leaf(*parts)
    if isinstance(stamps, torch.Tensor):
        if stamps.layout != torch.strided or stamps.is_meta or stamps.is_quantized:
            kind = str(stamps.layout).removeprefix("torch.")
            kind = "meta" if stamps.is_meta else "quantized" if stamps.is_quantized else kind
            raise InputError(
                f"stamps are a {kind} tensor, which does not hold a number for each pixel; give an "
                "ordinary one (.to_dense() of a sparse one, .dequantize() of a quantized one)"
            )
        kept = stamps.detach().resolve_conj().cpu()
        return _Leaf((kept.float() if kept.dtype == torch.bfloat16 else kept).numpy(), None, None)
    if not isinstance(stamps, list | tuple):
        if not isinstance(stamps, np.ndarray) and not hasattr(stamps, "__array__"):
            raise InputError(
                f"stamps are a {type(stamps).__name__}; give an array, an NDData, names of FITS "
                "files, or a list of those"
                + (
                    ": its .toarray()"
                    if hasattr(stamps, "toarray")
                    else ": its .data, for example" * hasattr(stamps, "data")
                )
            )
        return _Leaf(stamps if isinstance(stamps, np.ndarray) else np.asarray(stamps), None, None)
    if not stamps:
        raise InputError("there are no stamps: the list is empty")
    if all(isinstance(each, int | float) for each in stamps):
        return _Leaf(np.asarray(stamps, np.float32), None, None)
    return _stacked([_gathered(each, size) for each in stamps], size)


def _stacked(leaves: list[_Leaf], size: int | None) -> _Leaf:
    """One array of many, with an axis in front."""
    found = list(dict.fromkeys(leaf.unit for leaf in leaves))
    if len(found) > 1:
        told = " and ".join("none" if unit is None else f"{unit}" for unit in found[:2])
        raise InputError(f"the stamps have different units, {told}; bring them to one unit first")
    with_noise = sum(leaf.noise is not None for leaf in leaves)
    if with_noise not in (0, len(leaves)):
        raise InputError(
            f"{with_noise} of {len(leaves)} stamps come with an uncertainty; give it for all of "
            "them or for none"
        )
    pixels = _alike([leaf.pixels for leaf in leaves], size)
    noise = _alike([leaf.noise for leaf in leaves if leaf.noise is not None], size)
    if any(isinstance(part, np.ma.MaskedArray) for part in pixels):
        return _Leaf(np.ma.stack(pixels), None, found[0])
    return _Leaf(np.stack(pixels), np.stack(noise) if noise else None, found[0])


def _alike(parts: list[np.ndarray], size: int | None) -> list[np.ndarray]:
    """Arrays of one shape: those of another size are cropped or padded."""
    shapes = list(dict.fromkeys(part.shape for part in parts))
    if len(shapes) < 2:
        return parts
    if size is None or min(map(len, shapes)) < 2 or len({shape[:-2] for shape in shapes}) > 1:
        raise InputError(
            f"the list holds stamps of the shapes {shapes[0]} and {shapes[1]}; they must have the "
            "same bands" + (" and the same size" if size is None else "")
        )
    for shape in shapes:
        refuse_other_sizes(shape)
    return [fit_to_size(filled(part), size) for part in parts]


# -- files ---------------------------------------------------------------------------------------


def _from_files(names: list[str], band_names: Sequence[str] | None) -> Iterator[RawStamps]:
    """Stamps of files in the order of their names, and in each as they stand in it."""
    reader = FitsReader()
    for name in names:
        root = open_root(name)
        try:
            sources = reader.find(root)
        except InputError as error:  # there is no data.root here
            raise InputError(str(error).removeprefix("data.root=")) from error
        for item in reader.read(sources, root):
            if isinstance(item, Reject):
                raise InputError(f"{name}: {item.reason}: {item.detail}")
            pixels = item.pixels[None] if isinstance(item, Stamp) else item.pixels
            if band_names is not None and pixels.shape[1] != len(band_names):
                raise InputError(
                    f"{name} holds stamps of {pixels.shape[1]} bands, this model takes "
                    f"{len(band_names)}: {', '.join(band_names)}"
                )
            # the reader uses its memory again
            yield RawStamps(as_stamps(pixels.copy(), band_names))
