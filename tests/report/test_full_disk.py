"""Curves, pictures, figures and the log file on a disk that is full."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from vae_astro.errors import InputError
from vae_astro.report.full_disk import Curves, file_handlers_that_give_up, save_figure
from vae_astro.report.summary import write_metrics


def fail(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def curves(tmp_path: Path) -> Curves:
    """Curves that were written for a while, until the disk was full."""
    made = Curves(tmp_path, name="", version="")
    made.log_metrics({"loss": 1.0}, 0)
    made.save()
    made.experiment._get_file_writer().event_writer._async_writer._writer.write = fail
    return made


# that no exception of the writer's thread comes through is checked by pytest itself
def test_curves_end_with_one_warning_and_the_run_goes_on(
    curves: Curves, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.WARNING):
        for step in range(1, 200):
            curves.log_metrics({"loss": 1.0}, step)
            curves.add_figure("picture", Figure(), step)
            if curves.is_lost:
                break
            time.sleep(0.01)
        assert curves.is_lost
        curves.log_metrics({"loss": 1.0}, 1000)
        curves.log_hyperparams({"a": 1}, {"b": 2.0})
        curves.save()
        curves.finalize("success")
    (record,) = caplog.records
    assert "curves are not written from here on" in record.message
    assert "No space left on device" in record.message
    assert (next(tmp_path.glob("events.out.tfevents.*"))).stat().st_size > 0, "what was written"


def test_curves_that_cannot_be_begun_are_lost_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.__init__", fail)
    curves = Curves(tmp_path, name="", version="")
    with caplog.at_level(logging.WARNING):
        curves.experiment.add_scalar("loss", 1.0, 0)
        curves.log_metrics({"loss": 1.0}, 1)
    assert curves.is_lost
    assert len(caplog.records) == 1


def test_what_is_no_trouble_of_the_disk_is_raised(tmp_path: Path) -> None:
    curves = Curves(tmp_path, name="", version="")
    with pytest.raises(ValueError, match="not supported"):
        curves.log_metrics({"loss": object()}, 0)  # type: ignore[dict-item]
    assert not curves.is_lost
    curves.finalize("success")


def test_a_picture_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "figures" / "kl.png"
    assert save_figure(Figure(), path)
    before = path.read_bytes()

    def half(self: Figure, target: Path, **kwargs: object) -> None:
        target.write_bytes(b"half")
        fail()

    monkeypatch.setattr(Figure, "savefig", half)
    assert not save_figure(Figure(), path)
    assert "No space left on device" in caplog.text
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["kl.png"]


def test_metrics_that_cannot_be_written_name_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_metrics(tmp_path, {"val": 1})
    before = (tmp_path / "metrics.json").read_bytes()
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(InputError, match=r"metrics.json.*No space left.*kept.*resume="):
        write_metrics(tmp_path, {"val": 2})
    assert (tmp_path / "metrics.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


@pytest.fixture
def full_log() -> Iterator[logging.FileHandler]:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    handler = logging.FileHandler("/dev/full")
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
    handler.setLevel(logging.CRITICAL)


def test_a_log_file_on_a_full_disk_ends_with_one_line(
    full_log: logging.FileHandler,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    file_handlers_that_give_up()
    for _ in range(3):
        logging.getLogger("vae_astro").warning("a line")
    assert full_log not in logging.getLogger().handlers
    assert caplog.text.count("/dev/full is not written from here on") == 1
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(OSError, match="No space left"):
        full_log.stream.close()
