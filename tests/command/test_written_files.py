"""Files that a command writes: there whole or not; links, pipes and devices stay what they are."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vae_astro.command.files import figure_to_write, whole, write_whole
from vae_astro.errors import InputError


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    with whole(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
        assert partial.parent == tmp_path
        assert partial.suffix == ".json"
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["a.json"]


def test_nothing_is_left_of_a_file_that_an_error_stops(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), whole(tmp_path / "a.json") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "b.json", tmp_path / "a.json"
    target.write_text("before")
    link.symlink_to(target)
    write_whole(link, "after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert os.listdir(tmp_path / "there") == ["b.json"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_whole, args=(pipe, "said"), daemon=True)
    writer.start()
    assert pipe.read_text() == "said"
    writer.join(10)
    assert pipe.is_fifo()


def test_a_file_in_a_folder_that_takes_no_others_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    may = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda name, mode: Path(name) != tmp_path and may(name, mode))
    monkeypatch.setattr(os, "replace", lambda *names: pytest.fail("it was replaced"))
    write_whole(path, "after")
    assert path.read_text() == "after"


def test_what_is_printed_goes_where_other_lines_go(tmp_path: Path) -> None:
    said = (
        "from pathlib import Path; from vae_astro.command.files import file_to_write, write_whole; "
        "print('before', flush=True); write_whole(file_to_write('out', '/dev/stdout'), 'JSON'); "
        "print('after')"
    )
    command = [sys.executable, "-c", said]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "before\nJSONafter\n"
    with (tmp_path / "out.txt").open("a") as out:
        subprocess.run(command, stdout=out, check=True)
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_figure_says_by_its_ending_what_it_is(tmp_path: Path) -> None:
    assert figure_to_write("figure", None) is None
    assert figure_to_write("figure", str(tmp_path / "new" / "a.PNG")) == tmp_path / "new" / "a.PNG"
    for name in ("forecast", "forecast.txt"):
        with pytest.raises(InputError, match=r"figure=.* must be a \.png, \.pdf or \.svg"):
            figure_to_write("figure", str(tmp_path / name))


@pytest.mark.parametrize("stem", ["a" * 250, "\N{GREEK SMALL LETTER ALPHA}" * 125])
def test_a_name_may_be_as_long_as_names_are(tmp_path: Path, stem: str) -> None:
    write_whole(tmp_path / f"{stem}.json", "said")
    assert os.listdir(tmp_path) == [f"{stem}.json"]
