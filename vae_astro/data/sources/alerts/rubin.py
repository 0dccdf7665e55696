"""Alerts of the Rubin Observatory as stamps: cutouts of any size, with their noise and mask."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits

from vae_astro.data.sources.alerts.avro import MAX_BLOCK_BYTES, numbered_records, packets
from vae_astro.data.sources.alerts.avro_record import RecordDecoder
from vae_astro.data.sources.alerts.cutouts import (
    CUTOUTS,
    CatalogueRow,
    check_any_finite,
    check_cutouts,
    cutout_field,
    in_blocks,
    number,
    renamed,
)
from vae_astro.data.sources.files import RefusedError, unpack
from vae_astro.data.sources.fits.headers import keyword_text, scan_headers, sky_position
from vae_astro.data.sources.fits.images import FITS_SUFFIXES, first_image
from vae_astro.data.sources.fits.planes import Planes, check_shape, plane_values
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import Root
from vae_astro.data.stamp import (
    LARGEST_STAMP,
    SMALLEST_STAMP,
    Reject,
    StampBlock,
    fit_to_size,
    plausible_seeing,
)
from vae_astro.errors import InputError
from vae_astro.settings import check_bool, check_int, check_number, check_text

__all__ = ["RubinReader"]

NOISE_HDU = "UNCERT"
_NOISE_KINDS = {
    "": "std",  # as astropy takes it
    "StdDevUncertainty": "std",
    "VarianceUncertainty": "variance",
    "InverseVariance": "inverse_variance",
}
WIRE_HEADER_BYTES = 5  # of Confluent's format: a zero, then the number of the schema
FWHM_OF_SIGMA = math.sqrt(8 * math.log(2))
WORST_SEEING_ARCSEC = 3.0  # beyond, a moment of the PSF is in another unit
_FIELDS = ("diaSourceId", "diaObjectId", "ssObjectId", "ra", "dec", "decl", "ixxPSF", "iyyPSF")


@dataclass(frozen=True)
class RubinReader:
    """Stamps from alert packets of the Rubin Observatory, schemas ``lsst.v*.alert``.

    A cutout is a FITS file as astropy's ``CCDData`` writes it: the image, and extensions with its
    uncertainty and its mask. Cutouts differ in size from alert to alert; they are cropped or padded
    around their centre. A packet is an Avro file, or a message in Confluent's wire format, which
    does not hold its schema. One that holds several records numbers its sources: ``[k]``.

    The seeing is that of the PSF's second moments.

    Parameters
    ----------
    cutouts : tuple of str
        Which of ``science``, ``template`` and ``difference`` become bands, in this order.
    size : int
        Rows and columns of every stamp, in pixels.
    noise : bool
        Read the uncertainty too. A pixel without a positive one is NaN.
    mask_hdu : str, optional
        Name of the extension that masks pixels; they become NaN. None masks nothing.
    mask_bits : sequence of int, optional
        Numbers, from 0, of the bits that mask. By default all.
    schema : str, optional
        File with the schema (.avsc) of messages in Confluent's format; schemas that it refers to
        are looked for beside it.
    pixel_scale_arcsec : float, optional
        Side of a pixel, for the seeing; None leaves it unknown.
    max_cutout_bytes : int
        Most bytes of one cutout once unpacked; what unpacks to more is refused.

    Raises
    ------
    InputError
        If a setting is out of range; the message names its key.
    """

    cutouts: tuple[str, ...] = CUTOUTS
    size: int = 30
    noise: bool = False
    mask_hdu: str | None = "MASK"
    mask_bits: tuple[int, ...] | None = None
    schema: str | None = None
    pixel_scale_arcsec: float | None = 0.2
    max_cutout_bytes: int = 2**26

    def __post_init__(self) -> None:
        object.__setattr__(self, "cutouts", check_cutouts(self.cutouts))
        check_int("data.size", self.size, minimum=SMALLEST_STAMP, maximum=LARGEST_STAMP)
        check_bool("data.noise", self.noise)
        for key, text in (("mask_hdu", self.mask_hdu), ("schema", self.schema)):
            if text is not None:
                check_text(f"data.{key}", text)
        object.__setattr__(self, "mask_bits", Planes(mask_bits=self.mask_bits).mask_bits)
        if self.pixel_scale_arcsec is not None:
            check_number("data.pixel_scale_arcsec", self.pixel_scale_arcsec, above=0)
        check_int("data.max_cutout_bytes", self.max_cutout_bytes, minimum=1)

    @property
    def band_names(self) -> tuple[str, ...]:
        """The cutouts, in the order of the bands."""
        return self.cutouts

    @property
    def has_noise(self) -> bool:
        """Whether the uncertainty is read."""
        return self.noise

    def find(self, root: Root) -> list[Source]:
        """Every ``.avro`` file below ``root``; see `Root.find`.

        Raises
        ------
        InputError
            Also if the schema cannot be read.
        """
        files = root.find((".avro",), FITS_SUFFIXES, "These are FITS files: use data=fits")
        if self.schema is not None:
            _wire_decoder(self.schema, self._wanted)
        return [Source((file,), n_bytes=file.n_bytes) for file in files]

    def read(self, sources: Sequence[Source], root: Root) -> Iterator[StampBlock | Reject]:
        """One stamp per record; what cannot be read becomes a `Reject`."""
        alerts = packets(sources, root, self._wanted, self._records)
        shape = (len(self.cutouts), self.size, self.size)
        yield from in_blocks(alerts, self._fill, shape, self.noise)

    @cached_property
    def _wanted(self) -> tuple[str, ...]:
        fields = [f"diaSource.{field}" for field in _FIELDS]
        return ("diaSourceId", "alertId", *fields, *map(cutout_field, self.cutouts))

    @cached_property
    def _mask_card(self) -> re.Pattern[bytes] | None:
        """What the bytes of a cutout with a mask hold."""
        if self.mask_hdu is None:
            return None
        name = re.escape(self.mask_hdu.strip().encode())
        return re.compile(rb"EXTNAME *= *' *" + name + rb" *'", re.IGNORECASE)

    def _records(
        self, stream: BinaryIO, n_bytes: int, wanted: tuple[str, ...]
    ) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
        """The records of a file, or the one of a message."""
        if stream.read(1) != b"\0":
            yield from numbered_records(stream, n_bytes, wanted)
            return
        try:
            if n_bytes > MAX_BLOCK_BYTES:
                raise RefusedError(
                    "too large", f"a message of {n_bytes} bytes, at most {MAX_BLOCK_BYTES} are read"
                )
            stream.seek(0)
            message = stream.read(n_bytes)
            if self.schema is None:
                written_by = int.from_bytes(message[1:WIRE_HEADER_BYTES], "big")
                raise RefusedError(
                    "schema not in the file",
                    f"a message in Confluent's wire format, written by schema {written_by} of a "
                    "registry; give that schema as data.schema=FILE.avsc",
                )
            record, end = _wire_decoder(self.schema, wanted).read(message, WIRE_HEADER_BYTES)
            if end != len(message):
                raise RefusedError(
                    "unreadable",
                    f"by data.schema={self.schema} the message has {end} bytes, not {len(message)};"
                    " it was written by another schema",
                )
            yield "", record
        except EOFError as error:
            yield "", RefusedError("truncated file", f"the message breaks off: {error}")
        except Exception as error:
            yield "", error

    def _fill(
        self, alert: dict[str, Any], pixels: np.ndarray, noise: np.ndarray | None
    ) -> CatalogueRow:
        """Put the cutouts of an alert where its stamp goes."""
        source = {field: alert.get(f"diaSource.{field}") for field in _FIELDS}
        id = source["diaSourceId"] or alert.get("diaSourceId") or alert.get("alertId")
        if not id:
            raise RefusedError("no identifier", "neither the packet nor its diaSource has one")
        for k, name in enumerate(self.cutouts):
            field = cutout_field(name)
            cutout = alert.get(field)
            raw = cutout.get("stampData") if isinstance(cutout, dict) else cutout
            if not isinstance(raw, bytes) or not raw:
                raise RefusedError("missing cutout", f"no {field}; see data.cutouts")
            try:
                image, image_noise = self._cutout(unpack(raw, self.max_cutout_bytes))
            except RefusedError as error:
                raise renamed(error, field) from error
            pixels[k] = fit_to_size(image, self.size)
            if noise is not None and image_noise is not None:
                noise[k] = fit_to_size(image_noise, self.size)
        check_any_finite(pixels)
        # Early schemas have decl.
        dec = "dec" if source["dec"] is not None else "decl"
        ra, dec_degrees = sky_position(number(source, "ra"), number(source, dec))
        return CatalogueRow(
            id=str(id),
            object_id=str(source["diaObjectId"] or source["ssObjectId"] or id),
            ra=ra,
            dec=dec_degrees,
            seeing=self._seeing(number(source, "ixxPSF"), number(source, "iyyPSF")),
        )

    def _cutout(self, content: bytes) -> tuple[np.ndarray, np.ndarray | None]:
        """Image and noise of one cutout, (H, W), float32; masked pixels are NaN in both."""
        image = first_image(content, self.max_cutout_bytes // 4, self.max_cutout_bytes)
        is_masked = self._mask_card is not None and self._mask_card.search(content) is not None
        if not (self.noise or is_masked):
            return image, None
        hdus, lost = scan_headers(BytesIO(content))
        if lost is not None:
            raise lost
        by_name = {str(hdu.name).strip().upper(): hdu for hdu in reversed(hdus)}
        noise_plane = mask_plane = None
        kind = "std"
        if self.noise:
            hdu = by_name.get(NOISE_HDU)
            if hdu is None:
                raise RefusedError(
                    "no noise", f"no extension {NOISE_HDU}; data.noise=false reads pixels only"
                )
            noise_plane = _plane(hdu, image, "noise")
            kind = _NOISE_KINDS.get(keyword_text(hdu.header, "UTYPE"), "")
            if not kind:
                raise RefusedError(
                    "no noise",
                    f"UTYPE of {NOISE_HDU} is {keyword_text(hdu.header, 'UTYPE')}, expected "
                    + ", ".join(filter(None, _NOISE_KINDS)),
                )
        if is_masked and self.mask_hdu is not None:
            hdu = by_name.get(self.mask_hdu.strip().upper())
            mask_plane = None if hdu is None else _plane(hdu, image, "mask")
        planes = Planes(noise_kind=kind, mask_bits=self.mask_bits)  # type: ignore[arg-type]
        pixels, noise = planes.apply(image[None], noise_plane, mask_plane)
        return pixels[0], None if noise is None else noise[0]

    def _seeing(self, xx_arcsec2: float, yy_arcsec2: float) -> float:
        """FWHM in pixels of a PSF with these second moments; NaN where it is not told."""
        if self.pixel_scale_arcsec is None or not (xx_arcsec2 > 0 and yy_arcsec2 > 0):
            return math.nan
        fwhm_arcsec = FWHM_OF_SIGMA * math.sqrt((xx_arcsec2 + yy_arcsec2) / 2)
        if fwhm_arcsec > WORST_SEEING_ARCSEC:
            return math.nan
        return plausible_seeing(fwhm_arcsec / self.pixel_scale_arcsec)


def _plane(hdu: Any, image: np.ndarray, what: str) -> np.ndarray:
    """Values of an extension that belongs to an image."""
    if type(hdu) is not fits.ImageHDU:
        raise RefusedError(
            "not a plane", f"the {what} is a {type(hdu).__name__}, expected an image as it is"
        )
    check_shape(hdu.shape, image.shape, what)
    return plane_values(hdu)


@lru_cache(maxsize=8)
def _wire_decoder(schema: str, wanted: tuple[str, ...]) -> RecordDecoder:
    """What reads messages written by the schema in a file."""
    from fastavro.schema import load_schema

    try:
        tree: Any = load_schema(str(Path(schema).expanduser()))
        text = json.dumps(
            {key: value for key, value in tree.items() if not key.startswith("__")}
        ).encode()
        return RecordDecoder(text, wanted)
    except Exception as error:
        raise InputError(
            f"data.schema={schema} cannot be read: {type(error).__name__}: {error}"
        ) from error
