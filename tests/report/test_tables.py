"""What the forecast command prints."""

from __future__ import annotations

import numpy as np

from vae_astro.collapse.forecast import forecast
from vae_astro.collapse.spectrum import Spectrum
from vae_astro.objective.beta import constant
from vae_astro.report.tables import SHOWN, forecast_table


def table(*eigenvalues: float, beta: float, latent_dim: int = 3, model: str = "conv") -> str:
    spectrum = Spectrum(
        eigenvalues=np.array(eigenvalues),
        overlap=np.eye(len(eigenvalues))[None],
        variance=np.array([sum(eigenvalues)]),
        fitting_variance=np.array([100.0]),
        decoder_variance=np.array([1.0]),
        learned_scale=False,
        kl_weight=1.0,
        n_stamps=77,
        n_pixels=100,
    )
    return forecast_table(forecast(spectrum, latent_dim, constant(value=beta), 10), model)


def test_table_shows_what_survives_and_what_does_not() -> None:
    rows = table(8.0, 4.0, 1.0, 0.5, beta=2.0).splitlines()
    assert rows[0].startswith("77 stamps, 100 pixels each; 3 latent units")
    first, second, third, fourth = rows[6:10]
    assert first.split() == ["1", "8", "4", "0.693"]
    assert second.split() == ["2", "4", "2", "0.347"]
    assert third.split()[-1] == fourth.split()[-1] == "collapses"


def test_directions_without_a_unit_are_told() -> None:
    assert "no unit left" in table(8.0, 6.0, 5.0, 4.0, beta=1.0, latent_dim=2)


def test_a_long_spectrum_is_cut_and_says_so() -> None:
    shown = table(*np.geomspace(50, 2, 40), beta=1.0, latent_dim=40)
    assert f"{40 - SHOWN} or more further directions above the threshold" in shown


def test_what_is_not_known_is_said_for_deep_networks_only() -> None:
    assert "Not known for model=conv" in table(8.0, beta=1.0)
    assert "Not known" not in table(8.0, beta=1.0, model="linear")


def test_a_free_kl_has_no_threshold_and_no_bound() -> None:
    shown = table(8.0, 4.0, beta=0.0)
    assert "inf" in shown
    assert "threshold beta * s2   0" in shown
