"""What a run makes of its machine: precision, layout, threads and batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest
import torch

from vae_astro import hardware
from vae_astro.errors import InputError
from vae_astro.hardware import Machine, batch_size_for, choose, keep_freed_memory, look, take
from vae_astro.objective.optim import Optim
from vae_astro.vae import VAE

AUTO = {
    "accelerator": "auto",
    "devices": 1,
    "precision": "auto",
    "channels_last": "auto",
    "threads": "auto",
}
PLAIN = Machine("cpu", "old", None, 8)
NEW = Machine("cpu", "new", "avx512_bf16", 8)
HOPPER = Machine("cuda", "H", "capability 9.0", 16)
APPLE = Machine("mps", "M", None, 8)


@pytest.fixture(autouse=True)
def no_threads_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def chosen(machine: Machine, **options: Any) -> hardware.Setup:
    return choose(AUTO | options, machine)


@pytest.mark.parametrize(
    ("machine", "precision", "channels_last"),
    [
        (PLAIN, "32-true", True),
        (NEW, "bf16-mixed", True),
        (HOPPER, "bf16-mixed", True),
        (APPLE, "32-true", False),
    ],
)
def test_bfloat16_is_taken_where_the_hardware_multiplies_it(
    machine: Machine, precision: str, channels_last: bool
) -> None:
    setup = chosen(machine)
    assert (setup.precision, setup.channels_last) == (precision, channels_last)
    assert machine.name in setup.reason
    assert (machine.bf16 or "no native bfloat16") in setup.reason
    assert "channels last" in setup.reason or machine is APPLE


def test_what_is_set_is_kept_and_said() -> None:
    setup = chosen(NEW, precision="32-true", channels_last=False, threads=3)
    assert (setup.precision, setup.channels_last, setup.n_threads) == ("32-true", False, 3)
    assert setup.reason == ("cpu (new): precision 32-true (as set), channels first, 3 threads")


def test_16_bit_floats_that_a_processor_does_not_have_are_said_to_be_others() -> None:
    assert chosen(PLAIN, precision="16-mixed").precision == "bf16-mixed"
    assert chosen(HOPPER, precision="16-mixed").precision == "16-mixed"


@pytest.mark.parametrize(("devices", "n"), [(1, 8), (2, 4), (16, 1), ("auto", 8), (-1, 8)])
def test_processes_of_a_machine_share_its_cores(devices: Any, n: int) -> None:
    assert chosen(PLAIN, devices=devices).n_threads == n


def test_the_number_of_threads_in_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert chosen(PLAIN).n_threads == torch.get_num_threads()
    assert chosen(PLAIN, threads=5).n_threads == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "64"}, "trainer.precision must be one of auto, 32-true"),
        ({"channels_last": "often"}, "trainer.channels_last must be true or false"),
        ({"threads": 0}, "trainer.threads must be at least 1"),
    ],
)
def test_a_value_out_of_range_names_its_key(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        chosen(PLAIN, **options)


@pytest.mark.parametrize(
    ("features", "bf16"),
    [
        ({"avx512bf16": True, "avx2": True}, "avx512_bf16"),
        ({"avx512bf16": False, "amx-bf16": True}, "amx_bf16"),
        ({"avx512f": True, "amx-bf16": False}, None),
        ({}, None),
    ],
)
def test_a_processor_is_asked_for_its_instructions(
    features: dict[str, bool], bf16: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: features)
    machine = look("cpu")
    assert (machine.accelerator, machine.bf16) == ("cpu", bf16)
    assert machine.n_cores >= 1


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_is_asked_for_its_capability(
    capability: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    assert look("auto").accelerator == look("gpu").accelerator == "cuda"
    assert bool(look("auto").bf16) == has
    assert look("cpu").accelerator == "cpu"


@pytest.mark.parametrize(
    ("machine", "n_stamps", "n_ranks", "size"),
    [
        (PLAIN, 10**8, 1, 64),
        (PLAIN, 10**8, 3, 66),
        (HOPPER, 1000, 1, 64),
        (HOPPER, 100_000, 1, 512),
        (HOPPER, 10**8, 1, 4096),
        (HOPPER, 10**8, 6, 4098),
    ],
)
def test_a_gpu_gets_larger_batches_while_enough_steps_are_left(
    machine: Machine, n_stamps: int, n_ranks: int, size: int
) -> None:
    assert batch_size_for(machine, n_stamps, n_ranks) == size
    if machine is HOPPER and 64 < size < 4096:
        assert 10 * n_stamps / size >= hardware.USUAL_STEPS


def test_a_process_is_set_up_as_chosen() -> None:
    before = torch.get_num_threads()
    try:
        machine, setup = take(AUTO | {"accelerator": "cpu", "threads": 1})
        assert machine.accelerator == "cpu"
        assert torch.get_num_threads() == setup.n_threads == 1
    finally:
        torch.set_num_threads(before)


def test_the_memory_of_tensors_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            asked.append((parameter, value))
            return int(parameter != hardware.M_MMAP_THRESHOLD or value < 2**31)

    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(hardware.platform, "libc_ver", lambda: ("glibc", "2.36"))
    keep_freed_memory()
    assert [parameter for parameter, _ in asked] == [-3, -1]
    asked.clear()
    monkeypatch.setattr(hardware, "KEPT_BYTES", 2**40)  # more than it takes: all stays as it is
    keep_freed_memory()
    assert [parameter for parameter, _ in asked] == [-3]
    asked.clear()
    monkeypatch.setattr(hardware.platform, "libc_ver", lambda: ("", ""))
    keep_freed_memory()
    assert asked == []


@pytest.mark.parametrize("fused", [True, False])
def test_moments_of_another_layout_come_to_the_same_step(fused: bool, tmp_path: Path) -> None:
    """A checkpoint of contiguous weights goes on with channels last, and the other way round."""

    def moved(before: torch.memory_format, after: torch.memory_format) -> torch.Tensor:
        torch.manual_seed(0)
        vae = VAE([1, 16, 16], model={"name": "conv", "width": 8, "latent_dim": 2})
        vae.to(memory_format=before)
        optimizer = Optim().optimizer(vae, fused)
        for turn in range(3):
            for parameter in vae.parameters():
                noise = torch.sin(torch.arange(parameter.numel()) + turn).reshape(parameter.shape)
                parameter.grad = torch.empty_like(parameter).copy_(noise)
            optimizer.step()
            if turn == 1:  # as a run that is resumed
                saved = optimizer.state_dict()
                vae.to(memory_format=after)
                optimizer = Optim().optimizer(vae, fused)
                optimizer.load_state_dict(saved)
                Optim.lay_out(optimizer)
        return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])

    plain, last = torch.contiguous_format, torch.channels_last
    expected = moved(plain, plain)
    for before, after in ((plain, last), (last, plain), (last, last)):
        torch.testing.assert_close(moved(before, after), expected)
