"""What a checkpoint and the settings alone can tell is told before a stamp is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from tiny_checkpoints import save

from vae_astro import checked as checked_module
from vae_astro.checked import check, run_settings
from vae_astro.command.conf_files import ConfFiles
from vae_astro.data.datamodule import StampDataModule
from vae_astro.errors import InputError
from vae_astro.folders import OF_A_CHOICE, overrides_of_resumed_run, register_resolvers
from vae_astro.training import new_vae

CONF = Path(__file__).parents[1] / "conf"
MODELS = {
    "conv": ("model=conv", "model.width=8", "model.latent_dim=6"),
    "rings": ("model=rings", "model.latent_dim=8", "model.shape_units=2"),
}


@pytest.fixture(autouse=True)
def no_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("the stamps were asked for")

    for name in ("prepare_data", "setup", "open"):
        monkeypatch.setattr(StampDataModule, name, touched)


def settings_of(folder: Path, *words: str) -> dict[str, Any]:
    register_resolvers()
    given = [f"data.root={folder / 'sky'}", "trainer=cpu", "data.size=24", *words]
    given = overrides_of_resumed_run(given)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return run_settings(compose("config", given), given)


@pytest.fixture(params=MODELS)
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """A run folder with a checkpoint to go on from, of two bands."""

    def make(**changed: Any) -> Path:
        settings = settings_of(tmp_path, *MODELS[request.param])
        vae = new_vae(settings, (2, 24, 24), ("g", "r"))
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        path = save(vae, tmp_path / "run" / "checkpoints" / "last.ckpt")
        state = {"optimizer_states": [{"state": {}}], "lr_schedulers": [{}], "loops": {"fit": 0}}
        torch.save({**torch.load(path, weights_only=True), **state, **changed}, path)
        return tmp_path / "run"

    return make


def resumed(run: Path, *words: str) -> None:
    check(settings_of(run.parent, f"resume={run}", *words), run)


def test_a_run_of_the_same_model_is_let_through(whole: Callable[..., Path]) -> None:
    run = whole()
    resumed(run, "trainer.max_epochs=7", "beta.end=2")


def test_resume_refuses_another_latent_size(whole: Callable[..., Path]) -> None:
    run = whole()
    with pytest.raises(InputError, match=r"resume=.*last\.ckpt is of another model: .* init_from="):
        resumed(run, "model.latent_dim=9")


def test_resume_refuses_stamps_of_another_size(whole: Callable[..., Path]) -> None:
    run = whole()
    with pytest.raises(InputError, match="is of another model"):
        resumed(run, "data.size=40")


def test_an_export_cannot_be_gone_on_with(whole: Callable[..., Path]) -> None:
    run = whole(optimizer_states=[])
    with pytest.raises(InputError, match=r"holds weights, as an export does, .*optimizer_states"):
        resumed(run)


def test_init_from_takes_another_latent_size_and_refuses_another_network(
    whole: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    run = whole()
    mine, other = MODELS["conv"], MODELS["rings"]
    if "rings" in request.node.name:
        mine, other = other, mine
    beside = run.parent / "beside"
    settings = settings_of(run.parent, *mine, "model.latent_dim=12", "data.size=32",
                           f"init_from={run}")  # fmt: skip
    assert check(settings, beside).start == run / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match="whose weights have no meaning in model="):
        check(settings_of(run.parent, *other, f"init_from={run}"), beside)
    assert not beside.exists()


@pytest.mark.parametrize("whole", ["conv"], indirect=True)
def test_init_from_refuses_where_nothing_fits(whole: Callable[..., Path]) -> None:
    run = whole()
    settings = settings_of(run.parent, "model=conv", "model.width=16", f"init_from={run}")
    with pytest.raises(InputError, match="no weight fits this network"):
        check(settings, run.parent / "beside")


def test_a_checkpoint_is_read_once(
    whole: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = whole()
    settings = settings_of(run.parent, f"resume={run}")
    read: list[Path] = []
    load = checked_module.load_checkpoint
    monkeypatch.setattr(
        checked_module, "load_checkpoint", lambda path: (read.append(path), load(path))[1]
    )
    check(settings, run)
    assert read == [run / "checkpoints" / "last.ckpt"]


def test_what_says_nothing_of_its_stamps_waits_for_them(whole: Callable[..., Path]) -> None:
    run = whole(hyper_parameters={"stamp_shape": "none", "model": {"name": "conv"}})
    settings = settings_of(run.parent, *MODELS["conv"], f"init_from={run}")
    assert check(settings, run.parent / "beside").start is not None


# -- keys that the run's choices have and those of a new run have not ----------------------------


@pytest.fixture
def of_other_choices(tmp_path: Path) -> Path:
    """A run folder whose choices are not those that are taken by themselves."""
    settings = settings_of(
        tmp_path, *MODELS["rings"], "model.hidden=8", "beta=capacity", "beta.gamma=2",
        "likelihood=student_t", "likelihood.dof=5", "prior=vamp", "prior.n_pseudo_inputs=3",
        "data=arrays",
    )  # fmt: skip
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    save(new_vae(settings, (1, 24, 24)), path)
    return tmp_path / "run"


def test_a_resumed_run_takes_what_is_typed_of_its_own_choices(of_other_choices: Path) -> None:
    settings = settings_of(
        of_other_choices.parent, f"resume={of_other_choices}", "beta.gamma=3", "likelihood.dof=6",
        "data.axes=HW", "data.normalize.softening=2",
    )  # fmt: skip
    beta, likelihood, data = (settings[group] for group in ("beta", "likelihood", "data"))
    assert (beta["name"], beta["gamma"], beta["capacity_nats"]) == ("capacity", 3, 25.0)
    assert (likelihood["name"], likelihood["dof"]) == ("student_t", 6)
    assert (data["format"], data["axes"], data["normalize"]["softening"]) == ("arrays", "HW", 2)
    assert settings["model"]["hidden"] == 8
    assert settings["prior"]["n_pseudo_inputs"] == 3


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "data.sise=32",
            r"^data=arrays has no setting data\.sise; did you mean data\.size\? it has",
        ),
        ("data.normalize.gian=2", r"no setting data\.normalize\.gian; did you mean data\.norm"),
        ("beta.end=2", r"^beta=capacity has no setting beta\.end"),
        ("beta.gama=2", r"^beta=capacity has no setting beta\.gama; did you mean beta\.gamma\?"),
        ("model.wdith=8", r"^model=rings has no setting model\.wdith; did you mean model\.width\?"),
        ("data.hdu=1", r"^data=arrays has no setting data\.hdu"),
        ("prior.n_components=4", r"^prior=vamp has no setting prior\.n_components"),
    ],
)
def test_a_resumed_run_refuses_what_its_own_choices_do_not_have(
    of_other_choices: Path, typed: str, message: str
) -> None:
    sky = of_other_choices.parent / "sky"
    sky.mkdir()
    with pytest.raises(InputError, match=message):
        resumed(of_other_choices, typed)


def test_keys_are_let_through_of_a_run_that_is_resumed_alone() -> None:
    keys = ["beta.gamma=3", "data.normalize.gain=2"]
    assert overrides_of_resumed_run([*keys, "resume=null"]) == [*keys, "resume=null"]
    assert overrides_of_resumed_run(["-m", *keys]) == ["-m", *keys]
    forced = [f"++{key}" for key in keys]
    assert overrides_of_resumed_run(["resume=X", *keys]) == ["resume=X", *forced]
    assert overrides_of_resumed_run(["resume=X", *forced]) == ["resume=X", *forced]
    typed = ["resume=X", "beta=linear", "beta.end=3", "seed=1", "trainer.max_epochs=2", "~beta.end",
             "hydra.job.name=a", "--help"]  # fmt: skip
    assert overrides_of_resumed_run(typed) == typed  # Hydra knows these


def test_groups_whose_choices_have_keys_of_their_own() -> None:
    files = ConfFiles(CONF)
    chosen = files.chosen("config")
    differ = {
        group
        for group in chosen
        if len({frozenset(key.name for key in files.keys(group, choice))
                for choice in files.groups[group]}) > 1
    }  # fmt: skip
    assert differ == set(OF_A_CHOICE)
