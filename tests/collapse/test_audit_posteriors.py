"""Where a model has its posterior, and where its code goes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import CODES, STAMPS, D, HasParts, Parts, Z, same
from torch import Tensor, nn

from vae_astro.collapse.audit.adapters import AnySubject, _equal
from vae_astro.collapse.audit.calls import Call, reseed
from vae_astro.collapse.audit.outputs import Reading


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


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


class Heads(nn.Module):
    """Two heads deep inside; a head may be more than a layer."""

    def __init__(self, above: str, spread: str) -> None:
        super().__init__()
        heads = nn.ModuleDict({"mu": nn.Linear(D, Z), spread: nn.Linear(D, Z)})
        self.net = nn.ModuleDict({above: heads})
        self.posterior = heads["mu"], heads[spread]
        self.out = nn.Linear(Z, D)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = (head(x.flatten(1)) for head in self.posterior)
        return self.out(mean + spread.exp() * torch.randn_like(mean)).view(-1, 1, 4, 4)


@pytest.mark.parametrize(
    ("above", "spread", "claim"),
    [("heads", "log_sigma", "log_std"), ("log_std_and_mu", "var", None), ("heads", "sigma", None)],
)
def test_layers_are_known_by_the_last_part_of_their_name(above, spread, claim):
    module = Heads(above, spread)
    _, reading = read(module)
    assert same(reading.mean, module.posterior[0](STAMPS.flatten(1)))
    assert same(reading.spread, module.posterior[1](STAMPS.flatten(1)))
    assert reading.claim == claim


@pytest.mark.parametrize(("name", "claim"), [("log_std", "log_std"), ("spread", None)])
def test_a_spread_without_a_name_is_what_the_part_that_made_it_is_called(name, claim):
    class Made(Parts):
        def __init__(self) -> None:
            super().__init__()
            self.log_std_of_nothing = nn.Linear(D, Z)
            self.add_module(name, nn.Sequential(nn.Linear(D, Z), nn.Tanh()))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            mean, _ = self.posterior(x)
            self.log_std_of_nothing(x.flatten(1))
            spread = getattr(self, name)(x.flatten(1))
            return self.picture(mean + spread.exp() * torch.randn_like(mean)), mean, spread

    assert read(Made())[1].claim == claim


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
