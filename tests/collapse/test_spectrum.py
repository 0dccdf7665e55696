"""The whitened covariance that a forecast rests on, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vae_astro.collapse import spectrum as module
from vae_astro.collapse.spectrum import measure_spectrum
from vae_astro.data.normalize import Normalizer
from vae_astro.errors import InputError
from vae_astro.model.focus import FocusedLikelihood, central_window
from vae_astro.model.likelihoods import (
    Bernoulli,
    FixedGaussian,
    NoiseGaussian,
    PixelMeanMSE,
    SharedGaussian,
    StudentT,
)


def batch_of(image: torch.Tensor, mask=None, noise=None) -> dict[str, torch.Tensor]:
    image = image.float()
    mask = torch.ones_like(image, dtype=torch.bool) if mask is None else mask
    noise = torch.ones_like(image) if noise is None else noise
    return {
        "image": image.where(mask, torch.zeros(())),
        "mask": mask,
        "noise": noise.float().where(mask, torch.ones(())),
        "index": torch.arange(len(image)),
    }


@pytest.fixture
def stamps() -> torch.Tensor:
    """300 stamps of 6x6 with a steep spectrum and a mean that is not zero."""
    rng = torch.Generator().manual_seed(1)
    strengths = torch.logspace(1, -1.5, 36)
    basis, _ = torch.linalg.qr(torch.randn(36, 36, generator=rng))
    code = torch.randn(300, 36, generator=rng) * strengths.sqrt()
    return (code @ basis.T + torch.linspace(-2, 3, 36)).view(300, 1, 6, 6)


def covariance_eigenvalues(stamps: torch.Tensor) -> np.ndarray:
    flat = stamps.flatten(1).double().numpy()
    return np.linalg.eigvalsh(np.cov(flat, rowvar=False, bias=True))[::-1]


def test_fixed_gaussian_gives_the_covariance_over_its_variance(stamps) -> None:
    found = measure_spectrum([batch_of(stamps)], FixedGaussian(std=0.7), n_modes=36)
    assert found.decoder_variance == pytest.approx([0.49])
    np.testing.assert_allclose(
        found.eigenvalues, covariance_eigenvalues(stamps) / 0.49, rtol=1e-4, atol=1e-5
    )


def test_batches_of_any_size_give_the_same(stamps) -> None:
    whole = measure_spectrum([batch_of(stamps)], FixedGaussian())
    parts = measure_spectrum([batch_of(part) for part in stamps.split(7)], FixedGaussian())
    np.testing.assert_allclose(whole.eigenvalues, parts.eigenvalues, rtol=1e-6)


def test_learned_scale_is_that_of_the_collapsed_code(stamps) -> None:
    for learn in ("closed_form", "gradient"):
        found = measure_spectrum([batch_of(stamps)], SharedGaussian(n_bands=1, learn=learn))
        total = covariance_eigenvalues(stamps).sum() / 36
        assert found.decoder_variance == pytest.approx([total], rel=1e-5)
        assert found.variance == pytest.approx([36.0], rel=1e-5)
        assert found.learned_scale


def test_the_likelihood_that_is_passed_in_is_left_alone(stamps) -> None:
    likelihood = SharedGaussian(n_bands=1)
    before = {name: value.clone() for name, value in likelihood.state_dict().items()}
    measure_spectrum([batch_of(stamps)], likelihood)
    for name, value in likelihood.state_dict().items():
        assert torch.equal(value, before[name])


def test_pixel_mean_mse_has_the_threshold_of_the_question(stamps) -> None:
    """1000 times a pixel-mean squared error: beta s2 = 1000 D / 2."""
    found = measure_spectrum([batch_of(stamps)], PixelMeanMSE(n_bands=1, kl_weight=1000.0))
    threshold = found.kl_weight * found.decoder_variance[0]
    assert threshold == pytest.approx(1000 * 36 / 2)
    leading = found.eigenvalues[0] * found.decoder_variance[0]
    assert leading == pytest.approx(covariance_eigenvalues(stamps)[0], rel=1e-4)


def test_known_noise_whitens_the_stamps(stamps) -> None:
    noise = torch.linspace(0.5, 4, 36).view(1, 1, 6, 6).expand_as(stamps)
    found = measure_spectrum([batch_of(stamps * noise, noise=noise)], NoiseGaussian(n_bands=1))
    alone = measure_spectrum([batch_of(stamps)], SharedGaussian(n_bands=1))
    np.testing.assert_allclose(found.eigenvalues, alone.eigenvalues, rtol=1e-3)


def test_masked_pixels_count_by_the_stamps_that_saw_them(stamps) -> None:
    """Masks at random leave the diagonal what it was: the variance of the good pixels."""
    rng = torch.Generator().manual_seed(5)
    many = stamps.repeat(30, 1, 1, 1)
    mask = torch.rand(many.shape, generator=rng) > 0.2
    found = measure_spectrum([batch_of(many, mask)], FixedGaussian())
    assert found.variance[0] == pytest.approx(covariance_eigenvalues(stamps).sum(), rel=0.03)
    assert found.decoder_variance == pytest.approx([1.0])


def test_a_pixel_that_nobody_saw_is_left_out(stamps) -> None:
    mask = torch.ones_like(stamps, dtype=torch.bool)
    mask[..., 0] = False
    found = measure_spectrum([batch_of(stamps, mask)], FixedGaussian())
    assert found.n_pixels == 30
    without = covariance_eigenvalues(stamps[..., 1:])
    np.testing.assert_allclose(found.eigenvalues[:20], without[:20], rtol=1e-4)


def test_student_with_many_degrees_of_freedom_is_gaussian(stamps) -> None:
    gaussian = measure_spectrum([batch_of(stamps)], SharedGaussian(n_bands=1))
    student = measure_spectrum([batch_of(stamps)], StudentT(n_bands=1, dof=1e5))
    np.testing.assert_allclose(student.eigenvalues[:10], gaussian.eigenvalues[:10], rtol=2e-3)


def test_binary_pixels_are_weighed_in_logits() -> None:
    """With two kinds of stamps, psi = x - p and h = p (1 - p) have a closed form."""
    image = torch.zeros(400, 1, 4, 4)
    image[:100, :, :2] = 1  # a quarter of the stamps: the upper half is on
    image[torch.arange(0, 400, 2), :, 2:] = 1
    found = measure_spectrum([batch_of(image)], Bernoulli(kind="binary"), n_modes=4)
    # both halves are perfectly correlated within themselves: eight pixels of unit variance each
    np.testing.assert_allclose(found.eigenvalues[:2], [8, 8], rtol=2e-3)
    quarter, half = 0.25 * 0.75, 0.25
    assert found.decoder_variance[0] == pytest.approx(2 / (quarter + half), rel=1e-3)


def test_bands_keep_their_own_scales(stamps) -> None:
    two = torch.cat([stamps, 10 * stamps.flip(2)], dim=1)
    found = measure_spectrum([batch_of(two)], SharedGaussian(n_bands=2))
    assert found.decoder_variance[1] / found.decoder_variance[0] == pytest.approx(100, rel=1e-4)
    np.testing.assert_allclose(found.overlap.sum(0), np.eye(len(found.eigenvalues)), atol=1e-6)
    assert found.variance == pytest.approx([36, 36], rel=1e-4)


def test_randomised_decomposition_agrees_with_the_exact(monkeypatch) -> None:
    rng = torch.Generator().manual_seed(2)
    strengths = torch.logspace(2, -1, 400)
    whitened = torch.randn(500, 400, generator=rng) * strengths.sqrt()
    exact, _ = module._leading(whitened, 20)
    monkeypatch.setattr(module, "SMALLEST_EXACT", 10)
    before = torch.random.get_rng_state()
    randomised, _ = module._leading(whitened, 20)
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_allclose(randomised.numpy(), exact.numpy(), rtol=5e-3)


def test_reading_stops_at_the_memory_it_may_use(stamps, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_ELEMENTS", 36 * 64)
    asked = []

    def batches():
        for part in stamps.split(32):
            asked.append(len(part))
            yield batch_of(part)

    assert measure_spectrum(batches(), FixedGaussian()).n_stamps == 64
    assert sum(asked) == 64


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 1, 4, 4), "at least 2 stamps"),
        (torch.full((20, 1, 4, 4), 3.0), "do not differ"),
    ],
)
def test_stamps_without_a_spectrum_are_refused(image, message) -> None:
    with pytest.raises(InputError, match=message):
        measure_spectrum([batch_of(image)], FixedGaussian())


def test_no_stamps_and_no_good_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="got 0"):
        measure_spectrum([], FixedGaussian())
    image = torch.randn(5, 1, 4, 4)
    with pytest.raises(InputError, match="no pixel"):
        measure_spectrum([batch_of(image, torch.zeros_like(image, dtype=torch.bool))],
                         FixedGaussian())  # fmt: skip


def test_rank_one_stamps_have_one_eigenvalue() -> None:
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(50, 1, 1, 1, generator=rng) * torch.ones(1, 1, 4, 4)
    found = measure_spectrum([batch_of(image)], FixedGaussian())
    assert found.eigenvalues[0] == pytest.approx(16 * float(image[:, 0, 0, 0].var(correction=0)))
    assert np.all(found.eigenvalues[1:] < 1e-5)
    assert math.isfinite(found.eigenvalues.sum())


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_a_pixel_that_is_always_dark_says_nothing(kind: str) -> None:
    """Its best logit is minus infinity; whatever the iteration reached must not count."""
    rng = torch.Generator().manual_seed(0)
    image = (torch.rand(200, 1, 4, 4, generator=rng) > 0.5).float()
    dark = image.clone()
    dark[:, :, 0] = 0
    found = measure_spectrum([batch_of(dark)], Bernoulli(kind=kind))
    alone = measure_spectrum([batch_of(image[:, :, 1:])], Bernoulli(kind=kind))
    np.testing.assert_allclose(found.eigenvalues[:12], alone.eigenvalues, rtol=1e-3)


# -- counts, and the decompositions --------------------------------------------------------------


def test_counts_weights_and_traces_are_those_of_the_stamps(stamps) -> None:
    found = measure_spectrum([batch_of(stamps)], FixedGaussian(std=2.0), n_modes=5)
    assert (found.n_stamps, found.n_pixels, len(found.eigenvalues)) == (300, 36, 5)
    assert (found.kl_weight, found.learned_scale) == (1.0, False)
    assert found.variance == pytest.approx([covariance_eigenvalues(stamps).sum() / 4], rel=1e-5)
    assert found.fitting_variance == pytest.approx([36.0])
    assert found.overlap.shape == (1, 5, 5)
    learned = found.with_learned_scale()
    assert (learned.learned_scale, learned.kl_weight) == (True, 1.0)
    assert learned.eigenvalues is found.eigenvalues


def test_no_more_eigenvalues_than_stamps(stamps) -> None:
    found = measure_spectrum([batch_of(stamps[:7])], FixedGaussian())
    assert len(found.eigenvalues) == 7
    np.testing.assert_allclose(
        found.eigenvalues, covariance_eigenvalues(stamps[:7])[:7], rtol=1e-4, atol=1e-4
    )


def test_two_stamps_are_enough_and_have_one_direction() -> None:
    image = torch.zeros(2, 1, 2, 2)
    image[1] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = measure_spectrum([batch_of(image)], FixedGaussian())
    assert found.eigenvalues[0] == pytest.approx((1 + 4 + 9 + 16) / 4)  # plus and minus half of it
    assert found.eigenvalues[1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("n_rows", "n_columns"), [(30, 12), (12, 30), (20, 20)])
def test_tall_and_wide_decompositions_are_those_of_numpy(n_rows: int, n_columns: int) -> None:
    whitened = torch.randn(n_rows, n_columns, generator=torch.Generator().manual_seed(3))
    values, vectors = module._leading(whitened, 6)
    exact = whitened.double().numpy()
    expected = np.linalg.svd(exact, compute_uv=False) ** 2 / n_rows
    np.testing.assert_allclose(values.numpy(), expected[:6], rtol=1e-6)
    assert vectors.shape == (n_columns, 6)
    gram = exact.T @ exact / n_rows
    np.testing.assert_allclose(gram @ vectors.numpy(), vectors.numpy() * values.numpy(), atol=1e-6)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-6)


def test_the_randomised_decomposition_has_the_directions_too(monkeypatch) -> None:
    strengths = torch.logspace(2, -1, 60)
    whitened = torch.randn(80, 60, generator=torch.Generator().manual_seed(2)) * strengths.sqrt()
    monkeypatch.setattr(module, "SMALLEST_EXACT", 10)
    values, vectors = module._leading(whitened, 5)
    exact = whitened.double().numpy()
    expected = np.linalg.svd(exact, compute_uv=False) ** 2 / 80
    np.testing.assert_allclose(values.numpy(), expected[:5], rtol=1e-3)
    assert vectors.shape == (60, 5)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-5)


def test_many_stamps_give_what_few_at_a_time_give(stamps, monkeypatch) -> None:
    whole = measure_spectrum([batch_of(stamps)], SharedGaussian(n_bands=1))
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "N_FIRST", 100)  # the picture of the first is mended by all
    parts = measure_spectrum([batch_of(stamps)], SharedGaussian(n_bands=1))
    np.testing.assert_allclose(parts.eigenvalues, whole.eigenvalues, rtol=1e-3, atol=1e-5)
    assert parts.decoder_variance == pytest.approx(whole.decoder_variance, rel=1e-4)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (torch.zeros(1, 1, 4, 4), None, "a spectrum needs at least 2 stamps, got 1"),
        (
            torch.full((20, 1, 4, 4), 3.0),
            None,
            "the stamps do not differ: all of them are the same in every good pixel, and there is "
            "nothing that a latent code could say",
        ),
        (
            torch.randn(5, 1, 4, 4),
            torch.zeros(5, 1, 4, 4, dtype=torch.bool),
            "no pixel of any stamp is good: look at data.normalize and the masks",
        ),
    ],
)
def test_a_refusal_says_what_to_look_at(image, mask, message) -> None:
    with pytest.raises(InputError) as refused:
        measure_spectrum([batch_of(image, mask)], FixedGaussian())
    assert str(refused.value) == message


# -- what the figures are of ---------------------------------------------------------------------


def two_bands() -> torch.Tensor:
    """Four stamps: one direction in the first band, one in the second, of 9 and 4 in variance."""
    image = torch.zeros(4, 2, 2, 2)
    image[:, 0, 0, 0] = torch.tensor([3.0, -3.0, 3.0, -3.0])
    image[:, 1, 1, 1] = torch.tensor([2.0, 2.0, -2.0, -2.0])
    return image + 5


def test_overlap_tells_in_which_band_a_direction_lies() -> None:
    found = measure_spectrum([batch_of(two_bands())], FixedGaussian(), n_modes=2)
    assert found.eigenvalues == pytest.approx([9, 4])
    np.testing.assert_allclose(found.overlap, [[[1, 0], [0, 0]], [[0, 0], [0, 1]]], atol=1e-6)
    assert found.variance == pytest.approx([9, 4])
    assert found.fitting_variance == pytest.approx([4, 4])


def test_the_width_of_a_band_is_that_of_its_own_good_pixels() -> None:
    mask = torch.ones(4, 2, 2, 2, dtype=torch.bool)
    mask[:, 1, 0] = False
    mask[0, 1, 1, 0] = False
    found = measure_spectrum([batch_of(two_bands(), mask)], FixedGaussian(std=3.0))
    assert found.decoder_variance == pytest.approx([9, 9])
    assert (found.n_pixels, found.n_stamps) == (6, 4)


@pytest.mark.parametrize("silent", [0, 1, 2])
@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize(
    "likelihood",
    [
        lambda n_bands: FixedGaussian(),
        lambda n_bands: SharedGaussian(n_bands=n_bands),
        lambda n_bands: StudentT(n_bands=n_bands),
        lambda n_bands: Bernoulli(),
    ],
    ids=["gaussian", "sigma", "student_t", "bernoulli"],
)
def test_a_band_that_says_nothing_is_left_out(stamps, likelihood, observed, silent: int) -> None:
    """Without a good pixel in any stamp, or the same in all of them, wherever it stands."""
    two = torch.cat([stamps, 3 * stamps.flip(2)], dim=1).sigmoid()
    three = torch.cat([two[:, :silent], torch.ones_like(stamps), two[:, silent:]], dim=1)
    mask = torch.ones_like(three, dtype=torch.bool)
    mask[:, silent] = observed
    alone = measure_spectrum([batch_of(two)], likelihood(2))
    found = measure_spectrum([batch_of(three, mask)], likelihood(3))
    for name in ("eigenvalues", "overlap", "variance", "fitting_variance", "decoder_variance"):
        # rounding mixes the directions of neighbouring eigenvalues by some 1e-5
        np.testing.assert_allclose(
            getattr(found, name), getattr(alone, name), rtol=1e-4, atol=1e-4, err_msg=name
        )
    assert found.n_pixels == alone.n_pixels + 36 * observed


def focused(likelihood, radius: float = 4.0):
    return FocusedLikelihood(likelihood, 16, radius, Normalizer())


@pytest.fixture
def field() -> torch.Tensor:
    """500 stamps of 16x16 whose noise grows from row to row, one direction in them."""
    rng = torch.Generator().manual_seed(4)
    noise = torch.randn(500, 1, 16, 16, generator=rng) * torch.linspace(1, 3, 16)[:, None]
    return noise + 3 * torch.randn(500, 1, 1, 1, generator=rng) * central_window(16, 3.0)


def test_a_window_takes_nothing_from_a_width_that_is_given(field) -> None:
    """Pixels count by their weight: those outside are none, those at the edge are half ones."""
    window = central_window(16, 4.0)
    mask = torch.ones_like(field, dtype=torch.bool)
    mask[:100, ..., :8] = False
    found = measure_spectrum([batch_of(field, mask)], focused(FixedGaussian(std=0.7)))
    assert found.decoder_variance == pytest.approx([0.49])
    assert found.fitting_variance == pytest.approx([float(window.sum())])
    assert found.n_pixels == int((window > 0).sum())


@pytest.mark.parametrize("inner", [SharedGaussian, NoiseGaussian])
def test_a_width_that_is_learned_in_a_window_is_that_of_its_pixels(field, inner) -> None:
    window = central_window(16, 4.0)
    found = measure_spectrum([batch_of(field)], focused(inner(n_bands=1)))
    weighted = (field.var(0, correction=0) * window).sum() / window.sum()
    assert found.decoder_variance == pytest.approx([float(weighted)], rel=1e-4)
    assert found.variance == pytest.approx(found.fitting_variance)
    assert found.variance == pytest.approx([float(window.sum())])
    leading = found.eigenvalues[0] * found.decoder_variance[0]
    assert leading == pytest.approx(covariance_eigenvalues(field * window.sqrt())[0], rel=1e-4)


def test_64_eigenvalues_are_measured_unless_asked_otherwise() -> None:
    image = torch.randn(80, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    assert len(measure_spectrum([batch_of(image)], FixedGaussian()).eigenvalues) == 64


def test_a_gaussian_that_learns_its_width_has_no_weight_of_its_own(stamps) -> None:
    found = measure_spectrum([batch_of(stamps)], PixelMeanMSE(n_bands=1, kl_weight=1000.0))
    assert (found.kl_weight, found.learned_scale) == (1000.0, False)
    learned = found.with_learned_scale()
    assert (learned.kl_weight, learned.learned_scale) == (1.0, True)


@pytest.mark.parametrize(("size", "counts"), [(0.98e-5, False), (1.02e-5, True)])
def test_a_pixel_counts_from_a_variance_of_a_ten_billionth(size: float, counts: bool) -> None:
    image = torch.zeros(2, 2, 2, 2)
    image[0, 0], image[1, 0] = 1, -1
    image[0, 1, 0, 0], image[1, 1, 0, 0] = size, -size
    found = measure_spectrum([batch_of(image)], FixedGaussian())
    assert found.variance == pytest.approx([4, size**2] if counts else [4], rel=1e-4)


def test_reading_goes_on_until_the_last_pixel_fits(stamps, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_ELEMENTS", 36 * 64 + 1)
    batches = [batch_of(part) for part in stamps.split(32)]
    assert measure_spectrum(batches, FixedGaussian()).n_stamps == 96


# -- the collapsed picture -----------------------------------------------------------------------


class Counted(FixedGaussian):
    """Keeps how many stamps it was to settle on, and around what."""

    def __init__(self) -> None:
        super().__init__()
        self.settled: list[tuple[int, float]] = []

    def settle(self, image, output, mask, noise) -> None:
        self.settled.append((len(image), float(output.mean())))


def picture_of(image: torch.Tensor, likelihood, mask=None) -> torch.Tensor:
    batch = batch_of(image, mask)
    stamps = module._Stamps(batch["image"], batch["mask"], batch["noise"])
    return module._collapsed_picture(likelihood, stamps)


def test_picture_is_found_in_a_step_and_seen_to_be_in_another(stamps) -> None:
    mask = torch.ones_like(stamps, dtype=torch.bool)
    mask[..., 0] = False  # a pixel that nobody saw does not keep it from ending
    counted = Counted()
    found = picture_of(stamps, counted, mask)
    torch.testing.assert_close(found[..., 1:], stamps.mean(0)[..., 1:])
    assert not bool(found[..., 0].any())
    mean = float(found.mean())
    assert counted.settled == [(300, 0.0), (300, pytest.approx(mean, rel=1e-5))]


def test_picture_of_the_first_stamps_is_mended_by_all(stamps, monkeypatch) -> None:
    monkeypatch.setattr(module, "N_FIRST", 100)
    counted = Counted()
    torch.testing.assert_close(picture_of(stamps, counted), stamps.mean(0))
    assert [n for n, _ in counted.settled] == [100, 100]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_is_bounded_where_next_to_nothing_bends(sign: int) -> None:
    image = torch.full((5, 1, 1, 3), 0.0 if sign > 0 else 1.0)
    mask = torch.ones_like(image, dtype=torch.bool)
    mask[..., 2] = False
    location = sign * torch.tensor([[[14.0, 0.0, 0.0]]])
    stamps = module._Stamps(image.where(mask, torch.zeros(())), mask, torch.ones_like(image))
    step, curvature = module._newton_step(Bernoulli(kind="binary"), stamps, location)
    # p / p (1 - p) is 1.2 million at a logit of 14, and 2 at one of 0
    torch.testing.assert_close(step, -sign * torch.tensor([[[1000.0, 2.0, 0.0]]]))
    # 1 - p has few digits in single precision
    assert curvature.flatten().tolist() == pytest.approx([math.exp(-14), 0.25, 0], rel=0.05)


def test_picture_is_emitted_as_the_likelihood_takes_it_and_leaves_it_alone(stamps) -> None:
    image = stamps.sigmoid()
    given = image, torch.ones_like(image, dtype=torch.bool), torch.ones_like(image)
    logits = module.collapsed_picture(Bernoulli(kind="binary"), *given)
    torch.testing.assert_close(logits.sigmoid(), image.mean(0), rtol=1e-3, atol=1e-4)
    learns = SharedGaussian(n_bands=1)
    torch.testing.assert_close(module.collapsed_picture(learns, *given), image.mean(0))
    assert float(learns.scale.mean_square) == 1


# -- whitening -----------------------------------------------------------------------------------

DOF = 3.0


def whitened(image: torch.Tensor, mask: torch.Tensor, likelihood=None):
    stamps = module._Stamps(image.clone(), mask, torch.ones_like(image))
    likelihood = StudentT(n_bands=1, dof=DOF) if likelihood is None else likelihood
    return module._whiten(likelihood, stamps, torch.zeros_like(image[0]))


def student(residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope and minus the second derivative of Student's t of unit width."""
    squared = residual.square()
    score = (DOF + 1) * residual / (DOF + squared)
    return score, (DOF + 1) * (DOF - squared) / (DOF + squared).square()


RESIDUALS = torch.tensor(
    [[0.5, -1.0, 1.5, 9.0], [1.0, 0.5, -0.5, 9.0], [-0.2, 0.3, 4.0, -9.0]]
).view(3, 1, 1, 4)


@pytest.mark.parametrize("chunk", [1, 2, 512])
def test_stamps_beyond_the_shoulder_are_all_whitened_by_the_mean(chunk: int, monkeypatch) -> None:
    """The first chunk has none, and the last pixel bends the wrong way in all stamps."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    image = RESIDUALS.clone()
    mask = torch.ones_like(image, dtype=torch.bool)
    mask[0, ..., 3] = False
    score, bend = (each.where(mask, torch.zeros(())) for each in student(image))
    mean = bend.mean(0)
    values, curvature, convex = whitened(image.where(mask, torch.zeros(())), mask)
    assert convex is False
    torch.testing.assert_close(curvature, mean.clamp(min=0))
    assert curvature[..., 3] == 0
    torch.testing.assert_close(values[..., :3], (score / mean.sqrt())[..., :3])
    torch.testing.assert_close(values[..., 3], score[..., 3])


def test_stamps_within_the_shoulder_are_whitened_each_by_its_own() -> None:
    image = RESIDUALS[..., :2].clone()
    mask = torch.ones_like(image, dtype=torch.bool)
    mask[1:, ..., 1] = False  # seen once: it counts for all three
    score, bend = student(image)
    values, curvature, convex = whitened(image.where(mask, torch.zeros(())), mask)
    assert convex is True
    expected = (score / bend.sqrt()).where(mask, torch.zeros(()))
    expected[..., 1] *= math.sqrt(3)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(curvature, bend.where(mask, torch.zeros(())).mean(0))


def test_without_a_curvature_everywhere_the_variance_fits_itself() -> None:
    image = 3 * torch.randn(200, 1, 3, 3, generator=torch.Generator().manual_seed(0)).pow(3)
    found = measure_spectrum([batch_of(image)], StudentT(n_bands=1, dof=DOF))
    assert found.learned_scale
    assert found.fitting_variance == pytest.approx(found.variance)
    assert found.variance[0] != pytest.approx(9, rel=0.01)
