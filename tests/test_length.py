"""Steps of a run are counted as the trainer counts them, before it has begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from lightning import Trainer

from vae_astro import length
from vae_astro.checked import check, run_settings
from vae_astro.data.simulate import simulate
from vae_astro.errors import InputError
from vae_astro.folders import register_resolvers
from vae_astro.hardware import EPOCHS, USUAL_STEPS
from vae_astro.training import Pace, fit, new_vae

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{words}")
    for words in ("does not have many workers", "exists and is not empty", "isinstance.treespec")
]

CONF = Path(__file__).parents[1] / "conf"
N_BATCHES = 6  # of 48 training stamps


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sky") / "stamps"
    return simulate(root, n_stamps=60, seed=3, size=16, n_processes=1, progress=False)


def trainer_of(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        max_epochs=4, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "accumulate", "n_steps"),
    [(None, 1, 12), (3, 1, 6), (99, 1, 12), (0.5, 1, 6), (0.45, 1, 4), (None, 4, 4), (5, 2, 6)],
)
def test_a_fit_takes_the_steps_that_were_counted(
    sky: Path, tmp_path: Path, limit: float | None, accumulate: int, n_steps: int
) -> None:
    register_resolvers()
    words = [
        f"data.root={sky}", f"data.store_dir={sky.parent / 'stores'}", "data=fits", "model=linear",
        "model.latent_dim=2", "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=2",
        "callbacks.progress=false", "callbacks.time_share=0", "trainer.check_val_every_n_epoch=2",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = run_settings(compose("config", words), words)
    settings["trainer"] |= {"limit_train_batches": limit, "accumulate_grad_batches": accumulate}
    checked = check(settings, tmp_path / "run")
    attempt, datamodule = checked.attempt, checked.datamodule
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.batches_per_epoch() == N_BATCHES
    attempt.set_length(datamodule)
    vae = new_vae(settings, datamodule.store.stamp_shape)
    vae.prepare(datamodule.training_sample(48))
    pace = Pace()
    fit(attempt, vae, datamodule, None, pace)
    assert attempt.total_steps(datamodule) == n_steps == attempt.trainer.global_step
    # what the schedules of beta and the learning rate are laid out on
    assert vae.total_steps == n_steps == int(attempt.trainer.estimated_stepping_batches)
    taken = N_BATCHES if limit is None else int(limit * N_BATCHES) if limit < 1 else int(limit)
    assert pace.n_stamps == 2 * min(taken, N_BATCHES) * 8


def test_a_share_of_less_than_a_batch_is_refused_by_its_key() -> None:
    trainer = trainer_of(limit_train_batches=0.1)
    assert length.steps_per_epoch(trainer, 10) == 1
    with pytest.raises(InputError, match=r"trainer\.limit_train_batches=0\.1 of 9 batches"):
        length.steps_per_epoch(trainer, 9)


def test_the_share_1_is_all_batches_and_the_number_1_is_one() -> None:
    assert length.steps_per_epoch(trainer_of(limit_train_batches=1.0), 9) == 9
    assert length.steps_per_epoch(trainer_of(limit_train_batches=1), 9) == 1


def test_a_number_of_steps_ends_a_run_that_would_be_longer() -> None:
    assert length.total_steps(trainer_of(max_steps=7), 5) == 7
    assert length.total_steps(trainer_of(max_steps=70), 5) == 20


def test_the_length_that_is_left_open_counts_the_steps_that_are_taken() -> None:
    options = {"max_epochs": None, "check_val_every_n_epoch": None}
    trainer = trainer_of(limit_train_batches=0.25)
    length.set_length(trainer, options, 400)
    assert trainer.max_epochs == USUAL_STEPS // 100
    assert trainer.check_val_every_n_epoch == 1
    length.set_length(trainer, options, 40)
    assert trainer.max_epochs == USUAL_STEPS // 10
    assert trainer.check_val_every_n_epoch == 5
    trainer = trainer_of(limit_train_batches=1)
    length.set_length(trainer, options, 40)
    assert trainer.max_epochs == EPOCHS[1]
