"""Mistakes on the command line: found before any work, told in one line; nothing is left behind."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from vae_astro.checked import check, run_settings
from vae_astro.command import endings
from vae_astro.command.conf_files import ConfFiles
from vae_astro.command.endings import mistake_in_words, run
from vae_astro.command.help import choices_in_words, keys_in_words, register_help
from vae_astro.errors import InputError
from vae_astro.folders import register_resolvers
from vae_astro.settings import nearest

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
FILES = ConfFiles(CONF)
NOT_HERE = {("trainer", "gpu"), ("trainer", "mps")}
"""Choices that need other hardware."""
NO_VALUE = {"a": 1}
"""What no setting can be."""
WRONG = ("wrong?", math.nan, -1, [[]], NO_VALUE, " ")
MAY_BE = {
    "wrong?": {"id_field", "label_field", "dataset", "noise", "mask", "hdu", "id_keyword",
               "label_keyword", "noise_hdu", "mask_hdu", "catalogue", "schema", "store_dir",
               "label_column", "classes", "root", "mosaics.bands"},
    " ": {"hdu", "classes"},
    "[[]]": {"classes"},
}  # fmt: skip
"""Free text: right only for the stamps, which are not looked at; for one choice with its name."""


def composed(*overrides: str) -> dict[str, Any]:
    register_resolvers()
    register_help(CONF)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return run_settings(compose("config", list(overrides)), overrides)


def leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def with_value(settings: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(settings)
    *above, name = key.split(".")
    inner = changed
    for part in above:
        inner = inner[part]
    inner[name] = value
    return changed


def assert_refused(settings: dict[str, Any], key: str, value: object, folder: Path) -> None:
    with pytest.raises(InputError) as refused:
        check(with_value(settings, key, value), folder / "run")
    assert key in str(refused.value) or key.rpartition(".")[0] in str(refused.value)
    assert "\n" not in str(refused.value)


def told(*overrides: str) -> str:
    """What a user reads of an error of Hydra."""
    with pytest.raises(HydraException) as error:
        composed(*overrides)
    return mistake_in_words(error.value, FILES, "config", list(overrides))


def keys_of(group: str, choice: str) -> tuple[dict[str, Any], list[str]]:
    settings = composed(f"{group}={choice}")
    if group == "data" and choice != "simulated":
        settings["data"]["root"] = str(ROOT)
    return settings, [key for key in leaves(settings) if key.startswith(f"{group}.")]


@pytest.mark.parametrize("group", ["data", "model", "prior", "likelihood", "beta", "optim",
                                   "trainer", "collapse", "callbacks"])  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_its_key(group: str, tmp_path: Path) -> None:
    settings, keys = keys_of(group, FILES.chosen("config")[group])
    assert keys
    for key in keys:
        assert_refused(settings, key, NO_VALUE, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "choice"),
    [
        (group, choice)
        for group, choices in FILES.groups.items()
        for choice in choices
        if group not in ("experiment", "debug") and (group, choice) not in NOT_HERE
    ],
)
def test_every_wrong_value_of_every_choice_is_refused(
    group: str, choice: str, tmp_path: Path
) -> None:
    settings, keys = keys_of(group, choice)
    for key in keys:
        for value in WRONG:
            name = key.rpartition(".")[2]
            if not {name, f"{choice}.{name}"} & set(MAY_BE.get(str(value), ())):
                assert_refused(settings, key, value, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.max_epochs", "ten", "trainer.max_epochs must be a whole number, got 'ten'"),
        ("model.latent_dim", 0, "model.latent_dim must be at least 1, got 0"),
        ("data.size", 3.5, "data.size must be a whole number, got 3.5"),
        ("beta.end", -1, "beta.end must be at least 0, got -1"),
        ("optim.lr", math.nan, "optim.lr must be a finite number, got nan"),
        ("seed", "x", "seed must be a whole number, got 'x'"),
        ("progress", "no", "progress must be true or false, got 'no'"),
        ("callbacks.n_stamps", 0, "callbacks.n_stamps must be at least 1, got 0"),
        ("callbacks.time_share", 2, "callbacks.time_share must be at most 1, got 2"),
        ("trainer.devices", 0, "trainer.devices must be at least 1, got 0"),
        ("trainer.limit_val_batches", 1.5, "trainer.limit_val_batches must be a whole number"),
        ("data.labels", "none.csv", "data.labels=none.csv is not a file"),
        ("data.cutouts", ["science"], "data=fits has no setting data.cutouts"),
        ("callback", {}, "callback is no setting; did you mean callbacks?"),
        ("collapse.actoin", "stop", "collapse.actoin is no setting; did you mean collapse.action?"),
        ("model.latent_dimm", 3, "did you mean model.latent_dim?"),
        ("model", "conv", "model must be one of its choices or its settings, got 'conv'"),
    ],
)
def test_what_is_wrong_is_said_in_these_words(
    key: str, value: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        check(with_value(composed(), key, value), tmp_path / "run")
    assert message in str(refused.value)


def test_a_root_that_is_missing_is_found_before_anything_else_is_done(tmp_path: Path) -> None:
    settings = composed("data=fits", f"data.root={tmp_path / 'gone'}")
    with pytest.raises(InputError, match=r"data\.root=.*gone does not exist"):
        check(settings, tmp_path / "run")


def test_a_run_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a person's")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"run_dir=.*file is a file; choose another"):
            check(composed(), run_dir)
    assert (tmp_path / "file").read_text() == "a person's"


@pytest.mark.parametrize("config", sorted(file.stem for file in CONF.glob("*.yaml")))
def test_no_key_of_a_command_is_called_like_a_folder_of_choices(config: str) -> None:
    keys = {key.name for key in FILES.keys(None, config)}
    folders = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    assert not keys & folders  # Hydra takes KEY=VALUE for a choice, and knows none


@pytest.mark.parametrize("name", ["with space", "Größe", "a;b", "per%cent", "quo'te", "$HOME"])
def test_a_run_folder_may_be_called_anything(name: str, tmp_path: Path) -> None:
    assert check(composed(), tmp_path / name).seed == 0


def test_what_is_left_out_is_named() -> None:
    settings = composed()
    del settings["model"]
    with pytest.raises(InputError, match="model is left out"):
        check(settings, Path("run"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.latnet_dim=3"], "model.latnet_dim is no setting of model=conv; did you mean "
                                 "model.latent_dim?"),
        (["model=mlp", "model.width=8"], "model.width is no setting of model=mlp; it has"),
        (["latent_dim=3"], "latent_dim is no setting; did you mean model.latent_dim?"),
        (["max_epochs=3"], "max_epochs is no setting; did you mean trainer.max_epochs?"),
        (["model=conf"], "model=conf is no choice; did you mean model=conv? there are conv"),
        (["experiment=nosuch"], "experiment=nosuch is no choice; there are beta_sweep, classes"),
        (["modle=conv"], "modle is no setting; did you mean model=conv|"),
        (["data.root=/sky/run=3"], "quotes within quotes: 'data.root=\"/sky/run=3\"'"),
        (["foo"], "'foo' is not key=value; --help lists what can be set"),
        (["model.latent_dim=3,4"], "'model.latent_dim=3,4' names several values; add -m"),
        (["+seed=3"], "seed is there already; write seed=... without the +"),
        (["~nothing"], "there is no nothing to leave out"),
    ],
)  # fmt: skip
def test_errors_of_hydra_are_one_line_with_a_suggestion(overrides: list[str], message: str) -> None:
    line = told(*overrides)
    assert message in line
    assert "\n" not in line


def test_the_nearest_word_is_near() -> None:
    assert nearest("latnet_dim", ["latent_dim", "width"]) == "latent_dim"
    assert nearest("latent_dim", ["model.latent_dim", "model.width"]) == "model.latent_dim"
    assert nearest("zebra", ["latent_dim", "width"]) is None


class TestEndings:
    """What a process leaves with."""

    @pytest.fixture(autouse=True)
    def plain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py"])
        monkeypatch.setenv(endings.OURS, "1")
        monkeypatch.setenv(endings.FULL, "1")

    def ended(self, error: BaseException) -> int:
        def main() -> None:
            raise error

        with pytest.raises(SystemExit) as end:
            run(main, "config", CONF)
        assert isinstance(end.value.code, int)
        return end.value.code

    def test_a_mistake_is_2_and_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ended(InputError("seed must be\n a whole number")) == 2
        assert capsys.readouterr() == ("", "error: seed must be a whole number\n")

    def test_ctrl_c_is_130(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ended(KeyboardInterrupt()) == 130
        assert capsys.readouterr().err == "stopped\n"

    def test_a_status_of_its_own_is_kept(self) -> None:
        assert self.ended(SystemExit(143)) == 143

    def test_what_nobody_expected_keeps_its_traceback(self) -> None:
        with pytest.raises(ZeroDivisionError):
            run(lambda: 1 / 0, "config", CONF)

    def test_a_person_can_ask_for_the_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(endings.OURS)

        def main() -> None:
            raise InputError("x")

        with pytest.raises(InputError):
            run(main, "config", CONF)


def test_help_lists_choices_and_marks_the_default() -> None:
    assert "[conv], linear, mlp" in choices_in_words(FILES, "config")
    assert "experiment=" in choices_in_words(FILES, "config")
    assert "model=" not in choices_in_words(FILES, "embed")


def test_help_shows_every_key_of_a_choice_with_its_comment() -> None:
    shown = keys_in_words(FILES, "data", "fits")
    assert "FITS stamps below a folder" in shown
    _, keys = keys_of("data", "fits")
    for key in set(keys) - {"data.format"}:
        assert f"{key}=" in shown
    assert "[sky noise]" in shown  # of the file that all data choices begin with
    assert all(len(line) <= 100 for line in shown.splitlines())


@pytest.mark.parametrize("name", ["embed", "classify", "outliers", "pack", "forecast"])
def test_help_of_a_script_lists_its_keys(name: str) -> None:
    shown = keys_in_words(FILES, None, name)
    assert len(shown.splitlines()) > 4
    assert "hydra" not in shown


def as_typed(command: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / command), *words],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["sample", "compare", "report", "convert", "question"])
def test_a_script_helps_and_names_a_mistyped_key_in_one_line(name: str, tmp_path: Path) -> None:
    key = FILES.keys(None, name)[0].name
    shown = as_typed(f"scripts/{name}.py", tmp_path, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"  {key}=" in shown.stdout
    assert f"python scripts/{name}.py" in shown.stdout
    assert ("Groups and their choices" in shown.stdout) == bool(FILES.chosen(name))
    done = as_typed(f"scripts/{name}.py", tmp_path, f"{key}x=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {key}x is no setting; did you mean {key}?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "overrides", [["data.size=3.5"], pytest.param(["-m", "beta.end=1,ten"], marks=pytest.mark.slow)]
)
def test_a_command_with_a_mistake_leaves_nothing_behind(
    overrides: list[str], tmp_path: Path
) -> None:
    done = as_typed("train.py", tmp_path, *overrides)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_tab_completes_groups_choices_and_keys(tmp_path: Path) -> None:
    script = (
        f'cd {ROOT}; eval "$(python train.py -sc install=bash)"; '
        'for COMP_LINE in "python train.py mod" "python train.py model=co" '
        '"python train.py model.lat" "python train.py exp" '
        '"python train.py experiment=qu"; do COMP_POINT=${#COMP_LINE}; COMP_WORDS=($COMP_LINE); '
        "COMP_CWORD=2; hydra_bash_completion; echo ${COMPREPLY[@]}; done"
    )
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300,
        env={"PATH": path, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "model. model=", "model=conv", "model.latent_dim=", "experiment=",
        "experiment=question experiment=question_repaired experiment=quick",
    ]  # fmt: skip
