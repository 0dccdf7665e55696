"""A `VAE` that hyrax (lincc-frameworks) finds by its import path.

In a hyrax configuration: ``[model] name = "vae_astro.hyrax.HyraxVAE"``; settings under
``[vae_astro]``, whose defaults are in ``default_config.toml``. See docs/neighbours.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vae_astro.checkpoint import find_checkpoint, load_checkpoint
from vae_astro.data.normalize import NormalizedStamps
from vae_astro.errors import InputError
from vae_astro.parts import weights_at
from vae_astro.settings import check_int
from vae_astro.vae import VAE

try:
    from hyrax.models.model_registry import hyrax_model
except ImportError as error:
    raise ImportError(
        "vae_astro.hyrax needs hyrax: pip install 'vae-astro[hyrax]', or pip install hyrax"
    ) from error

__all__ = ["HyraxVAE"]

GROUPS = ("model", "likelihood", "beta", "optim", "normalize")
LARGEST_GRADIENT = 200.0
"""Norm that a gradient is cut to [nat per stamp], as ``trainer.gradient_clip_val`` has it."""


@hyrax_model
class HyraxVAE(nn.Module):
    """Trains, validates and infers as hyrax asks: raw stamps in, posterior means out.

    Parameters
    ----------
    config : mapping
        Hyrax's configuration; settings of the `VAE` under ``vae_astro``.
    data_sample : ndarray or Tensor, shape (B, C, H, W)
        What `prepare_inputs` makes of a stamp: the shape that the model is made for.

    Attributes
    ----------
    vae : VAE
        The model itself; ``vae.embed``, ``vae.reconstruct`` and the like work.

    Raises
    ------
    InputError
        Stamps that are not square, a setting that is unknown or out of range, or a part of the
        model that needs the training of this project: a learned prior, aggressive inference.
    """

    def __init__(self, config: Mapping[str, Any], data_sample: Any = None) -> None:
        super().__init__()
        self.config = config
        shape = tuple(np.shape(data_sample))
        if len(shape) != 4 or shape[2] != shape[3]:
            raise InputError(
                f"hyrax handed on a stamp of shape {shape}; expected (1, C, H, W) with H = W: let "
                "the data set have a getter get_image, and set data_set.crop_to"
            )
        settings = _plain(config["vae_astro"])
        self.total_steps = check_int("vae_astro.total_steps", settings["total_steps"], minimum=1)
        self._take(_new_vae(shape[1:], settings))
        self.criterion = None  # the loss is the ELBO

    def _take(self, vae: VAE) -> None:
        """Make ``vae`` the model, and an optimiser for it."""
        self.vae = vae
        vae.set_length(self.total_steps)
        self.n_steps = 0
        self.optimizer = vae.optim.optimizer(vae, fused=False)  # devices are still to be chosen

    @staticmethod
    def prepare_inputs(data_dict: "dict[str, Any]") -> "np.ndarray":  # noqa: UP037
        """Raw stamps (B, C, H, W), float32, of what hyrax has put together."""
        # hyrax keeps the source of this function alone beside the weights, and runs it from there
        import numpy as np

        image = np.asarray(data_dict["data"]["image"], dtype=np.float32)
        return image[:, None] if image.ndim == 3 else image

    def forward(self, batch: Tensor) -> Tensor:
        """Posterior means (B, Z) of raw stamps (B, C, H, W)."""
        return self.vae.network.encode(self._normalized(batch).image).mean

    def infer_batch(self, batch: Tensor) -> Tensor:
        """As `forward`: what hyrax keeps and shows."""
        with torch.no_grad():
            return self(batch)

    def train_batch(self, batch: Tensor) -> dict[str, Tensor]:
        """One optimiser step on raw stamps; the loss and its parts, in nats per stamp."""
        vae, stamps = self.vae, self._normalized(batch)
        if vae.prior.learns or vae.inference is not None:
            raise InputError(
                "a learned prior and optim.aggressive need train.py, which knows of epochs; hyrax "
                "can infer with their checkpoints: infer.model_weights_file"
            )
        image, mask, noise, _ = stamps
        if self.n_steps == 0 and not vae.is_prepared:  # weights may come from a run
            index = torch.arange(len(image), device=image.device)
            vae.prepare([{"image": image, "mask": mask, "noise": noise, "index": index}])
        controller = vae.schedule.controller
        trained = vae.parts.train(
            image,
            mask,
            noise,
            torch.randn(len(image), vae.latent_dim, device=image.device),
            weights_at(self.n_steps, vae.schedule, vae.likelihood.kl_weight, image.device),
            vae.schedule.free_bits_nats,
            controller,
            True,
        )
        if controller is not None and trained.controller is not None:
            controller.state = trained.controller.clone()
        self.optimizer.zero_grad()
        trained.loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self.n_steps += 1
        return {
            "loss": trained.loss.detach(),
            "reconstruction_nats": trained.reconstruction,
            "kl_nats": trained.kl,
        }

    def validate_batch(self, batch: Tensor) -> dict[str, Tensor]:
        """Minus the ELBO at beta = 1 and the KL, in nats per stamp; the same noise every time."""
        image, mask, noise, _ = self._normalized(batch)
        index = torch.arange(len(image), device=image.device)
        scores = self.vae.score(
            {"image": image, "mask": mask, "noise": noise, "index": index},
            self.vae.evaluation_noise(index),
        )
        return {"loss": -scores.elbo.nats.mean(), "kl_nats": scores.elbo.kl.mean()}

    def test_batch(self, batch: Tensor) -> dict[str, Tensor]:
        """As `validate_batch`."""
        return self.validate_batch(batch)

    def _normalized(self, batch: Tensor) -> NormalizedStamps:
        return self.vae.normalizer(batch.float())

    def get_extra_state(self) -> Tensor:
        """Steps taken: beta goes on from there."""
        return torch.tensor(self.n_steps)

    def set_extra_state(self, state: Tensor) -> None:
        """See `get_extra_state`."""
        self.n_steps = int(state)


_load_weights = HyraxVAE.load  # type: ignore[attr-defined]  # the decorator's


def _load(self: HyraxVAE, load_path: str | Path) -> None:
    """Weights that hyrax has saved, or a run folder or ``.ckpt`` of this project, as it is."""
    path = Path(load_path)
    if not path.is_dir() and path.suffix != ".ckpt":
        _load_weights(self, path)
        return
    path = find_checkpoint("model_weights_file", str(path))
    load_checkpoint(path)  # refuses what is none
    vae = VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    if vae.stamp_shape != self.vae.stamp_shape:
        raise InputError(
            f"{path} takes stamps of shape {vae.stamp_shape}, hyrax hands on "
            f"{self.vae.stamp_shape}: set data_set.crop_to"
        )
    device = next(self.parameters()).device
    self._take(vae.to(device))


HyraxVAE.load = _load  # type: ignore[attr-defined]


def _new_vae(shape: tuple[int, ...], settings: Mapping[str, Any]) -> VAE:
    # in a function of its own: Lightning looks for hyper-parameters in the constructors that it is
    # called from, and one that a decorator has changed confuses it
    given: dict[str, Any] = {group: settings.get(group) for group in GROUPS}
    return VAE(shape, **given)


def _plain(settings: Any) -> Any:
    """Settings of a TOML document as plain Python, which a checkpoint can carry."""
    if isinstance(settings, Mapping):
        return {str(key): _plain(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_plain(value) for value in settings]
    for kind in (bool, int, float, str):
        if isinstance(settings, kind):
            return kind(settings)
    return settings
