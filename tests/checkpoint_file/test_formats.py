"""Checkpoints that earlier versions wrote.

Those in ``tests/data/checkpoints`` were written by early commits of this repository, for 60
simulated stamps of 16x16: ``first`` (0c48180) and ``before_format_2`` (b072383) with
``model=linear model.latent_dim=2``; ``network_of_an_hour`` (f8537db) with ``model=conv``, whose
layers were others for a while, its weights replaced by zeros.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoints import save, tiny_vae

from vae_astro import VAE
from vae_astro.checkpoint import RandomState, refuse_other_weights, refuse_without_state
from vae_astro.checkpoint_file import CHECKPOINT_FORMAT, load_checkpoint
from vae_astro.checkpoint_file.formats import MIGRATIONS
from vae_astro.collapse.monitor import CollapseMonitor
from vae_astro.errors import InputError

OLD = Path(__file__).parents[1] / "data" / "checkpoints"


def test_each_format_has_a_way_to_the_next() -> None:
    assert list(MIGRATIONS) == list(range(1, CHECKPOINT_FORMAT))


def test_the_first_checkpoints_embed_as_the_code_that_wrote_them_did() -> None:
    raw = np.random.default_rng(0).normal(100, 10, (3, 1, 16, 16)).astype("f4")
    expected = [[-0.0722188, 0.4356904], [0.1583261, 0.2703414], [-0.3214574, -0.5099882]]
    found = VAE.load_from_checkpoint(OLD / "first.ckpt").embed(raw)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # sums in another order elsewhere


@pytest.mark.parametrize("name", ["first", "before_format_2"])
def test_what_a_run_goes_on_with_is_brought_to_the_newest_format(name: str) -> None:
    assert torch.load(OLD / f"{name}.ckpt", weights_only=True)["vae_astro"]["format"] == 1
    checkpoint = load_checkpoint(OLD / f"{name}.ckpt")
    assert checkpoint["vae_astro"]["format"] == CHECKPOINT_FORMAT
    assert checkpoint["vae_astro"]["state"] == {}
    callbacks = checkpoint["callbacks"]
    assert sum(key.startswith("BestCheckpoint{") for key in callbacks) == 1
    assert set(callbacks["RandomState"]) == set(RandomState().state_dict())
    monitor = CollapseMonitor("warn")
    if monitor.state_key in callbacks:
        monitor.load_state_dict(callbacks[monitor.state_key])
    assert bool(monitor.validations) == (name == "before_format_2")
    path = OLD / f"{name}.ckpt"
    refuse_other_weights(VAE.load_from_checkpoint(path), checkpoint["state_dict"], path)
    refuse_without_state(checkpoint, path)


def test_a_network_that_has_changed_since_is_refused_with_the_weights_that_differ() -> None:
    with pytest.raises(InputError, match=r"weights differ \(network.encoder.trunk.2") as caught:
        VAE.load_from_checkpoint(OLD / "network_of_an_hour.ckpt")
    assert caught.match("load it with the vae_astro that wrote it")


def test_what_is_written_now_is_of_the_newest_format(tmp_path: Path) -> None:
    saved = torch.load(save(tiny_vae(), tmp_path / "new.ckpt"), weights_only=True)
    assert saved["vae_astro"]["format"] == CHECKPOINT_FORMAT
