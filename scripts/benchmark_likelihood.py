"""Log-likelihood of binarised digits, beside published figures.

python scripts/benchmark_likelihood.py real_data=FOLDER out=FILE.json [size=small|cpu|full]

``static``: 784-400-40-400-784 ReLU on digits that are binarised once, Adam 1e-4, batches of 100,
200 importance samples: about -89.8 nats is published. ``burda_k1`` and ``burda_k50``: one
stochastic layer of Burda et al. 2016 (784-200-200-50-200-200-784, tanh), binarised anew in every
epoch, batches of 20, learning rate 1e-3 * 10^(-i/7) for 3^i epochs, 5000 samples: -86.76 and
-84.78. Only the full size trains as long as they did: hours, on a GPU. The others say how far they
came.
"""

from __future__ import annotations

import copy
import gzip
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import hydra
import numpy as np
from benchmarks.table import Row, write_json
from omegaconf import DictConfig

from vae_astro.command import endings
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)

WIDTH = 28
SEED = 0
N_VALIDATION = 10_000
"""The last of the training digits, by which ``static`` chooses its epoch."""


@dataclass(frozen=True)
class Plan:
    """One training and what is published of it."""

    name: str
    hidden: tuple[int, ...]
    latent_dim: int
    activation: str
    dynamic: bool
    n_objective: int  # samples of the training bound
    batch_size: int
    n_test_samples: int
    published: float
    n_train: int
    n_test: int
    rates: tuple[tuple[float, int], ...]  # learning rate, epochs
    patience: int | None = None  # epochs without a better validation bound


STATIC = Plan("static", (400,), 40, "relu", False, 1, 100, 200, -89.8, 50_000, 10_000,
              ((1e-4, 2000),), patience=50)  # fmt: skip
BURDA = Plan("burda_k1", (200, 200), 50, "tanh", True, 1, 20, 5000, -86.76, 60_000, 10_000,
             tuple((1e-3 * 10 ** (-i / 7), 3**i) for i in range(8)))  # fmt: skip
BURDA_50 = replace(BURDA, name="burda_k50", n_objective=50, published=-84.78)


def plans(size: str) -> list[Plan]:
    if size == "full":
        return [STATIC, BURDA, BURDA_50]
    if size == "cpu":
        return [replace(STATIC, rates=((1e-4, 20),), n_test=2000, patience=None)]
    few = {"n_train": 4000, "n_test": 200, "n_test_samples": 50, "patience": None}
    return [
        replace(STATIC, rates=((1e-4, 3),), **few),
        replace(BURDA, rates=((1e-3, 1),), **few),
        replace(BURDA_50, rates=((1e-3, 1),), **few | {"n_train": 1000}),
    ]


def digits(folder: Path, name: str):
    """Grey values between 0 and 1 (N, 1, 28, 28)."""
    import torch

    from vae_astro.errors import InputError

    path = folder / "MNIST" / "raw" / f"{name}-images-idx3-ubyte.gz"
    if not path.is_file():
        raise InputError(f"real_data={folder} has no MNIST/raw/{path.name}")
    values = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16)
    return torch.from_numpy(values.reshape(-1, 1, WIDTH, WIDTH).astype(np.float32) / 255)


def binarised(grey, seed: int):
    import torch

    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(grey.shape, generator=generator) < grey).float()


def model_of(plan: Plan):
    """A VAE of the package whose network is that of the paper."""
    import torch
    from torch import nn

    from vae_astro.model.networks import Network
    from vae_astro.model.posterior import DiagonalGaussian
    from vae_astro.vae import VAE

    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[plan.activation]

    def layers(widths: list[int]) -> list[nn.Module]:
        return [layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), act())]

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            last = plan.hidden[-1]
            self.trunk = nn.Sequential(nn.Flatten(), *layers([WIDTH**2, *plan.hidden]))
            self.head = nn.Linear(last, 2 * plan.latent_dim)

        def forward(self, image: torch.Tensor) -> DiagonalGaussian:
            return DiagonalGaussian(*self.head(self.trunk(image)).chunk(2, dim=1))

    torch.manual_seed(SEED)
    decoder = nn.Sequential(
        *layers([plan.latent_dim, *plan.hidden[::-1]]),
        nn.Linear(plan.hidden[0], WIDTH**2),
        nn.Unflatten(1, (1, WIDTH, WIDTH)),
    )
    vae = VAE(
        (1, WIDTH, WIDTH),
        model={"name": "mlp", "latent_dim": plan.latent_dim, "hidden": list(plan.hidden)},
        likelihood={"name": "bernoulli", "kind": "binary"},
    )
    initialisation = "xavier" if plan.activation == "tanh" else "default"
    vae.network = Network(Encoder(), decoder, plan.latent_dim, initialisation)
    return vae


def batch_of(image, first: int = 0):
    import torch

    ones = torch.ones_like(image)
    index = torch.arange(first, first + len(image), device=image.device)
    return {"image": image, "mask": ones.bool(), "noise": ones, "index": index}


def objective(vae, plan: Plan, image):
    """Minus the bound of a batch, to minimise: the ELBO, or that of several samples."""
    import torch

    from vae_astro.bound import log_weights

    posterior = vae.network.encode(image)
    batch = batch_of(image)
    if plan.n_objective == 1:
        code = posterior.sample(torch.randn_like(posterior.mean))
        output = vae.network.decode(code)
        pixels = vae.likelihood.log_density(image, output, batch["mask"], batch["noise"])
        return (vae.prior.kl_per_unit(posterior).sum(1) - pixels).mean()
    eps = torch.randn(plan.n_objective, *posterior.mean.shape, device=image.device)
    weights = log_weights(vae, batch, posterior, eps)
    return -(weights.logsumexp(0) - math.log(plan.n_objective)).mean()


def train(vae, plan: Plan, grey, validation, device) -> Iterator[tuple[int, float]]:
    """Epoch and validation ELBO, after each epoch; the weights stay those of the last, or best."""
    import torch

    optimiser = torch.optim.Adam(vae.network.parameters(), lr=plan.rates[0][0], eps=1e-4 if
                                 plan.dynamic else 1e-8)  # fmt: skip
    fixed = binarised(grey, SEED).to(device)
    best, best_state, waited, epoch = -math.inf, None, 0, 0
    for rate, n_epochs in plan.rates:
        optimiser.param_groups[0]["lr"] = rate
        for _ in range(n_epochs):
            epoch += 1
            seen = binarised(grey, epoch).to(device) if plan.dynamic else fixed
            order = torch.randperm(len(seen), device=device)
            for rows in order.split(plan.batch_size):
                optimiser.zero_grad(set_to_none=True)
                objective(vae, plan, seen[rows]).backward()
                optimiser.step()
            bound = evaluate(vae, validation, 1)
            yield epoch, bound
            waited += 1
            if bound > best:
                best, waited = bound, 0
                if plan.patience is not None:
                    best_state = copy.deepcopy(vae.network.state_dict())
            if plan.patience is not None and waited >= plan.patience:
                break
    if best_state is not None:
        vae.network.load_state_dict(best_state)


def evaluate(vae, image, n_samples: int) -> float:
    """Mean bound of ``image``, in nats."""
    from vae_astro.bound import importance_weighted

    total = 0.0
    for first in range(0, len(image), 500):
        part = image[first : first + 500]
        total += float(importance_weighted(vae, batch_of(part, first), n_samples).sum())
    return total / len(image)


def run(plan: Plan, folder: Path, device, say: Callable[[str], None]) -> Row:
    import torch

    grey, test = digits(folder, "train"), digits(folder, "t10k")
    vae = model_of(plan).to(device)
    validation = binarised(grey[-N_VALIDATION:][: max(plan.n_test, 200)], SEED + 1).to(device)
    torch.manual_seed(SEED)
    began, curve = time.perf_counter(), []
    for epoch, bound in train(vae, plan, grey[: plan.n_train], validation, device):
        curve.append((epoch, bound))
        if epoch % max(1, sum(n for _, n in plan.rates) // 25) == 0:
            say(
                f"{plan.name}: epoch {epoch}, ELBO {bound:.2f}, {time.perf_counter() - began:.0f} s"
            )
    seconds = time.perf_counter() - began
    seen = binarised(test[: plan.n_test], SEED + 2).to(device)
    elbo, likelihood = evaluate(vae, seen, 1), evaluate(vae, seen, plan.n_test_samples)
    say(
        f"{plan.name}: ELBO {elbo:.2f}, log-likelihood {likelihood:.2f}, published {plan.published}"
    )
    note = (
        f"{curve[-1][0]} epochs of {plan.n_train} digits in {seconds:.0f} s, {plan.n_test} test "
        f"digits, {plan.n_test_samples} samples; ELBO {elbo:.2f}; by epoch: "
        + ", ".join(f"{epoch}: {bound:.1f}" for epoch, bound in curve[:: max(1, len(curve) // 8)])
    )
    return Row(
        name=f"test log-likelihood, {plan.name}",
        value=likelihood,
        spread=None,
        unit="nats",
        base=plan.published,
        hard="within 0.5 of it, at full size",
        against="published",
        note=note,
    )


@hydra.main(config_path="../conf", config_name="benchmark_likelihood", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Train, measure, print the table, write the figures."""
    import torch

    from vae_astro.errors import InputError
    from vae_astro.settings import check_choice

    size = check_choice("size", cfg.size, ("small", "cpu", "full"))
    if cfg.real_data is None:
        raise InputError("real_data is not set; give a folder that has MNIST/raw/*.gz")
    chosen = plans(size)
    if cfg.only is not None:
        check_choice("only", cfg.only, tuple(plan.name for plan in chosen))
        chosen = [plan for plan in chosen if plan.name == cfg.only]
    torch.set_num_threads(cfg.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(cfg.real_data).expanduser()
    rows = [run(plan, folder, device, print) for plan in chosen]
    for row in rows:
        print(f"{row.name:36s} {row.value:9.2f}  (published {row.base})  {row.note}")
    if cfg.out:
        write_json(Path(cfg.out), rows)


if __name__ == "__main__":
    endings.run(main, "benchmark_likelihood", CONF)
