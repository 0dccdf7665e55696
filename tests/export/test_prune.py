"""Inactive units go, and nothing that the model says changes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exported_models import MODELS, PRIORS, batch_of, images, raw_stamps, tiny_vae

from vae_astro.errors import InputError
from vae_astro.export import load_safetensors, prune, save_safetensors
from vae_astro.model.priors import MixturePrior, VampPrior
from vae_astro.vae import VAE

pruning = importlib.import_module("vae_astro.export.prune")  # prune itself is a function

CONSTANT = 0.7
"""What a silenced unit says of every stamp: not 0, or a decoder that forgets it would pass."""

HEADS = {
    "conv": "head",
    "linear": "mean",
    "mlp": "head",
    "question": "mean",
    "d4": "head",
    "pose": "encoder.head",
    "minimum_rate": "head",
}
REST_FROM = 6
"""First rest unit of the rings: 3 of shape, 1 of flux, 2 of background come before."""


def silence(vae: VAE, model: str, unit: int) -> None:
    """Make the posterior mean of a unit `CONSTANT`."""
    encoder = vae.network.encoder
    with torch.no_grad():
        if model == "rings" and unit < REST_FROM:
            encoder.shape_mean.residual[2].weight[unit] = 0
            head, row = encoder.shape_mean.linear, unit
        elif model == "rings":
            head, row = encoder.rest.head, unit - REST_FROM
        else:
            head, row = encoder.get_submodule(HEADS[model]), unit
        head.weight[row] = 0
        head.bias[row] = CONSTANT


SILENT = dict.fromkeys(HEADS, (1, 3)) | {"rings": (1, 7)}


def drawn(vae: VAE, z: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return vae.decode(z).numpy()


@pytest.mark.parametrize("model", MODELS)
def test_silent_units_go_and_codes_and_reconstructions_stay(model: str, tmp_path) -> None:
    vae = tiny_vae(model)
    for unit in SILENT[model]:
        silence(vae, model, unit)
    result = prune(vae, [batch_of(vae)], active_variance=1e-8)
    small = result.vae
    kept = [unit for unit in range(vae.latent_dim) if unit not in SILENT[model]]
    assert result.kept == kept
    assert small.latent_dim == vae.latent_dim - 2
    stamps = raw_stamps()
    before = vae.embed(stamps)
    np.testing.assert_allclose(small.embed(stamps), before[:, kept], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        drawn(small, torch.from_numpy(before[:, kept])),
        drawn(vae, torch.from_numpy(before)),
        rtol=1e-4,
        atol=1e-5,
    )
    assert result.largest_change < 1e-3
    save_safetensors(small, tmp_path)  # an ordinary model: its settings make it anew
    np.testing.assert_array_equal(load_safetensors(tmp_path).embed(stamps), small.embed(stamps))


def test_the_model_that_was_given_is_not_changed() -> None:
    vae = tiny_vae("conv")
    silence(vae, "conv", 2)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    prune(vae, [batch_of(vae)])
    assert vae.hparams["model"]["latent_dim"] == 4
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_units_are_judged_in_evaluation_mode_and_the_mode_is_given_back() -> None:
    vae = tiny_vae("minimum_rate")
    silence(vae, "minimum_rate", 1)
    expected = prune(vae, [batch_of(vae)])
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.train()
    vae.network.encoder.eval()
    modes = {name: part.training for name, part in vae.named_modules()}
    result = prune(vae, [batch_of(vae)])
    assert result.units == expected.units  # in training the means would depend on the batch
    assert {name: part.training for name, part in vae.named_modules()} == modes
    assert not result.vae.training
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_refusal_gives_the_mode_back_too() -> None:
    vae = tiny_vae("linear").train()
    with pytest.raises(InputError):
        prune(vae, [])
    assert vae.training


@pytest.mark.parametrize("model", MODELS)
def test_each_unit_that_stays_has_the_place_the_table_says(model: str) -> None:
    vae = tiny_vae(model)
    for unit in SILENT[model]:
        silence(vae, model, unit)
    batch = batch_of(vae)
    result = prune(vae, [batch], active_variance=1e-8)
    small, kept = result.vae, result.kept
    with torch.no_grad():
        before, after = (m.network.encode(batch["image"]) for m in (vae, small))
        torch.testing.assert_close(after.mean, before.mean[:, kept], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(after.log_var, before.log_var[:, kept], rtol=1e-5, atol=1e-5)
        kl = vae.prior.kl_per_unit(before)[:, kept]
        torch.testing.assert_close(small.prior.kl_per_unit(after), kl, rtol=1e-4, atol=1e-4)
    for units, units_after in (
        (vae.clustered_units, small.clustered_units),
        (vae.object_units, small.object_units),
    ):
        assert units_after == tuple(kept.index(unit) for unit in units if unit in kept)
    rows = [line.split() for line in str(result).splitlines()[1:-1]]
    gone = SILENT[model]
    assert [row[1] for row in rows] == [
        "-" if unit in gone else str(kept.index(unit)) for unit in range(vae.latent_dim)
    ]


@pytest.mark.parametrize("model", ["linear", "d4", "pose"])
def test_residuals_are_of_good_pixels_and_of_the_stamp_as_it_lies(model: str) -> None:
    vae = tiny_vae(model)
    unit = SILENT[model][0]
    batch = batch_of(vae)
    batch["mask"] = batch["mask"].clone()
    batch["mask"][:, :, :4] = False
    result = prune(vae, [batch], active_variance=1e-8)
    assert result.kept == list(range(vae.latent_dim))
    with torch.no_grad():
        z = vae.network.encode(batch["image"]).mean
        missed = batch["image"] - vae(batch["image"], batch["mask"], batch["noise"])
        moved = z.clone()
        moved[:, unit] = z[:, unit].mean()
        change = (vae.decode(moved) - vae.decode(z)).square().flatten(1).mean(1).max()
        expected = float((change / missed[batch["mask"]].square().mean()).sqrt())
        whole = pruning._Whole(vae, z, z.mean(0), [batch])
        assert whole.change_without([unit])[1] == pytest.approx(expected, rel=1e-4)


def test_stamps_without_a_good_pixel_are_no_reason_to_fail() -> None:
    vae = tiny_vae("linear")
    silence(vae, "linear", 1)
    batch = batch_of(vae)
    batch["mask"] = torch.zeros_like(batch["mask"])
    assert 1 not in prune(vae, [batch]).kept


def test_what_a_model_has_looked_at_stays_when_it_is_pruned() -> None:
    vae = tiny_vae("rings")
    silence(vae, "rings", 7)
    pruned = prune(vae, [batch_of(vae)]).vae
    assert pruned is not vae
    assert pruned.is_prepared


def test_the_table_says_which_units_went_and_why_others_stay() -> None:
    vae = tiny_vae("pose")
    silence(vae, "pose", 1)
    silence(vae, "pose", 6)  # of the pose: it cannot go
    result = prune(vae, [batch_of(vae)])
    assert [unit.pruned for unit in result.units] == [False, True, *6 * [False]]
    assert result.units[1].mean == pytest.approx(CONSTANT, abs=1e-5)
    assert result.units[1].variance < 1e-10
    assert "turns and moves" in result.units[6].reason
    table = str(result)
    assert "   1 " in table
    assert "pruned: inactive" in table
    assert "1 of 8 units pruned" in table


@pytest.mark.parametrize(
    ("model", "silent", "left"),
    [("linear", range(4), [0]), ("rings", (0, 1, 2, 6, 7), [0, 3, 4, 5, 6])],
)
def test_one_unit_of_each_kind_stays(model: str, silent: range, left: list[int]) -> None:
    vae = tiny_vae(model)
    for unit in silent:
        silence(vae, model, unit)
    assert prune(vae, [batch_of(vae)]).kept == left


def nearly_silent(vae: VAE, unit: int, stamps: torch.Tensor, std: float) -> None:
    """A unit of a linear encoder whose mean varies by so little over the stamps."""
    head = vae.network.encoder.mean
    with torch.no_grad():
        spread = vae.network.encode(stamps).mean[:, unit].std(correction=0)
        head.weight[unit] *= std / spread  # type: ignore[union-attr,operator]


def test_units_that_are_inactive_one_by_one_stay_where_together_they_would_move_a_picture() -> None:
    vae = tiny_vae("linear")
    stamps = images(vae.normalizer)
    decoder = vae.network.decoder.location
    for unit in (1, 2, 3):
        nearly_silent(vae, unit, stamps, 0.05)
        with torch.no_grad():  # the same picture three times; the codes go together
            vae.network.encoder.mean.weight[unit] = vae.network.encoder.mean.weight[1]
            decoder.weight[:, unit] = decoder.weight[:, 1]
    with torch.no_grad():
        residual = float((stamps - vae.decode(vae.network.encode(stamps).mean)).square().mean())
        code = vae.network.encode(stamps).mean[:, 1]
        moved = float(
            (code - code.mean()).abs().max() * decoder.weight[:, 1].square().mean().sqrt()
        )
        decoder.weight[:, 1:] *= 0.045 * residual**0.5 / moved  # 4.5 % alone, 13.5 % together
    result = prune(vae, [batch_of(vae)])
    assert all(unit.variance < 0.01 for unit in result.units[1:])
    assert sum(unit.pruned for unit in result.units) == 2
    assert result.share_of_residual <= 0.1
    (stays,) = (unit for unit in result.units[1:] if not unit.pruned)
    assert "together with the others" in stays.reason
    assert "a reconstruction" in stays.reason
    assert "% of what it misses its stamp by (10 % allowed)" in str(result)


def test_units_that_move_a_class_only_together_stay() -> None:
    vae = tiny_vae("linear", "mixture")
    for unit in (1, 2):
        silence(vae, "linear", unit)
    prior = vae.prior
    assert isinstance(prior, MixturePrior)
    with torch.no_grad():
        prior.raw_log_vars[:] = prior.raw_log_vars[0, 0]
        prior.means[:] = 0
        prior.means[:, 1:3] = CONSTANT
        variance = float(prior.log_vars[0, 1].exp())
        # 0.0035 nats a unit: each moves a probability by 0.0008, both by 0.0016
        prior.means[0, 1:3] = CONSTANT + (2 * variance * 0.0035) ** 0.5
    result = prune(vae, [batch_of(vae)])
    assert [unit.pruned for unit in result.units[1:3]].count(True) == 1
    assert any("would move classes" in unit.reason for unit in result.units)


def test_a_pruned_model_that_says_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vae = tiny_vae("linear")
    silence(vae, "linear", 1)
    cut = pruning._without

    def faulty(*args: Any) -> VAE:
        wrong = cut(*args)
        with torch.no_grad():
            wrong.network.decoder.location.bias += 0.1  # type: ignore[union-attr,operator]
        return wrong

    monkeypatch.setattr(pruning, "_without", faulty)
    with pytest.raises(InputError, match=r"pixels of the pruned model differ .* prune=false"):
        prune(vae, [batch_of(vae)])


def test_a_model_whose_units_are_all_active_is_given_back() -> None:
    vae = tiny_vae("linear")
    result = prune(vae, [batch_of(vae)])
    assert result.vae is vae
    assert result.kept == [0, 1, 2, 3]


def test_a_mixture_becomes_the_marginal_of_the_units_that_stay() -> None:
    vae = tiny_vae("linear", "mixture")
    silence(vae, "linear", 1)
    assert isinstance(vae.prior, MixturePrior)
    with torch.no_grad():
        vae.prior.means[:, 1] = 0.3
        vae.prior.raw_log_vars[:, 1] = vae.prior.raw_log_vars[0, 1]
    small = prune(vae, [batch_of(vae)]).vae
    assert isinstance(small.prior, MixturePrior)
    assert small.prior.n_components == 3
    z = torch.from_numpy(vae.embed(raw_stamps()))
    with torch.no_grad():
        before = vae.prior.responsibilities(z)
        torch.testing.assert_close(small.prior.responsibilities(z[:, [0, 2, 3]]), before)
        # the density of what stays is that of everything with the unit integrated out
        grid = torch.linspace(-12, 12, 4001)
        there = z[:1].expand(len(grid), -1).clone()
        there[:, 1] = grid
        marginal = torch.trapezoid(vae.prior.log_density(there).exp(), grid)
        ours = small.prior.log_density(z[:1, [0, 2, 3]]).exp()
    assert float(ours) == pytest.approx(float(marginal), rel=1e-4)


def test_a_unit_that_tells_classes_of_a_mixture_apart_stays() -> None:
    vae = tiny_vae("linear", "mixture")
    silence(vae, "linear", 1)
    with torch.no_grad():
        vae.prior.means[:, 1] = torch.tensor([-2.0, 0.0, 2.0])  # type: ignore[operator]
    result = prune(vae, [batch_of(vae)])
    assert result.kept == [0, 1, 2, 3]
    assert "components of prior=mixture differ" in result.units[1].reason


def test_a_vamp_prior_is_pruned_with_its_encoder() -> None:
    vae = tiny_vae("conv", "vamp")
    silence(vae, "conv", 0)
    small = prune(vae, [batch_of(vae)]).vae
    assert isinstance(vae.prior, VampPrior)
    assert isinstance(small.prior, VampPrior)
    with torch.no_grad():
        before, after = vae.prior.components(), small.prior.components()
    torch.testing.assert_close(after.mean, before.mean[:, 1:])
    torch.testing.assert_close(after.log_var, before.log_var[:, 1:])


@pytest.mark.parametrize("prior", PRIORS)
def test_the_rings_keep_their_classes_when_the_rest_is_pruned(prior: str) -> None:
    vae = tiny_vae("rings", prior)
    silence(vae, "rings", 6)
    small = prune(vae, [batch_of(vae)]).vae
    assert small.clustered_units == vae.clustered_units == (0, 1, 2)


def test_too_few_stamps_and_codes_that_are_not_finite_are_refused() -> None:
    vae = tiny_vae("linear")
    with pytest.raises(InputError, match="got 1; give more"):
        prune(vae, [{name: value[:1] for name, value in batch_of(vae).items()}])
    with torch.no_grad():
        vae.network.encoder.mean.bias.fill_(torch.nan)  # type: ignore[union-attr,operator]
    with pytest.raises(InputError, match="not finite"):
        prune(vae, [batch_of(vae)])


def test_the_limit_is_in_units_of_the_variance_under_the_prior() -> None:
    vae = tiny_vae("linear", "mixture")
    scale: Callable[[VAE], float] = lambda vae: float(vae.prior.unit_std()[0])  # noqa: E731
    with torch.no_grad():
        vae.prior.means.mul_(100)  # type: ignore[operator,union-attr]
    result = prune(vae, [batch_of(vae)])
    means = torch.from_numpy(
        vae.network.encode(images(vae.normalizer)).mean.detach().double().numpy()
    )
    expected = float(means[:, 0].var(correction=0)) / scale(vae) ** 2
    assert result.units[0].variance == pytest.approx(expected, rel=1e-5)
