"""Checkpoints of a run: what is kept, how it goes on, and what another run takes of it."""

from vae_astro.checkpoint.keeping import AtomicCheckpoints, BestCheckpoint, LastCheckpoint
from vae_astro.checkpoint.resume import (
    RandomState,
    carry_over,
    refuse_other_weights,
    refuse_without_state,
)
from vae_astro.checkpoint.warm_start import WarmStart, warm_start
from vae_astro.checkpoint_file import find_checkpoint, load_checkpoint

__all__ = [
    "AtomicCheckpoints",
    "BestCheckpoint",
    "LastCheckpoint",
    "RandomState",
    "WarmStart",
    "carry_over",
    "find_checkpoint",
    "load_checkpoint",
    "refuse_other_weights",
    "refuse_without_state",
    "warm_start",
]
