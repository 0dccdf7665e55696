"""Figures put stamps where they say, share a stretch, and can be drawn whatever they are given."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from vae_astro.report.figures import (
    GAP,
    RESIDUAL_LIMIT,
    image_grid,
    kl_history,
    reconstructions,
    spectrum,
    stamp_sheet,
    traversals,
)


def stamps(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue()


def drawn(figure: Figure) -> list[np.ndarray]:
    """The pictures of a figure from top to bottom, NaN where blank."""
    return [
        np.ma.filled(image.get_array().astype(float), np.nan)
        for ax in figure.axes
        for image in ax.images
    ]


# -- image_grid ----------------------------------------------------------------------------------


def test_grid_starts_at_the_top_left_and_goes_row_by_row():
    images = np.arange(5.0)[:, None, None] * np.ones((5, 3, 4))
    top_down = image_grid(images, n_columns=2)[::-1]
    corners = top_down[:: 3 + GAP, :: 4 + GAP]
    np.testing.assert_array_equal(corners, [[0, 1], [2, 3], [4, np.nan]])


def test_first_row_of_a_stamp_is_at_its_bottom():
    image = np.arange(6.0).reshape(1, 2, 3)
    # imshow with its origin at the bottom draws row 0 lowest
    np.testing.assert_array_equal(image_grid(image, n_columns=1), image[0])


def test_grid_holds_every_pixel_of_every_stamp_and_blanks_between():
    images = stamps(5, 3, 4)
    grid = image_grid(images, n_columns=3, blank=99.0)
    assert grid.shape == (2 * 3 + GAP, 3 * 4 + 2 * GAP)
    for k, image in enumerate(images):
        bottom, left = (1 - k // 3) * (3 + GAP), (k % 3) * (4 + GAP)
        np.testing.assert_array_equal(grid[bottom : bottom + 3, left : left + 4], image)
    assert (grid == 99.0).sum() == grid.size - images.size


def test_gaps_are_nan_unless_told():
    grid = image_grid(np.zeros((2, 3, 3)), n_columns=2)
    assert np.isnan(grid).sum() == 3 * GAP


def test_grid_is_as_wide_as_its_columns_though_stamps_are_fewer():
    assert image_grid(np.zeros((1, 3, 3)), n_columns=4).shape == (3, 4 * 3 + 3 * GAP)


# -- every figure --------------------------------------------------------------------------------


def draw_reconstructions(images: np.ndarray) -> Figure:
    band_names = ["g", "r", "i"][: images.shape[1]]
    return reconstructions(images, images / 2, images, np.isfinite(images), band_names)


def draw_traversals(images: np.ndarray) -> Figure:
    return traversals(images, range(len(images)), [0.5] * len(images))


def draw_sheet(images: np.ndarray) -> Figure:
    return stamp_sheet(images[:, 0], "stamps")


def draw_history(images: np.ndarray) -> Figure:
    return kl_history(list(range(len(images))), images[:, 0, 0])


def partly_blank(images: np.ndarray) -> np.ndarray:
    images = images.copy()
    images[:, :, :3] = np.nan
    return images


GIVEN = {
    "stamps": stamps(4, 1, 17, 17),
    "masked pixels": partly_blank(stamps(4, 1, 17, 17)),
    "nothing but masked pixels": np.full((4, 1, 17, 17), np.nan, np.float32),
    "constant stamps": np.zeros((4, 1, 17, 17), np.float32),
    "very bright constant stamps": np.full((4, 1, 17, 17), 1e20, np.float32),
    "one stamp": stamps(1, 1, 17, 17),
    "three bands": stamps(4, 3, 17, 17),
    "one pixel that outshines all": np.where(stamps(4, 1, 17, 17) > 2.7, 1e6, 1.0),
}


@pytest.mark.parametrize("images", GIVEN.values(), ids=GIVEN.keys())
@pytest.mark.parametrize("draw", [draw_reconstructions, draw_traversals, draw_sheet, draw_history])
def test_figure_can_be_drawn_from(draw: Callable[[np.ndarray], Figure], images: np.ndarray):
    before = plt.get_fignums()
    figure = draw(images)
    assert isinstance(figure, Figure)
    assert png(figure).startswith(b"\x89PNG")
    assert plt.get_fignums() == before


@pytest.mark.parametrize("draw", [draw_reconstructions, draw_traversals, draw_sheet])
def test_sky_has_its_origin_at_the_bottom_and_unmixed_pixels(draw):
    pictures = [image for ax in draw(stamps(4, 2, 9, 9)).axes for image in ax.images]
    assert pictures
    assert {image.origin for image in pictures} == {"lower"}
    assert {image.get_interpolation() for image in pictures} == {"nearest"}


@pytest.mark.parametrize("draw", [draw_traversals, draw_sheet])
def test_panels_share_one_stretch_that_ignores_the_extreme_half_per_cent(draw):
    images = stamps(4, 1, 17, 17)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 1e6, -1e6
    limits = {image.get_clim() for ax in draw(images).axes for image in ax.images}
    assert limits == {tuple(np.percentile(images, [0.5, 99.5]).tolist())}


@pytest.mark.parametrize(
    ("value", "limits"), [(0.0, (0, 1)), (-4.5, (-4.5, -3.5)), (np.nan, (0, 1))]
)
def test_constant_stamps_have_a_stretch_of_one_above_them(value, limits):
    figure = stamp_sheet(np.full((3, 7, 7), value), "flat")
    assert figure.axes[0].images[0].get_clim() == limits


# -- reconstructions -----------------------------------------------------------------------------


def test_reconstructions_show_stamp_model_and_residual_of_each_band():
    image, location = stamps(3, 2, 5, 5, seed=1), stamps(3, 2, 5, 5, seed=2)
    residual = 3 * stamps(3, 2, 5, 5, seed=3)
    figure = reconstructions(image, location, residual, np.ones(image.shape, bool), ["g", "r"])
    labels = [ax.get_ylabel() for ax in figure.axes if ax.images]
    assert labels == ["g\nstamp", "model", "residual", "r\nstamp", "model", "residual"]
    expected = [
        image_grid(values[:, band].astype(float), 3)
        for band in range(2)
        for values in (image, location, residual)
    ]
    for picture, values in zip(drawn(figure), expected, strict=True):
        np.testing.assert_allclose(picture, values, rtol=1e-5)


def test_stamp_and_model_share_a_stretch_and_residuals_are_centred_on_zero():
    image = stamps(3, 1, 9, 9)
    mask = np.ones(image.shape, bool)
    figure = reconstructions(image, 10 * image, np.ones_like(image), mask, ["r"])
    seen, model, residual = (i for ax in figure.axes for i in ax.images)
    assert seen.get_clim() == model.get_clim()
    assert seen.get_clim() == pytest.approx(np.percentile(image, [0.5, 99.5]).tolist())
    assert residual.get_clim() == (-RESIDUAL_LIMIT, RESIDUAL_LIMIT)


def test_masked_pixels_are_blank_in_stamp_and_residual_but_not_in_the_model():
    image = stamps(2, 1, 5, 5)
    mask = np.ones(image.shape, bool)
    mask[0, 0, 1, 2] = False
    figure = reconstructions(image, image, np.ones_like(image), mask, ["r"])
    blank = [np.isnan(picture[:, :5]) for picture in drawn(figure)]
    assert [np.argwhere(where).tolist() for where in blank] == [[[1, 2]], [], [[1, 2]]]


# -- traversals, history -------------------------------------------------------------------------


def test_traversals_have_a_labelled_row_for_each_unit():
    decoded = stamps(2, 5, 7, 7)
    figure = traversals(decoded, [11, 3], [2.345, 0.1])
    rows = [ax for ax in figure.axes if ax.images]
    assert [ax.get_ylabel() for ax in rows] == ["unit 11\n2.35 nats", "unit 3\n0.10 nats"]
    for picture, images in zip(drawn(figure), decoded, strict=True):
        np.testing.assert_array_equal(picture, image_grid(images, 5))


def test_traversals_refuse_units_without_their_kl():
    with pytest.raises(ValueError, match="shorter"):
        traversals(stamps(2, 5, 7, 7), [0, 1], [0.5])


def test_sheet_says_its_title():
    title = stamp_sheet(stamps(3, 7, 7), "drawn from the prior").get_suptitle()
    assert title.startswith("drawn from the prior")


def test_history_has_the_strongest_unit_of_the_last_step_at_the_top():
    kl_per_unit = np.array([[9.0, 0.0, 0.0], [0.1, 3.0, 1.0]])
    ax, _ = kl_history([100, 200], kl_per_unit).axes
    # the y axis rises
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "2", "1"]
    np.testing.assert_array_equal(
        ax.collections[0].get_array(), [[9.0, 0.1], [0.0, 1.0], [0.0, 3.0]]
    )
    assert not ax.yaxis_inverted()


@pytest.mark.parametrize("n_units", [1, 2, 16])
def test_all_of_the_history_is_within_the_picture(n_units: int) -> None:
    figure = kl_history([100, 200], np.full((2, n_units), 0.01))
    figure.draw_without_rendering()  # lays it out
    _, colours = figure.axes
    written = colours.yaxis.label.get_window_extent()
    assert written.y0 >= 0
    assert written.y1 <= figure.bbox.y1


def test_history_of_many_steps_labels_a_few_of_them_first_and_last_among_them():
    steps = list(range(0, 5000, 50))
    ax, _ = kl_history(steps, np.ones((100, 4))).axes
    labels = [tick.get_text() for tick in ax.get_xticklabels()]
    assert 2 <= len(labels) <= 8
    assert (labels[0], labels[-1]) == ("0", "4950")
    assert ax.get_xlabel() == "optimiser step"


@pytest.mark.parametrize("latent_dim", [1, 64])
def test_history_of_a_full_collapse_can_be_drawn(latent_dim):
    assert png(kl_history([1], np.zeros((1, latent_dim)))).startswith(b"\x89PNG")


# -- spectrum ------------------------------------------------------------------------------------


def heights(figure: Figure) -> dict[str, list[float]]:
    """Bars by the label of their kind."""
    return {
        container.get_label(): [bar.get_height() for bar in container]
        for container in figure.axes[0].containers
    }


def test_spectrum_tells_survivors_from_what_collapses_and_what_has_no_unit():
    bars = heights(spectrum([9.0, 5.0, 3.0, 0.5], threshold=2.0, latent_dim=2))
    assert sorted(bars.values()) == [[0.5], [3.0], [9.0, 5.0]]
    assert bars["survives: a latent unit carries it"] == [9.0, 5.0]
    assert bars["would survive, but no unit is left"] == [3.0]


def test_spectrum_says_how_many_units_have_something_to_say():
    for threshold, title in ((2.0, "2 of 2 latent units"), (10.0, "Full collapse")):
        figure = spectrum([9.0, 5.0, 3.0, 0.5], threshold=threshold, latent_dim=2)
        assert title in figure.get_suptitle()


@pytest.mark.parametrize(
    ("eigenvalues", "threshold"),
    [([9.0, 0.0, 0.0], 1.0), ([9.0], 1e6), ([9.0, 3.0], 0.0), ([0.3], 1.0), ([1e-9, 1e-12], 1e9)],
)
def test_spectrum_can_be_drawn_whatever_it_is_given(eigenvalues, threshold):
    assert png(spectrum(eigenvalues, threshold, latent_dim=4, other=threshold / 3 or None))
