"""Weights from a run of another size: what corresponds is taken, the rest is silent or new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import MODELS, PRIORS, save, settled, tiny_vae

from vae_astro.checkpoint import warm_start
from vae_astro.checkpoint.axes import Axis
from vae_astro.errors import InputError
from vae_astro.vae import VAE


def stamps_of(vae: VAE, n: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *vae.stamp_shape, generator=generator)


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: prior["name"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_run_of_the_same_sizes_is_taken_whole(
    tmp_path: Path, model: dict[str, Any], prior: dict[str, Any]
) -> None:
    given = settled(tiny_vae(model, prior=prior))
    vae = tiny_vae(model, prior=prior).eval()
    found = warm_start(vae, save(given, tmp_path / "run.ckpt"))
    image = stamps_of(vae)
    assert torch.equal(vae(image), given(image))
    assert all(each.how == "whole" or "earlier run" in each.why for each in found.weights)
    assert found.remarks == ()


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: prior["name"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_more_latent_units_leave_those_of_the_checkpoint_as_they_are(
    tmp_path: Path, model: dict[str, Any], prior: dict[str, Any]
) -> None:
    given = settled(tiny_vae(model, prior=prior))
    n = model["latent_dim"]
    vae = tiny_vae({**model, "latent_dim": n + 3}, prior=prior).eval()
    found = warm_start(vae, save(given, tmp_path / "run.ckpt"))
    image = stamps_of(vae)
    ours, theirs = vae.network.encode(image), given.network.encode(image)
    torch.testing.assert_close(ours.mean[:, :n], theirs.mean)
    torch.testing.assert_close(ours.log_var[:, :n], theirs.log_var)
    z = torch.zeros(5, n + 3)
    z[:, :n] = theirs.mean
    torch.testing.assert_close(vae.network.decode(z), given.network.decode(theirs.mean))
    assert "3 new" in found.remarks[0]
    whole = prior["name"] == "vamp"  # its stamps do not depend on the code
    pseudo = {each.how for each in found.weights if each.name.startswith("prior.p")}
    assert pseudo <= ({"whole"} if whole else {"new"})


@pytest.mark.parametrize("name", ["conv", "linear", "mlp", "question"])
def test_fewer_units_are_those_that_cost_most(tmp_path: Path, name: str) -> None:
    given = settled(tiny_vae(MODELS[name]))
    path = save(given, tmp_path / "run.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["CollapseMonitor"] = {
        "validations": [{"kl_per_unit_nats": [0.0, 2.0, 0.1, 3.0]}], "health": None, "rescues": []
    }  # fmt: skip
    torch.save(checkpoint, path)
    vae = tiny_vae({**MODELS[name], "latent_dim": 2}).eval()
    found = warm_start(vae, path)
    image = stamps_of(vae)
    mean = given.network.encode(image).mean[:, [1, 3]]
    torch.testing.assert_close(vae.network.encode(image).mean, mean)
    assert "those of the largest KL: 1, 3" in found.remarks[0]


@pytest.mark.parametrize("name", ["conv", "linear", "mlp", "question"])
def test_bands_go_by_their_names(tmp_path: Path, name: str) -> None:
    given = settled(tiny_vae(MODELS[name], (2, 16, 16), band_names=["g", "r"]))
    vae = tiny_vae(MODELS[name], (3, 16, 16), band_names=["r", "i", "g"]).eval()
    found = warm_start(vae, save(given, tmp_path / "run.ckpt"))
    image = stamps_of(vae)
    seen = given.network.encode(image[:, [2, 0]])
    torch.testing.assert_close(vae.network.encode(image).mean, seen.mean)
    drawn, theirs = vae.network.decode(seen.mean), given.network.decode(seen.mean)
    torch.testing.assert_close(drawn[:, [2, 0]], theirs)
    torch.testing.assert_close(drawn[:, 1], theirs.mean(1))
    assert "r, g by name" in found.remarks[0]
    assert all(each.how == "new" for each in found.weights if each.name.startswith("likelihood"))


@pytest.mark.parametrize("name", ["conv", "linear", "mlp", "question"])
def test_one_band_becomes_three_that_are_seen_as_one(tmp_path: Path, name: str) -> None:
    given = settled(tiny_vae(MODELS[name]))
    vae = tiny_vae(MODELS[name], (3, 16, 16)).eval()
    warm_start(vae, save(given, tmp_path / "run.ckpt"))
    image = stamps_of(given)
    seen = given.network.encode(image).mean
    three = vae.network.encode(image.expand(-1, 3, -1, -1)).mean
    torch.testing.assert_close(three, seen, atol=1e-5, rtol=1e-4)
    drawn = vae.network.decode(seen)
    torch.testing.assert_close(drawn, given.network.decode(seen).expand_as(drawn))


@pytest.mark.parametrize(("name", "size"), [("linear", 21), ("mlp", 21)])
def test_a_larger_stamp_is_seen_through_the_middle(tmp_path: Path, name: str, size: int) -> None:
    given = settled(tiny_vae(MODELS[name], (1, 16, 16)))
    vae = tiny_vae(MODELS[name], (1, size, size)).eval()
    found = warm_start(vae, save(given, tmp_path / "run.ckpt"))
    image = stamps_of(vae)
    first = size // 2 - 8  # as stamps are cropped
    middle = image[:, :, first : first + 16, first : first + 16]
    seen = given.network.encode(middle).mean
    torch.testing.assert_close(vae.network.encode(image).mean, seen)
    drawn = vae.network.decode(seen)
    inside = drawn[:, :, first : first + 16, first : first + 16]
    torch.testing.assert_close(inside, given.network.decode(seen))
    assert drawn[:, :, 0].abs().max() == 0
    assert "16x16 in the checkpoint, 21x21 here" in found.remarks[0]


@pytest.mark.parametrize("size", [16, 48, 33])
@pytest.mark.parametrize("name", ["conv", "rings", "question"])
def test_convolutions_do_not_mind_the_size_of_the_stamps(
    tmp_path: Path, name: str, size: int
) -> None:
    given = settled(tiny_vae(MODELS[name], (1, 32, 32)))
    vae = tiny_vae(MODELS[name], (1, size, size)).eval()
    found = warm_start(vae, save(given, tmp_path / "run.ckpt"))
    assert "new" not in {e.how for e in found.weights if e.name.startswith("network.") and e.theirs}
    assert vae(stamps_of(vae)).isfinite().all()
    if name == "rings":
        assert float(vae.network.encoder.rings.outer_radius) == 6.0


def test_rings_that_do_not_fit_into_a_small_stamp_are_its_own(tmp_path: Path) -> None:
    given = settled(tiny_vae(MODELS["rings"], (1, 32, 32)))
    given.network.encoder.rings.reach(12.0)
    vae = tiny_vae(MODELS["rings"], (1, 16, 16))
    found = warm_start(vae, save(given, tmp_path / "run.ckpt"))
    assert float(vae.network.encoder.rings.outer_radius) == 8.0
    assert float(vae.network.encoder.rings.level) == 0.0
    by_rings = [e for e in found.weights if ".shape_" in e.name or ".rings." in e.name]
    assert {each.why for each in by_rings} == {"measured in other rings"}


def test_what_differs_otherwise_is_said_and_starts_anew(tmp_path: Path) -> None:
    given = settled(tiny_vae(MODELS["linear"], normalize={"softening": 3.0}))
    path = save(given, tmp_path / "run.ckpt")
    vae = tiny_vae(MODELS["linear"], likelihood={"name": "student_t"}, normalize={"softening": 1.0})
    found = warm_start(vae, path)
    assert "softening=3.0 in the checkpoint, softening=1.0 here" in " ".join(found.remarks)
    scale = [each for each in found.weights if each.name.startswith("likelihood.") and each.ours]
    assert {each.how for each in scale} == {"new"}
    assert found.lines()[0].split() == ["weights", "whole", "in", "part", "new"]
    assert found.lines()[1].split() == ["network.encoder", "3", "0", "0"]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "conv"])
def test_another_network_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = save(tiny_vae(MODELS["conv"]), tmp_path / "run.ckpt")
    with pytest.raises(InputError, match=f"is of model=conv, .*model={name}; choose model=conv"):
        warm_start(tiny_vae(MODELS[name]), path)


def test_a_network_of_other_widths_takes_nothing_and_says_so(tmp_path: Path) -> None:
    path = save(tiny_vae({"name": "mlp", "latent_dim": 4, "hidden": [9]}), tmp_path / "run.ckpt")
    with pytest.raises(InputError, match="no weight fits this network"):
        warm_start(tiny_vae({"name": "mlp", "latent_dim": 4, "hidden": [7]}), path)


def test_a_pose_is_put_around_a_network_without(tmp_path: Path) -> None:
    given = settled(tiny_vae(MODELS["conv"]))
    vae = tiny_vae({**MODELS["conv"], "pose": "rotation_shift"}).eval()
    found = warm_start(vae, save(given, tmp_path / "run.ckpt"))
    image = stamps_of(vae)
    torch.testing.assert_close(
        vae.network.encode(image).mean[:, :4], given.network.encode(image).mean
    )
    assert found.taken > 40


# Axes


def test_cells_of_an_odd_difference_lie_between_two() -> None:
    taken = Axis.cells(3, 2).take(torch.tensor([1.0, 3.0]), 0)
    assert taken.tolist() == [1.0, 2.0, 3.0]
    assert Axis.cells(1, 2).take(torch.tensor([1.0, 3.0]), 0).tolist() == [2.0]
    assert Axis.cells(4, 2).take(torch.tensor([1.0, 3.0]), 0).tolist() == [0.0, 1.0, 3.0, 0.0]


def test_axes_within_one_another_lie_as_flatten_lays_them() -> None:
    theirs = torch.arange(6.0).view(2, 3)
    both = Axis.of([1, None], 2).times(Axis.of([2, 0], 3))
    assert both.take(theirs.flatten(), 0).tolist() == [5.0, 3.0, 0.0, 0.0]
    assert both.known.tolist() == [True, True, False, False]
    assert Axis.same(2).times(Axis.same(3)).is_same
    assert Axis.same(2).then(Axis.same(3)).is_same
