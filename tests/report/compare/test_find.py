"""From what is typed to run folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from vae_astro.errors import InputError
from vae_astro.report.compare.find import find_runs


def names(paths: list[str]) -> list[str]:
    return [run.name for run in find_runs(paths)[0]]


def test_run_folders_come_in_the_order_given_and_once(write_run, tmp_path: Path) -> None:
    first, second = str(write_run("b")), str(write_run("a"))
    assert names([first, second, first, f"{first}/."]) == ["b", "a"]


def test_a_pattern_is_looked_up(write_run, tmp_path: Path) -> None:
    for name in ("a", "b", "other"):
        write_run(name)
    assert names([f"{tmp_path}/[ab]"]) == ["a", "b"]


def test_a_sweep_gives_its_jobs_by_their_numbers(write_run, tmp_path: Path) -> None:
    for number in (10, 2, 0):
        write_run(f"sweep/{number}")
    (tmp_path / "sweep" / "multirun.yaml").write_text("{}")
    assert names([str(tmp_path / "sweep")]) == ["sweep/0", "sweep/2", "sweep/10"]
    assert names([str(tmp_path)]) == ["sweep/0", "sweep/2", "sweep/10"]
    runs, left_out = find_runs([f"{tmp_path}/sweep/*"])
    assert [run.name for run in runs] == ["sweep/0", "sweep/2", "sweep/10"]
    assert left_out == []


def test_jobs_that_say_what_was_set_come_by_their_numbers_too(write_run, tmp_path: Path) -> None:
    jobs = ["9_beta_0.1", "10_beta_3", "11", "2_beta_1", "2026-11-23_run", "3d"]
    for job in jobs:
        write_run(f"sweep/{job}")
    found = [name.removeprefix("sweep/") for name in names([str(tmp_path / "sweep")])]
    assert found == ["2026-11-23_run", "3d", "2_beta_1", "9_beta_0.1", "10_beta_3", "11"]


def test_a_checkpoint_stands_for_its_run(write_run) -> None:
    folder = write_run("a")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").touch()
    assert names([str(folder / "checkpoints" / "best.ckpt")]) == ["a"]
    assert names([str(folder / "checkpoints")]) == ["a"]


def test_what_holds_no_run_is_told_beside_the_runs(write_run, tmp_path: Path) -> None:
    write_run("a")
    (tmp_path / "compare_1").mkdir()
    (tmp_path / "notes.txt").touch()
    runs, left_out = find_runs([f"{tmp_path}/*"])
    assert [run.name for run in runs] == ["a"]
    assert [path.name for path in left_out] == ["compare_1", "notes.txt"]


def test_the_folder_of_a_rescue_is_no_run_of_its_own(write_run, tmp_path: Path) -> None:
    folder = write_run("a")
    (folder / "rescue_1").mkdir()
    (folder / "rescue_1" / "events.out.tfevents.1").touch()
    assert names([str(tmp_path)]) == ["a"]


@pytest.mark.parametrize("typed", ["nowhere", "no*where", "empty"])
def test_no_run_at_all_is_refused_by_name(tmp_path: Path, typed: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"runs=.*{typed[:3]}"):
        find_runs([str(tmp_path / typed)])
