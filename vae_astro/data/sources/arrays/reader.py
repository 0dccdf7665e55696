"""Stamps from arrays: .npy, .npz and HDF5 files that hold many of one shape."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Literal

import numpy as np

from vae_astro.data.sources.arrays.files import (
    ARRAY_SUFFIXES,
    HDF5_SUFFIXES,
    ArrayFile,
    StoredArray,
    open_arrays,
)
from vae_astro.data.sources.files import RefusedError, as_reject
from vae_astro.data.sources.fits.planes import Planes
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion, Root
from vae_astro.data.stamp import Reject, StampBlock
from vae_astro.errors import InputError, first_of
from vae_astro.settings import check_choice, check_int, check_text

__all__ = ["ArrayReader"]

AXES = ("HW", "CHW", "HWC", "NHW", "NCHW", "NHWC")
ROLES = ("id", "label", "ra", "dec")
PART_BYTES = 16 << 20
"""Pixels of a source: several processes share a large file."""
BLOCK_BYTES = 4 << 20
"""Pixels that are read in one go."""


@dataclass(frozen=True)
class ArrayReader:
    """Stamps from the arrays of ``.npy``, ``.npz`` and HDF5 files, one for each row.

    Any real type and byte order becomes float32. An ``.npz`` is read from its beginning to its
    end by one process; the other files are shared out.

    Parameters
    ----------
    dataset : str, optional
        Name of the array of pixels in ``.npz`` and HDF5 files, groups before it with ``/``. By
        default the only one of three or four dimensions.
    axes : {"HW", "CHW", "HWC", "NHW", "NCHW", "NHWC"}, optional
        What the dimensions are: stamps, bands, rows, columns. By default two are HW, three NHW, and
        four have the bands last if that axis is shorter than the second.
    columns : mapping of str to str, optional
        Names of the arrays, of N values, that hold ``id``, ``label``, ``ra`` and ``dec`` (ICRS,
        degrees). By default those of just these names, where they are.
    noise, mask : str, optional
        Names of the arrays, shaped as the pixels, that hold the noise and the mask.
    noise_kind, mask_bits, mask_good
        Those of `Planes`.
    max_pixels : int
        Most pixels of one stamp, all bands together; what claims more is refused.

    Raises
    ------
    InputError
        If a setting is out of range; the message names its key.
    """

    dataset: str | None = None
    axes: Literal["HW", "CHW", "HWC", "NHW", "NCHW", "NHWC"] | None = None
    columns: Mapping[str, str] | tuple[tuple[str, str], ...] | None = None
    noise: str | None = None
    noise_kind: Literal["std", "variance", "inverse_variance", "weight"] = "std"
    mask: str | None = None
    mask_bits: tuple[int, ...] | None = None
    mask_good: bool = False
    max_pixels: int = 4096 * 4096

    def __post_init__(self) -> None:
        for key in ("dataset", "noise", "mask"):
            if getattr(self, key) is not None:
                check_text(f"data.{key}", getattr(self, key))
        if self.axes is not None:
            check_choice("data.axes", self.axes, AXES)
        # a configuration gives a mapping; a tuple keeps the reader hashable and its repr one
        pairs = self.columns or ()
        try:
            columns = dict(pairs)
        except (TypeError, ValueError):
            columns = {"": ""}
        if not all(k in ROLES and isinstance(v, str) and v for k, v in columns.items()):
            raise InputError(
                f"data.columns must map some of {', '.join(ROLES)} to arrays, got {self.columns!r}"
            )
        object.__setattr__(self, "columns", tuple(sorted(columns.items())))
        check_int("data.max_pixels", self.max_pixels, minimum=1)
        object.__setattr__(self, "mask_bits", self._planes.mask_bits)

    @cached_property
    def _planes(self) -> Planes:
        return Planes(
            noise_kind=self.noise_kind, mask_bits=self.mask_bits, mask_good=self.mask_good
        )

    @property
    def band_names(self) -> None:
        """None: only the files can tell how many bands there are."""

    @property
    def has_noise(self) -> bool:
        """Whether there is an array of noise."""
        return self.noise is not None

    def find(self, root: Root) -> list[Source]:
        """Every file of arrays below ``root``, large ones in parts of 16 MiB of pixels.

        Raises
        ------
        InputError
            If there is none, or one is HDF5 and h5py is not installed.
        """
        files = root.find(ARRAY_SUFFIXES, (".fits", ".fz"), "These are FITS files: use data=fits")
        hdf5 = [file for file in files if file.name.lower().endswith(HDF5_SUFFIXES)]
        if hdf5 and find_spec("h5py") is None:
            raise InputError(
                f"data.root={root.address}: {hdf5[0].name} needs h5py: pip install "
                "'vae-astro[hdf5]'"
            )
        return [source for file in files for source in self._parts(root, file)]

    def _parts(self, root: Root, file: FileVersion) -> list[Source]:
        whole = [Source((file,), None, file.n_bytes)]
        packed = file.name.lower().endswith(HDF5_SUFFIXES)
        if file.name.lower().endswith(".npz") or (file.n_bytes <= PART_BYTES and not packed):
            return whole
        try:
            with open_arrays(root, file) as opened:
                layout = self._layout(self._choose(opened)[1].shape)
        except Exception:  # reading it will say so
            return whole
        row_bytes = 4 * math.prod(layout.shape)
        n = max(1, PART_BYTES // row_bytes)
        return [
            Source((file,), (first, min(first + n, layout.n)), row_bytes * min(n, layout.n - first))
            for first in range(0, layout.n, n)
        ] or whole

    def read(self, sources: Sequence[Source], root: Root) -> Iterator[StampBlock | Reject]:
        """Stamps in blocks, in the order of the rows; see `StampReader`."""
        for source in sources:
            try:
                with open_arrays(root, source.files[0]) as opened:
                    yield from self._read(source, opened)
            except Exception as error:
                yield as_reject(source.name, error)

    def _read(self, source: Source, opened: ArrayFile) -> Iterator[StampBlock | Reject]:
        name, images = self._choose(opened)
        if images.dtype.kind not in "fiub":
            raise RefusedError(
                "unreadable", f"{name or 'the array'} holds {images.dtype}, no real numbers"
            )
        layout = self._layout(images.shape)
        if math.prod(layout.shape) > self.max_pixels:
            raise RefusedError(
                "too large",
                f"claims {layout.shape} pixels a stamp, more than data.max_pixels="
                f"{self.max_pixels}",
            )
        planes = [self._plane(opened, what, images) for what in ("noise", "mask")]
        columns = self._columns(opened, layout.n)
        first, last = source.part or (0, layout.n)
        n_block = max(1, BLOCK_BYTES // (4 * math.prod(layout.shape)))
        for start in range(first, min(last, layout.n), n_block):
            stop = min(start + n_block, last, layout.n)
            values = {role: column.rows(start, stop) for role, column in columns.items()}
            pixels = layout.stamps(images, start, stop)
            with np.errstate(over="ignore"):
                pixels = np.array(pixels, np.float32, order="C")
            planes_here = [
                None if plane is None else layout.stamps(plane, start, stop) for plane in planes
            ]
            noise = None
            if self.noise or self.mask:
                pixels, noise = self._planes.apply(pixels, *planes_here)
            yield from _blocks(source.name, layout, start, pixels, noise, values)

    def _choose(self, opened: ArrayFile) -> tuple[str, StoredArray]:
        """Name and array of the pixels."""
        arrays = opened.arrays
        if "" in arrays:
            return "", arrays[""]
        if self.dataset is not None:
            return self.dataset, _named(opened, "dataset", self.dataset)
        n_dims = (len(self.axes),) if self.axes else (3, 4)
        found = [
            name
            for name, array in arrays.items()
            if len(array.shape) in n_dims and name not in (self.noise, self.mask)
        ]
        if len(found) != 1:
            raise RefusedError(
                "no such array" if not found else "ambiguous array",
                f"{len(found)} arrays of {' or '.join(map(str, n_dims))} dimensions, expected one; "
                f"it holds {_listing(opened)}; choose with data.dataset=NAME",
            )
        return found[0], arrays[found[0]]

    def _layout(self, shape: tuple[int, ...]) -> _Layout:
        axes: str | None = self.axes
        if axes is None:
            bands_last = len(shape) == 4 and shape[3] < shape[1]
            axes = {2: "HW", 3: "NHW", 4: "NHWC" if bands_last else "NCHW"}.get(len(shape))
        if axes is None or len(axes) != len(shape) or min(shape) < 1:
            raise RefusedError(
                "wrong dimensions",
                f"the array has shape {shape}, expected {axes or 'two to four dimensions'} with no "
                "empty axis; see data.axes and data.dataset",
            )
        return _Layout(axes, shape)

    def _plane(self, opened: ArrayFile, what: str, images: StoredArray) -> StoredArray | None:
        name = getattr(self, what)
        if name is None:
            return None
        plane = _named(opened, what, name)
        if plane.dtype.kind not in "fiub" or plane.shape != images.shape:
            raise RefusedError(
                "plane of another shape",
                f"data.{what}={name} holds {plane.dtype} of shape {plane.shape}, the pixels have "
                f"{images.shape}",
            )
        return plane

    def _columns(self, opened: ArrayFile, n: int) -> dict[str, StoredArray]:
        """Arrays of what is known of each stamp, by their role."""
        named = dict(self.columns or ())
        found = {role: _named(opened, f"columns.{role}", name) for role, name in named.items()}
        for role, array in found.items():
            if array.shape != (n,):
                raise RefusedError(
                    "wrong length",
                    f"data.columns.{role}={named[role]} has shape {array.shape}, there are {n} "
                    "stamps",
                )
        for name, array in opened.arrays.items():
            role = name.lower()
            if role in ROLES and role not in found and array.shape == (n,):
                found[role] = array
        return found


@dataclass(frozen=True)
class _Layout:
    """What the dimensions of an array are."""

    axes: str
    array_shape: tuple[int, ...]

    @property
    def n(self) -> int:
        """Stamps."""
        return self.array_shape[0] if "N" in self.axes else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Bands, rows and columns of a stamp."""
        sizes = dict(zip(self.axes, self.array_shape, strict=True))
        return sizes.get("C", 1), sizes["H"], sizes["W"]

    def stamps(self, array: StoredArray, first: int, last: int) -> np.ndarray:
        """These rows of an array of this layout, shape (N, C, H, W), as the file has them."""
        if "N" in self.axes:
            values = array.rows(first, last)
        else:
            values = array.rows(0, array.shape[0])[None]
        if self.axes.endswith("HWC"):
            return np.moveaxis(values, -1, 1)
        return values.reshape(-1, *self.shape)


def _named(opened: ArrayFile, key: str, name: str) -> StoredArray:
    if name in opened.refused:
        raise opened.refused[name]
    if name not in opened.arrays:
        raise RefusedError(
            "no such array", f"data.{key}={name} asked for, but it holds {_listing(opened)}"
        )
    return opened.arrays[name]


def _listing(opened: ArrayFile) -> str:
    """The first arrays of a file in words."""
    words = [f"{name} {array.shape} {array.dtype}" for name, array in opened.arrays.items()]
    words += [f"{name} ({error.reason})" for name, error in opened.refused.items()]
    return first_of(words, 20) or "no arrays"


def _blocks(
    name: str,
    layout: _Layout,
    first: int,
    pixels: np.ndarray,
    noise: np.ndarray | None,
    values: dict[str, np.ndarray],
) -> Iterator[StampBlock | Reject]:
    """The stamps of some rows, after the rejects among them."""
    rows = range(first, first + len(pixels))
    sources = [f"{name}[{row}]" if "N" in layout.axes else name for row in rows]
    stem = posixpath.splitext(posixpath.basename(name))[0]
    ids = [source.replace(name, stem, 1) for source in sources]
    if "id" in values:
        ids = [text or id for text, id in zip(_texts(values["id"]), ids, strict=True)]
    labels = _texts(values["label"]) if "label" in values else [""] * len(ids)
    ra, dec = (_angles(values.get(role), len(ids)) for role in ("ra", "dec"))
    on_sky = (ra >= -180) & (ra <= 360) & (np.abs(dec) <= 90)
    ra, dec = np.where(on_sky, ra % 360.0, np.nan), np.where(on_sky, dec, np.nan)
    keep = np.isfinite(pixels).any(axis=(1, 2, 3))
    for k in np.flatnonzero(~keep).tolist():
        detail = f"none of {pixels[k].size} pixels is finite"
        yield as_reject(sources[k], RefusedError("all pixels bad", detail))
    if not keep.all():
        kept = np.flatnonzero(keep).tolist()
        ids, labels, sources = ([column[k] for k in kept] for column in (ids, labels, sources))
        pixels, ra, dec = pixels[keep], ra[keep], dec[keep]
        noise = None if noise is None else noise[keep]
    if len(ids):
        yield StampBlock(
            pixels=pixels,
            id=ids,
            object_id=ids,
            source=sources,
            label=labels,
            ra=ra,
            dec=dec,
            seeing=np.full(len(ids), np.nan),
            noise=noise,
        )


def _texts(values: np.ndarray) -> list[str]:
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    return [str(value).strip() for value in values.tolist()]


def _angles(values: np.ndarray | None, n: int) -> np.ndarray:
    """Degrees, NaN where there are none."""
    if values is None or values.dtype.kind not in "fiu":
        return np.full(n, np.nan)
    return values.astype(np.float64)
