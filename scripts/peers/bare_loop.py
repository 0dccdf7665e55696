"""A careful hand-written loop: the same network, plain PyTorch in float32, nothing else.

python bare_loop.py STAMPS.npz SETTINGS.json

Batches are gathered whole from tensors in memory; the noise of the pixels is learned in closed form
(Rybkin et al. 2021), as by the default likelihood.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from channel import Channel, take_turns
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from vae_astro.training import new_vae


def main() -> None:
    channel = Channel()
    stamps, settings = np.load(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    image, mask = torch.from_numpy(stamps["image"]), torch.from_numpy(stamps["mask"])
    torch.manual_seed(0)
    n_bands, height, width = image.shape[1:]
    network = new_vae(settings, (n_bands, height, width)).network
    optimizer = torch.optim.Adam(network.parameters(), lr=settings["optim"]["lr"])
    clip = settings["trainer"]["gradient_clip_val"]
    data, batch_size = TensorDataset(image, mask), settings["data"]["batch_size"]
    batches = BatchSampler(RandomSampler(data), batch_size, drop_last=True)
    loader = DataLoader(data, sampler=batches, batch_size=None)

    def epoch() -> tuple[int, float]:
        began = time.perf_counter()
        for image, mask in loader:
            posterior = network.encode(image)
            z = posterior.mean + (0.5 * posterior.log_var).exp() * torch.randn_like(posterior.mean)
            square = ((image - network.decode(z)).square() * mask).sum() / mask.sum()
            kl = 0.5 * (posterior.mean.square() + posterior.log_var.exp() - posterior.log_var - 1)
            loss = 0.5 * mask.sum() / len(image) * square.log() + kl.sum(1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
        return len(loader) * batch_size, time.perf_counter() - began

    take_turns(channel, epoch)


if __name__ == "__main__":
    main()
