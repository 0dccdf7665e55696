"""What a GPU does faster than as written: compiled steps, replayed graphs, TF32.

Weights, buffers and the keys of a checkpoint stay as they are: what is compiled is the function
that calls the modules, and it lies beside them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_astro.errors import InputError
from vae_astro.model.micro_batches import is_out_of_memory
from vae_astro.objective.geco import Geco
from vae_astro.parts import Evaluated, Parts, Trained, Weights
from vae_astro.vae import VAE

__all__ = [
    "CompiledParts",
    "allow_tf32",
    "check_compile",
    "compile_mode",
    "compile_parts",
    "plain_parts",
]

MODES = ("default", "reduce-overhead")
"""Of `torch.compile`: as it is, and with CUDA graphs."""

WORTHWHILE_STEPS = 20_000
"""Length of a run from which ``trainer.compile=auto`` compiles: it takes a minute or so."""
FEW_PIXELS = 2**21
"""In a batch, below which its kernels are shorter than the calls that start them."""


class CompiledParts(Parts):
    """`Parts` whose functions are compiled for the shape of their first batch.

    Other shapes, such as the last batch of a validation, go the plain way, so that nothing is
    compiled twice; so do a batch that a learned scale starts from, and all where memory ends.

    Parameters
    ----------
    parts : Parts
        What to compile.
    mode : {"default", "reduce-overhead"}
        Of the training step; evaluation, whose results are kept, has no replayed graphs.
    backend : str
        Of `torch.compile`.
    """

    def __init__(self, parts: Parts, mode: str = "default", backend: str = "inductor") -> None:
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
        super().__init__(parts.network, parts.likelihood, parts.prior, parts.normalizer)
        self.mode = mode
        replayed = mode if mode != "default" else None
        # of the plain parts, so that what is traced knows nothing of this object
        plain = Parts(parts.network, parts.likelihood, parts.prior, parts.normalizer)
        self._train = torch.compile(plain.train, backend=backend, mode=replayed, dynamic=False)
        self._evaluate = torch.compile(plain.evaluate, backend=backend, dynamic=False)
        self._train_shape: torch.Size | None = None
        self._evaluate_shape: torch.Size | None = None

    def train(
        self,
        image: Tensor,
        mask: Tensor,
        noise: Tensor,
        eps: Tensor,
        weights: Weights,
        free_bits_nats: float,
        controller: Geco | None,
        observes: bool,
    ) -> Trained:
        """See `Parts`."""
        given = (image, mask, noise, eps, weights, free_bits_nats, controller, observes)
        in_parts = self.network.micro_batches.n_training is not None
        if in_parts or not self.likelihood.started:
            return super().train(*given)
        if self._train_shape is None:
            self._train_shape = image.shape
        if image.shape != self._train_shape:
            return super().train(*given)
        if self.mode == "reduce-overhead":
            # gradients of the step before lie where the graphs will write
            for module in (self.network, self.likelihood, self.prior):
                for parameter in module.parameters():
                    parameter.grad = None
            torch.compiler.cudagraph_mark_step_begin()
        return self._train(*given)

    def evaluate(self, image: Tensor, mask: Tensor, noise: Tensor, eps: Tensor) -> Evaluated:
        """See `Parts`."""
        if self._evaluate_shape is None:
            self._evaluate_shape = image.shape
        if image.shape != self._evaluate_shape:
            return super().evaluate(image, mask, noise, eps)
        if self.network.micro_batches.n_evaluation is None:
            try:
                return self._evaluate(image, mask, noise, eps)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        return super().evaluate(image, mask, noise, eps)  # in parts


def compile_parts(vae: VAE, mode: str = "default", backend: str = "inductor") -> None:
    """Have ``vae`` train and evaluate with compiled functions; its modules stay what they are.

    Parameters
    ----------
    vae : VAE
        On the device that it will train on.
    mode, backend : str
        As `CompiledParts` has them.
    """
    vae.parts = CompiledParts(vae.parts, mode, backend)


def plain_parts(vae: VAE) -> None:
    """Undo `compile_parts`: for a few batches under other conditions nothing is compiled anew."""
    vae.parts = Parts(vae.network, vae.likelihood, vae.prior, vae.normalizer)


def check_compile(setting: object) -> bool | str:
    """``trainer.compile`` if it is true, false or ``auto``, else an `InputError`."""
    if not (isinstance(setting, bool) or setting == "auto"):
        raise InputError(f"trainer.compile must be auto, true or false, got {setting!r}")
    return setting


def compile_mode(
    setting: bool | str,
    device: torch.device,
    n_steps: int,
    batch_shape: tuple[int, int, int, int],
    *,
    n_ranks: int = 1,
    accumulates: bool = False,
) -> str | None:
    """How a run should be compiled; None: not at all.

    ``auto`` compiles one process on CUDA where the run is long enough to pay for it. CUDA graphs
    are taken for small batches, in one process: gradients that wait for the others, or for the next
    batch, lie where a replayed graph writes.

    Parameters
    ----------
    setting : bool or "auto"
        ``trainer.compile``.
    device : torch.device
        Where the run takes place.
    n_steps : int
        Optimiser steps still to be taken.
    batch_shape : tuple of int
        B, C, H, W.
    n_ranks : int
        Processes that train together.
    accumulates : bool
        Whether gradients of several batches are gathered for a step.
    """
    on_cuda = device.type == "cuda"
    if setting == "auto":
        setting = on_cuda and n_ranks == 1 and n_steps >= WORTHWHILE_STEPS
    if not setting:
        return None
    small = math.prod(batch_shape) < FEW_PIXELS
    return MODES[on_cuda and small and n_ranks == 1 and not accumulates]


def allow_tf32(device: torch.device, precision: str, deterministic: bool) -> bool:
    """Let dense layers in float32 multiply with ten bits of mantissa where a GPU has units for it.

    Convolutions do so without being told. Left alone with ``trainer.deterministic=true``, and where
    the layers compute in another precision anyway.

    Returns
    -------
    bool
        Whether it was allowed.
    """
    allowed = device.type == "cuda" and precision == "32-true" and not deterministic
    if allowed:
        torch.set_float32_matmul_precision("high")
    return allowed
