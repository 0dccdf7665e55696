"""Classes and p-values that are found after a run reach its projector."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from vae_astro.report.page import write_page
from vae_astro.report.projector import METADATA, add_to_projector

TABLE = "label\tid\trow\nstar\ta\t3\nspiral\tb\t7\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "projector").mkdir()
    (tmp_path / METADATA).write_text(TABLE)
    return tmp_path


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / METADATA).open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_columns_come_first_and_are_matched_by_the_row_of_the_store(run: Path) -> None:
    assert add_to_projector(run, {"class": {7: "class_1\twith tab", 9: "class_2"}})
    assert [list(line.values()) for line in read(run)] == [
        ["", "star", "a", "3"],
        ["class_1 with tab", "spiral", "b", "7"],
    ]
    assert add_to_projector(run, {"class": {3: "again"}})  # replaced, not added once more
    assert [line["class"] for line in read(run)] == ["again", ""]
    assert list(read(run)[0]) == ["class", "label", "id", "row"]


@pytest.mark.parametrize("content", ["", "id\nx\n", "id\trow\nx\n", TABLE.replace("3", "x")])
def test_metadata_that_are_not_of_a_run_stay_as_they_are(run: Path, content: str) -> None:
    (run / METADATA).write_text(content)
    assert not add_to_projector(run, {"class": {3: "class_0"}})
    assert (run / METADATA).read_text() == content


def test_a_run_without_projector_gets_none(tmp_path: Path) -> None:
    assert not add_to_projector(tmp_path, {"class": {3: "class_0"}})
    assert list(tmp_path.iterdir()) == []


def test_the_page_made_again_tells_the_projector(run_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    write_page(folder)
    lines = read(folder)
    assert {"class", "outlier_p_value", "outlier_minus_log10_p", "label"} <= set(lines[0])
    assert all(0 < float(line["outlier_p_value"]) <= 1 for line in lines)
    assert {line["class"] for line in lines} <= {"class_0", "class_1", ""}
