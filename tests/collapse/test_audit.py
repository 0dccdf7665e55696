"""Planted faults are found by name, healthy models pass, and the caller's model stays as it was."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import plain_vae
import pytest
import torch
from plain_vae import SIZE, PlainVAE, sky_stamps, unit_stamps
from torch import Tensor, nn

from vae_astro.collapse.audit import AuditReport, audit
from vae_astro.collapse.audit.conduct import EXPERIMENTS
from vae_astro.collapse.audit.faults import CATALOGUE
from vae_astro.collapse.audit.findings import Finding, root_causes
from vae_astro.data.alerts import AlertReader
from vae_astro.data.normalize import Normalizer
from vae_astro.data.stamp import Stamp
from vae_astro.errors import InputError
from vae_astro.vae import VAE

HERE = Path(__file__).parent
FAULTS = sorted(path.stem for path in (HERE / "faults").glob("*.py"))
HEALTHY = sorted(path.stem for path in (HERE / "healthy").glob("*.py"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def load(folder: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", HERE / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks for its module there
    spec.loader.exec_module(module)
    return module


def stamps_of(module: ModuleType) -> Tensor:
    stamps: Tensor = getattr(plain_vae, f"{getattr(module, 'STAMPS', 'sky')}_stamps")()
    return stamps


def raised(report: AuditReport) -> list[str]:
    return [each.reason for each in report.untested if "raised" in each.reason]


def question(size: int = SIZE, **changes: Any) -> VAE:
    """The network and the loss of the question."""
    asked = {
        "latent_dim": 2,
        "bottleneck_units": 4,
        "dying_bottleneck": True,
        "softmax_output": True,
        "eps_std": 0.1,
        "exp_full_log_var": True,
    }
    return VAE(
        (1, size, size),
        model={"name": "question", **asked, **changes},
        likelihood={"name": "pixel_mean_mse", "kl_weight": 1000.0},
    )


# Faults


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found_and_nothing_else(name):
    module = load("faults", name)
    report = audit(module.Model(), stamps_of(module))
    assert set(report.names) == module.FINDINGS
    assert raised(report) == []


def test_there_are_faults_enough_and_most_findings_have_one():
    planted = set().union(*(load("faults", name).FINDINGS for name in FAULTS))
    assert len(FAULTS) >= 20
    assert planted == set(CATALOGUE)


def test_all_six_faults_of_the_question_are_found_together():
    report = audit(question(), unit_stamps())
    assert set(report.names) == {
        "softmax-output",
        "kl-weight-collapses",
        "noise-scale",
        "noise-exp-log-var",
        "bottleneck-can-die",
        "code-too-narrow",
    }


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ({"softmax_output": False}, "softmax-output"),
        ({"eps_std": 1.0}, "noise-scale"),
        ({"exp_full_log_var": False}, "noise-exp-log-var"),
        ({"dying_bottleneck": False}, "bottleneck-can-die"),
        ({"bottleneck_units": 128}, "bottleneck-can-die"),
        ({"latent_dim": 16, "bottleneck_units": 128}, "code-too-narrow"),
    ],
)
def test_fault_of_the_question_that_is_mended_is_no_longer_found(switch, gone):
    names = audit(question(**switch), unit_stamps()).names
    assert gone not in names
    assert "kl-weight-collapses" in names


def test_dead_bottleneck_of_the_question_is_found_beside_its_other_faults():
    vae = question()
    with torch.no_grad():
        vae.network.encoder.trunk[5].bias.fill_(-1e3)
    names = audit(vae, unit_stamps()).names
    assert {"dead-bottleneck", "bottleneck-can-die", "noise-scale", "code-too-narrow"} < set(names)


# Health


def own(name: str, **settings: Any) -> VAE:
    return VAE((1, SIZE, SIZE), model={"name": name, **settings})


OWN = [own("conv", width=8), own("linear"), own("question")]


def trained(model: VAE, stamps: Tensor, n_steps: int = 30) -> VAE:
    """A few steps of the ELBO, without a trainer."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    mask, noise = torch.ones_like(stamps, dtype=torch.bool), torch.ones_like(stamps)
    for _ in range(n_steps):
        posterior = model.network.encode(stamps)
        output = model.network.decode(posterior.sample(torch.randn_like(posterior.mean)))
        model.likelihood.observe(stamps, output.detach(), mask, noise)
        density = model.likelihood.training_term(stamps, output, mask, noise)
        loss = (model.prior.kl_per_unit(posterior).sum(1) - density).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_model_has_no_finding(name):
    module = load("healthy", name)
    report = audit(module.Model(), stamps_of(module))
    assert report.names == ()
    assert raised(report) == []


@pytest.mark.parametrize("model", OWN, ids=["conv", "linear", "question"])
def test_own_model_has_no_finding_at_its_start_nor_after_some_training(model):
    stamps = sky_stamps()
    assert audit(model, stamps).names == ()
    report = audit(trained(model, stamps), stamps)
    assert report.names == ()
    assert raised(report) == []
    assert report.facts["learned_scale"] is True


def test_there_are_ten_healthy_models():
    assert len(HEALTHY) + len(OWN) >= 10


def test_healthy_list_of_outputs_is_converted_to_the_same_loss_as_half_the_summed_square():
    report = audit(load("healthy", "list_output").Model(), sky_stamps())
    assert report.facts["beta_s2"] == pytest.approx(1.0, rel=1e-3)
    assert report.facts["reduction"] == {"pixels": "averaged", "units": "summed"}


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
    text = (HERE.parents[1] / "docs" / "audit.md").read_text("utf-8")
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
        audit(own("linear"), sky_stamps(size=24))


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
    assert audit(own("linear"), sky_stamps()).names == ()


# Real cutouts


def science_cutouts(root: Path, stretch: str, n: int = 64) -> Tensor:
    """Normalised science cutouts of the first alerts, (n, 1, 63, 63)."""
    folder = root / "ztf_alerts"
    reader = AlertReader(cutouts=("science",))
    stamps = (
        each for path in reader.find(folder) for each in reader.read(path, folder)
        if isinstance(each, Stamp)
    )  # fmt: skip
    raw = np.stack([each.pixels for each in islice(stamps, n)])
    return Normalizer(stretch=stretch)(torch.from_numpy(raw.astype(np.float32))).image


@pytest.mark.real_data
def test_default_network_has_no_finding_on_real_cutouts(real_data):
    report = audit(VAE((1, 63, 63)), science_cutouts(real_data, "asinh"))
    assert report.names == ()
    assert raised(report) == []


@pytest.mark.real_data
def test_all_six_faults_of_the_question_are_found_on_real_cutouts(real_data):
    report = audit(question(size=63), science_cutouts(real_data, "minmax"))
    assert len(report.names) == 6
