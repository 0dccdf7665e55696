"""Planes that come with the pixels: weights, errors and masks, to noise and pixels that count."""

from __future__ import annotations

import posixpath
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Literal

import numpy as np

from vae_astro.data.sky import good_pixels, measure_sky
from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.fits.headers import keyword_text, quiet_astropy
from vae_astro.data.sources.root import FileVersion
from vae_astro.errors import InputError
from vae_astro.settings import check_bool, check_choice, check_int, check_text

__all__ = ["NOISE_KINDS", "Planes", "check_shape", "plane_values"]

NOISE_KINDS = ("std", "variance", "inverse_variance", "weight")
HIGHEST_BIT = 63
_SUFFIX = re.compile(r"(\.(fits|fit|fts))?(\.(gz|bz2|fz))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Planes:
    """Where the noise and the mask of a stamp are, and what their values mean.

    Each plane is an extension of the same file or a file of its own, with the shape of the image.
    A pixel that the mask calls bad, or whose noise is not a positive finite number, becomes NaN in
    pixels and noise.

    Parameters
    ----------
    noise_hdu, mask_hdu : int or str, optional
        Number or EXTNAME of the extension that holds it.
    noise_files, mask_files : str, optional
        How its file is called: a name with ``{stem}``, such as ``{stem}.weight.fits``, next to the
        image's file and with its name up to the FITS suffix in it; or ``OLD:NEW``, which replaces
        the last OLD in the image's path below the root.
    noise_kind : {"std", "variance", "inverse_variance", "weight"}
        What the noise plane holds. ``weight`` is an inverse variance in an unknown unit: it is
        scaled, band by band, so that the median noise is the stamp's own sky noise.
    mask_bits : sequence of int, optional
        Numbers, from 0, of the bits that make a pixel bad. By default all.
    mask_good : bool
        The mask is 0 where a pixel is bad, instead of where it is good.

    Raises
    ------
    InputError
        If a setting is out of range or contradicts another; the message names its key.
    """

    noise_hdu: int | str | None = None
    noise_files: str | None = None
    noise_kind: Literal["std", "variance", "inverse_variance", "weight"] = "std"
    mask_hdu: int | str | None = None
    mask_files: str | None = None
    mask_bits: tuple[int, ...] | None = None
    mask_good: bool = False

    def __post_init__(self) -> None:
        check_choice("data.noise_kind", self.noise_kind, NOISE_KINDS)
        check_bool("data.mask_good", self.mask_good)
        for plane in ("noise", "mask"):
            hdu, pattern = getattr(self, f"{plane}_hdu"), getattr(self, f"{plane}_files")
            if hdu is not None and pattern is not None:
                raise InputError(f"data.{plane}_hdu and data.{plane}_files are both set; keep one")
            if isinstance(hdu, str):
                check_text(f"data.{plane}_hdu", hdu)
            elif hdu is not None:
                check_int(f"data.{plane}_hdu", hdu, minimum=0)
            if pattern is not None:
                _check_pattern(f"data.{plane}_files", pattern)
        if self.mask_bits is not None:
            if isinstance(self.mask_bits, str) or not isinstance(self.mask_bits, Iterable):
                raise InputError(
                    f"data.mask_bits must be a list of bit numbers from 0, such as [0,4], got "
                    f"{self.mask_bits!r}"
                )
            bits = [
                check_int("data.mask_bits", bit, minimum=0, maximum=HIGHEST_BIT)
                for bit in self.mask_bits
            ]
            if not bits or self.mask_good:
                raise InputError(
                    f"data.mask_bits={bits} chooses no bits, or contradicts data.mask_good=true; "
                    "null is any bit"
                )
            object.__setattr__(self, "mask_bits", tuple(sorted(set(bits))))

    @property
    def has_noise(self) -> bool:
        """Whether every stamp comes with its noise."""
        return self.noise_hdu is not None or self.noise_files is not None

    @property
    def has_mask(self) -> bool:
        """Whether every stamp comes with a mask."""
        return self.mask_hdu is not None or self.mask_files is not None

    def group(self, files: Sequence[FileVersion]) -> list[tuple[FileVersion, ...]]:
        """Each image's file with those of its planes: noise, then mask, where they have files.

        Files that are the plane of another are not images. A plane that was not listed is there
        with 0 bytes and the name it should have, so that reading it says what is missing; that
        name is empty where the image's own does not fit ``OLD:NEW``.
        """
        patterns = [text for text in (self.noise_files, self.mask_files) if text is not None]
        if not patterns:
            return [(file,) for file in files]
        by_name = {file.name: file for file in files}
        expected = [[_plane_name(file.name, pattern) for pattern in patterns] for file in files]
        planes = {name for names in expected for name in names}
        return [
            (file, *(by_name.get(name, FileVersion(name, 0, "")) for name in names))
            for file, names in zip(files, expected, strict=True)
            if file.name not in planes
        ]

    def require(self, files: Sequence[FileVersion]) -> None:
        """Refuse an image without the files of its planes, as `group` gave them.

        Raises
        ------
        RefusedError
            If one was not there when the files were listed; the detail names it.
        """
        keys = [key for key in ("noise_files", "mask_files") if getattr(self, key) is not None]
        for key, file in zip(keys, files[1:], strict=True):
            if not file.version:
                expected = f"no file {file.name}" if file.name else "nothing to replace in its name"
                raise RefusedError("no plane", f"{expected}; see data.{key}={getattr(self, key)}")

    def without_planes(self, hdus: Sequence[Any], images: Sequence[int]) -> list[int]:
        """Numbers of the HDUs that are images and not the plane of one."""
        planes: set[int] = set()
        for plane in (self.noise_hdu, self.mask_hdu):
            if isinstance(plane, str):
                planes.update(_named(hdus, plane))
            elif plane is not None:
                planes.add(plane)
        return [number for number in images if number not in planes]

    def locate(
        self, hdus: Sequence[Any], images: Sequence[int], chosen: Sequence[int], image: int
    ) -> dict[str, int]:
        """Numbers of the extensions that hold ``noise`` and ``mask`` of an image, where they do.

        A plane given by number belongs to the one image that is read. One given by name is the
        extension with the image's EXTVER where EXTVER tells images and planes apart, else the k-th
        of that name for the k-th image.

        Parameters
        ----------
        hdus : sequence
            astropy's HDUs of the file.
        images : sequence of int
            What `without_planes` left: all images of the file.
        chosen : sequence of int
            Those that are read.
        image : int
            Number of the image, one of the chosen.

        Raises
        ------
        RefusedError
            If there is no such extension, it has another shape, or it cannot be told whose it is.
        """
        found = {}
        for what, plane in (("noise", self.noise_hdu), ("mask", self.mask_hdu)):
            if plane is None:
                continue
            key = f"{what}_hdu"
            if isinstance(plane, str):
                found[what] = _choose_by_name(hdus, images, chosen, image, key, plane)
            elif plane >= len(hdus):
                raise RefusedError("no plane", f"data.{key}={plane}, the file has {len(hdus)} HDUs")
            elif len(chosen) > 1:
                raise RefusedError(
                    "ambiguous plane",
                    f"data.{key}={plane} for {len(chosen)} images; give the name of the extension, "
                    "or choose an image with data.hdu",
                )
            else:
                found[what] = plane
            check_shape(getattr(hdus[found[what]], "shape", ()), hdus[image].shape, what)
        return found

    def of_image(
        self,
        hdus: Sequence[Any],
        images: Sequence[int],
        chosen: Sequence[int],
        image: int,
        files: Sequence[Sequence[Any]],
    ) -> dict[str, Any]:
        """HDUs of ``noise`` and ``mask`` of an image, where it has them; see `locate`.

        In a file of its own a plane has the number of its image, or is the only image there.

        Parameters
        ----------
        hdus, images, chosen, image
            As in `locate`.
        files : sequence
            HDUs of each file of planes, in the order of `group`.

        Raises
        ------
        RefusedError
            As `locate`.
        """
        found = {what: hdus[k] for what, k in self.locate(hdus, images, chosen, image).items()}
        patterns = {"noise": self.noise_files, "mask": self.mask_files}
        with_file = [what for what, pattern in patterns.items() if pattern is not None]
        for what, others in zip(with_file, files, strict=True):
            numbers = [k for k, hdu in enumerate(others) if getattr(hdu, "shape", ())]
            found[what] = others[_of_file(numbers, image)]
            check_shape(found[what].shape, hdus[image].shape, what)
        return found

    def apply(
        self, pixels: np.ndarray, noise_plane: np.ndarray | None, mask_plane: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels with NaN where they do not count, and their noise.

        Parameters
        ----------
        pixels : ndarray, shape (..., C, H, W), float32
            Of one stamp or many; not changed.
        noise_plane, mask_plane : ndarray, optional
            In the type that the file holds, so that no bit and no exponent is lost. As many pixels
            in the same order: an image (H, W) is one band.

        Returns
        -------
        pixels : ndarray, shape (..., C, H, W), float32
            The input itself where nothing is bad.
        noise : ndarray, shape (..., C, H, W), float32, or None
            Standard deviation in the unit of ``pixels``; NaN where they are bad.

        Raises
        ------
        RefusedError
            If shapes differ or a mask does not hold whole numbers.
        """
        bad = np.zeros(pixels.shape, bool)
        if mask_plane is not None:
            check_shape(mask_plane.shape, pixels.shape, "mask")
            bad |= self._bad(mask_plane.reshape(pixels.shape))
        noise = None
        if noise_plane is not None:
            check_shape(noise_plane.shape, pixels.shape, "noise")
            noise = self._noise(noise_plane.reshape(pixels.shape))
            bad |= ~np.isfinite(noise)
            if self.noise_kind == "weight":
                scale = _scale(noise, np.where(bad, np.float32(np.nan), pixels))
                noise *= scale.reshape(*pixels.shape[:-2], 1, 1)
            with np.errstate(over="ignore", under="ignore"):
                noise = noise.astype(np.float32)
            bad |= ~(np.isfinite(noise) & (noise > 0))
            noise[bad] = np.nan
        return np.where(bad, np.float32(np.nan), pixels) if bad.any() else pixels, noise

    def _bad(self, mask: np.ndarray) -> np.ndarray:
        """Where a mask says that a pixel does not count."""
        unknown = np.zeros(mask.shape, bool)
        if mask.dtype.kind == "f":  # scaled or blank integers arrive as such
            unknown = ~np.isfinite(mask)
            whole = np.where(unknown, 0, mask)
            if (whole != np.rint(whole)).any() or (np.abs(whole) > 2.0**53).any():
                raise RefusedError(
                    "not a mask",
                    "the mask plane holds fractions; see data.mask_hdu and data.mask_files",
                )
            mask = whole.astype(np.int64)
        if self.mask_good:
            return unknown | (mask == 0)
        if self.mask_bits is None:
            return unknown | (mask != 0)
        bits = np.uint64(sum(1 << bit for bit in self.mask_bits))
        return unknown | ((mask.astype(np.int64).view(np.uint64) & bits) != 0)

    def _noise(self, plane: np.ndarray) -> np.ndarray:
        """Standard deviations, float64; NaN where the plane is not positive and finite."""
        values = plane.astype(np.float64)
        values[~((values > 0) & (values < np.inf))] = np.nan
        if self.noise_kind == "std":
            return values
        root = np.sqrt(values)
        return root if self.noise_kind == "variance" else 1.0 / root


def _choose_by_name(
    hdus: Sequence[Any],
    images: Sequence[int],
    chosen: Sequence[int],
    image: int,
    key: str,
    name: str,
) -> int:
    """Number of the extension of that name that belongs to an image; see `Planes.locate`."""
    named = _named(hdus, name)
    if not named:
        raise RefusedError("no plane", f"data.{key}={name} asked for, no extension is called so")
    versions = [_version(hdus[number]) for number in named]
    of_chosen = {_version(hdus[number]) for number in chosen}
    told_apart = len(set(versions)) == len(named) and len(of_chosen) == len(chosen)
    if told_apart and _version(hdus[image]) in versions:
        return named[versions.index(_version(hdus[image]))]
    alike = [number for number in images if number in _named(hdus, str(hdus[image].name))]
    if set(chosen) <= set(alike) and len(named) == len(alike):
        return named[alike.index(image)]
    if len(named) == len(images):
        return named[list(images).index(image)]
    raise RefusedError(
        "ambiguous plane",
        f"{len(named)} extensions are called {name} for {len(images)} images; choose images with "
        "data.hdu, or give each of them and its plane one EXTVER",
    )


def _of_file(images: Sequence[int], image: int) -> int:
    """Which image of a plane's own file belongs to an image of another."""
    if image in images:
        return image
    if len(images) == 1:
        return images[0]
    raise RefusedError(
        "ambiguous plane",
        f"the plane's file has {len(images)} images, none of them HDU {image}; expected one",
    )


def check_shape(plane: tuple[int, ...], image: tuple[int, ...], what: str) -> None:
    """Refuse a plane that has not the shape of its image; axes of length 1 do not count."""
    if [n for n in plane if n != 1] != [n for n in image if n != 1]:
        raise RefusedError(
            "plane of another shape",
            f"the {what} plane has shape {plane}, the image {image}; expected the same, see "
            f"data.{what}_hdu and data.{what}_files",
        )


def plane_values(hdu: Any, where: slice | EllipsisType = ...) -> np.ndarray:
    """Values of a plane in the type that the file holds, BSCALE and BZERO applied."""
    with quiet_astropy():
        return np.asarray(hdu.section[where])


def _named(hdus: Sequence[Any], name: str) -> list[int]:
    wanted = name.strip().upper()
    return [number for number, hdu in enumerate(hdus) if str(hdu.name).strip().upper() == wanted]


def _version(hdu: Any) -> str:
    return keyword_text(hdu.header, "EXTVER") or "1"  # as the standard has it


def _check_pattern(key: str, pattern: object) -> None:
    text = check_text(key, pattern)
    old, colon, new = text.partition(":")
    if "{stem}" not in text and (not old or not colon or ":" in new or old == new):
        raise InputError(
            f"{key} must be a name with {{stem}}, such as {{stem}}.weight.fits, or OLD:NEW, such "
            f"as _sci:_wht, got {text!r}"
        )


def _plane_name(name: str, pattern: str) -> str:
    """Name that the plane of an image's file should have; empty if it cannot have one."""
    folder, slash, base = name.rpartition("/")
    if "{stem}" in pattern:
        plane = pattern.replace("{stem}", _SUFFIX.sub("", base))
        plane = posixpath.normpath(f"{folder}{slash}{plane}")
    else:
        old, _, new = pattern.partition(":")
        before, found, after = name.rpartition(old)
        plane = f"{before}{new}{after}" if found else ""
    return "" if plane == name else plane


def _scale(noise: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """What makes the median of relative noise the sky noise of each band, shape (..., C, 1, 1)."""
    shape = (-1, *pixels.shape[-3:])
    pixels, noise = pixels.reshape(shape), noise.reshape(shape)
    good = good_pixels(pixels)
    _, sky_noise = measure_sky(pixels, good)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a band without a good pixel has no median
        median = np.nanmedian(np.where(good, noise, np.nan), axis=(-2, -1))
    scale: np.ndarray = (sky_noise / median)[..., None, None]
    return scale
