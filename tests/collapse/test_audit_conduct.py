"""How an audit is conducted: what it takes, what it copies, in which world, in which order."""

from __future__ import annotations

import random
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tiny_subjects import bench_of
from torch import Tensor, nn

from vae_astro.collapse.audit import conduct
from vae_astro.collapse.audit.conduct import (
    _adapted,
    _checked,
    _conduct,
    _enough,
    _own_world,
    _place_of,
    audit,
)
from vae_astro.collapse.audit.findings import Finding, Untestable, Untested
from vae_astro.errors import InputError

CPU = torch.device("cpu")


# -- stamps --------------------------------------------------------------------------------------

SQUARES = torch.arange(24.0).view(3, 2, 2, 2)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (SQUARES, SQUARES),
        (SQUARES.numpy(), SQUARES),
        (SQUARES[:, 0].tolist(), SQUARES[:, :1]),
        (SQUARES[:, 0], SQUARES[:, :1]),  # a band is added
        (SQUARES.flatten(1), SQUARES.flatten(1)),
        (SQUARES.long(), SQUARES),
        (SQUARES.clone().requires_grad_(), SQUARES),
        (SQUARES[:2], SQUARES[:2]),
    ],
)
def test_stamps_are_copied_to_the_models_kind_of_number(given: Any, taken: Tensor) -> None:
    for dtype in (torch.float32, torch.float64):
        checked = _checked(given, CPU, dtype)
        assert torch.equal(checked, taken.to(dtype))
        assert (checked.dtype, checked.requires_grad) == (dtype, False)
        if isinstance(given, Tensor):
            assert checked.data_ptr() != given.data_ptr()


HOLES = SQUARES.clone()
HOLES[0, 0, 0, 0], HOLES[1, 0, 0, 0] = torch.nan, -torch.inf
ONE_LEVEL = torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 1, 3, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (HOLES, "the stamps hold 2 NaN or infinite pixels; normalise them first"),
        (SQUARES[:1], "one stamp says nothing of a code; give 64"),
        (SQUARES[:1].expand(3, 2, 2, 2), "all 3 stamps are the same: there is nothing to tell "
         "apart; give stamps that differ"),
        (ONE_LEVEL, "every one of the 2 stamps is constant: there is nothing to draw"),
        (torch.zeros(3), "stamps have shape (3,) of torch.float32; give (N, C, H, W), (N, H, W) or "
         "(N, D)"),
        (torch.zeros(2, 1, 1, 2, 2), "stamps have shape (2, 1, 1, 2, 2) of torch.float32; give "
         "(N, C, H, W), (N, H, W) or (N, D)"),
        (torch.zeros(0, 4), "stamps have shape (0, 4) of torch.float32; give (N, C, H, W), "
         "(N, H, W) or (N, D)"),
        (SQUARES.to(torch.complex64), "stamps have shape (3, 2, 2, 2) of torch.complex64; give "
         "(N, C, H, W), (N, H, W) or (N, D)"),
        (SQUARES.to("meta"), "the stamps are on the meta device, which holds no values"),
    ],
)  # fmt: skip
def test_stamps_that_tell_nothing_are_refused_in_words(given: Tensor, message: str) -> None:
    with pytest.raises(InputError) as refused:
        _checked(given, CPU, torch.float32)
    assert str(refused.value) == message


@pytest.mark.parametrize("given", ["text", [[1.0], ["a"]], None])
def test_what_is_no_array_is_refused_with_the_reason(given: Any) -> None:
    with pytest.raises(InputError, match=r"^stamps must be an array of numbers: .") as refused:
        _checked(given, CPU, torch.float32)
    assert refused.value.__cause__ is not None


def test_one_stamp_that_is_not_constant_is_enough_to_draw() -> None:
    given = ONE_LEVEL.clone()
    given[1, 0, 0, 0] = 7
    assert torch.equal(_checked(given, CPU, torch.float32), given)


def test_as_many_stamps_as_latent_units_are_enough() -> None:
    _enough(8, 8)
    with pytest.raises(InputError) as refused:
        _enough(7, 8)
    assert str(refused.value) == (
        "7 stamps for 8 latent units: give at least 8 (n_audited of scripts/audit.py), better 64"
    )


# -- where the model is --------------------------------------------------------------------------


class Empty(nn.Module):
    pass


@pytest.mark.parametrize(
    ("dtype", "works_in"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_half_precision_is_widened_and_any_other_kept(dtype, works_in):
    model = nn.Linear(2, 2).to(dtype)
    assert _place_of(model) == (CPU, works_in)
    assert model.weight.dtype == works_in


def test_the_first_floating_tensor_tells_the_precision_and_none_means_single():
    model = Empty()
    assert _place_of(model) == (CPU, torch.float32)
    model.register_buffer("counts", torch.zeros(2, dtype=torch.long))
    assert _place_of(model) == (CPU, torch.float32)
    model.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
    assert _place_of(model) == (CPU, torch.float64)
    model.register_parameter("weight", nn.Parameter(torch.zeros(2)))
    assert _place_of(model) == (CPU, torch.float32)


def test_weights_without_values_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(InputError) as refused:
        _place_of(model)
    assert str(refused.value) == (
        "the model has weights on the meta device, which holds no values; build it on the CPU or "
        "load its weights first"
    )


@pytest.mark.parametrize(
    ("kinds", "place", "is_moved"),
    [(("cuda", "cpu"), "cuda", False), (("cpu", "mps"), "cpu", True), (("mps",), "cpu", True)],
)
def test_the_first_device_is_taken_and_one_without_a_random_state_is_left(kinds, place, is_moved):
    class Elsewhere(Empty):
        moved = False

        def parameters(self, recurse: bool = True) -> Any:
            for kind in kinds:
                yield types.SimpleNamespace(
                    device=torch.device(kind), dtype=torch.float32, is_floating_point=lambda: True
                )

        def cpu(self) -> Any:
            self.moved = True

    model = Elsewhere()
    assert _place_of(model) == (torch.device(place), torch.float32)
    assert model.moved == is_moved


# -- a world of its own --------------------------------------------------------------------------


def test_random_states_come_back_whatever_was_drawn():
    def states() -> tuple[Any, ...]:
        words, numbers = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        return words, numbers, torch.get_rng_state().tolist()

    def draw_and_fail() -> None:
        with _own_world(one_thread=True):
            random.seed(3)
            np.random.seed(3)  # noqa: NPY002
            torch.manual_seed(3)
            raise KeyError

    before = states()
    with pytest.raises(KeyError):
        draw_and_fail()
    assert states() == before


@pytest.mark.parametrize("one_thread", [True, False])
def test_threads_are_one_where_asked_and_come_back(one_thread):
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with _own_world(one_thread=one_thread):
            assert torch.get_num_threads() == (1 if one_thread else 3)
            torch.set_num_threads(2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(n_threads)


def test_gradients_are_on_and_warnings_off_and_both_come_back():
    with torch.inference_mode(), torch.no_grad():
        with _own_world(one_thread=True):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            warnings.warn("not shown, and no error here", stacklevel=1)
        assert torch.is_inference_mode_enabled()
    with pytest.warns(UserWarning, match="shown again"):
        warnings.warn("shown again", stacklevel=1)


# -- the experiments -----------------------------------------------------------------------------


def found(*names: str) -> Any:
    return lambda bench: [Finding.of(name, "measured") for name in names]


def refusing(error: Exception) -> Any:
    def experiment(bench: Any) -> list[Finding]:
        raise error

    return experiment


def conducted(monkeypatch, first: dict[str, Any], then: dict[str, Any]) -> Any:
    monkeypatch.setattr(conduct, "FIRST", first)
    monkeypatch.setattr(conduct, "EXPERIMENTS", {**first, **then})
    untested: list[Untested] = []
    findings = _conduct(bench_of(torch.randn(4, 2)), untested)
    return [each.name for each in findings], untested


@pytest.mark.parametrize("name", ["output-shape", "not-finite"])
def test_nothing_is_tried_on_an_output_of_no_use(monkeypatch, name):
    first = {"a": found(name), "b": found("mutates-input")}
    findings, untested = conducted(monkeypatch, first, {"c": found("kl-missing")})
    assert findings == [name, "mutates-input"]
    assert untested == [Untested("c", "the output is of no use")]


def test_findings_come_in_the_order_of_the_experiments_and_reasons_in_one_line(monkeypatch):
    then = {
        "a": found("kl-missing", "noise-scale"),
        "b": refusing(Untestable("no such thing")),
        "c": refusing(ValueError("first\nsecond")),
        "d": refusing(ZeroDivisionError()),
        "e": found("softmax-output"),
    }
    findings, untested = conducted(monkeypatch, {"first": found("mutates-input")}, then)
    assert findings == ["mutates-input", "kl-missing", "noise-scale", "softmax-output"]
    assert untested == [
        Untested("b", "no such thing"),
        Untested("c", "raised ValueError: first"),
        Untested("d", "raised ZeroDivisionError: "),
    ]


def test_experiments_on_a_loss_are_left_out_where_there_is_none(monkeypatch):
    of_a_loss = found("kl-missing")
    of_a_loss.__module__ = "vae_astro.collapse.audit.objective"
    findings, untested = conducted(
        monkeypatch, {}, {"a": of_a_loss, "b": found("noise-scale")}
    )  # which is said once, by the audit itself
    assert (findings, untested) == (["noise-scale"], [])


def test_every_experiment_finds_the_model_in_evaluation_and_as_it_was(monkeypatch):
    seen = []

    def spoiling(bench: Any) -> list[Finding]:
        seen.append((bench.module.training, bench.module.weight.tolist()))
        bench.module.train()
        nn.init.zeros_(bench.module.weight)
        raise RuntimeError

    monkeypatch.setattr(conduct, "EXPERIMENTS", {"a": spoiling, "b": spoiling})
    bench = bench_of(torch.randn(4, 2))
    bench.subject.module = nn.Linear(2, 1)
    weight = bench.module.weight.tolist()
    _conduct(bench, [])
    assert seen == [(False, weight)] * 2
    assert bench.module.weight.tolist() == weight


# -- the audit -----------------------------------------------------------------------------------


class Line(nn.Module):
    """Three of four pixels are the code; keeps what its passes saw."""

    seen: list[Any] = []  # noqa: RUF012  # shared with the copy that is audited

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.count = nn.Parameter(torch.tensor(7), requires_grad=False)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append((torch.get_num_threads(), self.weight.requires_grad, id(self)))
        mu = x[:, :3] * self.weight
        return mu, 0 * mu

    def decode(self, z: Tensor) -> Tensor:
        return torch.cat([z / self.weight, 0 * z[:, :1]], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_var = self.encode(x)
        return self.decode(mu + torch.randn_like(mu)), mu, log_var

    def own_loss(self, recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
        self.seen.append(("loss", id(self), len(x)))
        return (recon - x).square().sum() + (mu.square() + log_var.exp() - log_var).sum()


@pytest.fixture
def seen(monkeypatch) -> list[Any]:
    kept: list[Any] = []
    monkeypatch.setattr(Line, "seen", kept)
    return kept


def peeping(monkeypatch) -> list[Any]:
    """Leave one experiment, which keeps the bench that it was given."""
    benches: list[Any] = []

    def peep(bench: Any) -> list[Finding]:
        benches.append(bench)
        bench.facts["peeped"] = 1.0
        return [Finding.of("noise-biased", "a"), Finding.of("noise-scale", "follows from it"),
                Finding.of("code-too-narrow", "b"), Finding.of("kl-wrong-sign", "c")]  # fmt: skip

    monkeypatch.setattr(conduct, "EXPERIMENTS", {"peep": peep})
    return benches


STAMPS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def test_report_tells_the_model_its_size_and_root_causes_with_the_gravest_first(monkeypatch):
    peeping(monkeypatch)
    report = audit(Line(), STAMPS)
    assert (report.model, report.interface) == ("Line", "forward(stamps)")
    assert (report.n_stamps, report.latent_dim) == (6, 3)
    assert report.names == ("kl-wrong-sign", "noise-biased", "code-too-narrow")
    assert report.facts == {"weights": 4, "peeped": 1.0}
    assert list(report.facts) == ["weights", "peeped"]
    assert report.untested == (Untested("the loss", "no loss was given, and the model has none"),)
    assert 0 < report.seconds < 60


@pytest.mark.parametrize("wrap", ["compiled", "parallel", "both"])
def test_a_wrapped_model_is_audited_itself(monkeypatch, wrap):
    peeping(monkeypatch)
    model: Any = Line()
    if wrap in ("parallel", "both"):
        model = nn.DataParallel(model)
    if wrap in ("compiled", "both"):
        inner, model = model, Empty()
        model._orig_mod = inner
    assert audit(model, STAMPS).model == "Line"


@pytest.mark.parametrize(("more", "n_threads"), [(0, 3), (1, 1)])
def test_a_model_with_many_weights_keeps_all_threads(monkeypatch, seen, more, n_threads):
    peeping(monkeypatch)
    monkeypatch.setattr(conduct, "MANY_WEIGHTS", 4 + more)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        audit(Line(), STAMPS)
    finally:
        torch.set_num_threads(before)
    assert {each[0] for each in seen} == {n_threads}


def test_weights_that_were_frozen_are_free_in_the_copy_alone(monkeypatch, seen):
    benches = peeping(monkeypatch)
    model = Line()
    model.weight.requires_grad_(False)
    audit(model, STAMPS)
    assert {each[1] for each in seen} == {True}
    assert not model.weight.requires_grad
    assert id(model) not in {each[2] for each in seen}
    assert torch.equal(benches[0].stamps, STAMPS)
    assert benches[0].stamps.data_ptr() != STAMPS.data_ptr()


def test_a_method_of_the_model_is_that_of_the_copy_and_tried_on_four_stamps(monkeypatch, seen):
    benches = peeping(monkeypatch)
    model, other = Line(), Line()
    audit(model, STAMPS, loss=model.own_loss)
    assert {each for each in seen if each[0] == "loss"} == {("loss", id(benches[0].module), 4)}
    seen.clear()
    audit(model, STAMPS, loss=other.own_loss)  # of somebody else: left as it is
    assert {each for each in seen if each[0] == "loss"} == {("loss", id(other), 4)}


def test_a_model_that_raises_on_a_later_pass_is_refused_with_its_reason(monkeypatch):
    def adapt(model: nn.Module, few: Tensor) -> Any:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(conduct, "adapt", adapt)
    with pytest.raises(InputError) as refused:
        _adapted(nn.Identity(), STAMPS)
    assert str(refused.value) == (
        "Identity raised ZeroDivisionError when it was run on stamps of shape (6, 4): on purpose"
    )
    assert isinstance(refused.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Line, "model must be a torch.nn.Module, got type"),
        (nn.LazyLinear(4), "LazyLinear has layers that take their size from the first batch; run "
         "it once on stamps first"),
    ],
)  # fmt: skip
def test_what_is_no_model_yet_is_refused_in_words(model, message):
    with pytest.raises(InputError) as refused:
        audit(model, STAMPS)
    assert str(refused.value) == message


def test_fewer_stamps_than_latent_units_are_refused():
    with pytest.raises(InputError, match=r"^2 stamps for 3 latent units: give at least 3 "):
        audit(Line(), STAMPS[:2])
