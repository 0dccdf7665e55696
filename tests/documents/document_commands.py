"""Commands of the documents: composed without running, or made small enough to run."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from document_pages import ROOT, Command
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vae_astro.folders import register_resolvers

CONF = ROOT / "conf"
FLAGS = {"-m", "--multirun", "--help", "--hydra-help", "--info"}
FLAGS_WITH_VALUE = {"--cfg", "-c", "--package", "-p"}

NOT_RUN = {
    r"^python3 -m venv": "what .ci/run itself does, in a new environment",
    r"-m pytest": "the tests themselves; their paths are checked",
    r"^pip install": "needs a package index; the extra's name is checked",
    r"download\.py": "needs the network; tests/test_download_script.py has a server of its own",
    r"pack\.cluster=tcp": "needs a Dask cluster; tests/data/store/test_pools.py starts one",
    r"hydra/launcher=submitit": "needs SLURM and a plugin",
    r"--nnodes 2": "needs two machines",
    r"real_data=": "needs the real alerts and digits, which are not in the repository",
    r"benchmark_(train|classes)\.py": "minutes at their smallest; tests/scripts runs them so",
    r"question\.py": "two minutes at its smallest; tests/test_question.py runs its parts",
    r"^(stilts|topcat) ": "programs of others",
}
"""Commands that are composed and checked, but not run, by what they have in them; and why."""


def why_not_run(command: Command) -> str | None:
    """Reason, or None for a command that is run."""
    reasons = [why for pattern, why in NOT_RUN.items() if re.search(pattern, command.text)]
    return reasons[0] if reasons else None


def config_name(script: Path) -> tuple[bool, str | None]:
    """Whether a script composes from conf/, and what; (False, None): it is no Hydra command."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "hydra.main"):
            continue
        given = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
        return given["config_path"] is not None, given["config_name"]
    return False, None


def check_composes(program: str, words: list[str], conf: Path = CONF) -> None:
    """Compose what a command gives to ``train.py`` or a script, each job of a sweep.

    ``conf`` is the folder of the configuration, or a copy with what a page adds to it.

    Raises
    ------
    Exception
        Hydra's own, that names the group, choice or key that does not exist.
    """
    script = ROOT / program
    if not script.is_file():
        raise FileNotFoundError(f"there is no {program}")
    in_conf, name = config_name(script)
    if name is None:
        return
    if program == "scripts/audit.py":  # it does the same, since these are the arguments of anybody
        words = [f"++{word}" if word.startswith("target_args.") else word for word in words]
    if "with_paths_as_a_key" in script.read_text(encoding="utf-8"):  # folders without a key
        words = [word for word in words if "=" in word or word.startswith("-")]
    if not in_conf:
        runpy.run_path(str(script), run_name="documents")  # its configuration is in the store then
    register_resolvers()
    overrides = OverridesParser.create().parse_overrides(_overrides(words))
    plain = [override for override in overrides if override.get_key_element() != "hydra/launcher"]
    plain = [override for override in plain if not override.key_or_group.startswith("hydra.")]
    jobs = BasicSweeper.split_arguments(plain, max_batch_size=None)[0]
    with initialize_config_dir(str(conf), version_base="1.3"):
        for job in jobs[:8]:
            OmegaConf.to_container(compose(name, list(job)), resolve=True)
        if "-m" in words:  # what the experiment itself sweeps over
            whole = compose(name, list(jobs[0]), return_hydra_config=True)
            for key, values in (whole.hydra.sweeper.params or {}).items():
                for value in str(values).split(","):
                    compose(name, [*jobs[0], f"{key}={value}"])


def _overrides(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in FLAGS_WITH_VALUE:
            skip = True
        elif word not in FLAGS:
            kept.append(word)
    return kept


def value_of(words: list[str], key: str) -> str | None:
    """What the last ``key=value`` among the words says."""
    found = [word.split("=", 1)[1] for word in words if word.startswith(f"{key}=")]
    return found[-1] if found else None


def made_small(command: Command) -> str:
    """The command as it is run: placeholders filled in, and as little to do as makes sense."""
    text = command.text
    for program, words in command.programs():
        if {"--help", "--cfg"} & set(words):
            continue
        more = " ".join(map(shlex.quote, smaller(program, words)))
        given = re.search(rf"{re.escape(program)}[^&|>;]*", text)
        if more and given:
            text = text.replace(given[0], f"{given[0].rstrip()} {more} ", 1).rstrip()
    return filled(re.sub(r"--nproc-per-node \d+", "--nproc-per-node 2", text))


def smaller(program: str, words: list[str]) -> list[str]:
    """Overrides that leave little to do; the last of a key counts."""
    in_conf, name = config_name(ROOT / program)
    if not in_conf or name is None:
        return []
    keys = top_keys(name)
    more: list[str] = ["overwrite=true"] if "overwrite" in keys else []
    resumed = value_of(words, "resume") is not None
    chosen = value_of(words, "data") or default_data(name)
    simulates = chosen == "simulated" and value_of(words, "data.root") is None
    if program == "scripts/simulate.py":
        more += ["data.n_stamps=400"]
    elif program == "train.py":
        n_epochs = 9 if resumed else 2 if "-m" in words else 6
        more += ["callbacks.progress=false", f"trainer.max_epochs={n_epochs}"]
        more += [] if resumed else ["collapse.forecast_stamps=100", "data.batch_size=16"]
        if value_of(words, "run_dir") != "runs/page":  # that of docs/run-page.md has its page
            more += ["callbacks.page=false"]
        if value_of(words, "trainer") == "ddp":
            more += ["trainer.devices=2", "trainer.accelerator=cpu"]
        if simulates and not resumed and not _reads_files(words):
            more += ["data.n_stamps=160"]
    elif "size" in keys:
        more += ["size=small"]
        more += ["peers=null"] if "peers" in keys else []
    elif "checkpoint" not in keys and simulates:
        more += ["data.n_stamps=120"]
    elif value_of(words, "trainer") == "ddp":
        more += ["trainer.devices=2", "trainer.accelerator=cpu"]
    return more


@cache
def default_data(name: str) -> str | None:
    """The choice of the group ``data`` that a configuration has by itself."""
    for entry in yaml.safe_load((CONF / f"{name}.yaml").read_text()).get("defaults", []):
        if isinstance(entry, dict) and "data" in entry:
            return str(entry["data"])
        if isinstance(entry, str) and entry != "_self_" and default_data(entry):
            return default_data(entry)
    return None


def _reads_files(words: list[str]) -> bool:
    """Whether the experiment of a command reads files that are there."""
    experiment = value_of(words, "experiment")
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text() if experiment else ""
    found = re.search(r"override /data: (\w+)", text)
    return bool(found) and found[1] != "simulated"  # type: ignore[index]


@cache
def top_keys(name: str) -> frozenset[str]:
    """Groups and keys at the top of a configuration."""
    raw = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    keys = set(raw) - {"defaults", "hydra"}
    for entry in raw.get("defaults", []):
        if isinstance(entry, str) and entry not in ("_self_",):
            keys |= top_keys(entry)
        elif isinstance(entry, dict):
            keys |= {key for key in entry if not key.startswith("override ")}
    return frozenset(keys)


def filled(text: str) -> str:
    """Placeholders as the stage of `document_stage` has them."""
    if re.search(r"data=alerts|experiment=ztf", text):
        text = re.sub(r"\bFOLDER\b", "ztf_alerts", text)
    elif "data=mosaics" in text:
        text = re.sub(r"\bFOLDER\b", "mosaics", text)
    elif "data=arrays" in text:
        text = re.sub(r"\bFOLDER\b", "arrays", text)
    elif "noise_hdu" in text or "experiment=faint" in text:
        text = re.sub(r"\bFOLDER\b", "planes", text)
    text = re.sub(r"/sky/stamps\b", "FOLDER", text)
    text = re.sub(r"\b(OTHER_FOLDER|OTHER|NORMAL)\b", "FOLDER", text)
    text = re.sub(r"=RUN\b", "=runs/NAME", text)
    return re.sub(r"\bFILE\.csv\b", "labels.csv", text)


@cache
def known_keys() -> frozenset[str]:
    """Every ``group.key`` of every choice of the configuration, and every key at its top."""
    found: set[str] = set()
    for file in CONF.glob("*.yaml"):
        raw = yaml.safe_load(file.read_text()) or {}
        found |= set(_flat({key: raw[key] for key in raw if key != "defaults"}))
    for file in CONF.glob("*/*.yaml"):
        raw = yaml.safe_load(file.read_text()) or {}
        group = "data" if file.parent.name == "stamps" else file.parent.name
        found |= {f"{group}.{key}" for key in _flat(raw)} | {group}
    return frozenset(found)


def _flat(raw: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in raw.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
    return found


def groups() -> frozenset[str]:
    return frozenset(folder.name for folder in CONF.iterdir() if folder.is_dir())


def choices(group: str) -> set[str]:
    return {file.stem for file in (CONF / group).glob("*.yaml")}
