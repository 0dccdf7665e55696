"""What an audit can find, in words, and the report that it hands over."""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from vae_astro.collapse.audit.faults import CATALOGUE, Severity

__all__ = ["AuditReport", "Finding", "Untestable", "Untested", "root_causes"]

_ORDER = {"fatal": 0, "serious": 1, "minor": 2}


@dataclass(frozen=True)
class Finding:
    """A fault that an experiment has shown.

    Attributes
    ----------
    name : str
        Stable, one of `CATALOGUE`.
    measured : str
        What was done and what came out, with its numbers.
    why, mend : str
        As in `faults.Entry`.
    severity : {"fatal", "serious", "minor"}
        As in `faults.Entry`.
    """

    name: str
    measured: str
    why: str
    mend: str
    severity: Severity

    @classmethod
    def of(cls, name: str, measured: str) -> Finding:
        """The finding of this name, with what was measured."""
        entry = CATALOGUE[name]
        return cls(name, measured, entry.why, entry.mend, entry.severity)


class Untestable(Exception):  # noqa: N818  # no error: an answer
    """An experiment that this model does not allow; the message says why."""


@dataclass(frozen=True)
class Untested:
    """An experiment that this model did not allow, and why."""

    experiment: str
    reason: str


@dataclass(frozen=True)
class AuditReport:
    """What came out of all experiments.

    Attributes
    ----------
    model : str
        Class of the model.
    interface : str
        How it was spoken to.
    n_stamps, latent_dim : int
        Stamps used; latent units, 0 where they could not be told.
    findings : tuple of Finding
        The gravest first.
    untested : tuple of Untested
        What could not be tried.
    facts : dict
        Figures that are no faults: ``beta_s2``, ``largest_eigenvalue``, reductions, sizes. Plain
        Python.
    seconds : float
        Time taken.
    """

    model: str
    interface: str
    n_stamps: int
    latent_dim: int
    findings: tuple[Finding, ...]
    untested: tuple[Untested, ...]
    facts: dict[str, Any]
    seconds: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the findings."""
        return tuple(finding.name for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON: a number that is not finite becomes None."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(each) for key, each in value.items()}
            if isinstance(value, list | tuple):
                return [plain(each) for each in value]
            if isinstance(value, float) and not math.isfinite(value):
                return None
            return value

        record: dict[str, Any] = plain(asdict(self))
        return record

    def __str__(self) -> str:
        return "\n".join([*self._head(), *self._body(), *self._tail()])

    def _head(self) -> list[str]:
        units = f"{self.latent_dim} latent units" if self.latent_dim else "latent units unknown"
        return [
            f"{self.model}: {units}, audited on {self.n_stamps} stamps in {self.seconds:.1f} s "
            f"through {self.interface}",
            "",
        ]

    def _body(self) -> list[str]:
        if not self.findings:
            return ["No fault found.", ""]
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.severity.upper():<8}{finding.name}")
            for title in ("measured", "why", "mend"):
                lines.append(
                    textwrap.fill(
                        getattr(finding, title),
                        width=110,
                        initial_indent=f"        {title:<10}",
                        subsequent_indent=" " * 18,
                    )
                )
            lines.append("")
        return lines

    def _tail(self) -> list[str]:
        lines = [f"{name:<30}{_shown(value)}" for name, value in self.facts.items()]
        lines += [f"not tested: {each.experiment} ({each.reason})" for each in self.untested]
        return lines


def root_causes(findings: list[Finding]) -> tuple[Finding, ...]:
    """Findings without those that follow from another, one of each name, the gravest first."""
    names = {finding.name for finding in findings}

    def is_hidden(name: str) -> bool:
        # what is itself hidden hides nothing: its own cause may have nothing to do with it
        return any(name in CATALOGUE[cause].hides and not is_hidden(cause) for cause in names)

    kept = {finding.name: finding for finding in findings if not is_hidden(finding.name)}
    return tuple(sorted(kept.values(), key=lambda finding: _ORDER[finding.severity]))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
