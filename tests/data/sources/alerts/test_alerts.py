"""Alert packets of every kind become stamps with the object in the middle, or rejects."""

import csv
import gzip
import random
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from astropy.io import fits as pyfits

from vae_astro.data.sources.alerts import avro
from vae_astro.data.sources.alerts.cutouts import CUTOUTS
from vae_astro.data.sources.alerts.ztf import AlertReader
from vae_astro.data.sources.fits.headers import quiet_astropy
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion, open_root
from vae_astro.data.stamp import Reject, Stamp, StampBlock
from vae_astro.errors import InputError

RNG = np.random.default_rng(63)
IMAGES = {name: RNG.normal(100, 10, (63, 63)).astype(np.float32) for name in CUTOUTS}
CUTOUT = ["null", {"type": "record", "name": "cutout", "fields": []}]
CUTOUT[1]["fields"] = [
    {"name": "fileName", "type": "string"},
    {"name": "stampData", "type": "bytes"},
]
NUMBERS = ("ra", "dec", "xpos", "ypos", "fwhm", "seeratio")


def cutout(pixels: np.ndarray, pack=gzip.compress) -> dict[str, Any]:
    stream = BytesIO()
    pyfits.PrimaryHDU(pixels).writeto(stream)
    return {"fileName": "candid1_sci.fits.gz", "stampData": pack(stream.getvalue())}


def alert(**changes: Any) -> dict[str, Any]:
    """One packet like ZTF's; a field set to ... is left out, also of its schema."""
    record = {
        "objectId": "ZTF18abc",
        "candid": 697252380415010006,
        "candidate": {"candid": 7, "ra": 10.5, "dec": -3.25, "xpos": 1500.0, "ypos": 1500.0},
        **{f"cutout{name.capitalize()}": cutout(pixels) for name, pixels in IMAGES.items()},
        **changes,
    }
    return {key: value for key, value in record.items() if value is not ...}


def packet(*records: dict[str, Any], codec: str = "null") -> bytes:
    candidate = {
        "type": "record",
        "name": "candidate",
        "fields": [{"name": "candid", "type": "long"}]
        + [{"name": key, "type": ["null", "double"], "default": None} for key in NUMBERS],
    }
    kinds: dict[str, Any] = {
        "objectId": ["null", "string"],
        "candid": "long",
        "candidate": candidate,
        "cutoutScience": CUTOUT,
        "cutoutTemplate": ["null", "cutout"],
        "cutoutDifference": ["null", "cutout"],
    }
    fields = [{"name": key, "type": kinds[key]} for key in records[0]]
    stream = BytesIO()
    fastavro.writer(stream, {"type": "record", "name": "alert", "fields": fields}, records, codec)
    return stream.getvalue()


@pytest.fixture
def read(tmp_path, read_all):
    """Write bytes to a packet below the root and read it."""

    def read(raw: bytes, **settings) -> list[Stamp | Reject]:
        path = tmp_path / "night" / "a.avro"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
        return read_all(AlertReader(**settings), tmp_path)

    return read


def only(found: list[Stamp | Reject]) -> Any:
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
def test_a_packet_becomes_one_stamp_with_its_cutouts_as_bands(read, codec):
    stamp = only(read(packet(alert(), codec=codec)))
    assert stamp.pixels.dtype == np.dtype(np.float32)
    assert stamp.pixels.dtype.isnative
    assert stamp.pixels.tobytes() == np.stack(list(IMAGES.values())).tobytes()
    assert (stamp.id, stamp.object_id) == ("697252380415010006", "ZTF18abc")
    assert (stamp.ra, stamp.dec, stamp.label) == (10.5, -3.25, "")
    assert stamp.source == "night/a.avro"
    assert AlertReader().band_names == ("science", "template", "difference")
    assert not AlertReader().has_noise


def test_cutouts_are_chosen_and_ordered_by_the_setting(read):
    stamp = only(read(packet(alert(cutoutTemplate=None)), cutouts=["difference", "science"]))
    np.testing.assert_array_equal(stamp.pixels, np.stack([IMAGES["difference"], IMAGES["science"]]))


def test_an_early_packet_without_object_or_candid_is_named_by_its_candidate(read):
    stamp = only(read(packet(alert(objectId=..., candid=...))))
    assert (stamp.id, stamp.object_id) == ("7", "7")


def test_nan_and_the_fill_value_are_kept(read):
    pixels = IMAGES["science"].copy()
    pixels[0, :5] = np.nan
    pixels[1, :5] = np.float32(-3.4028235e38)
    stamp = only(read(packet(alert(cutoutScience=cutout(pixels)))))
    assert stamp.pixels[0].tobytes() == pixels.tobytes()


def test_an_unknown_position_is_nan(read):
    candidate = {"candid": 7, "ra": -999.0, "dec": None}
    stamp = only(read(packet(alert(candidate=candidate))))
    assert np.isnan([stamp.ra, stamp.dec]).all()


def test_the_seeing_is_that_of_the_difference_image_and_not_the_width_of_the_object(read):
    candidate = {"candid": 7, "fwhm": 5.0, "seeratio": 0.5}
    assert only(read(packet(alert(candidate=candidate)))).seeing == 2.5


@pytest.mark.parametrize(
    "widths",
    [
        {},
        {"fwhm": 2.5},
        {"fwhm": 2.5, "seeratio": None},
        {"fwhm": 2.5, "seeratio": -999.0},
        {"fwhm": -2.0, "seeratio": -2.0},
        {"fwhm": 2.5, "seeratio": float("nan")},
        {"fwhm": 70.0, "seeratio": 2.0},
    ],
)
def test_an_unknown_seeing_is_nan(read, widths):
    assert np.isnan(only(read(packet(alert(candidate={"candid": 7, **widths})))).seeing)


def test_a_template_by_itself_has_a_seeing_that_the_packet_does_not_tell(read):
    raw = packet(alert(candidate={"candid": 7, "fwhm": 5.0, "seeratio": 0.5}))
    assert np.isnan(only(read(raw, cutouts=["template"])).seeing)
    assert only(read(raw, cutouts=["template", "science"])).seeing == 2.5


@pytest.mark.parametrize(
    ("kept", "xpos", "ypos"),
    [
        (np.s_[:, :48], 3056.2, 900.0),  # the right edge of the quadrant
        (np.s_[:, 15:], 16.2, 900.0),  # the left edge
        (np.s_[:53, :], 900.0, 3058.6),  # the top
        (np.s_[22:, :], 900.0, 10.4),  # the bottom
        (np.s_[22:, :48], 3056.2, 10.4),  # a corner
    ],
)
@pytest.mark.parametrize("size", [63, 64, 41])
def test_a_cutout_at_the_detector_edge_is_padded_on_the_side_that_is_missing(
    read, kept, xpos, ypos, size
):
    full = np.full((63, 63), np.nan, dtype=np.float32)
    full[kept] = IMAGES["science"][kept]
    candidate = {"candid": 7, "ra": 1.0, "dec": 1.0, "xpos": xpos, "ypos": ypos}
    changes = {"cutoutScience": cutout(IMAGES["science"][kept]), "candidate": candidate}
    science, template, _ = only(read(packet(alert(**changes)), size=size)).pixels
    assert science[size // 2, size // 2] == IMAGES["science"][31, 31]
    assert template[size // 2, size // 2] == IMAGES["template"][31, 31]
    if size == 63:
        np.testing.assert_array_equal(science, full)


def test_a_short_cutout_at_an_unknown_place_is_padded_on_both_sides(read):
    changes = {"cutoutScience": cutout(IMAGES["science"][:, :61]), "candidate": {"candid": 7}}
    science = only(read(packet(alert(**changes)))).pixels[0]
    np.testing.assert_array_equal(science[:, 1:62], IMAGES["science"][:, :61])
    assert np.isnan(science[:, [0, 62]]).all()


def test_every_record_of_a_packet_is_read_and_numbered(read):
    records = [alert(candid=k) for k in (11, 12, 13)]
    records[1]["cutoutScience"] = None
    first, second, third = read(packet(*records))
    assert [first.id, third.id] == ["11", "13"]
    assert second.reason == "missing cutout"
    assert [item.source for item in (first, second, third)] == [
        f"night/a.avro[{k}]" for k in range(3)
    ]


def test_records_before_a_break_are_kept(read):
    raw = packet(alert(candid=11), alert(candid=12))
    stamp, reject = read(raw[: len(raw) * 3 // 4])
    assert (stamp.id, stamp.source) == ("11", "night/a.avro[0]")
    assert (reject.source, reject.reason) == ("night/a.avro[1]", "truncated file")


JPEG = {"fileName": "a.jpg", "stampData": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"}
BROKEN = cutout(IMAGES["science"])["stampData"]


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"cutoutDifference": None}, "missing cutout", "cutoutDifference"),
        ({"cutoutDifference": ...}, "missing cutout", "data.cutouts"),
        ({"cutoutScience": {"fileName": "", "stampData": b""}}, "missing cutout", "cutoutScience"),
        ({"cutoutTemplate": JPEG}, "cutout is not FITS", "cutoutTemplate: begins with"),
        (
            {"cutoutScience": {"fileName": "", "stampData": BROKEN[:900]}},
            "truncated file",
            "cutoutScience",
        ),
        ({"cutoutScience": cutout(np.ones((2, 4, 4)))}, "wrong dimensions", "(2, 4, 4)"),
        ({"cutoutScience": cutout(None)}, "no image", "cutoutScience"),
        ({"candid": 0, "candidate": {"candid": 0}}, "no identifier", "candid"),
    ],
)
def test_a_packet_without_usable_cutouts_is_rejected(read, changes, reason, words):
    reject = only(read(packet(alert(**changes))))
    assert isinstance(reject, Reject)
    assert (reject.source, reject.reason) == ("night/a.avro", reason)
    assert words in reject.detail


def test_a_packet_of_nan_is_rejected_but_one_good_band_is_enough(read):
    nothing = cutout(np.full((63, 63), np.nan, dtype=np.float32))
    bad = {"cutoutScience": nothing, "cutoutTemplate": nothing}
    assert isinstance(only(read(packet(alert(**bad)))), Stamp)
    reject = only(read(packet(alert(**bad, cutoutDifference=nothing))))
    assert reject.reason == "all pixels bad"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty file"),
        (b"candid,ra\n1,2\n", "not an Avro file"),
        (packet(alert())[:-500], "truncated file"),
        (packet(alert()).replace(b"avro.schema", b"avro.scheme"), "unreadable"),
        (packet(alert(), codec="bzip2"), "unsupported codec"),
    ],
)
def test_a_file_that_is_no_packet_is_rejected(read, raw, reason):
    reject = only(read(raw))
    assert (reject.source, reject.reason) == ("night/a.avro", reason)


def test_what_unpacks_to_too_much_is_refused(read, monkeypatch):
    bomb = {"fileName": "", "stampData": gzip.compress(bytes(2**22))}
    reject = only(read(packet(alert(cutoutScience=bomb)), max_cutout_bytes=2**20))
    assert reject.reason == "too large"
    monkeypatch.setattr(avro, "MAX_BLOCK_BYTES", 1000)
    for codec in ("null", "deflate", "snappy"):
        reject = only(read(packet(alert(), codec=codec)))
        assert reject.reason == "too large"
        assert "1000 bytes" in reject.detail


def test_a_link_out_of_the_root_and_a_missing_file_are_rejected(tmp_path, read_all):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "a.avro").write_bytes(packet(alert()))
    (root / "a.avro").symlink_to(tmp_path / "a.avro")
    (root / "b.avro").symlink_to(tmp_path / "gone.avro")
    outside, gone = read_all(AlertReader(), root)
    assert (outside.source, outside.reason) == ("a.avro", "outside the root")
    assert (gone.source, gone.reason) == ("b.avro", "vanished")
    assert isinstance(read_all(AlertReader(), root, allow_outside=True)[0], Stamp)


def test_a_packet_that_changed_since_it_was_listed_is_rejected(tmp_path):
    (tmp_path / "a.avro").write_bytes(packet(alert()))
    root = open_root(str(tmp_path))
    sources = AlertReader().find(root)
    (tmp_path / "a.avro").write_bytes(packet(alert(candid=5), alert(candid=6)))
    assert only(list(AlertReader().read(sources, root))).reason == "changed"


def test_stamps_come_in_blocks_and_rejects_in_their_place(tmp_path):
    for k in range(5):
        changes = {"candid": 100 + k} | ({"cutoutScience": None} if k == 3 else {})
        (tmp_path / f"{k}.avro").write_bytes(packet(alert(**changes)))
    root = open_root(str(tmp_path))
    first, reject, last = AlertReader().read(AlertReader().find(root), root)
    assert isinstance(first, StampBlock)
    assert first.pixels.shape == (3, 3, 63, 63)
    assert (first.id, first.source) == (["100", "101", "102"], ["0.avro", "1.avro", "2.avro"])
    assert (reject.source, reject.reason) == ("3.avro", "missing cutout")
    assert last.id == ["104"]


def test_a_file_too_large_for_memory_is_read_block_by_block(read, monkeypatch):
    monkeypatch.setattr(avro, "IN_MEMORY_BYTES", 1000)
    stamps = read(packet(*(alert(candid=k) for k in range(1, 9)), codec="deflate"))
    assert [stamp.id for stamp in stamps] == [str(k) for k in range(1, 9)]
    for stamp in stamps:
        np.testing.assert_array_equal(stamp.pixels, np.stack(list(IMAGES.values())))


def test_a_file_that_claims_a_size_it_has_not_takes_no_memory(tmp_path):
    (tmp_path / "a.avro").write_bytes(packet(alert()))
    version = AlertReader().find(open_root(str(tmp_path)))[0].files[0].version
    claim = Source((FileVersion("a.avro", 10**12, version),))
    reject = only(list(AlertReader().read([claim], open_root(str(tmp_path)))))
    assert reject.reason == "changed"


def mutations(whole: bytes, n: int, seed: int):
    """Copies of a packet with a few bytes changed, cut out or put in."""
    rng = random.Random(seed)
    for _ in range(n):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            place = rng.randrange(rng.choice([60, 900, len(damaged)]))
            kind = rng.random()
            if kind < 0.8:
                damaged[place] = rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            elif kind < 0.9:
                del damaged[place : place + rng.choice([1, 2, 100])]
            else:
                damaged[place:place] = rng.randbytes(rng.choice([1, 2, 9]))
        yield bytes(damaged)


def check_damaged(read_bytes, whole: bytes, n: int, seed: int) -> None:
    """Whatever is done to a packet: stamps whose cutouts are those of a gzip that adds up."""
    expected = [image.tobytes() for image in IMAGES.values()]
    n_read = 0
    for damaged in mutations(whole, n, seed):
        found = read_bytes(damaged)
        assert found
        for item in found:
            if isinstance(item, Stamp):
                n_read += 1
                # gzip's own sum vouches for every band, whatever became of the packet around it
                assert [band.tobytes() for band in item.pixels] == expected
    assert 0 < n_read < n


def test_damaged_packets_never_raise_and_never_give_wrong_pixels(read):
    whole = packet(alert())
    for n_bytes in range(0, len(whole), 997):
        assert isinstance(read(whole[:n_bytes])[-1], Reject), n_bytes
    for codec in ("null", "deflate", "snappy"):
        check_damaged(read, packet(alert(), codec=codec), 130, seed=7)


@pytest.mark.slow
def test_ten_thousand_damaged_packets_never_raise_and_never_give_wrong_pixels(read):
    for seed, codec in enumerate(("null", "deflate", "snappy")):
        check_damaged(read, packet(alert(), codec=codec), 3400, seed)


def test_packets_are_found_and_fits_files_are_pointed_out(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.AVRO").touch()
    (tmp_path / "a.avro").touch()
    found = AlertReader().find(open_root(str(tmp_path)))
    assert [source.name for source in found] == ["a.avro", "sub/b.AVRO"]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "c.fits.gz").touch()
    with pytest.raises(InputError, match=r"holds 1 file, none ending in \.avro.*data=fits"):
        AlertReader().find(open_root(str(tmp_path / "only")))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"cutouts": ()}, "data.cutouts"),
        ({"cutouts": "science"}, "data.cutouts"),
        ({"cutouts": ("science", "science")}, "data.cutouts"),
        ({"cutouts": ("science", "reference")}, "data.cutouts"),
        ({"cutouts": None}, "data.cutouts"),
        ({"size": 15}, "data.size"),
        ({"max_cutout_bytes": 0}, "data.max_cutout_bytes"),
    ],
)
def test_a_setting_out_of_range_names_its_key(settings, key):
    with pytest.raises(InputError, match=key):
        AlertReader(**settings)


def test_a_list_from_a_configuration_gives_the_same_reader():
    assert repr(AlertReader(cutouts=["science"])) == repr(AlertReader(cutouts=("science",)))


@pytest.fixture(scope="module")
def read_folder(real_data: Path, read_all):
    return lambda name: read_all(AlertReader(), real_data / name)


def outcomes(items: list[Stamp | Reject]) -> Counter[str]:
    return Counter(item.reason if isinstance(item, Reject) else "read" for item in items)


@pytest.mark.real_data
def test_every_real_alert_is_read(read_folder):
    stamps = read_folder("ztf_alerts")
    assert outcomes(stamps) == {"read": 498}
    assert {stamp.pixels.shape for stamp in stamps} == {(3, 63, 63)}
    assert not any(np.isnan(stamp.ra) for stamp in stamps)
    # one image has one seeing, and two nights have few; ZTF's pixels are about 1 arcsec
    seeing = np.array([stamp.seeing for stamp in stamps])
    assert 2 < seeing.min() < seeing.max() < 6
    assert len(np.unique(seeing.round(3))) < len(stamps)


@pytest.mark.real_data
def test_every_edge_case_comes_out_as_its_manifest_says(read_folder, real_data):
    folder = real_data / "ztf_alerts_edge_cases"
    with (folder / "MANIFEST.csv").open() as manifest:
        rows = {row["file"]: row for row in csv.DictReader(manifest)}
    items = read_folder("ztf_alerts_edge_cases")
    assert sorted(item.source for item in items) == sorted(rows)
    assert outcomes(items) == {"read": 97, "cutout is not FITS": 6}
    for item in items:
        row = rows[item.source]
        if isinstance(item, Stamp):
            assert (item.id, item.object_id) == (row["candid"], row["objectId"])
        else:  # the first schema: JPEG, and no name of the object
            assert (row["objectId"], row["schemavsn"]) == ("", "")
            assert "JPEG" in item.detail


@pytest.mark.real_data
@pytest.mark.parametrize("folder", ["ztf_alerts", "ztf_alerts_edge_cases"])
def test_real_packets_are_what_fastavro_and_astropy_make_of_them(read_folder, real_data, folder):
    for item in read_folder(folder):
        with (real_data / folder / item.source).open("rb") as stream:
            (record,) = fastavro.reader(stream)
        if isinstance(item, Reject):
            assert record["cutoutScience"]["stampData"].startswith(b"\xff\xd8")
            continue
        candidate = record["candidate"]
        assert item.id == str(record.get("candid") or candidate["candid"])
        assert (item.ra, item.dec) == (candidate["ra"], candidate["dec"])
        for band, name in zip(item.pixels, CUTOUTS, strict=True):
            packed = record[f"cutout{name.capitalize()}"]["stampData"]
            with quiet_astropy(), pyfits.open(BytesIO(gzip.decompress(packed))) as hdus:
                expected = hdus[0].data.astype(np.float32)
            if expected.shape == (63, 63):
                assert band.tobytes() == expected.tobytes()
            else:  # cut at the edge of a detector: the same pixels, and padding
                assert expected.shape < (63, 63)
                np.testing.assert_array_equal(
                    np.sort(band[~np.isnan(band)]), np.sort(expected[~np.isnan(expected)])
                )


@pytest.mark.real_data
def test_real_alerts_cut_at_a_detector_edge_keep_their_object_in_the_middle(read_folder):
    stamps = [*read_folder("ztf_alerts"), *read_folder("ztf_alerts_edge_cases")]
    n_cut = n_centred = 0
    for stamp in stamps:
        if isinstance(stamp, Reject):
            continue
        missing = np.isnan(stamp.pixels).all(axis=0)
        if not (missing[[0, -1]].all(axis=1).any() or missing[:, [0, -1]].all(axis=0).any()):
            continue
        n_cut += 1
        difference = np.nan_to_num(np.abs(stamp.pixels[2]))
        row, column = np.unravel_index(difference.argmax(), difference.shape)
        n_centred += max(abs(row - 31), abs(column - 31)) <= 1
    # In five of them another source is the brightest; padding both sides alike would keep 16.
    assert (n_cut, n_centred) == (28, 23)
