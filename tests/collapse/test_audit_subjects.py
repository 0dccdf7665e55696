"""How a model is spoken to: which call works, where its posterior is, where its code goes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_subjects import Told
from torch import Tensor, nn

from vae_astro.collapse.audit.adapters import AnySubject, OwnSubject, _composed, _equal, adapt
from vae_astro.collapse.audit.calls import Call, reseed
from vae_astro.collapse.audit.outputs import Reading
from vae_astro.errors import InputError
from vae_astro.vae import VAE

N, Z, D = 4, 3, 16
DRAW = torch.Generator().manual_seed(0)
STAMPS = torch.randn(N, 1, 4, 4, generator=DRAW)
CODES = torch.randn(N, Z, generator=DRAW)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Parts(nn.Module):
    """Encoder and decoder of one layer each; how they are put together is for subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(D, 2 * Z)
        self.out = nn.Linear(Z, D)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.into(x.flatten(1)).chunk(2, 1)
        return mean, log_var

    def picture(self, z: Tensor) -> Tensor:
        return self.out(z).view(-1, 1, 4, 4)

    def drawn(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)


class Plain(Parts):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mean, log_var = self.posterior(x)
        return self.picture(self.drawn(mean, log_var)), mean, log_var


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


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


class HasParts(Parts):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.picture(z)


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


# -- where the posterior is ----------------------------------------------------------------------


def read(module: nn.Module) -> tuple[AnySubject, Reading]:
    subject = AnySubject(module, STAMPS)
    return subject, subject.run(STAMPS, CODES)


class OfPart(nn.Module):
    """The posterior is what a part returns; forward returns the output alone."""

    def __init__(self, name: str, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.name = name
        self.stem = nn.Flatten()
        self.add_module(name, Encoder(give))
        self.decoder = nn.Linear(Z, D)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = getattr(self, self.name).layer(x.flatten(1)).chunk(2, 1)
        return mean, spread

    def forward(self, x: Tensor) -> Tensor:
        code = getattr(self, self.name)(self.stem(x))
        while not isinstance(code, Tensor):
            code = next(iter(code.values() if isinstance(code, dict) else code))
        return self.decoder(code).view(-1, 1, 4, 4)


class Encoder(nn.Module):
    """Hands on its numbers in any packing."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(D, 2 * Z)
        self.give = give

    def forward(self, x: Tensor) -> Any:
        return self.give(*self.layer(x).chunk(2, 1))


class MeanAlone(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"mu": x[:, :Z] + 1}


@pytest.mark.parametrize("name", ["encoder", "body"])
@pytest.mark.parametrize(
    ("give", "claim"),
    [
        (lambda mean, spread: {"mu": mean, "log_std": spread}, "log_std"),
        (lambda mean, spread: (mean, spread), None),
        (lambda mean, spread: (mean, spread, mean.clone()), None),
    ],
)
def test_a_posterior_that_only_a_part_returns_is_heard(name, give, claim):
    module = OfPart(name, give)
    subject, reading = read(module)
    mean, spread = module.posterior(STAMPS)
    assert same(reading.mean, mean)
    assert same(reading.spread, spread)
    assert reading.claim == claim
    assert same(reading.code, CODES)
    assert same(reading.recon, module.decoder(CODES).view(-1, 1, 4, 4))
    assert subject.reaches_code


def test_a_part_with_a_mean_alone_is_passed_over_for_one_with_both():
    class Early(OfPart):
        def __init__(self) -> None:
            super().__init__("body", lambda mean, spread: {"mu": mean, "log_var": spread})
            self.stem = nn.Sequential(nn.Flatten())
            self.before = MeanAlone()

        def forward(self, x: Tensor) -> Tensor:
            self.before(x.flatten(1))
            return super().forward(x)

    module = Early()
    _, reading = read(module)
    assert same(reading.mean, module.posterior(STAMPS)[0])
    assert same(reading.spread, module.posterior(STAMPS)[1])


def test_a_code_that_the_encoder_returns_alone_is_its_mean_without_a_spread():
    module = OfPart("encoder", lambda mean, spread: mean)
    subject, reading = read(module)
    assert same(reading.mean, module.posterior(STAMPS)[0])
    assert reading.spread is None
    assert (subject.code_shape, subject.reaches_code) == ((Z,), True)
    assert same(reading.recon, module.decoder(CODES).view(-1, 1, 4, 4))
    other, silent = read(OfPart("body", lambda mean, spread: mean))  # no name that tells
    assert (silent.mean, other.code_shape) == (None, ())


def test_a_code_that_encode_returns_alone_is_its_mean():
    class Codes(HasParts):
        def encode(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.posterior(x)[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.decode(self.encode(x))

    module = Codes()
    _, reading = read(module)
    assert same(reading.mean, module.posterior(STAMPS)[0])


def test_layers_are_known_by_the_last_part_of_their_name():
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            heads = {"mu": nn.Linear(D, Z), "log_sigma": nn.Linear(D, Z)}
            self.net = nn.ModuleDict({"heads": nn.ModuleDict(heads)})
            self.out = nn.Linear(Z, D)

        def forward(self, x: Tensor) -> Tensor:
            heads = self.net["heads"]
            mean, spread = heads["mu"](x.flatten(1)), heads["log_sigma"](x.flatten(1))
            return self.out(mean + spread.exp() * torch.randn_like(mean)).view(-1, 1, 4, 4)

    module = Nested()
    _, reading = read(module)
    assert same(reading.mean, module.net["heads"]["mu"](STAMPS.flatten(1)))
    assert same(reading.spread, module.net["heads"]["log_sigma"](STAMPS.flatten(1)))
    assert reading.claim == "log_std"


class OfLayers(nn.Module):
    """The posterior is what two layers of these names return."""

    def __init__(self, mean: str, spread: str, width: int = Z) -> None:
        super().__init__()
        self.names = mean, spread
        self.add_module(mean, nn.Linear(D, Z))
        self.add_module(spread, nn.Linear(D, width))
        self.out = nn.Linear(Z, D)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = (getattr(self, name)(x.flatten(1)) for name in self.names)
        return mean, spread

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.posterior(x)
        noise = torch.exp(0.5 * spread[:, :Z]) * torch.randn_like(mean)
        return self.out(mean + noise).view(-1, 1, 4, 4)


@pytest.mark.parametrize(
    ("mean", "spread", "claim"),
    [
        ("mu", "logvar", None),
        ("fc_mu", "fc_var", None),
        ("z_mean", "z_log_var", None),
        ("Mean2", "Sigma", None),
        ("loc", "log_scale", "log_std"),
        ("means", "fc_logstd", "log_std"),
        ("zmu", "log_sigma", "log_std"),
        ("mean_1", "log_sigma2", None),
        ("mean", "log_sigma_sq", None),
    ],
)
def test_a_posterior_of_two_layers_is_heard_by_their_names(mean, spread, claim):
    module = OfLayers(mean, spread)
    subject, reading = read(module)
    expected = module.posterior(STAMPS)
    assert same(reading.mean, expected[0])
    assert same(reading.spread, expected[1])
    assert reading.claim == claim
    assert same(reading.recon, module.out(CODES).view(-1, 1, 4, 4))
    assert subject.code_shape == (Z,)


@pytest.mark.parametrize(
    ("mean", "spread", "width"),
    [("mu", "other", Z), ("formula", "logvar", Z), ("meaning", "logvar", Z), ("mu", "logvar", 5)],
)
def test_layers_of_other_names_or_widths_are_no_posterior(mean, spread, width):
    subject, reading = read(OfLayers(mean, spread, width))
    assert (reading.mean, reading.spread, reading.code) == (None, None, None)
    assert (subject.code_shape, subject.latent_dim, subject.reaches_code) == ((), 0, False)


class Returns(Parts):
    """Returns mean, spread and code in any order."""

    def __init__(self, order: tuple[int, ...], noisy: bool = True) -> None:
        super().__init__()
        self.order, self.noisy = order, noisy

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mean, log_var = self.posterior(x)
        code = self.drawn(mean, log_var) if self.noisy else mean.clone()
        numbers = mean, log_var, code
        return self.picture(code), *(numbers[place] for place in self.order)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_of_three_nameless_numbers_the_one_that_is_drawn_anew_is_the_code(order):
    module = Returns(order)
    subject, _ = read(module)
    mean, log_var = module.posterior(STAMPS)
    reseed(1)
    reading = subject.run(STAMPS)
    reseed(1)
    assert same(reading.mean, mean)
    assert same(reading.spread, log_var)
    assert same(reading.code, module.drawn(mean, log_var))


@pytest.mark.parametrize(("order", "code_at"), [((0, 2, 1), 1), ((0, 1, 2), 2)])
def test_without_noise_the_code_is_the_one_that_equals_the_first(order, code_at):
    module = Returns(order, noisy=False)
    subject, reading = read(module)
    mean, log_var = module.posterior(STAMPS)
    assert same(reading.mean, mean)
    assert same(reading.spread, log_var)
    assert subject._roles == (*(k for k in (0, 1, 2) if k != code_at), code_at)


def test_without_noise_or_likeness_the_last_is_the_code():
    class Unlike(Parts):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            mean, log_var = self.posterior(x)
            return self.picture(mean), mean, log_var, mean + 1

    subject, _ = read(Unlike())
    assert subject._roles == (0, 1, 2)


# -- where the code goes in ----------------------------------------------------------------------


def test_a_model_that_draws_often_for_each_stamp_has_no_code_of_a_stamp():
    class Often(Parts):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            mean, log_var = self.posterior(x.repeat(2, 1, 1, 1))
            recon = self.picture(self.drawn(mean, log_var))[: len(x)]
            return {"recon": recon, "mu": mean, "log_var": log_var}

    _, reading = read(Often())
    assert reading.recon is not None
    assert (reading.mean, reading.spread, reading.code) == (None, None, None)


def test_a_layer_on_the_way_to_the_posterior_is_not_the_entry_of_the_decoder():
    class Wide(Parts):
        """Its posterior and what comes before have the width of the code as well."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.mean, self.log_var = (nn.Linear(n, Z) for n in (D, Z, Z))
            self.middle = nn.Linear(Z, Z)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            h = self.first(x.flatten(1))
            mean, log_var = self.mean(h), self.log_var(h)
            return self.picture(self.middle(self.drawn(mean, log_var))), mean, log_var

    subject, _ = read(Wide())
    assert subject._entry == Call("middle", 0)


def test_a_decoder_that_ignores_its_code_is_found_by_its_name_and_any_other_call_is_not():
    class Deaf(HasParts):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(Z, Z)

        def decode(self, z: Tensor) -> Tensor:
            return self.picture(0 * z)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            mean, log_var = self.posterior(x)
            code = self.drawn(mean, log_var)
            self.unused(code)
            return self.decode(code), mean, log_var

    subject, _ = read(Deaf())
    assert subject._entry == Call("decode()", 0)


def test_of_calls_without_effect_the_first_is_kept_where_there_is_no_other():
    class Unheard(Parts):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(Z, 1), nn.Linear(Z, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            mean, log_var = self.posterior(x)
            code = self.drawn(mean, log_var)
            self.one(code), self.two(code)
            return 0 * x + self.out.weight.mean(), mean, log_var

    subject, _ = read(Unheard())
    assert subject._entry == Call("one", 0)
    assert subject.reaches_code


def test_equal_are_the_same_numbers_in_any_shape():
    a = torch.arange(6.0)
    assert _equal(a, a.view(2, 3).clone())
    assert not _equal(a, a + 1)
    assert not _equal(a, a[:5])
    assert _equal(None, None)
    assert not _equal(a, None)
    assert not _equal(None, a)
