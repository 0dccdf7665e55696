"""What is exported as a graph says what the model says, defects of stamps included."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_models import MODELS, NORMALIZE, PRIORS, raw_stamps, tiny_vae

from vae_astro.data.sky import good_pixels, measure_sky
from vae_astro.export.graphs import LocationDecoder, RawEncoder
from vae_astro.export.programs import Programs, write_onnx, write_torch_export
from vae_astro.export.sky import traced_sky
from vae_astro.vae import VAE

CASES = [
    *((model, "standard", "asinh") for model in MODELS),
    *(("linear", prior, "asinh") for prior in PRIORS if prior != "standard"),
    *(("linear", "standard", normalize) for normalize in NORMALIZE if normalize != "asinh"),
]


@pytest.mark.parametrize("size", [16, 21])
def test_the_traced_sky_is_the_measured_one_bit_for_bit(size: int) -> None:
    raw = raw_stamps(60, size)
    raw[11] = 1e-32 * raw[12]  # wings of a simulation without noise
    raw[11, :, 3, 3] = 1e16
    good = good_pixels(raw, [280.0, 300.0])
    level, noise = measure_sky(raw, good)
    traced = traced_sky(torch.from_numpy(raw), torch.from_numpy(good))
    np.testing.assert_array_equal(traced.level.numpy(), level)
    np.testing.assert_array_equal(traced.noise.numpy(), noise)


@pytest.mark.parametrize(("model", "prior", "normalize"), CASES)
def test_graphs_are_the_model_before_they_are_traced(
    model: str, prior: str, normalize: str
) -> None:
    vae = tiny_vae(model, prior, normalize)
    stamps = raw_stamps()
    with torch.no_grad():
        mean, log_var = RawEncoder(vae)(torch.from_numpy(stamps))
        posterior = vae.network.encode(vae.normalizer(torch.from_numpy(stamps)).image)
        drawn = LocationDecoder(vae)(mean)
        np.testing.assert_array_equal(mean.numpy(), vae.embed(stamps))
        assert torch.equal(log_var, posterior.log_var)
        assert torch.equal(drawn, vae.decode(mean))


def latents_of(vae: VAE, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with torch.no_grad():
        posterior = vae.network.encode(vae.normalizer(torch.from_numpy(stamps)).image)
        mean = torch.from_numpy(vae.embed(stamps))
        return mean.numpy(), posterior.log_var.numpy(), vae.decode(mean).numpy()


def check_programs(vae: VAE, folder: Path) -> None:
    """Both targets against `VAE.embed` on raw stamps with defects, in batches of 1, 2 and 24."""
    onnxruntime = pytest.importorskip("onnxruntime")
    programs = Programs.of(vae)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert write_torch_export(programs, folder) == ["decoder.pt2", "encoder.pt2"]
        assert write_onnx(programs, folder) == ["decoder.onnx", "encoder.onnx"]
    stamps = raw_stamps()
    mean, log_var, location = latents_of(vae, stamps)
    encoder = torch.export.load(folder / "encoder.pt2").module()
    decoder = torch.export.load(folder / "decoder.pt2").module()
    sessions = [
        onnxruntime.InferenceSession(folder / f"{part}.onnx", providers=["CPUExecutionProvider"])
        for part in ("encoder", "decoder")
    ]
    for rows in (slice(0, 1), slice(0, 2), slice(None)):
        with torch.no_grad():
            ours = [value.numpy() for value in encoder(torch.from_numpy(stamps[rows]))]
            drawn = decoder(torch.from_numpy(mean[rows])).numpy()
        theirs = sessions[0].run(["latent_mean", "latent_log_var"], {"stamps": stamps[rows]})
        their_drawn = sessions[1].run(["location"], {"z": mean[rows]})[0]
        for found in (ours, theirs):
            np.testing.assert_allclose(found[0], mean[rows], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found[1], log_var[rows], rtol=1e-4, atol=1e-4)
        for found in (drawn, their_drawn):
            np.testing.assert_allclose(found, location[rows], rtol=1e-4, atol=1e-4)


def test_programs_and_onnx_agree_with_embed_on_raw_stamps(tmp_path: Path) -> None:
    check_programs(tiny_vae("linear"), tmp_path)


def test_the_axis_of_the_stamps_is_called_batch_in_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    vae = tiny_vae("linear")
    write_onnx(Programs.of(vae), tmp_path)
    for part in ("encoder", "decoder"):
        model = onnx.load(tmp_path / f"{part}.onnx")
        onnx.checker.check_model(model, full_check=True)
        graph = model.graph
        named = {}
        for value in (*graph.input, *graph.output):
            dims = value.type.tensor_type.shape.dim
            named[value.name] = [dim.dim_param or dim.dim_value for dim in dims]
        shape = list(vae.stamp_shape)
        assert named == {
            "encoder": {"stamps": ["batch", *shape], "latent_mean": ["batch", 4],
                        "latent_log_var": ["batch", 4]},
            "decoder": {"z": ["batch", 4], "location": ["batch", *shape]},
        }[part]  # fmt: skip
        inner = {
            dim.dim_param for value in graph.value_info
            for dim in value.type.tensor_type.shape.dim if dim.dim_param
        }  # fmt: skip
        assert not {name for name in inner if name.startswith("s") and name[1:].isdecimal()}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "prior", "normalize"), CASES)
def test_programs_and_onnx_agree_for_every_model_prior_and_stretch(
    tmp_path: Path, model: str, prior: str, normalize: str
) -> None:
    check_programs(tiny_vae(model, prior, normalize), tmp_path)
