"""The question's network in Keras, as it was asked, without its faults.

KERAS_BACKEND=torch python keras_question.py STAMPS.npz SETTINGS.json

Convolutions of 16 and 8 channels and a dense layer each way, Glorot-normal weights, Adam; the code,
the bottleneck, the learning rate and the batch are those of the settings.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from channel import Channel, take_turns
from keras import layers, ops


class Sampling(layers.Layer):
    """Draws the code, and adds the KL to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, inputs: Any) -> Any:
        """Code of mean and log-variance, (B, Z) each."""
        mean, log_var = inputs
        kl = -0.5 * ops.sum(1 + log_var - ops.square(mean) - ops.exp(log_var), axis=1)
        self.add_loss(ops.mean(kl))
        eps = keras.random.normal(ops.shape(mean), seed=self.seeds)
        return mean + ops.exp(0.5 * log_var) * eps


def half_square(truth: Any, made: Any) -> Any:
    """Half the squared error of each stamp, summed over its pixels."""
    return 0.5 * ops.sum(ops.square(truth - made), axis=(1, 2, 3))


def question(size: int, n_bands: int, latent_dim: int, bottleneck_units: int) -> keras.Model:
    """The network: (B, H, W, C) to the same."""
    glorot = {"kernel_initializer": "glorot_normal"}
    image = keras.Input((size, size, n_bands))
    x = layers.Conv2D(16, 3, activation="relu", **glorot)(image)
    x = layers.Conv2D(8, 3, activation="relu", **glorot)(x)
    x = layers.Dense(bottleneck_units, activation="silu", **glorot)(layers.Flatten()(x))
    mean = layers.Dense(latent_dim, **glorot)(x)
    log_var = layers.Dense(latent_dim, **glorot)(x)
    z = Sampling()([mean, log_var])
    inner = size - 4
    x = layers.Dense(inner * inner * 8, activation="relu", **glorot)(z)
    x = layers.Reshape((inner, inner, 8))(x)
    x = layers.Conv2DTranspose(8, 3, activation="relu", **glorot)(x)
    return keras.Model(image, layers.Conv2DTranspose(n_bands, 3, **glorot)(x))


def main() -> None:
    channel = Channel()
    settings = json.loads(Path(sys.argv[2]).read_text())
    image = np.ascontiguousarray(np.load(sys.argv[1])["image"].transpose(0, 2, 3, 1))
    batch_size = settings["data"]["batch_size"]
    image = image[: len(image) // batch_size * batch_size]
    _, size, _, n_bands = image.shape
    chosen = settings["model"]
    model = question(size, n_bands, chosen["latent_dim"], chosen["bottleneck_units"])
    model.compile(optimizer=keras.optimizers.Adam(settings["optim"]["lr"]), loss=half_square)

    def epoch() -> tuple[int, float]:
        began = time.perf_counter()
        model.fit(image, image, batch_size=batch_size, epochs=1)
        return len(image), time.perf_counter() - began

    take_turns(channel, epoch)


if __name__ == "__main__":
    main()
