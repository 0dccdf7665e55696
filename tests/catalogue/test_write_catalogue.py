"""Whole catalogues: what astropy, pandas and STILTS find in them, and what a failure leaves."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.io import fits
from astropy.io.votable.ucd import parse_ucd
from astropy.table import Table
from astropy.utils.exceptions import AstropyUserWarning

from vae_astro.catalogue import (
    CLASSES,
    IDENTITY,
    LATENT,
    OUTLIERS,
    PROVENANCE,
    QUALITY,
    SCORES,
    Column,
    schema_of,
    spool,
    write_catalogue,
)
from vae_astro.catalogue import names as column_names
from vae_astro.catalogue.fits_table import PROVENANCE_CARD
from vae_astro.errors import InputError

Z, K = 3, 2
EVERY = (*IDENTITY, *LATENT, *SCORES, *CLASSES, *OUTLIERS, *QUALITY)
MADE_FROM = {"checkpoint": "runs/it's 'é'", "data": {"root": "x" * 300 + "''" * 40}}
SCHEMA = schema_of(EVERY, Z, MADE_FROM, n_classes=K)
SUFFIXES = ("parquet", "fits")


def rows(first: int, last: int) -> pa.Table:
    """Rows of a catalogue with every column, made of the index alone."""
    index = np.arange(first, last)
    values = {}
    for field in SCHEMA:
        kind = field.type
        if pa.types.is_fixed_size_list(kind):
            flat = pa.array(np.repeat(index, kind.list_size) % 7 / 8, kind.value_type)
            values[field.name] = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        elif pa.types.is_string(kind):
            values[field.name] = pa.array([f"{field.name} {k}" for k in index])
        elif pa.types.is_boolean(kind):
            values[field.name] = pa.array(index % 2 == 0)
        else:
            values[field.name] = pa.array(index / 8).cast(kind, safe=False)
    values["index"] = pa.array(index)
    return pa.table(values)


@pytest.fixture
def little_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MOST_ROWS_IN_GROUP", 8)


@pytest.mark.usefixtures("little_groups")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_what_was_given(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"a.{suffix}"
    tables = (rows(first, min(first + 5, 33)) for first in range(0, 33, 5))
    assert write_catalogue(out, SCHEMA, tables) == 33
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    expected = rows(0, 33)
    if suffix == "parquet":
        assert pq.read_table(out).cast(expected.schema).select(expected.column_names) == expected
        return
    found = Table.read(out)
    found.convert_bytestring_to_unicode()
    assert found.colnames == SCHEMA.names
    for name in SCHEMA.names:
        np.testing.assert_array_equal(np.array(found[name]), expected[name].to_pylist(), name)


@pytest.mark.usefixtures("little_groups")
def test_row_groups_are_full_however_small_or_large_the_tables(tmp_path: Path) -> None:
    bounds = [0, 1, 2, 2, 21, 24, 30]
    tables = (rows(a, b) for a, b in pairwise(bounds))
    write_catalogue(tmp_path / "a.parquet", SCHEMA, tables)
    groups = pq.read_metadata(tmp_path / "a.parquet")
    assert [groups.row_group(k).num_rows for k in range(groups.num_row_groups)] == [8, 8, 8, 6]


def test_a_fits_table_says_units_descriptions_ucds_and_where_it_is_from(tmp_path: Path) -> None:
    write_catalogue(tmp_path / "a.fits", SCHEMA, [rows(0, 3)])
    table = Table.read(tmp_path / "a.fits")
    assert table["ra"].unit == units.deg
    assert table["class_probabilities"].shape == (3, K)
    with fits.open(tmp_path / "a.fits") as opened:
        opened.verify("exception")
        header = opened[1].header
    numbers = {name: n for n, name in enumerate(SCHEMA.names, start=1)}
    assert header[f"TUCD{numbers['ra']}"] == "pos.eq.ra;meta.main"
    assert header[f"TCOMM{numbers['dec']}"] == "declination, ICRS; NaN where unknown"
    assert header[f"TCOMM{numbers['kl_nats']}"].endswith("[nat]"), "no unit of the standard"
    assert f"TUNIT{numbers['kl_nats']}" not in header
    assert header[f"TDIM{numbers['latent_mean']}"] == f"({Z})"
    assert json.loads(header[PROVENANCE_CARD]) == MADE_FROM


def test_a_parquet_catalogue_says_them_in_its_metadata(tmp_path: Path) -> None:
    write_catalogue(tmp_path / "a.parquet", SCHEMA, [rows(0, 3)])
    schema = pq.read_schema(tmp_path / "a.parquet")
    about = schema.field("ra").metadata
    assert (about[b"unit"], about[b"ucd"]) == (b"deg", b"pos.eq.ra;meta.main")
    assert all(field.metadata[b"description"] for field in schema)
    assert schema.field("latent_mean").type == pa.list_(pa.float32(), Z)
    assert json.loads(schema.metadata[PROVENANCE]) == MADE_FROM


def test_what_is_missing_stays_missing_in_fits(tmp_path: Path) -> None:
    columns = [
        Column("n", pa.int32(), "", "a count"),
        Column("x", pa.float32(), "", "a number"),
        Column("v", pa.float64(), "", "a vector", True),
        Column("t", pa.string(), "", "a text"),
        Column("b", pa.bool_(), "", "a truth"),
    ]
    schema = schema_of(columns, 2, {})
    table = pa.Table.from_pylist(
        [dict.fromkeys("nxvtb"), {"n": 3, "x": 0.5, "v": [1.0, 2.0], "t": "one", "b": True}], schema
    )
    write_catalogue(tmp_path / "a.fits", schema, [table])
    with pytest.warns(AstropyUserWarning, match="'b' contains NULL"):
        found = Table.read(tmp_path / "a.fits")
    assert found["n"].mask.tolist() == [True, False]
    assert found["t"].filled("").tolist() == ["", "one"]
    assert np.isnan(np.ma.filled(found["x"][0], np.nan))
    assert np.isnan(np.ma.filled(found["v"][0], np.nan)).all()
    assert found["v"][1].tolist() == [1, 2]
    with fits.open(tmp_path / "a.fits", logical_as_bytes=True) as opened:
        assert opened[1].data["b"].tolist() == [b"", b"T"]


def test_odd_characters_are_escaped_in_fits_and_kept_in_parquet(tmp_path: Path) -> None:
    schema = schema_of([Column("class", pa.string(), "", "its näme")], 1, {})
    names = ["galaxy, 'late'", "é\n", "星", ""]
    for suffix in SUFFIXES:
        write_catalogue(tmp_path / f"a.{suffix}", schema, [pa.table({"class": names})])
    assert pq.read_table(tmp_path / "a.parquet")["class"].to_pylist() == names
    found = fits.getdata(tmp_path / "a.fits")["class"]
    assert [text.encode().decode("unicode_escape") for text in found] == names


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n_rows", [0, 1])
def test_no_row_and_one_row_make_a_catalogue(suffix: str, n_rows: int, tmp_path: Path) -> None:
    out = tmp_path / f"a.{suffix}"
    assert write_catalogue(out, SCHEMA, [rows(0, n_rows)]) == n_rows
    assert len(pq.read_table(out) if suffix == "parquet" else Table.read(out)) == n_rows


def test_a_vector_of_one_element_stays_a_vector(tmp_path: Path) -> None:
    schema = schema_of(LATENT[:1], 1, {})
    write_catalogue(tmp_path / "a.fits", schema, [pa.table({"latent_mean": [[1.0], [2.0]]})])
    assert np.array(Table.read(tmp_path / "a.fits")["latent_mean"]).ravel().tolist() == [1, 2]
    assert fits.getheader(tmp_path / "a.fits", 1)["TDIM1"] == "(1)"


@pytest.mark.parametrize("column", [each for each in EVERY if each.ucd], ids=lambda each: each.name)
def test_ucds_are_words_of_the_standard(column: Column) -> None:
    parse_ucd(column.ucd, check_controlled_vocabulary=True)


def test_a_vector_of_no_element_is_refused() -> None:
    with pytest.raises(ValueError, match="class_probabilities has an element per class"):
        schema_of(CLASSES, Z, {})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_earlier_catalogue_is_never_replaced_silently(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"a.{suffix}"

    def one_that_comes_between() -> Iterator[pa.Table]:
        yield rows(0, 3)
        out.write_text("of value")

    for tables in (one_that_comes_between(), [rows(0, 3)]):
        with pytest.raises(InputError, match=r"exists.*overwrite=true"):
            write_catalogue(out, SCHEMA, tables)
        assert out.read_text() == "of value"
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert write_catalogue(out, SCHEMA, [rows(0, 3)], overwrite=True) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.csv", r"ends in \.parquet or \.fits"), ("no/a.fits", "which is no folder")],
)
def test_where_no_catalogue_can_go_is_refused(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        write_catalogue(tmp_path / name, SCHEMA, [rows(0, 3)])


@pytest.fixture
def little_space() -> Iterator[None]:
    """Files cannot grow beyond 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("suffix", "n_rows"),
    [("parquet", 20_000), ("fits", 20_000), ("fits", 1000)],
    ids=["parquet", "fits, before its rows are known", "fits, the table itself"],
)
@pytest.mark.usefixtures("little_space")
def test_a_full_disk_is_one_clear_error_and_leaves_what_was_there(
    suffix: str, n_rows: int, tmp_path: Path
) -> None:
    out = tmp_path / f"a.{suffix}"
    out.write_text("of value")
    tables = (rows(first, first + 500) for first in range(0, n_rows, 500))
    with pytest.raises(InputError, match=r"cannot write .*File too large.*out="):
        write_catalogue(out, SCHEMA, tables, overwrite=True)
    assert out.read_text() == "of value"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_source_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[pa.Table]:
        yield rows(0, 3)
        raise RuntimeError("of the network")

    with pytest.raises(RuntimeError, match="of the network"):
        write_catalogue(tmp_path / "a.fits", SCHEMA, failing())
    assert list(tmp_path.iterdir()) == []


# Others open it


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pandas_opens_it(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    write_catalogue(tmp_path / "a.parquet", SCHEMA, [rows(0, 5)])
    frame = pandas.read_parquet(tmp_path / "a.parquet")
    assert frame["index"].tolist() == list(range(5))
    assert np.stack(frame["latent_mean"]).shape == (5, Z)


needs_stilts = pytest.mark.skipif(
    shutil.which("stilts") is None, reason="STILTS is not installed: apt-get install stilts"
)


def stilts(*arguments: str) -> str:
    done = subprocess.run(
        ["stilts", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@needs_stilts
def test_stilts_finds_columns_units_ucds_and_values(tmp_path: Path) -> None:
    out = tmp_path / "a.fits"
    write_catalogue(out, SCHEMA, [rows(0, 9)])
    about = stilts("tpipe", f"in={out}", "omode=out", "ofmt=csv",
                   "cmd=meta name units class shape ucd description")  # fmt: skip
    lines = {line.split(",")[0]: line for line in about.splitlines()}
    assert set(SCHEMA.names) <= set(lines)
    assert lines["ra"].startswith("ra,deg,Double,,pos.eq.ra;meta.main,")
    assert lines["latent_mean"].startswith(f"latent_mean,,float[],({Z}),stat.fit.param,mean of")
    values = stilts("tpipe", f"in={out}", "omode=out", "ofmt=csv-noheader",
                    "cmd=keepcols 'id ra unsure'; rowrange 2 3")  # fmt: skip
    assert values.splitlines() == ["id 1,0.125,false", "id 2,0.25,true"]


def test_every_column_has_its_name_from_the_one_list() -> None:
    """Who reads a catalogue spells a column as who writes it."""
    listed = {value for name, value in vars(column_names).items() if name.isupper()}
    assert {column.name for column in EVERY} == listed
