"""Alerts in Parquet, as Fink and ALeRCE deliver them, are what they are in packets."""

import gzip
import random
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits as pyfits
from pyarrow import parquet

from vae_astro.data.sources.alerts import table as alert_table
from vae_astro.data.sources.alerts.table import AlertTableReader
from vae_astro.data.sources.alerts.ztf import AlertReader
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Reject, Stamp, StampBlock
from vae_astro.errors import InputError

RNG = np.random.default_rng(64)
CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
CANDIDATE = {"ra": 10.5, "dec": -3.25, "xpos": 3056.2, "ypos": 900.0, "fwhm": 5.0, "seeratio": 0.5}


def packed(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    pyfits.PrimaryHDU(pixels).writeto(stream)
    return gzip.compress(stream.getvalue())


IMAGES = RNG.normal(100, 10, (4, 3, 63, 63)).astype(np.float32)


def nested_row(k: int) -> dict[str, Any]:
    """As the packets have it, and Fink's own archive."""
    return {
        "objectId": f"ZTF{k // 2}",
        "candid": 1000 + k,
        "candidate": {**CANDIDATE, "jd": 1.0},
        "prv_candidates": [CANDIDATE] * 5,
        **{
            name: {"fileName": "a.fits.gz", "stampData": packed(pixels)}
            for name, pixels in zip(CUTOUTS, IMAGES[k], strict=True)
        },
        "label": "SN" if k else None,
    }


def flat_row(k: int, dot: str = "_", prefix: str = "") -> dict[str, Any]:
    row = nested_row(k)
    flat = {f"{prefix and 'i:'}{key}": value for key, value in row["candidate"].items()}
    for name in CUTOUTS:
        flat[f"{prefix and 'b:'}{name}{dot}stampData"] = row[name]["stampData"]
    return {"objectId": row["objectId"], "candid": row["candid"], "label": row["label"]} | flat


def bytes_row(k: int) -> dict[str, Any]:
    """Cutouts in a column of their own."""
    return {key.replace("_stampData", ""): value for key, value in flat_row(k).items()}


ROWS = {
    "nested": nested_row,
    "flat": flat_row,
    "dotted": lambda k: flat_row(k, "."),
    "prefixed": lambda k: flat_row(k, "_", "b"),
    "bytes": bytes_row,
}


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.fixture
def read(tmp_path, read_all):
    def read(rows: list[dict[str, Any]], **settings: Any) -> list[Any]:
        write(tmp_path / "a.parquet", rows)
        return read_all(AlertTableReader(**settings), tmp_path)

    return read


@pytest.mark.parametrize("shape", ROWS)
def test_every_row_is_a_stamp_in_every_shape_that_brokers_write(read, shape):
    stamps = read([ROWS[shape](k) for k in range(4)])
    assert len(stamps) == 4
    for k, stamp in enumerate(stamps):
        assert stamp.pixels.tobytes() == IMAGES[k].tobytes()
        assert (stamp.id, stamp.object_id) == (str(1000 + k), f"ZTF{k // 2}")
        assert (stamp.ra, stamp.dec, stamp.seeing) == (10.5, -3.25, 2.5)
        assert stamp.label == ("SN" if k else "")
        assert stamp.source == f"a.parquet[{k}]"


def test_only_needed_columns_are_read(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", [nested_row(0)])
    asked = []
    original = parquet.ParquetFile.iter_batches

    def spy(self, *arguments, columns, **options):
        asked.extend(columns)
        return original(self, *arguments, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spy)
    root, reader = open_root(str(tmp_path)), AlertTableReader(cutouts=("difference",))
    (block,) = reader.read(reader.find(root), root)
    assert isinstance(block, StampBlock)
    assert "cutoutDifference.stampData" in asked
    assert "candidate.ra" in asked
    assert not any("prv" in name or "Science" in name or "fileName" in name for name in asked)


def test_a_cutout_at_the_detector_edge_is_padded_where_the_sky_is_missing(read):
    row = nested_row(0)
    row["cutoutScience"]["stampData"] = packed(IMAGES[0, 0, :, :48])
    (stamp,) = read([row])
    np.testing.assert_array_equal(stamp.pixels[0, :, :48], IMAGES[0, 0, :, :48])
    assert np.isnan(stamp.pixels[0, :, 48:]).all()


def test_the_only_row_of_a_file_has_the_name_of_the_file(read):
    (stamp,) = read([nested_row(0)])
    assert stamp.source == "a.parquet"


def test_rows_that_cannot_be_read_are_rejects_in_their_place(read):
    rows = [nested_row(k) for k in range(4)]
    rows[1]["cutoutTemplate"] = None
    rows[2]["cutoutScience"]["stampData"] = b"\xff\xd8\xff\xe0 a JPEG"
    first, second, third, fourth = read(rows)
    assert (first.id, fourth.id) == ("1000", "1003")
    assert (second.source, second.reason) == ("a.parquet[1]", "missing cutout")
    assert (third.source, third.reason) == ("a.parquet[2]", "cutout is not FITS")


def test_ids_and_labels_come_from_the_columns_that_are_asked_for(read):
    rows = [nested_row(k) | {"name": f"n{k}", "class": "AGN"} for k in range(2)]
    first, second = read(rows, id_field="name", label_field="class")
    assert [first.id, second.id] == ["n0", "n1"]
    assert first.object_id == second.object_id == "ZTF0"
    assert first.label == "AGN"


def test_without_candid_the_object_names_the_alert(read):
    row = nested_row(0)
    del row["candid"]
    (stamp,) = read([row])
    assert (stamp.id, stamp.object_id) == ("ZTF0", "ZTF0")


def test_a_folder_gives_the_label_where_no_column_does(tmp_path, read_all):
    row = nested_row(0)
    del row["label"]
    write(tmp_path / "year=2024" / "class=SN%20candidate" / "part-0.parquet", [row])
    (stamp,) = read_all(AlertTableReader(label_field="class"), tmp_path)
    assert stamp.label == "SN candidate"
    assert stamp.source == "year=2024/class=SN%20candidate/part-0.parquet"


def without(*keys: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in nested_row(n).items() if k not in keys} for n in range(3)]


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (without("cutoutTemplate"), {}, ["cutoutTemplate", "cutoutScience", "data.cutouts"]),
        (without("candid", "objectId"), {}, ["objectId", "data.id_field"]),
        (without(), {"id_field": "oid"}, ["oid", "candid", "data.id_field"]),
        (without(), {"label_field": "class"}, ["class", "data.label_field"]),
    ],
)
def test_a_missing_column_is_one_reject_of_the_file(read, rows, settings, words):
    (reject,) = read(rows, **settings)
    assert (reject.source, reject.reason) == ("a.parquet", "missing column")
    assert all(word in reject.detail for word in words)


def test_a_cutout_column_of_another_type_is_one_reject_of_the_file(read):
    rows = [bytes_row(k) | {"cutoutScience": [[1.0, 2.0]]} for k in range(3)]
    (reject,) = read(rows)
    assert reject.reason == "wrong column"
    assert "gzipped FITS" in reject.detail
    assert "list" in reject.detail


def test_a_large_file_is_shared_out_by_row_groups(tmp_path, monkeypatch, read_all):
    write(tmp_path / "a.parquet", [nested_row(k % 4) for k in range(10)], row_group_size=2)
    whole = read_all(AlertTableReader(), tmp_path)
    monkeypatch.setattr(alert_table, "PART_BYTES", 100_000)
    root, reader = open_root(str(tmp_path)), AlertTableReader()
    sources = reader.find(root)
    assert len(sources) > 2
    assert [source.part[0] for source in sources[1:]] == [s.part[1] for s in sources[:-1]]
    assert (sources[0].part[0], sources[-1].part[1]) == (0, 10)
    parts = [item for source in sources for item in reader.read([source], root)]
    assert [name for block in parts for name in block.source] == [s.source for s in whole]
    np.testing.assert_array_equal(
        np.concatenate([block.pixels for block in parts]), np.stack([s.pixels for s in whole])
    )


def test_a_large_file_without_a_column_is_one_reject_whatever_its_parts(
    tmp_path, monkeypatch, read_all
):
    write(tmp_path / "a.parquet", without("cutoutScience") * 3, row_group_size=2)
    monkeypatch.setattr(alert_table, "PART_BYTES", 100_000)
    assert len(AlertTableReader().find(open_root(str(tmp_path)))) > 1
    assert len(read_all(AlertTableReader(), tmp_path)) == 1


def test_a_damaged_row_group_costs_no_other(tmp_path, read_all):
    path = write(tmp_path / "a.parquet", [nested_row(k) for k in range(4)], row_group_size=1)
    raw = bytearray(path.read_bytes())
    group = parquet.read_metadata(path).row_group(1)
    chunk = next(
        group.column(k)
        for k in range(group.num_columns)
        if group.column(k).path_in_schema == "cutoutScience.stampData"
    )
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    raw[start : start + 40] = b"\xff" * 40
    path.write_bytes(raw)
    first, reject, third, fourth = read_all(AlertTableReader(), tmp_path)
    assert [first.id, third.id, fourth.id] == ["1000", "1002", "1003"]
    assert (reject.source, reject.reason) == ("a.parquet[1]", "unreadable")
    assert "rows 1 to 1 are lost" in reject.detail


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: b"", "empty file"),
        (lambda raw: b"candid,ra\n", "not a Parquet file"),
        (lambda raw: b"PAR1", "unreadable"),
        (lambda raw: raw[:-10], "truncated file"),
        (lambda raw: raw[:-8] + b"\xff\xff\xff\x7fPAR1", "unreadable"),
    ],
)
def test_a_file_that_is_no_parquet_is_rejected(tmp_path, read_all, damage, reason):
    path = write(tmp_path / "a.parquet", [nested_row(0)])
    path.write_bytes(damage(path.read_bytes()))
    (reject,) = read_all(AlertTableReader(), tmp_path)
    assert (reject.source, reject.reason) == ("a.parquet", reason)


def check_damaged(path: Path, read_all, n: int) -> None:
    whole, rng = path.read_bytes(), random.Random(3)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    images = {image.tobytes() for image in IMAGES[:2]}
    for _ in range(n):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 3])):
            start = footer if rng.random() < 0.5 else 0
            damaged[rng.randrange(start, len(whole))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        path.write_bytes(damaged)
        for item in read_all(AlertTableReader(), path.parent):
            assert isinstance(item, Reject) or item.pixels.tobytes() in images


def test_damaged_files_never_raise_and_never_give_wrong_pixels(tmp_path, read_all):
    rows = [nested_row(k) for k in range(2)]
    check_damaged(write(tmp_path / "a.parquet", rows, row_group_size=1), read_all, 150)


@pytest.mark.slow
def test_thousands_of_damaged_files_never_raise_and_never_give_wrong_pixels(tmp_path, read_all):
    rows = [nested_row(k) for k in range(2)]
    check_damaged(write(tmp_path / "a.parquet", rows, row_group_size=1), read_all, 5000)


def test_memory_does_not_grow_with_a_row_group(tmp_path):
    row = bytes_row(0)
    row["cutoutScience"] = RNG.bytes(200_000)  # not FITS, and too large to keep them all
    table = pa.Table.from_pylist([row] * 500)
    # few values a page: pyarrow reads pages as a whole
    parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, write_batch_size=4)
    del table
    root, reader = open_root(str(tmp_path)), AlertTableReader()
    before, peak = pa.total_allocated_bytes(), 0
    for item in reader.read(reader.find(root), root):
        assert isinstance(item, Reject)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert 0 < peak < 5e7  # of the 100 MB of the row group


def test_tables_are_found_and_packets_are_pointed_out(tmp_path):
    write(tmp_path / "a" / "b.parquet", [nested_row(0)])
    (tmp_path / "a" / "_SUCCESS").touch()
    found = AlertTableReader().find(open_root(str(tmp_path)))
    assert [source.name for source in found] == ["a/b.parquet"]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "c.avro").touch()
    with pytest.raises(InputError, match=r"\.parquet.*data=alerts"):
        AlertTableReader().find(open_root(str(tmp_path / "only")))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"cutouts": "science"}, "data.cutouts"),
        ({"size": 0}, "data.size"),
        ({"max_cutout_bytes": 0}, "data.max_cutout_bytes"),
        ({"id_field": ""}, "data.id_field"),
        ({"label_field": 3}, "data.label_field"),
    ],
)
def test_a_setting_out_of_range_names_its_key(settings, key):
    with pytest.raises(InputError, match=key):
        AlertTableReader(**settings)


@pytest.mark.real_data
def test_the_labelled_alerts_of_alerce_are_read(real_data, read_all):
    stamps = read_all(AlertTableReader(), real_data / "alerce_labelled")
    labels = [stamp.label for stamp in stamps if isinstance(stamp, Stamp)]
    counts = {label: labels.count(label) for label in set(labels)}
    assert sorted(counts.values()) == [1, 2, 13, 14, 21]
    assert counts["asteroid"] == 14
    assert all(stamp.object_id.startswith("ZTF") for stamp in stamps)


@pytest.mark.real_data
def test_packets_put_into_a_table_are_the_same_stamps(real_data, tmp_path, read_all):
    fastavro = pytest.importorskip("fastavro")
    packets = sorted((real_data / "ztf_alerts").glob("*.avro"))[:40]
    rows = []
    for path in packets:
        with path.open("rb") as stream:
            rows.extend(fastavro.reader(stream))
    write(tmp_path / "night.parquet", rows, row_group_size=7)
    tabled = read_all(AlertTableReader(), tmp_path)
    root = open_root(str(real_data / "ztf_alerts"))
    blocks = list(AlertReader().read(AlertReader().find(root)[:40], root))
    assert np.stack([s.pixels for s in tabled]).tobytes() == b"".join(
        block.pixels.tobytes() for block in blocks
    )
    for key in ("id", "object_id", "ra", "dec", "seeing"):
        expected = [value for block in blocks for value in getattr(block, key)]
        assert [getattr(stamp, key) for stamp in tabled] == expected
