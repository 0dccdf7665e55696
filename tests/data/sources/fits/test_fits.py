"""FITS stamps read back as astropy gives them, and bad files become rejects, never exceptions."""

import bz2
import gzip
import os
import random
import time
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from astropy import wcs as astropy_wcs
from astropy.io import fits as pyfits

from vae_astro.data.sources import files as files_module
from vae_astro.data.sources.fits import reader as fits_module
from vae_astro.data.sources.fits.reader import FitsReader
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Reject, Stamp
from vae_astro.errors import InputError

RNG = np.random.default_rng(63)
FLOATS = RNG.normal(100, 10, (63, 61)).astype(np.float32)
INTEGERS = RNG.integers(-30000, 30000, (63, 61)).astype(np.int16)
WCS = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 150.0,
    "CRVAL2": 2.0,
    "CRPIX1": 31.0,  # the middle of 61 columns and, below, of 63 rows
    "CRPIX2": 32.0,
    "CDELT1": -1e-4,
    "CDELT2": 1e-4,
}


def file_bytes(*hdus) -> bytes:
    stream = BytesIO()
    pyfits.HDUList(list(hdus)).writeto(stream)
    return stream.getvalue()


def image_bytes(pixels=FLOATS, **cards) -> bytes:
    return file_bytes(pyfits.PrimaryHDU(pixels, pyfits.Header(cards)))


def many_images() -> bytes:
    return file_bytes(
        pyfits.PrimaryHDU(),
        pyfits.ImageHDU(FLOATS, name="SCI"),
        pyfits.BinTableHDU.from_columns([pyfits.Column("a", "J", array=[1, 2])], name="CAT"),
        pyfits.ImageHDU(INTEGERS, name="MASK"),
    )


def with_cards(raw: bytes, **values: int) -> bytes:
    """Overwrite integer cards where they stand, also with values astropy would not write."""
    for keyword, value in values.items():
        at = raw.index(f"{keyword:8}=".encode())
        raw = raw[:at] + f"{keyword:8}= {value:20d}".encode() + raw[at + 30 :]
    return raw


@pytest.fixture
def read(tmp_path, read_all):
    """Write bytes to a file below the root and read it."""

    def read(raw: bytes, name: str = "m31.fits", **settings) -> list[Stamp | Reject]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        return read_all(FitsReader(**settings), tmp_path)

    return read


def only(found: list[Stamp | Reject]) -> Stamp | Reject:
    assert len(found) == 1, found
    return found[0]


def assert_same_bits(pixels: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit for bit, and what a network wants: native float32, contiguous, writeable."""
    assert pixels.dtype == np.dtype(np.float32)
    assert pixels.dtype.isnative
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    expected = np.ascontiguousarray(expected, dtype=np.float32)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.tobytes() == expected.tobytes()


# Pixels


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8", ">i2", "<i2", ">i4", ">i8", "u1"])
def test_every_pixel_type_equals_astropy_bit_for_bit(read, tmp_path, dtype):
    values = (FLOATS if "f" in dtype else np.abs(INTEGERS) % 200).astype(dtype)
    stamp = only(read(image_bytes(values)))
    assert stamp.pixels.shape == (1, 63, 61)
    assert_same_bits(stamp.pixels[0], values)
    assert_same_bits(stamp.pixels[0], pyfits.getdata(tmp_path / "m31.fits"))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_unsigned_integers_come_back_positive(read, dtype):
    values = RNG.integers(0, np.iinfo(dtype).max, (8, 8), dtype=dtype)
    assert_same_bits(only(read(image_bytes(values))).pixels[0], values)


@pytest.mark.parametrize("dtype", ["i2", "i4", "u1"])
def test_scaled_integers_equal_astropy_bit_for_bit(read, tmp_path, dtype):
    raw = image_bytes(np.abs(INTEGERS % 100).astype(dtype))
    scale = f"{'BSCALE  =                 0.25':80}{'BZERO   =                  1.5':80}".encode()
    end = raw.index(b"END" + b" " * 77)
    raw = raw[:end] + scale + raw[end : end + 80] + raw[end + 240 :]
    stamp = only(read(raw))
    np.testing.assert_array_equal(stamp.pixels[0], np.abs(INTEGERS % 100) * 0.25 + 1.5)
    assert_same_bits(stamp.pixels[0], pyfits.getdata(tmp_path / "m31.fits"))


@pytest.mark.parametrize("blank", [-99, 0])
def test_blank_pixels_are_nan_even_where_blank_is_zero(read, blank):
    values = np.array([[1, blank], [-7, 3]], dtype=np.int16)
    pixels = only(read(image_bytes(values, BLANK=blank))).pixels[0]
    assert_same_bits(pixels, np.array([[1, np.nan], [-7, 3]], dtype=np.float32))


def test_blank_pixels_of_an_unsigned_image_are_nan(read):
    values = np.array([[0, 40000], [65535, 5]], dtype=np.uint16)
    pixels = only(read(image_bytes(values, BLANK=-32768))).pixels[0]
    assert_same_bits(pixels, np.array([[np.nan, 40000], [65535, 5]], dtype=np.float32))


def test_a_float64_beyond_float32_becomes_infinite_in_silence(read):
    values = np.array([[1e300, 1.0], [-1e300, np.nan]])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32)
    assert_same_bits(only(read(image_bytes(values))).pixels[0], expected)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("m31.fits.gz", gzip.compress),
        ("m31.fit.gz", gzip.compress),
        ("m31.FTS", bytes),
        ("m31.fits.bz2", bz2.compress),
        ("m31.fits", gzip.compress),  # packed, but not named so
    ],
)
def test_packed_files_give_the_same_pixels(read, tmp_path, name, pack):
    stamp = only(read(pack(image_bytes()), name))
    assert_same_bits(stamp.pixels[0], FLOATS)
    assert (stamp.id, stamp.object_id, stamp.source) == ("m31", "m31", name)


@pytest.mark.parametrize("algorithm", ["RICE_1", "GZIP_1", "GZIP_2", "PLIO_1"])
def test_tile_compressed_files_equal_astropy_bit_for_bit(read, tmp_path, algorithm):
    values = FLOATS.astype(np.int16) if algorithm == "PLIO_1" else INTEGERS
    compressed = pyfits.CompImageHDU(values, compression_type=algorithm)
    stamp = only(read(file_bytes(pyfits.PrimaryHDU(), compressed), "m31.fits.fz"))
    assert_same_bits(stamp.pixels[0], values)
    assert_same_bits(stamp.pixels[0], pyfits.getdata(tmp_path / "m31.fits.fz"))
    assert (stamp.id, stamp.source) == ("m31", "m31.fits.fz")


def test_a_lossy_rice_image_equals_astropys_decompression(read, tmp_path):
    lossy = pyfits.CompImageHDU(FLOATS, compression_type="RICE_1", quantize_level=4)
    stamp = only(read(file_bytes(pyfits.PrimaryHDU(), lossy), "m31.fits.fz"))
    assert not np.array_equal(stamp.pixels[0], FLOATS)
    assert_same_bits(stamp.pixels[0], pyfits.getdata(tmp_path / "m31.fits.fz"))


def test_hcompress_is_refused_because_its_decoder_can_crash(read):
    compressed = pyfits.CompImageHDU(INTEGERS, compression_type="HCOMPRESS_1")
    reject = only(read(file_bytes(pyfits.PrimaryHDU(), compressed), "m31.fits.fz"))
    assert reject.reason == "unsupported compression"
    assert "funpack" in reject.detail


def test_a_file_too_large_for_memory_is_read_from_disk(read, monkeypatch):
    monkeypatch.setattr(fits_module, "IN_MEMORY_BYTES", 1000)
    cube = RNG.normal(size=(9, 5, 7)).astype(np.float32)
    stamps = read(image_bytes(cube))
    assert_same_bits(np.concatenate([stamp.pixels for stamp in stamps]), cube)


# Extensions and cubes


def test_each_image_extension_is_a_stamp_that_names_its_number(read):
    first, second = read(many_images())
    assert_same_bits(first.pixels[0], FLOATS)
    assert_same_bits(second.pixels[0], INTEGERS)
    assert [first.source, second.source] == ["m31.fits[1]", "m31.fits[3]"]
    assert [first.id, second.id] == ["m31[1]", "m31[3]"]
    assert first.object_id != second.object_id


@pytest.mark.parametrize("hdu", [3, "MASK", "mask"])
def test_one_extension_is_chosen_by_number_or_name(read, hdu):
    stamp = only(read(many_images(), hdu=hdu))
    assert_same_bits(stamp.pixels[0], INTEGERS)
    assert stamp.source == "m31.fits[3]"


@pytest.mark.parametrize("hdu", [7, "WEIGHT"])
def test_a_missing_extension_is_rejected_with_those_there_are(read, hdu):
    reject = only(read(many_images(), hdu=hdu))
    assert reject.reason == "no such HDU"
    for word in ("m31.fits", f"data.hdu={hdu}", "1 SCI", "3 MASK"):
        assert word in reject.detail


@pytest.mark.parametrize("hdu", [0, 2, "CAT"])
def test_an_extension_without_an_image_is_rejected(read, hdu):
    assert only(read(many_images(), hdu=hdu)).reason == "no image"


@pytest.mark.parametrize(
    ("shape", "cube", "n_stamps", "stamp_shape"),
    [
        ((6, 5, 4), "auto", 1, (6, 5, 4)),
        ((7, 5, 4), "auto", 7, (1, 5, 4)),
        ((7, 5, 4), "bands", 1, (7, 5, 4)),
        ((3, 5, 4), "stamps", 3, (1, 5, 4)),
        ((1, 5, 4), "stamps", 1, (1, 5, 4)),
        ((8, 3, 5, 4), "auto", 8, (3, 5, 4)),
        ((2, 7, 5, 4), "bands", 2, (7, 5, 4)),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_cubes_become_bands_or_stamps(read, shape, cube, n_stamps, stamp_shape, compressed):
    pixels = RNG.integers(0, 1000, shape).astype(np.int32)
    raw = image_bytes(pixels)
    if compressed:
        tiles = (1,) * (len(shape) - 2) + shape[-2:]
        raw = file_bytes(pyfits.PrimaryHDU(), pyfits.CompImageHDU(pixels, tile_shape=tiles))
    # Two stamps at a time at most, so that reading in blocks is exercised too.
    stamps = read(raw, cube=cube, max_pixels=2 * int(np.prod(stamp_shape)))
    assert len(stamps) == n_stamps
    for k, stamp in enumerate(stamps):
        assert_same_bits(stamp.pixels, pixels.reshape(n_stamps, *stamp_shape)[k])
        assert stamp.pixels.base is None or stamp.pixels.base.size == stamp.pixels.size
        place = f"[{int(compressed)}][{k}]" if n_stamps > 1 else ""
        assert stamp.source == f"m31.fits{place}"
        assert stamp.id == f"m31{place}"


def test_a_bad_plane_is_rejected_and_its_neighbours_are_read(read):
    cube = np.ones((8, 4, 4), dtype=np.float32)
    cube[3] = np.nan
    found = read(image_bytes(cube))
    assert [type(item) for item in found] == [Stamp] * 3 + [Reject] + [Stamp] * 4
    assert (found[3].source, found[3].reason) == ("m31.fits[0][3]", "all pixels bad")


# Header facts


def test_identifier_label_and_position_are_read_from_the_header(read):
    cards = {"OBJID": "NGC 224 ", "CLASS": "galaxy", "RA": 10.6847, "DEC": 41.269}
    stamp = only(read(image_bytes(**cards)))
    assert (stamp.id, stamp.object_id, stamp.label) == ("NGC 224", "NGC 224", "galaxy")
    assert (stamp.ra, stamp.dec) == (10.6847, 41.269)


def test_keywords_can_be_chosen(read):
    raw = image_bytes(OBJID="a", MYID=17, CLASS="b", KIND="c")
    stamp = only(read(raw, id_keyword="MYID", label_keyword="KIND"))
    assert (stamp.id, stamp.label) == ("17", "c")


def test_a_missing_label_is_empty_and_a_missing_identifier_is_rejected(read):
    assert only(read(image_bytes(), label_keyword="KIND")).label == ""
    reject = only(read(image_bytes(OBJID="a"), id_keyword="MYID"))
    assert reject.reason == "no identifier"
    assert "data.id_keyword" in reject.detail


def test_planes_of_a_named_cube_share_their_object(read):
    stamps = read(image_bytes(np.ones((7, 4, 4)), OBJID="v1", LABEL="mira"))
    assert [stamp.id for stamp in stamps] == [f"v1[{k}]" for k in range(7)]
    assert {stamp.object_id for stamp in stamps} == {"v1"}
    assert {stamp.label for stamp in stamps} == {"mira"}


def test_extensions_inherit_from_the_primary_header(read):
    primary = pyfits.PrimaryHDU(header=pyfits.Header({"OBJID": "v1", "RA": 5.0, "DEC": 6.0}))
    plain, with_wcs = pyfits.ImageHDU(FLOATS), pyfits.ImageHDU(FLOATS, pyfits.Header(WCS))
    first, second = read(file_bytes(primary, plain, with_wcs))
    assert [first.id, second.id] == ["v1[1]", "v1[2]"]
    assert first.object_id == second.object_id == "v1"
    assert (first.ra, first.dec) == (5.0, 6.0)
    # Its own WCS is worth more than where the telescope pointed.
    assert (second.ra, second.dec) == pytest.approx((150.0, 2.0), abs=1e-9)


def test_the_wcs_gives_the_position_of_the_central_pixel(read):
    stamp = only(read(image_bytes(**WCS)))
    assert (stamp.ra, stamp.dec) == pytest.approx((150.0, 2.0), abs=1e-9)
    # One row up is 0.36 arcsec north: rows are counted upwards and columns to the west.
    moved = only(read(image_bytes(**{**WCS, "CRPIX2": 31.0})))
    assert moved.dec == pytest.approx(2.0001, abs=1e-9)


def test_a_wcs_in_another_frame_is_turned_to_icrs(read):
    galactic = {**WCS, "CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN", "CRVAL1": 0.0, "CRVAL2": 90.0}
    stamp = only(read(image_bytes(**galactic)))
    # The north galactic pole, IAU 1958 as refined for ICRS.
    assert (stamp.ra, stamp.dec) == pytest.approx((192.85948, 27.12825), abs=1e-4)


@pytest.mark.parametrize(
    ("ra", "dec", "expected"),
    [
        ("00:42:44.3", "+41:16:09", (10.684583, 41.269167)),
        ("00h42m44.3s", "41d16m09s", (10.684583, 41.269167)),
        ("10.5", "-3.25", (10.5, -3.25)),
        (-10.0, 0.0, (350.0, 0.0)),
        (-999.0, -999.0, (np.nan, np.nan)),
        ("unknown", "n/a 7", (np.nan, np.nan)),
        (12.0, 95.0, (np.nan, np.nan)),
    ],
)
def test_positions_are_degrees_sexagesimal_or_unknown(read, ra, dec, expected):
    stamp = only(read(image_bytes(RA=ra, DEC=dec)))
    np.testing.assert_allclose((stamp.ra, stamp.dec), expected, atol=1e-6)


@pytest.mark.parametrize(
    "cards",
    [
        {"CRVAL1": -250.0},
        {"RADESYS": "FK5", "EQUINOX": 1975.0},
        {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": 2.0, "CRVAL2": 150.0},
        {"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN", "CUNIT1": "degree", "CUNIT2": "degree"},
        {  # SIP
            "CTYPE1": "RA---TAN-SIP",
            "CTYPE2": "DEC--TAN-SIP",
            "A_ORDER": 2,
            "A_2_0": 1e-3,
            "B_ORDER": 2,
            "B_0_2": 2e-3,
        },
        {"PV1_1": 1.0, "PV1_5": 900.0, "PV2_1": 1.0, "PV2_5": 700.0},  # SCAMP before 2012
    ],
)
def test_the_position_equals_astropys_for_every_kind_of_wcs(read, cards):
    # The middle of the image lies off the reference pixel, so a distortion that is lost is seen.
    header = pyfits.Header({**WCS, "CRPIX1": 1.0, "CRPIX2": 1.0, **cards})
    stamp = only(read(image_bytes(**header)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        centre = astropy_wcs.WCS(header).pixel_to_world(30, 31).icrs
    assert (stamp.ra, stamp.dec) == pytest.approx((centre.ra.deg, centre.dec.deg), abs=1e-10)


@pytest.mark.parametrize(
    "cards",
    [{"CRVAL1": None}, {"CRVAL1": "150.0"}, {"CRVAL2": "unknown"}, {"CDELT1": 0.0}],
)
def test_a_wcs_without_a_reference_value_or_scale_is_no_position(read, cards):
    stamp = only(read(image_bytes(**{**WCS, **cards})))
    assert np.isnan([stamp.ra, stamp.dec]).all()


def test_a_wcs_that_claims_many_axes_costs_the_position_only(read):
    stamp = only(read(with_cards(image_bytes(WCSAXES=2, **WCS), WCSAXES=99999)))
    assert np.isnan(stamp.ra)
    assert_same_bits(stamp.pixels[0], FLOATS)


# The seeing


def with_comments(**cards) -> bytes:
    """An image whose header has these cards, (value, comment) or a value."""
    header = pyfits.Header()
    for keyword, card in cards.items():
        header[keyword] = card
    return file_bytes(pyfits.PrimaryHDU(FLOATS, header))


CD = {key: value for key, value in WCS.items() if not key.startswith("CDELT")} | {
    "CD1_1": -1.2e-4,
    "CD1_2": 1.6e-4,
    "CD2_1": 1.6e-4,
    "CD2_2": 1.2e-4,  # turned; the side of a pixel is 2e-4 degrees
}


@pytest.mark.parametrize(
    ("cards", "seeing"),
    [
        ({"SEEING": (2.5, "[pix] FWHM of stars")}, 2.5),
        ({"SEEING": (2.5, "mean FWHM in Pixels")}, 2.5),
        ({"SEEING": (1.8, "[arcsec] FWHM"), "PIXSCALE": 0.6}, 3.0),
        ({"SEEING": 1.8, "SECPIX1": 0.6}, 3.0),  # without a unit: arcsec
        ({"SEEING": "1.8", "PIXSCALE": "0.6"}, 3.0),
        ({"SEEING": (1.8, "arcseconds"), **WCS}, 5.0),  # 0.36 arcsec a pixel
        ({"SEEING": (1.8, "arcseconds"), **WCS, "PIXSCALE": 0.6}, 5.0),  # the WCS is measured
        ({"SEEING": (1.8, "arcseconds"), **CD}, 2.5),
        ({"SEEING": (1.8, "arcsec"), **WCS, "PC1_1": 2.0, "PC2_2": 2.0}, 2.5),
        ({"SEEING": (1.8, "arcsec"), **WCS, "CUNIT1": "arcsec", "CUNIT2": "arcsec"}, np.nan),
        ({"FWHM": (3.2, "[pixel] of the PSF")}, 3.2),
        ({"L1FWHM": (2.0, "[arcsec] Frame FWHM"), "PIXSCALE": 0.4}, 5.0),
        ({"SEEING": -999.0, "PSF_FWHM": (4.0, "pixels")}, 4.0),
    ],
)
def test_the_seeing_is_read_in_pixels(read, cards, seeing):
    assert only(read(with_comments(**cards))).seeing == pytest.approx(seeing, nan_ok=True)


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"SEEING": 1.8},  # arcsec, and no pixel scale
        {"SEEING": 1.8, "CDELT1": 1.0, "CDELT2": 1.0},  # no celestial axes
        {"SEEING": 1.8, **WCS, "CDELT1": 0.0},
        {"SEEING": (1.8, "arcsec"), "PIXSCALE": 0.0},
        {"SEEING": (1.8, "arcsec"), "PIXSCALE": -0.4},
        {"SEEING": (1.8, "pixels of 0.4 arcsec"), "PIXSCALE": 0.4},  # which of the two?
        {"FWHM": 3.2, "PIXSCALE": 0.4},  # in pixels or in arcsec?
        {"SEEING": "good", "PIXSCALE": 0.4},
        {"SEEING": True, "PIXSCALE": 0.4},
        {"SEEING": None, "PIXSCALE": 0.4},
        {"SEEING": 0.0, "PIXSCALE": 0.4},
        {"SEEING": (-1.0, "[pix]")},
        {"SEEING": (4000.0, "[pix]")},
    ],
)
def test_a_seeing_that_cannot_be_told_is_nan_and_costs_nothing_else(read, cards):
    stamp = only(read(with_comments(**cards)))
    assert np.isnan(stamp.seeing)
    assert_same_bits(stamp.pixels[0], FLOATS)


def test_the_seeing_of_the_primary_header_holds_for_extensions_without_their_own(read):
    primary = pyfits.PrimaryHDU(header=pyfits.Header({"SEEING": 1.8}))
    own = pyfits.ImageHDU(FLOATS, pyfits.Header(WCS))
    own.header["SEEING"] = (3.0, "[pix]")
    first, second = read(file_bytes(primary, pyfits.ImageHDU(FLOATS, pyfits.Header(WCS)), own))
    assert first.seeing == pytest.approx(5.0)
    assert second.seeing == 3.0


def test_the_seeing_survives_tile_compression(read):
    header = pyfits.Header()
    header["SEEING"] = (2.5, "[pix]")
    packed = pyfits.CompImageHDU(FLOATS, header, compression_type="GZIP_2")
    assert only(read(file_bytes(pyfits.PrimaryHDU(), packed))).seeing == 2.5


# Rejects


@pytest.mark.parametrize(
    ("raw", "reason", "words"),
    [
        (b"", "empty file", "0 bytes"),
        (gzip.compress(b"", mtime=0), "empty file", "unpacked"),
        (b"x,y\n1,2\n", "not a FITS file", "x,y"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "not a FITS file", "JPEG"),
        (image_bytes()[:1000], "truncated file", "END"),
        (image_bytes()[:9000], "truncated file", "6120 bytes of pixels, the header claims 15372"),
        (gzip.compress(image_bytes())[:5000], "truncated file", "breaks off"),
        (image_bytes(None), "no image", "PRIMARY"),
        (image_bytes(np.arange(9.0)), "wrong dimensions", "(9,)"),
        (image_bytes(np.ones((1, 1, 1, 4, 4))), "wrong dimensions", "(1, 1, 1, 4, 4)"),
        (with_cards(image_bytes(), NAXIS1=0), "wrong dimensions", "(63, 0)"),
        (with_cards(image_bytes(np.ones((2, 2, 4, 4))), NAXIS3=0), "wrong dimensions", "(2, 0"),
        (image_bytes(np.full((4, 4), np.nan)), "all pixels bad", "16 pixels"),
        (with_cards(image_bytes(), BITPIX=7), "unreadable", "BITPIX is 7"),
        (with_cards(image_bytes(), NAXIS=-2), "no image", "PRIMARY"),
        (with_cards(image_bytes(), NAXIS1=-61), "unreadable", "m31.fits"),
    ],
)
def test_a_bad_file_is_rejected_with_what_was_found(read, raw, reason, words):
    reject = only(read(raw))
    assert isinstance(reject, Reject)
    assert (reject.source, reject.reason) == ("m31.fits", reason)
    assert words in reject.detail
    assert reject.detail.startswith("m31.fits")


def test_a_file_of_tables_is_rejected_with_what_it_holds(read):
    table = pyfits.BinTableHDU.from_columns([pyfits.Column("a", "J", array=[1])], name="CAT")
    reject = only(read(file_bytes(pyfits.PrimaryHDU(), table)))
    assert reject.reason == "no image"
    assert "1 CAT (BinTableHDU)" in reject.detail


@pytest.mark.parametrize("axes", [{"NAXIS1": 10**9, "NAXIS2": 10**9}, {"NAXIS2": 10**6}])
def test_a_huge_claim_is_refused_before_memory_is_taken(read, axes):
    start = time.monotonic()
    reject = only(read(with_cards(image_bytes(), **axes)))
    assert time.monotonic() - start < 1
    assert reject.reason == "too large"
    assert "data.max_pixels=16777216" in reject.detail


def test_a_compressed_file_is_not_unpacked_beyond_the_limit(read, monkeypatch):
    monkeypatch.setattr(files_module.unpack, "__defaults__", (2**20,))
    reject = only(read(gzip.compress(bytes(2**24)), "m31.fits.gz"))
    assert reject.reason == "too large"
    assert "1048576" in reject.detail


def test_missing_zeros_after_the_last_pixel_lose_nothing(read):
    raw = image_bytes()
    n_needed = raw.index(b"END") // 2880 * 2880 + 2880 + FLOATS.nbytes
    assert len(raw) > n_needed
    assert_same_bits(only(read(raw[:n_needed])).pixels[0], FLOATS)
    assert only(read(raw[: n_needed - 1])).reason == "truncated file"


def test_junk_after_the_last_image_is_ignored_but_a_broken_extension_is_reported(read):
    raw = many_images()
    assert len(read(raw + b"junk" * 2000)) == 2
    assert_same_bits(only(read(image_bytes() + RNG.bytes(9000))).pixels[0], FLOATS)
    table_at = raw.index(b"XTENSION= 'BINTABLE'")
    broken = raw[:table_at] + raw[table_at:].replace(b"BITPIX  ", b"BITPOX  ", 1)
    stamp, reject = read(broken)
    assert_same_bits(stamp.pixels[0], FLOATS)
    assert reject.reason == "unreadable"
    stamp, reject = read(raw[: table_at + 400])
    assert reject.reason == "truncated file"


def test_only_the_truncated_extension_of_a_file_is_lost(read):
    raw = many_images()
    stamp, reject = read(raw[:-2880])
    assert_same_bits(stamp.pixels[0], FLOATS)
    assert (reject.source, reject.reason) == ("m31.fits[3]", "truncated file")


def test_a_file_that_changed_or_vanished_since_it_was_listed_is_rejected(tmp_path):
    names = ["a.fits", "b.fits", "c.fits", "d.fits"]
    for name in names:
        (tmp_path / name).write_bytes(image_bytes())
    root = open_root(str(tmp_path))
    sources = FitsReader().find(root)
    (tmp_path / "b.fits").unlink()
    (tmp_path / "c.fits").write_bytes(image_bytes(INTEGERS))
    found = list(FitsReader().read(sources, root))
    # The stamps before and after come as blocks of one.
    sources_found = [item.source if isinstance(item, Reject) else item.source[0] for item in found]
    assert sources_found == names
    reasons = [getattr(item, "reason", "") for item in found]
    assert reasons == ["", "vanished", "changed", ""]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_rejected(read_all, tmp_path):
    (tmp_path / "m31.fits").write_bytes(image_bytes())
    (tmp_path / "m31.fits").chmod(0)
    assert only(read_all(FitsReader(), tmp_path)).reason == "vanished"


def test_a_pipe_is_rejected_and_not_waited_for(read_all, tmp_path):
    os.mkfifo(tmp_path / "pipe.fits")
    assert only(read_all(FitsReader(), tmp_path)).reason == "not a regular file"


def test_links_are_followed_inside_the_root_only(read_all, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside.fits"
    root.mkdir()
    outside.write_bytes(image_bytes())
    (root / "a.fits").write_bytes(image_bytes())
    (root / "b.fits").symlink_to("a.fits")
    (root / "c.fits").symlink_to(outside)
    (root / "d.fits").symlink_to("d.fits")
    found = {item.source: item for item in read_all(FitsReader(), root)}
    assert_same_bits(found["b.fits"].pixels[0], FLOATS)
    assert found["c.fits"].reason == "outside the root"
    assert isinstance(found["d.fits"], Reject)


def test_damaged_files_never_raise(read):
    rng = random.Random(7)
    rice = file_bytes(pyfits.PrimaryHDU(), pyfits.CompImageHDU(INTEGERS))
    for whole in (image_bytes(BLANK_="x", **WCS), rice, gzip.compress(image_bytes(INTEGERS))):
        for n_bytes in range(0, len(whole) - 2880, 97):
            found = read(whole[:n_bytes])
            assert {type(item) for item in found} == {Reject}, n_bytes
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(rng.choice([1, 2, 5])):
                damaged[rng.randrange(min(len(whole), 5760))] = rng.choice(b"0123456789-ATF' ")
            assert read(bytes(damaged))


# Settings


def test_fits_files_of_every_ending_are_found_and_alerts_are_pointed_out(tmp_path):
    names = ["B.FITS", "a.fit", "c.fts", "d.fits.gz", "e.fits.fz", "f.fits.bz2", "notes.txt"]
    for name in names:
        (tmp_path / name).touch()
    found = FitsReader().find(open_root(str(tmp_path)))
    assert [source.name for source in found] == names[:-1]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "b.avro").touch()
    with pytest.raises(InputError, match=r"holds 1 file, none ending in \.fits.*data=alerts"):
        FitsReader().find(open_root(str(tmp_path / "only")))


def test_a_single_file_is_its_own_root(read_all, tmp_path):
    path = tmp_path / "m31.fits"
    path.write_bytes(image_bytes())
    assert only(read_all(FitsReader(), path)).source == "m31.fits"


def test_the_size_of_a_file_says_how_much_a_source_will_take(tmp_path):
    (tmp_path / "m31.fits").write_bytes(image_bytes())
    source = only(FitsReader().find(open_root(str(tmp_path))))
    assert source.n_bytes == len(image_bytes())
    assert not FitsReader().has_noise


def test_a_file_deep_below_the_root_is_named_by_its_way_there(read):
    stamp = only(read(image_bytes(), "sub/deep/c.fits"))
    assert (stamp.source, stamp.id) == ("sub/deep/c.fits", "c")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"hdu": -1}, "data.hdu"),
        ({"hdu": True}, "data.hdu"),
        ({"cube": "planes"}, "data.cube"),
        ({"id_keyword": " "}, "data.id_keyword"),
        ({"label_keyword": ""}, "data.label_keyword"),
        ({"max_pixels": 0}, "data.max_pixels"),
    ],
)
def test_a_setting_out_of_range_names_its_key(settings, key):
    with pytest.raises(InputError, match=key):
        FitsReader(**settings)


@pytest.mark.real_data
def test_a_survey_plate_equals_astropy_bit_for_bit(read_all, real_data: Path):
    path = real_data / "sky_images" / "M6707HH.fits"
    stamp = only(read_all(FitsReader(), path))
    assert stamp.pixels.shape == (1, 1059, 1059)
    assert_same_bits(stamp.pixels[0], pyfits.getdata(path))
