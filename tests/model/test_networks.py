"""Networks fit every stamp, know nothing of their batch, and fail as the question's if asked."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F  # noqa: N812

from vae_astro.errors import InputError
from vae_astro.model.decoders import ConvDecoder
from vae_astro.model.encoders import ConvEncoder
from vae_astro.model.networks import NETWORKS, Network, conv, question, with_defaults
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.kl import gaussian_kl_per_unit
from vae_astro.settings import build

ROOT = Path(__file__).parents[2]
every_network = pytest.mark.parametrize("name", NETWORKS)

NARROW: dict[str, dict[str, object]] = {
    "conv": {"width": 8},
    "linear": {},
    "mlp": {"hidden": [24, 12]},
    "question": {"bottleneck_units": 16},
    "rings": {"width": 8, "shape_units": 1, "n_rings": 4, "hidden": 8},
}
"""Keys that make a network quick to test."""


def network(name: str, *, n_bands: int = 1, size: int = 17, seed: int = 0, **keys) -> Network:
    """A narrow network as the config builds it."""
    torch.manual_seed(seed)
    settings = {"name": name, **NARROW[name], **keys}
    return build("model", NETWORKS, settings, n_bands=n_bands, size=size)


def stamps(n: int, n_bands: int = 1, size: int = 17, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, n_bands, size, size, generator=torch.Generator().manual_seed(seed))


def awake(made: Network) -> Network:
    """The network with its zero-initialised weights drawn, as after a few steps of training."""
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made


# -- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bands", [1, 3])
@pytest.mark.parametrize("size", [16, 17, 33, 63, 64])
@every_network
def test_stamp_of_any_size_comes_back_in_its_own_shape(name, size, n_bands):
    made = network(name, n_bands=n_bands, size=size, latent_dim=5)
    image = stamps(2, n_bands, size)
    with torch.no_grad():
        posterior = made.encode(image)
        location = made.decode(made.sample(posterior, torch.randn(2, 5)))
    assert posterior.mean.shape == posterior.log_var.shape == (2, 5)
    assert location.shape == image.shape
    assert location.isfinite().all()


@every_network
def test_network_knows_its_latent_dim(name):
    assert network(name, latent_dim=7).latent_dim == 7


@pytest.mark.parametrize("size", [17, 33, 47])
def test_conv_encoder_sees_a_stamp_in_the_middle_of_empty_sky(size):
    grid = math.ceil(size / 16) * 16
    small, large = (ConvEncoder(1, n, 4, 8) for n in (size, grid))
    large.load_state_dict(small.state_dict())
    image = stamps(2, size=size)
    before = (grid - size) // 2
    after = grid - size - before
    padded = F.pad(image, (before, after, before, after))
    torch.testing.assert_close(small(image).mean, large(padded).mean)


@pytest.mark.parametrize("size", [17, 33, 47])
def test_conv_decoder_cuts_the_stamp_where_the_encoder_put_it(size):
    grid = math.ceil(size / 16) * 16
    small, large = (ConvDecoder(2, n, 4, 8) for n in (size, grid))
    large.load_state_dict(small.state_dict())
    z = torch.randn(3, 4)
    before = (grid - size) // 2
    inside = slice(before, before + size)
    torch.testing.assert_close(small(z), large(z)[:, :, inside, inside])


# -- one stamp at a time -------------------------------------------------------------------------


@every_network
def test_output_of_a_stamp_does_not_depend_on_its_batch(name):
    made = awake(network(name, n_bands=2)).train()
    image = stamps(6, n_bands=2)
    with torch.no_grad():
        alone = made.decode(made.encode(image[:1]).mean)
        among = made.decode(made.encode(torch.cat([image[:1], 100 * image[1:]])).mean)[:1]
    # float32 sums may be ordered differently for another batch size
    torch.testing.assert_close(alone, among, rtol=1e-4, atol=1e-5)


@every_network
def test_no_gradient_flows_between_stamps(name):
    made = awake(network(name)).train()
    image = stamps(3).requires_grad_()
    made.decode(made.encode(image).mean)[1].square().sum().backward()
    reached = image.grad.flatten(1).abs().amax(1) > 0
    assert reached.tolist() == [False, True, False]


@every_network
def test_training_and_evaluation_compute_the_same(name):
    made, image = awake(network(name)), stamps(3)
    before = [buffer.clone() for buffer in made.buffers()]
    with torch.no_grad():
        trained = made.train().decode(made.encode(image).mean)
        evaluated = made.eval().decode(made.encode(image).mean)
    assert torch.equal(trained, evaluated)
    for buffer, was in zip(made.buffers(), before, strict=True):
        assert torch.equal(buffer, was)  # no running statistics


# -- parameters ----------------------------------------------------------------------------------


def test_default_conv_has_between_one_and_two_million_parameters():
    n_parameters = sum(p.numel() for p in conv(n_bands=1, size=63).parameters())
    assert 1e6 < n_parameters < 2e6


@pytest.mark.parametrize("keys", [{}, {"initialisation": "xavier"}])
@every_network
def test_gradients_reach_all_parameters(name, keys):
    made = awake(network(name, n_bands=2, **keys))
    image = stamps(8, n_bands=2)
    posterior = made.encode(image)
    location = made.decode(made.sample(posterior, torch.randn_like(posterior.mean)))
    (location - image).square().sum().backward()
    unreached = [
        key for key, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert unreached == []


@every_network
def test_xavier_draws_every_weight_for_its_fans_and_sets_biases_to_zero(name):
    made = network(name, size=32, initialisation="xavier")
    for layer in made.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            continue
        weight = layer.weight.detach()
        fans = sum(nn.init._calculate_fan_in_and_fan_out(weight))
        std, expected = weight.std().item(), math.sqrt(2 / fans)
        assert abs(std / expected - 1) < 5 / math.sqrt(2 * weight.numel()), layer
        # Gaussian and not uniform: a uniform of this standard deviation ends at 1.73 of it
        assert weight.numel() < 100 or weight.abs().max() > 2 * expected
        assert layer.bias is None or not layer.bias.any()


@every_network
def test_default_initialisation_leaves_the_layers_own(name):
    made = network(name, initialisation="default")
    dense = [layer for layer in made.decoder.modules() if isinstance(layer, nn.Linear)]
    # torch draws a dense layer uniformly within 1 / sqrt(fan in)
    assert all(layer.weight.abs().max() <= layer.in_features**-0.5 for layer in dense)
    assert all(layer.bias is None or layer.bias.any() for layer in dense)


@pytest.mark.parametrize(
    ("name", "size", "keys", "bound_nats"),
    [
        ("conv", 16, {"width": 8}, 1e-4),
        ("conv", 63, {"width": 32}, 5e-3),
        ("mlp", 16, {"hidden": [32, 16]}, 1e-4),
        ("mlp", 63, {"hidden": [512, 256]}, 5e-3),
    ],
)
def test_first_posteriors_are_close_to_the_prior(name, size, keys, bound_nats):
    made = network(name, size=size, **keys)
    with torch.no_grad():
        posterior = made.encode(stamps(16, size=size))
    kl_per_unit = gaussian_kl_per_unit(posterior.mean, posterior.log_var).mean(0)
    assert 0 < kl_per_unit.max() < bound_nats


def test_mlp_narrows_to_the_code_and_widens_from_it():
    made = network("mlp", size=16, n_bands=2, latent_dim=3, hidden=[40, 30, 20])
    shapes = [
        [tuple(layer.weight.shape) for layer in half.modules() if isinstance(layer, nn.Linear)]
        for half in (made.encoder, made.decoder)
    ]
    assert shapes[0] == [(40, 512), (30, 40), (20, 30), (6, 20)]
    assert shapes[1] == [(20, 3), (30, 20), (40, 30), (512, 40)]


def test_linear_posterior_has_one_variance_for_all_stamps_and_a_linear_mean():
    made = network("linear", latent_dim=3)
    nn.init.normal_(made.encoder.log_var)
    a, b = stamps(2)[:, None]
    with torch.no_grad():
        zero, at_a, at_b, at_sum = (made.encode(x) for x in (0 * a, a, b, a + b))
    assert torch.equal(at_a.log_var, at_b.log_var)
    torch.testing.assert_close(at_sum.mean - zero.mean, at_a.mean + at_b.mean - 2 * zero.mean)


@every_network
def test_state_dict_carries_the_whole_network(name):
    made, other = awake(network(name, seed=1)), network(name, seed=2)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    image = stamps(2)
    with torch.no_grad():
        first, second = (n.decode(n.encode(image).mean) for n in (made, other))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("conv", ("ConvEncoder", "ConvDecoder", "PixelShuffle")),
        ("linear", ("LinearEncoder", "LinearDecoder")),
        ("mlp", ("MLPEncoder", "MLPDecoder", "SiLU")),
        ("question", ("QuestionEncoder", "QuestionDecoder", "ConvTranspose2d")),
    ],
)
def test_repr_names_the_parts(name, parts):
    assert all(part in repr(network(name)) for part in parts)


@every_network
def test_encoder_and_decoder_give_float32_under_mixed_precision(name):
    made = network(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        posterior = made.encode(stamps(2))
        location = made.decode(posterior.mean)
    assert {posterior.mean.dtype, posterior.log_var.dtype, location.dtype} == {torch.float32}


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        *(
            (name, {"latent_dim": 0}, "model.latent_dim must be at least 1, got 0")
            for name in NETWORKS
        ),
        ("conv", {"width": 12}, "model.width must be a multiple of 8, got 12"),
        ("conv", {"width": 0}, "model.width must be at least 8, got 0"),
        ("conv", {"width": 16.0}, "model.width must be a whole number, got 16.0"),
        (
            "linear",
            {"initialisation": "he"},
            "model.initialisation must be one of default, xavier, got 'he'",
        ),
        ("linear", {"width": 8}, "model=linear has no setting model.width; it has latent_dim, "
         "minimum_rate_nats, initialisation"),
        ("mlp", {"hidden": []}, "model.hidden must be a list of widths such as [512,256], got []; "
         "for no hidden layer choose model=linear"),
        ("mlp", {"hidden": 512}, "model.hidden must be a list of widths such as [512,256], got "
         "512; for no hidden layer choose model=linear"),
        ("mlp", {"hidden": [64, 0]}, "model.hidden[1] must be at least 1, got 0"),
        ("mlp", {"hidden": ["wide"]}, "model.hidden[0] must be a whole number, got 'wide'"),
        ("question", {"bottleneck_units": 0}, "model.bottleneck_units must be at least 1, got 0"),
        ("question", {"eps_std": -0.1}, "model.eps_std must be at least 0, got -0.1"),
        ("question", {"eps_std": math.nan}, "model.eps_std must be a finite number, got nan"),
    ],
)  # fmt: skip
def test_setting_out_of_range_is_refused_by_its_key(name, keys, message):
    with pytest.raises(InputError) as refused:
        network(name, **keys)
    assert str(refused.value) == message


# -- the question's faults -----------------------------------------------------------------------


def test_softmax_over_one_channel_is_one_everywhere_and_blind_to_the_code():
    made = question(n_bands=1, size=17, latent_dim=2, softmax_output=True)
    z = torch.randn(4, 2, requires_grad=True)
    location = made.decode(z)
    (to_z,) = torch.autograd.grad((location * stamps(4)).sum(), z)
    assert torch.equal(location, torch.ones_like(location))
    assert torch.equal(to_z, torch.zeros_like(z))


def test_softmax_over_several_channels_shares_one_between_the_bands():
    made = question(n_bands=3, size=17, softmax_output=True)
    location = made.decode(torch.randn(2, 16)).detach()
    torch.testing.assert_close(location.sum(1), torch.ones(2, 17, 17))
    assert location.std() > 0


def test_without_the_softmax_the_code_is_seen():
    made = question(n_bands=1, size=17, latent_dim=2)
    z = torch.randn(4, 2, requires_grad=True)
    location = made.decode(z)
    (to_z,) = torch.autograd.grad(location.square().sum(), z)
    assert location.min() < 0
    assert (to_z.abs().amax(1) > 0).all()


@pytest.mark.parametrize(("dying", "learns"), [(True, False), (False, True)])
def test_bottleneck_below_zero_for_every_stamp_is_dead_with_relu_alone(dying, learns):
    made = question(n_bands=1, size=17, bottleneck_units=4, dying_bottleneck=dying)
    dense = next(layer for layer in made.encoder.modules() if isinstance(layer, nn.Linear))
    nn.init.zeros_(dense.weight)
    nn.init.constant_(dense.bias, -1.0)
    made.encode(stamps(8)).mean.sum().backward()
    assert bool(dense.weight.grad.any()) is learns


@pytest.mark.parametrize(
    ("eps_std", "exp_full_log_var", "std_of"),
    [
        (1.0, False, lambda log_var: math.exp(0.5 * log_var)),
        (0.1, False, lambda log_var: 0.1 * math.exp(0.5 * log_var)),
        (1.0, True, lambda log_var: math.exp(log_var)),
        (0.1, True, lambda log_var: 0.1 * math.exp(log_var)),
        (0.0, False, lambda log_var: 0.0),
    ],
)
def test_sampling_faults_change_the_standard_deviation_of_the_draws(
    eps_std, exp_full_log_var, std_of
):
    made = question(
        n_bands=1, size=16, latent_dim=3, eps_std=eps_std, exp_full_log_var=exp_full_log_var
    )
    log_vars, n = [-4.0, 0.0, 2.0], 20_000
    mean = torch.tensor([1.0, -2.0, 0.0]).expand(n, 3)
    posterior = DiagonalGaussian(mean, torch.tensor(log_vars).expand(n, 3))
    eps = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    deviation = made.sample(posterior, eps) - mean
    expected = torch.tensor([std_of(log_var) for log_var in log_vars])
    torch.testing.assert_close(deviation, expected * eps, rtol=1e-4, atol=1e-6)
    # 3 % is six standard errors of a standard deviation of 20 000 draws
    torch.testing.assert_close(deviation.std(0), expected, rtol=0.03, atol=1e-9)


def test_question_without_faults_samples_as_the_other_networks_do():
    posterior = DiagonalGaussian(*torch.randn(2, 4, 16))
    eps = torch.randn(4, 16)
    draws = [network(name).sample(posterior, eps) for name in NETWORKS]
    assert all(torch.equal(draw, posterior.sample(eps)) for draw in draws)


# -- settings in full ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_settings_in_full_are_those_of_conf_and_make_the_same_network(name):
    full = with_defaults({"name": name})
    conf = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    assert full == conf
    shapes = [
        {key: value.shape for key, value in made.state_dict().items()}
        for made in (
            build("model", NETWORKS, settings, n_bands=2, size=32)
            for settings in ({"name": name}, full)
        )
    ]
    assert shapes[0] == shapes[1]


def test_what_was_set_stays_and_nobody_s_choice_is_conv():
    assert with_defaults(None) == with_defaults({}) == with_defaults({"name": "conv"})
    assert with_defaults({"name": "mlp", "hidden": [8]}) == {
        "name": "mlp", "latent_dim": 16, "hidden": [8], "minimum_rate_nats": 0.0,
        "initialisation": "default",
    }  # fmt: skip
    assert with_defaults({"name": "conv", "wdith": 3})["wdith"] == 3


@pytest.mark.parametrize("given", [{"name": "resnet"}, {"latent_dim": 3}, {"name": None}])
def test_settings_of_no_network_stay_as_they_are_to_be_refused(given):
    assert with_defaults(given) == given
    with pytest.raises(InputError, match=r"model\.name is .*choose one of conv"):
        build("model", NETWORKS, with_defaults(given), n_bands=1, size=16)
