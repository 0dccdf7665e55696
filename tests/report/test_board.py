"""What TensorBoard is given: by the files here, by the browser in test_tensorboard_pages.py."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from logged_run import log_run, moving_stamps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.projector import ProjectorConfig

from vae_astro.collapse.monitor import CollapseMonitor, Validation
from vae_astro.report import board
from vae_astro.report.full_disk import Curves
from vae_astro.report.history import read_history
from vae_astro.report.projector import LARGEST_SPRITE, MOST_STAMPS, sprite_of


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logged")
    log_run(folder / "run", moving_stamps(folder))
    return folder / "run"


@pytest.fixture(scope="module")
def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"tensors": 0}).Reload()


def plugin_content(events: EventAccumulator, tag: str) -> bytes:
    return events.SummaryMetadata(tag).plugin_data.content


def test_every_scalar_stands_in_a_group(events: EventAccumulator) -> None:
    names = events.Tags()["scalars"]
    assert {"schedule/beta", "schedule/epoch", "val/elbo_nats", "final/elbo_nats"} <= set(names)
    assert all("/" in name for name in names)


def test_a_curve_keeps_the_name_that_the_model_gave_it(run_dir: Path) -> None:
    assert read_history(run_dir)["beta"].values.tolist() == [0.5, 0.5, 0.5]


def test_forecast_and_verdict_are_told_in_words(events: EventAccumulator) -> None:
    said = {
        name: events.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode()
        for name in ("forecast", "verdict")
    }
    assert "eigenvalue" in said["forecast"]
    assert "Partial collapse: 2 of 3." in said["verdict"]


def test_the_pictures_are_those_of_the_run_page(events: EventAccumulator) -> None:
    assert set(events.Tags()["images"]) == {
        "spectrum",
        "reconstructions",
        "traversals",
        "prior_samples",
    }


def test_the_table_has_the_same_columns_whatever_the_run_lacks(events: EventAccumulator) -> None:
    columns = metadata.parse_experiment_plugin_data(plugin_content(events, metadata.EXPERIMENT_TAG))
    assert {info.name for info in columns.hparam_infos} == {*board.SETTINGS, "verdict"}
    tags = [info.name.tag for info in columns.metric_infos]
    assert {"final/elbo_nats", "final/kl_nats", "final/active_units", "final/nmi"} == set(tags[:4])
    assert "final/nmi" not in events.Tags()["scalars"]


def test_five_settings_are_open_at_first(events: EventAccumulator) -> None:
    columns = metadata.parse_experiment_plugin_data(plugin_content(events, metadata.EXPERIMENT_TAG))
    assert {info.name for info in columns.hparam_infos if info.differs} == board.SHOWN_FIRST
    assert len(board.SHOWN_FIRST) == 5


def test_the_table_has_the_run_s_settings_and_figures(events: EventAccumulator) -> None:
    begun = metadata.parse_session_start_info_plugin_data(
        plugin_content(events, metadata.SESSION_START_INFO_TAG)
    )
    assert begun.hparams["model.name"].string_value == "linear"
    assert begun.hparams["beta.end"].number_value == 0.5  # of a schedule that does not move
    assert begun.hparams["verdict"].string_value == "partial collapse"
    assert "model.width" not in begun.hparams
    assert events.Scalars("final/elbo_nats")[0].value == -321.5


def test_each_chart_of_the_layout_has_one_scalar(events: EventAccumulator) -> None:
    (tensor,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    charts = [chart for category in layout.category for chart in category.chart]
    assert len(charts) == sum(map(len, board.LAYOUT.values()))
    assert all(len(chart.multiline.tag) == 1 for chart in charts)


def test_the_projector_has_a_code_a_stamp_and_a_line_for_each(run_dir: Path) -> None:
    config = text_format.Parse((run_dir / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (shown,) = config.embeddings
    codes = np.loadtxt(run_dir / shown.tensor_path, delimiter="\t")
    metadata_lines = (run_dir / shown.metadata_path).read_text().splitlines()
    lines = list(csv.DictReader(metadata_lines, delimiter="\t"))
    sprite = matplotlib.image.imread(run_dir / shown.sprite.image_path)
    assert codes.shape == (len(lines), 3)
    assert {"id", "row", "chi2_per_pixel", "flux"} <= set(lines[0])
    assert "label" not in lines[0]  # these have none
    n_columns = sprite.shape[0] // shown.sprite.single_image_dim[0]
    assert sprite.shape[0] == sprite.shape[1] == n_columns * 20
    assert (n_columns - 1) ** 2 < len(lines) <= n_columns**2


def test_thumbnails_lie_row_by_row_upright_and_the_rest_is_white() -> None:
    images = torch.zeros(5, 4, 4)
    images[3, 0, 1] = 1.0  # lowest row, second column, of the fourth stamp
    sprite, side = sprite_of(images)
    assert (sprite.shape, side) == ((12, 12), 4)
    assert np.argwhere(sprite[4:8, :8]).tolist() == [[3, 1]]
    assert (sprite[4:8, 8:] == 255).all()
    assert (sprite[8:] == 255).all()
    assert (sprite[:4] == 0).all()


def test_large_stamps_and_many_fit_what_the_browser_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    sprite, side = sprite_of(torch.randn(10, 200, 200))
    assert (side, sprite.shape) == (48, (192, 192))
    assert MOST_STAMPS * 48**2 <= LARGEST_SPRITE**2
    monkeypatch.setattr("vae_astro.report.projector.LARGEST_SPRITE", 100)
    sprite, side = sprite_of(torch.zeros(90, 28, 28))
    assert (side, sprite.shape) == (10, (100, 100))


def test_a_run_without_forecast_is_logged_too(tmp_path: Path) -> None:
    curves = Curves(tmp_path, name="", version="", default_hp_metric=False)
    trainer: Any = SimpleNamespace(loggers=[curves], callbacks=[], global_step=0)
    board.log_start(trainer, None)
    curves.finalize("success")
    found = EventAccumulator(str(tmp_path)).Reload()
    assert found.Tags()["images"] == []
    assert "custom_scalars__config__" in found.Tags()["tensors"]


def test_the_state_of_the_code_is_told_while_it_learns(tmp_path: Path) -> None:
    monitor = CollapseMonitor()
    monitor.validations.append(Validation(60, "collapsing", 1, [0.5, 0.25], None, None, 1.5))
    curves = Curves(tmp_path, name="", version="", default_hp_metric=False)
    trainer: Any = SimpleNamespace(loggers=[curves], callbacks=[monitor], global_step=60)
    board.log_state(trainer)
    curves.finalize("success")
    (tensor,) = EventAccumulator(str(tmp_path)).Reload().Tensors("verdict/text_summary")
    said = tensor.tensor_proto.string_val[0].decode()
    assert tensor.step == 60
    assert "collapsing" in said
    assert "1 of 2 units active, KL 0.75 nats" in said


def test_a_disk_that_is_full_costs_the_codes_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    log_run(tmp_path / "run", moving_stamps(tmp_path))
    assert "no codes for TensorBoard's projector" in caplog.text
    assert not (tmp_path / "run" / "projector_config.pbtxt").exists()
