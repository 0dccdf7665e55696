"""The networks a user picks by name: an encoder, a decoder and how the code is sampled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_astro.data.normalize import Normalizer
from vae_astro.errors import InputError
from vae_astro.model.decoders import ConvDecoder, LinearDecoder, MLPDecoder, QuestionDecoder
from vae_astro.model.encoders import ConvEncoder, LinearEncoder, MLPEncoder, QuestionEncoder
from vae_astro.model.micro_batches import MicroBatches
from vae_astro.model.minimum_rate import MinimumRate
from vae_astro.model.poses import N_POSE_UNITS, PosedDecoder, PosedEncoder
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.model.rings import RingsDecoder, RingsEncoder, RingSystem, fit_rings
from vae_astro.model.symmetry import D4Encoder, GroupConv
from vae_astro.settings import check_bool, check_choice, check_int, check_number

__all__ = ["NETWORKS", "Network", "RingsNetwork", "conv", "linear", "mlp", "question", "rings",
           "with_defaults"]  # fmt: skip


MOST_UNITS = 65_536
"""Latent units or channels beyond which a number is taken for a slip."""
MOST_NATS = 10_000
"""The same for nats."""


class Network(nn.Module):
    """Encoder, decoder and the step between them.

    Parameters
    ----------
    encoder : Module
        (B, C, H, W) to `DiagonalGaussian`.
    decoder : Module
        (B, Z) to (B, C, H, W).
    latent_dim : int
        Z.
    initialisation : {"default", "xavier"}
        ``xavier``: Glorot-normal weights and zero biases in every dense and convolutional layer
        (Glorot & Bengio 2010). ``default``: what each layer sets itself.
    minimum_rate_nats : float
        Least KL of the posteriors, summed over units; 0 leaves them free. See `MinimumRate`.

    Attributes
    ----------
    clustered_units : tuple of int
        The latent units that say what a stamp shows, and not how it lies.
    object_units : tuple of int
        Those and the ones that say how bright it is: what a vote of neighbours reads.
    any_orientation : bool
        Whether the decoder's picture may be turned any of eight ways; see `OrientationMarginal`.
    """

    clustered_units: tuple[int, ...]
    any_orientation = False

    @property
    def object_units(self) -> tuple[int, ...]:
        return self.clustered_units

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        initialisation: str = "default",
        minimum_rate_nats: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.clustered_units = tuple(range(latent_dim))
        if check_choice("model.initialisation", initialisation, ("default", "xavier")) == "xavier":
            self.apply(_glorot_normal)
        nats = check_number(
            "model.minimum_rate_nats", minimum_rate_nats, minimum=0, maximum=MOST_NATS
        )
        self.minimum_rate = MinimumRate(latent_dim, nats) if nats > 0 else nn.Identity()
        self.micro_batches = MicroBatches()

    wants_stamps = False
    """Whether `prepare` looks at any."""

    def prepare(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Take what is needed from training ``batches`` before the first step: here nothing."""

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """Posterior of ``image`` (B, C, H, W), in float32 whatever the encoder computed in."""
        mean, log_var = self.micro_batches.through(self._moments, image)
        return self.minimum_rate(DiagonalGaussian(mean, log_var))

    def _moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.encoder(image)
        return posterior.mean.float(), posterior.log_var.float()

    def sample(self, posterior: DiagonalGaussian, eps: Tensor) -> Tensor:
        """Draw of the code from standard normal ``eps``, both (B, Z)."""
        return posterior.sample(eps)

    def decode(self, z: Tensor) -> Tensor:
        """Location (B, C, H, W) of the pixel density, in float32."""
        (location,) = self.micro_batches.through(lambda part: (self.decoder(part).float(),), z)
        return location


class QuestionNetwork(Network):
    """`Network` whose sampling can be wrong in the two ways of the question.

    Parameters
    ----------
    eps_std : float
        Standard deviation of the noise: 1, or 0.1 as asked.
    exp_full_log_var : bool
        Scale the noise by exp(log_var) where exp(0.5 log_var) is meant.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        initialisation: str,
        minimum_rate_nats: float,
        eps_std: float,
        exp_full_log_var: bool,
    ) -> None:
        super().__init__(encoder, decoder, latent_dim, initialisation, minimum_rate_nats)
        self.eps_std = eps_std
        self.exp_full_log_var = exp_full_log_var

    def sample(self, posterior: DiagonalGaussian, eps: Tensor) -> Tensor:
        """As asked, or as meant: see the class."""
        if self.exp_full_log_var:
            return posterior.mean + torch.exp(posterior.log_var) * self.eps_std * eps
        return posterior.sample(self.eps_std * eps)


class RingsNetwork(Network):
    """`Network` whose shape units know no orientation, flux or neighbours; see `model.rings`.

    Parameters
    ----------
    encoder, decoder
        That share a `RingSystem`.
    latent_dim, shape_units : int
        Z, and how many of them are clustered.
    outer_radius : float, optional
        Pixels; chosen by the stamps if absent.
    """

    encoder: RingsEncoder
    decoder: RingsDecoder
    wants_stamps = True

    def __init__(
        self,
        encoder: RingsEncoder,
        decoder: RingsDecoder,
        latent_dim: int,
        initialisation: str,
        minimum_rate_nats: float,
        shape_units: int,
        outer_radius: float | None,
    ) -> None:
        super().__init__(encoder, decoder, latent_dim, initialisation, minimum_rate_nats)
        self.clustered_units = tuple(range(shape_units))
        self.outer_radius = outer_radius

    @property
    def object_units(self) -> tuple[int, ...]:
        return (*self.clustered_units, len(self.clustered_units))  # the flux comes next

    def prepare(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Lay the rings out, and start from the principal components of what they say."""
        fit_rings(self.encoder, self.decoder, batches, self.outer_radius)


def linear(
    *,
    n_bands: int,
    size: int,
    latent_dim: int = 16,
    minimum_rate_nats: float = 0.0,
    initialisation: str = "default",
) -> Network:
    """Linear encoder and decoder: probabilistic PCA, for which collapse is known exactly."""
    check_int("model.latent_dim", latent_dim, minimum=1, maximum=MOST_UNITS)
    return Network(
        LinearEncoder(n_bands, size, latent_dim),
        LinearDecoder(n_bands, size, latent_dim),
        latent_dim,
        initialisation,
        minimum_rate_nats,
    )


def conv(
    *,
    n_bands: int,
    size: int,
    latent_dim: int = 16,
    width: int = 32,
    symmetry: str = "none",
    pose: str = "none",
    shift_px: float = 1.0,
    minimum_rate_nats: float = 0.0,
    initialisation: str = "default",
) -> Network:
    """The default: residual convolutions, 1.3 million parameters at width 32 and 63x63.

    What `D4Encoder` and `PosedDecoder` add is off unless asked for. The units of a pose come after
    the ``latent_dim`` others and are not clustered.
    """
    check_int("model.latent_dim", latent_dim, minimum=1, maximum=MOST_UNITS)
    if check_int("model.width", width, minimum=8, maximum=MOST_UNITS) % 8:
        raise InputError(f"model.width must be a multiple of 8, got {width}")
    turns = check_choice("model.symmetry", symmetry, ("none", "d4")) == "d4"
    posed = check_choice("model.pose", pose, ("none", "rotation_shift")) != "none"
    shift_px = check_number("model.shift_px", shift_px, above=0, maximum=size)
    n_units = latent_dim + N_POSE_UNITS * posed
    encoder: nn.Module = (D4Encoder if turns else ConvEncoder)(n_bands, size, n_units, width)
    decoder: nn.Module = ConvDecoder(n_bands, size, latent_dim, width)
    if posed:
        encoder = PosedEncoder(encoder, latent_dim)
        decoder = PosedDecoder(decoder, shift_px, n_fold=4 if turns else 1)
    network = Network(encoder, decoder, n_units, initialisation, minimum_rate_nats)
    network.clustered_units = tuple(range(latent_dim))
    network.any_orientation = turns
    return network


def mlp(
    *,
    n_bands: int,
    size: int,
    latent_dim: int = 16,
    hidden: Sequence[int] = (512, 256),
    minimum_rate_nats: float = 0.0,
    initialisation: str = "default",
) -> Network:
    """Dense layers both ways, the decoder in reverse: 4.3 million parameters at 63x63."""
    check_int("model.latent_dim", latent_dim, minimum=1, maximum=MOST_UNITS)
    widths = _checked_widths(hidden)
    return Network(
        MLPEncoder(n_bands, size, latent_dim, widths),
        MLPDecoder(n_bands, size, latent_dim, widths[::-1]),
        latent_dim,
        initialisation,
        minimum_rate_nats,
    )


def question(
    *,
    n_bands: int,
    size: int,
    latent_dim: int = 16,
    bottleneck_units: int = 128,
    dying_bottleneck: bool = False,
    softmax_output: bool = False,
    eps_std: float = 1.0,
    exp_full_log_var: bool = False,
    minimum_rate_nats: float = 0.0,
    initialisation: str = "xavier",
) -> Network:
    """The network of the question; every fault that lies in the network is a switch, off here."""
    check_int("model.latent_dim", latent_dim, minimum=1, maximum=MOST_UNITS)
    check_int("model.bottleneck_units", bottleneck_units, minimum=1, maximum=MOST_UNITS)
    for key, value in (
        ("dying_bottleneck", dying_bottleneck),
        ("softmax_output", softmax_output),
        ("exp_full_log_var", exp_full_log_var),
    ):
        check_bool(f"model.{key}", value)
    return QuestionNetwork(
        QuestionEncoder(n_bands, size, latent_dim, bottleneck_units, dying_bottleneck),
        QuestionDecoder(n_bands, size, latent_dim, softmax_output),
        latent_dim,
        initialisation,
        minimum_rate_nats,
        check_number("model.eps_std", eps_std, minimum=0),
        exp_full_log_var,
    )


def rings(
    *,
    n_bands: int,
    size: int,
    normalizer: Normalizer | None = None,
    latent_dim: int = 16,
    shape_units: int = 6,
    harmonics: int = 4,
    n_rings: int = 10,
    outer_radius: float | None = None,
    hidden: int = 64,
    width: int = 32,
    minimum_rate_nats: float = 0.0,
    initialisation: str = "default",
) -> Network:
    """Shape units without orientation, flux and neighbours, and units for the rest."""
    check_int("model.latent_dim", latent_dim, minimum=1, maximum=MOST_UNITS)
    check_int("model.shape_units", shape_units, minimum=1, maximum=MOST_UNITS)
    check_int("model.harmonics", harmonics, minimum=0, maximum=16)
    check_int("model.n_rings", n_rings, minimum=2, maximum=256)
    check_int("model.hidden", hidden, minimum=1, maximum=MOST_UNITS)
    if check_int("model.width", width, minimum=8, maximum=MOST_UNITS) % 8:
        raise InputError(f"model.width must be a multiple of 8, got {width}")
    if outer_radius is not None:
        check_number("model.outer_radius", outer_radius, minimum=2)
        outer_radius = min(float(outer_radius), 0.5 * size)
    rest_units = latent_dim - shape_units - 1 - n_bands
    if rest_units < 0:
        raise InputError(
            f"model.latent_dim={latent_dim} is too small for model=rings: {shape_units} shape "
            f"units, 1 of flux and {n_bands} of background need at least "
            f"{shape_units + 1 + n_bands}; set model.latent_dim higher or model.shape_units lower"
        )
    system = RingSystem(n_bands, size, n_rings, harmonics, normalizer or Normalizer())
    return RingsNetwork(
        RingsEncoder(system, shape_units, rest_units, hidden, width),
        RingsDecoder(system, shape_units, rest_units, hidden, width),
        latent_dim,
        initialisation,
        minimum_rate_nats,
        shape_units,
        outer_radius,
    )


NETWORKS: dict[str, Callable[..., Network]] = {
    "conv": conv,
    "linear": linear,
    "mlp": mlp,
    "question": question,
    "rings": rings,
}


OF_THE_STAMPS = ("n_bands", "size", "normalizer")
"""What a network gets from the stamps, and no user sets."""


def with_defaults(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of a network in full: as they are given, and else as the network has them.

    Parameters
    ----------
    settings : mapping or None
        ``name`` and keys of one of `NETWORKS`; None for the network that is taken where nobody
        chose. With a name that is not known they are returned as they are, for `build` to refuse.
    """
    given = dict(settings or {"name": "conv"})
    factory = NETWORKS.get(str(given.get("name")))
    if factory is None:
        return given
    own = {
        key: list(each.default) if isinstance(each.default, tuple) else each.default  # as in conf/
        for key, each in inspect.signature(factory).parameters.items()
        if key not in OF_THE_STAMPS
    }
    return own | given


def _checked_widths(hidden: object) -> tuple[int, ...]:
    if not isinstance(hidden, list | tuple) or not hidden:
        raise InputError(
            f"model.hidden must be a list of widths such as [512,256], got {hidden!r}; for no "
            "hidden layer choose model=linear"
        )
    return tuple(
        check_int(f"model.hidden[{layer}]", width, minimum=1, maximum=MOST_UNITS)
        for layer, width in enumerate(hidden)
    )


def _glorot_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | GroupConv):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
