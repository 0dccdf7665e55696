"""How a model is spoken to: which call works, and what its parts are put together to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import CODES, DRAW, STAMPS, HasParts, N, Parts, Plain, Z, same
from tiny_subjects import Told
from torch import Tensor, nn

from vae_astro.collapse.audit.adapters import AnySubject, OwnSubject, _composed, adapt
from vae_astro.collapse.audit.calls import reseed
from vae_astro.collapse.audit.outputs import Reading
from vae_astro.errors import InputError
from vae_astro.vae import VAE


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# -- any subject ---------------------------------------------------------------------------------


def test_share_of_pixels_that_a_pass_changes_and_none_where_it_changes_nothing():
    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x[:, 0] += 1
            return x

    stamps = torch.zeros(3, 4)
    assert Told(lambda x: Reading(), Adds()).changes(stamps) == 0.25
    assert torch.equal(stamps[:, 0], torch.ones(3))  # on these very stamps
    assert Told(lambda x: Reading()).changes(stamps) is None


def test_latent_units_are_counted_over_all_axes_and_0_where_unknown():
    assert Told(lambda x: Reading(), code_shape=(2, 3)).latent_dim == 6
    assert Told(lambda x: Reading(), code_shape=()).latent_dim == 0


def test_a_pass_without_need_of_an_output_is_a_pass():
    told = Told(lambda x: Reading(mean=2 * x))
    assert same(told.draw(CODES).mean, 2 * CODES)


# -- a model of this project ---------------------------------------------------------------------

FIELD = torch.randn(N, 1, 16, 16, generator=DRAW)


def own() -> OwnSubject:
    vae = VAE((1, 16, 16), model={"name": "linear", "latent_dim": Z})
    subject = adapt(vae, FIELD)
    assert isinstance(subject, OwnSubject)
    return subject


def test_own_model_is_read_by_its_parts():
    subject = own()
    posterior = subject.vae.network.encode(FIELD)
    assert (subject.interface, subject.code_shape, subject.reaches_code) == (
        "vae_astro",
        (Z,),
        True,
    )
    assert (subject.latent_dim, subject.module) == (Z, subject.vae)
    reseed(3)
    reading = subject.run(FIELD)
    reseed(3)
    code = posterior.mean + posterior.std * torch.randn(N, Z)
    torch.testing.assert_close(reading.code, code)
    torch.testing.assert_close(reading.recon, subject.vae.network.decode(code))
    assert same(reading.mean, posterior.mean)
    assert same(reading.spread, posterior.log_var)
    assert reading.claim == "log_var"
    reseed(3)
    drawn = subject.draw(FIELD)
    assert drawn.recon is None
    assert drawn.claim == "log_var"
    assert same(drawn.code, reading.code)
    assert same(drawn.mean, posterior.mean)
    assert same(drawn.spread, posterior.log_var)


def test_own_model_decodes_the_code_that_it_is_given():
    subject = own()
    reading = subject.run(FIELD, CODES)
    assert reading.code is CODES
    assert same(reading.recon, subject.vae.network.decode(CODES))
    assert same(reading.mean, subject.vae.network.encode(FIELD).mean)


@pytest.mark.parametrize("likelihood", ["gaussian", "noise"])
def test_own_model_that_turns_its_stamps_is_read_as_they_lie(likelihood):
    vae = VAE((1, 16, 16), model={"name": "conv", "latent_dim": Z, "symmetry": "d4"},
              likelihood={"name": likelihood})  # fmt: skip
    subject = OwnSubject(vae.eval())
    recon = subject.run(FIELD, CODES).recon
    good, alike = torch.ones_like(FIELD, dtype=torch.bool), torch.ones_like(FIELD)
    output = vae.likelihood.aligned(FIELD, vae.network.decode(CODES), good, alike)
    assert same(recon, vae.likelihood.location(output))


def test_own_model_shows_the_expected_pixels_and_not_what_the_decoder_emits():
    vae = VAE((1, 16, 16), model={"name": "linear", "latent_dim": Z},
              likelihood={"name": "bernoulli"}, normalize={"stretch": "minmax"})  # fmt: skip
    recon = OwnSubject(vae).run(FIELD.sigmoid(), CODES).recon
    assert same(recon, vae.likelihood.location(vae.network.decode(CODES)))
    assert not same(recon, vae.network.decode(CODES))


def test_own_model_may_change_the_stamps_of_a_pass_but_not_of_a_run():
    subject = own()
    seen = []
    encode = subject.vae.network.encode

    def spoiling(stamps: Tensor) -> Any:
        seen.append(stamps)
        posterior = encode(stamps.clone())
        stamps += 1
        return posterior

    subject.vae.network.encode = spoiling  # type: ignore[method-assign]
    stamps = FIELD.clone()
    subject.run(stamps)
    assert torch.equal(stamps, FIELD)
    assert subject.changes(stamps) == 1.0
    assert seen[-1] is stamps


def test_own_model_asks_for_stamps_of_its_shape():
    with pytest.raises(InputError) as refused:
        adapt(own().vae, FIELD[..., 1:])
    assert str(refused.value) == (
        "the stamps have shape (1, 16, 15), the model takes (1, 16, 16): set data.size, or give "
        "stamps with its bands"
    )


# -- which call works ----------------------------------------------------------------------------


class WantsFlat(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        assert x.ndim == 2
        recon, *posterior = super().forward(x)
        return recon.flatten(1), *posterior


class WantsData(Plain):
    def forward(self, inputs: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        assert same(inputs["data"], inputs.data)
        with pytest.raises(AttributeError, match=r"^mask$"):
            _ = inputs.mask
        return super().forward(inputs.data)


class OfPythae(Plain):
    """Takes both, and has what tells pythae's models; an array gets it nothing."""

    model_config = None

    def forward(self, inputs: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(inputs if isinstance(inputs, Tensor) else inputs["data"])


class HasFlatParts(HasParts):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.ndim == 2
        return super().encode(x)


class HasAll(HasParts, Plain):
    """A forward of its own comes before its parts."""


@pytest.mark.parametrize(
    ("kind", "interface"),
    [
        (Plain, "forward(stamps)"),
        (WantsFlat, "forward(flattened stamps)"),
        (WantsData, "forward({'data': stamps})"),
        (OfPythae, "forward({'data': stamps})"),
        (HasParts, "encode and decode"),
        (HasFlatParts, "encode and decode of flattened stamps"),
        (HasAll, "forward(stamps)"),
    ],
)
def test_the_first_call_that_works_is_kept(kind, interface):
    module = kind()
    subject = adapt(module, STAMPS)
    assert isinstance(subject, AnySubject)
    assert (subject.interface, subject.code_shape, subject.latent_dim) == (interface, (Z,), Z)
    assert (subject.reaches_code, subject.module) == (True, module)
    reading = subject.run(STAMPS, CODES)
    mean, log_var = module.posterior(STAMPS)
    assert same(reading.mean, mean)
    assert same(reading.spread, log_var)
    assert same(reading.code, CODES)
    assert same(reading.recon.view(N, 1, 4, 4), module.picture(CODES))


def test_a_model_that_nothing_works_with_is_told_every_way_that_was_tried():
    class Raises(nn.Module):
        def forward(self, x: Any) -> Any:
            if isinstance(x, dict):
                raise KeyError
            if x.ndim == 2:
                return "text"
            raise ValueError("first line\nsecond line")

    with pytest.raises(InputError) as refused:
        adapt(Raises(), STAMPS)
    assert str(refused.value) == (
        "Raises cannot be run on stamps of shape (4, 1, 4, 4). forward(stamps): ValueError: first "
        "line; forward(flattened stamps): it returned no tensor but str; "
        "forward({'data': stamps}): KeyError: ?"
    )


def test_a_model_with_nothing_like_stamps_in_its_output_is_told_what_to_return():
    class CodeAlone(Parts):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"mu": self.posterior(x)[0]}

    with pytest.raises(InputError) as refused:
        adapt(CodeAlone(), STAMPS)
    assert str(refused.value) == (
        "CodeAlone returned nothing that could be stamps of shape (4, 1, 4, 4); return the "
        "reconstruction first, or under the name recon"
    )


def test_the_callers_stamps_stay_as_they_are_until_a_pass_is_asked_for():
    class Changes(Plain):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            output = super().forward(x)
            x += 1
            return output

    stamps = STAMPS.clone()
    subject = adapt(Changes(), stamps)
    subject.run(stamps)
    assert torch.equal(stamps, STAMPS)
    assert subject.changes(stamps) == 1.0


def test_a_model_is_looked_at_in_evaluation_so_that_dropout_is_not_taken_for_sampling():
    modes = []

    class Tells(Plain):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            modes.append(self.training)
            return super().forward(x)

    adapt(Tells().train(), STAMPS)
    assert set(modes) == {False}


# -- models of parts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["reparameterize", "reparametrize", "reparameterise", "reparametrise"]
)
def test_parts_are_put_together_with_the_sampler_that_there_is(name):
    module = HasParts()
    setattr(module, name, lambda mean, spread: mean + 2 * spread)
    mean, log_var = module.posterior(STAMPS)
    output = _composed(module, STAMPS)
    assert same(output["recon"], module.picture(mean + 2 * log_var))
    assert same(output["posterior"][0], mean)


@pytest.mark.parametrize(
    ("encoded", "decoded"),
    [
        (lambda mean, spread: (mean, spread), lambda mean, spread: mean),
        (lambda mean, spread: {"mu": mean, "log_var": spread}, lambda mean, spread: mean),
        (lambda mean, spread: mean, lambda mean, spread: mean),
        # one that draws already is not asked to draw again
        (lambda mean, spread: {"mu": mean, "log_var": spread, "z": mean - spread},
         lambda mean, spread: mean - spread),
    ],
)  # fmt: skip
def test_parts_without_need_of_a_sampler_pass_on_what_they_have(encoded, decoded):
    class Composed(HasParts):
        def encode(self, x: Tensor) -> Any:
            return encoded(*self.posterior(x))

    module = Composed()
    mean, log_var = module.posterior(STAMPS)
    assert same(_composed(module, STAMPS)["recon"], module.picture(decoded(mean, log_var)))
    # a sampler is asked only where there are mean and spread, and no code
    module.reparameterize = lambda mean, spread: 0 * mean  # type: ignore[assignment]
    is_asked = decoded(mean, log_var) is mean and encoded(mean, log_var) is not mean
    recon = module.picture(0 * mean if is_asked else decoded(mean, log_var))
    assert same(_composed(module, STAMPS)["recon"], recon)


def test_parts_without_a_code_are_refused():
    class Composed(HasParts):
        def encode(self, x: Tensor) -> Any:
            return "text"

    with pytest.raises(TypeError, match=r"^encode returned nothing that could be a code$"):
        _composed(Composed(), STAMPS)
