"""The page of a run: what it says, what it escapes, and what it says where something is missing."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from page_run import AFTER_TRAINING, ODD_LABEL, ODD_OBJECT

from vae_astro.collapse.forecast import forecast
from vae_astro.collapse.spectrum import Spectrum
from vae_astro.errors import InputError
from vae_astro.evaluate.properties import PROPERTIES
from vae_astro.objective.beta import linear
from vae_astro.report import board, figures
from vae_astro.report.history import Curve, Run
from vae_astro.report.page import PageOptions, options_from, page_after_run, panels, write_page
from vae_astro.report.page.commands import commands
from vae_astro.report.page.facts import units_table, verdict
from vae_astro.report.page.map_section import MEASURED

LARGEST_MIB = 15


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text("utf-8")


def text_of(page: str) -> str:
    """What a reader sees of it, roughly."""
    body = re.sub(r"<(script|style)[^>]*>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def section(page: str, anchor: str) -> str:
    found = re.search(rf'<section id="{anchor}".*?</section>', page, re.DOTALL)
    assert found is not None, anchor
    return found[0]


def copied(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


# -- a whole run ---------------------------------------------------------------------------------


def test_a_run_ends_with_its_page(run_dir: Path) -> None:
    page = (run_dir / AFTER_TRAINING).read_text("utf-8")
    assert "Map of the codes" in page
    assert "No classes have been looked for" in page


def test_page_asks_nothing_of_a_network_and_can_be_sent(run_dir: Path, page: str) -> None:
    assert (run_dir / "report.html").stat().st_size < LARGEST_MIB * 2**20
    asked = re.findall(r'(?:src|href)="([^"]{0,60})', page)
    assert asked
    assert all(address.startswith(("data:", "#")) for address in asked)
    assert "default-src 'none'" in page
    assert "@import" not in page
    assert "url(" not in page


def test_verdict_and_forecast_come_first_and_are_those_of_the_metrics(
    run_dir: Path, page: str
) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text())
    headline = {
        "none": "The latent code works",
        "partial": "The latent code works in part",
        "full": "The latent code has collapsed",
    }[metrics["collapse"]["verdict"]]
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections[:3] == ["verdict", "forecast", "learning"]
    assert headline in text_of(section(page, "verdict"))
    assert metrics["collapse"]["explanation"] in text_of(section(page, "verdict"))
    foreseen = text_of(section(page, "forecast"))
    assert f"{metrics['collapse']['forecast']['kl_nats']:.3g}" in foreseen


def test_every_picture_is_there_with_words_for_it(page: str) -> None:
    pictures = re.findall(r'<img src="(data:image/[\w+]+;base64,)[^"]*"[^>]*alt="([^"]*)"', page)
    alts = " ".join(alt for _, alt in pictures)
    for words in ("Curves over", "variance of the stamps", "KL of every latent unit",
                  "what the model makes", "goes from −3 to 3", "real stamps", "Map of the codes",
                  "Most typical stamps of every class", "oddest stamps"):  # fmt: skip
        assert words in alts, words
    assert all(len(alt) > 20 for _, alt in pictures)
    assert len(re.findall("<img ", page)) == len(re.findall("<img [^>]*alt=", page))


def test_every_unit_stands_in_the_table_with_its_kl(run_dir: Path, page: str) -> None:
    kl = json.loads((run_dir / "metrics.json").read_text())["collapse"]["kl_per_unit_nats"]
    code = section(page, "code")
    for unit, nats in enumerate(kl):
        assert f'<td class="n" data-value="{unit}">{unit}</td>' in code
        assert f'data-value="{nats}"' in code


def test_names_with_odd_characters_are_escaped_everywhere(page: str) -> None:
    assert ODD_LABEL.startswith("<script>")
    assert ODD_LABEL not in page
    assert ODD_OBJECT not in page
    assert html.escape(ODD_LABEL, quote=False) in page.replace("&#34;", '"').replace("&#39;", "'")
    # in the data of the map too, where another </script> would end it
    data = re.search(r'id="map-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    read = json.loads(data[1])
    assert ODD_OBJECT in {fact["object"] for fact in read["facts"]}
    assert page.count("<script") == 2


def test_map_holds_every_validation_stamp_and_plain_numbers(page: str) -> None:
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    n = len(data["facts"])
    assert f"Codes of {n} stamps" in page
    names = [colour["name"] for colour in data["colours"]]
    assert {"class", "label", "p-value", "flux [raw units]"} <= set(names)
    for layout in data["layouts"]:
        assert len(layout["x"]) == len(layout["y"]) == n
    near = np.array(data["near"])
    assert near.shape == (n, 6)
    assert not (near == np.arange(n)[:, None]).any()
    for colour in data["colours"]:
        assert len(colour["values"]) == n


def test_rejects_are_counted_and_named(page: str) -> None:
    data = text_of(section(page, "data"))
    assert "Set aside, by reason" in data
    assert "broken.fits" in data


def test_settings_versions_and_commands_are_there(run_dir: Path, page: str) -> None:
    settings = html.unescape(section(page, "settings"))
    assert "latent_dim: 4" in settings
    assert "python train.py" in settings
    assert metadata.version("torch") in settings
    commands = html.unescape(section(page, "next"))
    for word in ("train.py 'resume=", "scripts/report.py 'run="):
        assert word in commands


def test_classes_stand_with_the_most_frequent_first(run_dir: Path, tmp_path: Path) -> None:
    folder = copied(run_dir, tmp_path)
    file = folder / "classes" / "classes.json"
    found = json.loads(file.read_text())
    found["found"]["classes"] = 2 * found["found"]["classes"][:1]
    found |= {"occupancy": [0.25, 0.5], "labels": None}
    file.write_text(json.dumps(found))
    (file.parent / "classes.yaml").unlink()
    table = section(write_page(folder).read_text("utf-8"), "classes")
    assert re.findall(r'data-value="(0\.25|0\.5)"', table) == ["0.5", "0.25"]


@pytest.mark.parametrize("start", [0.0, 2.0, 3.8])
def test_spectrum_of_page_and_of_tensorboard_have_the_threshold_that_the_forecast_names(
    start: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = forecast(
        Spectrum(
            eigenvalues=np.array([8.0, 1.0]),
            overlap=np.eye(2)[None],
            variance=np.array([100.0]),
            fitting_variance=np.array([100.0]),
            decoder_variance=np.array([1.0]),
            learned_scale=False,
            kl_weight=1.0,
            n_stamps=1000,
            n_pixels=100,
        ),
        2,
        linear(total_steps=10, start=start, end=4.0),
        10,
    )
    drawn: list[tuple[Any, ...]] = []

    def spectrum(*given: Any) -> Figure:
        drawn.append(given)
        return Figure()

    monkeypatch.setattr(figures, "spectrum", spectrum)
    run: Any = SimpleNamespace(metrics={"collapse": {"forecast": found.as_dict()}})
    assert panels._spectrum(run) is not None
    board.log_start(SimpleNamespace(loggers=[]), found)  # type: ignore[arg-type]
    for eigenvalues, threshold, latent_dim, passed in drawn:
        assert (list(eigenvalues), threshold, latent_dim) == (pytest.approx([8, 1]), 4, 2)
        assert passed == found.passed_threshold
    assert len(drawn) == 2
    assert found.passed_threshold == (2.0 if start == 2.0 else None)


# -- what is missing -----------------------------------------------------------------------------


def test_run_without_metrics_gives_a_page_of_what_is_there(run_dir: Path, tmp_path: Path) -> None:
    folder = copied(run_dir, tmp_path)
    (folder / "metrics.json").unlink()
    shutil.rmtree(folder / "classes")
    (folder / "outliers.parquet").unlink()
    page = write_page(folder).read_text("utf-8")
    assert "This run has not been judged" in page
    assert "Curves over" in page
    assert "Map of the codes" in page
    for anchor, script in (("classes", "scripts/classify.py"), ("outliers", "scripts/outliers.py")):
        assert f"python {script} checkpoint=" in section(page, anchor)


def test_run_without_its_stamps_shows_the_pictures_that_it_left(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(run_dir, tmp_path)
    config = folder / ".hydra" / "config.yaml"
    elsewhere = re.sub("store_dir: .*", f"store_dir: {tmp_path / 'nowhere'}", config.read_text())
    config.write_text(elsewhere)
    page = write_page(folder).read_text("utf-8")
    assert "data.store_dir" in text_of(section(page, "map"))
    assert "goes from −3 to 3" in page
    assert not (tmp_path / "nowhere").exists()  # a page packs nothing


def test_run_without_a_checkpoint_still_has_its_curves(run_dir: Path, tmp_path: Path) -> None:
    folder = copied(run_dir, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "figures")
    page = write_page(folder).read_text("utf-8")
    assert "Curves over" in page
    assert "No map" in page


def test_metrics_of_another_hand_do_not_stop_the_page(run_dir: Path, tmp_path: Path) -> None:
    folder = copied(run_dir, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    odd = {"collapse": {"verdict": "none", "kl_per_unit_nats": [None, "<b>"], "rescues": "x"},
           "val": {"kl_nats": None}, "data": {"n_train": "many"}, "timing": None}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(odd))
    assert "The latent code works" in write_page(folder).read_text("utf-8")


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        write_page(tmp_path)


def test_classes_and_outliers_that_are_asked_for_must_be_there(
    run_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    with pytest.raises(InputError, match="classes="):
        write_page(run_dir, PageOptions(out=out, classes=tmp_path))
    with pytest.raises(InputError, match="outliers="):
        write_page(run_dir, PageOptions(out=out, outliers=tmp_path / "none.parquet"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_page_of_ours_is_not_replaced(run_dir: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("a letter")
    with pytest.raises(InputError, match="overwrite=true"):
        write_page(run_dir, PageOptions(out=mine))
    assert mine.read_text() == "a letter"
    with pytest.raises(InputError, match="no folder"):
        write_page(run_dir, PageOptions(out=tmp_path / "none" / "page.html"))


def test_a_page_that_cannot_be_made_does_not_fail_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert page_after_run(tmp_path, None, "cpu") is None  # type: ignore[arg-type]
    assert "scripts/report.py run=" in caplog.text


def test_settings_are_checked() -> None:
    given = {"run": "runs/a", "out": None, "overwrite": False, "classes": None,
             "outliers": "o.parquet", "umap": False, "n_map": 10}  # fmt: skip
    run, options = options_from(given)
    assert (run, options.outliers, options.n_map) == (Path("runs/a"), Path("o.parquet"), 10)
    for key, value in (("run", None), ("n_map", 1), ("umap", "yes"), ("classes", 3)):
        with pytest.raises(InputError, match=key):
            options_from({**given, key: value})


# -- what it says of each verdict ----------------------------------------------------------------


def told(folder: Path, collapse: dict | None, **curves: Curve) -> Run:
    """A run that is known by its metrics alone."""
    metrics = None if collapse is None else {"collapse": collapse, "val": {"kl_nats": 3.0}}
    return Run(folder, "told", metrics, {}, [], curves)


@pytest.mark.parametrize("found", ["none", "partial"])
def test_a_code_of_nuisances_is_promised_nothing(tmp_path: Path, found: str) -> None:
    collapse = {"verdict": found, "active_units": 2, "latent_dim": 4}
    useful = verdict(told(tmp_path, collapse))
    useless = verdict(told(tmp_path, {**collapse, "meaning": {"only_nuisances": True}}))
    assert useless["headline"] == "The latent code follows only nuisances"
    assert useless["tone"] == "bad" != useful["tone"]
    assert "2 of 4 latent units" in useless["plainly"]
    for promise in ("enough to sort", "can be used"):
        assert promise not in useless["plainly"]


def test_a_run_without_a_verdict_is_told_why(tmp_path: Path) -> None:
    going = told(tmp_path, None)
    assert "still training" in verdict(going)["plainly"]
    damaged = replace(going, damaged=("metrics.json cannot be read: line 1",))
    assert "is damaged" in verdict(damaged)["plainly"]
    assert "holds no verdict" in verdict(told(tmp_path, {}))["plainly"]


def test_the_most_useful_change_is_said_once(tmp_path: Path) -> None:
    explained = "Full collapse. Most useful change: likelihood=sigma (0.5 nats). More."
    said = {"verdict": "full", "change": "likelihood=sigma (0.5 nats)", "explanation": explained}
    once = verdict(told(tmp_path, said))
    assert once["explanation"] == "Full collapse. More."
    assert once["change"] == said["change"]


def test_a_code_that_works_is_offered_for_use(tmp_path: Path) -> None:
    lines = " ".join(line for _, line in commands(told(tmp_path / "a b", {"verdict": "none"})))
    for word in ("scripts/embed.py 'checkpoint=", "scripts/classify.py 'checkpoint=", "outliers"):
        assert word in lines


def test_a_finished_run_goes_on_to_more_epochs_than_it_had(tmp_path: Path) -> None:
    epoch = Curve(np.array([1, 9]), np.array([0.0, 6.0]), np.array([1.0, 2.0]))
    finished = told(tmp_path, {"verdict": "none"}, epoch=epoch)
    assert commands(finished)[0][1].endswith("trainer.max_epochs=14")
    assert "trainer.max_epochs" not in commands(told(tmp_path, None, epoch=epoch))[0][1]
    assert commands(told(tmp_path, {"verdict": "none"}))[0][1].endswith("max_epochs=MORE")


def test_a_collapsed_code_is_not_offered_for_use(run_dir: Path, tmp_path: Path) -> None:
    folder = copied(run_dir, tmp_path)
    shutil.rmtree(folder / "classes")
    (folder / "outliers.parquet").unlink()
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["collapse"]["verdict"] = "full"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = write_page(folder).read_text("utf-8")
    assert "checkpoint=" not in "".join(section(page, s) for s in ("classes", "outliers", "next"))
    assert "force=true" in section(page, "next")
    assert "This run again, which changes its settings itself" in section(page, "next")
    assert "lie together" not in section(page, "map")
    assert "This code has collapsed" in section(page, "map")


def test_no_curve_in_nats_of_a_training_that_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(panels, "learning_curves", lambda history, *_: drawn.append(history))
    curve = Curve(np.arange(3), np.ones(3), np.ones(3))
    run = told(tmp_path, None, **{"train/reconstruction": curve, "train/kl_nats": curve})
    for likelihood in (
        {"name": "sigma", "focus_radius": None},
        {"name": "sigma", "focus_radius": 8},
        {"name": "pixel_mean_mse", "kl_weight": 1000.0},
    ):
        panels.draw(replace(run, config={"likelihood": likelihood}), None, None, None)
    assert ["train/elbo_nats" in history for history in drawn] == [True, False, False]


def test_units_on_the_map_are_those_of_the_properties() -> None:
    for name, (words, _) in MEASURED.items():
        unit = re.search(r"\[(.*)\]", words)
        assert unit is None or unit[1] in PROPERTIES[name]


def test_a_unit_that_follows_nothing_has_no_correlation(tmp_path: Path) -> None:
    units = [{"unit": 0, "follows": None, "correlation": 0.1},
             {"unit": 1, "follows": "flux", "correlation": 0.9}]  # fmt: skip
    collapse = {"verdict": "none", "kl_per_unit_nats": [2.0, 1.0], "meaning": {"units": units}}
    table = units_table(told(tmp_path, collapse))
    assert table is not None
    assert [row[3] for row in table.rows] == [None, 0.9]
    assert table.numeric == (True, True, False, True, False)


def test_the_end_of_a_run_is_when_its_last_value_was_logged(run_dir: Path, tmp_path: Path) -> None:
    page = write_page(copied(run_dir, tmp_path)).read_text("utf-8")
    finished = re.search("Finished ([^·]*) ·", page)
    assert finished is not None
    assert finished[1] in (run_dir / "report.html").read_text("utf-8")
    assert "best checkpoint, step " in page
