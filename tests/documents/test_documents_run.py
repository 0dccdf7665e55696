"""README.md and docs/ followed to the letter: every command and every line of Python is run.

``python -m pytest -m documents`` takes some twenty minutes on two cores. Stamps are few and runs
short (`document_commands.smaller`); what is not run at all is listed there, with the reason.
"""

from __future__ import annotations

import ast
import builtins
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from document_commands import made_small, why_not_run
from document_pages import PAGES, ROOT, Block, Command, blocks, code_spans, commands
from document_stage import build, environment

pytestmark = pytest.mark.documents

N_AT_A_TIME = 2
LONGEST_S = 420.0
SUPPLIED = {
    "Path": "from pathlib import Path",
    "stamps": "import glob; import numpy as _np; from astropy.io import fits as _fits; "
    "stamps = _np.stack([_fits.getdata(f) for f in sorted(glob.glob('FOLDER/*/*.fits'))])"
    ".astype('f4')[:, None]; stamps = _np.nan_to_num(stamps, nan=_np.nanmedian(stamps))",
    "model": "from package.module import Class as _Class; model = _Class()",
    "tables": "import pyarrow.parquet as _pq; tables = [_pq.read_table('latents.parquet')]",
}
"""What a piece of Python may take for granted, because the words around it say so."""


@pytest.fixture(scope="session")
def followed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Path, Future[list[str]]]]:
    """What went wrong on each page, two pages at a time, long ones first."""
    stage = build(tmp_path_factory.mktemp("documents") / "stage")
    chosen = {
        item.callspec.params["page"]
        for item in request.session.items
        if item.get_closest_marker("documents") and hasattr(item, "callspec")
    }
    pages = sorted(chosen, key=lambda page: -len(steps_of(page)))
    seen: set[str] = set()
    work = {page: [step for step in steps_of(page) if is_new(step, page, seen)] for page in pages}
    with ThreadPoolExecutor(N_AT_A_TIME) as pool:
        yield {page: pool.submit(follow, page, work[page], stage) for page in pages}


def is_new(step: Block | Command, page: Path, seen: set[str]) -> bool:
    """Whether no page before has the same command in its running text."""
    if isinstance(step, Block) or step not in code_spans(page):
        return True
    new = step.text not in seen
    seen.add(step.text)
    return new


def name_of(page: Path) -> str:
    return "-".join(page.relative_to(ROOT).with_suffix("").parts)


def steps_of(page: Path) -> list[Block | Command]:
    """Commands to run, files to write, changes to make and Python to run, in the page's order."""
    steps: list[Block | Command] = [
        command for command in commands(page) if why_not_run(command) is None
    ]
    steps += blocks(page, "python", "yaml", "diff")
    return sorted(steps, key=lambda step: step.line)


def follow(page: Path, steps: list[Block | Command], stage: Path) -> list[str]:
    """Do what a page says in a copy of the stage; what went wrong, in words."""
    here = stage.parent / name_of(page)
    shutil.copytree(stage, here, symlinks=True)
    wrong, earlier = [], list[Block]()
    for step in steps:
        began = time.perf_counter()
        try:
            if isinstance(step, Command):
                said = run(in_shell(made_small(step)), here)
            elif step.language == "diff":
                said = change(step, here)
            elif step.file is not None:
                said = write(step, here)
            elif step.language == "python":
                said = run([sys.executable, "-c", with_names(step, earlier)], here)
                earlier.append(step)
            else:
                continue
        except subprocess.TimeoutExpired:
            said = f"not done after {LONGEST_S:.0f} s"
        print(f"{time.perf_counter() - began:6.1f} s  {step}", file=sys.__stderr__, flush=True)
        if said:
            wrong.append(f"{step}\n{said}")
    if not wrong:
        shutil.rmtree(here)
    return wrong


def in_shell(text: str) -> list[str]:
    if text.startswith("tensorboard "):  # it goes on until it is stopped
        text = f"timeout 10 {text} --port 0 || test $? -eq 124"
    return ["bash", "-euo", "pipefail", "-c", text]


def run(words: list[str], here: Path) -> str:
    """Nothing, or the end of what a command said before it failed."""
    done = subprocess.run(
        words,
        cwd=here,
        env=environment(here),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )
    if done.returncode == 0:
        return ""
    return f"{words[-1]}\nended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}"


def write(block: Block, here: Path) -> str:
    """Write a block to the file that its first line names."""
    assert block.file is not None
    path = here / block.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)
    return ""


def change(block: Block, here: Path) -> str:
    """Change a file as a block of ``diff`` shows; what stays must be in the file just once."""
    path: Path | None = None
    old, new = list[str](), list[str]()

    def settle() -> None:
        nonlocal old, new
        if path is None or not (old or new):
            return
        before, text = "\n".join(old) + "\n", path.read_text()
        if text.count(before) != 1:
            raise ValueError(f"{path.name} has this {text.count(before)} times:\n{before}")
        path.write_text(text.replace(before, "\n".join(new) + "\n"))
        old, new = [], []

    try:
        for line in block.text.splitlines():
            if line.startswith("--- "):
                continue
            if line.startswith("+++ "):
                settle()
                path = here / line[4:].strip()
            elif line.startswith("@@"):
                settle()
            else:
                old += [line[1:]] if line[:1] in (" ", "-", "") else []
                new += [line[1:]] if line[:1] in (" ", "+", "") else []
        settle()
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def with_names(block: Block, earlier: list[Block]) -> str:
    """A piece of Python behind what defines the names that it takes for granted."""
    before, wanted = list[str](), free_names(block.text)
    for other in reversed(earlier):
        if wanted & defined_names(other.text):
            before.insert(0, other.text)
            wanted = (wanted - defined_names(other.text)) | free_names(other.text)
    supplied = [SUPPLIED[name] for name in sorted(wanted & set(SUPPLIED))]
    return "\n".join([*supplied, *before, block.text])


def defined_names(text: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def free_names(text: str) -> set[str]:
    used = {
        node.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    return used - defined_names(text) - set(dir(builtins))


@pytest.mark.parametrize("page", [page for page in PAGES if steps_of(page)], ids=name_of)
@pytest.mark.skipif(os.name != "posix", reason="the documents are for a shell")
def test_a_reader_who_follows_the_page_gets_there(
    page: Path, followed: dict[Path, Future[list[str]]]
) -> None:
    wrong = followed[page].result()
    assert not wrong, "\n\n".join(wrong)
