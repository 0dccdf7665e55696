r"""Experiments on the loss, by its gradients: what it weighs, what its KL is, what it reduces how.

Near the collapsed state, where every stamp is drawn as the mean stamp, a loss is half of
:math:`h_i (x_i - \hat x_i)^2` in each pixel plus half of :math:`k \mu_j^2` in each latent unit. The
collapsed state is stable, and the optimum of a linear model, if no direction of the stamps is worth
its KL: if the largest eigenvalue of the covariance of the pixels' gradients, in units of
:math:`\sqrt{h_i}`, is at most :math:`k` (Lucas et al. 2019; Wang & Ziyin 2022, theorem 2). With one
:math:`h` for all pixels, :math:`k / h` is ``beta * s2`` and the eigenvalue that of the stamps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vae_astro.collapse.audit.bench import Bench, Evidence
from vae_astro.collapse.audit.calls import reseed
from vae_astro.collapse.audit.findings import Finding, Untestable
from vae_astro.collapse.audit.losses import Objective
from vae_astro.collapse.audit.outputs import Spread

__all__ = ["kl_is_that_of_gaussians", "reductions_agree", "weight_leaves_code_alive"]

FAR = 8.0
"""Posterior mean at which the KL is examined: beyond free bits and any capacity."""
NEAR = 0.3
"""Posterior mean near the collapsed state, 0.045 nats."""
GRID = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
"""Spreads at which it is examined, ..."""
POSITIVE = (0.3, 0.5, 0.7, 1.5, 2.0, 3.0)
"""... and where the loss wants a standard deviation, which is never negative."""
FEWEST, MOST = 48, 256
"""Stamps in a batch."""
FLAT = 0.01
"""Slope over that on the other side which is none: the logit of a dark pixel has its minimum, if
any, further away than a thousand, and hardly falls towards it."""
RUNAWAYS = 0.01
"""Share of the pixels without a minimum from which that is a finding."""
N_DRAWS = 32
"""Draws of a KL that is estimated from samples of the code."""
TOLERANCE = 0.12
"""Relative misfit of the KL's gradient that passes; a KL estimated by sampling scatters by 0.05."""

_SLOPE: dict[Spread, Callable[[Tensor], Tensor]] = {
    "log_var": lambda s: 0.5 * (s.exp() - 1),
    "log_std": lambda s: (2 * s).exp() - 1,
    "std": lambda s: s - 1 / s,
    "var": lambda s: 0.5 * (1 - 1 / s),
}
"""Derivative of the KL from a unit Gaussian by the spread, for each meaning of it."""


def kl_is_that_of_gaussians(bench: Bench) -> list[Finding]:
    """Gradients of the loss by mean and spread against those of the closed form."""
    loss = _Loss(bench)
    by_mean = loss.by_mean()
    spreads, by_spread = loss.by_spread()
    scale = max(abs(by_mean), float(by_spread.abs().max()))
    if scale == 0:
        measured = "the loss changes neither with the mean nor with the log-variance"
        return [Finding.of("kl-missing", measured)]
    if by_mean < 0:
        measured = f"the loss falls by {-by_mean:.3g} times the mean as a posterior mean grows"
        return [Finding.of("kl-wrong-sign", measured)]
    misfits = {name: _misfit(by_mean, spreads, by_spread, name) for name in _SLOPE}
    if min(misfits.values()) > TOLERANCE and loss.objective.samples_code:
        # a KL that is estimated from the code scatters with the mean
        spreads, by_spread = loss.by_spread(0.0)
        misfits = {name: _misfit(by_mean, spreads, by_spread, name) for name in _SLOPE}
    best = min(misfits, key=lambda name: misfits[name])
    if misfits[best] <= TOLERANCE:
        measured = (
            f"the gradient of the loss by the log-variance is that of the KL of a {best}, to "
            f"{100 * misfits[best]:.2g} %"
        )
        bench.kl = Evidence(best, measured)
        return []
    of_exp, of_log = _terms(spreads, by_spread)
    measured = (
        f"the gradient of the loss is {by_mean:.3g} mean for the mean and "
        f"{of_exp / 2:.3g} exp(log_var) - {of_log / 2:.3g} for the log-variance; the closed form "
        "has one factor for all three, halved for the latter two"
    )
    missing = [
        term
        for term, factor in (("mean^2", by_mean), ("exp(log_var)", of_exp), ("log_var", of_log))
        if abs(factor) < 0.02 * scale
    ]
    if missing:
        return [Finding.of("kl-missing-term", f"no {' and no '.join(missing)}: {measured}")]
    if of_exp < 0 and of_log < 0:
        return [Finding.of("kl-wrong-sign", measured)]
    if not loss.objective.is_function:
        raise Untestable("the KL is not that of a unit Gaussian: a prior of its own, or a flow")
    return [Finding.of("kl-formula", measured)]


def weight_leaves_code_alive(bench: Bench) -> list[Finding]:
    """``beta * s2`` of the loss against the largest eigenvalue of the stamps' covariance."""
    loss = _Loss(bench)
    curvature, pull = loss.around_mean_stamp()
    if not bool(curvature.any()) and not bool(pull.any()):
        return [Finding.of("reconstruction-missing", "no gradient of the loss reaches the output")]
    away = loss.pushed_away()
    if away > RUNAWAYS:
        measured = (
            f"for {100 * away:.3g} % of the pixels the loss still falls where the output is a "
            "thousand times the stamps' range away"
        )
        return [Finding.of("loss-without-minimum", measured)]
    sharpness = float(curvature.mean())
    if sharpness <= 0:
        measured = (
            f"around the mean stamp the curvature of the loss by a pixel is {sharpness:.3g} on "
            "average: it falls as the output moves away"
        )
        return [Finding.of("reconstruction-wrong-sign", measured)]
    stiffness = loss.by_mean()
    eigenvalue = _largest_eigenvalue(pull, curvature) / sharpness
    bench.facts["largest_eigenvalue"] = eigenvalue
    if stiffness <= 0:
        raise Untestable("the loss has no KL that holds the means")
    beta_s2 = stiffness / sharpness
    bench.facts["beta_s2"] = beta_s2
    learned = bench.facts["learned_scale"] = loss.learns_scale()
    # free bits and a capacity let go of a code that is close to the prior
    wide = 1.0 if bench.kl is not None and bench.kl.meaning in ("std", "var") else 0.0
    slack = bench.facts["kl_slack_near_prior"] = loss.by_mean(NEAR, wide) < 0.5 * stiffness
    if learned or slack or beta_s2 < eigenvalue:
        return []
    excess = beta_s2 / eigenvalue if eigenvalue > 0 else math.inf
    measured = (
        f"beta * s2 is {beta_s2:.4g} in batches of {loss.n} stamps, the largest eigenvalue of "
        f"the covariance of {len(bench.stamps)} stamps {eigenvalue:.4g}: "
        f"the KL weighs {excess:.3g} times too much"
    )
    return [Finding.of("kl-weight-collapses", measured)]


def reductions_agree(bench: Bench) -> list[Finding]:
    """Halve the batch, the pixels and the units, and see what the gradients do."""
    loss = _Loss(bench)
    findings = []
    half = _Loss(bench, n=loss.n // 2)
    of_pixels = _exponent(loss.by_pixel(), half.by_pixel())
    of_kl = _exponent(loss.by_mean(), half.by_mean())
    bench.facts["batch_reduction"] = {"pixels": _word(of_pixels), "kl": _word(of_kl)}
    if math.isfinite(of_pixels + of_kl) and abs(of_pixels - of_kl) > 0.5:
        measured = (
            f"from {half.n} to {loss.n} stamps in a batch the reconstruction is "
            f"{_word(of_pixels)} and the KL {_word(of_kl)}: the KL weight changes by a factor of "
            f"{(loss.n / half.n) ** abs(of_kl - of_pixels):.3g}"
        )
        findings.append(Finding.of("batch-size-in-kl-weight", measured))
    if loss.mixes_stamps():
        measured = "the gradient at the output of one stamp turns when the other stamps change"
        findings.append(Finding.of("loss-mixes-stamps", measured))
    if loss.objective.takes_any_shape:
        pixels = _exponent(loss.by_pixel(), _tried(lambda: _Loss(bench, columns=0.5).by_pixel()))
        units = _exponent(loss.by_mean(), _tried(lambda: _Loss(bench, repeat=2).by_mean()), 0.5)
        bench.facts["reduction"] = {"pixels": _word(pixels), "units": _word(units)}
    return findings


class _Loss:
    """The loss over the first ``n`` stamps, and its gradients.

    Parameters
    ----------
    bench : Bench
    n : int, optional
        Stamps; all, up to 256, if absent.
    columns : float
        Share of the columns of pixels that is kept.
    repeat : int
        How many times each latent unit is there.
    """

    def __init__(
        self, bench: Bench, n: int | None = None, columns: float = 1.0, repeat: int = 1
    ) -> None:
        if bench.objective is None:
            raise Untestable("there is no loss to examine")
        self.objective: Objective = bench.objective
        n_stamps = len(bench.stamps)
        # each equally often, and often enough for every point of the grid
        self.n = n or min(n_stamps * -(-FEWEST // n_stamps), MOST)
        reading = bench.read(2)
        assert reading.recon is not None
        if reading.mean is None or reading.spread is None:
            raise Untestable("the model hands out no mean and log-variance")
        self.stamps = bench.stamps[torch.arange(self.n) % len(bench.stamps)]
        shape = reading.recon.shape[1:]
        if columns < 1:
            keep = max(1, int(columns * self.stamps.shape[-1]))
            self.stamps = self.stamps[..., :keep]
            shape = self.stamps.shape[1:] if len(shape) > 1 else self.stamps[0].flatten().shape
        self.collapsed = self.objective.collapsed(self.stamps).reshape(1, *shape)
        code = reading.mean.shape[1:]
        self.code_shape = (*code[:-1], repeat * code[-1])

    def _mean(self, value: float = 0.0) -> Tensor:
        return self.stamps.new_full((self.n, *self.code_shape), value)

    def _recon(self, shift: Tensor | float = 0.0) -> Tensor:
        recon = self.collapsed + shift
        return recon.expand(self.n, *self.collapsed.shape[1:]).clone()

    def _gradient(self, role: str, seed: int = 0, **given: Tensor) -> Tensor:
        """Of the loss by one of its arguments; the others are given or neutral."""
        neutral = {"recon": self._recon, "mean": self._mean, "spread": lambda: self._mean(0.5)}
        arguments = {
            name: given[name].clone() if name in given else make() for name, make in neutral.items()
        }
        arguments[role].requires_grad_()
        reseed(seed)
        loss = self.objective(stamps=self.stamps, **arguments)
        if not loss.requires_grad:
            return torch.zeros_like(arguments[role])
        gradient = torch.autograd.grad(loss, arguments[role], allow_unused=True)[0]
        return torch.zeros_like(arguments[role]) if gradient is None else gradient

    def _averaged(self, role: str, **given: Tensor) -> Tensor:
        """As `_gradient`, over many draws where the loss may draw."""
        n_draws = N_DRAWS if self.objective.samples_code else 1
        draws = (self._gradient(role, seed, **given).double() for seed in range(n_draws))
        return torch.stack(list(draws)).mean(0)

    def by_mean(self, far: float = FAR, spread: float = 0.5) -> float:
        """Gradient by a posterior mean, in units of it, per stamp and unit."""
        given = {"mean": self._mean(far), "spread": self._mean(spread)}
        return float(self._averaged("mean", **given).mean() / far)

    def by_spread(self, far: float = FAR) -> tuple[Tensor, Tensor]:
        """Spreads (S,) and the gradient by the spread there, per stamp and unit (S,)."""
        try:
            return self._by_spread_at(GRID, far)
        except (RuntimeError, ValueError):  # a distribution that checks its arguments
            return self._by_spread_at(POSITIVE, far)

    def _by_spread_at(self, values: tuple[float, ...], far: float) -> tuple[Tensor, Tensor]:
        grid = torch.tensor(values, dtype=torch.float64)
        which = torch.arange(self.n) % len(grid)
        spread = self._mean() + grid[which].to(self.stamps).view(-1, *[1] * len(self.code_shape))
        gradient = self._averaged("spread", mean=self._mean(far), spread=spread)
        per_stamp = gradient.flatten(1).mean(1).cpu()
        by_spread = torch.stack([per_stamp[which == k].mean() for k in range(len(grid))])
        usable = by_spread.isfinite()  # the logarithm of a negative standard deviation is not
        return grid[usable], by_spread[usable]

    def by_pixel(self) -> float:
        """Curvature of the loss by a pixel of one stamp, averaged over pixels."""
        shift = float(self.stamps.std())
        far = self._gradient("recon", recon=self._recon(0.1 * shift))
        near = self._gradient("recon", recon=self._recon(-0.1 * shift))
        return float((far - near).double().mean().abs()) / (0.2 * shift)

    def around_mean_stamp(self) -> tuple[Tensor, Tensor]:
        """Curvature by each pixel (D,), and the gradient there for each stamp (N, D).

        The curvature is taken over the spread of each pixel, so that an absolute error has one.
        """
        spread = self.stamps.std(0).reshape(self.collapsed.shape)
        spread = spread.clamp(min=0.05 * float(spread.mean()))
        pull = self._gradient("recon").flatten(1).double()
        for share in (1.0, 0.3, 0.1, 0.03, 0.01):
            step = share * spread
            try:
                up = self._gradient("recon", recon=self._recon(step))
                down = self._gradient("recon", recon=self._recon(-step))
            except (RuntimeError, ValueError):  # out of the range of a cross-entropy
                continue
            curvature = (up - down).double().mean(0).flatten() / (2 * step.double().flatten())
            if bool(curvature.isfinite().all()) and bool(pull.isfinite().all()):
                return curvature, pull
        raise Untestable("the loss is not finite, or raises, around the mean stamp")

    def pushed_away(self) -> float:
        """Share of the pixels for which the loss falls as the output goes away from all stamps."""
        low, high = self.stamps.aminmax()
        far = 1e3 * (high - low)
        try:
            above = self._gradient("recon", recon=self._recon(far))
            below = -self._gradient("recon", recon=self._recon(-far))
        except (RuntimeError, ValueError):  # out of the range of a cross-entropy
            return 0.0
        falls_above, falls_below = above < -FLAT * below.abs(), below < -FLAT * above.abs()
        # where it falls on both sides the sign is wrong, and `around_mean_stamp` tells
        return float((falls_above ^ falls_below).double().mean())

    def learns_scale(self) -> bool:
        """Whether training adapts the weight of the residuals."""
        return self.objective.learns_scale(
            self._recon(), self.stamps, self._mean(), self._mean(0.5)
        )

    def mixes_stamps(self) -> bool:
        """Whether the error of the first stamp is taken against others."""
        first = self._gradient("recon")[0].flatten()
        kept = self.stamps
        others = kept[1:].roll(1, -1) + 2 * kept.std()
        self.stamps = torch.cat([kept[:1], others])
        try:
            second = self._gradient("recon")[0].flatten()
        except (RuntimeError, ValueError):
            return False
        finally:
            self.stamps = kept
        likeness = torch.nn.functional.cosine_similarity(first, second, dim=0)
        return bool(first.any()) and float(likeness) < 0.99


def _misfit(by_mean: float, spreads: Tensor, by_spread: Tensor, meaning: Spread) -> float:
    """Root mean square of what the closed form leaves over, in units of the gradient."""
    expected = by_mean * _SLOPE[meaning](spreads)
    if len(spreads) < 3:
        return math.inf
    return float((by_spread - expected).norm() / expected.norm())


def _terms(spreads: Tensor, by_spread: Tensor) -> tuple[float, float]:
    """Factors a, b of the best fit of (a exp(s) - b) / 2."""
    basis = torch.stack([0.5 * spreads.exp(), torch.full_like(spreads, -0.5)], 1)
    of_exp, of_log = torch.linalg.lstsq(basis, by_spread[:, None]).solution.flatten().tolist()
    return of_exp, of_log


def _largest_eigenvalue(pull: Tensor, curvature: Tensor) -> float:
    """Of the gradients' covariance over stamps, pixels in units of the root of their curvature."""
    floor = 1e-3 * float(curvature.mean())
    scaled = pull / curvature.clamp(min=floor).sqrt()
    centred = scaled - scaled.mean(0)
    return float(torch.linalg.eigvalsh(centred @ centred.T / len(centred))[-1])


def _exponent(one: float, other: float | None, factor: float = 2.0) -> float:
    """Power of the size by which a gradient grows, where ``one`` has ``factor`` times the size."""
    if other is None or one <= 0 or other <= 0:
        return math.nan
    return math.log(one / other) / math.log(factor)


def _word(exponent: float) -> str:
    if abs(exponent) < 0.35:  # a cross-entropy weighs pixels by their brightness
        return "summed"
    return "averaged" if abs(exponent + 1) < 0.35 else "unknown"


def _tried(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except Exception:  # the loss may know its shapes
        return None
