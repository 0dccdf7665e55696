"""The copy that an audit works on: what is copied, what is shared, what is refused."""

from __future__ import annotations

import io
import json
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vae_astro.collapse.audit import audit
from vae_astro.collapse.audit.copies import _copies, copy_of
from vae_astro.errors import InputError


class Uncopied:
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise RuntimeError("an open file")


def test_a_copy_shares_no_weight_and_no_list():
    model = nn.Sequential(nn.Linear(2, 2))
    model.notes = ["a"]
    copied = copy_of(model)
    assert type(copied) is nn.Sequential
    assert torch.equal(copied[0].weight, model[0].weight)
    assert copied[0].weight.data_ptr() != model[0].weight.data_ptr()
    assert copied.notes == ["a"]
    assert copied.notes is not model.notes


@pytest.mark.parametrize(
    "held",
    [nn.functional, np, {"np": np}, [json, threading.Lock()]],
    ids=["F", "np", "dict", "list"],
)
def test_a_python_module_that_a_model_holds_is_shared(held: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.tools = held
    copied = copy_of(model)
    assert copied[0].weight.data_ptr() != model[0].weight.data_ptr()
    assert type(copied.tools) is type(held)
    if not isinstance(held, dict | list):
        assert copied.tools is held


@pytest.mark.parametrize("trainer", [["a trainer"], Uncopied()])
def test_a_trainer_is_not_copied_but_left_behind(trainer):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0]._trainer, model[0]._fabric = trainer, trainer
    model[0].note = None
    copied = copy_of(model)
    assert (copied[0]._trainer, copied[0]._fabric, copied[0].note) == (None, None, None)
    assert model[0]._trainer is trainer


@pytest.mark.parametrize("extra", [None, Uncopied()])
def test_graphs_of_earlier_passes_are_dropped_and_their_values_kept(extra):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].last, model.extra = 3 * model[0].weight, extra
    copied = copy_of(model)
    assert torch.equal(copied[0].last, model[0].last)
    assert not copied[0].last.requires_grad
    assert copied[0].last.data_ptr() != model[0].last.data_ptr()


def test_what_cannot_be_copied_is_shared_and_all_else_is_not():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].file, model[0].notes, model[0].table = Uncopied(), ["a"], {"b": 1}
    copied = copy_of(model)
    assert copied[0].file is model[0].file
    assert copied[0].notes == ["a"]
    assert copied[0].notes is not model[0].notes
    assert copied[0].table is not model[0].table
    assert copied[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_whether_something_can_be_copied_is_tried():
    assert _copies(["a"], {})
    assert not _copies(Uncopied(), {})
    thing = Uncopied()
    memo = {id(thing): None}
    assert _copies([thing], memo)  # not gone into
    assert len(memo) == 1


# -- open files ----------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """Writes to files that it holds."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 4), nn.Linear(2, 16)
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x.flatten(1)).chunk(2, 1)
        code = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        return self.decoder(code).view_as(x), mean, log_var


@pytest.mark.parametrize(
    "hold",
    [
        lambda file: file,
        lambda file: {"log": file},
        lambda file: [file, 1],
        lambda file: (1, {"deep": [file]}),
        lambda file: OrderedDict(a=OrderedDict(b=file)),
    ],
)
def test_files_are_shared_wherever_they_are_held_and_what_holds_them_is_not(tmp_path, hold):
    with (tmp_path / "log").open("w") as file:
        model = Autoencoder(held=hold(file))
        copied: Any = copy_of(model)
        found, original = copied.held, model.held
        while found is not file:
            assert found is not original
            assert type(found) is type(original)
            keys = list(found) if isinstance(found, dict) else range(len(found))
            place = next(key for key in keys if not isinstance(found[key], int))
            found, original = found[place], original[place]
        assert copied.encoder.weight.data_ptr() != model.encoder.weight.data_ptr()


def test_a_model_with_a_dict_of_open_files_is_audited(tmp_path):
    with (tmp_path / "a").open("w") as one, (tmp_path / "b").open("wb") as other:
        model = Autoencoder(files={"a": one, "b": other}, lock=threading.Lock())
        report = audit(model, torch.randn(64, 1, 4, 4))
        assert report.latent_dim == 2
        assert not one.closed
        assert not other.closed


class Tracker:
    """Keeps what it saw, beside an open file and the model itself."""

    def __init__(self, model: nn.Module, file: Any) -> None:
        self.model, self.file, self.seen = model, file, ["a"]

    def hook(self, *given: Any) -> None:
        self.seen.append("b")


@pytest.mark.parametrize("more", [None, "file"])
def test_an_object_with_a_file_is_copied_around_it_also_where_it_knows_the_model(more):
    model, file = nn.Sequential(nn.Linear(2, 2)), io.TextIOWrapper(io.BytesIO())
    tracker = Tracker(model, file)
    model.register_forward_hook(tracker.hook)
    model.tracker, model.other = tracker, more and [io.TextIOWrapper(io.BytesIO())]
    copied: Any = copy_of(model)
    assert copied.tracker is not tracker
    assert copied.tracker.file is file
    assert copied.tracker.model is copied
    copied(torch.zeros(1, 2))
    assert (copied.tracker.seen, tracker.seen) == (["a", "b"], ["a"])


def test_values_of_a_graph_are_kept_in_a_list_too():
    model = nn.Sequential(nn.Linear(2, 2))
    model.cache = [2 * model[0].weight]
    copied: Any = copy_of(model)
    assert torch.equal(copied.cache[0], model.cache[0])
    assert not copied.cache[0].requires_grad
    assert copied.cache[0].data_ptr() != model.cache[0].data_ptr()


# -- what cannot be copied at all ----------------------------------------------------------------


def test_what_cannot_be_copied_and_knows_the_model_is_shared():
    model = nn.Sequential(nn.Linear(2, 2))
    model.held = Uncopied()
    model.held.model = model
    copied: Any = copy_of(model)
    assert copied.held is model.held
    assert copied[0] is not model[0]


class Stubborn(nn.Linear):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise TypeError("only one of me\nand no other")


class StubbornWeight(nn.Parameter):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise TypeError("only one of me")


ADVICE = (
    ". The audit works on a copy of the model; take away what copy.deepcopy cannot copy, or give "
    "the layer a __deepcopy__ of its own"
)


def test_a_layer_that_cannot_be_copied_is_refused_by_its_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Stubborn(2, 2)))
    with pytest.raises(InputError) as refused:
        audit(model, torch.randn(4, 2))
    assert str(refused.value) == (
        "layer 1.0 (Stubborn) cannot be copied: TypeError: only one of me" + ADVICE
    )
    with pytest.raises(InputError, match=r"^Stubborn cannot be copied: TypeError: only one of me"):
        copy_of(Stubborn(2, 2))


def test_a_layer_is_refused_with_the_attribute_that_holds_what_cannot_be_copied():
    hidden = Autoencoder(parts=[Stubborn(2, 2)])  # in no list of layers
    with pytest.raises(InputError, match=r"^Autoencoder cannot be copied, for its attribute parts"):
        copy_of(hidden)
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = StubbornWeight(torch.zeros(2, 2))
    with pytest.raises(InputError) as refused:
        copy_of(model)
    assert str(refused.value) == (
        "layer 0 (Linear) cannot be copied, for its attribute _parameters: TypeError: only one of "
        "me" + ADVICE
    )
