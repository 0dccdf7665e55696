"""Batches made where the stamps stay are those that the host makes, up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils._python_dispatch import TorchDispatchMode

from vae_astro import VAE
from vae_astro.checkpoint import RandomState
from vae_astro.data import resident
from vae_astro.data.ahead import AheadLoader
from vae_astro.data.batches import EpochSampler, InOrder, StampDataset, StampLoader
from vae_astro.data.datamodule import StampDataModule
from vae_astro.data.resident import (
    ResidentLoader,
    ResidentStamps,
    bytes_needed,
    check_resident,
    fits_on_device,
    free_bytes,
    stays_on_device,
)
from vae_astro.errors import InputError

CPU = torch.device("cpu")
N_STAMPS = 150

quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:The dirpath has changed", "ignore:.*LeafSpec"
)


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of stamps of two bands and their noise, some of their pixels bad."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(100, 5, (N_STAMPS, 2, 16, 16)).astype(np.float32)
    pixels[:, 0, 5:8, 6:9] += 500
    pixels[rng.random(pixels.shape) < 0.02] = np.nan
    pixels[5, 1] = np.nan
    noise = rng.uniform(4, 6, pixels.shape).astype(np.float32)
    noise[7, 0, 3] = 0
    path = tmp_path_factory.mktemp("sky") / "stamps.npz"
    np.savez(path, image=pixels, noise=noise)
    return path


Module = Callable[..., StampDataModule]


@pytest.fixture
def module(sky: Path) -> Module:
    def module(**settings: Any) -> StampDataModule:
        given = {
            "format": "arrays", "dataset": "image", "axes": "NCHW", "progress": False,
            "store_dir": str(sky.parent / "stores"), "pack": {"n_processes": 1}, "batch_size": 16,
            "normalize": {"gain": [6.2, 3.0]},
        }  # fmt: skip
        made = StampDataModule(str(sky), **given | settings)
        made.prepare_data()
        made.setup()
        return made

    return module


def loaders(module: StampDataModule, sampler: Any) -> tuple[StampLoader, ResidentLoader]:
    dataset = StampDataset(module.store, module.normalizer)
    stamps = ResidentStamps(module.store, module.normalizer, CPU)
    return StampLoader(dataset, sampler), ResidentLoader(stamps, dataset, sampler)


@pytest.mark.parametrize("stored_as", ["float32", "float16"])
@pytest.mark.parametrize("noise", [None, "noise"])
@pytest.mark.parametrize(
    "normalize",
    [{"gain": [6.2, 3.0]}, {"stretch": "minmax"}, {"stretch": "log", "saturation": 600}],
)
def test_batches_are_those_of_the_host(
    module: Module, stored_as: str, noise: str | None, normalize: dict[str, Any]
) -> None:
    stamps = module(stored_as=stored_as, noise=noise, normalize=normalize)
    sampler = EpochSampler(stamps.train_rows, 16, seed=1, augment=True)
    host, device = loaders(stamps, sampler)
    n_batches = 0
    for expected, found in zip(host, device, strict=True):
        assert found.keys() == expected.keys()
        assert torch.equal(found["index"], expected["index"])
        assert torch.equal(found["mask"], expected["mask"])
        for name in ("image", "noise"):
            assert found[name].dtype == torch.float32
            assert found[name].is_contiguous()
            # a few roundings of float32 on either side
            torch.testing.assert_close(found[name], expected[name], rtol=2e-6, atol=2e-6)
        n_batches += 1
    assert n_batches == len(sampler) > 3


def test_a_batch_reads_nothing_back(module: Module) -> None:
    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func.overloadpacket.__name__
            assert name not in ("_local_scalar_dense", "nonzero", "lift_fresh"), name
            return func(*args, **(kwargs or {}))

    stamps = module(noise="noise", stored_as="float16")
    device = ResidentStamps(stamps.store, stamps.normalizer, CPU)
    rows, poses = torch.arange(9), torch.arange(9) % 8
    with NoWaiting():
        turned, plain = device.batch(rows, poses), device.batch(rows, None)
    assert torch.equal(turned["image"][0], plain["image"][0])
    assert not torch.equal(turned["image"][1], plain["image"][1])


def test_rows_in_order_come_whole_and_draws_cross_in_groups(
    module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "DRAWS_AT_ONCE", 3)
    monkeypatch.setattr(resident, "CHUNK_BYTES", 7 * 2 * 16 * 16 * 4)  # seven stamps at a time
    stamps = module()
    host, device = loaders(stamps, InOrder(np.arange(N_STAMPS), 16))
    found = list(device)
    assert [len(batch["index"]) for batch in found] == [16] * 9 + [6]
    for one, other in zip(host, found, strict=True):
        torch.testing.assert_close(other["image"], one["image"], rtol=2e-6, atol=2e-6)


def test_a_resumed_loader_goes_on_in_the_middle_of_an_epoch(module: Module) -> None:
    stamps = module()
    sampler = EpochSampler(stamps.train_rows, 16, seed=1, augment=True)
    _, device = loaders(stamps, sampler)
    whole = list(device)
    resumed = EpochSampler(stamps.train_rows, 16, seed=1, augment=True)
    resumed.resume_at(0, 3)
    _, rest = loaders(stamps, resumed)
    for one, other in zip(whole[3:], rest, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert rest.state_dict() == device.state_dict() != {}


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_batches_are_the_same_and_only_those_of_training(
    module: Module, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compiled, backend=backend))
    stamps = module(stored_as="float16", noise="noise")
    plain, made = (
        ResidentStamps(stamps.store, stamps.normalizer, CPU, compiled=flag)
        for flag in (False, True)
    )
    rows, poses = torch.arange(30), torch.arange(30) % 8
    for chosen, turned in (
        (rows, poses),
        (rows.flip(0), poses),
        (rows[:7], poses[:7]),
        (rows, None),
    ):
        expected, found = plain.batch(chosen, turned), made.batch(chosen, turned)
        assert torch.equal(found["mask"], expected["mask"])
        for name in ("image", "noise"):
            torch.testing.assert_close(found[name], expected[name], rtol=2e-6, atol=2e-6)


# -- the choice ----------------------------------------------------------------------------------


def test_what_is_needed_is_what_lies_there(module: Module) -> None:
    stamps = module(stored_as="float16", noise="noise")
    device = ResidentStamps(stamps.store, stamps.normalizer, CPU)
    assert device.unit is not None
    held = (device.planes, device.level, device.sky_noise, device.unit)
    assert bytes_needed(stamps.store) == sum(value.nbytes for value in held)


def test_stamps_stay_where_they_fit_and_are_asked_for(
    module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, cuda = module().store, torch.device("cuda:0")
    assert free_bytes(CPU) > 0
    free = bytes_needed(store) / resident.SHARE
    monkeypatch.setattr(resident, "free_bytes", lambda device: int(free + 1))
    assert fits_on_device(store, cuda)
    assert stays_on_device("auto", store, cuda)
    assert not stays_on_device("auto", store, CPU)
    assert stays_on_device(True, store, CPU)
    assert not stays_on_device(False, store, cuda)
    monkeypatch.setattr(resident, "free_bytes", lambda device: int(free - 10))
    assert not stays_on_device("auto", store, cuda)
    with pytest.raises(InputError, match=r"150 stamps need 0.000289 GiB on cpu, where 0.0004\d+"):
        stays_on_device(True, store, CPU)


def test_a_setting_that_is_none_is_refused() -> None:
    assert [check_resident(setting) for setting in ("auto", True, False)] == ["auto", True, False]
    with pytest.raises(InputError, match=r"data.resident must be auto, true or false, got 'yes'"):
        check_resident("yes")


# -- training ------------------------------------------------------------------------------------


def fitted(
    folder: Path, module: StampDataModule, n_epochs: int = 2, resume: Path | None = None
) -> tuple[VAE, Trainer]:
    seed_everything(0, verbose=False)
    vae = VAE([2, 16, 16], model={"name": "mlp", "latent_dim": 2, "hidden": [16]})
    keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = Trainer(
        max_epochs=n_epochs, accelerator="cpu", callbacks=[keep, RandomState()], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(vae, datamodule=module, ckpt_path=resume, weights_only=True)
    return vae, trainer


@quiet
def test_a_run_on_resident_stamps_is_that_of_the_host_and_resumes_bit_for_bit(
    module: Module, tmp_path: Path
) -> None:
    host, _ = fitted(tmp_path / "host", module(resident=False))
    stamps = module(resident=True)
    whole, trainer = fitted(tmp_path / "whole", stamps)
    assert isinstance(trainer.train_dataloader, ResidentLoader)
    assert isinstance(trainer.val_dataloaders, ResidentLoader)
    assert isinstance(stamps.in_order(stamps.val_rows, on_device=True), ResidentLoader)
    assert not isinstance(stamps.in_order(stamps.val_rows), ResidentLoader)
    resumed, _ = fitted(
        tmp_path / "resumed", module(resident=True), 2, tmp_path / "whole" / "epoch=0.ckpt"
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        torch.testing.assert_close(value, host.state_dict()[name], rtol=1e-3, atol=1e-4)


# -- made ahead ----------------------------------------------------------------------------------


def test_batches_made_ahead_are_the_same_to_the_bit(module: Module) -> None:
    stamps = module()
    sampler = EpochSampler(stamps.train_rows, 16, seed=1, augment=True)
    dataset = StampDataset(stamps.store, stamps.normalizer)
    expected = list(StampLoader(dataset, sampler))
    for one, other in zip(expected, AheadLoader(dataset, sampler, CPU), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
