"""Linear VAEs trained to convergence, against their forecast: KL, active units, ELBO and sigma.

python scripts/benchmark_forecast_linear.py real_data=FOLDER out=FILE.json [size=small]

The bound of a linear VAE has a closed form in the noise of the code, so it is maximised without
sampling, by L-BFGS over all stamps. Stamps are rotated to their principal axes, and the encoder
sees them whitened: for linear maps that only changes the coordinates, and makes them converge.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
from benchmarks.table import Row, write_json
from omegaconf import DictConfig

from vae_astro.command import endings
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)

LATENT_DIM = 16
SIZE = 32
"""Width of the simulated and ZTF stamps here, in pixels: the central part."""
NARROW = 16
"""Their width where scikit-learn is the judge."""
N_VALUES = {"full": 10, "small": 2}
N_STEPS = {"full": 1500, "small": 100}


@dataclass(frozen=True)
class Pair:
    """One training: forecast and outcome."""

    data: str
    threshold: float
    kl_forecast: float
    kl_trained: float
    units_forecast: int
    units_trained: int
    nearest_eigenvalue: float  # distance to the threshold, as a share of it
    seconds: float

    @property
    def kl_off(self) -> float:
        return self.kl_trained / self.kl_forecast - 1

    @property
    def units_right(self) -> bool:
        allowed = 1 if self.nearest_eigenvalue < 0.05 else 0
        return abs(self.units_trained - self.units_forecast) <= allowed


def stamps_of(cfg: DictConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Data sets by name, (N, 1, H, W)."""
    import torch
    from sklearn.datasets import load_digits

    from vae_astro.data.datamodule import StampDataModule

    yield "digits", torch.tensor(load_digits().images[:, None] / 16)
    common = {"store_dir": cfg.store_dir, "size": SIZE, "augment": False, "test_fraction": 0.0}
    simulated = {"root": f"{cfg.stamps_dir}/simulated-2000x{SIZE}-seed0", "n_stamps": 2000}
    sources = {"simulated": simulated | {"normalize": {"gain": 6.2}}}
    if cfg.real_data:
        alerts = f"{cfg.real_data}/ztf_alerts"
        sources["ZTF science"] = {"root": alerts, "format": "alerts", "cutouts": ["science"]}
    for name, settings in sources.items():
        datamodule = StampDataModule(**common, **settings)
        datamodule.prepare_data()
        datamodule.setup()
        batch = datamodule.in_order(np.arange(len(datamodule.store)))
        parts = [(part["image"], part["mask"].flatten(1).all(1)) for part in batch]
        # the theory is exact where every pixel of every stamp is seen
        yield name, torch.cat([image[whole] for image, whole in parts])


def train(stamps, likelihood, beta: float, n_steps: int):
    """Maximise the bound; returns KL per unit, variance of the means, the bound itself."""
    import torch

    from vae_astro.model.networks import NETWORKS
    from vae_astro.objective.kl import gaussian_kl_per_unit

    torch.manual_seed(0)
    network = NETWORKS["linear"](n_bands=1, size=stamps.shape[-1], latent_dim=LATENT_DIM)
    centred = (stamps - stamps.mean(0)).flatten(1).double()
    values, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    rotated = centred @ axes
    whitened = (rotated / values.clamp(min=1e-6 * values.max()).sqrt()).view_as(stamps)
    rotated = rotated.view_as(stamps)
    # float32 cannot see the loss fall where it leaves the collapsed state
    encoder, decoder = network.encoder.double(), network.decoder.double()
    likelihood = likelihood.double()
    mask, noise = torch.ones_like(rotated, dtype=torch.bool), torch.ones_like(rotated)
    unit = torch.eye(LATENT_DIM, dtype=torch.float64)
    parameters = [*encoder.parameters(), *decoder.parameters(), *likelihood.parameters()]
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=n_steps,
        max_eval=2 * n_steps,
        history_size=100,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
    )

    def parts():
        posterior = encoder(whitened)
        output = decoder(posterior.mean)
        expected = likelihood.log_prob(rotated, output, mask, noise).mean()
        # what sampling the code adds on average: the squared length of each decoder column
        columns = (decoder(unit) - decoder(torch.zeros_like(unit))).flatten(1).square().sum(1)
        std = likelihood.std if hasattr(likelihood, "std") else likelihood.scale().squeeze()
        expected = expected - 0.5 * (columns * posterior.log_var[0].exp()).sum() / std**2
        return posterior, expected.squeeze()

    def loss():
        optimiser.zero_grad()
        posterior, expected = parts()
        kl = gaussian_kl_per_unit(posterior.mean, posterior.log_var).mean(0).sum()
        total = beta * kl - expected
        total.backward()
        return total

    optimiser.step(loss)
    with torch.no_grad():
        posterior, expected = parts()
        kl = gaussian_kl_per_unit(posterior.mean, posterior.log_var).mean(0)
        variance = posterior.mean.var(0, correction=0)
    return kl.numpy(), variance.numpy(), float(expected - kl.sum())


def batch_of(stamps):
    import torch

    return {
        "image": stamps.float(),
        "mask": torch.ones(stamps.shape, dtype=torch.bool),
        "noise": torch.ones(stamps.shape),
        "index": torch.arange(len(stamps)),
    }


def fixed_scale(name: str, stamps, size: str) -> Iterator[Pair]:
    """Thresholds from just below the largest eigenvalue to that of the last latent unit."""
    from vae_astro.collapse.forecast import outlook
    from vae_astro.collapse.spectrum import measure_spectrum
    from vae_astro.model.likelihoods import FixedGaussian
    from vae_astro.objective.beta import RatePenalty

    spectrum = measure_spectrum([batch_of(stamps)], FixedGaussian(), n_modes=64)
    largest, least = spectrum.eigenvalues[0], spectrum.eigenvalues[LATENT_DIM]
    for threshold in np.geomspace(0.8 * largest, least, N_VALUES[size]):
        likelihood = FixedGaussian(std=float(np.sqrt(threshold)))
        measured = measure_spectrum([batch_of(stamps)], likelihood, n_modes=64)
        foreseen = outlook(measured, LATENT_DIM, RatePenalty(1.0))
        began = time.perf_counter()
        kl, variance, _ = train(stamps, likelihood, 1.0, N_STEPS[size])
        yield Pair(
            name,
            float(threshold),
            foreseen.kl_nats,
            float(kl.sum()),
            foreseen.active_units,
            int((variance > 0.01).sum()),
            float(np.abs(spectrum.eigenvalues / threshold - 1).min()),
            time.perf_counter() - began,
        )


def learned_scale(name: str, stamps, size: str) -> dict[str, float | str]:
    """ELBO and sigma of a learned width, beside probabilistic PCA."""
    from sklearn.decomposition import PCA

    from vae_astro.collapse.forecast import outlook
    from vae_astro.collapse.spectrum import measure_spectrum
    from vae_astro.model.likelihoods import SharedGaussian
    from vae_astro.objective.beta import RatePenalty

    # scikit-learn's noise variance is the maximum of the likelihood only with fewer pixels than
    # stamps
    edge = max(0, stamps.shape[-1] - NARROW) // 2
    stamps = stamps[..., edge : edge + NARROW, edge : edge + NARROW]
    flat = stamps.flatten(1).double().numpy()
    pca = PCA(LATENT_DIM, svd_solver="full").fit(flat)
    likelihood = SharedGaussian(n_bands=1, learn="gradient")
    foreseen = outlook(
        measure_spectrum([batch_of(stamps)], likelihood, n_modes=64), LATENT_DIM, RatePenalty(1.0)
    )
    kl, _, elbo = train(stamps, likelihood, 1.0, 4 * N_STEPS[size])
    return {
        "data": name,
        "elbo": elbo,
        "pca_score": float(pca.score(flat)),
        "sigma": likelihood.scale().item(),
        "pca_sigma": float(np.sqrt(pca.noise_variance_)),
        "sigma_forecast": float(np.sqrt(foreseen.decoder_variance[0])),
        "kl": float(kl.sum()),
        "kl_forecast": foreseen.kl_nats,
    }


def table(rows: list[Pair], learned: list[dict[str, float | str]]) -> str:
    lines = [
        "data          beta s2   KL forecast   trained     off   units forecast  trained  right"
    ]
    for row in rows:
        lines.append(
            f"{row.data:12s} {row.threshold:8.3g} {row.kl_forecast:13.3f} {row.kl_trained:9.3f} "
            f"{100 * row.kl_off:6.2f}% {row.units_forecast:15d} {row.units_trained:8d}  "
            f"{'yes' if row.units_right else 'NO'}"
        )
    lines.append("")
    lines.append("learned sigma      ELBO  PCA.score     sigma  of PCA   forecast    KL  forecast")
    for row in learned:
        lines.append(
            f"{row['data']:12s} {row['elbo']:10.3f} {row['pca_score']:10.3f} {row['sigma']:9.5f} "
            f"{row['pca_sigma']:8.5f} {row['sigma_forecast']:9.5f} {row['kl']:6.2f} "
            f"{row['kl_forecast']:8.2f}"
        )
    return "\n".join(lines)


def results(rows: list[Pair], learned: list[dict[str, float | str]]) -> list[Row]:
    """The rows that the benchmarks share: each a trained figure over its forecast."""
    found = [
        Row(
            name=f"KL, {row.data}, beta s2 = {row.threshold:.4g}",
            value=row.kl_trained / row.kl_forecast,
            spread=None,
            unit="ratio",
            base=row.kl_forecast,
            hard="within 0.02 of 1",
            against="forecast",
            note=f"{row.units_trained} active units, forecast {row.units_forecast}; "
            f"{row.seconds:.0f} s",
        )
        for row in rows
    ]
    for row in learned:
        for name, value, against in (
            ("ELBO", "elbo", "pca_score"),
            ("sigma", "sigma", "pca_sigma"),
        ):
            found.append(
                Row(
                    name=f"{name} of a learned sigma, {row['data']}",
                    value=row[value],
                    spread=None,
                    unit="nat" if name == "ELBO" else "normalised pixel",
                    base=row[against],
                    hard="within 0.1 nat" if name == "ELBO" else "within 1 %",
                    against="scikit-learn PCA",
                    note="",
                )
            )
    return found


@hydra.main(config_path="../conf", config_name="benchmark", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Train them all, print the table, write the figures."""

    rows: list[Pair] = []
    learned: list[dict[str, float | str]] = []
    for name, stamps in stamps_of(cfg):
        for row in fixed_scale(name, stamps, cfg.size):
            rows.append(row)
            print(table([row], []).splitlines()[1], flush=True)
        learned.append(learned_scale(name, stamps, cfg.size))
    print(table(rows, learned))
    if cfg.out:
        write_json(Path(cfg.out), results(rows, learned))


if __name__ == "__main__":
    endings.run(main, "benchmark", CONF)
