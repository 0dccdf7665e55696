"""Catalogues of every format give the same positions, and bad ones say what they hold."""

import gzip
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import Angle
from astropy.io import fits as pyfits
from astropy.table import MaskedColumn, Table

from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.fits.headers import quiet_astropy
from vae_astro.data.sources.mosaics import catalogue as catalogue_module
from vae_astro.data.sources.mosaics.catalogue import check_columns, find_catalogue, read_catalogue
from vae_astro.data.sources.root import open_root
from vae_astro.errors import InputError

RA = np.array([150.1, 359.999, 0.25])
DEC = np.array([2.2, -45.5, 89.0])
NAMES = ["007", "b 2", "c"]
CLASSES = ["star", "", "galaxy"]


@pytest.fixture
def read(tmp_path):
    """Read a catalogue of the root by its name."""
    root = open_root(str(tmp_path))

    def read(name: str, columns=None, pixel_origin=None):
        return read_catalogue(root, root.describe(name), check_columns(columns), pixel_origin)

    return read


def write_fits(table: Table, path) -> None:
    table.write(path, format="fits")


def write_gzipped(table: Table, path) -> None:
    table.write(path.with_suffix(".plain"), format="fits")
    path.write_bytes(gzip.compress(path.with_suffix(".plain").read_bytes()))


def write_votable(table: Table, path) -> None:
    table.write(path, format="votable")


def write_csv(table: Table, path) -> None:
    table.write(path, format="ascii.csv")


def write_commented_csv(table: Table, path) -> None:
    write_csv(table, path)
    path.write_bytes(b"\xef\xbb\xbf#Table1\n" + path.read_bytes().replace(b"\n", b"\r\n"))


def write_ecsv(table: Table, path) -> None:
    table.write(path, format="ascii.ecsv")


def write_spaces(table: Table, path) -> None:
    table.write(path, format="ascii.commented_header")


def write_parquet(table: Table, path) -> None:
    columns = {name: table[name].tolist() for name in table.colnames}
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    "write",
    [
        write_fits,
        write_gzipped,
        write_votable,
        write_csv,
        write_commented_csv,
        write_ecsv,
        write_spaces,
        write_parquet,
    ],
)
def test_every_format_gives_the_same_catalogue(tmp_path, read, write):
    table = Table({"objID": NAMES, "RAJ2000": RA, "DEJ2000": DEC, "Class": CLASSES, "mag": RA})
    with quiet_astropy():
        write(table, tmp_path / "cat.any")
    found = read("cat.any")
    np.testing.assert_array_equal(found.ra, RA)
    np.testing.assert_array_equal(found.dec, DEC)
    assert found.ids(np.arange(3)) == NAMES
    assert found.labels(np.array([2, 1])) == ["galaxy", ""]
    assert found.x is None
    assert len(found) == 3


def test_sextractor_pixels_count_from_one_and_others_from_zero(tmp_path, read):
    (tmp_path / "sex.csv").write_text("NUMBER,XWIN_IMAGE,YWIN_IMAGE\n5,1.5,3\n")
    (tmp_path / "own.csv").write_text("x,y\n1.5,3\n")
    assert (read("sex.csv").x[0], read("sex.csv").y[0]) == (0.5, 2.0)
    assert (read("own.csv").x[0], read("own.csv").y[0]) == (1.5, 3.0)
    assert read("own.csv", pixel_origin=1).x[0] == 0.5
    assert read("sex.csv").ids(np.array([0])) == ["5"]
    assert read("own.csv").ids(np.array([0])) == ["own:0"]


def test_text_is_sexagesimal_and_units_count(tmp_path, read):
    (tmp_path / "s.csv").write_text("ra,dec\n10:20:30.5,-05:06:07\n,\n")
    found = read("s.csv")
    assert found.ra[0] == pytest.approx(Angle("10:20:30.5 hours").deg, abs=1e-12)
    assert found.dec[0] == pytest.approx(-(5 + 6 / 60 + 7 / 3600), abs=1e-12)
    assert np.isnan(found.ra[1])
    table = Table({"ra": RA / 15 * u.hourangle, "dec": np.radians(DEC) * u.rad})
    table.write(tmp_path / "u.ecsv", format="ascii.ecsv")
    np.testing.assert_allclose(read("u.ecsv").ra, RA, rtol=1e-14)
    np.testing.assert_allclose(read("u.ecsv").dec, DEC, rtol=1e-14)


def test_a_unit_that_is_no_angle_is_refused(tmp_path, read):
    Table({"ra": RA * u.m, "dec": DEC * u.m}).write(tmp_path / "u.ecsv", format="ascii.ecsv")
    with pytest.raises(RefusedError, match="no angle"):
        read("u.ecsv")


def test_positions_that_are_missing_or_off_the_sky_are_nan(tmp_path, read):
    dec = MaskedColumn([91.0, 1.0, 2.0], mask=[False, True, False])
    Table({"ra": [10.0, 20.0, -30.0], "dec": dec}).write(tmp_path / "m.vot", format="votable")
    found = read("m.vot")
    np.testing.assert_array_equal(found.ra, [np.nan, np.nan, 330.0])
    np.testing.assert_array_equal(found.dec, [np.nan, np.nan, 2.0])


def test_columns_can_be_named_and_numbers_stay_as_they_are_spelled(tmp_path, read):
    (tmp_path / "n.csv").write_text("a,b,key,kind\n1.5,2.5,0042,7\n")
    found = read("n.csv", {"ra": "a", "dec": "b", "id": "key", "label": "kind"})
    assert (found.ra[0], found.dec[0]) == (1.5, 2.5)
    assert found.ids(np.array([0])) == ["0042"]
    assert found.labels(np.array([0])) == ["7"]


def test_pixels_that_are_named_come_before_the_sky(tmp_path, read):
    (tmp_path / "n.csv").write_text("ra,dec,px,py\n1.5,2.5,30,40\n")
    found = read("n.csv", {"x": "px", "y": "py"})
    assert found.ra is None
    assert (found.x[0], found.y[0]) == (30, 40)


def test_segment_numbers_of_photutils_are_no_classes(tmp_path, read):
    (tmp_path / "p.csv").write_text("label,xcentroid,ycentroid\n1,2,3\n2,3,4\n")
    assert read("p.csv").label is None


def test_the_table_with_positions_is_found_among_several(tmp_path, read):
    head = pyfits.BinTableHDU.from_columns([pyfits.Column("Field Header Card", "10A", array=["x"])])
    objects = pyfits.BinTableHDU.from_columns(
        [
            pyfits.Column("ALPHA_J2000", "D", array=RA),
            pyfits.Column("DELTA_J2000", "D", array=DEC),
        ]
    )
    pyfits.HDUList([pyfits.PrimaryHDU(), head, objects]).writeto(tmp_path / "ldac.cat")
    np.testing.assert_array_equal(read("ldac.cat").ra, RA)


def test_rows_are_found_by_the_file_that_they_name(tmp_path, read):
    (tmp_path / "f.csv").write_text("x,y,file\n1,1,b.fits\n2,2,./a.fits\n3,3,\n4,4,b.fits\n")
    by_file = {name: rows.tolist() for name, rows in read("f.csv").by_file.items()}
    assert by_file == {"b.fits": [0, 3], "a.fits": [1], "": [2]}


def test_a_catalogue_without_positions_lists_its_columns(tmp_path, read):
    (tmp_path / "c.csv").write_text("lon,lat,mag\n1,2,3\n")
    with pytest.raises(RefusedError, match=r"lon, lat, mag.*data\.columns"):
        read("c.csv")
    with pytest.raises(RefusedError, match=r"no column RA_X"):
        read("c.csv", {"ra": "RA_X", "dec": "lat"})


@pytest.mark.parametrize("content", [b"SIMPLE", b"PAR1junk", b"<xml", b"\x00\x01\x02,,\n1", b" "])
def test_broken_catalogues_are_refused(tmp_path, read, content):
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(RefusedError):
        read("broken")


def test_a_claim_of_too_many_rows_is_refused(tmp_path, read):
    Table({"ra": RA, "dec": DEC}).write(tmp_path / "t.fits")
    raw = (tmp_path / "t.fits").read_bytes()
    claim = b"NAXIS2  =                    3", b"NAXIS2  =         100000000000"
    (tmp_path / "t.fits").write_bytes(raw.replace(*claim))
    with pytest.raises(RefusedError, match="truncated file"):
        read("t.fits")


def test_a_catalogue_is_found_here_or_below_the_root(tmp_path, monkeypatch):
    root_folder, here = tmp_path / "root", tmp_path / "here"
    root_folder.mkdir()
    here.mkdir()
    (root_folder / "inner.csv").write_text("x,y\n1,1\n")
    (here / "outer.csv").write_text("x,y\n2,2\n")
    monkeypatch.chdir(here)
    root = open_root(str(root_folder))
    assert find_catalogue("inner.csv", root).name == "inner.csv"
    assert find_catalogue(str(root_folder / "inner.csv"), root).name == "inner.csv"
    outer = find_catalogue("outer.csv", root)
    assert outer.name == os.path.realpath(here / "outer.csv")
    monkeypatch.chdir(tmp_path)  # a worker may run elsewhere
    assert read_catalogue(root, outer, (), None).x[0] == 2
    with pytest.raises(InputError, match=r"data\.catalogue=none\.csv"):
        find_catalogue("none.csv", root)


def test_a_catalogue_is_read_once_until_it_changes(tmp_path, read):
    (tmp_path / "c.csv").write_text("x,y\n1,1\n")
    first = read("c.csv")
    assert read("c.csv") is first
    (tmp_path / "c.csv").write_text("x,y\n7,7\n")
    os.utime(tmp_path / "c.csv", ns=(1, 1))
    assert read("c.csv").x[0] == 7


@pytest.mark.parametrize("columns", ["ra", {"ra": "a"}, {"rho": "a"}, {"x": 1, "y": 2}, [1]])
def test_columns_that_make_no_sense_are_named(columns):
    with pytest.raises(InputError, match=r"data\.columns"):
        check_columns(columns)


def test_a_position_that_is_no_angle_is_the_loss_of_one_row():
    texts = np.array(["150.5", "--", "10:00:00", "n/a", ""])
    degrees = catalogue_module._degrees(texts, "", "ra", "RA")
    np.testing.assert_allclose(degrees, [150.5, np.nan, 150.0, np.nan, np.nan])
