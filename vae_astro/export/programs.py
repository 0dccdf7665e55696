"""Encoder and decoder as ``torch.export`` programs and as ONNX, each read back and compared."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vae_astro import array_calls
from vae_astro.errors import InputError
from vae_astro.export.graphs import LocationDecoder, RawEncoder
from vae_astro.export.weights import config_of
from vae_astro.vae import VAE

__all__ = ["AGREEMENT", "OPSET", "Programs", "probe_codes", "probe_stamps", "write_onnx",
           "write_torch_export"]  # fmt: skip

AGREEMENT = 1e-4
"""What outputs may differ by from the model's own; relative, where they are larger than 1."""
OPSET = 20
"""Of ONNX; onnxruntime reads it from 1.17 on."""
BATCH = "batch"
OUTPUTS = {"encoder": ("latent_mean", "latent_log_var"), "decoder": ("location",)}
INPUTS = {"encoder": "stamps", "decoder": "z"}
ELSEWHERE = {
    "torch_export": "formats=[safetensors], which holds every model",
    "onnx": "formats=[torch_export] or formats=[safetensors]",
}
WITHOUT_A_NAME = {torch.ops.aten.hypot.default: lambda x, y: (x.square() + y.square()).sqrt()}
"""What ONNX has no operation for, in operations that it has."""
OPERATION = re.compile(
    r"OpOverload\(op='([\w.:]+)'"  # of the ONNX exporter
    r"|(aten[.:]+\w+(?:\.\w+)?)"  # of anything else that names one
    r"|(?:aten operator|Operator:?|operator) '?([\w.:]+)'?"
)


@dataclass(frozen=True)
class Programs:
    """The two graphs of a model and stamps to try them on.

    Attributes
    ----------
    vae : VAE
        On the CPU, in evaluation mode.
    stamps : ndarray, shape (N, C, H, W), float32
        Raw, `probe_stamps`.
    """

    vae: VAE
    stamps: np.ndarray

    @classmethod
    def of(cls, vae: VAE) -> Programs:
        """Of a model, which is moved to the CPU and learns no more."""
        frozen = vae.cpu().eval().requires_grad_(False)
        return cls(frozen, probe_stamps(vae.stamp_shape))

    def modules(self) -> Iterator[tuple[str, nn.Module, Tensor]]:
        """Name, module and an input of each graph; the quicker one first."""
        with torch.no_grad():
            codes = torch.from_numpy(probe_codes(self.vae, self.stamps))
        yield "decoder", LocationDecoder(self.vae).eval(), codes
        yield "encoder", RawEncoder(self.vae).eval(), torch.from_numpy(self.stamps)

    def traced(self, target: str) -> Iterator[tuple[str, ExportedProgram]]:
        """Both as programs of any number of rows.

        Raises
        ------
        InputError
            An operation that cannot be traced, which names it and ``target``.
        """
        for part, module, given in self.modules():
            with cannot_express(target, part), torch.no_grad(), _quiet():
                shapes = ({0: Dim(BATCH, min=1)},)
                program = torch.export.export(module, (given,), dynamic_shapes=shapes)
            yield part, program

    def compare(self, target: str, part: str, run: Callable[[Tensor], list[np.ndarray]]) -> None:
        """Raise `InputError` unless ``run`` gives what the model gives, for one row and for all."""
        for name, module, given in self.modules():
            if name != part:
                continue
            for rows in (given, given[:1]):
                with torch.no_grad():
                    wanted = module(rows)
                wanted = wanted if isinstance(wanted, tuple) else (wanted,)
                for output, ours, theirs in zip(OUTPUTS[part], wanted, run(rows), strict=True):
                    _refuse_other(f"formats=[{target}]: {output} of the {part}", ours, theirs)


def probe_stamps(shape: tuple[int, int, int]) -> np.ndarray:
    """Raw stamps (8, C, H, W), float32, of what real ones have: defects, and no light at all."""
    rng = np.random.default_rng(0)
    stamps = rng.normal(100.0, 5.0, size=(8, *shape))
    rows, columns = np.mgrid[: shape[1], : shape[2]] - (shape[1] - 1) / 2
    source = np.exp(-(rows**2 + columns**2) / (0.1 * shape[1]) ** 2)
    stamps += rng.uniform(0, 300, size=(8, 1, 1, 1)) * source
    stamps[1, :, :3] = np.nan
    stamps[2, :, 0, 0], stamps[2, :, 1, 1] = np.inf, -3.4e38
    stamps[3] = np.round(stamps[3] / 40)  # more than half of it one value
    stamps[4] = 7.0
    stamps[5] = np.nan
    stamps[6] = np.where(rng.random(shape) < 0.5, np.nan, stamps[6])
    return stamps.astype(np.float32)


def probe_codes(vae: VAE, stamps: np.ndarray) -> np.ndarray:
    """Codes (N, Z) of `probe_stamps`; that one of them has no good pixel is no news to a user."""
    warner = logging.getLogger(array_calls.__name__)
    warner.addFilter(_nothing)
    try:
        return vae.embed(stamps)
    finally:
        warner.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def write_torch_export(programs: Programs, folder: Path) -> list[str]:
    """Write ``encoder.pt2`` and ``decoder.pt2``; returns these names.

    Raises
    ------
    InputError
        An operation that cannot be traced, or outputs that differ from the model's.
    """
    names = []
    for part, program in programs.traced("torch_export"):
        path = folder / f"{part}.pt2"
        with cannot_express("torch_export", part), _quiet():
            torch.export.save(program, path)
            loaded = torch.export.load(path).module()

        def run(rows: Tensor, loaded: nn.Module = loaded) -> list[np.ndarray]:
            with torch.no_grad():
                said = loaded(rows)
            return [value.numpy() for value in (said if isinstance(said, tuple) else (said,))]

        programs.compare("torch_export", part, run)
        names.append(path.name)
    return names


def write_onnx(programs: Programs, folder: Path) -> list[str]:
    """Write ``encoder.onnx`` and ``decoder.onnx``; returns these names.

    Raises
    ------
    InputError
        The extra is not installed, ONNX lacks an operation, or outputs differ from the model's.
    """
    onnxruntime = _onnxruntime()
    names = []
    about = json.dumps(config_of(programs.vae), allow_nan=False)
    for part, program in programs.traced("onnx"):
        path = folder / f"{part}.onnx"
        with cannot_express("onnx", part), _quiet():
            made: Any = torch.onnx.export(
                program.run_decompositions(WITHOUT_A_NAME),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUTS[part]],
                output_names=list(OUTPUTS[part]),
            )
            made.model.metadata_props["vae_astro"] = about
            _name_the_batch(made.model)
            made.save(path, external_data=False)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(rows: Tensor, session: Any = session, part: str = part) -> list[np.ndarray]:
            return session.run(list(OUTPUTS[part]), {INPUTS[part]: rows.numpy()})

        programs.compare("onnx", part, run)
        names.append(path.name)
    return names


def _name_the_batch(model: Any) -> None:
    """Call the first axis of what goes in and comes out ``batch``, as others look for it.

    The tracer invents a symbol for it (``s86``). It is renamed wherever it stands, or the graph
    would have two names for one axis.
    """
    from onnxscript import ir

    (symbol,) = {str(value.shape[0]) for value in model.graph.inputs}
    for value in [*model.graph.inputs, *model.graph.outputs, *_values(model.graph)]:
        if value.shape is not None:
            dims = [ir.SymbolicDim(BATCH) if str(dim) == symbol else dim for dim in value.shape]
            value.shape = ir.Shape(dims)


def _values(graph: Any) -> Iterator[Any]:
    return (value for node in graph for value in node.outputs)


@contextmanager
def cannot_express(target: str, part: str) -> Iterator[None]:
    """What a converter raises, as an `InputError` that names operation, target and a way out."""
    try:
        yield
    except (InputError, OSError):  # a full disk is no matter of operations
        raise
    except Exception as error:  # converters and runtimes have many classes of their own
        raise InputError(
            f"formats=[{target}]: the {part} of this model uses {_operation(error)}, which "
            f"{target} cannot express; choose {ELSEWHERE[target]}"
        ) from error


def _operation(error: BaseException) -> str:
    """The operation that a chain of errors is about; its first line where none is named."""
    chain: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        chain.append(str(seen))
        seen = seen.__cause__ or seen.__context__
    for said in reversed(chain):  # the innermost knows best
        if match := OPERATION.search(said):
            return next(name for name in match.groups() if name)
    first = next((line for line in chain[-1].splitlines() if line.strip()), type(error).__name__)
    return f"something that cannot be converted ({first.strip()[:200]})"


def _refuse_other(what: str, ours: Tensor, theirs: np.ndarray) -> None:
    wanted = ours.numpy()
    if theirs.shape != wanted.shape:
        raise InputError(f"{what} has shape {theirs.shape} where the model has {wanted.shape}")
    far = float(np.max(np.abs(theirs - wanted) / np.maximum(np.abs(wanted), 1), initial=0))
    if not far <= AGREEMENT:  # NaN is far too
        raise InputError(
            f"{what} differs from the model's own by {far:.2g}, and {AGREEMENT:g} is allowed; "
            "choose formats=[safetensors], which is exact"
        )


def _onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"formats=[onnx] needs {error.name}, which is not installed; it comes with the extra "
            "export: pip install 'vae-astro[export]'"
        ) from error
    return onnxruntime


@contextmanager
def _quiet() -> Iterator[None]:
    """Converters warn of their own inner life; what matters is compared afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
