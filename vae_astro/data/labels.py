"""Labels of stamps from a CSV: to score against, never trained on."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path

import numpy as np

from vae_astro.errors import InputError

__all__ = ["read_labels"]

log = logging.getLogger(__name__)


def read_labels(
    file: Path, label_column: str | None, ids: list[str], object_ids: list[str], sources: list[str]
) -> np.ndarray:
    """Label of each stamp from a CSV keyed by file or id.

    Parameters
    ----------
    file : Path
        CSV with a header: ``file`` (relative to the root, or its last part) or ``id`` (of the stamp
        or of the object), and a column of labels.
    label_column : str or None
        Name of the latter; None: ``label``, or the only column whose name begins with it.
    ids, object_ids, sources : list of str
        Columns of the catalogue.

    Returns
    -------
    ndarray, shape (N,), object
        Labels, empty where the CSV has none.

    Raises
    ------
    InputError
        No such file or column, or no stamp that it names.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            table = csv.DictReader(handle)
            rows, columns = list(table), list(table.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read data.labels={file}: {error}") from error
    candidates = [column for column in columns if column and column.startswith("label")]
    if label_column is None:
        if "label" in candidates:
            label_column = "label"
        elif len(candidates) == 1:
            label_column = candidates[0]
    key = next((name for name in ("file", "id") if name in columns), None)
    if key is None or label_column not in columns:
        wanted = label_column or "one label column: name it with data.label_column"
        raise InputError(
            f"data.labels={file} has the columns {', '.join(map(str, columns)) or '(none)'}; it "
            f"needs file or id, and {wanted}"
        )
    by_name = {row[key]: (row[label_column] or "").strip() for row in rows}
    if key == "file":
        files = [re.sub(r"(\[\d+\]){0,2}$", "", source) for source in sources]
        names = [
            [source, file, Path(source).name, Path(file).name]
            for source, file in zip(sources, files, strict=True)
        ]
    else:
        names = [list(pair) for pair in zip(ids, object_ids, strict=True)]
    labels = [next((by_name[name] for name in each if name in by_name), "") for each in names]
    n_found = sum(any(name in by_name for name in each) for each in names)
    if n_found == 0:
        raise InputError(
            f"data.labels={file} names none of the {len(names)} stamps: its column {key!r} holds "
            f"{next(iter(by_name), '')!r}, the stamps are called {names[0][0]!r}"
        )
    n_unknown = len(by_name) - len({name for each in names for name in each if name in by_name})
    if n_unknown:
        log.warning("data.labels=%s: %d of its %d names are of no stamp here", file, n_unknown,
                    len(by_name))  # fmt: skip
    if n_found < len(names):
        log.warning(
            "data.labels=%s has no label for %d of %d stamps",
            file,
            len(names) - n_found,
            len(names),
        )
    return np.array(labels, dtype=object)
