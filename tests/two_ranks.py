"""One of two processes that compare what they share with what one has: RANK FOLDER.

What it finds goes to ``FOLDER/RANK.json``; `test_ranks` starts both and judges.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from vae_astro import VAE
from vae_astro.data.datamodule import StampDataModule
from vae_astro.processes import open_together
from vae_astro.ranks import Alarm, gather, mean_over_ranks, own_rows

N, SIZE = 8, 16
VARIANTS: dict[str, dict[str, Any]] = {
    "sigma": {},
    "learned by gradient": {"likelihood": {"name": "noise", "learn": "gradient"}},
    "student_t": {"likelihood": {"name": "student_t"}},
    "free bits": {"beta": {"name": "constant", "free_bits_nats": 0.25}},
    "capacity": {"beta": {"name": "capacity", "capacity_nats": 1.0, "warmup_steps": 1}},
    "geco": {"beta": {"name": "geco", "target_chi2": 2.0, "tolerance": 3.0}},
    "minimum rate": {"model": {"name": "linear", "latent_dim": 3, "minimum_rate_nats": 2.0}},
    "mixture": {"prior": {"name": "mixture", "n_components": 4}},
    "vamp": {"prior": {"name": "vamp", "n_pseudo_inputs": 4}},
}


def batch() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    image = (
        torch.randn(N, 1, SIZE, SIZE, generator=rng)
        * torch.linspace(0.3, 3, N)[:, None, None, None]
    )
    mask = torch.rand(image.shape, generator=rng) > 0.1
    noise = 0.5 + torch.rand(image.shape, generator=rng)
    return {"image": image * mask, "mask": mask, "noise": noise, "index": torch.arange(N)}


def figures(parts: dict[str, Any], stamps: dict[str, Tensor]) -> dict[str, Any]:
    """Loss, gradient and what moves beside it, after one step without a trainer."""
    torch.manual_seed(3)
    vae = VAE([1, SIZE, SIZE], **{"model": {"name": "linear", "latent_dim": 3}, **parts})
    vae.set_length(10)
    if vae.prior.learns:  # as it is when its first epoch begins
        of_all = batch()["image"]
        codes = torch.randn(30, 3, generator=torch.Generator().manual_seed(4))
        vae.prior.begin_epoch(9, 10, of_all[:4] if vae.prior.starts_from == "stamps" else codes)
    capacity = vae.schedule.capacity_nats
    if capacity is not None:  # it starts at 0
        vae.schedule = replace(vae.schedule, capacity_nats=lambda step: capacity(5))
    loss = vae.training_step(stamps, 0)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in vae.parameters() if p.grad is not None])
    buffers = [value.double().flatten() for value in vae.buffers()]
    controller = vae.schedule.controller
    return {
        "loss": float(mean_over_ranks(loss.detach())),
        "gradient": mean_over_ranks(gradient).double().tolist(),  # as DDP makes it
        "moved": torch.cat([torch.zeros(1, dtype=torch.float64), *buffers]).tolist(),
        "beta": 0.0 if controller is None else controller.beta,
        "next draw": float(torch.randn(())),
    }


def heard(rank: int) -> list[int]:
    """What an alarm says in steps of which rank 1 raises it in the third."""
    alarm = Alarm()
    return [alarm.heard(15 if (rank, step) == (1, 2) else 0) for step in range(5)] + [alarm.last()]


def opened(rank: int, folder: Path) -> list[int]:
    """Rows of the store in this process, where stamps arrive while the processes start."""

    def module(root: Path) -> StampDataModule:
        return StampDataModule(
            str(root),
            "arrays",
            progress=False,
            val_fraction=0.4,
            pack={"n_processes": 1},
            store_dir=str(folder / "stores"),
        )

    root = folder / "stamps"

    def arrive() -> None:
        np.save(root / "late.npy", np.random.default_rng(1).normal(size=(20, SIZE, SIZE)))
        late = module(root)
        late.prepare_data()
        late.setup()
        assert len(late.store) == 80

    ours = module(root)
    open_together(ours, arrive)
    return [len(ours.store), len(ours.train_rows)]


def main(rank: int, folder: Path) -> None:
    stamps = batch()
    found: dict[str, Any] = {"whole": {name: figures(v, stamps) for name, v in VARIANTS.items()}}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank,
                            world_size=2, timeout=timedelta(seconds=60))  # fmt: skip
    own = {name: own_rows(values) for name, values in stamps.items()}
    found["shared"] = {name: figures(v, own) for name, v in VARIANTS.items()}
    found["gathered"] = gather(torch.arange(7).tensor_split(2)[rank]).tolist()
    found["gathered masks"] = gather(torch.tensor([[True, False], [rank == 1, True]])).tolist()
    found["heard"] = heard(rank)
    found["opened"] = opened(rank, folder)
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
