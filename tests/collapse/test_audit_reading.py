"""What a model returned and what a loss wants: read by names, by shapes and by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from vae_astro.collapse.audit.losses import _roles_of, total
from vae_astro.collapse.audit.outputs import named_tensors, read_output, substitute

B = 5
DRAW = torch.Generator().manual_seed(0)
STAMPS, RECON, NOISE = torch.randn(3, B, 1, 4, 4, generator=DRAW)
MEAN, SPREAD, CODE = torch.randn(3, B, 3, generator=DRAW)


class Pair(NamedTuple):
    mu: Tensor
    scale: Tensor


@dataclass
class Output:
    recon: Tensor
    latent: Tensor


# -- tensors and their names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (MEAN, [""]),
        (torch.arange(3), []),  # whole numbers are no output
        ({"a": MEAN, 7: SPREAD}, ["a", "7"]),
        ([MEAN, (SPREAD, {"z": CODE})], ["", "", "z"]),
        (Pair(MEAN, SPREAD), ["mu", "scale"]),
        (Output(RECON, CODE), ["recon", "latent"]),
        (Normal(MEAN, SPREAD.exp()), ["mean", "std"]),
        ("text", []),
        (nn.Linear(2, 2), []),
        (Output, []),
    ],
)
def test_tensors_are_found_with_the_last_name_on_the_way(value: Any, names: list[str]) -> None:
    assert [name for name, _ in named_tensors(value)] == names


# -- roles ---------------------------------------------------------------------------------------


def test_extras_of_the_size_of_a_stamp_are_kept_and_the_stamps_are_not() -> None:
    reading = read_output((RECON, NOISE, STAMPS, MEAN, SPREAD), STAMPS)
    assert reading.recon is RECON
    assert [each is NOISE for each in reading.extras] == [True]
    assert (reading.mean is MEAN, reading.spread is SPREAD) == (True, True)
    assert reading.claim is None


def test_named_parts_are_found_whatever_stands_beside_them() -> None:
    loss = torch.tensor(3.0)
    reading = read_output(
        {"loss": loss, "x": STAMPS, "Recon_X": RECON, "z": CODE, "Mu": MEAN, "log_std": SPREAD},
        STAMPS,
    )
    assert reading.recon is RECON
    assert reading.mean is MEAN
    assert reading.spread is SPREAD
    assert reading.code is CODE
    assert reading.loss is loss
    assert (reading.claim, reading.extras, reading.nameless) == ("log_std", (), ())


@pytest.mark.parametrize(
    ("tensors", "mean", "spread", "code"),
    [
        ((MEAN,), 0, None, None),
        ((MEAN, SPREAD), 0, 1, None),
        ((MEAN, SPREAD, CODE), 0, 1, 2),
    ],
)
def test_nameless_numbers_are_read_by_position(
    tensors: tuple[Tensor, ...], mean: int, spread: int | None, code: int | None
) -> None:
    reading = read_output((RECON, *tensors), STAMPS)
    assert reading.mean is tensors[mean]
    assert reading.spread is (None if spread is None else tensors[spread])
    assert reading.code is (None if code is None else tensors[code])
    assert len(reading.nameless) == len(tensors)


def test_roles_say_which_of_three_nameless_tensors_is_which() -> None:
    reading = read_output((RECON, CODE, MEAN, SPREAD), STAMPS, (1, 2, 0))
    assert reading.mean is MEAN
    assert reading.spread is SPREAD
    assert reading.code is CODE


def test_an_encoder_that_returns_two_tensors_returns_no_picture() -> None:
    reading = read_output((MEAN, SPREAD), STAMPS, pictured=False)
    assert reading.recon is None
    assert reading.mean is MEAN
    assert reading.spread is SPREAD
    alone = read_output(MEAN, STAMPS, pictured=False)
    assert (alone.recon, alone.spread) == (None, None)
    assert alone.mean is MEAN


def test_a_picture_of_another_shape_is_taken_before_mean_and_spread() -> None:
    cropped = torch.randn(B, 1, 3, 3)
    reading = read_output((cropped, MEAN, SPREAD), STAMPS)
    assert reading.recon is cropped
    # two alone are a posterior, unless the mean has a name
    assert read_output((MEAN, SPREAD), STAMPS).recon is None
    named = read_output({"q": cropped, "r": SPREAD, "mu": MEAN}, STAMPS)
    assert named.recon is cropped


def test_a_posterior_is_told_from_a_prior_that_is_the_same_for_all() -> None:
    prior = torch.zeros(B, 3)
    reading = read_output({"recon": RECON, "means": prior, "mu": MEAN, "std": SPREAD}, STAMPS)
    assert reading.mean is MEAN
    only = read_output({"recon": RECON, "means": prior}, STAMPS)
    assert only.mean is prior


# -- substitution --------------------------------------------------------------------------------


def test_substitution_reaches_every_kind_of_container_and_shares_the_rest() -> None:
    kept, note = torch.ones(2), ["note"]
    value = {
        "named": Pair(MEAN, kept),
        "list": [MEAN, (kept, "text")],
        "object": SimpleNamespace(mean=MEAN, other=note),
        "none": None,
    }
    changed = substitute(value, [MEAN], [CODE])
    assert changed["named"].mu is CODE
    assert isinstance(changed["named"], Pair)
    assert changed["named"].scale is kept
    assert changed["list"][0] is CODE
    assert changed["list"][1] == (kept, "text")
    assert changed["object"].mean is CODE
    assert changed["object"].other == note
    assert changed["none"] is None
    assert value["named"].mu is MEAN  # type: ignore[attr-defined]
    assert value["object"].mean is MEAN  # type: ignore[attr-defined]


def test_a_tensor_is_found_by_identity_and_not_by_its_values() -> None:
    twin = MEAN.clone()
    assert substitute((MEAN, twin), [MEAN], [CODE])[1] is twin
    linear = nn.Linear(2, 2)
    assert substitute(linear, [MEAN], [CODE]) is linear


# -- what a loss is given ------------------------------------------------------------------------


def four(a, b, c, d):
    return a


def two(prediction, truth):
    return prediction


def in_use(recon_x, x, mu, logvar):
    return recon_x


def shuffled(mu, log_var, X, x_hat, beta=1.0):
    return x_hat


def with_code(recon, target, z):
    return recon


def whole(outputs, images, **options):
    return outputs


def anything(*values):
    return values


def only_by_place(recon, x, mu, log_var, /):
    return recon


BY_PLACE = {"0": "recon", "1": "stamps", "2": "mean", "3": "spread"}


@pytest.mark.parametrize(
    ("function", "roles"),
    [
        (four, BY_PLACE),
        (anything, BY_PLACE),
        (only_by_place, BY_PLACE),
        (two, {"0": "output", "1": "stamps"}),
        (in_use, {"recon_x": "recon", "x": "stamps", "mu": "mean", "logvar": "spread"}),
        (shuffled, {"mu": "mean", "log_var": "spread", "X": "stamps", "x_hat": "recon"}),
        (with_code, {"recon": "recon", "target": "stamps", "z": "code"}),
        (whole, {"outputs": "output", "images": "stamps"}),
        (nn.MSELoss(), {"input": "stamps", "target": "stamps"}),
    ],
)
def test_arguments_are_matched_by_name_and_else_by_place(
    function: Callable[..., Any], roles: dict[str, str]
) -> None:
    if isinstance(function, nn.MSELoss):  # two names of one role: no reconstruction among them
        roles = {"0": "output", "1": "stamps"}
    assert _roles_of(function) == roles


# -- what is minimised ---------------------------------------------------------------------------


def test_a_named_loss_is_taken_before_its_parts() -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    returned = {"kl": b, "Loss": torch.stack([a * b, a * b + 2])}
    assert total(returned, (a, b)).item() == 7.0


def test_without_gradients_the_first_number_is_taken() -> None:
    assert total((torch.tensor(2.0), torch.tensor(5.0)), (torch.tensor(1.0),)).item() == 2.0


def test_a_number_that_depends_on_nothing_is_not_what_is_minimised() -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    assert total((torch.tensor(9.0), a * b), (a, b)).item() == 6.0


def test_a_loss_that_returns_no_number_is_told_by_its_type() -> None:
    with pytest.raises(TypeError, match=r"^it returned no tensor but str$"):
        total("nothing", ())
