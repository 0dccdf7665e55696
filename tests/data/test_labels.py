"""Labels from a CSV find their stamps by file or by name, or say why they do not."""

import pytest

from vae_astro.data.labels import read_labels
from vae_astro.errors import InputError

IDS = ["41", "42", "43"]
OBJECTS = ["m31", "m31", "m33"]
SOURCES = ["night1/a.fits", "night2/b.fits[1]", "night2/c.fits[1][7]"]


@pytest.fixture
def read(tmp_path):
    """Labels of the three stamps above from the text of a CSV."""

    def read(text: str | bytes, column: str | None = None, sources=SOURCES) -> list[str]:
        path = tmp_path / "labels.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_labels(path, column, IDS, OBJECTS, sources).tolist()

    return read


def test_a_stamp_is_found_by_its_file_relative_to_the_root(read):
    text = "file,label\nnight1/a.fits,agn\nnight2/b.fits,star\nnight2/c.fits,bogus\n"
    assert read(text) == ["agn", "star", "bogus"]


def test_a_stamp_is_found_by_the_last_part_of_its_file(read):
    assert read("file,label\nb.fits,star\na.fits,agn\nc.fits,bogus\n") == ["agn", "star", "bogus"]


def test_the_whole_path_goes_before_its_last_part(read):
    text = "file,label\na.fits,star\nnight1/a.fits,agn\nb.fits,\nc.fits,\n"
    assert read(text)[0] == "agn"


def test_a_file_name_with_brackets_is_found(read):
    sources = ["m[31].fits", "m[32].fits[1]", "m33.fits"]
    text = "file,label\nm[31].fits,agn\nm[32].fits,star\nm33.fits,bogus\n"
    assert read(text, sources=sources) == ["agn", "star", "bogus"]


def test_a_stamp_is_found_by_its_id(read):
    assert read("label,id\nbogus,43\nagn,41\nstar,42\n") == ["agn", "star", "bogus"]


def test_all_stamps_of_an_object_are_found_by_its_name(read):
    assert read("id,label\nm31,agn\nm33,star\n") == ["agn", "agn", "star"]


def test_the_id_of_the_stamp_goes_before_that_of_its_object(read):
    assert read("id,label\nm31,agn\n42,star\nm33,sn\n") == ["agn", "star", "sn"]


def test_the_column_label_goes_before_others_that_begin_so(read):
    text = "id,label_weak,label\n41,a,x\n42,b,y\n43,c,z\n"
    assert read(text) == ["x", "y", "z"]


def test_the_only_column_that_begins_with_label_is_taken(read):
    assert read("id,ra,label_weak\n41,1,agn\n42,2,star\n43,3,sn\n") == ["agn", "star", "sn"]


def test_any_column_can_be_chosen(read):
    assert read("id,label,type\n41,a,x\n42,b,y\n43,c,z\n", "type") == ["x", "y", "z"]


def test_a_byte_order_mark_and_windows_line_ends_and_spaces_do_not_matter(read):
    text = "file,label\r\na.fits, agn \r\nb.fits,star\r\nc.fits,étoile\r\n"
    assert read(text.encode("utf-8-sig")) == ["agn", "star", "étoile"]


def test_a_stamp_without_a_label_is_counted_and_left_empty(read, caplog):
    assert read("id,label\n41,agn\n43,\n99,star\n") == ["agn", "", ""]
    assert "has no label for 1 of 3 stamps" in caplog.text


def test_complete_labels_are_worth_no_warning(read, caplog):
    read("id,label\nm31,agn\nm33,star\n")
    assert caplog.text == ""


def test_a_row_that_is_too_short_has_no_label_and_one_too_long_is_cut(read):
    assert read("id,label\n41\n42,star,extra\n43,sn\n") == ["", "star", "sn"]


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("name,label\na,b\n", None, "columns name, label; it needs file or id, and label"),
        ("id,class\na,b\n", None, r"columns id, class; .* one label column: .*data\.label_column"),
        ("id,label_a,label_b\n1,2,3\n", None, r"one label column: .*data\.label_column"),
        ("id,label\n1,2\n", "type", "columns id, label; it needs file or id, and type"),
        ("", None, r"columns \(none\)"),
    ],
    ids=["no key", "no label", "two labels", "no such column", "empty"],
)
def test_columns_that_do_not_fit_are_listed(read, tmp_path, text, column, message):
    with pytest.raises(InputError, match=message) as error:
        read(text, column)
    assert f"data.labels={tmp_path / 'labels.csv'}" in str(error.value)


def test_labels_of_other_stamps_are_refused_with_both_spellings(read):
    with pytest.raises(InputError) as error:
        read("file,label\n/old/disk/x.fits,agn\n")
    for word in ("none of the 3 stamps", "'file'", "'/old/disk/x.fits'", "'night1/a.fits'"):
        assert word in str(error.value)


def test_a_header_without_rows_names_no_stamp(read):
    with pytest.raises(InputError, match="names none of the 3 stamps"):
        read("file,label\n")


@pytest.mark.parametrize("text", ["id,label\n41,é\n".encode("latin-1"), b"PK\x03\x04\xff\xfe"])
def test_a_file_that_is_no_text_is_named(read, text):
    with pytest.raises(InputError, match=r"cannot read data\.labels=.*labels\.csv"):
        read(text)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read data\.labels=.*none\.csv.*No such file"):
        read_labels(tmp_path / "none.csv", None, IDS, OBJECTS, SOURCES)
