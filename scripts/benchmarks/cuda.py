"""A CUDA GPU: stamps a second from end to end, and the share of what the hardware allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.jobs import A_SECOND, command
from benchmarks.rates import ENDLESS, Plan, our_side
from benchmarks.stamps import open_store, repeated_store
from benchmarks.table import Row, not_measured, value_row
from benchmarks.turns import SideError

__all__ = ["cuda_rows", "work_of"]

N_STAMPS = 500_000
ROUNDS_OF_PEAK = 20
BF16_BYTES = 2
PASSES = 3
"""Over the tensors of a layer: forward, gradient of its input, gradient of its weights."""
ROWS = (
    ("training", "end to end, one CUDA GPU, default network", (400_000.0, 1_000_000.0)),
    ("embedding", "one CUDA GPU", (1_500_000.0, 4_000_000.0)),
    ("share of the GPU's limit", "bf16 products or memory, whichever binds", (25.0, 50.0)),
)


def cuda_rows(plan: Plan) -> Iterator[Row]:
    """Three rows; a machine without a CUDA GPU has them without figures."""
    import torch

    if not torch.cuda.is_available():
        yield from (
            not_measured(name, goals, against, "no CUDA GPU") for name, against, goals in ROWS
        )
        return
    gpu = torch.cuda.get_device_name()
    settings = plan.compose(["data.batch_size=null", *ENDLESS])
    path = plan.folder / "many"
    repeated_store(open_store(settings).store, path, N_STAMPS)
    settings["data"] |= {"root": str(path), "n_stamps": None}
    with our_side(plan, "gpu", settings, environment={}) as ours:
        ours.turn()
        rates = [ours.rate() for _ in range(plan.n_rounds)]
    yield value_row(ROWS[0][0], rates, "stamps/s", ROWS[0][2], ROWS[0][1], gpu)
    name, against, goals = ROWS[1]
    try:
        embedded = _embedding_rates(plan, path)
        yield value_row(name, embedded, "stamps/s", goals, against, gpu)
    except SideError as error:
        yield not_measured(name, goals, against, str(error))
    n_products, n_bytes = work_of(settings)
    products, memory = _peaks()
    seconds = max(n_products / products, n_bytes / memory)
    binds = "bf16 products" if n_products / products > n_bytes / memory else "memory"
    name, against, goals = ROWS[2]
    note = (
        f"{binds}; a stamp takes {n_products / 1e9:.2f} GFLOP and {n_bytes / 1e6:.2f} MB; measured "
        f"here: {products / 1e12:.0f} TFLOP/s, {memory / 1e12:.2f} TB/s"
    )
    yield value_row(name, [100 * rate * seconds for rate in rates], "%", goals, against, note)


def _embedding_rates(plan: Plan, store: Path) -> list[float]:
    run_dir = plan.folder / "gpu-run"
    command("train.py", ["trainer.max_epochs=1", f"run_dir={run_dir}", *plan.overrides], {})
    arguments = [f"checkpoint={run_dir}", f"out={plan.folder / 'gpu.parquet'}", "overwrite=true"]
    data = ["data=fits", f"data.root={store}"]
    rates = []
    for _ in range(plan.n_rounds + 1):
        found = A_SECOND.search(command("scripts/embed.py", [*arguments, *data], {}).stdout)
        if found is None:
            raise SideError("scripts/embed.py does not say how fast it was")
        rates.append(float(found[1]))
    return rates[1:]


def work_of(settings: dict[str, Any]) -> tuple[float, float]:
    """What training on one stamp takes at least: floating-point operations, bytes moved.

    The bytes are those that convolutions and dense layers read and write in bf16, on the way
    forth and twice on the way back; everything between them is taken to be fused into them.
    """
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from vae_astro.training import new_vae

    size, n_stamps = settings["data"]["size"], 4
    network = new_vae(settings, (1, size, size)).network
    n_numbers = 0

    def count(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        nonlocal n_numbers
        n_numbers += given[0].numel() + made.numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(count)
    counter = FlopCounterMode(display=False)
    with counter:
        posterior = network.encode(torch.zeros(n_stamps, 1, size, size))
        network.decode(posterior.mean + posterior.log_var).sum().backward()
    return (
        counter.get_total_flops() / n_stamps,
        PASSES * BF16_BYTES * n_numbers / n_stamps,
    )


def _peaks() -> tuple[float, float]:
    """Operations per second of a large bf16 product, and bytes per second of a large copy."""
    import torch

    one = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    large = torch.empty(1 << 28, device="cuda")
    other = torch.empty_like(large)
    products = 2 * 8192**3 / _seconds(lambda: one @ one)
    return products, 2 * large.nbytes / _seconds(lambda: other.copy_(large))


def _seconds(work: Callable[[], object]) -> float:
    import torch

    for _ in range(ROUNDS_OF_PEAK):
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(ROUNDS_OF_PEAK):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / ROUNDS_OF_PEAK
