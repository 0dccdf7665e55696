"""A training step reads nothing back from its device, and its log comes late but whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vae_astro import VAE
from vae_astro.data.normalize import Normalizer, Sky
from vae_astro.errors import InputError
from vae_astro.late import LateValues
from vae_astro.model.likelihoods import LIKELIHOODS
from vae_astro.objective.beta import SCHEDULES

WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal"}
"""Operations whose result the host needs before it can go on."""
COPIES = {"lift_fresh", "lift_fresh_copy"}
"""What numbers become tensors by: on a GPU they are copied there, and waited for."""


class NoWaiting(TorchDispatchMode):
    """Refuses what a GPU would be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS | COPIES:
            raise AssertionError(f"{name} makes the host wait")
        if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise AssertionError("an index of booleans makes the host wait")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: float(x.sum()),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.tensor(1.0) * x,
        lambda x: (x > 0).nonzero(),
    ],
)
def test_what_is_refused_here_is_what_would_wait(waits: Any) -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="wait"):
        waits(torch.ones(3))


class InARun:
    """As much of a trainer as a step asks for."""

    def __init__(self, step: int) -> None:
        self.global_step = step
        self.loggers: list[Any] = []
        self.precision_plugin = None


def small_vae(**parts: Any) -> VAE:
    torch.manual_seed(0)
    model = {"name": "conv", "latent_dim": 3, "width": 8, "minimum_rate_nats": 1.0}
    vae = VAE([1, 16, 16], **{"model": model, "normalize": {"gain": 2.0}} | parts)
    vae.set_length(100)
    return vae


def batch_of(n: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(n, 1, 16, 16, generator=generator) > 0.1
    image = torch.rand(n, 1, 16, 16, generator=generator).where(mask, torch.zeros(()))
    return {
        "image": image, "mask": mask, "noise": torch.ones_like(image), "index": torch.arange(n)
    }  # fmt: skip


def take_step(vae: VAE, optimizer: torch.optim.Optimizer, batch: Any, step: int) -> torch.Tensor:
    """What Lightning does of a step."""
    vae._trainer = InARun(step)  # type: ignore[assignment]
    loss = vae.training_step(batch, step)
    optimizer.zero_grad()
    vae.backward(loss)
    vae.on_before_optimizer_step(optimizer)
    vae.configure_gradient_clipping(optimizer, 10.0)
    optimizer.step()
    return loss.detach()


def assert_does_not_wait(vae: VAE, log_every: int = 20) -> None:
    batch, optimizer = batch_of(), vae.optim.optimizer(vae)
    vae.updates.is_free_to_read = lambda device: False  # type: ignore[method-assign]
    vae.log_every_n_steps = log_every
    take_step(vae, optimizer, batch, 0)  # the first may look around
    with NoWaiting():
        for step in range(1, 4):
            take_step(vae, optimizer, batch, step)


@pytest.mark.parametrize("log_every", [20, 1])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_no_likelihood_makes_a_step_wait(name: str, log_every: int) -> None:
    assert_does_not_wait(small_vae(likelihood={"name": name}), log_every)


@pytest.mark.parametrize("likelihood", ["sigma", "noise"])
def test_a_scale_that_is_learned_by_gradient_does_not_make_it_wait(likelihood: str) -> None:
    assert_does_not_wait(small_vae(likelihood={"name": likelihood, "learn": "gradient"}))


@pytest.mark.parametrize("free_bits_nats", [0.0, 0.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_makes_a_step_wait(name: str, free_bits_nats: float) -> None:
    assert_does_not_wait(small_vae(beta={"name": name, "free_bits_nats": free_bits_nats}))


def test_aggressive_inference_reads_its_losses_once_a_window() -> None:
    vae = small_vae(optim={"aggressive": {"window_steps": 5, "max_fraction": 1.0}})
    assert_does_not_wait(vae)
    assert vae.inference is not None
    assert len(vae.inference.state_dict()["window"]) == 3


def test_evaluation_does_not_wait_either() -> None:
    vae, batch = small_vae(likelihood={"name": "bernoulli"}).eval(), batch_of()
    eps = torch.randn(6, 3)
    with NoWaiting():
        scores = vae.score(batch, eps)
    assert scores.location.shape == batch["image"].shape


@pytest.mark.parametrize("stretch", ["asinh", "linear", "log", "minmax"])
def test_normalising_does_not_wait(stretch: str) -> None:
    normalizer = Normalizer(stretch, gain=[1.0, 2.0], saturation=300.0)
    raw = 100 + torch.randn(4, 2, 16, 16)
    sky = Sky(torch.full((4, 2), 100.0), torch.ones(4, 2))
    with NoWaiting():
        normalizer(raw, sky, torch.ones_like(raw))


def test_a_scale_starts_anew_where_weights_of_a_new_run_are_loaded() -> None:
    vae = small_vae(likelihood={"name": "student_t"})
    fresh = {name: value.clone() for name, value in vae.likelihood.state_dict().items()}
    batch, optimizer = batch_of(), vae.optim.optimizer(vae)
    assert not vae.likelihood.started
    take_step(vae, optimizer, batch, 0)
    assert vae.likelihood.started
    vae.likelihood.load_state_dict(fresh)
    assert not vae.likelihood.started


# -- the log -------------------------------------------------------------------------------------


class Kept:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.lines.append((step, dict(values)))


class Slow(LateValues):
    """Values that arrive only when they are waited for, as from a busy device."""

    def arrived(self, wait: bool = False) -> Any:
        return super().arrived(wait) if wait else iter(())


@pytest.mark.parametrize("late", [LateValues, Slow])
def test_every_logged_step_is_logged_once_and_as_that_step(late: type[LateValues]) -> None:
    vae, batch, logger = small_vae(), batch_of(), Kept()
    vae.training_log._late, vae.log_every_n_steps = late(), 4
    optimizer, losses = vae.optim.optimizer(vae), []
    for step in range(10):
        vae._trainer = InARun(step)  # type: ignore[assignment]
        vae._trainer.loggers = [logger]
        loss = vae.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    vae.on_train_end()
    assert [step for step, _ in logger.lines] == [0, 4, 8]
    for step, values in logger.lines:
        assert values["train/loss"] == losses[step]
        assert values["beta"] == pytest.approx(vae.penalty(step).beta)
        assert values["likelihood/std_band0"] > 0
    assert vae.training_log.shown["beta"] == logger.lines[-1][1]["beta"]


def test_a_wild_pixel_is_told_late_too() -> None:
    vae, batch = small_vae(likelihood={"name": "bernoulli"}), batch_of()
    batch["image"][0, 0, 0, 0] = 3.0
    batch["mask"][0, 0, 0, 0] = True
    vae.training_log._late = Slow()
    vae._trainer = InARun(0)  # type: ignore[assignment]
    vae.training_step(batch, 0)
    with pytest.raises(InputError, match="needs pixels between 0 and 1, got 0 to 3"):
        vae.on_validation_epoch_start()
