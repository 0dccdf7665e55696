"""A folder of FITS files to a trained model and its latents, with astropy and pythae.

python astropy_pythae_job.py FOLDER SETTINGS.json N_EPOCHS OUTPUT_FOLDER

What a careful script does: each file by astropy, sky and noise by median and MAD, the same stretch,
a tenth of the stamps to choose the best epoch, a tenth held out, all of them embedded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from pythae_vae import pythae_dataset, pythae_model, pythae_trainer

SOFTENING = 3.0
MAD_TO_STD = 1.4826
CHUNK = 256


def normalised(path: Path) -> np.ndarray:
    """One stamp, (1, H, W): asinh of what is above the sky, in units of its noise."""
    pixels = fits.getdata(path).astype(np.float32)
    level = np.median(pixels)
    noise = MAD_TO_STD * np.median(np.abs(pixels - level))
    return (np.arcsinh((pixels - level) / noise / SOFTENING) * SOFTENING)[None]


def main() -> None:
    files = sorted(Path(sys.argv[1]).iterdir())
    settings = json.loads(Path(sys.argv[2]).read_text())
    folder = Path(sys.argv[4])
    image = np.stack([normalised(path) for path in files])
    order = np.random.default_rng(0).permutation(len(image))
    tenth = len(image) // 10
    validation, training = image[order[:tenth]], image[order[2 * tenth :]]
    model = pythae_model(settings, image.shape[1:])
    pythae_trainer(
        model,
        pythae_dataset(training),
        pythae_dataset(validation),
        settings,
        folder,
        int(sys.argv[3]),
    ).train()
    model.eval()
    with torch.inference_mode():
        latents = [
            model.encoder(torch.from_numpy(image[k : k + CHUNK])).embedding.numpy()
            for k in range(0, len(image), CHUNK)
        ]
    np.savez(
        folder / "latents.npz", latents=np.concatenate(latents), name=[path.name for path in files]
    )


if __name__ == "__main__":
    main()
