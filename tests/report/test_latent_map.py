"""The latent map: codes of any shape find a place, categories and scales say what they show."""

from __future__ import annotations

import numpy as np
import pytest

from vae_astro.errors import InputError
from vae_astro.report.page import latent_map
from vae_astro.report.page.latent_map import (
    MOST_CATEGORIES,
    NO_VALUE,
    OTHER,
    as_json,
    categories,
    layouts,
    map_figure,
    neighbours,
    numbers,
    sprite,
    style_of,
)


def codes(n: int = 40, latent_dim: int = 5) -> np.ndarray:
    scale = np.arange(1, latent_dim + 1, dtype=float)
    return np.random.default_rng(0).normal(size=(n, latent_dim)) * scale


def test_components_are_uncorrelated_and_the_strongest_units_are_named():
    mean = codes(400)
    components, strongest = layouts(mean, mean.var(axis=0), with_umap=False)
    assert abs(np.corrcoef(components.x, components.y)[0, 1]) < 1e-9
    assert components.x.var() > components.y.var()
    assert strongest.axes == ("latent unit 4", "latent unit 3")
    np.testing.assert_array_equal(strongest.x, mean[:, 4])
    of_some = layouts(mean, mean.var(axis=0), with_umap=False, units=[0, 2, 5, 7, 9])[1]
    assert of_some.axes == ("latent unit 9", "latent unit 7")


@pytest.mark.parametrize("mean", [np.zeros((6, 3)), np.ones((1, 2)), codes(7, 1)])
def test_collapsed_single_and_one_dimensional_codes_have_a_place(mean):
    for layout in layouts(mean, mean.var(axis=0), with_umap=False):
        assert layout.x.shape == layout.y.shape == (len(mean),)
        assert np.isfinite(layout.x).all()
        assert np.isfinite(layout.y).all()
        map_figure(layout, None)


def test_a_stamp_far_outside_stands_at_the_edge_and_leaves_the_others_room():
    mean = np.vstack([codes(200, 2), [[1e4, 1e4]]])
    strongest = layouts(mean, mean.var(axis=0), with_umap=False)[1]
    assert strongest.x.max() < 100
    assert strongest.x.argmax() == 200


def test_umap_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(latent_map.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vae-astro\[umap\]"):
        layouts(codes(), np.ones(5), with_umap=True)


@pytest.mark.slow
def test_umap_keeps_groups_that_are_apart_apart():
    pytest.importorskip("umap")
    mean = np.vstack([codes(40, 4), codes(40, 4) + 100])
    laid = layouts(mean, mean.var(axis=0), with_umap=True)[1]
    assert laid.name == "UMAP"
    place = np.stack([laid.x, laid.y])
    apart = np.linalg.norm(place[:, :40].mean(1) - place[:, 40:].mean(1))
    assert apart > 2 * place[:, :40].std()


def test_neighbours_are_the_nearest_and_never_the_stamp_itself():
    mean = np.arange(10.0)[:, None]
    near = neighbours(mean)
    assert set(near[0]) == {1, 2, 3, 4, 5, 6}
    assert near[0, 0] == 1
    same = neighbours(np.zeros((9, 3)))
    assert same.shape == (9, 6)
    assert not (same == np.arange(9)[:, None]).any()
    assert neighbours(np.zeros((1, 3))).shape == (1, 0)


def test_categories_go_from_frequent_to_rare_with_what_is_not_known_last():
    colour = categories("label", ["b", "a", "a", "", None, "a", "b", "c"])
    assert colour.categories == ("a", "b", "c", NO_VALUE)
    assert colour.values.tolist() == [1, 0, 0, 3, 3, 0, 1, 2]
    assert style_of(3, NO_VALUE)[0] == OTHER
    assert categories("label", ["", None]) is None


def test_more_categories_than_can_be_told_apart_are_put_together():
    names = [f"k{k:02d}" for k in range(MOST_CATEGORIES + 5) for _ in range(2)]
    colour = categories("label", names)
    assert len(colour.categories) == MOST_CATEGORIES
    assert colour.categories[-1] == "others"
    styles = {style_of(k, name) for k, name in enumerate(colour.categories)}
    assert len(styles) == MOST_CATEGORIES


def test_numbers_have_a_scale_and_what_has_none_is_left_out():
    colour = numbers("flux", np.array([-1.0, 0.0, np.nan, *np.geomspace(1, 1e4, 50)]), log=True)
    low, high = colour.limits
    assert 0 < low < 3 < 3000 < high
    assert np.isnan(colour.values[:3]).all()
    assert numbers("same", np.ones(9)) is None
    assert numbers("none", np.full(9, np.nan)) is None


def test_a_tile_holds_the_stamp_upright_above_its_model():
    stamps, models = np.zeros((5, 1, 4, 4)), np.ones((5, 1, 4, 4))
    stamps[:, :, 0, :] = 1  # the first row is at the bottom
    stamps[2, 0, 3, 3] = np.nan
    pixels, tiles = sprite(stamps.astype("f4"), models.astype("f4"))
    assert (tiles["width"], tiles["height"]) == (4, 8)
    column, row = 2 % tiles["columns"], 2 // tiles["columns"]
    tile = pixels[8 * row : 8 * row + 8, 4 * column : 4 * column + 4]
    dark, bright = tile[1, 0].tolist(), tile[3, 0].tolist()
    assert sum(bright) > sum(dark)
    assert tile[0, 3].tolist() == list(latent_map.BAD_PIXEL)
    assert (tile[4:] == bright).all()


def test_bands_lie_side_by_side():
    stamps = np.random.default_rng(0).normal(size=(3, 3, 6, 6)).astype("f4")
    pixels, tiles = sprite(stamps, stamps)
    assert tiles["width"] == 18
    assert pixels.shape[1] == 18 * tiles["columns"]


def test_what_the_script_reads_has_no_nan():
    import json

    mean = codes(12)
    laid = layouts(mean, mean.var(axis=0), with_umap=False)
    colour = numbers("flux", np.array([np.nan, *range(1, 12)]))
    held = as_json(laid, [colour], neighbours(mean), [{"id": "a"}] * 12, {"columns": 4})
    assert json.loads(json.dumps(held, allow_nan=False))["colours"][0]["values"][0] is None
