"""Any trainer reads checkpoints by the one door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO

from vae_astro.checkpoint_file.door import load_checkpoint

__all__ = ["read_by_the_door"]


class _ByTheDoor(CheckpointIO):
    """Writes and removes as the trainer's own, and reads by `load_checkpoint`."""

    def __init__(self, given: CheckpointIO) -> None:
        self.given = given

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        self.given.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        self.given.remove_checkpoint(path)

    def teardown(self) -> None:
        self.given.teardown()


def read_by_the_door(trainer: Trainer) -> None:
    """Have ``ckpt_path`` of `Trainer.fit` and the like read by `load_checkpoint`.

    Lightning's own way unpickles with ``weights_only=False`` where nothing else is said (as of
    2.6), and so runs what a checkpoint may hold.
    """
    given = trainer.strategy.checkpoint_io
    if not isinstance(given, _ByTheDoor):
        trainer.strategy.checkpoint_io = _ByTheDoor(given)
