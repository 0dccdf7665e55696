"""Where the time of a training step goes, by torch's profiler.

Every event's own time is given to the part it lies in: the innermost of the ranges that Lightning
and the hooks here open. Within the network and on the way back it is told apart by the operation.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Self

import torch
from lightning.pytorch.profilers import Profiler
from torch.autograd.profiler import record_function

from vae_astro.vae import VAE

__all__ = ["profiled_parts"]

PREFIX = "part:"
RANGES = (
    ("train_dataloader_next", "gather"),
    ("batch_to_device", "to the device"),
    ("training_step", "loss"),
    ("zero_grad", "optimiser"),
    ("backward", "backward"),
    ("gradient_clipping", "clipping"),
    ("optimizer_step", "optimiser"),
    ("save_checkpoint", "checkpoints"),
    ("[Callback]", "bar, callbacks"),
    ("[LightningModule]", "hooks of the model"),
    ("validation", "validation"),
    ("run_training_batch", "loop"),
    ("run_training_epoch", "loop"),
)
"""What Lightning calls a stretch, or a part of that, and what it is called here; first match."""
OPERATIONS = (
    ("conv", "convolutions"),
    ("norm", "normalisation"),
    ("silu", "activations"),
    ("mm", "dense layers"),
    ("linear", "dense layers"),
)
BY_OPERATION = ("encoder", "decoder", "backward")


class Ranges(Profiler):
    """Lightning's own stretches as ranges of torch's profiler."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[str, list[Any]] = defaultdict(list)

    def start(self, action_name: str) -> None:
        """A stretch begins."""
        found = next((part for key, part in RANGES if key in action_name), None)
        opened = None
        if found is not None:
            opened = record_function(PREFIX + found)
            opened.__enter__()
        self._open[action_name].append(opened)

    def stop(self, action_name: str) -> None:
        """It ends; one that began before the profile does not count."""
        opened = self._open[action_name].pop() if self._open[action_name] else None
        if opened is not None:
            opened.__exit__(None, None, None)


class profiled_parts:  # noqa: N801  # used as a statement
    """Profile what the trainer does meanwhile; then `seconds` of each part."""

    def __init__(self, trainer: Any, vae: VAE) -> None:
        self.trainer, self.vae = trainer, vae
        activities = [torch.profiler.ProfilerActivity.CPU]
        if vae.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=activities)
        self._hooks: list[Any] = []
        self._wrapped: list[tuple[Any, str]] = []

    def __enter__(self) -> Self:
        self._before = self.trainer.profiler
        self.trainer.profiler = Ranges()
        for part in ("encoder", "decoder"):
            self._hook(getattr(self.vae.network, part), part)
        for method in ("log", "log_dict"):
            self._wrap(self.vae, method, "logging")
        for logger in self.trainer.loggers:
            self._wrap(logger, "log_metrics", "logging")
        self._profile.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._profile.__exit__(None, None, None)
        self.trainer.profiler = self._before
        for hook in self._hooks:
            hook.remove()
        for owner, method in self._wrapped:
            delattr(owner, method)

    def _wrap(self, owner: Any, method: str, part: str) -> None:
        """Make every call of a method a range."""
        plain = getattr(owner, method)

        def ranged(*arguments: Any, **options: Any) -> Any:
            with record_function(PREFIX + part):
                return plain(*arguments, **options)

        setattr(owner, method, ranged)
        self._wrapped.append((owner, method))

    def _hook(self, module: torch.nn.Module, part: str) -> None:
        opened: list[Any] = []

        def before(*_: object) -> None:
            opened.append(record_function(PREFIX + part))
            opened[-1].__enter__()

        def after(*_: object) -> None:
            opened.pop().__exit__(None, None, None)

        self._hooks += [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after),
        ]

    def seconds(self) -> dict[str, float]:
        """Time of the host in each part, and of the device where there is another."""
        found: dict[str, float] = defaultdict(float)
        for event in self._profile.events() or ():
            part = _part_of(event)
            if part is not None:
                found[part] += event.self_cpu_time_total / 1e6
                if self.vae.device.type == "cuda":
                    found[f"{part} (device)"] += event.self_device_time_total / 1e6
        return dict(found)


def _part_of(event: Any) -> str | None:
    """The innermost part that an event lies in, and the operation that it serves."""
    operation, above = "rest", event
    while above is not None and not above.name.startswith(PREFIX):
        name = above.name.lower()
        operation = next((kind for key, kind in OPERATIONS if key in name), operation)
        above = above.cpu_parent
    if above is None:
        return None
    part = above.name.removeprefix(PREFIX)
    return f"{part}: {operation}" if part in BY_OPERATION else part
