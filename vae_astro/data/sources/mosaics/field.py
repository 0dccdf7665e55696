"""The mosaics of one patch of sky, open together: bands with their weights and masks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.fits.planes import Planes, check_shape
from vae_astro.data.sources.mosaics.image import MosaicImage
from vae_astro.data.sources.mosaics.opening import open_images, open_plane
from vae_astro.data.sources.mosaics.sky_grid import SkyGrid
from vae_astro.data.sources.root import FileVersion, Root

__all__ = ["Field", "OpenFields", "files_per_band", "open_field"]

N_OPEN = 2  # a field and one that overlaps with it
ALIGNED_WITHIN = 0.01  # pixels that bands may lie apart at the centre


@dataclass(frozen=True, eq=False)
class Field:
    """Mosaics that share their pixels; see `open_field`."""

    bands: tuple[MosaicImage, ...]
    noise: tuple[MosaicImage, ...] = field(repr=False)
    masks: tuple[MosaicImage, ...] = field(repr=False)
    planes: Planes

    @property
    def name(self) -> str:
        """Of the first band's file."""
        return self.bands[0].file.name

    @property
    def sky(self) -> SkyGrid | None:
        """The celestial WCS of the first band."""
        return self.bands[0].sky

    @property
    def seeing(self) -> float:
        """As in `Stamp`, of the first band."""
        return self.bands[0].seeing

    def holds(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Which pixels lie in the field, shape (N,)."""
        return self.bands[0].holds(rows, columns)

    def cut(
        self, rows: np.ndarray, columns: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Stamps around pixels of the field.

        Parameters
        ----------
        rows, columns : ndarray, shape (N,), int
            The pixel that lands on ``size // 2`` of both axes.
        size : int
            Rows and columns of a stamp.

        Returns
        -------
        pixels : ndarray, shape (N, C, size, size), float32
            NaN beyond the mosaic and where a plane says so.
        noise : ndarray, shape (N, C, size, size), float32, or None
            As `Planes.apply` has it.

        Raises
        ------
        RefusedError
            If a file was written to since it was opened.
        """
        images = (*self.bands, *self.noise, *self.masks)
        for image in images:
            image.check_unchanged()
        pixels = _stacked([band.cut(rows, columns, size) for band in self.bands])
        if self.noise or self.masks:
            planes = [
                _stacked([image.cut_plane(rows, columns, size) for image in images])
                if images
                else None
                for images in (self.noise, self.masks)
            ]
            return self.planes.apply(pixels, *planes)
        return pixels, None

    def region(self, rows: slice, columns: slice) -> np.ndarray:
        """A rectangle of the first band, float32; NaN where its planes say so."""
        pixels = self.bands[0].region(rows, columns)[None, None]
        planes = [
            images[0].region_plane(rows, columns)[None, None] if images else None
            for images in (self.noise, self.masks)
        ]
        return self.planes.apply(pixels, *planes)[0][0, 0]

    def close(self) -> None:
        """Close the files; what was cut stays."""
        for image in (*self.bands, *self.noise, *self.masks):
            image.close()


def open_field(
    root: Root, files: tuple[FileVersion, ...], hdu: int | str | None, planes: Planes
) -> Field:
    """Open the files of a field.

    Parameters
    ----------
    root : Root
        What their names are relative to.
    files : tuple of FileVersion
        Each band's file, followed by the files of its planes.
    hdu : int or str, optional
        Extension of the mosaics; by default the first image.
    planes : Planes
        Where noise and mask are.

    Raises
    ------
    RefusedError
        As `open_images`, or if mosaics or planes do not share their pixels.
    OSError
        If a file is not there.
    """
    n_files = files_per_band(planes)
    found: dict[str, list[MosaicImage]] = {"band": [], "noise": [], "mask": []}
    try:
        for first in range(0, len(files), n_files):
            _open_band(root, files[first : first + n_files], hdu, planes, found)
        for what, images in found.items():
            for image in images:
                check_shape(image.shape, found["band"][0].shape, what)
        for band in found["band"][1:]:
            _require_aligned(found["band"][0], band)
    except BaseException:
        for images in found.values():
            for image in images:
                image.close()
        raise
    return Field(tuple(found["band"]), tuple(found["noise"]), tuple(found["mask"]), planes)


class OpenFields:
    """Fields that are open, the last two of them; a context that closes them.

    Parameters
    ----------
    root, hdu, planes
        As `open_field` has them.
    """

    def __init__(self, root: Root, hdu: int | str | None, planes: Planes) -> None:
        self._root, self._hdu, self._planes = root, hdu, planes
        self._open: dict[tuple[FileVersion, ...], Field] = {}

    def open(self, files: tuple[FileVersion, ...]) -> Field:
        """The field of these files; raises as `open_field` does."""
        found = self._open.pop(files, None)
        if found is None:
            found = open_field(self._root, files, self._hdu, self._planes)
        self._open[files] = found
        while len(self._open) > N_OPEN:
            self._open.pop(next(iter(self._open))).close()
        return found

    def __enter__(self) -> OpenFields:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].close()


def files_per_band(planes: Planes) -> int:
    """Files of a band: the mosaic and those of its planes that have their own."""
    return 1 + (planes.noise_files is not None) + (planes.mask_files is not None)


def _open_band(
    root: Root,
    files: tuple[FileVersion, ...],
    hdu: int | str | None,
    planes: Planes,
    found: dict[str, list[MosaicImage]],
) -> None:
    """Add one mosaic and its planes to those that are found."""
    planes.require(files)
    for what, image in open_images(root, files[0], hdu, planes).items():
        found[what].append(image)
    outside = [
        what
        for what, pattern in (("noise", planes.noise_files), ("mask", planes.mask_files))
        if pattern is not None
    ]
    for what, file in zip(outside, files[1:], strict=True):
        found[what].append(open_plane(root, file, found["band"][-1].number))


def _require_aligned(first: MosaicImage, other: MosaicImage) -> None:
    """Refuse bands whose pixels are not the same places on the sky."""
    if first.sky is None or other.sky is None:
        return
    y, x = (np.array([(n - 1) / 2]) for n in first.shape)
    other_x, other_y = other.sky.to_pixels(*first.sky.to_sky(x, y))
    apart = float(np.hypot(other_x - x, other_y - y)[0])
    if not apart <= ALIGNED_WITHIN:
        raise RefusedError(
            "bands not aligned",
            f"{other.file.name} lies {apart:.3g} pixels beside {first.file.name} at the centre, at "
            f"most {ALIGNED_WITHIN:g} are allowed: bands are not resampled here; resample them to "
            "one grid first, or read them apart without data.bands",
        )


def _stacked(bands: list[np.ndarray]) -> np.ndarray:
    """Bands side by side, (N, C, H, W), without a copy of a single one."""
    return bands[0][:, None] if len(bands) == 1 else np.stack(bands, axis=1)
