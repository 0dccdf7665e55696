"""Rows of a catalogue to blocks of stamps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vae_astro.data.sources.files import RefusedError, as_reject
from vae_astro.data.sources.mosaics.catalogue import Catalogue
from vae_astro.data.sources.mosaics.catalogue_rows import nearest_pixels
from vae_astro.data.sources.mosaics.field import Field, OpenFields
from vae_astro.data.sources.root import FileVersion
from vae_astro.data.stamp import Reject, StampBlock

__all__ = ["MosaicCuts"]

BLOCK_BYTES = 4 << 20
"""Pixels of the stamps that are cut in one go: they should stay in the cache."""


@dataclass(frozen=True)
class MosaicCuts:
    """Cuts stamps of one size from the fields that are open.

    Attributes
    ----------
    fields : OpenFields
        Where to cut.
    size : int
        Rows and columns of a stamp.
    list_outside : bool
        Whether positions outside of the field become rejects.
    """

    fields: OpenFields
    size: int
    list_outside: bool

    def cut(
        self,
        table: Catalogue,
        rows: np.ndarray,
        own: tuple[FileVersion, ...],
        later: Sequence[tuple[FileVersion, ...]] = (),
    ) -> Iterator[StampBlock | Reject]:
        """Stamps of these rows in their order; what cannot be cut becomes a `Reject`.

        Parameters
        ----------
        table : Catalogue
            Positions and names.
        rows : ndarray, shape (N,), int
            Which of them.
        own : tuple of FileVersion
            The field to cut from.
        later : sequence of tuple
            Fields to cut from instead where the central pixel in the first one is not finite.
        """
        name = own[0].name
        try:
            n_bands = len(self.fields.open(own).bands)
        except Exception as error:
            if len(rows) == 0:
                raise
            yield from (as_reject(f"{name}[{row}]", error) for row in rows.tolist())
            return
        n_block = max(1, BLOCK_BYTES // (4 * self.size**2 * n_bands))
        for first in range(0, len(rows), n_block):
            block = rows[first : first + n_block]
            try:
                items = self._block(table, block, own, later)
            except Exception as error:
                items = [as_reject(f"{name}[{row}]", error) for row in block.tolist()]
            yield from items

    def _block(
        self,
        table: Catalogue,
        rows: np.ndarray,
        own: tuple[FileVersion, ...],
        later: Sequence[tuple[FileVersion, ...]],
    ) -> list[StampBlock | Reject]:
        """One block, after the rejects among its rows."""
        field = self.fields.open(own)
        x, y = _positions(table, rows, field)
        at = np.stack(nearest_pixels(x, y))
        held = field.holds(*at)
        items: list[StampBlock | Reject] = []
        if not held.all():
            if self.list_outside:
                items += _outside(field, rows[~held], x[~held], y[~held])
            rows, at, x, y = rows[held], at[:, held], x[held], y[held]
            if len(rows) == 0:
                return items
        names = [field.name] * len(rows)
        pixels, noise = field.cut(at[0], at[1], self.size)
        if later:
            noise = self._fill_from(later, table, rows, field, at, pixels, noise, names)
        keep = _with_light(pixels)
        seeing = np.full(len(rows), field.seeing)
        ra, dec = _sky(table, rows, field, x, y)
        if not keep.all():
            for k in np.flatnonzero(~keep).tolist():
                detail = f"none of {pixels[k].size} pixels is finite"
                error = RefusedError("all pixels bad", detail)
                items.append(as_reject(f"{names[k]}[{rows[k]}]", error))
            names = [name for name, good in zip(names, keep.tolist(), strict=True) if good]
            rows, pixels, ra, dec, seeing = (a[keep] for a in (rows, pixels, ra, dec, seeing))
            noise = None if noise is None else noise[keep]
        if len(rows):
            ids = table.ids(rows)
            sources = [f"{name}[{row}]" for name, row in zip(names, rows.tolist(), strict=True)]
            items.append(
                StampBlock(
                    pixels=pixels,
                    id=ids,
                    object_id=ids,
                    source=sources,
                    label=table.labels(rows),
                    ra=ra,
                    dec=dec,
                    seeing=seeing,
                    noise=noise,
                )
            )
        return items

    def _fill_from(
        self,
        later: Sequence[tuple[FileVersion, ...]],
        table: Catalogue,
        rows: np.ndarray,
        field: Field,
        at: np.ndarray,
        pixels: np.ndarray,
        noise: np.ndarray | None,
        names: list[str],
    ) -> np.ndarray | None:
        """Cut again from another field where this one has no light at the position."""
        dark = np.flatnonzero(~np.isfinite(field.bands[0].values(*at)))
        for files in later if len(dark) else ():
            try:
                other = self.fields.open(files)
            except Exception:  # its own source says what is wrong with it
                continue
            other_at = np.stack(nearest_pixels(*_positions(table, rows[dark], other)))
            held = np.flatnonzero(other.holds(*other_at))
            light = np.isfinite(other.bands[0].values(*other_at[:, held]))
            chosen, other_at = dark[held[light]], other_at[:, held[light]]
            if len(chosen):
                pixels[chosen], other_noise = other.cut(other_at[0], other_at[1], self.size)
                if noise is not None:
                    noise[chosen] = other_noise
                for k in chosen.tolist():
                    names[k] = other.name
            dark = np.setdiff1d(dark, chosen, assume_unique=True)
        return noise


def _positions(table: Catalogue, rows: np.ndarray, field: Field) -> tuple[np.ndarray, np.ndarray]:
    """Where rows lie in a field, in pixels; NaN where they are not near it."""
    if table.ra is not None and table.dec is not None and field.sky is not None:
        return field.sky.to_pixels(table.ra[rows], table.dec[rows])
    if table.x is not None and table.y is not None:
        return table.x[rows], table.y[rows]
    raise RefusedError(
        "no sky coordinates",
        f"{field.name} has no celestial WCS and the catalogue only ra and dec; give positions in "
        "pixels, data.columns={x: COLUMN, y: COLUMN}",
    )


def _sky(
    table: Catalogue, rows: np.ndarray, field: Field, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions on the sky: the catalogue's, else those of the pixels, else NaN."""
    if table.ra is not None and table.dec is not None:
        return table.ra[rows], table.dec[rows]
    if field.sky is not None:
        return field.sky.to_sky(x, y)
    unknown = np.full(len(rows), np.nan)
    return unknown, unknown


def _outside(field: Field, rows: np.ndarray, x: np.ndarray, y: np.ndarray) -> Iterator[Reject]:
    height, width = field.bands[0].shape
    for row, column, line in zip(rows.tolist(), x.tolist(), y.tolist(), strict=True):
        detail = f"x={column:.6g}, y={line:.6g} from 0, the mosaic has {width} x {height} pixels"
        yield as_reject(f"{field.name}[{row}]", RefusedError("outside the mosaic", detail))


def _with_light(pixels: np.ndarray) -> np.ndarray:
    """Which stamps have a finite pixel, shape (N,)."""
    middle = pixels.shape[-1] // 2
    keep: np.ndarray = np.isfinite(pixels[:, :, middle, middle]).any(axis=1)
    for k in np.flatnonzero(~keep).tolist():  # few: to look at all pixels of all costs as the cut
        keep[k] = np.isfinite(pixels[k]).any()
    return keep
