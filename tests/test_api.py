"""``from vae_astro import forecast, audit``: both by one call, on stamps in any form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.nddata import CCDData
from lightning import Trainer
from torch import Tensor, nn

import vae_astro
from vae_astro import VAE, StampDataModule, audit, forecast
from vae_astro.collapse.audit import AuditReport
from vae_astro.collapse.audit import audit as audit_module
from vae_astro.collapse.forecast import Forecast, forecast_run
from vae_astro.errors import InputError
from vae_astro.model.likelihoods import LIKELIHOODS
from vae_astro.objective.beta import SCHEDULES

N, SIZE = 60, 20


def moving(n: int = N) -> np.ndarray:
    """Raw stamps of a source that moves."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] - 9.5
    moved = rng.normal(size=(2, n, 1, 1))
    source = 60 * np.exp(-((x - moved[0]) ** 2 + (y - moved[1]) ** 2) / 6)
    return (100 + rng.normal(size=(n, SIZE, SIZE)) + source).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for each stamp."""
    folder = tmp_path_factory.mktemp("stamps")
    for k, stamp in enumerate(moving()):
        fits.writeto(folder / f"{k:03d}.fits", stamp)
    return folder


def datamodule(folder: Path, tmp_path: Path, **settings: Any) -> StampDataModule:
    return StampDataModule(
        str(folder), store_dir=str(tmp_path / "stores"), progress=False, **settings
    )


class Plain(nn.Module):
    """A healthy VAE of somebody else."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(SIZE**2, 64), nn.SiLU(), nn.Linear(64, 8)
        )
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, SIZE**2))
        self.beta = beta

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_var = self.encoder(x).chunk(2, dim=1)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        return self.decoder(z).view_as(x), mu, log_var

    def loss_function(self, recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
        error = 0.5 * (recon - x).square().flatten(1).sum(1)
        kl = 0.5 * (mu.square() + log_var.exp() - log_var - 1).sum(1)
        return (error + self.beta * kl).mean()


# -- forecast ------------------------------------------------------------------------------------


def test_forecast_of_a_datamodule_is_that_of_the_run(folder: Path, tmp_path: Path) -> None:
    module = datamodule(folder, tmp_path)
    found = forecast(module, likelihood={"name": "gaussian", "std": 1.0}, beta=4.0, latent_dim=3)
    assert isinstance(found, Forecast)
    likelihood = LIKELIHOODS["gaussian"](std=1.0)
    schedule = SCHEDULES["constant"](value=4.0)
    expected = forecast_run(module.training_sample(20000), likelihood, 3, schedule, 1500)
    assert found.as_dict() == expected.as_dict()
    assert found.end.threshold == 4.0
    assert str(found) == "\n".join(found.lines)
    assert str(found).startswith("forecast: ")


def test_arrays_lists_and_a_folder_of_the_same_stamps_have_the_same_forecast(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stamps = moving()
    settings = {"likelihood": "gaussian", "beta": 2, "latent_dim": 3}
    expected = forecast(stamps, **settings)
    ccd = [CCDData(stamp, unit="adu") for stamp in stamps]
    files = sorted(folder.glob("*.fits"))
    for given in (stamps[:, None].astype(">f8"), ccd, files):
        assert forecast(given, **settings).end.eigenvalues == pytest.approx(
            expected.end.eigenvalues, rel=1e-4
        )
    # a folder is split as for training: fewer stamps, about the same figures
    of_folder = forecast(folder, **settings)
    assert (tmp_path / "stores").is_dir()
    assert of_folder.spectrum.n_stamps < expected.spectrum.n_stamps == 8 * N
    assert of_folder.end.largest_eigenvalue == pytest.approx(
        expected.end.largest_eigenvalue, rel=0.2
    )


def test_a_loss_that_weighs_the_kl_too_much_is_foreseen_to_collapse() -> None:
    likelihood = {"name": "pixel_mean_mse", "kl_weight": 1000.0}
    assert forecast(moving(), likelihood=likelihood).verdict == "full"
    assert forecast(moving(), latent_dim=2).verdict == "none"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latent_dim": 0}, "latent_dim must be at least 1"),
        ({"likelihood": "gauss"}, "likelihood.name is 'gauss'; choose one of"),
        ({"likelihood": {"name": "gaussian", "sdt": 1}}, "likelihood.sdt"),
        ({"beta": -1.0}, "beta.value must be at least 0"),
        ({"beta": "flat"}, "beta.name is 'flat'"),
        ({"n_stamps": 1}, "n_stamps must be at least 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"normalize": {"strech": "asinh"}}, "normalize.strech"),
    ],
)
def test_settings_are_refused_before_stamps_are_read(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        forecast("nowhere.fits", **settings)


def test_stamps_that_say_nothing_have_no_forecast(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not differ"):
        forecast(np.full((9, SIZE, SIZE), 3.0))
    with pytest.raises(InputError, match=r"nowhere\.fits does not exist"):
        forecast("nowhere.fits")
    with pytest.raises(InputError, match="normalize belongs to the datamodule"):
        forecast(datamodule(folder, tmp_path), normalize={"stretch": "linear"})


# -- audit ---------------------------------------------------------------------------------------


def test_a_module_is_audited_on_stamps_as_it_takes_them() -> None:
    torch.manual_seed(0)
    stamps = (moving() - 100) / 20
    report = audit(Plain(beta=1e4), stamps)
    assert isinstance(report, AuditReport)
    assert report.names == ("kl-weight-collapses",)
    assert "FATAL   kl-weight-collapses" in str(report)


def test_a_function_that_makes_a_model_is_called_with_a_seed_and_random_states_stay() -> None:
    stamps = (moving() - 100) / 20
    before = torch.random.get_rng_state()
    first = audit(Plain, moving(), normalize={"stretch": "linear"})
    second = audit(lambda: Plain(beta=1e4), stamps)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.names == ()
    assert second.names == ("kl-weight-collapses",)


def test_a_vae_takes_raw_stamps_and_normalises_them_itself(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = VAE([1, SIZE, SIZE], model={"name": "conv", "latent_dim": 3, "width": 8})
    image = vae.normalizer(torch.from_numpy(moving()[:, None])).image
    expected = audit_module(vae, image)
    found = audit(vae, sorted(folder.glob("*.fits")))
    assert found.names == expected.names
    for fact in ("beta_s2", "largest_eigenvalue"):
        assert found.facts[fact] == pytest.approx(expected.facts[fact], rel=1e-4)
    assert audit(vae, datamodule(folder, tmp_path)).n_stamps == N


def test_a_checkpoint_is_audited_on_the_stamps_of_its_run(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = VAE([1, SIZE, SIZE], model={"name": "linear", "latent_dim": 3})
    vae.run_settings = {
        "data": {"root": str(folder), "store_dir": str(tmp_path / "stores"), "format": "fits"}
    }
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(vae)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert audit(tmp_path / "a.ckpt").n_stamps == N
    assert audit(str(tmp_path / "a.ckpt"), moving(20)).n_stamps == 20
    with pytest.raises(InputError, match="checkpoint"):
        audit(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (3, "model must be a torch.nn.Module, what makes one, or a checkpoint, got int"),
        (lambda: 3, r"<lambda>\(\) makes a int, not a torch.nn.Module"),
        (lambda size: nn.Linear(size, size), r"TypeError: .*give a model, or a function without"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        audit(model, moving())


def test_a_vae_of_pythae_is_audited_by_the_same_call() -> None:
    models = pytest.importorskip("pythae.models")
    config = models.BetaVAEConfig(input_dim=(1, SIZE, SIZE), latent_dim=4, beta=1e4)
    report = audit(models.BetaVAE(config), moving(), normalize={"stretch": "minmax"})
    assert report.interface.startswith("forward({'data'")
    assert "kl-weight-collapses" in report.names


# -- the package ---------------------------------------------------------------------------------


def test_names_of_the_package_are_there_and_no_others() -> None:
    assert {"VAE", "StampDataModule", "forecast", "audit", "__version__"} == set(vae_astro.__all__)
    assert set(vae_astro.__all__) <= set(dir(vae_astro))
    with pytest.raises(AttributeError, match="no attribute 'forcast'"):
        vae_astro.forcast  # noqa: B018  # looking it up is the test


USER = """
import numpy as np
from astropy.nddata import CCDData

from vae_astro import VAE, StampDataModule, audit, forecast

vae = VAE((1, 63, 63), model={"name": "conv", "latent_dim": 8})
codes: np.ndarray = vae.embed([CCDData(np.zeros((63, 63)), unit="adu")])
codes = vae.embed(["a.fits", "b.fits"])
likely: np.ndarray = vae.log_likelihood(np.zeros((2, 63, 63)), n_samples=8)
drawn: np.ndarray = vae.sample(4, seed=1)
made: np.ndarray = vae.reconstruct("a.fits")
module = StampDataModule("FOLDER", size=63)
verdict: str = forecast(module, likelihood="gaussian", beta=4.0, latent_dim=8).verdict
names: tuple[str, ...] = audit(vae, np.zeros((64, 63, 63))).names
reveal_type(forecast(module).end.kl_nats)
"""


@pytest.mark.slow
def test_a_script_of_a_user_passes_a_strict_type_checker_and_its_mistakes_do_not(
    tmp_path: Path,
) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER + "vae.sample('many')\nforecast(module, latent_dim='x')")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent",
         "--ignore-missing-imports", "--cache-dir", str(tmp_path / "cache"), "user.py"],
        cwd=tmp_path, capture_output=True, text=True,
        env={"MYPYPATH": str(Path(vae_astro.__file__).parents[1]), "PATH": ""},
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert 'Revealed type is "float"' in done.stdout.replace("builtins.", "")
    errors = [line for line in said if ": error:" in line]
    assert len(errors) == 2, done.stdout
    assert 'Argument 1 to "sample"' in errors[0]
    assert 'Argument "latent_dim" to "forecast"' in errors[1]
