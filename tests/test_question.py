"""The question, answered: every run can be made, and the page says what was measured."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vae_astro import VAE
from vae_astro.collapse.convert import convert_loss
from vae_astro.data.simulate import simulate
from vae_astro.errors import InputError
from vae_astro.folders import register_resolvers
from vae_astro.report.question.faults import FAULTS, PATHS, fault_run
from vae_astro.report.question.figures import (
    VERDICT_COLOURS,
    class_line,
    draw_classes,
    draw_paths,
    draw_weights,
)
from vae_astro.report.question.measure import (
    Answer,
    ClassMap,
    Needed,
    Outcome,
    find_classes,
    needed_weights,
    outcome_of,
)
from vae_astro.report.question.page import page
from vae_astro.report.question.plan import SCALINGS, SIZES, Size, plan, run_of
from vae_astro.report.question.tables import against_forecast, fault_table, runs_table

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "question.py"
BOTH = ("simulated", "ztf")


def composed(*overrides: str) -> dict:
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """``scripts/question.py`` as a module."""
    spec = importlib.util.spec_from_file_location("question_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The plan


@pytest.mark.parametrize("data", BOTH)
def test_every_run_composes_and_its_model_builds(data: str, script: ModuleType) -> None:
    runs = list(plan(SIZES["small"], data))  # the same kinds as the full one, each seldomer
    assert len({run.name for run in runs}) == len(runs)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        everything = {run.name: script.composed(*run.overrides) for run in runs}
    parts = ("model", "likelihood", "prior", "beta", "optim")
    for run in runs:
        settings = everything[run.name]
        vae = VAE([1, 16, 16], **{part: settings[part] for part in parts})
        assert vae.latent_dim == (2 if 6 in run.faults else 16)
        assert vae.network.eps_std == (0.1 if 3 in run.faults else 1)
        assert vae.network.exp_full_log_var == (4 in run.faults)
        assert settings["model"]["softmax_output"] == (1 in run.faults)
        assert settings["model"]["dying_bottleneck"] == (5 in run.faults)
        weight = 1000 if 2 in run.faults else run.weight
        assert vae.likelihood.kl_weight == (weight or 1)
        assert vae.likelihood.is_density == (weight is None)
        assert settings["data"]["normalize"]["stretch"] == run.stretch
        assert settings["seed"] == run.seed


def test_the_first_run_is_the_question_as_it_was_asked(script: ModuleType) -> None:
    first = next(plan(SIZES["full"], "simulated"))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        ours = script.composed(*first.overrides)
    asked = composed("experiment=question")
    for group in ("model", "likelihood", "beta", "optim"):
        assert ours[group] == asked[group]
    for key in ("normalize", "augment", "size", "batch_size"):
        assert ours["data"][key] == asked["data"][key]


def test_every_order_repairs_each_fault_once_and_every_state_is_run() -> None:
    names = {run.name for run in plan(SIZES["full"], "simulated")}
    for path in PATHS.values():
        assert sorted(path) == list(FAULTS)
        for done in range(len(path) + 1):
            assert fault_run("simulated", path[done:], 0) in names


# What is measured


def network(**switches: object) -> VAE:
    torch.manual_seed(0)
    return VAE(
        [1, 16, 16],
        model={"name": "question", "latent_dim": 3, "bottleneck_units": 8, **switches},
        likelihood={"name": "sigma"},
    ).eval()


def batch(n: int = 12) -> dict[str, torch.Tensor]:
    image = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(image, dtype=torch.bool)
    return {"image": image, "mask": mask, "noise": 0.1 * mask, "index": torch.arange(n)}


METRICS = {
    "val": {"kl_nats": 1.0, "reconstruction_nats": -5.0, "chi2_per_pixel": 1.0},
    "collapse": {
        "verdict": "none",
        "active_units": 3,
        "latent_dim": 3,
        "forecast": {
            "verdict": "none",
            "kl_nats": 2.0,
            "active_units": 3,
            "threshold": 0.1,
            "largest_eigenvalue": 9.0,
        },
    },
    "data": {"n_train": 40, "n_val": 12},
    "timing": {"seconds_fit": 1.0},
}
ABOUT = {
    "data": "simulated",
    "faults": [],
    "stretch": "minmax",
    "weight": None,
    "seed": 0,
    "size": 16,
    "overrides": [],
}


def test_kl_of_the_noise_drawn_is_that_of_the_noise_drawn() -> None:
    stamps = batch()
    honest, faint = network(), network(eps_std=0.1)
    with torch.no_grad():
        posterior = honest.network.encode(stamps["image"])
    claimed = float(honest.prior.kl_per_unit(posterior).sum(1).mean())
    found = outcome_of(honest, METRICS, [stamps], **ABOUT)
    assert found.drawn_kl_nats == pytest.approx(claimed, rel=1e-5)
    # a tenth of the noise: ln 10 nats a unit more, less half of 0.99 of its variance
    variance = float(posterior.log_var.exp().sum(1).mean())
    extra = 3 * math.log(10) - 0.5 * 0.99 * variance
    found = outcome_of(faint, METRICS, [stamps], **ABOUT)
    assert found.drawn_kl_nats == pytest.approx(claimed + extra, rel=1e-4)
    assert found.elbo_nats == pytest.approx(-5 - found.drawn_kl_nats)


def test_a_softmax_output_is_seen_not_to_move_and_a_dead_bottleneck_not_to_answer() -> None:
    assert outcome_of(network(), METRICS, [batch()], **ABOUT).output_moves
    assert not outcome_of(network(softmax_output=True), METRICS, [batch()], **ABOUT).output_moves
    dead = network(dying_bottleneck=True)
    with torch.no_grad():
        dead.network.encoder.trunk[5].bias.fill_(-1e3)
        dead.network.encoder.trunk[5].bias[2] = 1e3
    found = outcome_of(dead, METRICS, [batch()], **ABOUT)
    assert (found.living_bottleneck_units, found.bottleneck_units) == (1, 8)


def test_own_weight_is_the_same_loss_as_the_learned_sigma() -> None:
    vae = network()
    vae.likelihood.scale.mean_square.fill_(0.3)
    own = outcome_of(vae, METRICS, [batch()], **ABOUT).own_weight
    found = convert_loss(loss="mse", reduction="pixel_mean", shape="16x16", weight=own)
    assert found.beta_s2 == pytest.approx(0.3, rel=1e-5)


def test_stamps_that_are_twice_as_large_need_four_times_the_weight() -> None:
    stamps = batch(600)
    stamps["image"] += 3 * torch.linspace(-1, 1, 600)[:, None, None, None]
    larger = stamps | {"image": 2 * stamps["image"]}
    one, two = needed_weights({"one": [stamps], "two": [larger]}, 4, data="simulated", size=16)
    for name in ("largest_eigenvalue", "keeps_one", "keeps_all", "own_weight"):
        assert getattr(two, name) == pytest.approx(4 * getattr(one, name), rel=0.01), name
    assert one.keeps_one > one.keeps_all > 0
    assert one.units_at["one"] == two.units_at["two"] == 4
    # beside the one strong direction there is noise only, and none of it is four times the mean
    assert one.units_at["two"] == 1


def test_classes_are_found_where_they_are_and_the_largest_comes_first() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [20, 60, 40])
    codes = np.array([[0, 0], [5, 0], [0, 5]])[truth] + 0.3 * rng.normal(size=(120, 2))
    found = find_classes(codes)
    assert [set(found[truth == k]) for k in (1, 2, 0)] == [{0}, {1}, {2}]


# The page


def outcome(faults: tuple[int, ...], **changes: object) -> Outcome:
    """A run as it should be: dead with fault 1 or 2, 1 nat of ELBO less for each other fault."""
    dead = bool({1, 2} & set(faults))
    units = 2 if 6 in faults else 16
    fixed = {
        "verdict": "full" if dead else "none",
        "kl_nats": 1e-9 if dead else 20.0,
        "drawn_kl_nats": 1e-9 if dead else 20.0,
        "active_units": 0 if dead else units,
        "latent_dim": units,
        "reconstruction_nats": (0.0 if dead else 100.0) - len(faults),
        "chi2_per_pixel": 50.0 if dead else 1.0,
        "forecast_verdict": "full" if 2 in faults else "none",
        "forecast_kl_nats": 0.0 if 2 in faults else 21.0,
        "forecast_active_units": 0 if 2 in faults else units,
        "threshold": 5e5 if 2 in faults else 0.01,
        "largest_eigenvalue": 30.0,
        "output_moves": 1 not in faults,
        "bottleneck_units": 4 if 5 in faults else 128,
        "living_bottleneck_units": 4 if 5 in faults else 128,
        "n_good_pixels": 3969.0,
        "own_weight": 1e-5,
        "n_train": 900,
        "n_val": 100,
        "seconds": 1.0,
    }
    return Outcome(**ABOUT | {"faults": list(faults), "size": 63} | fixed | changes)


def answer(change: Callable[[str, Outcome], Outcome] = lambda name, run: run) -> Answer:
    """Made up, without a run."""
    outcomes = {}
    for data in BOTH:
        for run in plan(SIZES["full"], data):
            made = outcome(
                run.faults, data=data, stretch=run.stretch, weight=run.weight, seed=run.seed
            )
            if run.weight is not None:
                dead = run.weight > 1
                made = replace(
                    made,
                    kl_nats=0.0 if dead else 5 / run.weight,
                    verdict="full" if dead else "none",
                    reconstruction_nats=70.0,
                )
            outcomes[run.name] = change(run.name, made)
    needed = [
        Needed(data, scaling, 63, 16, 10.0**k, 10.0**k, 10.0 ** (k - 2), 10.0 ** (k - 4),
               {"minmax": 16, "L2": 0})
        for data in BOTH
        for k, scaling in enumerate(SCALINGS)
    ]  # fmt: skip
    return Answer("full", "model=question", outcomes, needed, {"simulated": [{"star": 3}]})


def test_page_answers_in_five_lines_and_then_shows() -> None:
    text = page(answer())
    assert "scripts/question.py alerts=ztf_alerts labels=ztf_alerts_labels.csv`" in text
    assert "exceeds 1,984,500; the strongest one has 30 (simulated stamps) and 30 (ZTF" in text
    assert "Fatal alone: 1 softmax output and 2 weight 1000." in text
    assert " Not fatal alone: 3 noise of 0.1, 4 exp(log_var), 5 dying bottleneck" in text
    assert "some first weights" not in text
    assert "In 4 orders of repair nothing lived before 1 and 2 were both repaired." in text
    assert "the code lived in 6 of 6 runs" in text
    assert "the right one lies between 1.0e-04 and 1.0e-01" in text
    assert "20.0 nats in 16 of 16 units" in text
    # in the made-up table the weight of L2 leaves no unit of the three other scalings
    assert "6 of 12 pairs are left without a unit, 0 with fewer" in text
    answers = [line for line in text.splitlines() if line[:2] in ("1.", "2.", "3.", "4.", "5.")]
    assert len(answers) == 5
    assert "too short to learn" not in text
    assert "too short to learn" in page(replace(answer(), size="small"))
    assert text.index(answers[-1]) < text.index("| fault |") < text.index("question_repairs.png")


def test_page_follows_the_figures_where_they_say_something_else() -> None:
    def unlucky(name: str, run: Outcome) -> Outcome:
        if "faults-5-seed1" in name or "faults-3456-seed2" in name:
            return replace(run, verdict="full", kl_nats=0.0, living_bottleneck_units=0)
        return replace(run, verdict="none") if run.faults == [2] else run

    found = answer(unlucky)
    text = page(found)
    assert "Fatal alone: 1 softmax output. " in text
    assert "and not with others: 5 dying bottleneck. Not fatal alone: 2 weight 1000, 3" in text
    assert "In some order the code lives before both of 1 and 2 are repaired" in text
    cells = fault_table(found)[6].split(" | ")
    assert cells[-1].startswith("**full collapse in 1 of 3**, else ELBO -1.0 nats")
    assert "no unit of its bottleneck answers to the stamp" in text


def test_every_row_of_the_table_is_a_run_and_says_how_it_stands_against_the_forecast() -> None:
    rows = runs_table(answer(), "ztf")[2:]
    assert len(rows) == 3 + 6 + 6 + 2 + 3 + 3
    alone = next(row for row in rows if "only 1 softmax" in row)
    assert alone.endswith("worse: it draws the same picture for every code |")
    assert next(row for row in rows if "only 2 weight" in row).endswith("as forecast |")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "as forecast"),
        ({"verdict": "partial"}, "worse: not explained"),
        ({"kl_nats": 9.0, "drawn_kl_nats": 9.0}, "less KL: not explained"),
        ({"kl_nats": 9.0}, "less KL: the KL is not that of the noise drawn, 20 nats"),
        ({"kl_nats": 9.0, "output_moves": False}, "less KL: it draws the same picture"),
        (
            {"kl_nats": 9.0, "bottleneck_units": 4, "living_bottleneck_units": 4},
            "less KL: 4 bottleneck units feed 16",
        ),
        (
            {"kl_nats": 9.0, "bottleneck_units": 4, "living_bottleneck_units": 1},
            "less KL: only 1 of 4 bottleneck units",
        ),
        (
            {"kl_nats": 0.0, "verdict": "full", "living_bottleneck_units": 0},
            "worse: no unit of its bottleneck",
        ),
        ({"forecast_verdict": "full", "forecast_kl_nats": 0.0}, "better"),
    ],
)
def test_outcome_against_forecast_names_what_was_found(changes: dict, said: str) -> None:
    assert against_forecast(outcome((), **changes)).startswith(said)


def test_page_is_the_same_after_its_figures_were_read_back(
    tmp_path: Path, script: ModuleType
) -> None:
    made = answer()
    (tmp_path / "the-question.json").write_text(json.dumps(asdict(made)))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        script.write(compose("question", ["redraw=true", f"out={tmp_path}"]))
    assert (tmp_path / "the-question.md").read_text("utf-8") == page(made)
    assert (tmp_path / "images" / "question_repairs.png").is_file()


def test_redraw_without_figures_says_what_to_do(tmp_path: Path, script: ModuleType) -> None:
    with pytest.raises(InputError, match="run it first"):
        script.read_figures(tmp_path / "the-question.json")


def test_alerts_that_are_not_there_are_named(script: ModuleType) -> None:
    with pytest.raises(InputError, match="alerts=nowhere is no folder"):
        script.roots_of(OmegaConf.create({"alerts": "nowhere", "labels": None}))


# The figures


def test_strips_colour_each_state_by_its_verdict() -> None:
    figure = draw_paths(answer())
    assert len(figure.axes) == len(BOTH)
    patches = figure.axes[0].patches
    colours = [matplotlib_hex(patch.get_facecolor()) for patch in patches]
    # with 1 and 2 first all but two states live; with either last only the end does
    alive = VERDICT_COLOURS["none"]
    assert [colours[7 * row : 7 * row + 7].count(alive) for row in range(4)] == [5, 5, 1, 1]


def matplotlib_hex(colour: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


def test_weights_are_drawn_with_the_learned_sigma_as_a_star() -> None:
    figure = draw_weights(answer())
    lines = figure.axes[0].lines
    stars = [line for line in lines if line.get_marker() == "*"]
    assert [float(line.get_xdata()[0]) for line in stars] == [1e-5, 1e-5]
    dots = next(line for line in lines if line.get_label() == "min-max")
    assert list(dots.get_xdata()) == sorted(SIZES["full"].weights, reverse=True)


def test_each_stamp_lies_at_its_place_in_the_plane_upright() -> None:
    ranks = np.arange(40)
    images = np.zeros((40, 8, 8)) + ranks[:, None, None]
    found = ClassMap(
        codes=np.stack([ranks, -ranks], axis=1).astype(float),
        images=images,
        found=(ranks >= 30).astype(int),
        labels=np.where(ranks % 2 == 0, "star", "bogus"),
    )
    left, right = draw_classes(found, "ztf").axes
    shown = {float(image.get_array()[0, 0]): image for image in left.images}
    assert all(image.origin == "lower" for image in shown.values())
    # small first codes to the left, and there the second are large: at the top
    (low, *_), (*_, high) = (shown[min(shown)].get_extent(), shown[min(shown)].get_extent())
    assert low < 0.1
    assert high > 0.9
    assert {line.get_label() for line in right.lines} == {"star (20)", "bogus (20)"}
    assert found.composition == [{"bogus": 15, "star": 15}, {"bogus": 5, "star": 5}]


def test_a_class_is_named_by_what_is_in_it() -> None:
    table = {"star": 6, "asteroid": 3, "": 1}
    assert class_line(1, table) == "class B, 10 stamps: 60% star, 30% asteroid"


# All of it, small


@pytest.mark.filterwarnings("ignore")
def test_one_run_from_command_to_outcome_and_not_twice(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = Size(60, 16, 16, {"simulated": 1}, (0,), (1.0,))
    run = run_of("simulated-faults-1-seed0", size, "simulated", (1,))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = script.composed(*run.overrides)
    root = tmp_path / settings["data"]["root"]
    simulate(root, n_stamps=60, seed=0, size=16, n_processes=1, progress=False)
    found = script.finished(run, settings, tmp_path)
    assert (found.verdict, found.output_moves, found.faults) == ("full", False, [1])
    assert found.forecast_kl_nats > 1
    assert found.n_train + found.n_val == 60
    monkeypatch.setattr(script, "trained", None)
    assert script.finished(run, settings, tmp_path) == found
