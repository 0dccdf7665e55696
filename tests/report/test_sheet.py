"""Stamps share one stretch, and lie on a sheet row by row from the top."""

from __future__ import annotations

import numpy as np
import pytest

from vae_astro.report.sheet import shared_stretch, tiled


def test_tiles_lie_row_by_row_from_the_top_with_blank_cells_and_gaps() -> None:
    tiles = np.arange(3)[:, None, None] * np.ones((1, 2, 3))
    sheet = tiled(tiles, 2, blank=-1, gap=1)
    assert sheet.shape == (5, 7)
    np.testing.assert_array_equal(sheet[:2, :3], 0)
    np.testing.assert_array_equal(sheet[:2, 4:], 1)
    np.testing.assert_array_equal(sheet[3:, :3], 2)
    np.testing.assert_array_equal(sheet[3:, 4:], -1)
    np.testing.assert_array_equal(sheet[2], -1)
    np.testing.assert_array_equal(sheet[:, 3], -1)


def test_a_sheet_can_have_more_rows_than_its_tiles_need_and_keeps_their_type() -> None:
    sheet = tiled(np.ones((2, 4, 4), np.uint8), 2, blank=255, n_rows=2)
    assert (sheet.shape, sheet.dtype) == ((8, 8), np.uint8)
    assert (sheet[4:] == 255).all()


def test_a_stretch_leaves_out_a_cosmic_ray_and_pixels_without_a_value() -> None:
    images = np.linspace(0, 1, 1000)
    images[0], images[1], images[2] = 1e6, np.nan, np.inf
    low, high = shared_stretch(images)
    assert 0 < low < 0.02
    assert 0.98 < high < 1.01


@pytest.mark.parametrize(
    ("images", "limits"), [(np.full(4, np.nan), (0.0, 1.0)), (np.full(4, 3.0), (3.0, 4.0))]
)
def test_a_stretch_is_never_empty(images: np.ndarray, limits: tuple[float, float]) -> None:
    assert shared_stretch(images) == limits
