"""The Parquet catalogue as hyrax's viewers, nested-pandas and LSDB take it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vae_astro.catalogue import IDENTITY, LATENT, schema_of, write_catalogue

N, Z = 40, 4
CODES = np.random.default_rng(0).normal(size=(N, Z)).astype(np.float32)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stamps of each object; the last object has no position."""
    rng = np.random.default_rng(1)
    right_ascension = np.repeat(rng.uniform(10, 11, N // 2), 2)
    right_ascension[-2:] = np.nan
    codes = pa.FixedSizeListArray.from_arrays(pa.array(CODES.ravel()), Z)
    table = pa.table(
        {
            "index": np.arange(N),
            "id": [f"stamp{k}" for k in range(N)],
            "object_id": [f"{k // 2:07d}" for k in range(N)],
            "source": ["a.fits"] * N,
            "ra": right_ascension,
            "dec": np.repeat(rng.uniform(-1, 1, N // 2), 2),
            "label": pa.nulls(N, pa.string()),
            "latent_mean": codes,
            "latent_std": codes,
            "kl_nats": rng.normal(size=N).astype(np.float32),
        }
    )
    out = tmp_path_factory.mktemp("catalogue") / "latents.parquet"
    write_catalogue(out, schema_of((*IDENTITY, *LATENT), Z, {"checkpoint": "runs/NAME"}), [table])
    return out


def test_object_id_is_text_and_codes_are_one_fixed_size_list(catalogue: Path) -> None:
    schema = pq.read_schema(catalogue)
    assert schema.field("object_id").type == pa.string()
    assert schema.field("latent_mean").type == pa.list_(pa.float32(), Z)
    assert [schema.field(name).type for name in ("ra", "dec")] == 2 * [pa.float64()]
    table = pq.read_table(catalogue)
    assert table["object_id"][2].as_py() == "0000001"  # no number: its zeros stay
    column = table["latent_mean"].combine_chunks()
    assert np.array_equal(column.values.to_numpy().reshape(N, Z), CODES)  # as hyrax reads its own


def test_pandas_reads_one_array_a_row(catalogue: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(catalogue)
    assert np.array_equal(np.stack(frame["latent_mean"]), CODES)
    assert frame["object_id"][0] == "0000000"


def test_lsdb_searches_it_and_writes_it_as_hats(catalogue: Path, tmp_path: Path) -> None:
    lsdb = pytest.importorskip("lsdb")
    nested_pandas = pytest.importorskip("nested_pandas")
    rows = nested_pandas.read_parquet(catalogue)
    known = rows[np.isfinite(rows.ra.to_numpy())]  # NaN of Arrow is not NA
    sky = lsdb.from_dataframe(known, ra_column="ra", dec_column="dec", catalog_name="latents")
    first = rows.iloc[0]
    near = sky.cone_search(ra=first.ra, dec=first.dec, radius_arcsec=1).compute()
    assert set(near["id"]) == {"stamp0", "stamp1"}
    sky.write_catalog(tmp_path / "hats")
    back = lsdb.open_catalog(tmp_path / "hats").compute().sort_values("index")
    assert np.array_equal(np.stack(back["latent_mean"].to_numpy()), CODES[: N - 2])


def test_hyrax_has_getters_for_its_columns(catalogue: Path) -> None:
    datasets = pytest.importorskip("hyrax.datasets.nested_pandas_dataset")
    settings = {"data_set": {"NestedPandasDataset": {"read_kwargs": {}}}}
    rows = datasets.NestedPandasDataset(settings, catalogue)
    assert len(rows) == N
    assert rows.get_object_id(3) == "0000001"
    np.testing.assert_array_equal(np.asarray(rows.get_latent_mean(3)), CODES[3])
