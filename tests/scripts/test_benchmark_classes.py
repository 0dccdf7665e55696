"""scripts/benchmark_classes.py: what it looks at, how it scores, that it runs as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from vae_astro.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def script_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the script finds its modules."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def planted(n: int = 90, apart: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N, 2) in three heaps, and their labels."""
    labels = np.array(["a", "b", "c"], dtype=object)[np.arange(n) % 3]
    rng = np.random.default_rng(0)
    heaps = apart * np.array([[0, 0], [1, 0], [0, 1]])[np.arange(n) % 3]
    return heaps + rng.normal(size=(n, 2)), labels


def names(n: int) -> np.ndarray:
    return np.array([f"object {k}" for k in range(n)], dtype=object)


def test_weighted_nmi_is_that_of_the_stamps_repeated() -> None:
    from benchmarks.class_scores import nmi

    rng = np.random.default_rng(0)
    truth, found, times = (rng.integers(0, k, 50) for k in (3, 4, 3))
    expected = normalized_mutual_info_score(truth.repeat(times), found.repeat(times))
    assert nmi(truth, found, times) == pytest.approx(expected, abs=1e-12)
    assert nmi(truth, np.zeros(50, int), times) == pytest.approx(0, abs=1e-12)


def test_heaps_apart_score_one_and_noise_scores_little() -> None:
    from benchmarks.class_scores import SCORES, Judge

    codes, labels = planted()
    judge = Judge(labels, names(90), n_seeds=2, n_draws=10)
    found = judge([codes])
    assert all(found.mean[score] > 0.95 for score in SCORES)
    noise = np.random.default_rng(1).normal(size=(90, 2))
    two = judge([codes, noise])
    assert two.mean["k-means"] == pytest.approx(
        (found.mean["k-means"] + judge([noise]).mean["k-means"]) / 2
    )
    assert two.over_seeds["k-means"] > 0.3
    assert two.drawn["k-means"].shape == (10,)


def test_votes_are_taken_in_codes_of_their_own() -> None:
    from benchmarks.class_scores import SCORES, Judge

    codes, labels = planted()
    noise = np.random.default_rng(1).normal(size=(90, 2))
    found = Judge(labels, names(90), n_seeds=1, n_draws=2)([noise], [codes])
    assert all(found.mean[score] < 0.3 for score in SCORES[:2])
    assert all(found.mean[score] > 0.95 for score in SCORES[2:])


def test_stamps_of_one_object_are_not_on_both_sides_of_a_fold() -> None:
    """Each object has codes of its own, and a label by chance: only a copy of itself tells it."""
    from benchmarks.class_scores import Judge

    rng = np.random.default_rng(0)
    codes = rng.normal(size=(60, 6)).repeat(20, axis=0)
    labels = rng.choice(np.array(["a", "b"], dtype=object), 60).repeat(20)
    objects = names(60).repeat(20)
    found = Judge(labels, objects, n_seeds=1, n_draws=2)([codes])
    assert found.mean["neighbours"] < 0.75
    alone = Judge(labels, names(1200), n_seeds=1, n_draws=2)([codes])
    assert alone.mean["neighbours"] > 0.99


@pytest.mark.filterwarnings("error")
def test_codes_that_are_all_the_same_score_nothing() -> None:
    from benchmarks.class_scores import Judge

    _, labels = planted()
    found = Judge(labels, names(90), n_seeds=1, n_draws=3)([np.ones((90, 4))])
    assert found.mean["k-means"] == pytest.approx(0, abs=1e-9)
    assert found.mean["linear probe"] == pytest.approx(1 / 3, abs=0.05)


def test_rare_labels_are_left_out_and_one_label_is_refused() -> None:
    from benchmarks.class_scores import labels_to_score

    labels = np.array(["a"] * 8 + ["b"] * 8 + ["c"] * 4 + ["d"] * 6 + [""] * 3, dtype=object)
    objects = names(29)
    objects[20:26] = "one object"
    rows, rare = labels_to_score(labels, objects)
    assert rows.tolist() == list(range(16))
    assert rare == ["c", "d"]
    with pytest.raises(InputError, match=r"data\.labels"):
        labels_to_score(np.array(["a"] * 29, dtype=object), objects)


def test_baselines_have_no_orientation_where_they_say_so() -> None:
    from benchmarks.representations import Stamps, rings, shape_and_flux, symmetric_centre

    image = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 2, 25, 25))).float()
    good = torch.ones_like(image, dtype=torch.bool)
    seen = [Stamps(each, good, each, good) for each in (image, image.rot90(1, (2, 3)).flip(2))]
    for representation in (symmetric_centre, rings, shape_and_flux):
        one, other = map(representation, seen)
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert symmetric_centre(seen[0]).shape == (6, 2, 21, 21)
    assert rings(seen[0]).shape == (6, 2, 8)


def test_shape_does_not_know_the_flux_and_flux_is_one_number() -> None:
    from benchmarks.representations import Stamps, shape_and_flux

    image = torch.rand(5, 1, 21, 21)
    good = torch.ones_like(image, dtype=torch.bool)
    one, other = (shape_and_flux(Stamps(each, good, each, good)) for each in (image, 4 * image))
    np.testing.assert_allclose(one[:, :-1], other[:, :-1], atol=1e-6)
    np.testing.assert_allclose(other[:, -1] - one[:, -1], np.log(4), atol=1e-5)


def test_our_goal_is_the_best_of_the_others_less_the_leeway() -> None:
    from benchmark_classes import LEEWAY, OURS, rows_of
    from benchmarks.class_scores import SCORES, Scores

    def scores(value: float) -> Scores:
        return Scores(
            dict.fromkeys(SCORES, value),
            dict.fromkeys(SCORES, 0.0),
            dict.fromkeys(SCORES, np.array([value, value + 0.02])),
        )

    found = {"weak": (scores(0.3), ""), "strong": (scores(0.6), ""),
             "broken": ("no such package", ""), OURS: (scores(0.65), "")}  # fmt: skip
    rows = rows_of(found)
    ours = [row for row in rows if row.name.startswith(OURS)]
    assert len(ours) == len(SCORES)
    assert all(row.base == pytest.approx(0.6 - LEEWAY) for row in ours)
    assert {row.against for row in ours} == {"strong"}
    assert all(row.base is None for row in rows if row not in ours)
    assert "+0.050 ± 0.000 beside it" in ours[0].note
    assert [row.value for row in rows if row.name == "broken"] == [None]


@pytest.mark.slow
def test_the_small_size_measures_everything(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_classes.py"), "size=small"]
    done = subprocess.run(
        [*command, "peers=null", "out=o.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    values = {row["name"]: row["value"] for row in rows}
    assert values["this project: k-means"] is not None
    assert values["pythae VAE, same network"] is None, "peers=null"
    (goal,) = (row["base"] for row in rows if row["name"] == "this project: Gaussian mixture")
    best = max(value for name, value in values.items()
               if name.endswith("Gaussian mixture") and "this" not in name)  # fmt: skip
    assert goal == pytest.approx(best - 0.03)
