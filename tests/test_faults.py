"""Losses, gradients, weights and validations that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from vae_astro import VAE
from vae_astro.checkpoint import AtomicCheckpoints, BestCheckpoint, LastCheckpoint, load_checkpoint
from vae_astro.data.batches import Batch, Draw, StampDataset
from vae_astro.data.datamodule import StampDataModule
from vae_astro.data.simulate import simulate
from vae_astro.errors import InputError
from vae_astro.faults import FiniteGuard, not_finite
from vae_astro.model.likelihoods import SharedGaussian
from vae_astro.model.minimum_rate import MinimumRate
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.finite import FiniteUpdates, carried_by_gradient

# what train_command keeps from its user
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{words}")
    for words in ("does not have many workers", "exists and is not empty", "isinstance.treespec")
]
N_STEPS_AN_EPOCH = 6


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sky")
    simulate(root / "stamps", n_stamps=120, seed=3, size=16, n_processes=1, progress=False)
    return root


@pytest.fixture
def stamps(sky: Path) -> StampDataModule:
    made = StampDataModule(
        str(sky / "stamps"), store_dir=str(sky / "stores"), batch_size=16, progress=False
    )
    made.prepare_data()
    made.setup()
    return made


def linear_vae(**settings: Any) -> VAE:
    torch.manual_seed(0)
    model = {"name": "linear", "latent_dim": 3}
    return VAE([1, 16, 16], **({"model": model, "log_every_n_steps": 4} | settings))


def trainer_of(run_dir: Path, *callbacks: Callback, **options: Any) -> Trainer:
    checkpoints = run_dir / "checkpoints"
    own = [FiniteGuard(), LastCheckpoint(checkpoints, 4), BestCheckpoint(checkpoints)]
    return Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[*own, *callbacks],
        plugins=[AtomicCheckpoints()],
        logger=False,
        default_root_dir=run_dir,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )


SetPixel = Callable[[int, float], None]


@pytest.fixture
def set_pixel(monkeypatch: pytest.MonkeyPatch) -> SetPixel:
    """``set_pixel(row, value)``: a normalised pixel of a stamp is that from here on."""

    def set_pixel(row: int, value: float) -> None:
        gather = StampDataset.__getitem__

        def spoiled(self: StampDataset, draw: Draw) -> Batch:
            batch = gather(self, draw)
            batch["image"][batch["index"] == row, 0, 3, 3] = value
            batch["mask"][batch["index"] == row, 0, 3, 3] = True
            return batch

        monkeypatch.setattr(StampDataset, "__getitem__", spoiled)

    return set_pixel


class Weights(Callback):
    """Keeps what the weights were before each step; does something at one of them."""

    def __init__(self, step: int = -1, action: Callable[[], None] = lambda: None) -> None:
        self.step, self.action = step, action
        self.before: dict[int, list[torch.Tensor]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        now = [parameter.detach().clone() for parameter in pl_module.parameters()]
        self.before.setdefault(trainer.global_step, now)
        if trainer.global_step == self.step:
            self.action()


def name_of(stamps: StampDataModule, row: int) -> str:
    return stamps.store.catalogue["id"][row].as_py()


def assert_weights(vae: VAE, expected: list[torch.Tensor]) -> None:
    for parameter, before in zip(vae.parameters(), expected, strict=True):
        assert torch.equal(parameter, before)


def test_an_extreme_stamp_is_named_and_the_last_good_checkpoint_stays(
    stamps: StampDataModule, set_pixel: SetPixel, tmp_path: Path
) -> None:
    row = int(stamps.train_rows[5])
    weights = Weights(N_STEPS_AN_EPOCH, lambda: set_pixel(row, 1e25))  # in the second epoch
    vae = linear_vae()
    with pytest.raises(InputError) as raised:
        trainer_of(tmp_path, weights).fit(vae, stamps)
    message = str(raised.value)
    step = int(message.split("at step ")[1].split(":")[0])
    assert step >= N_STEPS_AN_EPOCH
    for words in (
        f"of 1 of 16 stamps: {name_of(stamps, row)}.",
        "reconstruction (band0)",
        "1e+25",
        "data.normalize.saturation",
        f"resume={tmp_path}",
    ):
        assert words in message
    assert_weights(vae, weights.before[step])
    for name in ("last", "best"):
        saved = load_checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt")
        assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_weights_that_run_away_are_told_from_extreme_stamps(
    stamps: StampDataModule, tmp_path: Path
) -> None:
    vae = linear_vae(optim={"lr": 1e25, "warmup_steps": 0}, likelihood={"name": "gaussian"})
    with pytest.raises(InputError) as raised:
        trainer_of(tmp_path).fit(vae, stamps)
    message = str(raised.value)
    assert "of 16 of 16 stamps" in message
    assert "the weights have run away: lower optim.lr (now 1e+25)" in message
    assert "saturation" not in message
    assert "nothing has been saved yet" in message
    assert not not_finite(vae)


def test_on_a_device_nothing_waits_and_no_update_follows_the_first_bad_one(
    stamps: StampDataModule,
    set_pixel: SetPixel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FiniteUpdates, "is_free_to_read", staticmethod(lambda device: False))
    # the second batch of the first epoch
    sampler = stamps.train_dataloader().sampler
    row = int(list(sampler)[1].rows[0])
    set_pixel(row, 1e25)
    weights, vae = Weights(), linear_vae(likelihood={"name": "gaussian"})
    with pytest.raises(InputError, match=f"not finite at step 1: .*: {name_of(stamps, row)}"):
        trainer_of(tmp_path, weights).fit(vae, stamps)
    assert max(weights.before) == 3, "read when step 4 is done"
    assert not torch.equal(weights.before[0][0], weights.before[1][0])
    assert_weights(vae, weights.before[1])
    assert not list(tmp_path.rglob("*.ckpt"))


def test_nothing_is_saved_before_the_device_has_been_read(
    stamps: StampDataModule,
    set_pixel: SetPixel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FiniteUpdates, "is_free_to_read", staticmethod(lambda device: False))
    vae = linear_vae(log_every_n_steps=1000)  # last.ckpt is due after step 4
    set_pixel(int(stamps.train_rows[0]), float("inf"))
    with pytest.raises(InputError, match="not finite at step"):
        trainer_of(tmp_path).fit(vae, stamps)
    for file in tmp_path.rglob("*.ckpt"):
        assert load_checkpoint(file)["global_step"] <= 4
    assert not not_finite(vae)


def test_a_gradient_that_overflows_where_the_loss_does_not(
    stamps: StampDataModule, set_pixel: SetPixel, tmp_path: Path
) -> None:
    row = int(next(iter(stamps.train_dataloader().sampler)).rows[3])
    set_pixel(row, 1e14)
    vae = linear_vae(likelihood={"name": "gaussian"})
    expected = f"step 0: gradient of the reconstruction.* of 1 of 16 .*: {name_of(stamps, row)}"
    with pytest.raises(InputError, match=expected):
        trainer_of(tmp_path).fit(vae, stamps)


def test_gathered_gradients_find_the_one_of_their_batches(
    stamps: StampDataModule, set_pixel: SetPixel, tmp_path: Path
) -> None:
    row = int(list(stamps.train_dataloader().sampler)[2].rows[0])
    set_pixel(row, 1e25)
    with pytest.raises(InputError, match=f"at step 0: .* of 1 of 16 .*: {name_of(stamps, row)}"):
        trainer_of(tmp_path, accumulate_grad_batches=3).fit(linear_vae(), stamps)


def test_a_validation_that_is_not_finite_never_becomes_the_best(
    stamps: StampDataModule, set_pixel: SetPixel, tmp_path: Path
) -> None:
    row = int(stamps.val_rows[2])
    set_pixel(row, 1e25)
    expected = f"validation ELBO is not finite after step 6: .* stamps: {name_of(stamps, row)}"
    with pytest.raises(InputError, match=expected):
        trainer_of(tmp_path).fit(linear_vae(), stamps)
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_weights_that_are_not_finite_are_never_saved(
    stamps: StampDataModule, tmp_path: Path
) -> None:
    vae = linear_vae()

    def spoil() -> None:
        torch.nn.init.constant_(vae.network.encoder.get_parameter(names[0]), torch.nan)

    names = [name for name, _ in vae.network.encoder.named_parameters()]
    trainer = trainer_of(tmp_path)
    trainer.fit(vae, stamps)
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    spoil()
    with pytest.raises(InputError, match=rf"weights are not finite: network.encoder.{names[0]}"):
        trainer.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_loss_that_overflows_alone_is_carried_by_its_gradient() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    carried_by_gradient(x * torch.inf - torch.inf).backward()
    assert torch.isnan(x.grad)
    x.grad = None
    carried_by_gradient(x.square()).backward()
    assert x.grad == 6


def test_scaled_gradients_may_be_infinite_and_losses_not() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.full((3,), torch.inf)
    FiniteUpdates().clip(optimizer, None, 0, scaled_loss=torch.tensor(1.0))
    with pytest.raises(InputError, match="not finite at step 7"):
        FiniteUpdates().clip(optimizer, None, 7, scaled_loss=torch.tensor(torch.nan))


def test_clipping_is_that_of_torch() -> None:
    one, other = (torch.nn.Parameter(torch.zeros(5)) for _ in range(2))
    one.grad = torch.randn(5) * 100
    other.grad = one.grad.clone()
    FiniteUpdates().clip(torch.optim.Adam([one]), 2.0, 0)
    torch.nn.utils.clip_grad_norm_([other], 2.0)
    assert torch.equal(one.grad, other.grad)
    assert one.grad.norm() == pytest.approx(2.0)


def test_what_is_learned_in_closed_form_survives_a_bad_batch() -> None:
    image = torch.randn(4, 1, 16, 16)
    mask, noise = torch.ones_like(image, dtype=torch.bool), torch.ones_like(image)
    sigma = SharedGaussian(n_bands=1)
    sigma.observe(image, torch.zeros_like(image), mask, noise)
    before = sigma.describe()
    sigma.observe(image * torch.nan, torch.zeros_like(image), mask, noise)
    assert sigma.describe() == before
    rate = MinimumRate(2, 1.0)
    mean = torch.randn(8, 2)
    rate(DiagonalGaussian(mean, torch.zeros(8, 2)))
    rate(DiagonalGaussian(mean * torch.inf, torch.zeros(8, 2)))
    assert torch.isfinite(rate.running_mean).all()
    assert torch.isfinite(rate.running_var).all()
