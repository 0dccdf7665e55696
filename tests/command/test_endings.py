"""How every command ends: its status, one line for a mistake, and nothing where nobody reads."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vae_astro.command.files import file_to_write, whole, write_whole
from vae_astro.errors import InputError
from vae_astro.stopping import SIGNALS

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_ends_in_the_one_way(script: Path) -> None:
    source = script.read_text("utf-8")
    tree = ast.parse(source)
    (main,) = [node for node in tree.body if getattr(node, "name", "") == "main"]
    assert isinstance(main, ast.FunctionDef)
    above = [ast.unparse(each) for each in main.decorator_list]
    name = above[0].partition("config_name='")[2].partition("'")[0]
    assert above[1].removeprefix("endings.") == "past_hydra"
    assert ast.unparse(tree.body[-1]).splitlines()[-1].strip().removeprefix("endings.").startswith(
        f"run(main, '{name}', CONF"
    )  # fmt: skip
    caught = [node.type for node in ast.walk(main) if isinstance(node, ast.ExceptHandler)]
    assert not [kind for kind in caught if kind is None or "InputError" in ast.unparse(kind)]
    assert "help/script" in resolved(name)


def resolved(name: str) -> str:
    """What a configuration takes of Hydra's groups, through the files that it begins with."""
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text("utf-8"))
    lines = []
    for entry in content["defaults"]:
        if isinstance(entry, dict):
            lines += [
                f"{key.removeprefix('override hydra/')}/{value}" for key, value in entry.items()
            ]
        elif entry != "_self_":
            lines.append(resolved(entry))
    return "\n".join(lines)


class OneCommand:
    """A command of a few lines, as a process of its own."""

    COMMAND = """
import sys
from pathlib import Path
import hydra
from vae_astro.command.endings import past_hydra, run
from vae_astro.errors import InputError

@hydra.main(config_path={conf!r}, config_name="convert", version_base="1.3")
@past_hydra
def main(cfg):
    {body}

if __name__ == "__main__":
    run(main, "convert", Path({conf!r}))
"""

    def run(
        self, folder: Path, body: str, shell: str = "{python} a.py", **env: str
    ) -> subprocess.CompletedProcess[str]:
        (folder / "a.py").write_text(self.COMMAND.format(conf=str(CONF), body=body))
        script = shell.format(python=sys.executable) + "; echo status ${{PIPESTATUS[0]}} >&2"
        return subprocess.run(
            ["bash", "-c", script.replace("{{", "{").replace("}}", "}")],
            cwd=folder, capture_output=True, text=True, check=True, timeout=300,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        )  # fmt: skip


class TestPipes(OneCommand):
    """``| head``: what is not read any more is not said, and nobody complains."""

    @pytest.mark.parametrize(
        "body",
        [
            "for k in range(99999): print(k)",  # fails while it prints
            "import time; print(0, flush=True); time.sleep(1); print(1)",  # at its end
        ],
    )
    def test_nobody_hears_of_a_reader_that_left(self, body: str, tmp_path: Path) -> None:
        done = self.run(tmp_path, body, "{python} a.py | head -1")
        assert done.stdout == "0\n"
        assert done.stderr == "status 141\n"

    def test_a_pipe_to_somebody_else_that_broke_is_an_error(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, "raise BrokenPipeError('a worker is gone')")
        assert done.stderr.endswith("BrokenPipeError: a worker is gone\nstatus 1\n")

    def test_a_mistake_is_one_line_and_a_traceback_where_it_is_asked_for(
        self, tmp_path: Path
    ) -> None:
        body = "raise InputError('shape is wrong')"
        assert self.run(tmp_path, body).stderr == "error: shape is wrong\nstatus 2\n"
        asked = self.run(tmp_path, body, HYDRA_FULL_ERROR="1").stderr
        assert "Traceback" in asked
        assert asked.endswith("vae_astro.errors.InputError: shape is wrong\nstatus 1\n")
        assert "During handling" not in asked

    def test_what_a_run_says_goes_to_its_file_when_nobody_reads(self, tmp_path: Path) -> None:
        code = (
            "import logging, sys, time; from vae_astro.command.endings import Console; "
            "from vae_astro.progress import say; "
            "logging.basicConfig(level=20, format='%(message)s', handlers=[Console(sys.stdout), "
            "logging.FileHandler('a.log')]); log = logging.getLogger(); log.info('one'); "
            "time.sleep(1); log.info('two'); say('half'); say('all'); log.info('three')"
        )
        done = subprocess.run(
            ["bash", "-c", f'{sys.executable} -c "{code}" 2>&1 | head -1; echo ${{PIPESTATUS[0]}}'],
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("one\n0\n", "")
        assert (tmp_path / "a.log").read_text() == "one\ntwo\nthree\n"


class TestSignals(OneCommand):
    """Ctrl-C and what a scheduler sends: one line, the status of the signal, nothing half done."""

    @pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
    def test_every_signal_ends_a_command_in_one_line(
        self, number: signal.Signals, tmp_path: Path
    ) -> None:
        body = (
            "import os, time; from vae_astro.command.files import whole\n"
            "    with whole(Path('out.txt')) as partial:\n"
            "        partial.write_text('half')\n"
            f"        os.kill(os.getpid(), {int(number)})\n"
            "        time.sleep(20)"
        )
        (tmp_path / "out.txt").write_text("of value")
        done = self.run(tmp_path, body)
        assert done.stderr == f"stopped\nstatus {128 + number}\n"
        assert (tmp_path / "out.txt").read_text() == "of value"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.py", "out.txt"]

    def test_a_second_ctrl_c_ends_it_at_once(self, tmp_path: Path) -> None:
        body = (
            "import os, signal\n"
            "    try:\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
            "    except KeyboardInterrupt:\n"
            "        os.kill(os.getpid(), signal.SIGTERM)  # they repeat themselves\n"
            "        os.kill(os.getpid(), signal.SIGINT)\n"
            "        print('too late')"
        )
        done = self.run(tmp_path, body)
        assert (done.stdout, done.stderr) == ("", "\nstopped\nstatus 143\n")

    def test_an_error_that_comes_of_the_signal_is_no_mistake(self, tmp_path: Path) -> None:
        body = (
            "import os, signal\n"
            "    try:\n"
            "        os.kill(os.getpid(), signal.SIGUSR1)\n"
            "    except KeyboardInterrupt as stop:\n"
            "        raise InputError('a process that packs was killed') from stop"
        )
        assert self.run(tmp_path, body).stderr == "stopped\nstatus 138\n"

    def test_only_the_first_process_says_it(self, tmp_path: Path) -> None:
        body = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
        assert self.run(tmp_path, body, LOCAL_RANK="1").stderr == "status 143\n"


class TestWholeFiles:
    """There with all their content, or as they were before."""

    def test_an_error_leaves_the_earlier_file_and_nothing_else(self, tmp_path: Path) -> None:
        out = tmp_path / "a.png"
        out.write_text("of value")
        with pytest.raises(KeyboardInterrupt), whole(out) as partial:  # noqa: PT012
            assert partial.suffix == ".png"  # by which a picture knows its format
            partial.write_text("half")
            raise KeyboardInterrupt
        assert out.read_text() == "of value"
        assert list(tmp_path.iterdir()) == [out]

    def test_what_is_written_takes_the_name(self, tmp_path: Path) -> None:
        out = tmp_path / "a.txt"
        out.write_text("of value")
        write_whole(out, "µ of more")
        assert out.read_bytes() == "µ of more".encode()
        assert list(tmp_path.iterdir()) == [out]


class TestFilesToWrite:
    """Asked for before the work that fills them."""

    def test_a_folder_is_made_for_a_file(self, tmp_path: Path) -> None:
        assert file_to_write("out", None) is None
        assert file_to_write("out", str(tmp_path / "new" / "a.json")) == tmp_path / "new" / "a.json"
        assert (tmp_path / "new").is_dir()

    def test_what_cannot_be_written_is_refused_by_its_key(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"out=.* is a folder; give a file"):
            file_to_write("out", str(tmp_path))
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=r"figure=.*: no folder .*file can be made"):
            file_to_write("figure", str(tmp_path / "file" / "a.png"))
