"""The audit itself: losses in numbers, the report, nothing of the caller's changed, bad input."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import plain_vae
import pytest
import torch
from plain_vae import SIZE, PlainVAE, sky_stamps
from planted import load, raised
from torch import Tensor, nn

from vae_astro.collapse.audit import AuditReport, audit
from vae_astro.collapse.audit.conduct import EXPERIMENTS
from vae_astro.collapse.audit.faults import CATALOGUE
from vae_astro.collapse.audit.findings import Finding, root_causes
from vae_astro.errors import InputError
from vae_astro.vae import VAE

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# The loss in numbers


def loss_of(reconstruction, kl) -> Any:
    def loss(recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
        per_unit = 0.5 * (mu.square() + log_var.exp() - log_var - 1)
        return reconstruction((recon - x).square()) + kl(per_unit)

    return loss


N_PIXELS, N_UNITS = SIZE**2, plain_vae.LATENT_DIM


@pytest.mark.parametrize(
    ("reconstruction", "kl", "beta_s2"),
    [
        (lambda s: 0.5 * s.sum() / len(s), lambda k: 3 * k.sum() / len(k), 3),
        (lambda s: s.sum() / len(s), lambda k: 3 * k.sum() / len(k), 1.5),
        (lambda s: s.mean(), lambda k: 0.01 * k.sum(1).mean(), 0.01 * N_PIXELS / 2),
        (lambda s: s.mean(), lambda k: 0.1 * k.mean(), 0.1 * N_PIXELS / (2 * N_UNITS)),
        (lambda s: s.sum(), lambda k: k.sum(), 0.5),
        (lambda s: s.mean().sqrt(), lambda k: 0.01 * k.sum(1).mean(), None),
    ],
    ids=["half-sse", "sse", "pixel-mean", "both-mean", "batch-sum", "root"],
)
def test_weight_of_a_loss_is_measured_as_the_conversion_has_it(reconstruction, kl, beta_s2):
    report = audit(PlainVAE(), sky_stamps(), loss=loss_of(reconstruction, kl))
    assert report.names == ()
    if beta_s2 is not None:
        assert report.facts["beta_s2"] == pytest.approx(beta_s2, rel=1e-3)


def test_largest_eigenvalue_is_that_of_the_covariance_of_the_stamps():
    stamps = sky_stamps()
    flat = stamps.flatten(1).double().numpy()
    expected = np.linalg.eigvalsh(np.cov(flat.T, bias=True))[-1]
    report = audit(PlainVAE(), stamps)
    assert report.facts["largest_eigenvalue"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("share", "collapses"), [(0.9, False), (1.1, True)])
def test_collapse_is_certain_from_the_largest_eigenvalue_on(share, collapses):
    stamps = sky_stamps()
    eigenvalue = audit(PlainVAE(), stamps).facts["largest_eigenvalue"]
    loss = loss_of(lambda s: 0.5 * s.sum() / len(s), lambda k: share * eigenvalue * k.sum(1).mean())
    assert ("kl-weight-collapses" in audit(PlainVAE(), stamps, loss=loss).names) == collapses


def test_free_bits_keep_a_heavy_kl_from_being_called_certain_collapse():
    def free(k: Tensor) -> Tensor:
        return 1e6 * k.mean(0).clamp(min=0.1).sum()

    report = audit(PlainVAE(), sky_stamps(), loss=loss_of(lambda s: s.sum() / len(s), free))
    assert report.names == ()
    assert report.facts["kl_slack_near_prior"] is True


def test_learned_noise_keeps_a_heavy_kl_from_being_called_certain_collapse():
    class Model(PlainVAE):
        def __init__(self) -> None:
            super().__init__()
            self.log_sigma = nn.Parameter(torch.tensor(5.0))

        def reconstruction(self, recon: Tensor, x: Tensor) -> Tensor:
            scaled = (recon - x).square() * torch.exp(-2 * self.log_sigma)
            return (0.5 * scaled + self.log_sigma).sum() / len(x)

    report = audit(Model(), sky_stamps())
    assert report.facts["beta_s2"] > report.facts["largest_eigenvalue"]
    assert report.facts["learned_scale"] is True
    assert report.names == ()


def test_absolute_error_and_cross_entropy_have_a_weight_too():
    def absolute(recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
        return (recon - x).abs().sum() / len(x) + PlainVAE.kl(None, mu, log_var)  # type: ignore[arg-type]

    report = audit(PlainVAE(), sky_stamps(), loss=absolute)
    assert report.names == ()
    assert 0 < report.facts["beta_s2"] < report.facts["largest_eigenvalue"]


# The report


def test_report_is_plain_json_and_a_text_that_tells_all_of_a_finding():
    report = audit(load("faults", "noise_a_tenth").Model(), sky_stamps())
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()
    (finding,) = report.findings
    text = " ".join(str(report).split())
    for part in (finding.name, finding.measured, finding.why, finding.mend):
        assert part in text
    assert finding.severity.upper() in text
    assert re.search(r"0\.(09|1)\d* times", finding.measured)


def test_report_in_json_has_no_number_that_json_lacks():
    report = AuditReport("Model", "forward", 2, 1, (), (), {"beta_s2": float("nan")}, 0.0)
    assert report.as_dict()["facts"]["beta_s2"] is None


def test_findings_come_with_the_gravest_first():
    names = ("code-too-narrow", "noise-scale", "kl-wrong-sign")
    ordered = root_causes([Finding.of(name, "") for name in names])
    assert [each.severity for each in ordered] == ["fatal", "serious", "minor"]


def test_finding_that_follows_from_another_is_left_out_and_hides_nothing_itself():
    chain = ("softmax-output", "output-ignores-input", "noise-scale")
    kept = root_causes([Finding.of(name, "") for name in chain])
    assert {each.name for each in kept} == {"softmax-output", "noise-scale"}


def test_every_hidden_finding_exists_and_no_two_hide_each_other():
    for name, entry in CATALOGUE.items():
        assert set(entry.hides) <= set(CATALOGUE)
        assert not [each for each in entry.hides if name in CATALOGUE[each].hides]


def test_documentation_has_every_finding():
    text = (ROOT / "docs" / "audit.md").read_text("utf-8")
    assert [name for name in CATALOGUE if f"`{name}`" not in text] == []


def test_two_audits_of_the_same_model_measure_the_same():
    model, stamps = load("faults", "noise_a_tenth").Model(), sky_stamps()
    first, second = audit(model, stamps).as_dict(), audit(model, stamps).as_dict()
    assert first.pop("seconds") > 0
    second.pop("seconds")
    assert first == second


# Nothing of the caller's changes


def test_audit_leaves_model_stamps_and_random_states_as_they_were():
    model, stamps = load("healthy", "dict_output").Model(), sky_stamps()
    model.train()
    model.encoder[0].eval()
    model.decoder[0].weight.grad = torch.ones_like(model.decoder[0].weight)
    model.decoder[0].bias.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [each.training for each in model.modules()]
    given, drawn = stamps.clone(), torch.get_rng_state()
    numbers, words = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002

    audit(model, stamps)

    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [each.training for each in model.modules()] == flags
    assert model.decoder[0].weight.grad is not None
    assert not model.decoder[0].bias.requires_grad
    assert not model._forward_hooks
    assert not any(each._forward_pre_hooks for each in model.modules())
    assert torch.equal(stamps, given)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002
    assert random.getstate() == words


def test_model_that_changes_its_input_does_not_reach_the_callers_stamps():
    stamps = sky_stamps()
    given = stamps.clone()
    report = audit(load("faults", "mutates_input").Model(), stamps)
    assert report.names == ("mutates-input",)
    assert torch.equal(stamps, given)


def test_model_that_raises_in_the_middle_is_left_as_it_was():
    class Model(PlainVAE):
        def decode(self, z: Tensor) -> Tensor:
            if bool((z.abs() > 15).any()):  # only where the audit pushes it
                raise RuntimeError("too far out")
            return super().decode(z)

    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = audit(model, sky_stamps())
    assert any("too far out" in reason for reason in raised(report))
    assert report.names == ()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_experiments_that_fail_leave_the_others_their_model(monkeypatch):
    def broken(bench: Any) -> list[Finding]:
        with torch.no_grad():
            for weight in bench.module.parameters():
                weight.zero_()
        bench.module.train()
        raise RuntimeError("broken")

    names = ("input left alone", "code reaches output", "form of the KL", "room in the code")
    for name in names:
        monkeypatch.setitem(EXPERIMENTS, name, broken)
    report = audit(load("faults", "noise_a_tenth").Model(), sky_stamps())
    assert report.names == ("noise-scale",)
    assert [each.experiment for each in report.untested] == list(names)
    assert raised(report) == ["raised RuntimeError: broken"] * len(names)


# Bad input


class Raises(PlainVAE):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        raise ZeroDivisionError("on purpose")


class ReturnsText(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "nothing"


class ReturnsCodeOnly(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"mu": x.flatten(1)[:, :4]}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Raises(), "ZeroDivisionError: on purpose"),
        (ReturnsText(), "no tensor but str"),
        (ReturnsCodeOnly(), "return the reconstruction first"),
        (nn.Linear(7, 7), "mat1 and mat2"),
        (PlainVAE().to("meta"), "meta device"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), "run it once on stamps first"),
        (PlainVAE, "must be a torch.nn.Module, got type"),
    ],
)
def test_model_that_cannot_be_used_ends_in_one_clear_error(model, message):
    with pytest.raises(InputError, match=message) as error:
        audit(model, sky_stamps())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        (sky_stamps(n=4), "4 stamps for 8 latent units: give at least 8"),
        (sky_stamps(n=1), "one stamp"),
        (torch.ones(64, 1, SIZE, SIZE), "all 64 stamps are the same"),
        (sky_stamps()[:1].expand(64, 1, SIZE, SIZE), "all 64 stamps are the same"),
        (torch.arange(64.0).view(-1, 1, 1, 1).expand(64, 1, SIZE, SIZE), "is constant"),
        (torch.full((64, 1, SIZE, SIZE), torch.nan), "25600 NaN"),
        (torch.zeros(0, 1, SIZE, SIZE), "shape"),
        (torch.zeros(64), "shape"),
        (sky_stamps().to("meta"), "meta device"),
        (np.array(["a"]), "array of numbers"),
        (sky_stamps(size=24), "cannot be run on stamps of shape"),
    ],
)
def test_stamps_that_tell_nothing_end_in_one_clear_error(stamps, message):
    with pytest.raises(InputError, match=message):
        audit(PlainVAE(), stamps)


def test_own_model_asks_for_stamps_of_its_shape():
    with pytest.raises(InputError, match=r"\(1, 24, 24\), the model takes \(1, 20, 20\)"):
        audit(VAE((1, SIZE, SIZE), model={"name": "linear"}), sky_stamps(size=24))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (7, "loss must be a function, got int"),
        (lambda a, b, c, d: 1 / 0, "division by zero"),
        (lambda a: a, "could not be called"),
        (lambda recon, x, mu, log_var: "text", "no tensor but str"),
    ],
)
def test_loss_that_cannot_be_called_ends_in_one_clear_error(loss, message):
    with pytest.raises(InputError, match=message):
        audit(PlainVAE(), sky_stamps(), loss=loss)


def test_stamps_of_other_kinds_are_taken_as_they_are():
    reference = audit(PlainVAE(), sky_stamps()).facts["largest_eigenvalue"]
    for stamps in (
        sky_stamps().numpy(),
        sky_stamps()[:, 0],
        sky_stamps().double(),
        sky_stamps().flatten(1),
    ):
        torch.manual_seed(0)
        report = audit(PlainVAE(), stamps)
        assert report.names == ()
        assert report.facts["largest_eigenvalue"] == pytest.approx(reference, rel=1e-5)


def test_model_in_double_precision_and_frozen_is_audited_like_any():
    model = PlainVAE().double().requires_grad_(False)
    report = audit(model, sky_stamps())
    assert report.names == ()
    assert raised(report) == []


def test_model_in_a_wrapper_is_audited_itself():
    report = audit(nn.DataParallel(PlainVAE()), sky_stamps())
    assert (report.model, report.names) == ("PlainVAE", ())


@torch.inference_mode()
def test_audit_works_where_gradients_are_off():
    assert audit(VAE((1, SIZE, SIZE), model={"name": "linear"}), sky_stamps()).names == ()
