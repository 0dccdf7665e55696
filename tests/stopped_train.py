"""``train.py`` that sends itself a signal in the middle of one step: STEP SIGNAL [OVERRIDES...]."""

import os
import runpy
import signal
import sys
from pathlib import Path

from vae_astro.vae import VAE

step, name = int(sys.argv.pop(1)), sys.argv.pop(1)
training_step = VAE.training_step


def stopped_step(self: VAE, batch: object, batch_idx: int) -> object:
    if self.global_step == step:
        os.kill(os.getpid(), signal.Signals[name])
    return training_step(self, batch, batch_idx)


VAE.training_step = stopped_step
train = Path(__file__).parents[1] / "train.py"
sys.argv[0] = str(train)
runpy.run_path(str(train), run_name="__main__")
