"""Names that a person gives: written, edited, read back, and refused where they cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from vae_astro.errors import InputError
from vae_astro.evaluate.agreement import compare
from vae_astro.evaluate.class_names import read_names, write_names
from vae_astro.evaluate.consensus import ClassFound

CLASSES = [ClassFound(0.75, 0.1, 0.9, 0.95, 5, 5), ClassFound(0.25, 0.4, None, None, 1, 1)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "classes.yaml"
    write_names(path, "12e4", CLASSES, None)
    return path


def test_an_unedited_file_gives_the_names_that_classes_have_anyway(file):
    assert read_names(file, "12e4", 2) == ["class_0", "class_1"]


def test_the_file_says_what_was_found(tmp_path):
    labels = compare(np.array([0, 0, 1]), np.array(["a: b", "a: b", ""]), 2)
    write_names(tmp_path / "n.yaml", "0", CLASSES, labels)
    held = yaml.safe_load((tmp_path / "n.yaml").read_text("utf-8"))
    first = held["classes"][0]
    assert (first["occupancy"], first["stability"], first["verdict"]) == (0.75, 0.9, "stable")
    assert (first["most_frequent_label"], first["purity"]) == ("a: b", 1.0)
    assert "stability" not in held["classes"][1]


def edited(file: Path, name: str) -> Path:
    file.write_text(file.read_text("utf-8").replace("name: null", f"name: {name}", 1), "utf-8")
    return file


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("spiral", "spiral"),
        ("'S0: \"lens\" $x$ # 100 % / ü 銀河'", 'S0: "lens" $x$ # 100 % / ü 銀河'),
        ("3C 273", "3C 273"),
        ("42", "42"),
        ("'  star '", "star"),
        ("''", "class_0"),
    ],
)
def test_names_may_have_odd_characters(file, written, name):
    assert read_names(edited(file, written), "12e4", 2) == [name, "class_1"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('"two\\nlines"', "one line"),
        ('"bell\\a"', "control"),
        ("x" * 81, "81 characters"),
        ("class_1", "another class"),
        ("[a, b]", "in quotes"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_names_that_are_none_are_refused_with_the_file(file, written, message):
    with pytest.raises(InputError, match=message) as refused:
        read_names(edited(file, written), "12e4", 2)
    assert f"names={file}" in str(refused.value)


def test_two_classes_may_have_one_name(file):
    file.write_text(file.read_text("utf-8").replace("name: null", "name: star"), "utf-8")
    assert read_names(file, "12e4", 2) == ["star", "star"]


def test_names_of_another_clustering_are_refused(file):
    with pytest.raises(InputError, match="other classes"):
        read_names(file, "other", 2)


def test_a_class_that_there_is_not_is_refused(file):
    with pytest.raises(InputError, match="names class 1; there are 0 to 0"):
        read_names(file, "12e4", 1)


@pytest.mark.parametrize("written", ["012", "1e3", "no", "2026-01-01", "0x10", "1_000", "nan"])
def test_a_name_is_what_was_written(file, written):
    assert read_names(edited(file, written), "12e4", 2)[0] == written


@pytest.mark.parametrize("written", ["null", "~", ""])
def test_nothing_is_no_name(file, written):
    assert read_names(edited(file, written), "12e4", 2)[0] == "class_0"


def test_a_class_that_stands_there_twice_is_refused(file):
    file.write_text(file.read_text("utf-8").replace("  1:", "  0:"), "utf-8")
    with pytest.raises(InputError, match="'0' stands there twice"):
        read_names(file, "12e4", 2)


def test_a_key_that_is_unknown_is_refused(file):
    file.write_text(file.read_text("utf-8").replace("name: null", "nmae: star"), "utf-8")
    with pytest.raises(InputError, match="class 0 has the key 'nmae', its keys are name, "):
        read_names(file, "12e4", 2)


@pytest.mark.parametrize("content", ["", "- a", "clustering: 0"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "n.yaml").write_text(content)
    with pytest.raises(InputError, match="no list of classes"):
        read_names(tmp_path / "n.yaml", "0", 2)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_names(tmp_path / "none.yaml", "0", 2)
