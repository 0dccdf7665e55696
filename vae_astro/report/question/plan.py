"""Every run that the page needs: its name, what is in it, and what is typed for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vae_astro.report.question.faults import FAULTS, PATHS, fault_run

__all__ = ["COMMON", "LATENT_DIM", "SCALINGS", "SIZES", "Run", "Size", "plan", "run_of"]

LATENT_DIM = 16
WEIGHTS = (1000.0, 10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
STRETCHES = ("minmax", "asinh")
SCALINGS = (*STRETCHES, "linear", "L2")
"""Normalisations of which the weight they need is forecast; L2: raw pixels over their root sum of
squares, as some tutorials have it."""
COMMON = (
    "model=question",
    "beta=constant",
    "data.batch_size=32",
    "data.val_fraction=0.2",
    "data.test_fraction=0",
    "trainer=cpu",
    "trainer.precision=32-true",
    "callbacks.progress=false",
    "callbacks.time_share=0",
)
ASKED_TRAINING = (
    "optim.lr=1e-4",
    "optim.schedule=constant",
    "optim.warmup_steps=0",
    "data.augment=false",
)


@dataclass(frozen=True)
class Size:
    """How much is done: stamps, their side in pixels (the question's and that of most runs), epochs
    on either data set, seeds of the runs that depend on luck, and weights that are tried.
    """

    n_stamps: int
    wide: int
    narrow: int
    epochs: dict[str, int]
    seeds: tuple[int, ...]
    weights: tuple[float, ...]


SIZES = {
    "full": Size(1200, 63, 32, {"simulated": 13, "ztf": 33}, (0, 1, 2), WEIGHTS),
    "small": Size(160, 24, 16, {"simulated": 2, "ztf": 1}, (0,), WEIGHTS[::4]),
}


@dataclass(frozen=True)
class Run:
    """One run: what it is called, what is in it, and what is typed for it."""

    name: str
    data: str
    faults: tuple[int, ...]
    stretch: str
    weight: float | None
    seed: int
    overrides: tuple[str, ...]


def plan(size: Size, data: str) -> Iterator[Run]:
    """Every run on one data set, each once."""
    everything = tuple(FAULTS)

    def narrow(faults: Iterable[int], seed: int = 0) -> Run:
        return run_of(fault_run(data, faults, seed), size, data, faults, seed=seed)

    yield run_of(f"{data}-asked-wide", size, data, FAULTS, wide=True, extra=ASKED_TRAINING)
    yield run_of(f"{data}-repaired-wide", size, data, (), wide=True)
    left = {(), everything}
    for fault in FAULTS:
        left |= {(fault,), tuple(other for other in everything if other != fault)}
    for path in PATHS.values():
        left |= {tuple(sorted(path[done:])) for done in range(len(path))}
    yield from (narrow(faults) for faults in sorted(left, key=lambda left: (-len(left), left)))
    # a bottleneck dies or not by the luck of its first weights; the repaired shows what luck does
    for seed in size.seeds[1:]:
        yield narrow((), seed)
        yield narrow((5,), seed)
        yield narrow((3, 4, 5, 6), seed)
    for stretch in STRETCHES:
        if stretch != "minmax":
            yield run_of(f"{data}-{stretch}-sigma", size, data, (), stretch=stretch)
        for weight in size.weights:
            title = f"{data}-{stretch}-weight-{weight:g}"
            yield run_of(title, size, data, (), stretch=stretch, weight=weight)


def run_of(
    name: str,
    size: Size,
    data: str,
    left: Iterable[int],
    *,
    stretch: str = "minmax",
    weight: float | None = None,
    seed: int = 0,
    wide: bool = False,
    extra: tuple[str, ...] = (),
) -> Run:
    """One run; ``weight`` puts a mean over pixels and this weight in place of a learned sigma."""
    overrides = [*stamps_of(data, size, wide), f"data.normalize.stretch={stretch}", f"seed={seed}"]
    for number, fault in FAULTS.items():
        overrides += fault.overrides_asked if number in left else fault.overrides_repaired
    if weight is not None:
        overrides += ["likelihood=pixel_mean_mse", f"likelihood.kl_weight={weight:g}"]
    return Run(name, data, tuple(sorted(left)), stretch, weight, seed, (*overrides, *extra))


def stamps_of(data: str, size: Size, wide: bool) -> list[str]:
    """Which stamps, and how long a run on them is."""
    epochs = size.epochs[data]
    return [
        *COMMON,
        *(
            [f"data.n_stamps={size.n_stamps}"]
            if data == "simulated"
            else ["data=alerts", "data.cutouts=[science]"]
        ),
        f"data.size={size.wide if wide else size.narrow}",
        f"trainer.max_epochs={epochs}",
        # validated at its end only, so that a run is judged by what it ends with
        f"trainer.check_val_every_n_epoch={epochs}",
    ]
