"""Codes that pythae's VAE gives stamps, after a training for each seed.

python pythae_codes.py STAMPS.npz SETTINGS.json FOLDER N_EPOCHS SEED...

Writes ``FOLDER/codes-SEED.npy``, posterior means (N, Z) of the stamps in their order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from pythae_vae import pythae_dataset, pythae_model, pythae_trainer

BATCH = 256


def main() -> None:
    image = np.load(sys.argv[1])["image"]
    settings = json.loads(Path(sys.argv[2]).read_text())
    folder, n_epochs, seeds = Path(sys.argv[3]), int(sys.argv[4]), map(int, sys.argv[5:])
    for seed in seeds:
        model = pythae_model(settings, image.shape[1:], seed)
        data = pythae_dataset(image)
        trainer = pythae_trainer(model, data, None, settings, folder, n_epochs, seed)
        trainer.train()
        device = next(model.parameters()).device
        with torch.inference_mode():
            codes = [
                model.encoder(torch.from_numpy(batch).to(device)).embedding.cpu().numpy()
                for batch in np.split(image, range(BATCH, len(image), BATCH))
            ]
        np.save(folder / f"codes-{seed}.npy", np.concatenate(codes))


if __name__ == "__main__":
    main()
