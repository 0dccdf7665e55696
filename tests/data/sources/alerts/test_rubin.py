"""Rubin's packets: cutouts of any size as CCDData writes them, in files and in messages."""

import json
import random
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from astropy import units
from astropy.io import fits as pyfits
from astropy.nddata import CCDData, InverseVariance, StdDevUncertainty, VarianceUncertainty

from vae_astro.data.sources.alerts.rubin import RubinReader
from vae_astro.data.sources.fits.headers import quiet_astropy
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Reject, Stamp
from vae_astro.errors import InputError

RNG = np.random.default_rng(65)
CUTOUTS = ("science", "template", "difference")
OPTIONAL_LONG, OPTIONAL_FLOAT = ["null", "long"], ["null", "float"]


def fields(**kinds: Any) -> list[dict[str, Any]]:
    return [
        {"name": name, "type": kind} | ({"default": None} if isinstance(kind, list) else {})
        for name, kind in kinds.items()
    ]


DIA_SOURCE = {
    "type": "record",
    "namespace": "lsst.v10_0",
    "name": "diaSource",
    "fields": fields(
        diaSourceId="long",
        visit="long",
        diaObjectId=OPTIONAL_LONG,
        ssObjectId=OPTIONAL_LONG,
        ra="double",
        dec="double",
        x="float",
        y="float",
        ixxPSF=OPTIONAL_FLOAT,
        iyyPSF=OPTIONAL_FLOAT,
        band=["null", "string"],
    ),
}
SCHEMA = {
    "type": "record",
    "namespace": "lsst.v10_0",
    "name": "alert",
    "fields": [
        {"name": "diaSourceId", "type": "long"},
        {"name": "diaSource", "type": DIA_SOURCE},
        *fields(
            prvDiaSources=["null", {"type": "array", "items": "lsst.v10_0.diaSource"}],
            cutoutDifference=["null", "bytes"],
            cutoutScience=["null", "bytes"],
            cutoutTemplate=["null", "bytes"],
        ),
    ],
}
SOURCE = {
    "diaSourceId": 77,
    "visit": 1,
    "diaObjectId": 5,
    "ssObjectId": None,
    "ra": 10.5,
    "dec": -3.25,
    "x": 100.0,
    "y": 200.0,
    "ixxPSF": 0.16,
    "iyyPSF": 0.16,
    "band": "r",
}


def image(shape: tuple[int, int] = (30, 30)) -> np.ndarray:
    return RNG.normal(100, 10, shape).astype(np.float32)


IMAGES = {name: image() for name in CUTOUTS}


def cutout(pixels: np.ndarray, **planes: Any) -> bytes:
    """A cutout as the pipeline writes it; `edit` changes the list of HDUs before."""
    edit = planes.pop("edit", None)
    with quiet_astropy():
        hdus = CCDData(pixels, unit=units.nJy, psf=np.ones((5, 5)), **planes).to_hdu()
        if edit is not None:
            edit(hdus)
        stream = BytesIO()
        hdus.writeto(stream)
    return stream.getvalue()


def alert(**changes: Any) -> dict[str, Any]:
    record = {"diaSourceId": 77, "diaSource": SOURCE, "prvDiaSources": [SOURCE] * 3}
    return record | {f"cutout{n.capitalize()}": cutout(IMAGES[n]) for n in CUTOUTS} | changes


def packet(*records: dict[str, Any], codec: str = "null", schema: Any = SCHEMA) -> bytes:
    stream = BytesIO()
    fastavro.writer(stream, fastavro.parse_schema(schema), records, codec)
    return stream.getvalue()


def message(record: dict[str, Any], number: int = 702) -> bytes:
    stream = BytesIO()
    stream.write(b"\0" + number.to_bytes(4, "big"))
    fastavro.schemaless_writer(stream, fastavro.parse_schema(SCHEMA), record)
    return stream.getvalue()


@pytest.fixture
def read(tmp_path, read_all):
    folder = tmp_path / "packets"
    folder.mkdir()

    def read(raw: bytes, **settings: Any) -> list[Any]:
        (folder / "a.avro").write_bytes(raw)
        return read_all(RubinReader(**settings), folder)

    return read


def only(found: list[Any]) -> Any:
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def schema_file(tmp_path: Path) -> str:
    path = tmp_path / "lsst.v10_0.alert.avsc"
    path.write_text(json.dumps(SCHEMA))
    return str(path)


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
def test_a_packet_becomes_one_stamp_with_its_cutouts_as_bands(read, codec):
    stamp = only(read(packet(alert(), codec=codec)))
    assert stamp.pixels.tobytes() == np.stack([IMAGES[name] for name in CUTOUTS]).tobytes()
    assert (stamp.id, stamp.object_id, stamp.source) == ("77", "5", "a.avro")
    assert (stamp.ra, stamp.dec, stamp.noise) == (10.5, -3.25, None)
    # 0.4 arcsec of sigma in pixels of 0.2
    assert stamp.seeing == pytest.approx(2 * 2.3548, rel=1e-4)


@pytest.mark.parametrize("shape", [(30, 30), (31, 31), (64, 64), (200, 200), (35, 30)])
def test_cutouts_of_every_size_are_cropped_or_padded_around_their_centre(read, shape):
    pixels = image(shape)
    alike = {f"cutout{n.capitalize()}": cutout(pixels) for n in CUTOUTS}
    stamp = only(read(packet(alert(**alike)), size=48))
    assert stamp.pixels.shape == (3, 48, 48)
    assert stamp.pixels[0, 24, 24] == pixels[shape[0] // 2, shape[1] // 2]
    assert np.isfinite(stamp.pixels[0]).sum() == min(shape[0], 48) * min(shape[1], 48)


def test_alerts_of_several_sizes_share_a_file(read):
    records = [
        alert(diaSource=SOURCE | {"diaSourceId": n}, cutoutScience=cutout(image((n, n))))
        for n in (30, 45, 64)
    ]
    stamps = read(packet(*records), cutouts=["science"])
    assert [stamp.id for stamp in stamps] == ["30", "45", "64"]
    assert [stamp.source for stamp in stamps] == [f"a.avro[{k}]" for k in range(3)]
    assert all(np.isfinite(stamp.pixels).all() for stamp in stamps)


@pytest.mark.parametrize(
    ("uncertainty", "expected"),
    [(StdDevUncertainty, 4.0), (VarianceUncertainty, 2.0), (InverseVariance, 0.5)],
)
def test_uncertainties_of_every_kind_become_noise(read, uncertainty, expected):
    values = np.full((30, 30), 4.0, np.float32)
    values[3, 4] = 0.0
    changes = {
        f"cutout{n.capitalize()}": cutout(IMAGES[n], uncertainty=uncertainty(values))
        for n in CUTOUTS
    }
    reader = RubinReader(noise=True)
    assert reader.has_noise
    stamp = only(read(packet(alert(**changes)), noise=True))
    assert stamp.noise.shape == (3, 30, 30)
    good = np.isfinite(stamp.noise)
    assert (stamp.noise[good] == expected).all()
    assert not good[:, 3, 4].any()
    assert np.isnan(stamp.pixels[:, 3, 4]).all()
    assert good.sum() == 3 * (900 - 1)
    np.testing.assert_array_equal(stamp.pixels[1][good[1]], IMAGES["template"][good[1]])


def test_an_uncertainty_without_a_type_is_a_standard_deviation(read):
    def forget_type(hdus: pyfits.HDUList) -> None:
        del hdus["UNCERT"].header["UTYPE"]

    uncertainty = StdDevUncertainty(np.full((30, 30), 4.0, np.float32))
    science = cutout(IMAGES["science"], uncertainty=uncertainty, edit=forget_type)
    stamp = only(read(packet(alert(cutoutScience=science)), noise=True, cutouts=["science"]))
    assert (stamp.noise == 4.0).all()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda hdus: hdus.pop(1), "no noise"),
        (lambda hdus: hdus[1].header.set("UTYPE", "Other"), "no noise"),
        (
            lambda hdus: hdus.__setitem__(1, pyfits.ImageHDU(np.ones((9, 9)), name="UNCERT")),
            "plane of another shape",
        ),
        (
            lambda hdus: hdus.__setitem__(1, pyfits.CompImageHDU(np.ones((30, 30), np.int16),
                                                                 name="UNCERT")),
            "not a plane",
        ),
    ],
)  # fmt: skip
def test_a_noise_that_cannot_be_used_is_a_reject(read, edit, reason):
    uncertainty = VarianceUncertainty(np.ones((30, 30), np.float32))
    science = cutout(IMAGES["science"], uncertainty=uncertainty, edit=edit)
    reject = only(read(packet(alert(cutoutScience=science)), noise=True, cutouts=["science"]))
    assert (reject.source, reject.reason) == ("a.avro", reason)
    assert "cutoutScience" in reject.detail


def mask_of_bits(hdus: pyfits.HDUList) -> None:
    plane = np.zeros((30, 30), np.int32)
    plane[0, 0], plane[1, 1] = 1, 32  # BAD, and DETECTED: the object itself
    hdus["MASK"] = pyfits.ImageHDU(plane, name="MASK")


def test_masked_pixels_are_nan(read):
    mask = np.zeros((30, 30), bool)
    mask[5:8, 6] = True
    science = cutout(IMAGES["science"], mask=mask)
    stamp = only(read(packet(alert(cutoutScience=science))))
    np.testing.assert_array_equal(np.isnan(stamp.pixels[0]), mask)
    assert np.isfinite(stamp.pixels[1:]).all()
    whole = only(read(packet(alert(cutoutScience=science)), mask_hdu=None))
    assert np.isfinite(whole.pixels).all()


def test_bits_of_the_mask_are_chosen(read):
    science = cutout(IMAGES["science"], mask=np.zeros((30, 30), bool), edit=mask_of_bits)
    raw = packet(alert(cutoutScience=science))
    assert np.argwhere(np.isnan(only(read(raw)).pixels[0])).tolist() == [[0, 0], [1, 1]]
    chosen = only(read(raw, mask_bits=[0, 1, 8]))
    assert np.argwhere(np.isnan(chosen.pixels[0])).tolist() == [[0, 0]]
    other = only(read(raw, mask_hdu="flags"))
    assert np.isfinite(other.pixels).all()


def test_a_message_is_read_by_the_schema_that_is_given(read, schema_file):
    stamp = only(read(message(alert()), schema=schema_file))
    assert stamp.pixels.tobytes() == np.stack([IMAGES[name] for name in CUTOUTS]).tobytes()
    assert (stamp.id, stamp.source) == ("77", "a.avro")


def test_a_message_without_its_schema_says_what_to_give(read):
    reject = only(read(message(alert(), number=702)))
    assert reject.reason == "schema not in the file"
    assert "schema 702" in reject.detail
    assert "data.schema=" in reject.detail


def test_a_message_of_another_schema_or_cut_short_is_a_reject(read, schema_file):
    assert only(read(message(alert())[:-9], schema=schema_file)).reason == "truncated file"
    longer = only(read(message(alert()) + b"more", schema=schema_file))
    assert longer.reason == "unreadable"
    assert "another schema" in longer.detail


def test_a_schema_may_refer_to_files_beside_it(tmp_path, read):
    folder = tmp_path / "schemas"
    folder.mkdir()
    outer = json.loads(json.dumps(SCHEMA))
    outer["fields"][1]["type"] = "lsst.v10_0.diaSource"
    (folder / "lsst.v10_0.alert.avsc").write_text(json.dumps(outer))
    (folder / "lsst.v10_0.diaSource.avsc").write_text(json.dumps(DIA_SOURCE))
    settings = {"schema": str(folder / "lsst.v10_0.alert.avsc")}
    assert only(read(message(alert()), **settings)).id == "77"


def test_a_schema_that_cannot_be_read_is_the_users_error(tmp_path):
    (tmp_path / "a.avro").write_bytes(message(alert()))
    (tmp_path / "bad.avsc").write_text("{}")
    for name in ("bad.avsc", "gone.avsc"):
        with pytest.raises(InputError, match=rf"data\.schema=.*{name}"):
            RubinReader(schema=str(tmp_path / name)).find(open_root(str(tmp_path)))


def test_an_early_packet_has_its_own_names(read):
    source = [field for field in DIA_SOURCE["fields"] if field["name"] != "dec"]
    schema = {
        "type": "record",
        "name": "alert",
        "fields": [
            *fields(alertId="long"),
            {
                "name": "diaSource",
                "type": DIA_SOURCE | {"fields": source + fields(decl="double")},
            },
            *fields(cutoutDifference=["null", "bytes"], cutoutTemplate=["null", "bytes"]),
        ],
    }
    record = alert(alertId=9)
    record["diaSource"] = SOURCE | {"decl": 45.0, "diaObjectId": None, "ssObjectId": 4}
    raw = packet(record, schema=schema)
    stamp = only(read(raw, cutouts=["template", "difference"]))
    assert (stamp.dec, stamp.id, stamp.object_id) == (45.0, "77", "4")
    reject = only(read(raw))
    assert reject.reason == "missing cutout"
    assert "cutoutScience" in reject.detail


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ({"ixxPSF": None}, {}),
        ({"ixxPSF": -1.0}, {}),
        ({"ixxPSF": float("nan")}, {}),
        ({"ixxPSF": 4.0, "iyyPSF": 4.0}, {}),  # of pixels, perhaps
        ({}, {"pixel_scale_arcsec": None}),
    ],
)
def test_an_unknown_seeing_is_nan(read, source, settings):
    stamp = only(read(packet(alert(diaSource=SOURCE | source)), **settings))
    assert np.isnan(stamp.seeing)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cutoutTemplate": None}, "missing cutout"),
        ({"cutoutTemplate": b"\x89PNG\r\n and so on"}, "cutout is not FITS"),
        ({"cutoutTemplate": cutout(IMAGES["template"])[:4000]}, "truncated file"),
        ({"diaSourceId": 0, "diaSource": SOURCE | {"diaSourceId": 0}}, "no identifier"),
        (
            {f"cutout{n.capitalize()}": cutout(np.full((30, 30), np.nan, "f4")) for n in CUTOUTS},
            "all pixels bad",
        ),
    ],
)
def test_an_alert_that_cannot_be_used_is_a_reject(read, changes, reason):
    assert only(read(packet(alert(**changes)))).reason == reason


def test_damaged_packets_and_messages_never_raise(read, schema_file):
    rng = random.Random(11)
    uncertainty = VarianceUncertainty(np.ones((30, 30), np.float32))
    science = cutout(IMAGES["science"], uncertainty=uncertainty, mask=np.eye(30) > 0)
    settings = {"schema": schema_file, "noise": True, "cutouts": ["science"]}
    record = alert(cutoutScience=science)
    for whole in (packet(record), message(record)):
        start = whole.index(b"SIMPLE")
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(rng.choice([1, 3])):
                place = rng.randrange(start + 6000) if rng.random() < 0.5 else start
                damaged[place + rng.randrange(80)] = rng.choice([0, 32, 48, 0x80, 0xFF])
            for item in read(bytes(damaged), **settings):
                assert isinstance(item, Stamp | Reject)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"cutouts": ["calexp"]}, "data.cutouts"),
        ({"size": 5000}, "data.size"),
        ({"noise": "yes"}, "data.noise"),
        ({"mask_hdu": " "}, "data.mask_hdu"),
        ({"mask_bits": [-1]}, "data.mask_bits"),
        ({"schema": ""}, "data.schema"),
        ({"pixel_scale_arcsec": 0}, "data.pixel_scale_arcsec"),
        ({"max_cutout_bytes": 0}, "data.max_cutout_bytes"),
    ],
)
def test_a_setting_out_of_range_names_its_key(settings, key):
    with pytest.raises(InputError, match=key):
        RubinReader(**settings)
