"""Listening in on a module: every call is heard, may be changed, and nothing stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vae_astro.collapse.audit.calls import Call, intercepted, reseed, survey


def say_nothing(call: Call, value: Any) -> None:
    return None


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def encode(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.encode(x=x))


def test_every_call_is_heard_in_the_order_in_which_it_begins():
    module, x = Twice(), torch.randn(2, 3)
    records = survey(module, lambda: module(x))
    assert [each.call for each in records] == [
        Call("encode()", 0),
        Call("layer", 0),
        Call("layer", 1),
    ]
    assert records[0].given is x
    assert records[0].output is records[1].output
    assert torch.equal(records[2].output, module(x))


def test_one_call_of_many_is_given_and_returns_something_else():
    module, x = Twice(), torch.randn(2, 3)
    swapped, returned = torch.zeros(2, 3), torch.ones(2, 3)
    with intercepted(
        module,
        lambda call, tensor: swapped if call == Call("layer", 1) else None,
        lambda call, output: None,
    ):
        assert torch.equal(module(x), module.layer.bias.expand(2, 3))
    with intercepted(
        module,
        lambda call, tensor: None,
        lambda call, output: returned if call.key == "encode()" else None,
    ):
        assert torch.equal(module(x), module.layer(returned))


def test_nobody_listens_any_more_after_an_error():
    module = Twice()

    def fail(call: Call, tensor: Tensor) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), intercepted(module, fail, fail):
        module(torch.randn(2, 3))
    assert "encode" not in vars(module)
    assert not module.layer._forward_hooks
    assert not module.layer._forward_pre_hooks
    module(torch.randn(2, 3))


class Parts(nn.Module):
    """Parts that are given a tensor in every way, or none at all."""

    class Sum(nn.Module):
        def forward(self, scale: float, x: Tensor, y: Tensor) -> Tensor:
            return scale * x + y

    class Constant(nn.Module):
        def forward(self, value: float = 1.0) -> Tensor:
            return torch.full((2,), value)

    def __init__(self) -> None:
        super().__init__()
        self.total, self.constant = self.Sum(), self.Constant()
        self.decode = self.read_out  # a method of the instance alone

    def read_out(self, z: Tensor) -> Tensor:
        return -z

    def forward(self, x: Tensor) -> Tensor:
        first = self.total(2.0, x, self.constant())
        return self.decode(self.total(3.0, y=first, x=x))


def changing(key: str, given: Tensor | None, returned: Tensor | None = None) -> Tensor:
    """What `Parts` makes of ones where calls of ``key`` are given or return something else."""
    module = Parts()
    with intercepted(
        module,
        lambda call, tensor: given if call.key == key else None,
        lambda call, output: returned if call.key == key else None,
    ):
        made: Tensor = module(torch.ones(2))
    return made


def test_first_tensor_of_a_call_is_swapped_wherever_it_stands():
    ten = torch.full((2,), 10.0)
    # 3 x + (2 x + 1), x swapped in the first call and y, which comes first, in the second
    assert changing("", ten).tolist() == [-6, -6]
    assert changing("total", ten).tolist() == [-13, -13]
    assert changing("constant", ten).tolist() == [-6, -6]
    assert changing("decode()", ten).tolist() == [-10, -10]


def test_what_a_call_returns_is_swapped_even_where_it_was_given_no_tensor():
    ten = torch.full((2,), 10.0)
    assert changing("constant", None, ten).tolist() == [-15, -15]
    assert changing("decode()", None, ten).tolist() == [10, 10]


def test_only_calls_with_a_tensor_are_recorded_and_methods_have_no_module():
    module, x = Parts(), torch.ones(2)
    records = survey(module, lambda: module(x))
    assert [each.call for each in records] == [
        Call("total", 0), Call("total", 1), Call("decode()", 0)
    ]  # fmt: skip
    assert [each.module for each in records] == [module.total, module.total, None]
    assert [each.is_layer for each in records] == [True, True, False]
    assert records[0].given is x
    assert records[1].given is records[0].output
    assert records[2].given is records[1].output
    assert torch.equal(records[2].output, -records[1].output)


def test_module_with_submodules_is_no_layer():
    module = nn.Sequential(nn.Sequential(nn.Linear(3, 3)))
    records = survey(module, lambda: module(torch.randn(2, 3)))
    assert [(each.call.key, each.is_layer) for each in records] == [("0", False), ("0.0", True)]


def test_nothing_but_the_keys_is_listened_to():
    module, heard = Parts(), []
    for keys in ({"total"}, {"decode()"}, {"decode"}, set()):
        with intercepted(module, lambda call, x: heard.append(call), say_nothing, keys):
            module(torch.ones(2))
    assert heard == [Call("total", 0), Call("total", 1), Call("decode()", 0)]


def test_method_of_an_instance_comes_back_as_it_was():
    module = Parts()
    before = module.decode
    survey(module, lambda: module(torch.ones(2)))
    assert vars(module)["decode"] is before
    assert module.decode(torch.ones(1)).tolist() == [-1]


def test_method_of_the_class_is_not_left_on_the_instance():
    module = Twice()
    survey(module, lambda: module(torch.randn(2, 3)))
    assert "encode" not in vars(module)


def test_calls_within_calls_get_back_what_is_theirs():
    module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 1)))
    outer = nn.Sequential(module)
    records = {each.call.key: each for each in survey(outer, lambda: outer(torch.randn(2, 3)))}
    assert records["0"].output is records["0.1"].output
    assert records["0.1"].output is records["0.1.1"].output
    assert records["0.1.0"].output is records["0.1.1"].given


def test_seed_is_that_of_torch():
    reseed(7)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize(("is_initialized", "seeds"), [(True, [7]), (False, [])])
def test_seed_goes_to_every_device_that_is_in_use(monkeypatch, is_initialized, seeds):
    set_for_all: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_initialized)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", set_for_all.append)
    reseed(7)
    assert set_for_all == seeds
