"""What a model does for who holds stamps in Python: arrays or files in, arrays out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from vae_astro.bound import importance_weighted
from vae_astro.data.datamodule import LARGEST_SEED
from vae_astro.data.given import Stamps, given_stamps
from vae_astro.data.normalize import NormalizedStamps, Normalizer
from vae_astro.data.raw import in_batches
from vae_astro.guarded_steps import GuardedSteps
from vae_astro.model.likelihoods import Likelihood
from vae_astro.model.modes import in_evaluation
from vae_astro.model.networks import Network
from vae_astro.model.priors import Prior
from vae_astro.objective.noise import noise_of_stamps
from vae_astro.settings import check_int

__all__ = ["ArrayCalls"]

log = logging.getLogger(__name__)


class ArrayCalls(GuardedSteps):
    """`embed`, `reconstruct`, `log_likelihood` and `sample` of a `VAE`.

    They work in evaluation mode, without gradients and on the device of the weights; the model is
    left in the mode it was in.

    Stamps are given as `given_stamps` takes them: an array of any real type and byte order, masked
    or not; a tensor; an `~astropy.nddata.NDData` or `~astropy.nddata.CCDData`; the name of a FITS
    file or of a folder of them; or a list of those. With one band, three axes are (N, H, W); with
    more, (C, H, W). NaN and masked pixels are left out, and the log warns of stamps that have no
    good pixel. An uncertainty takes the place of the noise that is measured in the sky, where the
    likelihood asks for it. Another size than the model's is centre-cropped or padded.
    """

    network: Network
    likelihood: Likelihood
    prior: Prior
    normalizer: Normalizer
    stamp_shape: tuple[int, int, int]
    band_names: list[str]
    latent_dim: int

    def embed(self, raw: Stamps, batch_size: int = 256) -> np.ndarray:
        """Posterior means of raw stamps.

        Parameters
        ----------
        raw : array, Tensor, NDData, CCDData, str, Path, or a list of those
            Pixels in the units of the telescope; see `ArrayCalls`.
        batch_size : int
            Stamps at a time.

        Returns
        -------
        ndarray, shape (N, Z), float32

        Raises
        ------
        InputError
            Another number of bands or of axes, pixels that are no real numbers, units that differ,
            no stamps, a file that cannot be read.
        """
        with self._in_use():
            means = [
                self.network.encode(normalized.image).mean
                for normalized in self._normalized(raw, batch_size)
            ]
            return _array(means)

    def reconstruct(self, raw: Stamps, batch_size: int = 256) -> np.ndarray:
        """What the model makes of raw stamps, shape (N, C, H, W), float32, in their own units.

        Parameters and errors are those of `embed`. H and W are the model's.
        """
        with self._in_use():
            made = [
                self.normalizer.invert(self(each.image, each.mask, each.noise), each.scale)
                for each in self._normalized(raw, batch_size)
            ]
            return _array(made)

    def log_likelihood(self, raw: Stamps, n_samples: int = 32, batch_size: int = 256) -> np.ndarray:
        r"""How likely each raw stamp is under the model: the importance-weighted bound.

        A lower bound on :math:`\ln p(x)` of the good pixels, normalised, that rises with
        ``n_samples`` (Burda et al. 2016; `importance_weighted`). The same stamps at the same places
        give the same numbers, whatever the batches.

        Parameters
        ----------
        raw, batch_size
            As `embed` has them.
        n_samples : int
            Codes drawn for each stamp; each is decoded.

        Returns
        -------
        ndarray, shape (N,), float64
            In nats; 0 for a stamp without a good pixel, up to the latent part's scatter.

        Raises
        ------
        InputError
            As `embed`; ``n_samples`` below 1.
        """
        with self._in_use():
            bounds: list[Tensor] = []
            first = 0
            for each in self._normalized(raw, batch_size):
                index = torch.arange(first, first + len(each.image), device=self._place)
                batch = {"image": each.image, "mask": each.mask, "noise": each.noise}
                bounds.append(importance_weighted(self, {**batch, "index": index}, n_samples))
                first += len(index)
            return _array(bounds)

    def sample(self, n: int, seed: int = 0, batch_size: int = 256) -> np.ndarray:
        """Stamps that the model imagines: the expected pixels of codes drawn from the prior.

        Parameters
        ----------
        n : int
            How many.
        seed : int
            Of the codes: the same seed gives the same stamps.
        batch_size : int
            Stamps at a time.

        Returns
        -------
        ndarray, shape (n, C, H, W), float32
            Normalised pixels: in units of the sky noise under the stretch of the model.

        Raises
        ------
        InputError
            A number that is out of range.
        """
        check_int("n", n, minimum=1)
        check_int("seed", seed, minimum=0, maximum=LARGEST_SEED)
        generator = torch.Generator().manual_seed(seed)
        check_int("batch_size", batch_size, minimum=1)
        with self._in_use():
            codes = self.prior.sample(n, generator).to(self._place)
            return _array([self.decode(z) for z in codes.split(batch_size)])

    def decode(self, z: Tensor) -> Tensor:
        """Expected pixels (B, C, H, W) of code ``z`` (B, Z), normalised; as the decoder has it."""
        return self.likelihood.location(self.network.decode(z))

    def evaluation_noise(self, index: Tensor) -> Tensor:
        """Standard normal noise (B, Z) that the stamps of ``index`` (B,) keep in evaluation."""
        return noise_of_stamps(index, self.latent_dim)

    @property
    def _place(self) -> torch.device:
        """Of the weights: Lightning's `device` is not told where a module around this one goes."""
        return next(self.parameters()).device

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Evaluation mode and no gradients, for as long as it takes."""
        with in_evaluation(self), torch.inference_mode():
            yield

    def _normalized(self, raw: Stamps, batch_size: int) -> Iterator[NormalizedStamps]:
        size = self.stamp_shape[1]
        pieces = given_stamps(raw, self.band_names, size)
        n_blank = n = 0
        for pixels, noise in in_batches(pieces, size, batch_size):
            if noise is not None:
                noise = noise.to(self._place)
            normalized = self.normalizer(pixels.to(self._place), noise=noise)
            n_blank += int((~normalized.mask.flatten(1).any(1)).sum())
            n += len(pixels)
            yield normalized
        if n_blank:
            log.warning(
                "%d of %d stamps have no good pixel: what is said of them is what the model says "
                "of nothing",
                n_blank,
                n,
            )


def _array(parts: list[Tensor]) -> np.ndarray:
    joined: np.ndarray = torch.cat(parts).cpu().numpy()
    return joined
