r"""How a source lies in its stamp, inferred apart from what it is: rotation and shift.

The decoder draws the source upright and centred, and the picture is then turned and moved by latent
units of their own (Bepler et al. 2019, spatial-VAE; Jaderberg et al. 2015). They have the standard
normal prior of all units and a Gaussian posterior, so their KL is in the same nats and nothing that
looks at a code has to know them: the shift is a Gaussian times its prior width in pixels, and the
angle is that of a pair of Gaussians, :math:`\theta = \mathrm{atan2}(b, a)`, uniform on the circle
under the prior and without a seam in the posterior.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from vae_astro.model.posterior import DiagonalGaussian

__all__ = ["N_POSE_UNITS", "PosedDecoder", "PosedEncoder", "placed"]

N_POSE_UNITS = 4
"""Two for the angle, one for each axis of the shift."""
FIRST_MEAN = (2.0, 0.0, 0.0, 0.0)
FIRST_LOG_VAR = (-2.0, -2.0, -4.0, -4.0)
"""Posterior of the pose at the start: upright within 10 degrees, centred within an eighth of the
shift's prior. Where every stamp began with a random angle, the decoder could but learn what looks
the same from all sides, and no angle would ever matter."""


def placed(picture: Tensor, angle: Tensor, shift_px: Tensor) -> Tensor:
    """A picture turned about its centre, then moved; bilinear, its border continued outside.

    Parameters
    ----------
    picture : Tensor, shape (B, C, H, W)
        H = W.
    angle : Tensor, shape (B,)
        Radians, from the columns' axis to the rows'.
    shift_px : Tensor, shape (B, 2)
        Pixels along a row, and along a column.

    Returns
    -------
    Tensor, shape (B, C, H, W), float32
    """
    size = picture.shape[-1]
    # float32 whatever the network computes in: eight bits place a pixel within a tenth of itself
    picture, angle, shift_px = picture.float(), angle.float(), shift_px.float()
    axis = torch.linspace(1 / size - 1, 1 - 1 / size, size, device=picture.device)
    x = axis[None, None, :] - 2 / size * shift_px[:, 0, None, None]
    y = axis[None, :, None] - 2 / size * shift_px[:, 1, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    grid = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1)
    return F.grid_sample(picture, grid, padding_mode="border", align_corners=False)


class PosedEncoder(nn.Module):
    """An encoder whose last units are those of a pose, and start where a pose should.

    Parameters
    ----------
    encoder : Module
        (B, C, H, W) to a posterior of ``latent_dim + N_POSE_UNITS`` units.
    latent_dim : int
        Units before those of the pose.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent_dim = latent_dim
        self.mean = nn.Parameter(torch.tensor(FIRST_MEAN))
        self.log_var = nn.Parameter(torch.tensor(FIRST_LOG_VAR))

    def forward(self, image: Tensor) -> DiagonalGaussian:
        """Posterior of ``image`` (B, C, H, W), its last `N_POSE_UNITS` units the pose."""
        said = self.encoder(image)
        mean, log_var = (F.pad(add, (self.latent_dim, 0)) for add in (self.mean, self.log_var))
        return DiagonalGaussian(said.mean.float() + mean, said.log_var.float() + log_var)


class PosedDecoder(nn.Module):
    """A decoder whose picture is turned and moved by the last units of the code.

    Parameters
    ----------
    decoder : Module
        (B, Z) to (B, C, H, W), the source upright and centred.
    shift_px : float
        Standard deviation of the shift along each axis under the prior, in pixels.
    n_fold : int
        The angles cover one n-th of the circle; 4 where the likelihood tries the quarter-turns.
        The ends of that range are then the same, as those of the whole circle are otherwise.
    """

    def __init__(self, decoder: nn.Module, shift_px: float, n_fold: int = 1) -> None:
        super().__init__()
        self.decoder = decoder
        self.shift_px = shift_px
        self.n_fold = n_fold

    def pose(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Angle (B,) in radians and shift (B, 2) in pixels of code ``z`` (B, Z + 4)."""
        a, b, x, y = z[:, -N_POSE_UNITS:].unbind(1)
        return torch.atan2(b, a) / self.n_fold, self.shift_px * torch.stack([x, y], dim=1)

    def forward(self, z: Tensor) -> Tensor:
        """Location (B, C, H, W) of code ``z`` (B, Z + 4)."""
        return placed(self.decoder(z[:, :-N_POSE_UNITS]), *self.pose(z))
