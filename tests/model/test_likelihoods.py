"""Likelihoods are normalised densities of the good pixels, and learn what they say they learn."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import ContinuousBernoulli

from vae_astro.errors import InputError
from vae_astro.model.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    FixedGaussian,
    Likelihood,
    NoiseGaussian,
    PixelMeanMSE,
    SharedGaussian,
    StudentT,
)
from vae_astro.settings import build

SCALES = (0.7, 1.9)
"""What the learned likelihoods below have learned, for each of two bands."""
SCALE_OF_BAND = np.array(SCALES)[:, None, None]


@dataclass(frozen=True)
class Pixels:
    """One batch: the arguments of `Likelihood.log_prob`, in its order."""

    image: Tensor
    output: Tensor
    mask: Tensor
    noise: Tensor

    def __iter__(self):
        return iter((self.image, self.output, self.mask, self.noise))


def pixels(seed: int = 0, *, n: int = 3, size: int = 5, kind: str = "real") -> Pixels:
    """A float64 batch of two bands, a quarter of the pixels masked; ``kind`` is their range."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 2, size, size)
    image, output = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    image = {"real": image, "unit": image.sigmoid(), "binary": (image > 0).double()}[kind]
    mask = torch.rand(shape, generator=generator) > 0.25
    noise = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
    return Pixels(image.where(mask, torch.zeros(())), output, mask, noise)


def trained(likelihood: Likelihood) -> Likelihood:
    """The likelihood in float64, its learned scales set to `SCALES`."""
    likelihood = likelihood.double()
    scales = torch.tensor(SCALES, dtype=torch.float64)
    for parameter in likelihood.parameters():
        parameter.data.copy_(scales.log())
    residual = scales[None, :, None, None].expand(1, 2, 4, 4)
    ones = torch.ones_like(residual)
    likelihood.observe(residual, torch.zeros_like(residual), ones.bool(), ones)
    return likelihood


def bernoulli_log_density(
    kind: type[TorchBernoulli] | type[ContinuousBernoulli], x: np.ndarray, logits: np.ndarray
) -> np.ndarray:
    return kind(logits=torch.from_numpy(logits)).log_prob(torch.from_numpy(x)).numpy()


@dataclass(frozen=True)
class Case:
    """A likelihood and what scipy or torch say of the same density, pixel by pixel."""

    make: Callable[[], Likelihood]
    log_density: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    """Of pixels, the decoder's output and the noise, all (B, C, H, W)."""
    kind: str = "real"


CASES = {
    "gaussian": Case(
        lambda: FixedGaussian(std=0.8), lambda x, out, noise: stats.norm.logpdf(x, out, 0.8)
    ),
    "sigma": Case(
        lambda: trained(SharedGaussian(n_bands=2)),
        lambda x, out, noise: stats.norm.logpdf(x, out, SCALE_OF_BAND),
    ),
    "sigma by gradient": Case(
        lambda: trained(SharedGaussian(n_bands=2, learn="gradient")),
        lambda x, out, noise: stats.norm.logpdf(x, out, SCALE_OF_BAND),
    ),
    "noise": Case(
        lambda: trained(NoiseGaussian(n_bands=2)),
        lambda x, out, noise: stats.norm.logpdf(x, out, SCALE_OF_BAND * noise),
    ),
    "noise by gradient": Case(
        lambda: trained(NoiseGaussian(n_bands=2, learn="gradient")),
        lambda x, out, noise: stats.norm.logpdf(x, out, SCALE_OF_BAND * noise),
    ),
    "student_t": Case(
        lambda: trained(StudentT(n_bands=2, dof=3.5)),
        lambda x, out, noise: stats.t.logpdf(x, 3.5, out, SCALE_OF_BAND),
    ),
    "continuous bernoulli": Case(
        lambda: Bernoulli(kind="continuous"),
        lambda x, out, noise: bernoulli_log_density(ContinuousBernoulli, x, out),
        kind="unit",
    ),
    "binary bernoulli": Case(
        lambda: Bernoulli(kind="binary"),
        lambda x, out, noise: bernoulli_log_density(TorchBernoulli, x, out),
        kind="binary",
    ),
    "pixel_mean_mse": Case(
        lambda: trained(PixelMeanMSE(n_bands=2)),
        lambda x, out, noise: stats.norm.logpdf(x, out, SCALE_OF_BAND),
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
on_the_line = pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c.kind == "real"],
    ids=[name for name, c in CASES.items() if c.kind == "real"],
)  # fmt: skip
learned_in_closed_form = pytest.mark.parametrize("kind", [SharedGaussian, PixelMeanMSE])


# -- densities -----------------------------------------------------------------------------------


@every_case
def test_log_prob_is_the_reference_density_summed_over_the_good_pixels_of_each_stamp(case):
    batch = pixels(kind=case.kind)
    density = case.log_density(*(t.numpy() for t in (batch.image, batch.output, batch.noise)))
    expected = np.where(batch.mask.numpy(), density, 0).sum((1, 2, 3))
    log_prob = case.make().log_prob(*batch)
    np.testing.assert_allclose(log_prob.detach().numpy(), expected, rtol=1e-10)


@on_the_line
@pytest.mark.parametrize("band", [0, 1])
def test_density_of_a_pixel_integrates_to_one(case, band):
    # x = sinh(t) turns the power-law tails of Student's t into exponential ones
    t = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    x = torch.zeros(len(t), 2, 1, 1, dtype=torch.float64)
    x[:, band, 0, 0] = t.sinh()
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, band] = True
    output, noise = torch.full_like(x, 0.3), torch.full_like(x, 1.4)
    density = case.make().log_prob(x, output, mask, noise).exp()
    assert torch.trapezoid(density * t.cosh(), t).item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("logit", [-100, -30, -17, -3, -0.1, 0, 0.003, 0.3, 1, 17, 30, 100])
def test_continuous_bernoulli_integrates_to_one_and_has_its_mean_at_the_location(
    logit, dtype, tolerance
):
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = torch.tensor(0.5 + 0.5 * nodes, dtype=dtype)[:, None, None, None]
    output = torch.full_like(x, logit)
    density = Bernoulli().log_prob(x, output, torch.ones_like(x).bool(), torch.ones_like(x)).exp()
    mass = density.double().numpy() * weights / 2
    mean = Bernoulli().location(output)[0].item()
    # the log-density is rounded at the size of the logit
    tolerance *= max(1, abs(logit))
    assert mass.sum() == pytest.approx(1, abs=tolerance)
    assert mean == pytest.approx((mass * x.double().flatten().numpy()).sum(), abs=tolerance)


def test_continuous_bernoulli_pulls_a_logit_by_the_pixel_less_its_expectation():
    # an exponential family; far out there is neither an overflow nor a plateau
    size = torch.tensor([0.0, 1e-3, 0.1, 0.3, 3.0, 17.0, 30.0, 300.0, 1e6])
    output = torch.cat([-size, size])[:, None, None, None].requires_grad_()
    image = torch.full_like(output, 0.3)
    Bernoulli().log_prob(image, output, image > 0, image).sum().backward()
    torch.testing.assert_close(
        output.grad, image - Bernoulli().location(output.detach()), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.0, 2.0, 30.0])
def test_binary_bernoulli_sums_to_one(logit):
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None, None]
    output = torch.full_like(x, logit)
    probability = Bernoulli(kind="binary").log_prob(x, output, torch.ones_like(x).bool(), x).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-14)


def test_binary_bernoulli_expects_the_sigmoid_of_the_logit():
    output = pixels().output
    torch.testing.assert_close(Bernoulli(kind="binary").location(output), output.sigmoid())


@on_the_line
def test_expected_pixel_is_what_the_decoder_emits(case):
    output = pixels().output
    assert torch.equal(case.make().location(output), output)


@every_case
def test_gradient_to_the_output_is_that_of_finite_differences(case):
    image, output, mask, noise = pixels(size=2, kind=case.kind)
    likelihood = case.make()
    assert torch.autograd.gradcheck(
        lambda out: likelihood.log_prob(image, out, mask, noise), output.requires_grad_()
    )


@pytest.mark.parametrize("name", ["sigma by gradient", "noise by gradient", "student_t"])
def test_gradient_to_the_learned_scale_is_that_of_finite_differences(name):
    batch, likelihood = pixels(size=2), CASES[name].make()
    ((key, parameter),) = likelihood.named_parameters()

    def log_prob(value: Tensor) -> Tensor:
        return torch.func.functional_call(likelihood, {key: value}, tuple(batch))

    likelihood.forward = likelihood.log_prob
    assert torch.autograd.gradcheck(log_prob, parameter.detach().requires_grad_())


def test_student_t_of_many_degrees_of_freedom_is_gaussian():
    batch = pixels()
    gaussian = FixedGaussian(std=1.0).log_prob(*batch)
    student = StudentT(n_bands=2, dof=1e7).double().log_prob(*batch)
    torch.testing.assert_close(student, gaussian, rtol=1e-5, atol=1e-5)


def test_student_t_pulls_less_on_a_wild_pixel_than_a_gaussian():
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    pulls = []
    for likelihood in (StudentT(n_bands=1, dof=4.0), FixedGaussian(std=1.0)):
        output = torch.zeros_like(one, requires_grad=True)
        likelihood.log_prob(50 * one, output, one.bool(), one).sum().backward()
        pulls.append(output.grad.item())
    # (dof + 1) r / (dof + r^2) and r, for a residual r of 50
    assert pulls == pytest.approx([5 * 50 / 2504, 50])


# -- masks ---------------------------------------------------------------------------------------


@on_the_line
@pytest.mark.parametrize("term", ["log_prob", "training_term"])
def test_masked_pixels_change_neither_value_nor_gradient(case, term):
    image, output, mask, noise = pixels()
    likelihood = case.make()
    value, gradient = [], []
    for garbage in (0.0, 1e6):
        out = torch.where(mask, output, garbage).requires_grad_()
        image_, noise_ = torch.where(mask, image, -garbage), torch.where(mask, noise, 1 + garbage)
        value.append(getattr(likelihood, term)(image_, out, mask, noise_))
        gradient.append(torch.autograd.grad(value[-1].sum(), out)[0])
    assert torch.equal(*value)
    assert torch.equal(*gradient)
    assert not gradient[0][~mask].any()
    assert gradient[0][mask].all()


@pytest.mark.parametrize("kind", ["continuous", "binary"])
def test_masked_pixels_of_a_bernoulli_change_neither_value_nor_gradient(kind):
    image, output, mask, noise = pixels(kind="unit")
    value, gradient = [], []
    for garbage in (0.0, 100.0):
        out = torch.where(mask, output, garbage).requires_grad_()
        value.append(Bernoulli(kind=kind).log_prob(image, out, mask, noise))
        gradient.append(torch.autograd.grad(value[-1].sum(), out)[0])
    assert torch.equal(*value)
    assert torch.equal(*gradient)
    assert not gradient[0][~mask].any()
    assert gradient[0][mask].all()


@every_case
def test_stamp_without_a_good_pixel_has_log_prob_zero(case):
    image, output, mask, noise = pixels(kind=case.kind)
    mask[1] = False
    log_prob = case.make().log_prob(image.where(mask, torch.zeros(())), output, mask, noise)
    assert log_prob[1] == 0
    assert log_prob[[0, 2]].all()


# -- learning in closed form ---------------------------------------------------------------------


def rms(residual: Tensor, mask: Tensor) -> list[float]:
    """Root mean square of the good pixels of each band."""
    return [residual[:, b][mask[:, b]].square().mean().sqrt().item() for b in range(2)]


@learned_in_closed_form
def test_sigma_after_one_batch_is_the_rms_of_its_good_residuals(kind):
    image, output, mask, noise = pixels()
    likelihood = kind(n_bands=2).double()
    likelihood.observe(torch.where(mask, image, 99.0), output, mask, noise)
    assert likelihood.describe()["std"] == pytest.approx(rms(image - output, mask))


def test_sigma_is_the_one_that_makes_its_batch_likeliest():
    batch = pixels()
    one_band = Pixels(*(value.flatten(1, 2)[:, None] for value in batch))
    likelihood = SharedGaussian(n_bands=1).double()
    likelihood.observe(*one_band)
    (std,) = likelihood.describe()["std"]
    best = likelihood.log_prob(*one_band).sum()
    for other in (0.99 * std, 1.01 * std):
        assert FixedGaussian(std=other).log_prob(*one_band).sum() < best


def test_sigma_of_the_first_batches_is_their_plain_average():
    likelihood = SharedGaussian(n_bands=2).double()
    batches = [pixels(seed) for seed in range(10)]
    for batch in batches:
        likelihood.observe(*batch)
    squares = np.array([rms(batch.image - batch.output, batch.mask) for batch in batches]) ** 2
    assert likelihood.describe()["std"] == pytest.approx(np.sqrt(squares.mean(0)).tolist())


def test_sigma_converges_to_the_true_one_band_by_band():
    true = torch.tensor([0.5, 2.0])[None, :, None, None]
    generator = torch.Generator().manual_seed(0)
    likelihood = SharedGaussian(n_bands=2)
    mask = torch.rand(4, 2, 16, 16, generator=generator) > 0.1
    zeros, ones = torch.zeros(mask.shape), torch.ones(mask.shape)
    for _ in range(300):
        likelihood.observe(true * torch.randn(mask.shape, generator=generator), zeros, mask, ones)
    # the window holds about 100 batches of 900 good pixels: a standard error of 0.24 %
    assert likelihood.describe()["std"] == pytest.approx([0.5, 2.0], rel=0.012)


def test_sigma_follows_residuals_that_shrink():
    likelihood, ones = SharedGaussian(n_bands=1), torch.ones(2, 1, 4, 4)
    for std in [10.0] * 100 + [0.1] * 600:
        likelihood.observe(std * ones, 0 * ones, ones.bool(), ones)
    # 600 batches at a momentum of 0.98 leave exp(-12) of the old mean square
    assert likelihood.describe()["std"] == pytest.approx([math.sqrt(0.01 + 100 * 0.98**600)], 1e-3)


def test_sigma_of_a_band_without_good_pixels_stays():
    image, output, mask, noise = pixels()
    likelihood = trained(SharedGaussian(n_bands=2))
    mask[:, 1] = False
    for _ in range(3):
        likelihood.observe(image, output, mask, noise)
    first, second = likelihood.describe()["std"]
    assert second == pytest.approx(SCALES[1])
    assert first != pytest.approx(SCALES[0])


def test_sigma_of_a_band_starts_at_the_first_batch_in_which_it_is_seen():
    image, output, mask, noise = pixels()
    likelihood = SharedGaussian(n_bands=2).double()
    unseen = mask.clone()
    unseen[:, 1] = False
    for _ in range(5):
        likelihood.observe(image, output, unseen, noise)
    likelihood.observe(image, output, mask, noise)
    assert likelihood.describe()["std"] == pytest.approx(rms(image - output, mask))


def test_sigma_does_not_count_a_batch_without_good_pixels():
    image, output, mask, noise = pixels()
    likelihood = SharedGaussian(n_bands=2).double()
    likelihood.observe(image, output, torch.zeros_like(mask), noise)
    likelihood.observe(image, output, mask, noise)
    assert likelihood.describe()["std"] == pytest.approx(rms(image - output, mask))


def test_perfect_reconstruction_has_a_finite_density():
    image, _, mask, noise = pixels()
    likelihood = SharedGaussian(n_bands=2).double()
    likelihood.observe(image, image, mask, noise)
    assert likelihood.describe()["std"] == pytest.approx([1e-3, 1e-3])
    assert likelihood.log_prob(image, image, mask, noise).isfinite().all()


def test_judging_a_batch_does_not_move_sigma():
    likelihood, batch = trained(SharedGaussian(n_bands=2)), pixels()
    likelihood.log_prob(*batch)
    likelihood.training_term(*batch)
    assert likelihood.describe()["std"] == pytest.approx(SCALES)


def test_sigma_learned_in_closed_form_has_no_parameter_and_no_gradient():
    likelihood = SharedGaussian(n_bands=2).double()
    image, output, mask, noise = pixels()
    likelihood.observe(image, output.requires_grad_(), mask, noise)
    assert list(likelihood.parameters()) == []
    assert not likelihood.log_prob(image, output.detach(), mask, noise).requires_grad


def test_inflation_is_the_rms_of_residuals_in_units_of_the_noise():
    image, output, mask, noise = pixels()
    likelihood = NoiseGaussian(n_bands=2).double()
    likelihood.observe(image, output, mask, torch.where(mask, noise, 1e-3))
    assert likelihood.describe()["inflation"] == pytest.approx(rms((image - output) / noise, mask))


def test_inflation_is_one_for_residuals_of_pure_noise():
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 + torch.rand(64, 2, 32, 32, generator=generator)
    residual = noise * torch.randn(noise.shape, generator=generator)
    likelihood = NoiseGaussian(n_bands=2)
    likelihood.observe(residual, torch.zeros_like(noise), noise > 0, noise)
    # five standard errors of a standard deviation of 65 536 pixels
    assert likelihood.describe()["inflation"] == pytest.approx([1, 1], abs=0.014)


# -- learning by gradient ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "key"), [(SharedGaussian, "std"), (NoiseGaussian, "inflation")])
def test_scale_learned_by_gradient_ends_where_the_closed_form_is(kind, key):
    batch = pixels()
    by_gradient = kind(n_bands=2, learn="gradient").double()
    closed_form = kind(n_bands=2).double()
    closed_form.observe(*batch)
    optimizer = torch.optim.Adam(by_gradient.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        by_gradient.observe(*batch)  # does nothing here
        (-by_gradient.log_prob(*batch).mean()).backward()
        optimizer.step()
    assert by_gradient.describe()[key] == pytest.approx(closed_form.describe()[key], rel=1e-3)


@pytest.mark.parametrize(
    ("likelihood", "key"),
    [
        (SharedGaussian(n_bands=2, learn="gradient"), "std"),
        (NoiseGaussian(n_bands=2, learn="gradient"), "inflation"),
        (StudentT(n_bands=2), "scale"),
    ],
)
def test_scale_learned_by_gradient_is_one_parameter_per_band_started_by_the_first_batch(
    likelihood, key
):
    (parameter,) = likelihood.parameters()
    assert parameter.shape == (2,)
    assert parameter.requires_grad
    assert likelihood.describe() == {key: [1.0, 1.0]}
    image = 0.01 * torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = (image, torch.zeros_like(image), torch.ones_like(image, dtype=torch.bool),
             torch.ones_like(image))  # fmt: skip
    likelihood.observe(*batch)
    assert likelihood.describe()[key] == pytest.approx([0.01, 0.01], rel=0.3)
    before = likelihood.describe()
    likelihood.observe(100 * image, *batch[1:])
    assert likelihood.describe() == before  # from there it is the gradient's


def test_student_settles_where_its_likelihood_is_largest():
    torch.manual_seed(0)
    image = torch.distributions.StudentT(4.0, scale=0.3).sample((500, 1, 4, 4))
    likelihood = StudentT(n_bands=1)
    rest = (torch.zeros_like(image), torch.ones_like(image, dtype=torch.bool),
            torch.ones_like(image))  # fmt: skip
    likelihood.settle(image, *rest)
    likelihood.log_prob(image, *rest).mean().backward()
    assert abs(float(likelihood.scale.log_std.grad)) < 1e-2
    assert likelihood.describe()["scale"] == pytest.approx([0.3], rel=0.1)


# -- bernoulli -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["continuous", "binary"])
@pytest.mark.parametrize("wild", [-0.25, 1.5])
def test_bernoulli_refuses_pixels_outside_zero_to_one_with_advice(kind, wild):
    image, output, mask, noise = pixels(kind="binary")
    image[0, 0, 0, 0], mask[0, 0, 0, 0] = wild, True
    with pytest.raises(InputError) as refused:
        Bernoulli(kind=kind).log_prob(image, output, mask, noise)
    assert str(refused.value) == (
        f"likelihood=bernoulli needs pixels between 0 and 1, got {min(wild, 0):g} to "
        f"{max(wild, 1):g}; set data.normalize.stretch=minmax or choose another likelihood"
    )


# -- the mean squared error ----------------------------------------------------------------------


def test_training_term_of_pixel_mean_mse_is_minus_the_mean_over_good_pixels():
    batch = pixels()
    squared = (batch.image - batch.output).square()
    expected = [-squared[k][batch.mask[k]].mean().item() for k in range(3)]
    term = PixelMeanMSE(n_bands=2).training_term(*batch)
    assert term.tolist() == pytest.approx(expected)


def test_training_term_of_pixel_mean_mse_is_zero_without_a_good_pixel():
    image, output, mask, noise = pixels()
    mask[0] = False
    assert PixelMeanMSE(n_bands=2).training_term(image, output, mask, noise)[0] == 0


def test_pixel_mean_mse_times_half_the_pixels_pulls_like_a_gaussian_of_unit_variance():
    image, output, mask, noise = pixels()
    output.requires_grad_()
    half_pixels = mask.flatten(1).sum(1) / 2
    pulls = [
        torch.autograd.grad(term.sum(), output)[0]
        for term in (
            PixelMeanMSE(n_bands=2).training_term(image, output, mask, noise) * half_pixels,
            FixedGaussian(std=1.0).log_prob(image, output, mask, noise),
        )
    ]
    torch.testing.assert_close(*pulls)


def test_pixel_mean_mse_alone_is_no_density():
    made = {name: built(name) for name in LIKELIHOODS}
    assert [name for name, one in made.items() if not one.is_density] == ["pixel_mean_mse"]
    assert {one.kl_weight for one in made.values()} == {1.0}


@every_case
def test_training_term_of_a_density_is_its_log_prob(case):
    likelihood, batch = case.make(), pixels(kind=case.kind)
    same = torch.equal(likelihood.training_term(*batch), likelihood.log_prob(*batch))
    assert same is likelihood.is_density


def test_pixel_mean_mse_keeps_the_weight_of_the_kl():
    assert PixelMeanMSE(n_bands=1, kl_weight=0.005).kl_weight == 0.005


# -- settings and files --------------------------------------------------------------------------


def built(name: str, **keys: object) -> Likelihood:
    """A likelihood as the config builds it."""
    return build("likelihood", LIKELIHOODS, {"name": name, **keys}, n_bands=2)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("gaussian", {"std": 0}, "likelihood.std must be greater than 0, got 0"),
        ("gaussian", {"std": -1.5}, "likelihood.std must be greater than 0, got -1.5"),
        ("gaussian", {"std": math.nan}, "likelihood.std must be a finite number, got nan"),
        *(
            (
                name,
                {"learn": "adam"},
                "likelihood.learn must be one of closed_form, gradient, got 'adam'",
            )
            for name in ("sigma", "noise")
        ),
        ("student_t", {"dof": 0}, "likelihood.dof must be greater than 0, got 0"),
        (
            "bernoulli",
            {"kind": "fuzzy"},
            "likelihood.kind must be one of continuous, binary, got 'fuzzy'",
        ),
        ("pixel_mean_mse", {"kl_weight": 0}, "likelihood.kl_weight must be greater than 0, got 0"),
        (
            "poisson",
            {},
            "likelihood.name is 'poisson'; choose one of gaussian, sigma, noise, student_t, "
            "bernoulli, pixel_mean_mse",
        ),
    ],
)
def test_setting_out_of_range_is_refused_by_its_key(name, keys, message):
    with pytest.raises(InputError) as refused:
        built(name, **keys)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "name", ["sigma", "sigma by gradient", "noise", "student_t", "pixel_mean_mse"]
)
def test_state_dict_carries_what_was_learned(name):
    learned, other = CASES[name].make(), CASES[name].make()
    other.load_state_dict({key: torch.ones_like(v) for key, v in other.state_dict().items()})
    assert other.describe() != learned.describe()
    file = io.BytesIO()
    torch.save(learned.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.describe() == learned.describe()
    assert torch.equal(other.log_prob(*pixels()), learned.log_prob(*pixels()))


def test_resumed_sigma_goes_on_as_the_uninterrupted_one():
    uninterrupted, resumed = (SharedGaussian(n_bands=2).double() for _ in range(2))
    for seed in range(3):
        uninterrupted.observe(*pixels(seed))
    resumed.load_state_dict(uninterrupted.state_dict())
    for likelihood in (uninterrupted, resumed):
        likelihood.observe(*pixels(3))
    assert resumed.describe() == uninterrupted.describe()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_repr_names_the_likelihood(name):
    assert repr(built(name)).startswith(type(built(name)).__name__)


def test_a_first_step_that_is_taken_again_counts_once_and_is_remembered() -> None:
    made = SharedGaussian(n_bands=1, learn="gradient")
    image, mask = torch.randn(4, 1, 8, 8), torch.ones(4, 1, 8, 8, dtype=torch.bool)
    made.observe(image, torch.zeros_like(image), mask, image)
    learned = made.scale.log_std.detach().clone()
    made.scale.n_updates.zero_()  # what a step does that runs out of memory and is repeated
    made.observe(image, torch.zeros_like(image), mask, image)
    assert made.scale.n_updates.item() == 1
    loaded = SharedGaussian(n_bands=1, learn="gradient")
    loaded.load_state_dict(made.state_dict())
    assert loaded.started
    loaded.observe(9 * image, torch.zeros_like(image), mask, image)
    assert torch.equal(loaded.scale.log_std, learned)
