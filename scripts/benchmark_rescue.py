"""Ten runs built to collapse, watched and rescued, beside runs set right from the start.

python scripts/benchmark_rescue.py out=FILE.json          some ten minutes on two cores
python scripts/benchmark_rescue.py size=small             a minute, to see that it works
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from benchmarks.table import Row, write_json
from omegaconf import DictConfig, OmegaConf

from vae_astro.command import endings
from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

CONF = Path(__file__).parents[1] / "conf"
register_resolvers()
register_help(CONF)

COMMON = (
    "data.size=32",
    "model.latent_dim=16",
    "trainer=cpu",
    "trainer.precision=32-true",
    "callbacks.progress=false",
    "callbacks.page=false",
    "callbacks.time_share=0",
)
SIZES = {
    "full": ("data.n_stamps=1500", "trainer.max_epochs=20"),
    "small": ("data.n_stamps=240", "data.batch_size=16", "trainer.max_epochs=12",
              "trainer.check_val_every_n_epoch=1"),
}  # fmt: skip
CONV = ("model=conv", "model.width=8")
DEEP = ("model=mlp", "model.hidden=[1024,1024,1024,1024]")


@dataclass(frozen=True)
class Fault:
    """A run built to collapse."""

    name: str
    network: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def typed(self) -> str:
        return " ".join(self.overrides)


FAULTS = (
    Fault("beta too high", CONV, ("beta.end=300",)),
    Fault("sigma too large, late", CONV, ("likelihood=gaussian", "likelihood.std=100",
          "beta=sigmoid", "beta.steepness=40", "beta.warmup_fraction=0.8")),
    Fault("beta too high, constant", CONV, ("beta=constant", "beta.value=60")),
    Fault("beta too high, cyclical", CONV, ("beta=cyclical", "beta.end=1000")),
    Fault("sigma too large", CONV, ("likelihood=gaussian", "likelihood.std=30")),
    Fault("sigma somewhat too large", CONV, ("likelihood=gaussian", "likelihood.std=10",
          "beta=constant")),
    Fault("mean over pixels", CONV, ("likelihood=pixel_mean_mse",)),
    Fault("warm-up the wrong way", CONV, ("beta.start=300", "beta.end=1",
          "beta.warmup_fraction=0.8")),
    Fault("no warm-up, steps too long", CONV, ("beta=constant", "optim.lr=0.03")),
    Fault("decoder too strong", DEEP, ("beta=constant", "optim.lr=0.005",
          "optim.warmup_steps=0")),
)  # fmt: skip
N_FAULTS = {"full": len(FAULTS), "small": 2}


@dataclass(frozen=True)
class Outcome:
    """Figures of a run at its end, on the validation stamps."""

    state: str
    began_at_step: int | None
    active_units: int
    kl_nats: float
    elbo_nats: float  # of the best checkpoint
    verdict: str  # of the best checkpoint
    changes: tuple[str, ...]
    seconds: float

    @property
    def figures(self) -> str:
        return f"{self.active_units:2d} {self.kl_nats:8.3g} {self.state:10s}"


def run(overrides: tuple[str, ...], cfg: DictConfig) -> Outcome:
    """Train one run in a folder that is thrown away."""
    from vae_astro.run import train

    data = (f"data.root={cfg.stamps_dir}/rescue-{cfg.size}", f"data.store_dir={cfg.store_dir}")
    composed = hydra.compose("config", [*COMMON, *SIZES[cfg.size], *data, *overrides])
    settings: Any = OmegaConf.to_container(composed, resolve=True)
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(settings, Path(folder) / "run").metrics
    collapse = metrics["collapse"]
    return Outcome(
        collapse["state"],
        collapse["began_at_step"],
        collapse["history"]["active_units"][-1],
        collapse["history"]["kl_nats"][-1],
        metrics["val"]["elbo_nats"],
        collapse["verdict"],
        tuple(record["kind"] for record in collapse["rescues"]),
        metrics["timing"]["seconds_fit"],
    )


@dataclass(frozen=True)
class Trial:
    """A fault: left alone, rescued, and the same network set right from the start."""

    fault: Fault
    alone: Outcome
    rescued: Outcome
    right: Outcome

    @property
    def share(self) -> float:
        """Active units of the rescued run over those of the one set right."""
        return self.rescued.active_units / max(self.right.active_units, 1)

    @property
    def collapses(self) -> bool:
        """Whether it does what it was built for."""
        return self.alone.state in ("collapsing", "collapsed")

    @property
    def is_rescued(self) -> bool:
        """Alive at its end, in the state and in the verdict, with half of the units."""
        return (
            self.rescued.state == "healthy" and self.rescued.verdict != "full" and self.share >= 0.5
        )

    @property
    def line(self) -> str:
        """One line of the table."""
        return (
            f"{self.fault.name:28s} {self.alone.figures}  {self.rescued.figures}  "
            f"{self.right.active_units:2d} {self.right.kl_nats:6.3g}  {self.share:5.2f}  "
            f"{'yes' if self.is_rescued else 'NO':4s} {'; '.join(self.rescued.changes)}"
        )


HEADER = (
    f"{'':28s} {'left alone':22s}  {'rescued':22s}  set right\n"
    f"{'built to collapse by':28s} {'units  KL state':22s}  {'units  KL state':22s}  units KL "
    "share  ok   changes"
)


def results(rows: list[Trial]) -> list[Row]:
    """The rows that the benchmarks share: active units over those of the run set right."""
    found = [
        Row(
            name=f"rescue: {row.fault.name}",
            value=row.share,
            spread=None,
            unit="active units over those of a run set right",
            base=row.right.active_units,
            hard="at least 0.5, and healthy at the end",
            against="likelihood=sigma, beta to 1, from the start",
            note=f"{row.fault.typed}; left alone: {row.alone.state}, "
            f"{row.alone.active_units} units, KL {row.alone.kl_nats:.3g}; rescued: "
            f"{row.rescued.state}, {row.rescued.active_units} units, "
            f"KL {row.rescued.kl_nats:.3g}, by {', then '.join(row.rescued.changes) or 'nothing'}",
        )
        for row in rows
    ]
    n_rescued = sum(row.is_rescued for row in rows)
    found.append(
        Row(
            name="runs rescued",
            value=n_rescued / len(rows),
            spread=None,
            unit="share",
            base=len(rows),
            hard="1",
            against="",
            note=f"{n_rescued} of {len(rows)}; {sum(row.collapses for row in rows)} collapse "
            "when left alone",
        )
    )
    return found


@hydra.main(config_path="../conf", config_name="benchmark", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Run them all, print the table, write the figures."""
    from vae_astro.run import quieten
    from vae_astro.settings import check_choice

    quieten()
    faults = FAULTS[: N_FAULTS[check_choice("size", cfg.size, tuple(N_FAULTS))]]
    rows: list[Trial] = []
    right = {network: run(network, cfg) for network in dict.fromkeys(f.network for f in faults)}
    print(HEADER, flush=True)
    for fault in faults:
        overrides = (*fault.network, *fault.overrides)
        alone = run(overrides, cfg)
        rescued = run((*overrides, "collapse.action=rescue"), cfg)
        rows.append(Trial(fault, alone, rescued, right[fault.network]))
        print(rows[-1].line, flush=True)
    print(f"rescued: {sum(row.is_rescued for row in rows)} of {len(rows)}")
    if cfg.out:
        write_json(Path(cfg.out), results(rows))


if __name__ == "__main__":
    endings.run(main, "benchmark", CONF)
