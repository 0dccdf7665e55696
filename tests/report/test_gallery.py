"""Galleries: which stamps stand in them, and figures for any number of classes and bands."""

from __future__ import annotations

import numpy as np
import pytest

from vae_astro.evaluate.mixtures import Curve
from vae_astro.report.gallery import (
    KINDS,
    Stretch,
    choose_rows,
    class_figure,
    curve_figure,
    overview_figure,
)


def two_classes() -> tuple[np.ndarray, np.ndarray]:
    """Shares and codes of stamps on a line, whose class changes at zero."""
    codes = np.linspace(-3, 3, 61)[:, None]
    right = 1 / (1 + np.exp(-4 * codes[:, 0]))
    return np.stack([1 - right, right], axis=1), codes


def test_typical_stamps_lie_in_the_middle_and_boundary_ones_at_the_edge():
    shares, codes = two_classes()
    for k, rows in enumerate(choose_rows(shares, codes, 5)):
        assert set(shares[np.concatenate(list(rows.values()))].argmax(axis=1)) == {k}
        side = -1 if k == 0 else 1
        assert (np.abs(codes[rows["typical"], 0] - side * 1.55) < 0.6).all()
        assert (np.abs(codes[rows["boundary"], 0]) < 0.6).all()
        far = np.abs(codes[rows["boundary"], 0])
        assert list(far) == sorted(far)


def test_random_rows_are_the_same_every_time_and_never_repeat():
    shares, codes = two_classes()
    one, other = (choose_rows(shares, codes, 7, seed=3)[0]["random"] for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert len(set(one)) == 7


def test_a_class_with_few_or_no_stamps_shows_what_there_is():
    shares = np.tile([0.6, 0.4, 0.0], (4, 1))
    shares[0] = [0.1, 0.9, 0]
    chosen = choose_rows(shares, np.zeros((4, 2)), 10)
    assert [len(rows["random"]) for rows in chosen] == [3, 1, 0]


def test_one_class_has_a_gallery():
    assert len(choose_rows(np.ones((20, 1)), np.random.default_rng(0).normal(size=(20, 2)), 4)) == 1


def test_all_galleries_share_one_stretch_that_ignores_bad_pixels():
    images = np.random.default_rng(0).normal(size=(20, 2, 8, 8))
    images[:, 1] *= 100
    images[0, 0, 0, 0] = np.nan
    first, second = Stretch.of(images, ("g", "r")).limits
    assert -3.5 < first[0] < -2 < 2 < first[1] < 3.5
    assert second[1] > 200


def test_a_stretch_of_nothing_but_bad_pixels_is_still_one():
    assert Stretch.of(np.full((2, 1, 4, 4), np.nan), ("g",)).limits == ((0.0, 1.0),)


@pytest.mark.parametrize("bands", [("g",), ("science", "template", "difference")])
def test_figures_are_drawn_whatever_a_class_is_called(bands, tmp_path):
    images = np.random.default_rng(0).normal(size=(5, len(bands), 12, 12))
    stretch = Stretch.of(images, bands)
    empty = images[:0]
    title = "odd $name_{x$ % \\ # 銀"
    figure = class_figure(
        dict(zip(KINDS, (images, empty, images[:2]), strict=True)), stretch, title, 6
    )
    pictures = [ax for ax in figure.axes if ax.images and ax.get_ylabel() != "<colorbar>"]
    assert pictures[0].images[0].get_clim() == stretch.limits[0]
    figure.suptitle("")  # no font here has all letters
    figure.savefig(tmp_path / "class.png")
    overview = overview_figure([images, empty], stretch, ["one $", "two"], 6)
    overview.savefig(tmp_path / "overview.png")
    assert (tmp_path / "class.png").stat().st_size > 3000
    assert overview.axes[0].images[0].origin == "lower"


def test_the_curve_marks_what_was_taken():
    figure = curve_figure(Curve((1, 2, 3), (3.0, 1.0, 2.0), (3.0, 1.5, 4.0)), 2, "icl")
    ax = figure.axes[0]
    assert "ICL, decides" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert "2 taken" in ax.texts[0].get_text()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [3, 1, 2])
