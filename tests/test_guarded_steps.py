"""Steps that the memory does not hold, taken again in parts."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from vae_astro import VAE
from vae_astro.data.batches import Batch
from vae_astro.errors import InputError
from vae_astro.evaluate.scores import score_stamps
from vae_astro.model.micro_batches import is_out_of_memory, micro_batch_size

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{words}")
    for words in ("does not have many workers", "isinstance.treespec", "no `val_dataloader`")
]

N_STEPS = 3
BATCH_SIZE = 12
OBJECTIVES: list[dict[str, Any]] = [
    {"likelihood": {"name": "sigma"}, "beta": {"name": "constant"}},
    {"beta": {"name": "constant", "free_bits_nats": 0.5}},
    {"beta": {"name": "capacity", "capacity_nats": 10.0}},
    {"beta": {"name": "geco", "rate": 0.5}, "likelihood": {"name": "noise"}},
    {"likelihood": {"name": "student_t"}},
    {"model": {"name": "linear", "latent_dim": 3, "minimum_rate_nats": 2.0}},
    {"optim": {"aggressive": True}},
]


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for k in range(N_STEPS):
        image = torch.randn(BATCH_SIZE, 1, 16, 16, generator=generator)
        mask = torch.rand(image.shape, generator=generator) > 0.1
        index = torch.arange(BATCH_SIZE) + k * BATCH_SIZE
        noise = torch.ones_like(image)
        made.append({"image": image * mask, "mask": mask, "noise": noise, "index": index})
    return made


def small_vae(**settings: Any) -> VAE:
    torch.manual_seed(0)
    model = {"name": "conv", "width": 8, "latent_dim": 3}
    return VAE([1, 16, 16], **({"model": model} | settings))


def fitted(vae: VAE, tmp_path: Path, **options: Any) -> VAE:
    torch.manual_seed(4)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        gradient_clip_val=200.0,
        **options,
    )
    trainer.fit(vae, DataLoader(batches(), batch_size=None))  # type: ignore[arg-type]
    return vae


def full_beyond(vae: VAE, n_stamps: int, where: str) -> None:
    """Memory for ``n_stamps``: a larger part of a batch fails on its way forward or back."""

    def fails(n: int) -> None:
        if n > n_stamps:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    part = vae.network.decoder if "decoder" in where else vae.network.encoder
    forward = part.forward

    def limited(x: torch.Tensor) -> Any:
        if "forward" in where:
            fails(len(x))
        made = forward(x)
        tensor = made if isinstance(made, torch.Tensor) else made.mean
        if "backward" in where and tensor.requires_grad:
            tensor.register_hook(lambda gradient: fails(len(gradient)))
        return made

    part.forward = limited  # type: ignore[method-assign]


def assert_close(one: VAE, other: VAE) -> None:
    theirs = other.state_dict()
    for name, value in one.state_dict().items():
        # Adam divides by the root of small gradients: their rounding shows at a part in 10^4
        assert torch.allclose(value, theirs[name], rtol=2e-3, atol=2e-5), name
    assert one._moving_parts().keys() == other._moving_parts().keys()
    if one.schedule.controller is not None:
        assert one.schedule.controller.beta == pytest.approx(other.schedule.controller.beta)
        assert one.schedule.controller.state_dict()["n_seen"] == N_STEPS


WHERE = ("encoder forward", "decoder forward", "encoder backward", "decoder backward")


@pytest.mark.parametrize("where", WHERE)
def test_a_step_that_does_not_fit_is_taken_again_in_parts(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, parts = fitted(small_vae(), tmp_path), small_vae()
    full_beyond(parts, 5, where)
    with caplog.at_level(logging.WARNING):
        fitted(parts, tmp_path)
    assert (parts.micro_batches.n_training, parts.micro_batches.n_repeated) == (3, 2)
    assert_close(parts, whole)
    lines = [record.message for record in caplog.records if "out of memory" in record.message]
    assert len(lines) == 2
    assert "with 12 stamps at a time: from here 6 at a time" in lines[0]
    assert "set trainer.micro_batch_size=3 to start so" in lines[1]


@pytest.mark.parametrize("settings", OBJECTIVES, ids=str)
def test_every_objective_is_that_of_the_whole_batch(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = fitted(small_vae(**settings), tmp_path)
    parts = small_vae(**settings)
    full_beyond(parts, 3, "decoder forward backward")
    fitted(parts, tmp_path)
    assert parts.micro_batches.n_training == 3
    assert_close(parts, whole)
    for name, count in parts.state_dict().items():  # each batch was observed once
        if name.endswith("n_updates"):
            assert torch.equal(count, whole.state_dict()[name]), name


@pytest.mark.parametrize("where", WHERE)
def test_gradients_gathered_before_are_kept(where: str, tmp_path: Path) -> None:
    whole = fitted(small_vae(), tmp_path, accumulate_grad_batches=3)
    parts = small_vae()
    full_beyond(parts, 4, where)
    fitted(parts, tmp_path, accumulate_grad_batches=3)
    assert parts.micro_batches.n_training == 3
    assert_close(parts, whole)


def test_memory_that_ends_in_a_later_batch_spoils_no_gathered_gradient(tmp_path: Path) -> None:
    whole = fitted(small_vae(), tmp_path, accumulate_grad_batches=3)
    parts = small_vae()
    seen = []

    def fails_once(gradient: torch.Tensor) -> None:
        seen.append(len(gradient))
        if len(seen) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    forward = parts.network.encoder.forward

    def limited(x: torch.Tensor) -> Any:
        made = forward(x)
        made.mean.register_hook(fails_once)
        return made

    parts.network.encoder.forward = limited  # type: ignore[method-assign]
    fitted(parts, tmp_path, accumulate_grad_batches=3)
    assert parts.micro_batches.n_repeated == 1
    assert_close(parts, whole)


def test_parts_can_be_asked_for_from_the_start(tmp_path: Path) -> None:
    whole, parts = fitted(small_vae(), tmp_path), small_vae()
    parts.micro_batches.n_training = micro_batch_size(5)
    full_beyond(parts, 5, "encoder forward backward")
    fitted(parts, tmp_path)
    assert parts.micro_batches.n_repeated == 0
    assert_close(parts, whole)


@pytest.mark.parametrize("where", WHERE)
def test_a_single_stamp_that_does_not_fit_is_one_clear_error(where: str, tmp_path: Path) -> None:
    vae = small_vae()
    full_beyond(vae, 0, where)
    with pytest.raises(InputError) as raised:
        fitted(vae, tmp_path)
    for words in ("one stamp at a time", "data.batch_size", "model.width", "trainer.precision"):
        assert words in str(raised.value)


def test_other_errors_pass(tmp_path: Path) -> None:
    vae = small_vae()

    def broken(x: torch.Tensor) -> Any:
        raise RuntimeError("shapes do not match")

    vae.network.decoder.forward = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fitted(vae, tmp_path)
    assert vae.micro_batches.n_repeated == 0


def test_scoring_and_embedding_halve_what_they_take_at_a_time() -> None:
    whole = small_vae().eval()
    parts = copy.deepcopy(whole)
    full_beyond(parts, 5, "encoder forward")
    raw = np.random.default_rng(0).normal(size=(12, 16, 16)).astype(np.float32)
    assert np.allclose(parts.embed(raw), whole.embed(raw), atol=1e-5)
    assert parts.micro_batches.n_evaluation == 3
    assert parts.micro_batches.n_training is None
    one, other = (score_stamps(vae, batches()) for vae in (parts, whole))
    assert np.allclose(one.reconstruction_nats, other.reconstruction_nats, rtol=1e-4)
    full_beyond(parts, 0, "decoder forward")
    with pytest.raises(InputError, match=r"out of memory on cpu in scoring, even with one stamp"):
        parts.reconstruct(raw)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize("setting", [0, -3, 2.5, "many"])
def test_a_micro_batch_that_is_none_is_refused(setting: object) -> None:
    with pytest.raises(InputError, match=r"trainer\.micro_batch_size must be"):
        micro_batch_size(setting)
