"""The simulated sky is what its truth says, and its folder is whole and legal FITS."""

from __future__ import annotations

import csv
import errno
import functools
import json
import math
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from vae_astro.data import profiles, simulated, sky_model
from vae_astro.data import simulate as simulation
from vae_astro.data.simulate import CLASSES, SimulatedStamp, draw_stamp, fits_bytes, simulate
from vae_astro.data.sky_model import GAIN_E_PER_ADU, READ_NOISE_E, SATURATION_ADU, signal_to_noise
from vae_astro.data.sources.fits.reader import FitsReader
from vae_astro.errors import InputError

SEED = 7
N_DRAWN = 1200


@functools.cache
def drawn() -> list[SimulatedStamp]:
    return [draw_stamp(index, seed=SEED) for index in range(N_DRAWN)]


def clean(label: str, min_snr: float = 0.0) -> list[SimulatedStamp]:
    """Stamps of one class without neighbours or bad pixels."""
    found = [
        stamp
        for stamp in drawn()
        if stamp.label == label
        and stamp.truth["n_neighbours"] == 0
        and stamp.truth["n_bad_pixels"] == 0
        and not stamp.truth["snr"] < min_snr
    ]
    assert len(found) >= 8, f"too few clean {label} stamps to judge the class"
    return found


def light_of(stamp: SimulatedStamp) -> np.ndarray:
    """Pixels less the sky, shape (63, 63), bad pixels zero."""
    return np.nan_to_num(stamp.pixels.astype(float) - stamp.truth["sky_level_adu"])


def central_light(stamp: SimulatedStamp, radius: float) -> np.ndarray:
    """`light_of` within ``radius`` pixels of the centre, zero outside."""
    y, x = np.indices(stamp.pixels.shape) - stamp.pixels.shape[0] // 2
    return np.where(np.hypot(x, y) <= radius, light_of(stamp), 0.0)


def elongation(stamp: SimulatedStamp) -> float:
    """Ratio of the rms widths of the bright pixels along their major and minor axes."""
    light = light_of(stamp)
    light[light < max(5 * stamp.truth["sky_noise_adu"], 0.1 * light.max())] = 0.0
    y, x = np.nonzero(light)
    variances = np.linalg.eigvalsh(np.cov(x, y, aweights=light[y, x]) + np.eye(2) / 12)
    return float(np.sqrt(variances[1] / variances[0]))


def folder_bytes(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def assert_nothing_partial(folder: Path) -> None:
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished simulation of 60 stamps."""
    root = tmp_path_factory.mktemp("simulated") / "stamps"
    return simulate(root, n_stamps=60, seed=SEED, progress=False)


# Drawing


def test_a_stamp_depends_on_its_index_seed_and_size_alone() -> None:
    again = {index: draw_stamp(index, seed=SEED) for index in (41, 3, 17)}
    for index, stamp in again.items():
        np.testing.assert_array_equal(stamp.pixels, drawn()[index].pixels)
        np.testing.assert_equal(stamp.truth, drawn()[index].truth)
        assert (stamp.id, stamp.ra, stamp.dec) == (
            f"sim{SEED}-{index:08d}",
            drawn()[index].ra,
            drawn()[index].dec,
        )


def test_seeds_and_indices_give_different_stamps() -> None:
    pixels = [draw_stamp(i, seed=s).pixels for i, s in ((0, 0), (1, 0), (0, 1), (1, 1))]
    for one in range(4):
        for other in range(one):
            assert not np.array_equal(pixels[one], pixels[other], equal_nan=True)


@pytest.mark.parametrize("size", [16, 32, 101])
def test_pixels_have_the_size_asked_for_and_stay_below_full_well(size: int) -> None:
    labels = set()
    for index in range(40):
        stamp = draw_stamp(index, seed=SEED, size=size)
        labels.add(stamp.label)
        assert stamp.pixels.shape == (size, size)
        assert stamp.pixels.dtype == np.float32
        assert np.nanmax(stamp.pixels) <= SATURATION_ADU
    assert labels == set(CLASSES)


def test_classes_come_in_equal_shares() -> None:
    counts = Counter(stamp.label for stamp in drawn())
    expected = N_DRAWN / len(CLASSES)
    for label in CLASSES:  # five standard deviations of a binomial share
        assert abs(counts[label] - expected) < 5 * math.sqrt(expected)


def test_positions_cover_the_whole_sky_evenly() -> None:
    ra, sin_dec = np.array([(s.ra, math.sin(math.radians(s.dec))) for s in drawn()]).T
    for values, low, high in ((ra, 0.0, 360.0), (sin_dec, -1.0, 1.0)):
        shares = np.histogram(values, bins=4, range=(low, high))[0] / N_DRAWN
        np.testing.assert_allclose(shares, 0.25, atol=5 * math.sqrt(0.25 * 0.75 / N_DRAWN))


def test_some_stamps_have_neighbours_bad_pixels_edges_and_saturation() -> None:
    truths = [stamp.truth for stamp in drawn()]
    assert 0.25 < np.mean([truth["n_neighbours"] > 0 for truth in truths]) < 0.45
    assert 0.05 < np.mean([truth["n_bad_pixels"] > 0 for truth in truths]) < 0.2
    assert 0.02 < np.mean([truth["n_bad_pixels"] >= 2 * 63 for truth in truths]) < 0.08
    assert 0.002 < np.mean([truth["n_saturated_pixels"] > 0 for truth in truths]) < 0.05
    for stamp in drawn():
        assert np.count_nonzero(np.isnan(stamp.pixels)) == stamp.truth["n_bad_pixels"]
        saturated = np.count_nonzero(stamp.pixels >= SATURATION_ADU)
        assert (
            saturated <= stamp.truth["n_saturated_pixels"]
        )  # fewer where a dead pixel lies on one


def test_noise_of_bare_sky_follows_gain_and_read_noise() -> None:
    pulls, variances = [], []
    for stamp in clean("empty"):
        sky = stamp.truth["sky_level_adu"]
        noise = math.sqrt(sky / GAIN_E_PER_ADU + (READ_NOISE_E / GAIN_E_PER_ADU) ** 2)
        assert stamp.truth["sky_noise_adu"] == pytest.approx(noise, rel=1e-12)
        pulls.append(np.mean(light_of(stamp)) / noise)
        variances.append(np.var(light_of(stamp)) / noise**2)
    n_pixels = len(pulls) * 63**2
    assert abs(np.mean(pulls)) < 5 / math.sqrt(n_pixels)
    assert np.mean(variances) == pytest.approx(1.0, abs=5 * math.sqrt(2 / n_pixels))
    # Not only on average: at every sky level, as the levels differ by a factor of eight.
    assert np.max(np.abs(np.array(variances) - 1.0)) < 5 * math.sqrt(2 / 63**2)


def test_noise_under_an_object_adds_its_shot_noise() -> None:
    rng = np.random.default_rng(0)
    signal, sky = np.full((400, 400), 900.0), 150.0
    recorded = sky_model._record(rng, signal, sky)
    expected = math.sqrt((900.0 + sky) / GAIN_E_PER_ADU + (READ_NOISE_E / GAIN_E_PER_ADU) ** 2)
    assert np.mean(recorded) == pytest.approx(900.0 + sky, abs=5 * expected / 400)
    assert np.std(recorded) == pytest.approx(expected, rel=5 / math.sqrt(2 * signal.size))


def test_values_above_full_well_are_clipped() -> None:
    recorded = sky_model._record(np.random.default_rng(0), np.full((8, 8), 1e6), 100.0)
    np.testing.assert_array_equal(recorded, np.float32(SATURATION_ADU))


@pytest.mark.parametrize("snr", [10.0, 55.0, 300.0])
@pytest.mark.parametrize("sky_level", [50.0, 400.0])
def test_light_is_scaled_to_the_signal_to_noise_asked_for(snr: float, sky_level: float) -> None:
    light = profiles.expose(galsim.DeltaFunction(), 2.1, 63)
    signal = sky_model._scaled_to(snr, light, sky_level)
    assert signal_to_noise(signal, sky_level) == pytest.approx(snr, rel=1e-8)
    # The definition, not its code: a matched filter's own flux over its scatter in noisy stamps.
    weight = signal / ((signal + sky_level) / GAIN_E_PER_ADU + (READ_NOISE_E / GAIN_E_PER_ADU) ** 2)
    rng = np.random.default_rng(1)
    fluxes = [
        np.sum(weight * (sky_model._record(rng, signal, sky_level) - sky_level)) for _ in range(400)
    ]
    # The scatter of 400 draws is known to 3.5 %; 18 % is five times that.
    assert np.mean(fluxes) / np.std(fluxes) == pytest.approx(snr, rel=0.18)


def test_signal_to_noise_of_drawn_stamps_spans_its_range_evenly_in_the_logarithm() -> None:
    snr = np.array([stamp.truth["snr"] for stamp in drawn() if stamp.label != "empty"])
    assert snr.min() >= 10.0
    assert snr.max() <= 300.0
    middle = math.sqrt(10.0 * 300.0)
    assert np.mean(snr < middle) == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / len(snr)))


@pytest.mark.parametrize("label", [label for label in CLASSES if label != "empty"])
def test_light_on_the_stamp_is_the_flux_in_the_truth(label: str) -> None:
    pulls = []
    for stamp in clean(label, min_snr=30.0):
        if stamp.truth["n_saturated_pixels"]:
            continue
        truth, n_pixels = stamp.truth, stamp.pixels.size
        noise = math.sqrt(
            n_pixels * truth["sky_noise_adu"] ** 2 + truth["flux_adu"] / GAIN_E_PER_ADU
        )
        pulls.append((np.sum(light_of(stamp)) - truth["flux_adu"]) / noise)
    assert abs(np.mean(pulls)) < 5 / math.sqrt(len(pulls))
    assert np.max(np.abs(pulls)) < 5


# Classes


def test_a_star_is_as_wide_as_the_seeing() -> None:
    ratios = []
    for stamp in clean("star", min_snr=80.0):
        light = light_of(stamp)
        # Peak over flux gives the width of a Moffat profile: F / I0 = pi alpha^2 / (beta - 1).
        row, column = np.unravel_index(np.argmax(light), light.shape)
        y, x = np.indices(light.shape)
        core = np.hypot(x - column, y - row) < 10
        alpha = math.sqrt(light[core].sum() / light.max() * 2.5 / math.pi)
        ratios.append(alpha * 2 * math.sqrt(2 ** (1 / 3.5) - 1) / stamp.truth["seeing_arcsec"])
    # The pixel widens the narrowest star by a quarter, and its centre may fall between two pixels.
    assert 1.0 < np.median(ratios) < 1.25
    assert np.max(ratios) < 1.6
    assert np.min(ratios) > 0.85


def test_an_object_lies_where_its_offset_says() -> None:
    residuals = []
    for stamp in clean("star", min_snr=100.0):
        light = central_light(stamp, radius=8)
        y, x = np.indices(light.shape) - 31
        residuals.append((light * x).sum() / light.sum() - stamp.truth["x_offset_px"])
        residuals.append((light * y).sum() / light.sum() - stamp.truth["y_offset_px"])
    assert np.std(residuals) < 0.25  # a wrong sign or a swapped axis leaves 1


def test_position_angle_runs_from_north_through_east() -> None:
    for stamp in clean("edge_on", min_snr=100.0):
        light = central_light(stamp, radius=20)
        light[light < 5 * stamp.truth["sky_noise_adu"]] = 0.0
        rows, columns = np.nonzero(light)
        weights = light[rows, columns]
        wcs = WCS(fits.Header.fromstring(fits_bytes(stamp)[:2880].decode("ascii")))
        ra, dec = wcs.pixel_to_world_values(columns, rows)
        east = ((ra - stamp.ra + 180) % 360 - 180) * math.cos(math.radians(stamp.dec))
        covariance = np.cov(east * 3600, (dec - stamp.dec) * 3600, aweights=weights)
        major = np.linalg.eigh(covariance)[1][:, 1]
        measured = math.degrees(math.atan2(major[0], major[1]))
        difference = (measured - stamp.truth["position_angle_deg"] + 90) % 180 - 90
        assert abs(difference) < 6


def test_galaxies_are_wider_than_the_stars_beside_them() -> None:
    def concentration(label: str) -> float:
        stamps = clean(label, min_snr=80.0)
        return float(np.median([np.max(light_of(s)) / s.truth["flux_adu"] for s in stamps]))

    assert concentration("elliptical") < 0.6 * concentration("star")
    assert concentration("spiral") < 0.6 * concentration("elliptical")


def test_edge_on_discs_and_trails_are_elongated_and_ellipticals_are_not() -> None:
    median = {
        label: np.median([elongation(stamp) for stamp in clean(label, min_snr=60.0)])
        for label in ("star", "elliptical", "edge_on", "trail")
    }
    assert median["star"] < 1.1
    assert median["elliptical"] < 1.5
    assert median["edge_on"] > 2.0
    assert median["trail"] > 4.0


def test_trails_are_wider_than_a_pixel_and_some_cross_the_stamp() -> None:
    crossing = []
    for stamp in clean("trail", min_snr=60.0):
        on_rim = np.ones((63, 63), dtype=bool)
        on_rim[2:-2, 2:-2] = False
        bright = light_of(stamp) > 4 * stamp.truth["sky_noise_adu"]
        sides = [bright[:2], bright[-2:], bright[:, :2], bright[:, -2:]]
        crossing.append(sum(np.count_nonzero(side) >= 2 for side in sides))
    assert np.mean(np.array(crossing) >= 2) > 0.25
    assert np.mean(np.array(crossing) == 0) > 0.1


def test_spiral_arms_break_the_symmetry_of_the_disc() -> None:
    """The m = 2, 3, 4 terms of the azimuthal profile, without noise, inclination taken out."""

    def armed(profile: galsim.GSObject, shape: dict[str, float]) -> float:
        light = profiles.expose(profile, 2.1, 63)
        y, x = np.indices(light.shape) - 31.0
        beta = math.radians(shape["position_angle_deg"] + 90)
        u = x * math.cos(beta) + y * math.sin(beta)
        v = (y * math.cos(beta) - x * math.sin(beta)) / (1 - shape["ellipticity"])
        radius, azimuth = np.hypot(u, v), np.arctan2(v, u)
        scale = shape["half_light_radius_arcsec"] / 1.678
        terms = []
        for inner in np.arange(1.0, 2.2, 0.3):  # in narrow rings, as arms wind with radius
            ring = (radius > inner * scale) & (radius < (inner + 0.3) * scale)
            waves = [np.mean(light[ring] * np.exp(1j * m * azimuth[ring])) for m in (2, 3, 4)]
            terms.append(np.max(np.abs(waves)) / np.mean(light[ring]))
        return float(np.mean(terms))

    rng, spirals, smooth = np.random.default_rng(SEED), [], []
    for _ in range(20):
        shape, profile = profiles.class_profile("spiral", rng, 2.1, 63)
        spirals.append(armed(profile, shape))
        axis_ratio, minor_over_mean = 1 - shape["ellipticity"], math.sqrt(1 - shape["ellipticity"])
        disc = galsim.Exponential(
            half_light_radius=shape["half_light_radius_arcsec"] * minor_over_mean
        ).shear(q=axis_ratio, beta=(shape["position_angle_deg"] + 90) * galsim.degrees)
        smooth.append(armed(disc, shape))
    assert np.min(spirals) > 2 * np.median(smooth)
    assert np.median(spirals) > 0.25
    assert np.max(smooth) < 0.15


def test_a_pair_has_two_peaks_at_its_separation() -> None:
    hits = []
    for stamp in clean("pair", min_snr=80.0):
        light = central_light(stamp, radius=12)
        inner = light[1:-1, 1:-1]
        neighbours = [
            light[1 + dy : 62 + dy, 1 + dx : 62 + dx]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if (dy, dx) != (0, 0)
        ]
        is_peak = (inner > np.max(neighbours, axis=0)) & (inner > 0.25 * light.max())
        rows, columns = np.nonzero(is_peak)
        apart = np.hypot(rows - rows[:, None], columns - columns[:, None])
        hits.append(np.any(np.abs(apart - stamp.truth["separation_arcsec"]) < 2.0))
    assert np.mean(hits) > 0.7


def test_a_cosmic_ray_is_sharper_than_the_seeing() -> None:
    def sharpness(label: str) -> float:
        """Faintest of the four pixels beside the brightest one, relative to it."""
        ratios = []
        for stamp in clean(label, min_snr=80.0):
            light = light_of(stamp)
            row, column = np.unravel_index(np.argmax(light), light.shape)
            beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            ratios.append(min(light[pixel] for pixel in beside) / light[row, column])
        return float(np.median(ratios))

    assert sharpness("star") > 0.4
    assert sharpness("cosmic_ray") < 0.05


def test_empty_sky_has_no_source() -> None:
    for stamp in clean("empty"):
        assert math.isnan(stamp.truth["snr"])
        # 4 million pixels in all of these stamps would reach 5.3 by chance; Poisson adds a little.
        assert np.max(np.abs(light_of(stamp))) < 6.5 * stamp.truth["sky_noise_adu"]
    assert all(s.truth["n_neighbours"] == 0 for s in drawn() if s.label == "empty")


def test_a_fainter_canvas_does_not_change_a_painted_profile() -> None:
    """The canvas is surface brightness, of which only the shape matters."""
    x = np.array([0.0, 3.0])
    canvas = profiles._beads(x, x, np.array([1.0, 0.5]), width=1.5)
    one, other = (profiles.expose(profiles._painted(canvas * k), 2.1, 63) for k in (1.0, 1e-3))
    np.testing.assert_allclose(one, other, atol=1e-9)
    assert one.sum() == pytest.approx(1.0, abs=0.01)


# Files


def test_files_read_back_bit_for_bit_with_the_headers_of_their_stamp(small: Path) -> None:
    paths = sorted(small.rglob("*.fits"))
    assert len(paths) == 60
    for index, path in enumerate(paths):
        stamp = draw_stamp(index, seed=SEED)
        assert path.relative_to(small) == Path("00") / f"{stamp.id}.fits"
        with fits.open(path, memmap=False) as hdus:
            hdus.verify("exception")
            header = hdus[0].header
            assert hdus[0].data.astype("<f4").tobytes() == stamp.pixels.tobytes()
        assert header["OBJECT"] == header["OBJID"] == stamp.id
        assert header["CLASS"] == stamp.label
        assert header["GAIN"] == GAIN_E_PER_ADU
        assert header["SATURATE"] == SATURATION_ADU
        assert header["BUNIT"] == "adu"
        assert header["SKYLEVEL"] == pytest.approx(stamp.truth["sky_level_adu"], abs=1e-6)
        assert header["SEEING"] == stamp.truth["seeing_arcsec"]
        assert ("SNR" in header) == (stamp.label != "empty")
        if "SNR" in header:
            assert header["SNR"] == pytest.approx(stamp.truth["snr"], abs=1e-6)


def test_the_seeing_that_was_drawn_is_read_back_in_pixels(small: Path, read_all) -> None:
    stamps = read_all(FitsReader(), small)
    drawn_px = [
        draw_stamp(index, seed=SEED).truth["seeing_arcsec"] / sky_model.PIXEL_SCALE_ARCSEC
        for index in range(60)
    ]
    assert len(set(drawn_px)) > 3
    assert [stamp.seeing for stamp in stamps] == pytest.approx(drawn_px, rel=1e-6)


def test_the_bytes_are_those_that_astropy_writes(tmp_path: Path) -> None:
    for index in range(20):
        path = tmp_path / f"{index}.fits"
        path.write_bytes(fits_bytes(draw_stamp(index, seed=SEED)))
        with fits.open(path, memmap=False) as hdus:
            hdus.writeto(tmp_path / "astropy.fits", overwrite=True)
        assert path.read_bytes() == (tmp_path / "astropy.fits").read_bytes()


def test_the_wcs_puts_the_centre_of_the_stamp_at_its_position() -> None:
    for index in range(20):
        stamp = draw_stamp(index, seed=SEED)
        wcs = WCS(fits.Header.fromstring(fits_bytes(stamp)[:2880].decode("ascii")))
        ra, dec = wcs.pixel_to_world_values(31, 31)
        assert ra == pytest.approx(stamp.ra, abs=1e-9)
        assert dec == pytest.approx(stamp.dec, abs=1e-9)
        scales = np.abs(np.diag(wcs.pixel_scale_matrix)) * 3600
        np.testing.assert_allclose(scales, sky_model.PIXEL_SCALE_ARCSEC)
        assert wcs.wcs.cd[0, 0] < 0  # east is left


def test_fitsverify_finds_no_fault(small: Path) -> None:
    fitsverify = shutil.which("fitsverify")
    if fitsverify is None:
        pytest.skip("fitsverify is not installed (Debian: apt install fitsverify)")
    paths = [str(path) for path in sorted(small.rglob("*.fits"))]
    done = subprocess.run(
        [fitsverify, "-q", *paths], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout
    verdicts = [line for line in done.stdout.splitlines() if line.startswith("verification")]
    assert len(verdicts) == len(paths)
    assert all(line.startswith("verification OK") for line in verdicts), done.stdout


def test_catalogue_and_summary_tell_the_truth(small: Path) -> None:
    with (small / "catalogue.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"sim{SEED}-{index:08d}" for index in range(60)]
    for index, row in enumerate(rows):
        stamp = draw_stamp(index, seed=SEED)
        assert (small / row["file"]).is_file()
        assert row["label"] == stamp.label
        assert (float(row["ra"]), float(row["dec"])) == (stamp.ra, stamp.dec)
        np.testing.assert_equal({key: float(row[key]) for key in stamp.truth}, stamp.truth)
    summary = json.loads((small / "simulation.json").read_text())
    assert (summary["n_stamps"], summary["seed"], summary["size"]) == (60, SEED, 63)
    assert summary["class_counts"] == Counter(row["label"] for row in rows)
    assert_nothing_partial(small.parent)


def test_the_files_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    n_stamps = 1100  # a second subfolder
    start = time.perf_counter()
    one = simulate(tmp_path / "one", n_stamps=n_stamps, seed=3, n_processes=1, progress=False)
    rate = n_stamps / (time.perf_counter() - start)
    print(f"{rate:.0f} stamps/s drawn and written by one process")
    record_property("stamps_per_second", rate)
    two = simulate(tmp_path / "two", n_stamps=n_stamps, seed=3, n_processes=2, progress=False)
    assert folder_bytes(one) == folder_bytes(two)
    assert len(list(one.glob("00/*.fits"))) == 1000
    assert len(list(one.glob("01/*.fits"))) == 100


def test_an_error_in_a_worker_process_reaches_the_caller(tmp_path: Path) -> None:
    write = functools.partial(simulation._write_chunk, tmp_path / "absent", 0, 63)
    with (
        pytest.raises(FileNotFoundError, match="absent"),
        simulation._mapping(2) as mapping,
    ):
        list(mapping(write, [range(3), range(3, 6)]))


def test_a_finished_folder_is_reused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "_write_chunk", pytest.fail)
    before = folder_bytes(small)
    assert simulate(small, n_stamps=60, seed=SEED, progress=False) == small
    assert folder_bytes(small) == before


@pytest.mark.parametrize(
    "changed", [{"n_stamps": 61}, {"seed": 8}, {"size": 64}], ids=["n_stamps", "seed", "size"]
)
def test_a_folder_with_other_settings_is_left_alone(small: Path, changed: dict[str, int]) -> None:
    before = folder_bytes(small)
    settings = {"n_stamps": 60, "seed": SEED, "size": 63} | changed
    with pytest.raises(InputError) as raised:
        simulate(small, **settings, progress=False)
    message = str(raised.value)
    for part in ("data.root", "data.n_stamps", "seed", str(small), f"n_stamps 60, seed {SEED}"):
        assert part in message
    assert folder_bytes(small) == before


def test_a_folder_of_an_older_format_is_not_reused(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated, "FORMAT_VERSION", simulated.FORMAT_VERSION + 1)
    with pytest.raises(InputError, match="format"):
        simulate(small, n_stamps=60, seed=SEED, progress=False)


@pytest.mark.parametrize("content", ["notes.txt", "simulation.json", None])
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, content: str | None) -> None:
    root = tmp_path / "mine"
    if content is None:
        root.write_text("a file, not a folder")
    else:
        root.mkdir()
        (root / content).write_text("precious")
    with pytest.raises(InputError, match=r"data\.root.*mine is taken"):
        simulate(root, n_stamps=3, progress=False)
    assert (root if content is None else root / content).is_file()
    assert_nothing_partial(tmp_path)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    simulate(root, n_stamps=3, progress=False)
    assert len(list(root.rglob("*.fits"))) == 3


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def interrupted(index: int, **settings: int) -> SimulatedStamp:
        if index == 5:
            assert list(tmp_path.glob(".stamps.partial-*/00/*4.fits"))  # it was well under way
            raise interruption
        return draw_stamp(index, **settings)

    monkeypatch.setattr(simulation, "draw_stamp", interrupted)
    with pytest.raises(interruption):
        simulate(tmp_path / "stamps", n_stamps=10, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"data\.root.*stamps: No space left on device"):
        simulate(tmp_path / "stamps", n_stamps=3, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data\.root: cannot write .*stamps: File exists"):
        simulate(tmp_path / "file" / "stamps", n_stamps=3, progress=False)


def test_the_loser_of_a_race_uses_the_folder_of_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Path
) -> None:
    write = simulation._write_catalogue

    def slow(path: Path, rows: list[tuple[str | float, ...]]) -> None:
        write(path, rows)
        shutil.copytree(small, tmp_path / "stamps")  # the other process finishes now

    monkeypatch.setattr(simulation, "_write_catalogue", slow)
    root = simulate(tmp_path / "stamps", n_stamps=60, seed=SEED, progress=False)
    assert folder_bytes(root) == folder_bytes(small)
    assert_nothing_partial(tmp_path)
    shutil.rmtree(root)
    with pytest.raises(InputError, match=r"n_stamps 60, .*expected"):
        simulate(tmp_path / "stamps", n_stamps=4, seed=SEED, progress=False)
    assert folder_bytes(root) == folder_bytes(small)
    assert_nothing_partial(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_stamps": 0}, r"data\.n_stamps must be at least 1, got 0"),
        ({"size": 15}, r"data\.size must be at least 16, got 15"),
        ({"seed": -1}, r"seed must be at least 0, got -1"),
        ({"n_processes": 0}, r"n_processes must be at least 1, got 0"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path: Path, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(tmp_path / "stamps", **({"n_stamps": 3} | wrong), progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "value"), [("size", 15), ("seed", -1)])
def test_a_stamp_out_of_range_is_refused(key: str, value: int) -> None:
    with pytest.raises(InputError, match=key):
        draw_stamp(0, **({"seed": 0} | {key: value}))
