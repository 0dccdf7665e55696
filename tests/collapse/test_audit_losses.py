"""Losses of others, called with all that they depend on given from outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_subjects import Told, Weighed
from torch import Tensor, nn

from vae_astro.collapse.audit.adapters import AnySubject, OwnSubject
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.losses import (
    ForwardLoss,
    FunctionLoss,
    OwnLoss,
    objective_of,
    total,
)
from vae_astro.collapse.audit.outputs import Reading
from vae_astro.errors import InputError
from vae_astro.vae import VAE

N, Z = 3, 2
DRAW = torch.Generator().manual_seed(0)
STAMPS = torch.randn(N, 1, 4, 4, generator=DRAW)
RECON, NOISE = torch.randn(2, N, 1, 4, 4, generator=DRAW)
MEAN, SPREAD = torch.randn(2, N, Z, generator=DRAW)
GIVEN = (RECON, STAMPS, MEAN, SPREAD)


def told(**reading: Any) -> Told:
    """A subject whose pass gives a picture, a mean and a spread."""
    return Told(lambda x: Reading(**{"recon": x, "mean": MEAN[: len(x)], "spread": SPREAD[: len(x)],
                                     **reading}))  # fmt: skip


class Model(nn.Module):
    """Parts that can be swapped: the posterior in encode, the output in decode; a loss in all."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 2 * Z)
        self.back = nn.Linear(Z, 16)
        self.flat = flat

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.layer(x.flatten(1)).chunk(2, 1)
        return mean, spread

    def decode(self, z: Tensor) -> Tensor:
        return self.back(z).view(-1, 1, 4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.flat and x.ndim != 2:
            raise ValueError("flat stamps alone")
        mean, log_var = self.encode(x)
        recon = self.decode(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
        recon = recon.flatten(1) if self.flat else recon
        each = (recon - x).square().flatten(1).sum(1) + mean.square().sum(1) + 5 * log_var.sum(1)
        return {"recon": recon, "mu": mean, "log_var": log_var, "loss": each}


# -- a function ----------------------------------------------------------------------------------


def test_arguments_come_by_their_names_and_by_position():
    def named(mu: Tensor, recon_x: Tensor, *, logvar: Tensor, x: Tensor) -> Tensor:
        return 2 * mu.sum() + 3 * recon_x.sum() + 5 * logvar.sum() + 7 * x.sum()

    def placed(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return 3 * a.sum() + 7 * b.sum() + 2 * c.sum() + 5 * d.sum()

    expected = 3 * RECON.sum() + 7 * STAMPS.sum() + 2 * MEAN.sum() + 5 * SPREAD.sum()
    for function in (named, placed):
        objective = FunctionLoss(function, told(), STAMPS)
        torch.testing.assert_close(objective(*GIVEN), expected)
        assert (objective.takes_any_shape, objective.samples_code) == (True, False)
        assert objective.is_function


def test_of_several_numbers_the_one_that_all_arguments_enter_is_minimised():
    def parts(recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> tuple[Tensor, ...]:
        return recon.sum(), (recon.sum() + mu.sum() + log_var.sum()) * 1, mu.sum()

    objective = FunctionLoss(parts, told(), STAMPS)
    given = [each.clone().requires_grad_() for each in GIVEN]
    torch.testing.assert_close(objective(*given), RECON.sum() + MEAN.sum() + SPREAD.sum())


@pytest.mark.parametrize(
    ("claim", "to_std"),
    [
        (None, lambda s: (0.5 * s).exp()),
        ("log_var", lambda s: (0.5 * s).exp()),
        ("log_std", torch.exp),
        ("std", torch.abs),
        ("var", lambda s: s.abs().sqrt()),
    ],
)
def test_a_code_is_drawn_as_wide_as_the_model_says(claim, to_std):
    codes = []

    def loss(recon: Tensor, x: Tensor, z: Tensor) -> Tensor:
        codes.append(z)
        return z.sum()

    objective = FunctionLoss(loss, told(claim=claim), STAMPS)
    torch.manual_seed(5)
    objective(*GIVEN)
    torch.manual_seed(5)
    torch.testing.assert_close(codes[0], MEAN + to_std(SPREAD) * torch.randn(N, Z))
    assert (objective.takes_any_shape, objective.samples_code) == (True, True)


def test_stamps_come_flat_to_the_loss_of_a_model_that_takes_them_so():
    shapes = []

    def loss(recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x.sum()

    FunctionLoss(loss, AnySubject(Model(flat=True), STAMPS), STAMPS)(*GIVEN)
    FunctionLoss(loss, AnySubject(Model(), STAMPS), STAMPS)(*GIVEN)
    assert shapes == [(N, 16), (N, 1, 4, 4)]


def test_an_output_is_that_of_the_model_with_its_parts_replaced():
    subject = AnySubject(Model(), STAMPS)
    seen = []

    def loss(output: dict[str, Tensor], x: Tensor) -> Tensor:
        seen.append(output)
        return output["recon"].sum() + output["mu"].sum() + output["log_var"].sum()

    objective = FunctionLoss(loss, subject, STAMPS)
    torch.testing.assert_close(objective(*GIVEN), RECON.sum() + MEAN.sum() + SPREAD.sum())
    assert objective.takes_any_shape is False
    (output,) = seen
    assert (output["recon"] is RECON, output["mu"] is MEAN, output["log_var"] is SPREAD) == (
        True, True, True)  # fmt: skip
    assert not output["loss"].requires_grad  # the pass itself is not differentiated
    own = FunctionLoss(loss, told(), STAMPS)
    assert own._output(*GIVEN) == {"recon": RECON, "mean": MEAN, "log_var": SPREAD}


class PredictsNoise(Model):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        mean, log_var = self.encode(x)
        return self.decode(mean), 0 * x + 2, mean, log_var


def predicted(output: tuple[Tensor, ...], x: Tensor) -> Tensor:
    recon, noise, _, _ = output
    return ((recon - x) / noise).square().sum()


def test_a_noise_that_the_model_predicts_is_a_weight_and_a_scale_that_is_learned():
    objective = FunctionLoss(predicted, AnySubject(PredictsNoise(), STAMPS), STAMPS)
    assert [name for name, _ in objective.subject.module.named_parameters()]
    assert len(objective.weights()) == 4  # not known before the first call
    loss = objective(*GIVEN)
    torch.testing.assert_close(loss, ((RECON - STAMPS) / 2).square().sum())
    extra, *others = objective.weights()
    assert torch.equal(extra, torch.full_like(STAMPS, 2.0))
    assert extra.requires_grad
    assert len(others) == 4
    assert objective.learns_scale(*GIVEN)


def test_weights_are_those_of_the_model_of_the_loss_and_of_whom_its_method_belongs_to():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_sigma = nn.Parameter(torch.tensor(0.5))

        def forward(self, recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
            return ((recon - x).square() * torch.exp(-self.log_sigma)).sum()

    own, subject = Own(), told()
    subject.module = nn.Linear(1, 1)
    for function in (own, own.forward):
        objective = FunctionLoss(function, subject, STAMPS)
        assert [each is own.log_sigma for each in objective.weights()] == [False, False, True]
        assert objective.learns_scale(*GIVEN)
    with torch.no_grad():
        own.log_sigma.fill_(math.inf)  # its gradient is zero: it never moves
    assert not FunctionLoss(own, subject, STAMPS).learns_scale(*GIVEN)


def test_a_loss_without_weights_or_gradients_learns_no_scale():
    recon = RECON.clone().requires_grad_()
    weightless = Weighed(lambda recon, stamps, mean, spread: recon.sum())
    ask = super(Weighed, weightless).learns_scale
    assert weightless.weights() == []
    assert ask(recon, *GIVEN[1:]) is False
    weight = torch.tensor(2.0, requires_grad=True)
    weightless.weights = lambda: [weight]  # type: ignore[method-assign]
    assert ask(*GIVEN) is False  # no gradient at all
    assert ask(recon, *GIVEN[1:]) is False  # not that of the weight


# -- a loss that is tried ------------------------------------------------------------------------


def test_stamps_take_the_shape_of_the_output_where_the_loss_asks_for_it():
    def same_shape(recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
        assert recon.shape == x.shape, "not of one shape"
        return (recon - x).sum()

    flat = told(recon=RECON.flatten(1))
    objective = objective_of(flat, same_shape, STAMPS)
    assert isinstance(objective, FunctionLoss)
    assert objective.shape_of == "recon"
    objective(RECON.flatten(1), STAMPS, MEAN, SPREAD)
    picture = objective_of(told(), same_shape, STAMPS)
    assert isinstance(picture, FunctionLoss)
    assert picture.shape_of == "stamps"


class Refuses:
    """A loss that cannot be called; its message tells the shape of the stamps it was given."""

    def __call__(self, recon: Tensor, x: Tensor, mu: Tensor, z: Tensor) -> Tensor:
        raise ArithmeticError(f"stamps {tuple(x.shape)}")


def refuses(recon: Tensor, x: Tensor, mu: Tensor, z: Tensor) -> Tensor:
    return Refuses()(recon, x, mu, z)


@pytest.mark.parametrize(
    ("loss", "name"), [(refuses, "refuses"), (Refuses(), "Refuses"), (partial(refuses), "partial")]
)
def test_a_loss_that_cannot_be_called_is_told_by_name_arguments_and_first_error(loss, name):
    with pytest.raises(InputError) as refused:
        objective_of(told(recon=RECON.flatten(1)), loss, STAMPS)
    assert str(refused.value) == (
        f"the loss {name} could not be called with recon, stamps, mean, code: ArithmeticError: "
        "stamps (3, 1, 4, 4); give a function of recon, x, mean, log_var"
    )
    assert isinstance(refused.value.__cause__, ArithmeticError)


@pytest.mark.parametrize("missing", ["mean", "spread"])
def test_a_loss_wants_a_posterior(missing):
    with pytest.raises(InputError) as refused:
        objective_of(told(**{missing: None}), refuses, STAMPS)
    assert str(refused.value) == (
        "the loss needs a mean and a log-variance, and the model hands out none"
    )


def test_what_is_no_function_is_no_loss():
    with pytest.raises(InputError) as refused:
        objective_of(told(), 7, STAMPS)  # type: ignore[arg-type]
    assert str(refused.value) == "loss must be a function, got int"


# -- which loss ----------------------------------------------------------------------------------


def loss_that(method: Callable[..., Any] | None, in_forward: bool = True) -> AnySubject:
    class Asked(Model):
        loss_function = method

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            output = super().forward(x)
            if not in_forward:
                del output["loss"]
            return output

    return AnySubject(Asked(), STAMPS)


def summed(self: Any, recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    return recon.sum()


def failing(self: Any, recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    raise ZeroDivisionError("on purpose")


def test_a_method_of_the_model_comes_before_the_loss_of_its_forward():
    found = objective_of(loss_that(summed), None, STAMPS)
    assert isinstance(found, FunctionLoss)
    torch.testing.assert_close(found(*GIVEN), RECON.sum())
    for method in (failing, None):
        assert isinstance(objective_of(loss_that(method), None, STAMPS), ForwardLoss)
    given = objective_of(loss_that(summed), lambda recon, x, mu, log_var: mu.sum(), STAMPS)
    torch.testing.assert_close(given(*GIVEN), MEAN.sum())


def test_a_model_without_a_loss_that_works_is_told_why():
    with pytest.raises(Untestable) as refused:
        objective_of(loss_that(None, in_forward=False), None, STAMPS)
    assert str(refused.value) == "no loss was given, and the model has none"
    with pytest.raises(Untestable) as refused:
        objective_of(loss_that(failing, in_forward=False), None, STAMPS)
    assert str(refused.value) == (
        "the loss failing could not be called with recon, stamps, mean, spread: ZeroDivisionError: "
        "on purpose; give a function of recon, x, mean, log_var"
    )


def test_a_model_that_raises_is_told_by_its_message():
    subject = loss_that(None)

    def broken(x: Tensor) -> Any:
        raise RuntimeError("out of memory")

    subject.call = broken
    with pytest.raises(Untestable) as refused:
        objective_of(subject, None, STAMPS)
    assert str(refused.value) == "out of memory"


# -- a loss out of forward -----------------------------------------------------------------------


def test_a_loss_of_forward_is_that_of_the_parts_that_are_swapped_in():
    model = Model()
    objective = ForwardLoss(AnySubject(model, STAMPS), STAMPS)
    expected = ((RECON - STAMPS).square().sum() + MEAN.square().sum() + 5 * SPREAD.sum()) / N
    torch.testing.assert_close(objective(*GIVEN), expected)
    torch.testing.assert_close(objective(RECON.flatten(1), *GIVEN[1:]), expected)
    assert (objective.is_function, objective.samples_code) == (False, True)
    assert objective.takes_any_shape is False
    assert [id(each) for each in objective.weights()] == [id(each) for each in model.parameters()]
    assert "encode" not in vars(model)  # nobody listens any more


def test_a_loss_of_forward_has_gradients_by_what_is_swapped_in_and_leaves_the_stamps():
    class Changes(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            output = super().forward(x)
            x += 1
            return output

    subject = AnySubject(Changes(), STAMPS)
    objective = ForwardLoss(subject, STAMPS)
    mean, stamps = MEAN.clone().requires_grad_(), STAMPS.clone()
    (gradient,) = torch.autograd.grad(objective(RECON, stamps, mean, SPREAD), mean)
    torch.testing.assert_close(gradient, 2 * MEAN / N)
    assert torch.equal(stamps, STAMPS)


@pytest.mark.parametrize("role", ["mean", "spread", "recon"])
def test_a_part_that_is_made_inside_forward_cannot_be_swapped(role):
    class Inside(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            output = super().forward(x)
            name = {"mean": "mu", "spread": "log_var", "recon": "recon"}[role]
            output[name] = output[name] + 1
            return output

    subject = AnySubject(Inside(), STAMPS)
    with pytest.raises(LookupError) as refused:
        ForwardLoss(subject, STAMPS)
    expected = f"the {role} is made inside forward, where it cannot be swapped"
    assert str(refused.value) == expected
    with pytest.raises(Untestable) as untestable:
        objective_of(subject, None, STAMPS)
    assert str(untestable.value) == expected


# -- a loss of this project ----------------------------------------------------------------------

SIZE = 16
FIELD = torch.randn(4, 1, SIZE, SIZE, generator=DRAW)
DRAWN = FIELD + 0.3 * torch.randn(4, 1, SIZE, SIZE, generator=DRAW)
CODE, LOG_VAR = torch.randn(2, 4, Z, generator=DRAW)
OWN = (DRAWN, FIELD, CODE, LOG_VAR)
KL = 0.5 * (CODE.square() + LOG_VAR.exp() - LOG_VAR - 1).sum(1)


def own_loss(**settings: Any) -> OwnLoss:
    vae = VAE((1, SIZE, SIZE), model={"name": "linear", "latent_dim": Z}, **settings)
    return OwnLoss(OwnSubject(vae))


@pytest.mark.parametrize("likelihood", ["gaussian", "noise"])
def test_own_loss_is_the_density_of_every_pixel_and_the_kl_at_the_end_of_the_schedule(likelihood):
    objective = own_loss(
        likelihood={"name": likelihood},
        beta={"name": "linear", "end": 0.25, "warmup_steps": 100_000},
    )
    density = 0.5 * ((FIELD - DRAWN).square() + math.log(2 * math.pi)).flatten(1).sum(1)
    torch.testing.assert_close(objective(*OWN), (density + 0.25 * KL).mean())
    assert (objective.takes_any_shape, objective.is_function) == (True, True)
    assert objective.samples_code is False


def test_a_prior_that_learns_makes_the_loss_more_than_a_function():
    assert own_loss(prior={"name": "mixture", "n_components": 2}).is_function is False


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"likelihood": {"name": "gaussian"}}, False),
        ({"likelihood": {"name": "pixel_mean_mse"}}, False),
        ({"likelihood": {"name": "sigma", "learn": "closed_form"}}, True),
        ({"likelihood": {"name": "noise", "learn": "closed_form"}}, True),
        ({"likelihood": {"name": "sigma", "learn": "gradient"}}, True),
        ({"likelihood": {"name": "gaussian"}, "beta": {"name": "geco"}}, True),
    ],
)
def test_a_width_or_a_weight_that_training_moves_is_known(settings, learns):
    objective = own_loss(**settings)
    likelihood = objective.vae.likelihood
    before = {name: each.clone() for name, each in likelihood.state_dict().items()}
    assert objective.learns_scale(*OWN) is learns
    after = likelihood.state_dict()
    assert all(torch.equal(each, before[name]) for name, each in after.items())
    assert objective.weights() == list(likelihood.parameters())


def test_a_width_that_fits_already_moves_when_worse_outputs_are_shown():
    objective = own_loss(likelihood={"name": "sigma"})
    mask = torch.ones_like(FIELD, dtype=torch.bool)
    for _ in range(2):
        objective.vae.likelihood.observe(FIELD, DRAWN, mask, torch.ones_like(FIELD))
    assert objective.learns_scale(*OWN) is True


# -- what is minimised ---------------------------------------------------------------------------


def test_a_named_loss_that_is_no_tensor_is_passed_over():
    a, b = (torch.tensor(value, requires_grad=True) for value in (2.0, 3.0))
    assert total({"loss": "see below", "a": a, "b": b}, (a, b)).item() == 5
    assert total({"LOSS": a * 1, "b": a * b}, (a, b)).item() == 2
    assert total(torch.tensor([1.0, 5.0]), ()).item() == 3
    assert total(SimpleNamespace(kl=b * 1, all=torch.stack([a * b, a * b])), (a, b)).item() == 6
    with pytest.raises(TypeError, match=r"^it returned no tensor but dict$"):
        total({"loss": "text"}, (a,))


def test_of_parts_that_depend_on_some_and_on_all_the_first_on_all_is_taken():
    a, b, c = (torch.tensor(value, requires_grad=True) for value in (2.0, 3.0, 5.0))
    returned = (a * 1, a * b, 10 * a * b, torch.tensor(99.0))
    assert total(returned, (a, b, c)).item() == 6  # nothing depends on c
    assert total((a * 1, b * 1), (a, b.detach())).item() == 2
    # the graph is still there
    loss = total((a * b, a * 1), (a, b))
    loss.backward()
    assert a.grad is not None
