r"""How likely a stamp is under the model: the importance-weighted bound.

.. math:: \mathcal L_K(x) = \ln \frac1K \sum_{k=1}^K w_k, \qquad
          w_k = \frac{p(x|z_k)\,p(z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

(Burda, Grosse & Salakhutdinov 2016). At K = 1 its mean is the ELBO; it rises with K in the mean and
comes to :math:`\ln p(x)`.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from vae_astro.data.batches import Batch
from vae_astro.model.likelihoods import Likelihood
from vae_astro.model.networks import Network
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.model.priors import Prior
from vae_astro.objective.noise import noise_of_stamps
from vae_astro.settings import check_int

__all__ = ["Generative", "importance_weighted", "log_posterior_density", "log_weights"]

PIXELS_AT_A_TIME = {"cpu": 1 << 20, "other": 1 << 24}
"""Pixels that are decoded together: what bounds the memory, whatever K and the batch are."""
MOST_SAMPLES = 10_000_000
LOG_2PI = math.log(2 * math.pi)


class Generative(Protocol):
    """What a bound needs of a model: a `VAE`, or its `Parts`."""

    network: Network
    likelihood: Likelihood
    prior: Prior


@torch.no_grad()
def importance_weighted(
    vae: Generative,
    batch: Batch,
    n_samples: int,
    generator: torch.Generator | None = None,
    n_pixels: int | None = None,
) -> Tensor:
    """Lower bound on the log-density of each stamp's good pixels, with ``n_samples`` codes each.

    Parameters
    ----------
    vae : Generative
        A `VAE` or its `Parts`, in evaluation mode; on the device of ``batch``.
    batch : dict of str to Tensor
        ``image``, ``mask`` and ``noise`` (B, C, H, W), and ``index`` (B,) without a generator.
    n_samples : int
        K, 1 or more. Each is decoded, so the cost grows with it; the memory does not.
    generator : torch.Generator, optional
        Where the noise comes from, on the same device. Without it every stamp has noise of its own,
        a hash of its row: the same for whatever batches and chunks it goes through.
    n_pixels : int, optional
        Most pixels that are decoded at a time; `PIXELS_AT_A_TIME` if absent.

    Returns
    -------
    Tensor, shape (B,), float64
        Nats per stamp, masked pixels left out. NaN where the model gives no finite weight but NaN.

    Raises
    ------
    InputError
        ``n_samples`` out of range.
    """
    check_int("n_samples", n_samples, minimum=1, maximum=MOST_SAMPLES)
    image = batch["image"]
    kind = image.device.type if image.device.type in PIXELS_AT_A_TIME else "other"
    room = max(1, (n_pixels or PIXELS_AT_A_TIME[kind]) // max(1, image[0].numel()))
    n_stamps = min(len(image), room)
    posterior = vae.network.encode(image)
    return torch.cat(
        [
            _of_few(
                vae,
                {name: values[first : first + n_stamps] for name, values in batch.items()},
                DiagonalGaussian(
                    posterior.mean[first : first + n_stamps],
                    posterior.log_var[first : first + n_stamps],
                ),
                n_samples,
                generator,
                max(1, room // n_stamps),
            )
            for first in range(0, len(image), n_stamps)
        ]
    )


def log_posterior_density(posterior: DiagonalGaussian, eps: Tensor) -> Tensor:
    """``ln q(z|x)`` of codes ``mean + std * eps``, (..., B) for ``eps`` (..., B, Z), in nats."""
    return -0.5 * (eps.square() + posterior.log_var + LOG_2PI).sum(-1)


def _of_few(
    vae: Generative,
    batch: Batch,
    posterior: DiagonalGaussian,
    n_samples: int,
    generator: torch.Generator | None,
    n_together: int,
) -> Tensor:
    """The bound of stamps of which ``n_together`` codes each are decoded at a time."""
    mean = posterior.mean
    total = mean.new_full((len(mean),), -torch.inf, dtype=torch.float64)
    for first in range(0, n_samples, n_together):
        n = min(n_together, n_samples - first)
        if generator is not None:
            eps = torch.randn(n, *mean.shape, generator=generator, device=mean.device)
        else:
            numbers = noise_of_stamps(
                batch["index"], n * vae.network.latent_dim, first * vae.network.latent_dim
            )
            eps = numbers.view(len(mean), n, vae.network.latent_dim).transpose(0, 1)
        weights = log_weights(vae, batch, posterior, eps)
        total = torch.logaddexp(total, weights.double().logsumexp(0))
    return total - math.log(n_samples)


def log_weights(vae: Generative, batch: Batch, posterior: DiagonalGaussian, eps: Tensor) -> Tensor:
    """``ln w`` (S, B) of the codes ``mean + std * eps`` for ``eps`` (S, B, Z), in float64 nats.

    With gradients, if they are on: the mean over stamps of their ``logsumexp(0) - ln S`` is what an
    importance-weighted autoencoder is trained on.
    """
    # not by network.sample: what is drawn must have the density that it is divided by
    z = posterior.sample(eps)
    output = vae.network.decode(z.flatten(0, 1))
    seen = (
        values.expand(len(eps), *values.shape).flatten(0, 1)
        for values in (batch["image"], batch["mask"], batch["noise"])
    )
    image, mask, noise = seen
    log_pixels = vae.likelihood.log_density(image, output, mask, noise).view(eps.shape[:2])
    # small terms together first: the pixels are thousands of nats
    latent = vae.prior.log_density(z).double() - log_posterior_density(posterior, eps).double()
    return log_pixels.double() + latent
