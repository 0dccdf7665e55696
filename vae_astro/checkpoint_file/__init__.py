"""What lies in a checkpoint file, read and checked: the one door to ``torch.load``."""

from vae_astro.checkpoint_file.door import load_checkpoint
from vae_astro.checkpoint_file.find import find_checkpoint
from vae_astro.checkpoint_file.formats import CHECKPOINT_FORMAT
from vae_astro.checkpoint_file.rebuild import rebuilt
from vae_astro.checkpoint_file.trainers import read_by_the_door

__all__ = [
    "CHECKPOINT_FORMAT",
    "find_checkpoint",
    "load_checkpoint",
    "read_by_the_door",
    "rebuilt",
]
