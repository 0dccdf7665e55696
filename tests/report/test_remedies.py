"""What a page offers where a code is of no use: commands that compose, and help."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from page_run import composed

from vae_astro.report.history import Run
from vae_astro.report.page.commands import commands
from vae_astro.report.page.remedies import remedies

SIGMA = "likelihood=sigma"


def judged(collapse: dict[str, Any], *typed: str) -> Run:
    config = composed("config", *typed, "run_dir=runs/a")
    return Run(Path("runs/a"), "a", {"collapse": collapse}, config, list(typed), {})


def collapsed(change: str | None, *typed: str, kind: str = "settings") -> Run:
    """A run that collapsed, and the setting that would help most, if it is one."""
    told = {"change_kind": kind, "change_settings": [] if change is None else [change]}
    return judged({"verdict": "full", **told}, *typed)


def test_a_code_that_is_of_use_needs_no_remedy() -> None:
    assert remedies(judged({"verdict": "none"})) == []
    assert remedies(judged({"verdict": "partial", "meaning": {"only_nuisances": False}})) == []
    assert remedies(Run(Path("a"), "a", None, {}, [], {})) == []


@pytest.mark.parametrize(
    ("change", "typed", "wanted"),
    [
        ("beta.end=0.05", ["beta.end=4", "run_dir=runs/a"],
         {"beta.end": 0.05}),
        ("beta.value=2e-05", ["beta=constant", "beta.value=4"],
         {"beta.value": 2e-5}),
        (SIGMA, ["likelihood=gaussian", "likelihood.std=10"], {"likelihood.name": "sigma"}),
        (SIGMA, ["experiment=question", "data.n_stamps=200"],
         {"likelihood.name": "sigma", "model.name": "question", "data.n_stamps": 200}),
        ("model.latent_dim=3", [], {"model.latent_dim": 3}),
    ],
)  # fmt: skip
def test_the_most_useful_change_is_a_command_that_composes(
    change: str, typed: list[str], wanted: dict[str, Any]
) -> None:
    offered = commands(collapsed(change, *typed))
    line = next(line for words, line in offered if "most useful change" in words)
    _, script, *overrides = shlex.split(line)
    assert script == "train.py"
    assert "runs/a" not in line  # another run
    settings = composed("config", *overrides, "run_dir=runs/b")
    for name, value in wanted.items():
        group, key = name.split(".")
        assert settings[group][key] == value
    if wanted.get("likelihood.name") == "sigma":
        assert "kl_weight" not in settings["likelihood"]
        assert "std" not in settings["likelihood"]


def test_a_forecast_of_the_change_comes_first_and_composes() -> None:
    run = collapsed("beta.end=0.05", "data.size=32", "trainer.max_epochs=3")
    line = commands(run)[0][1]
    _, script, *overrides = shlex.split(line)
    assert script == "scripts/forecast.py"
    settings = composed("forecast", *overrides)
    assert (settings["beta"]["end"], settings["data"]["size"]) == (0.05, 32)


def test_a_network_that_goes_wrong_is_audited_and_a_short_run_goes_on() -> None:
    asked = collapsed(None, kind="audit")
    assert "python scripts/audit.py checkpoint=runs/a" in [line for _, line in commands(asked)]
    longer = collapsed(None, kind="longer")
    assert commands(longer)[0][1].startswith("python train.py resume=")


@pytest.mark.parametrize("change", [None, SIGMA, "beta.end=0.1"])
def test_every_collapse_has_a_run_that_rescues_itself_and_none_uses_the_code(
    change: str | None,
) -> None:
    lines = [line for _, line in commands(collapsed(change))]
    assert any("collapse.action=rescue" in line for line in lines)
    for word in ("embed.py", "classify.py", "outliers.py", "init_from="):
        assert not any(word in line for line in lines)


def test_a_code_of_nuisances_is_offered_what_takes_the_sky_away() -> None:
    only = {"verdict": "none", "meaning": {"only_nuisances": True}}
    typed = ["data.normalize.stretch=linear", "model=mlp", "model.latent_dim=8"]
    found = [words for _, words in remedies(judged(only, *typed))]
    told = [composed("config", *words[1:], "run_dir=runs/b") for words in found]
    assert [each["data"]["normalize"]["stretch"] for each in told] == ["asinh", "linear", "linear"]
    assert [each["model"]["name"] for each in told] == ["mlp", "rings", "mlp"]
    assert told[2]["beta"]["end"] == pytest.approx(0.1)
    asinh_rings = judged(only, "model=rings", "beta=constant")
    assert [words[-1] for _, words in remedies(asinh_rings)] == ["beta.value=0.1"]
    above = judged(only, "model=rings", "beta.start=4", "beta.end=2")
    assert [words[-2:] for _, words in remedies(above)] == [["beta.end=0.2", "beta.start=0.2"]]
    weighted = judged(only, "model=rings", "beta=capacity")
    assert [words[-1] for _, words in remedies(weighted)] == ["beta.gamma=0.1"]
    lines = " ".join(line for _, line in commands(judged(only, *typed)))
    assert "classify.py" not in lines
