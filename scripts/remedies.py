"""Compare ways out of collapse on the same stamps, and write docs/remedies.md.

python scripts/remedies.py                 some ten minutes on two cores
python scripts/remedies.py size=small      under a minute, to see that it works
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_astro.command import endings
from vae_astro.command.files import whole, write_whole
from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

if TYPE_CHECKING:
    from vae_astro.vae import VAE

CONF = Path(__file__).parents[1] / "conf"
register_resolvers()
register_help(CONF)

STD = 10
"""Standard deviation of the setting that is built to collapse; the sky noise is 1."""
BUILT_TO_COLLAPSE = ("likelihood=gaussian", f"likelihood.std={STD}", "beta=constant")
MOVED = 0.25
"""Relative difference in KL from the setting built to collapse that counts as another end, ..."""
LEAST_NATS = 0.5
"""... if it is at least so many nats."""
COMMON = (
    "data.size=32",
    "trainer=cpu",
    "trainer.precision=32-true",
    "collapse.action=warn",
    "callbacks.progress=false",
    "callbacks.page=false",
    "callbacks.time_share=0",
)
SIZES = {
    "full": ("data.n_stamps=2000", "model.width=16", "trainer.max_epochs=30"),
    "small": (
        "data.n_stamps=160",
        "data.batch_size=32",
        "model.width=8",
        "trainer.max_epochs=3",
        "trainer.check_val_every_n_epoch=1",
    ),
}


@dataclass(frozen=True)
class Setting:
    """One row of the table: a name, what is typed, and what it changes."""

    name: str
    overrides: tuple[str, ...]
    changes: str


PLAIN = Setting(
    "learned sigma (the default)",
    ("likelihood=sigma", "beta=constant"),
    "the variance of the decoder, which falls to what the residuals are; beta = 1 is then the "
    "evidence lower bound itself (Rybkin et al. 2021)",
)
BASE = Setting("built to collapse", BUILT_TO_COLLAPSE, "nothing: the setting to get out of")
REMEDIES = (
    Setting(
        "lower final beta",
        (*BUILT_TO_COLLAPSE, f"beta.value={1 / STD**2:g}"),
        "the weight of the KL, here to the noise variance over the assumed one",
    ),
    Setting(
        "free bits",
        (*BUILT_TO_COLLAPSE, "beta.free_bits_nats=0.5"),
        "the penalty: half a nat of each unit costs nothing (Kingma et al. 2016)",
    ),
    Setting(
        "capacity",
        (*BUILT_TO_COLLAPSE[:2], "beta=capacity", "beta.capacity_nats=16"),
        "the penalty: it pulls the KL to 16 nats and not to 0 (Burgess et al. 2018)",
    ),
    Setting(
        "GECO",
        (*BUILT_TO_COLLAPSE[:2], "beta=geco"),
        "the weight of the KL, moved towards a chi-squared of one per pixel (Rezende & Viola 2018)",
    ),
    Setting(
        "minimum rate",
        (*BUILT_TO_COLLAPSE, "model.minimum_rate_nats=16"),
        "the posteriors, which cannot have less than 16 nats (Razavi et al. 2019, Zhu et al. 2020)",
    ),
    Setting(
        "linear warm-up",
        (*BUILT_TO_COLLAPSE[:2], "beta=linear", "beta.warmup_fraction=0.5"),
        "beta in the first half of the run; it ends where it was (Bowman et al. 2016)",
    ),
    Setting(
        "cyclical",
        (*BUILT_TO_COLLAPSE[:2], "beta=cyclical"),
        "beta in four cycles; each ends where it was (Fu et al. 2019)",
    ),
    Setting(
        "aggressive inference",
        (*BUILT_TO_COLLAPSE, "optim.aggressive=true"),
        "who learns at first: the encoder runs ahead of the decoder (He et al. 2019)",
    ),
)


@dataclass(frozen=True)
class Outcome:
    """Figures of one run at its end, on the validation stamps."""

    setting: Setting
    elbo_nats: float
    refitted_elbo_nats: float
    kl_nats: float
    active_units: int
    latent_dim: int
    chi2_per_pixel: float
    beta: float
    seconds: float
    kl_by_step: tuple[tuple[int, float], ...]


@hydra.main(config_path="../conf", config_name="remedies", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Train every setting, then write the page and its figure."""
    import logging
    import warnings

    warnings.simplefilter("ignore")  # Lightning's advice, once for each run
    for name in ("vae_astro", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)  # the page says it all
    write(cfg)


def write(cfg: DictConfig) -> None:
    """Run everything that the page needs, and write it."""
    from vae_astro.settings import check_choice

    size = check_choice("size", cfg.size, tuple(SIZES))
    folder = Path(cfg.folder)
    page = Path(cfg.page or {"full": "docs", "small": folder}[size] / Path("remedies.md"))
    seeds = {"full": (0, 1, 2), "small": (0,)}[size]
    bases = [run(BASE, size, folder, seed) for seed in seeds]
    outcomes = [run(setting, size, folder) for setting in (PLAIN, *REMEDIES)]
    figure = page.parent / "images" / "remedies.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    draw(bases, outcomes, figure)
    write_whole(page, text_of(bases, outcomes, size, f"images/{figure.name}"))
    print(f"{page} and {figure}")


# -- one run -------------------------------------------------------------------------------------


def run(setting: Setting, size: str, folder: Path, seed: int = 0) -> Outcome:
    """Train one setting and judge what it ends with, not its best checkpoint.

    With too large a standard deviation the bound itself prefers a collapsed code, and the best
    checkpoint would be the most collapsed one of the run.
    """
    from vae_astro.run import train
    from vae_astro.vae import VAE

    overrides = [*COMMON, *SIZES[size], *setting.overrides, f"seed={seed}"]
    settings: Any = OmegaConf.to_container(hydra.compose("config", overrides), resolve=True)
    run_dir = folder / f"{setting.name.replace(' ', '-')}-seed{seed}"
    metrics = train(settings, run_dir).metrics
    vae = VAE.load_from_checkpoint(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    outcome = Outcome(
        setting,
        **judged(vae, settings),
        beta=vae.penalty(vae.total_steps).beta,
        seconds=metrics["timing"]["seconds_fit"],
        kl_by_step=scalar_of(run_dir, "val/kl_nats"),
    )
    print(f"{setting.name}, seed {seed}: KL {outcome.kl_nats:.3g} nats, {outcome.seconds:.0f} s")
    return outcome


def judged(vae: VAE, settings: dict[str, Any]) -> dict[str, Any]:
    """Figures of a model on the validation stamps, at beta = 1."""
    import numpy as np

    from vae_astro.collapse.verdict import judge
    from vae_astro.data.datamodule import StampDataModule
    from vae_astro.evaluate.scores import score_stamps

    datamodule = StampDataModule(**settings["data"], seed=settings["seed"], progress=False)
    datamodule.prepare_data()
    datamodule.setup()
    batches = list(datamodule.in_order(datamodule.val_rows))
    table = score_stamps(vae, batches)
    verdict = judge(table.mean, table.kl_per_unit, vae.prior.unit_std().cpu().numpy())
    reconstruction_nats = float(table.reconstruction_nats.mean(dtype=np.float64))
    return {
        "elbo_nats": reconstruction_nats - verdict.kl_nats,
        "refitted_elbo_nats": refitted_reconstruction_nats(vae, batches) - verdict.kl_nats,
        "kl_nats": verdict.kl_nats,
        "active_units": verdict.active_units,
        "latent_dim": verdict.latent_dim,
        "chi2_per_pixel": float(np.median(table.chi2_per_pixel)),
    }


def refitted_reconstruction_nats(vae: VAE, batches: list[Any]) -> float:
    """Mean log-density of the good pixels under the Gaussian of the best shared sigma.

    Settings that assume different standard deviations compare by it.
    """
    import math

    import torch

    squares, n_pixels, n_stamps = 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            posterior = vae.network.encode(batch["image"])
            drawn = vae.decode(vae.network.sample(posterior, vae.evaluation_noise(batch["index"])))
            residual = (batch["image"] - drawn)[batch["mask"]]
            squares += float(residual.double().square().sum())
            n_pixels += len(residual)
            n_stamps += len(drawn)
    return -0.5 * n_pixels / n_stamps * (math.log(2 * math.pi * squares / n_pixels) + 1)


def scalar_of(run_dir: Path, name: str) -> tuple[tuple[int, float], ...]:
    """(step, value) pairs that a run has logged under ``name``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return tuple((event.step, event.value) for event in events.Scalars(name))


# -- the page ------------------------------------------------------------------------------------


def moved(outcome: Outcome, bases: list[Outcome]) -> bool:
    """Whether a run ends elsewhere than the setting built to collapse does with any seed."""
    return all(
        abs(outcome.kl_nats - base.kl_nats) > max(MOVED * base.kl_nats, LEAST_NATS)
        for base in bases
    )


def text_of(bases: list[Outcome], outcomes: list[Outcome], size: str, figure: str) -> str:
    """The page: nothing in it but what was measured and what each setting is."""
    ended_elsewhere = [outcome for outcome in outcomes if moved(outcome, bases)]
    ended_there = [outcome for outcome in outcomes if not moved(outcome, bases)]
    best = max([*bases, *outcomes], key=lambda outcome: outcome.refitted_elbo_nats)
    kl = sorted(base.kl_nats for base in bases)
    n_steps = bases[0].kl_by_step[-1][0] + 1
    command = "python scripts/remedies.py" + ("" if size == "full" else f" size={size}")
    spread = f"{kl[0]:.3g} to {kl[-1]:.3g}" if len(kl) > 1 else f"{kl[0]:.3g}"
    lines = [
        "# Ways out of collapse, on the same stamps",
        "",
        f"Written by `{command}`. Each row is a run of {n_steps} steps on the same simulated "
        f"stamps (`{' '.join((COMMON[0], *SIZES[size]))}`) from the same seed, judged on the "
        "validation stamps at its end."
        + ("" if size == "full" else " Too short to say anything; it shows that the command runs."),
        "",
        f"The setting to get out of assumes a standard deviation of {STD} where the sky noise is "
        f"1: `{' '.join(BUILT_TO_COLLAPSE)}`. It ends at a KL of {spread} nats"
        + (f" ({len(kl)} seeds)" if len(kl) > 1 else "")
        + ". A remedy *moves the end* if its KL differs from that by more than "
        f"{MOVED:.0%} of it and {LEAST_NATS} nats; otherwise it changed the way there at most.",
        "",
        *table_of(bases, outcomes),
        "",
        f"- Moved the end: {names_of(ended_elsewhere)}.",
        f"- Ended where the setting without a remedy ends: {names_of(ended_there)}.",
        f"- Highest ELBO with sigma refitted: {best.setting.name}, "
        f"{best.refitted_elbo_nats:.1f} nats.",
        "",
        "The ELBO of a row is that of its own likelihood. One that assumes too large a standard "
        "deviation prefers the collapsed code, so rows with different ones compare by the ELBO "
        "with sigma refitted: the same codes and decoder under the Gaussian of the best shared "
        "sigma. Active units are those whose posterior mean varies by more than 0.01 over stamps; "
        "a minimum rate makes every unit vary.",
        "",
        f"![KL against the step]({figure})",
        "",
        "## What each changes",
        "",
        *(
            f"- **{outcome.setting.name}**, `{' '.join(outcome.setting.overrides)}`: "
            f"{outcome.setting.changes}."
            for outcome in outcomes
        ),
        "",
    ]
    return "\n".join(lines)


def table_of(bases: list[Outcome], outcomes: list[Outcome]) -> list[str]:
    """The one table, as lines of Markdown."""
    header = ["", "moves the end", "ELBO at beta = 1 [nat]", "the same, sigma refitted [nat]",
              "KL [nat]", "active units", "chi2 per pixel", "final beta", "seconds"]  # fmt: skip
    rows = [header, ["---"] * len(header)]
    for outcome in (bases[0], *outcomes):
        rows.append(
            [
                outcome.setting.name,
                "" if outcome is bases[0] else "yes" if moved(outcome, bases) else "no",
                f"{outcome.elbo_nats:.1f}",
                f"{outcome.refitted_elbo_nats:.1f}",
                f"{outcome.kl_nats:.3g}",
                f"{outcome.active_units} of {outcome.latent_dim}",
                f"{outcome.chi2_per_pixel:.3f}",
                f"{outcome.beta:.3g}",
                f"{outcome.seconds:.0f}",
            ]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def names_of(outcomes: list[Outcome]) -> str:
    return ", ".join(outcome.setting.name for outcome in outcomes) or "none"


def draw(bases: list[Outcome], outcomes: list[Outcome], path: Path) -> None:
    """KL against the step: left what moves the end, right what does not."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    titles = ("moves the end", "ends where it would have ended anyway")
    for axis, title, wanted in zip(axes, titles, (True, False), strict=True):
        for base in bases:
            label = BASE.name if base is bases[0] else None
            axis.plot(
                *zip(*base.kl_by_step, strict=True), color="black", lw=4, alpha=0.3, label=label
            )
        for outcome in outcomes:
            if moved(outcome, bases) is wanted:
                axis.plot(*zip(*outcome.kl_by_step, strict=True), label=outcome.setting.name)
        axis.set(title=title, xlabel="optimiser step", yscale="symlog")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("validation KL [nat per stamp]")
    with whole(path) as partial:
        figure.savefig(partial, dpi=120)


if __name__ == "__main__":
    endings.run(main, "remedies", CONF)
