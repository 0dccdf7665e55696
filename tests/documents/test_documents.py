"""README.md and docs/: links and pictures are there, commands compose, code compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from document_commands import NOT_RUN, check_composes, choices, groups, known_keys
from document_pages import (
    PAGES,
    ROOT,
    anchors,
    blocks,
    code_spans,
    commands,
    links,
    pictures,
    prose,
    text_of,
)

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: "-".join(page.relative_to(ROOT).with_suffix("").parts)
)


def conf_with_what_is_added(page: Path, folder: Path) -> Path:
    """conf/, or a copy with the files that the page tells its reader to write there."""
    added = [block for block in blocks(page, "yaml") if (block.file or "").startswith("conf/")]
    if not added:
        return ROOT / "conf"
    shutil.copytree(ROOT / "conf", folder / "conf")
    for block in added:
        (folder / str(block.file)).write_text(block.text)
    return folder / "conf"


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target} is not there"
        assert ROOT in (file, *file.parents), f"{page.name}: {target} leaves the repository"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}: no such heading"


@every_page
def test_every_picture_is_there_and_says_what_it_shows(page: Path) -> None:
    for alt, target in pictures(page):
        assert len(alt.split()) >= 3, f"{page.name}: {target} has no alternative text"
        assert (page.parent / target).is_file(), f"{page.name}: {target} is not there"


@every_page
def test_every_command_composes(page: Path, tmp_path: Path) -> None:
    conf = conf_with_what_is_added(page, tmp_path)
    for command in commands(page):
        for program, words in command.programs():
            if not program.startswith("tests/"):
                try:
                    check_composes(program, words, conf)
                except Exception as error:
                    pytest.fail(f"{command}\n{error}")


@every_page
def test_tests_and_extras_that_commands_name_exist(page: Path) -> None:
    extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    for command in commands(page):
        for path in re.findall(r"\btests/\S+", command.text):
            assert list(ROOT.glob(path)), f"{command}: no {path}"
        for named in re.findall(r"(?:vae-astro|\.)\[([\w,]+)\]", command.text):
            assert set(named.split(",")) <= set(extras), f"{command}: no such extra"


@every_page
def test_python_compiles_and_shell_parses(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block.text, str(block), "exec")
    for block in blocks(page, "bash", "sh"):
        checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
        assert checked.returncode == 0, f"{block}: {checked.stderr}"
    for block in blocks(page, ""):
        assert not block.text.startswith("python "), f"{block}: mark it as bash, so that it is run"


@every_page
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    """Spans like ``data.size=21`` anywhere; like ``data.size`` in the first column of tables."""
    known, all_groups = known_keys(), groups()
    for span in code_spans(page):
        for word in span.text.split():
            found = re.match(r"^'?([a-z_]+(?:\.[a-z_0-9]+)*)=(.*)$", word)
            if not found or found[1].split(".")[0] not in all_groups:
                continue
            key, value = found[1], found[2].strip("'\"")
            assert key in known, f"{span}: {key} is no setting"
            if key in all_groups and re.fullmatch(r"\w+(,\w+)*", value) and value != "null":
                missing = set(value.split(",")) - choices(key)
                assert not missing or value.isupper(), f"{span}: {key} has no choice {missing}"
    for row in re.findall(r"^\|([^|\n]+)\|", prose(page), re.M):
        for key in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)`", row):
            if key.split(".")[0] in all_groups and not re.search(r"\.(py|md|yaml|csv|json)$", key):
                assert key in known, f"{page.name}: {key} in a table is no setting"


def test_what_is_not_run_is_still_in_a_page() -> None:
    every = [command.text for page in PAGES for command in commands(page)]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, text) for text in every), f"{pattern}: in no page any more"


def test_every_page_can_be_found_from_the_readme() -> None:
    """A page that no other page links to is read by nobody."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in links(page):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_file() and file not in reached:
                waiting.append(file)
    assert set(PAGES) <= reached, f"linked from nowhere: {set(PAGES) - reached}"


def test_every_experiment_opens_with_command_time_and_expectation() -> None:
    for file in sorted((ROOT / "conf" / "experiment").glob("*.yaml")):
        opening = "\n".join(line for line in text_of(file).splitlines() if line.startswith("#"))
        assert f"experiment={file.stem}" in opening, f"{file.name}: no command"
        assert re.search(r"second|minute|hour", opening), f"{file.name}: no time"
        assert "Expected" in opening, f"{file.name}: no expected result"
