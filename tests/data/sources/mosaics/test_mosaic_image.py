"""Pixels cut from a mapped mosaic are those that astropy reads, and bad mosaics are refused."""

import gzip
from io import BytesIO

import numpy as np
import pytest
from astropy.io import fits as pyfits

from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.fits.headers import quiet_astropy
from vae_astro.data.sources.fits.planes import Planes
from vae_astro.data.sources.mosaics.opening import open_images
from vae_astro.data.sources.root import open_root

RNG = np.random.default_rng(5)
INTEGERS = {bits: RNG.integers(0, 200, (40, 50)) for bits in (8, 16, 32, 64)}


@pytest.fixture
def image(tmp_path):
    """Write bytes to a file and open an image of it."""
    opened = []

    def image(raw: bytes, name: str = "m.fits", hdu=None):
        (tmp_path / name).write_bytes(raw)
        root = open_root(str(tmp_path))
        opened.append(open_images(root, root.describe(name), hdu, Planes())["band"])
        return opened[-1]

    yield image
    for each in opened:
        each.close()


def fits_bytes(*hdus) -> bytes:
    stream = BytesIO()
    with quiet_astropy():
        pyfits.HDUList(list(hdus)).writeto(stream, output_verify="silentfix")
    return stream.getvalue()


def raw_image(values: np.ndarray, **cards) -> bytes:
    """An image whose scaling keywords are written over values that are stored as they are."""
    raw = fits_bytes(pyfits.PrimaryHDU(values))
    header, pixels = raw[:2880], raw[2880:]
    end = header.index(b"END   ")
    extra = b"".join(str(pyfits.Card(key, value)).encode() for key, value in cards.items())
    return (header[:end] + extra + b"END").ljust(2880) + pixels


@pytest.mark.parametrize(
    ("dtype", "cards"),
    [
        (">f4", {}),
        (">f4", {"BSCALE": 0.3, "BZERO": -7.1}),
        (">f8", {"BSCALE": 0.3, "BZERO": -7.1}),
        (">f8", {}),
        ("u1", {}),
        ("u1", {"BZERO": -128}),
        ("u1", {"BLANK": 17, "BSCALE": 0.1}),
        (">i2", {}),
        (">i2", {"BZERO": 32768.0}),
        (">i2", {"BSCALE": 2.92273835509, "BZERO": 3713.66692596, "BLANK": 5}),
        (">i2", {"BLANK": 0}),
        (">i4", {"BZERO": 2147483648.0}),
        (">i4", {"BSCALE": 1e-3, "BZERO": 12.5}),
        (">i4", {"BLANK": 99}),
        (">i8", {"BZERO": 2.0**63}),
        (">i8", {}),
    ],
)
def test_stamps_equal_what_astropy_reads_bit_for_bit(image, dtype, cards):
    values = INTEGERS[8 * np.dtype(dtype).itemsize].astype(dtype)
    raw = raw_image(values, **cards)
    opened = image(raw)
    with quiet_astropy():
        expected = pyfits.getdata(BytesIO(raw)).astype(np.float32)
    if cards.get("BLANK") == 0:  # astropy forgets this one
        expected[values == 0] = np.nan
    rows, columns = np.array([7, 20, 32]), np.array([7, 25, 42])
    stamps = opened.cut(rows, columns, 15)
    for stamp, row, column in zip(stamps, rows, columns, strict=True):
        window = expected[row - 7 : row + 8, column - 7 : column + 8]
        np.testing.assert_array_equal(stamp, window)
    assert stamps.dtype == np.float32
    assert stamps.dtype.isnative
    np.testing.assert_array_equal(opened.region(slice(0, 40), slice(0, 50)), expected)
    np.testing.assert_array_equal(opened.values(rows, columns), expected[rows, columns])


def test_a_stamp_at_the_edge_is_padded_with_nan(image):
    values = np.arange(2000, dtype=np.float32).reshape(40, 50)
    opened = image(fits_bytes(pyfits.PrimaryHDU(values)))
    corner, inner, opposite = opened.cut(np.array([0, 20, 39]), np.array([0, 20, 49]), 16)
    padded = np.pad(values, 16, constant_values=np.nan)
    np.testing.assert_array_equal(corner, padded[8:24, 8:24])
    np.testing.assert_array_equal(inner, values[12:28, 12:28])
    np.testing.assert_array_equal(opposite, padded[47:63, 57:73])


def test_a_stamp_larger_than_the_mosaic_holds_all_of_it(image):
    values = np.arange(2000, dtype=np.int16).reshape(40, 50)
    opened = image(fits_bytes(pyfits.PrimaryHDU(values)))
    (stamp,) = opened.cut(np.array([20]), np.array([25]), 64)
    assert np.isfinite(stamp).sum() == 2000
    np.testing.assert_array_equal(stamp[12:52, 7:57], values)


@pytest.mark.parametrize("dtype", ["i2", "u2", "f4"])
def test_compressed_mosaics_equal_plain_ones(image, dtype):
    values = INTEGERS[16].astype(dtype)
    packed = pyfits.CompImageHDU(values, compression_type="GZIP_1" if dtype == "f4" else "RICE_1")
    if dtype == "f4":
        packed = pyfits.CompImageHDU(values, compression_type="GZIP_1", quantize_level=0)
    opened = image(fits_bytes(pyfits.PrimaryHDU(), packed), "m.fits.fz")
    zipped = image(gzip.compress(fits_bytes(pyfits.PrimaryHDU(values))), "m.fits.gz")
    at = np.array([20]), np.array([25])
    np.testing.assert_array_equal(opened.cut(*at, 31)[0], values[5:36, 10:41])
    np.testing.assert_array_equal(zipped.cut(*at, 31)[0], values[5:36, 10:41])


def test_an_unsigned_mask_keeps_its_bits(image):
    bits = np.zeros((40, 50), np.uint32)
    bits[20, 25] = 2**31 + 1
    opened = image(fits_bytes(pyfits.PrimaryHDU(bits)))
    (plane,) = opened.cut_plane(np.array([20]), np.array([25]), 17)
    assert plane[8, 8] == 2**31 + 1
    assert np.count_nonzero(plane) == 1


def test_a_mosaic_is_mapped_and_not_read(image):
    opened = image(fits_bytes(pyfits.PrimaryHDU(np.zeros((40, 50), np.float32))))
    base = opened.data
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert type(base).__name__ == "mmap"


def test_a_mosaic_that_was_written_to_is_refused(image, tmp_path):
    opened = image(fits_bytes(pyfits.PrimaryHDU(np.zeros((40, 50), np.float32))))
    opened.check_unchanged()
    with (tmp_path / "m.fits").open("r+b") as stream:
        stream.truncate(2880)
    with pytest.raises(RefusedError, match="changed"):
        opened.check_unchanged()


def many() -> bytes:
    image = pyfits.ImageHDU(np.ones((40, 50), np.float32), name="SCI")
    table = pyfits.BinTableHDU.from_columns([pyfits.Column("a", "J", array=[1])], name="CAT")
    return fits_bytes(pyfits.PrimaryHDU(), table, image)


def packed(kind: str) -> bytes:
    return fits_bytes(
        pyfits.PrimaryHDU(), pyfits.CompImageHDU(INTEGERS[16].astype("i2"), compression_type=kind)
    )


@pytest.mark.parametrize("hdu", [None, 2, "sci"])
def test_an_extension_is_found_by_number_or_name(image, hdu):
    assert image(many(), hdu=hdu).number == 2


@pytest.mark.parametrize(
    ("raw", "hdu", "reason"),
    [
        (many(), 7, "no such HDU"),
        (many(), "WHT", "no such HDU"),
        (many(), 1, "no image"),
        (fits_bytes(pyfits.PrimaryHDU()), None, "no image"),
        (fits_bytes(pyfits.PrimaryHDU(np.zeros((3, 40, 50)))), None, "no image"),
        (fits_bytes(pyfits.PrimaryHDU(np.zeros((40, 50))))[:9000], None, "truncated file"),
        (b"PAR1" + bytes(100), None, "not a FITS file"),
        (packed("HCOMPRESS_1"), None, "unsupported compression"),
        (packed("RICE_1")[:6000], None, "truncated file"),
    ],
)
def test_what_is_no_mosaic_is_refused_with_its_reason(image, raw, hdu, reason):
    with pytest.raises(RefusedError) as refusal:
        image(raw, hdu=hdu)
    assert refusal.value.reason == reason


def test_a_claim_of_too_many_pixels_is_refused_before_memory_is_taken(image):
    raw = fits_bytes(pyfits.PrimaryHDU(np.zeros((40, 50), np.float32)))
    raw = raw.replace(b"NAXIS1  =                   50", b"NAXIS1  =           1000000000")
    with pytest.raises(RefusedError, match="truncated file"):
        image(raw)
    packed = fits_bytes(pyfits.PrimaryHDU(), pyfits.CompImageHDU(np.zeros((40, 50), np.int16)))
    packed = packed.replace(b"ZNAXIS1 =                   50", b"ZNAXIS1 =           1000000000")
    with pytest.raises(RefusedError, match="too large"):
        image(packed)
