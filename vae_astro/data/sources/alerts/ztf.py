"""ZTF alert packets as stamps: the cutouts of one Avro record, stacked as bands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_astro.data.sources.alerts.avro import packets
from vae_astro.data.sources.alerts.cutouts import (
    CUTOUTS,
    FULL_CUTOUT,
    CatalogueRow,
    check_cutouts,
    fill_ztf_stamp,
    in_blocks,
    ztf_fields,
)
from vae_astro.data.sources.fits.images import FITS_SUFFIXES
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import Root
from vae_astro.data.stamp import LARGEST_STAMP, SMALLEST_STAMP, Reject, StampBlock
from vae_astro.settings import check_int

__all__ = ["AlertReader"]


@dataclass(frozen=True)
class AlertReader:
    """Stamps from ZTF alert packets, every schema from the first to 4.02.

    NaN pixels stay NaN, and so does the finite fill value -3.4028235e38 of some templates: the
    normaliser masks it. A cutout shortened by the edge of its detector is padded with NaN on the
    side that is missing, which keeps the object on the central pixel.

    The seeing is that of the difference image, to which science image and template are matched:
    ``fwhm * seeratio``. The ``fwhm`` of a packet is the object's own, and ``seeratio`` the ratio of
    the image's to it. Where only the template is read the seeing is unknown.

    A source carries ``[k]`` where its packet holds several records.

    Parameters
    ----------
    cutouts : tuple of str
        Which of ``science``, ``template`` and ``difference`` become bands, in this order.
    size : int
        Rows and columns of every stamp, in pixels; larger cutouts are cropped, smaller ones
        padded with NaN.
    max_cutout_bytes : int
        Most bytes of one cutout once unpacked; what unpacks to more is refused.

    Raises
    ------
    InputError
        If a setting is out of range; the message names its key.
    """

    cutouts: tuple[str, ...] = CUTOUTS
    size: int = FULL_CUTOUT
    max_cutout_bytes: int = 2**26

    def __post_init__(self) -> None:
        object.__setattr__(self, "cutouts", check_cutouts(self.cutouts))
        check_int("data.size", self.size, minimum=SMALLEST_STAMP, maximum=LARGEST_STAMP)
        check_int("data.max_cutout_bytes", self.max_cutout_bytes, minimum=1)

    @property
    def band_names(self) -> tuple[str, ...]:
        """The cutouts, in the order of the bands."""
        return self.cutouts

    @property
    def has_noise(self) -> bool:
        """False: packets hold no uncertainties of pixels."""
        return False

    def find(self, root: Root) -> list[Source]:
        """Every ``.avro`` file below ``root``; see `Root.find`."""
        files = root.find((".avro",), FITS_SUFFIXES, "These are FITS files: use data=fits")
        return [Source((file,), n_bytes=file.n_bytes) for file in files]

    def read(self, sources: Sequence[Source], root: Root) -> Iterator[StampBlock | Reject]:
        """One stamp per record; what cannot be read becomes a `Reject`."""
        alerts = packets(sources, root, ztf_fields(self.cutouts))
        yield from in_blocks(alerts, self._fill, (len(self.cutouts), self.size, self.size))

    def _fill(
        self, alert: dict[str, Any], pixels: np.ndarray, noise: np.ndarray | None
    ) -> CatalogueRow:
        return fill_ztf_stamp(alert, pixels, self.cutouts, self.max_cutout_bytes)
