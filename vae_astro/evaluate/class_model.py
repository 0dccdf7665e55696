"""Classes that are fitted once and kept: posteriors of any stamps in, class probabilities out."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae_astro.command.files import whole
from vae_astro.errors import InputError
from vae_astro.evaluate.clusters import (
    METHODS,
    Clusters,
    Frame,
    PriorClasses,
    clusters_from,
    fit_clusters,
    frame_of,
    posterior_draws,
    posterior_shares,
)
from vae_astro.evaluate.consensus import Consensus, agree, voted
from vae_astro.evaluate.mixtures import COVARIANCES, CRITERIA, Curve, n_classes_curve
from vae_astro.progress import Progress, progress_of
from vae_astro.settings import check_choice, check_int, check_number

__all__ = ["ClassModel", "Network", "Search", "fit_classes", "read_found"]

FEWEST_STAMPS = 10
Posteriors = tuple[np.ndarray, np.ndarray]
"""Means and standard deviations, (N, Z) each."""


@dataclass(frozen=True)
class Network:
    """What is asked of one network, beside what it says of the stamps.

    Attributes
    ----------
    units : tuple of int
        Latent units that classes may be made of.
    responsibilities : callable, optional
        Codes (M, Z) to shares (M, K) of the components of its prior, where it has such.
    """

    units: tuple[int, ...]
    responsibilities: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Search:
    """How classes are looked for: the keys of ``conf/classify.yaml`` of the same names.

    Raises
    ------
    InputError
        A value out of range, or keys that do not go together.
    """

    method: str = "mixture"
    n_classes: int | str = "auto"
    max_classes: int = 20
    covariance: str = "diag"
    criterion: str = "icl"
    min_class_size: int | None = None
    n_seeds: int = 5
    seed: int = 0
    subsample: float = 0.8
    n_draws: int = 32
    unsure_below: float = 0.6

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if self.n_classes != "auto":
            if isinstance(self.n_classes, str):
                raise InputError(f"n_classes must be auto or a number, got {self.n_classes!r}")
            check_int("n_classes", self.n_classes, minimum=1)
            if self.method in ("hdbscan", "prior"):
                raise InputError(
                    f"method={self.method} has its own number of classes: leave n_classes=auto"
                )
        check_int("max_classes", self.max_classes, minimum=1)
        check_choice("covariance", self.covariance, COVARIANCES)
        check_choice("criterion", self.criterion, CRITERIA)
        if self.min_class_size is not None:
            check_int("min_class_size", self.min_class_size, minimum=2)
        check_int("n_seeds", self.n_seeds, minimum=1)
        check_int("seed", self.seed, minimum=0, maximum=2**31)
        check_number("subsample", self.subsample, above=0, maximum=1)
        check_int("n_draws", self.n_draws, minimum=1)
        check_number("unsure_below", self.unsure_below, minimum=0, maximum=1)


@dataclass(frozen=True)
class ClassModel:
    """A fitted consensus, which says the classes of any stamps that its networks have seen.

    Attributes
    ----------
    frames : tuple of Frame
        One for each network.
    networks : tuple of int, length R
        Which network each clustering is of.
    clusters : tuple of Clusters, length R
    votes : tuple of ndarray, shape (K_r, K), length R
    n_draws : int
        Codes of each posterior that are averaged over.
    """

    frames: tuple[Frame, ...]
    networks: tuple[int, ...]
    clusters: tuple[Clusters, ...]
    votes: tuple[np.ndarray, ...]
    n_draws: int

    @property
    def n_classes(self) -> int:
        return self.votes[0].shape[1]

    @property
    def digest(self) -> str:
        """Short name of exactly this model: what names and catalogues belong to."""
        found = hashlib.sha256()
        for name, values in sorted(self._arrays().items()):
            found.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return found.hexdigest()[:12]

    def shares(self, posteriors: Sequence[Posteriors]) -> np.ndarray:
        """Class probabilities (N, K) of stamps, from what each network says of them."""
        return voted(
            _all_shares(self.frames, self.networks, self.clusters, posteriors, self.n_draws),
            self.votes,
        )

    def save(self, path: Path) -> None:
        """Write plain arrays, without pickles, to an ``.npz``."""
        with whole(path) as partial:
            np.savez(partial, **self._arrays())  # type: ignore[arg-type]  # numpy takes any names

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"networks": np.array(self.networks), "n_draws": np.array(self.n_draws)}
        for k, frame in enumerate(self.frames):
            arrays[f"frame{k}.units"] = np.array(frame.units)
            arrays |= {f"frame{k}.centre": frame.centre, f"frame{k}.scale": frame.scale}
        for r, (clusters, vote) in enumerate(zip(self.clusters, self.votes, strict=True)):
            arrays[f"run{r}.vote"] = vote
            arrays |= {f"run{r}.clusters.{name}": each for name, each in clusters.arrays().items()}
        return arrays

    @classmethod
    def load(cls, path: Path, networks: Sequence[Network]) -> ClassModel:
        """Read what `save` wrote, for networks in the order they had.

        Raises
        ------
        InputError
            No such file, or not one of these.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            of_run = tuple(int(k) for k in arrays["networks"])
            votes = tuple(arrays[f"run{r}.vote"] for r in range(len(of_run)))
            frames = tuple(
                Frame(tuple(arrays[f"frame{k}.units"].tolist()),
                      *(arrays[f"frame{k}.{name}"] for name in ("centre", "scale")))
                for k in range(max(of_run) + 1)
            )  # fmt: skip
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"classes: cannot read {path} as kept classes: {error}") from error
        if len(networks) != len(frames):
            raise InputError(
                f"checkpoint names {len(networks)} networks, the classes of {path} were made from "
                f"{len(frames)}; give the same ones in the same order"
            )
        clusters: list[Clusters] = []
        for r, k in enumerate(of_run):
            start = f"run{r}.clusters."
            held = {n.removeprefix(start): v for n, v in arrays.items() if n.startswith(start)}
            asked = networks[k].responsibilities
            if held:
                clusters.append(clusters_from(held))
            else:
                clusters.append(_prior_classes(asked, len(votes[r])))
        return cls(frames, of_run, tuple(clusters), votes, int(arrays["n_draws"]))


def fit_classes(
    posteriors: Sequence[Posteriors],
    networks: Sequence[Network],
    search: Search,
    least_variance: float,
    show: bool = False,
) -> tuple[ClassModel, Consensus, Curve | None]:
    """Find classes in what several networks say of the same stamps.

    Every seed sees another random part of the stamps (``search.subsample``), so that what it finds
    would also be found in other stamps of the kind, or is not stable.

    Parameters
    ----------
    posteriors : sequence of (mean, std), shape (N, Z) each
        One pair for each network.
    networks : sequence of Network
    search : Search
    least_variance : float
        Of the posterior mean of a unit that is active; others are left out.
    show : bool
        Whether to show progress.

    Returns
    -------
    ClassModel
    Consensus
        Of these stamps.
    Curve or None
        Where the number of classes was chosen by it.

    Raises
    ------
    InputError
        Too few stamps, more classes than stamps, identical codes, no component in the prior.
    """
    n = len(posteriors[0][0])
    if n < FEWEST_STAMPS:
        raise InputError(
            f"{n} stamps are too few to find classes in, it takes {FEWEST_STAMPS} at least: give "
            "more by data.root or split"
        )
    if search.n_classes != "auto" and int(search.n_classes) > n:
        raise InputError(f"n_classes={search.n_classes} is more than the {n} stamps: lower it")
    frames = tuple(
        _whole_frame(mean) if search.method == "prior"
        else frame_of(mean, std, network.units, least_variance)
        for (mean, std), network in zip(posteriors, networks, strict=True)
    )  # fmt: skip
    codes = [frame(*each)[0] for frame, each in zip(frames, posteriors, strict=True)]
    curve, n_classes = None, None
    if search.method in ("mixture", "kmeans"):
        if search.n_classes == "auto":
            curve = n_classes_curve(codes, search.max_classes, search.covariance, search.seed, show)
            n_classes = curve.best(search.criterion)
        else:
            n_classes = int(search.n_classes)
    n_fits = 0 if search.method == "prior" else len(codes) * search.n_seeds
    bar = progress_of(n_fits, "finding classes", "clustering", show=show and n_fits > 0)
    with bar:
        of_run, clusters = _clusterings(codes, networks, search, n_classes, bar)
    shares = _all_shares(frames, of_run, clusters, posteriors, search.n_draws)
    consensus = agree(shares, of_run, search.unsure_below)
    model = ClassModel(frames, tuple(of_run), tuple(clusters), consensus.votes, search.n_draws)
    return model, consensus, curve


def _clusterings(
    codes: Sequence[np.ndarray],
    networks: Sequence[Network],
    search: Search,
    n_classes: int | None,
    bar: Progress,
) -> tuple[list[int], list[Clusters]]:
    """What every seed finds in the codes of every network, and which network each is of."""
    n = len(codes[0])
    of_run: list[int] = []
    clusters: list[Clusters] = []
    for k, (z, network) in enumerate(zip(codes, networks, strict=True)):
        if search.method == "prior":
            of_run.append(k)
            clusters.append(_prior_classes(network.responsibilities, None, z))
            continue
        for turn in range(search.n_seeds):
            seed = search.seed + turn
            of_run.append(k)
            clusters.append(
                fit_clusters(
                    search.method,
                    z[_part(n, search, n_classes, seed)],
                    n_classes,
                    seed,
                    covariance=search.covariance,
                    min_class_size=search.min_class_size,
                )
            )
            bar.update()
    return of_run, clusters


def _part(n: int, search: Search, n_classes: int | None, seed: int) -> np.ndarray:
    """Rows of the stamps that a seed sees, ascending; all of them where there is but one seed."""
    wanted = max(int(np.ceil(search.subsample * n)), n_classes or 1, min(n, FEWEST_STAMPS))
    if search.n_seeds == 1 or wanted >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, wanted, replace=False))


def _all_shares(
    frames: Sequence[Frame],
    networks: Sequence[int],
    clusters: Sequence[Clusters],
    posteriors: Sequence[Posteriors],
    n_draws: int,
) -> list[np.ndarray]:
    framed = [frame(*each) for frame, each in zip(frames, posteriors, strict=True)]
    draws = [posterior_draws(n_draws, len(frame.units)) for frame in frames]
    return [
        posterior_shares(found, *framed[k], draws[k])
        for k, found in zip(networks, clusters, strict=True)
    ]


def _whole_frame(mean: np.ndarray) -> Frame:
    """Codes as they are: what a prior knows."""
    n_units = mean.shape[1]
    return Frame(tuple(range(n_units)), np.zeros(n_units), np.ones(n_units))


def _prior_classes(
    responsibilities: Callable[[np.ndarray], np.ndarray] | None,
    n_classes: int | None,
    codes: np.ndarray | None = None,
) -> PriorClasses:
    if responsibilities is None:
        raise InputError(
            "method=prior needs a checkpoint that was trained with prior=mixture; take "
            "method=mixture for this one"
        )
    if n_classes is None:
        assert codes is not None
        n_classes = responsibilities(codes[:1]).shape[1]
    return PriorClasses(responsibilities, n_classes)


def read_found(path: Path) -> dict[str, Any]:
    """What was found, from the ``classes.json`` of a kept model.

    Raises
    ------
    InputError
        No such file, or not one of these.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict) or not {"clustering", "checkpoints", "found"} <= set(found):
            raise ValueError("it lacks what scripts/classify.py writes")
    except (OSError, ValueError) as error:
        raise InputError(
            f"classes={path.parent} is no folder of classes: {path.name} cannot be read ({error}); "
            "give what out= was when they were found"
        ) from error
    return found
