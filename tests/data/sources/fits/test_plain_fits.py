"""Plain files are read without astropy, and come out as astropy gives them, bit for bit."""

import bz2
import gzip
import random
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits as pyfits
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_astro.data.sources.files import unpack
from vae_astro.data.sources.fits import images, plain_chunks, plain_fits
from vae_astro.data.sources.fits import reader as fits_module
from vae_astro.data.sources.fits.images import first_image
from vae_astro.data.sources.fits.reader import FitsReader
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Reject, Stamp, StampBlock

RNG = np.random.default_rng(21)
TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


def card(text: str) -> str:
    return text[:80].ljust(80)


def file_of(cards: list[str], pixels: bytes = b"", tail: bytes = b"") -> bytes:
    """A FITS file put together by hand, so that it may be as odd as it likes."""
    header = "".join(map(card, [*cards, "END"])).encode("latin-1")
    header = header.ljust(-(-len(header) // 2880) * 2880)
    return header + pixels.ljust(-(-len(pixels) // 2880) * 2880, b"\0") + tail


def structure(
    bitpix: int = -32, shape: tuple[int, ...] = (5, 7), first: str = "SIMPLE"
) -> list[str]:
    value = f"{'T':>20}" if first == "SIMPLE" else "'IMAGE   '"
    axes = [f"NAXIS{k + 1:<3}= {n:20d}" for k, n in enumerate(reversed(shape))]
    extension = [] if first == "SIMPLE" else ["PCOUNT  =                    0", "GCOUNT  =  1"]
    start = [f"{first:8}= {value}", f"BITPIX  = {bitpix:20d}", f"NAXIS   = {len(shape):20d}"]
    return [*start, *axes, *extension]


def pixels_of(bitpix: int = -32, shape: tuple[int, ...] = (5, 7), seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    values = rng.integers(-100, 100, shape) if bitpix != 8 else rng.integers(0, 256, shape)
    return values.astype(TYPES[bitpix]).tobytes()


def survey_cards(k: int, wcs: bool = True) -> list[str]:
    """The header of a survey's k-th stamp."""
    sky = [
        "CTYPE1  = 'RA---TAN'",
        "CTYPE2  = 'DEC--TAN'",
        f"CRVAL1  = {150.0 + 0.37 * k:20.10f}",
        f"CRVAL2  = {2.0 - 0.11 * k:20.10f}",
        "CRPIX1  =                  1.0",
        "CRPIX2  =                  2.5",
        "CD1_1   =            -0.000281",
        "CD2_2   =             0.000279",
        "CD1_2   =           0.00000125",
    ]
    position = [f"RA      = {10.0 + k / 3:20.12f}", f"DEC     = {-3.0 - k / 7:20.12f}"]
    return [
        f"OBJID   = 'SIM{k:05d}'           / name",
        f"CLASS   = '{('star', 'galaxy')[k % 2]}'",
        *(sky if wcs else position),
        f"SEEING  = {1.5 + k / 100:20} / [arcsec]",
        f"DATE-OBS= '2024-01-{k % 28 + 1:02d}'",
        f"COMMENT written by hand, {k}",
    ]


def read_files(files: dict[str, bytes], **choices) -> list[Stamp | StampBlock | Reject]:
    """What a reader that remembers nothing makes of some files; blocks are copied."""
    fits_module._of_thread.__dict__.clear()
    with tempfile.TemporaryDirectory() as folder:
        for name, raw in files.items():
            (Path(folder) / name).write_bytes(raw)
        root, reader = open_root(folder), FitsReader(**choices)
        items = []
        for item in reader.read(reader.find(root), root):
            if isinstance(item, StampBlock):
                item = StampBlock(**{**vars(item), "pixels": item.pixels.copy()})
            items.append(item)
        return items


def read_by_astropy(files: dict[str, bytes], **choices) -> list[Stamp | StampBlock | Reject]:
    items = []
    for name in sorted(files):
        items += FitsReader(**choices)._read_stream(name, BytesIO(unpack(files[name])))
    return items


def assert_as_by_astropy(files: dict[str, bytes], **choices) -> None:
    found = plain_fits._parts(read_files(files, **choices))
    expected = plain_fits._parts(read_by_astropy(files, **choices))
    assert found == expected


@pytest.fixture
def n_by_astropy(monkeypatch):
    """Counts the files that astropy reads."""
    count = [0]
    read_stream = FitsReader._read_stream

    def counting(self, name, stream):
        count[0] += 1
        return read_stream(self, name, stream)

    monkeypatch.setattr(FitsReader, "_read_stream", counting)
    return count


# What is plain is not read by astropy


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
@pytest.mark.parametrize("wcs", [False, True])
def test_the_files_of_a_survey_are_read_by_their_difference_from_the_first(n_by_astropy, pack, wcs):
    files = {
        f"{k:03d}.fits": pack(file_of([*structure(), *survey_cards(k, wcs)], pixels_of(seed=k)))
        for k in range(40)
    }
    items = read_files(files)
    assert n_by_astropy == [1]
    assert [len(item) for item in items] == [40]
    assert plain_fits._parts(items) == plain_fits._parts(read_by_astropy(files))
    assert items[0].id[7] == "SIM00007"
    expected = pyfits.getdata(BytesIO(unpack(files["007.fits"])))
    assert items[0].pixels[7, 0].tobytes() == expected.astype(np.float32).tobytes()


def many_extensions(n: int, primary: list[str], extension=lambda k: []) -> bytes:
    raw = file_of([*structure(8, ()), *primary])
    for k in range(1, n + 1):
        cards = [*structure(first="XTENSION"), *survey_cards(k), *extension(k)]
        raw += file_of(cards, pixels_of(seed=k))
    return raw


def test_the_extensions_of_a_file_are_read_by_their_difference_from_the_first(n_by_astropy):
    files = {
        name: many_extensions(30, ["EXTEND  =                    T"])
        for name in ("a.fits", "b.fits")
    }
    items = read_files(files)
    assert n_by_astropy == [1]
    assert [len(item) for item in items] == [60]
    assert (items[0].source[0], items[0].source[59]) == ("a.fits[1]", "b.fits[30]")
    assert plain_fits._parts(items) == plain_fits._parts(read_by_astropy(files))


def test_extensions_inherit_what_they_do_not_say(n_by_astropy):
    primary = [
        "OBJID   = 'NGC 224'",
        "LABEL   = 'galaxy'",
        "RA      =              10.6847",
        "DEC     =               41.269",
        "SEEING  =                  1.8",
        "PIXSCALE=                  0.6",
    ]
    files = {}
    for k in range(5):
        raw = file_of([*structure(8, ()), *primary, f"OBSERVER= 'nr {k}'"])
        for _ in range(1 + k % 2):
            raw += file_of(structure(first="XTENSION"), pixels_of(seed=k))
        files[f"{k}.fits"] = raw
    items = read_files(files)
    assert n_by_astropy[0] <= 1
    assert plain_fits._parts(items) == plain_fits._parts(read_by_astropy(files))
    block = items[0]
    assert block.id[:2] == ["NGC 224", "NGC 224[1]"]
    assert (block.ra[0], block.seeing[0], block.label[0]) == (10.6847, 3.0, "galaxy")


@pytest.mark.parametrize("hdu", [1, 2, "SCI", "wht", 0, 7, "NONE"])
def test_the_chosen_image_of_each_file_is_the_one_that_astropy_finds(hdu):
    files = {}
    for k in range(6):
        raw = file_of(structure(8, ()))
        for name in ("SCI", "WHT") if k != 3 else ("WHT", "SCI"):
            cards = [*structure(first="XTENSION"), f"EXTNAME = '{name}'", *survey_cards(k)]
            raw += file_of(cards, pixels_of(seed=k + len(name)))
        files[f"{k}.fits"] = raw
    assert_as_by_astropy(files, hdu=hdu)


def test_stamps_come_in_the_order_of_the_files_whatever_reads_them():
    files = {}
    for k in range(40):
        cards, pixels = survey_cards(k), pixels_of(seed=k)
        shape = (5, 7) if k % 11 else (4, 4)
        if k % 5 == 2:
            cards.append("HIERARCH OBJID = 'x'")
        if k % 7 == 3:
            pixels = np.full((5, 7), np.nan, ">f4").tobytes()
        raw = file_of([*structure(shape=shape), *cards], pixels)
        files[f"{k:02d}.fits"] = raw[:300] if k == 17 else raw
    assert_as_by_astropy(files)


def test_files_of_any_size_share_a_chunk_or_have_their_own(monkeypatch):
    monkeypatch.setattr(plain_chunks, "CHUNK_BYTES", 4 * 2880)
    monkeypatch.setattr(fits_module, "IN_MEMORY_BYTES", 40 * 2880)
    files = {}
    for k, n in enumerate([5, 30, 60, 200, 5, 180, 5]):
        raw = file_of([*structure(shape=(n, n)), *survey_cards(k)], pixels_of(shape=(n, n)))
        files[f"{k}.fits"] = gzip.compress(raw) if k in (3, 4) else raw
    assert_as_by_astropy(files)


def test_a_block_of_pixels_is_native_and_contiguous():
    cards = [*structure(16), *survey_cards(1)]
    block = read_files({"a.fits": file_of(cards, pixels_of(16))})[0]
    assert block.pixels.dtype == np.dtype(np.float32)
    assert block.pixels.flags.c_contiguous
    assert block.pixels.shape == (1, 1, 5, 7)


def test_a_template_that_astropy_does_not_confirm_is_not_used(monkeypatch, n_by_astropy):
    def wrong(self, stored, pixels):
        pixels[:] = 1.0

    monkeypatch.setattr(plain_fits.HeaderTemplate.of.__globals__["ImagePlan"], "convert", wrong)
    files = {
        f"{k}.fits": file_of([*structure(), *survey_cards(k)], pixels_of(seed=k)) for k in range(6)
    }
    items = read_files(files)
    assert n_by_astropy[0] >= 6
    assert plain_fits._parts(items) == plain_fits._parts(read_by_astropy(files))


# What is odd comes out as astropy has it

SCALINGS = [
    [],
    ["BSCALE  =                  0.1", "BZERO   =                -32.5"],
    ["BSCALE  =                  1.0", "BZERO   =              32768.0"],
    ["BSCALE  =                    1", "BZERO   =           2147483648"],
    ["BZERO   =  9223372036854775808", "BSCALE  =                    1"],
    ["BZERO   =                 -128", "BSCALE  =                    1"],
    ["BZERO   =               1.0D10"],
    ["BZERO   =                 1e10"],
    ["BLANK   =                   -7"],
    ["BLANK   =                    0"],
    ["BLANK   =                   17", "BSCALE  =                 0.25"],
    ["BLANK   =                    0", "BZERO   =                100.5"],
    ["BLANK   =               -32768", "BZERO   =                32768"],
    ["BLANK   =                99999"],
    ["BLANK   =                  1.5"],
    ["BLANK   ="],
    ["BSCALE  =                  0.0"],
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=" ".join)
@pytest.mark.parametrize("bitpix", list(TYPES))
def test_every_scaling_of_every_pixel_type_is_astropys(bitpix, scaling):
    cards = [*structure(bitpix, (9, 11)), *scaling]
    assert_as_by_astropy(
        {f"{k}.fits": file_of(cards, pixels_of(bitpix, (9, 11), k)) for k in range(3)}
    )


@pytest.mark.parametrize("bitpix", [-32, -64])
def test_no_bit_of_a_float_is_lost(bitpix):
    width = "u8" if bitpix == -64 else "u4"
    bits = RNG.integers(0, np.iinfo(width).max, (3, 63, 63), dtype=width, endpoint=True)
    cards = structure(bitpix, (63, 63))
    files = {f"{k}.fits": file_of(cards, bits[k].astype(f">{width}").tobytes()) for k in range(3)}
    assert_as_by_astropy(files)


ODD_CARDS = [
    "OBJID   = 'a'",
    "OBJID   = 'it''s'  / with a quote",
    "OBJID   = 'AXIS: 1.0'",
    "OBJID   =                   17",
    "OBJID   =                 0017 / number",
    "OBJID   =                 1.50",
    "OBJID   =                    T",
    "OBJID   =",
    "OBJID   = ''",
    "OBJID   = '  spaces  '",
    "OBJID   = 'no end",
    "OBJID   = 'a' b",
    "OBJID= 'early'",
    "objid   = 'lower'",
    "HIERARCH OBJID = 'long'",
    "HIERARCH ESO DET ID = 'chip 7' / free",
    "CONTINUE  'more'",
    "CLASS   = 'star&'",
    "CLASS   = 'one' / a/b 'c'",
    "LABEL   = 'two'",
    "RA      =                 10.5",
    "RA      = 10.25 / free format",
    "RA      =               1.05D1",
    "RA      =               1.5E01",
    "RA      =               1.5e01",
    "RA      =                 1_0",
    "RA      =                  nan",
    "RA      = '00:42:44.3'",
    "RA      = '10.5'",
    "RA      = 1.23456789012345678901234567890",
    "DEC     =                -7.25",
    "DEC     = '+41:16:09'",
    "DEC     =                -97.0",
    "SEEING  =                  2.5 / [pix]",
    "SEEING  =                  2.5 / [arcsec]",
    "SEEING  = '2.5'",
    "PIXSCALE=                  0.5",
    "FWHM    =                  2.5 / pixels",
    "EXTNAME =                    5",
    "EXTVER  = 'x'",
    "GAIN    =",
    "DATE-OBS= '2024-13-45'",
    "COMMENT 'quoted' = 5",
    "        = 5",
    "",
    "NOVALUE",
    "NAXIS3  =                   10",
    "CROTA2  =                 30.0",
    "LONPOLE =                170.0",
    "EQUINOX =               2000.0",
    "RADESYS = 'FK5'",
    "CUNIT1  = 'arcsec'",
    "CDELT1  =                0.001",
    "PC1_2   =                  0.1",
    "PV2_1   =                  0.1",
    "A_ORDER =                    2",
    "WCSAXES =                    3",
    "CTYPE1A = 'LINEAR'",
    "CRVAL2  =                 90.0",
    "BUNIT   = 'adu\xb5'",
    "END     x",
    "GROUPS  =                    T",
    "PCOUNT  =                    0",
]
BYTES = b"0123456789.+-EDed'/ TF:&=AZ\t\0\xff"


PRINTABLE = b"0123456789.+-EDe'/ TF:&=AZ"


class Files(dict[str, bytes]):
    """Files by name, shown as the cards of their first headers."""

    def __repr__(self) -> str:
        headers = [raw[: raw.find(b"END   ")] for raw in self.values()]
        return "\n".join(
            str([header[at : at + 80].rstrip() for at in range(0, len(header), 80)])
            for header in headers
        )


def place_of_damage(cards: list[str], n_fixed: int, where: float) -> tuple[int, bytes]:
    """A byte of a header, most often in a value that may vary, and what may stand there instead.

    ``where`` is from 0 to 1.
    """
    if where < 0.2:
        return int(where * 5 * 80 * len(cards)), BYTES
    column, row = divmod(int((where - 0.2) / 0.8 * 1e9), len(cards) - n_fixed)
    return 80 * (n_fixed + row) + 10 + column % 35, PRINTABLE


@st.composite
def odd_files(draw) -> Files:
    """Files of one kind with whatever cards, some of them damaged or with something behind."""
    bitpix = draw(st.sampled_from(list(TYPES)))
    shape = draw(
        st.sampled_from([(5, 7)] * 5 + [(1, 5, 7), (3, 5, 7), (8, 3, 4), (2, 2, 3, 4), (9,)])
    )
    wcs, odd = draw(st.booleans()), draw(st.lists(st.sampled_from(ODD_CARDS), max_size=4))
    dropped = {text[:8].split("=")[0].strip() for text in odd if draw(st.booleans())}
    at = draw(st.integers(0, 20))
    comments = ["HISTORY long"] * draw(st.sampled_from([0, 0, 40]))
    as_extension = draw(st.integers(0, 3)) == 0
    files = Files()
    for k in range(6):
        own = [text for text in survey_cards(k, wcs) if text[:8].strip() not in dropped]
        own[at:at] = odd
        fixed = structure(bitpix, shape, "XTENSION" if as_extension else "SIMPLE")
        cards = [*fixed, *own, *comments]
        raw = bytearray(file_of(cards, pixels_of(bitpix, shape, k)))
        for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
            place, letters = place_of_damage(cards, len(fixed), draw(st.floats(0, 0.999)))
            raw[place] = draw(st.sampled_from(list(letters)))
        junk = [b""] * 12 + [b"\0" * 2880, b"junk" * 1000, b"XTENSION" * 720]
        whole = bytes(raw) + draw(st.sampled_from(junk))
        if as_extension:
            whole = file_of([*structure(8, ()), *own[:3]]) + whole
        if draw(st.integers(0, 19)) == 0:
            whole = whole[: draw(st.integers(1, len(whole)))]
        files[f"{k}.fits"] = whole
    return files


@settings(max_examples=60, deadline=None)
@given(odd_files())
def test_whatever_the_header_says_the_stamps_are_astropys(files):
    assert_as_by_astropy(files)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(
    odd_files(),
    st.sampled_from(
        [{}, {"hdu": 0}, {"hdu": 1}, {"hdu": "5"}, {"cube": "bands"}, {"id_keyword": "CLASS"}]
    ),
)
def test_whatever_the_header_says_the_stamps_are_astropys_at_length(files, choices):
    assert_as_by_astropy(files, **choices)


def fuzz(n: int, seed: int) -> None:
    """Headers of a survey with one to five bytes changed, among others that are whole."""
    rng = random.Random(seed)
    for _ in range(n // 20):
        files = {}
        for k in range(24):
            fixed = structure()
            cards = [*fixed, *survey_cards(k, k % 2 == 0)]
            raw = bytearray(file_of(cards, pixels_of(seed=k)))
            for _ in range(rng.choice([1, 2, 5]) if k >= 4 else 0):
                place, letters = place_of_damage(cards, len(fixed), rng.random())
                raw[place] = rng.choice(letters)
            files[f"{k:02d}.fits"] = bytes(raw)
        assert_as_by_astropy(files)


def test_damaged_headers_give_the_stamps_or_rejects_of_astropy():
    fuzz(200, seed=3)


@pytest.mark.slow
def test_ten_thousand_damaged_headers_give_the_stamps_or_rejects_of_astropy():
    fuzz(10_000, seed=4)


def test_a_file_cut_anywhere_is_what_astropy_makes_of_it():
    raw = many_extensions(2, ["OBJID   = 'a'"])
    files = {f"{n:06d}.fits": raw[:n] for n in range(97, len(raw) + 97, 97)}
    assert_as_by_astropy(files)


def test_a_header_that_claims_too_much_costs_nothing():
    huge = [*structure(shape=(10**6, 10**6)), *survey_cards(0)]
    reject = read_files({"a.fits": file_of(huge)})[0]
    assert (reject.reason, "data.max_pixels" in reject.detail) == ("too large", True)


def test_values_that_vary_in_kind_from_file_to_file_are_told_apart():
    values = ["10.5", "'10.5'", "1.05D1", "", "T", "'00:42:00'", "nan", "1e1", "(1,2)"]
    files = {}
    for k, value in enumerate(values * 2):
        cards = [
            f"RA      = {value:>20}",
            "DEC     =                  5.5",
            f"OBJID   = {value:>20}",
        ]
        files[f"{k:02d}.fits"] = file_of([*structure(), *cards], pixels_of(seed=k))
    assert_as_by_astropy(files)


@pytest.mark.parametrize(
    "cards",
    [
        ["RADESYS = 'FK5'", "EQUINOX =               1975.0"],
        ["RADESYS = 'FK4'", "EQUINOX =               1950.0"],
        ["EQUINOX =               2000.0"],
        ["CTYPE1  = 'GLON-TAN'", "CTYPE2  = 'GLAT-TAN'"],
        ["CTYPE1  = 'DEC--TAN'", "CTYPE2  = 'RA---TAN'"],
        ["CTYPE1  = 'RA---SIN'", "CTYPE2  = 'DEC--SIN'"],
        ["CTYPE1  = 'RA---CAR'", "CTYPE2  = 'DEC--CAR'"],
        ["CTYPE1  = 'RA---TAN-SIP'", "CTYPE2  = 'DEC--TAN-SIP'", "A_ORDER = 2", "B_ORDER = 2"],
        ["CUNIT1  = 'deg'", "CUNIT2  = 'deg'"],
        ["CUNIT1  = 'arcsec'", "CUNIT2  = 'arcsec'"],
        ["LONPOLE =                 90.0"],
        ["CDELT1  =               -0.001", "CDELT2  =                0.001"],
        ["WCSAXES =                    2"],
    ],
    ids=" ".join,
)
def test_the_position_of_every_kind_of_wcs_is_astropys_bit_for_bit(cards):
    named = {text[:8] for text in cards}
    files = {}
    for k in range(12):
        own = [text for text in survey_cards(17 * k) if text[:8] not in named]
        turned = [f"CD2_1   = {1e-6 * k:20.12f}", *cards]
        files[f"{k:02d}.fits"] = file_of([*structure(), *own, *turned], pixels_of(seed=k))
    assert_as_by_astropy(files)


# The first image of a file in memory


@settings(max_examples=40, deadline=None)
@given(odd_files())
def test_the_first_image_is_astropys(files):
    plain_fits._images.__init__()
    for raw in files.values():
        try:
            expected = images.image_by_astropy(raw, 10**6)
        except Exception as error:
            with pytest.raises(type(error)):
                first_image(raw, 10**6)
        else:
            found = first_image(raw, 10**6)
            assert (found.shape, found.tobytes()) == (expected.shape, expected.tobytes())


def test_only_the_first_of_many_cutouts_needs_astropy(monkeypatch):
    plain_fits._images.__init__()
    calls = []
    by_astropy = images.image_by_astropy
    monkeypatch.setattr(
        images, "image_by_astropy", lambda *args: (calls.append(1), by_astropy(*args))[1]
    )
    for k in range(5):
        raw = gzip.compress(file_of([*structure(), *survey_cards(k)], pixels_of(seed=k)))
        expected = np.frombuffer(pixels_of(seed=k), ">f4").reshape(5, 7)
        np.testing.assert_array_equal(first_image(raw, 100), expected)
    assert len(calls) == 1
    with pytest.raises(Exception, match="too large"):
        first_image(raw, 34)
