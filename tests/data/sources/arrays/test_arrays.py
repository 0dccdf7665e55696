"""Stamps from arrays keep every value, whatever the type, the order of axes and the file."""

import os
import zipfile
from io import BytesIO

import h5py
import numpy as np
import pytest

from vae_astro.data.sources.arrays import files as array_files
from vae_astro.data.sources.arrays import reader as arrays
from vae_astro.data.sources.arrays.reader import ArrayReader
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Reject, Stamp
from vae_astro.errors import InputError

RNG = np.random.default_rng(8)
STAMPS = RNG.integers(0, 200, (10, 3, 18, 20))
IDS = [f"obj{k}" for k in range(10)]


@pytest.fixture
def stamps(read_all, tmp_path):
    """Everything that a reader makes of the test's folder."""
    return lambda **settings: read_all(ArrayReader(**settings), tmp_path)


def write_npy(path, **contents) -> None:
    np.save(path / "a.npy", contents["images"])


def write_npz(path, **contents) -> None:
    np.savez(path / "a.npz", **contents)


def write_packed(path, **contents) -> None:
    np.savez_compressed(path / "a.npz", **contents)


def write_hdf5(path, **contents) -> None:
    with h5py.File(path / "a.h5", "w") as file:
        for name, values in contents.items():
            file[name] = values


def write_chunked(path, **contents) -> None:
    with h5py.File(path / "a.hdf5", "w") as file:
        for name, values in contents.items():
            file.create_dataset(f"group/{name}", data=values, compression="gzip")


FORMATS = [write_npy, write_npz, write_packed, write_hdf5, write_chunked]


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("dtype", ["u1", ">i2", "<u4", ">f4", "f8", "f2", "?"])
def test_every_type_and_byte_order_becomes_float32(tmp_path, stamps, write, dtype):
    images = STAMPS.astype(dtype)
    write(tmp_path, images=images)
    found = stamps()
    assert len(found) == 10
    for k, stamp in enumerate(found):
        np.testing.assert_array_equal(stamp.pixels, images[k].astype(np.float32))
        assert stamp.pixels.dtype == np.float32
        assert stamp.source.startswith("a.")
        assert stamp.source.endswith(f"[{k}]")
        assert stamp.id == stamp.object_id == f"a[{k}]"


@pytest.mark.parametrize(
    ("axes", "images", "expected"),
    [
        (None, STAMPS[:, 0], STAMPS[:, :1]),
        (None, np.moveaxis(STAMPS, 1, -1), STAMPS),
        ("NHWC", np.moveaxis(STAMPS, 1, -1), STAMPS),
        ("NCHW", STAMPS, STAMPS),
        ("CHW", STAMPS[0], STAMPS[:1]),
        ("HWC", np.moveaxis(STAMPS[0], 0, -1), STAMPS[:1]),
        (None, STAMPS[0, 0], STAMPS[:1, :1]),
        (None, np.asfortranarray(STAMPS), STAMPS),
    ],
)
@pytest.mark.parametrize("write", [write_npy, write_npz, write_packed])
def test_axes_are_what_they_are_said_to_be(tmp_path, stamps, write, axes, images, expected):
    write(tmp_path, images=images)
    found = stamps(axes=axes, dataset="images")
    np.testing.assert_array_equal([stamp.pixels for stamp in found], expected)
    assert found[0].source.endswith("[0]") == (len(expected) > 1)


@pytest.mark.parametrize("write", FORMATS[1:])
def test_what_is_known_of_each_stamp_comes_along(tmp_path, stamps, write):
    group = "group/" if write is write_chunked else ""
    known = {
        "name": np.array(IDS, "S8"),
        "ans": np.arange(10),
        "RA": np.linspace(-10, 350, 10),
        "DEC": np.linspace(-95, 90, 10),
    }
    write(tmp_path, images=STAMPS, **known)
    columns = {"id": "name", "label": "ans", "ra": "RA", "dec": "DEC"}
    found = stamps(columns={role: group + name for role, name in columns.items()})
    assert [stamp.id for stamp in found] == IDS
    assert [stamp.label for stamp in found] == [str(k) for k in range(10)]
    assert np.isnan(found[0].ra)  # its declination is none
    np.testing.assert_allclose([stamp.ra for stamp in found[1:]], known["RA"][1:] % 360)
    np.testing.assert_allclose([stamp.dec for stamp in found[1:]], known["DEC"][1:])


def test_usual_names_are_found_and_text_of_any_length(tmp_path, stamps):
    write_hdf5(tmp_path, images=STAMPS, id=IDS, label=["a"] * 10, ra=np.ones(10), dec=np.ones(10))
    found = stamps()
    assert [stamp.id for stamp in found] == IDS
    assert (found[3].label, found[3].ra) == ("a", 1.0)


@pytest.mark.parametrize("write", FORMATS[1:4])
def test_noise_and_mask_are_read_beside_the_pixels(tmp_path, stamps, write):
    variance = RNG.uniform(1, 4, STAMPS.shape).astype(np.float32)
    mask = np.zeros(STAMPS.shape, np.uint8)
    mask[4, 1, 2, 3] = 8
    write(tmp_path, images=STAMPS, variance=variance, bad=mask)
    settings = {"noise": "variance", "noise_kind": "variance", "mask": "bad", "mask_bits": [3]}
    found = stamps(**settings)
    assert ArrayReader(**settings).has_noise
    assert np.argwhere(~np.isfinite(found[4].pixels)).tolist() == [[1, 2, 3]]
    np.testing.assert_array_equal(found[5].noise, np.sqrt(variance[5]))


def test_large_files_are_shared_out_in_parts(tmp_path, read_all, monkeypatch):
    monkeypatch.setattr(arrays, "PART_BYTES", 4 * STAMPS[0].size * 4)
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 3 * STAMPS[0].size * 4)
    root, reader = open_root(str(tmp_path)), ArrayReader()
    for write in (write_npy, write_npz, write_chunked):
        write(tmp_path, images=STAMPS.astype("u2"))
    sources = reader.find(root)
    parts = [(source.name, source.part) for source in sources]
    thirds = [(0, 4), (4, 8), (8, 10)]
    assert parts == [
        *(("a.hdf5", part) for part in thirds),
        *(("a.npy", part) for part in thirds),
        ("a.npz", None),
    ]
    blocks = list(reader.read(sources, root))
    assert [len(block) for block in blocks] == [3, 1, 3, 1, 2] * 2 + [3, 3, 3, 1]
    pixels = np.concatenate([block.pixels for block in blocks])
    np.testing.assert_array_equal(pixels, np.concatenate([STAMPS] * 3).astype(np.float32))


def test_a_stamp_without_a_finite_pixel_is_a_reject(tmp_path, stamps):
    images = STAMPS.astype(np.float32)
    images[3] = np.nan
    images[4, 0] = np.inf
    write_npy(tmp_path, images=images)
    bad, *good = stamps()
    assert (bad.source, bad.reason) == ("a.npy[3]", "all pixels bad")
    assert [stamp.source for stamp in good] == [f"a.npy[{k}]" for k in range(10) if k != 3]


def only_reject(found) -> Reject:
    (reject,) = found
    assert isinstance(reject, Reject)
    return reject


def test_an_ambiguous_file_lists_what_it_holds(tmp_path, stamps):
    write_npz(tmp_path, images=STAMPS, psfs=STAMPS[:, 0], n=np.arange(3))
    reject = only_reject(stamps())
    assert reject.reason == "ambiguous array"
    assert "psfs (10, 18, 20)" in reject.detail
    assert "data.dataset" in reject.detail
    assert len(stamps(dataset="images")) == 10
    assert only_reject(stamps(dataset="none")).reason == "no such array"
    assert only_reject(stamps(dataset="n")).reason == "wrong dimensions"


def test_lengths_and_shapes_must_agree(tmp_path, stamps):
    write_npz(tmp_path, images=STAMPS, name=np.arange(9), noise=STAMPS[:, :2])
    assert only_reject(stamps(dataset="images", columns={"id": "name"})).reason == "wrong length"
    reject = only_reject(stamps(dataset="images", noise="noise"))
    assert reject.reason == "plane of another shape"


@pytest.mark.parametrize("values", [STAMPS.astype(complex), STAMPS.astype("S3")])
def test_what_is_no_real_number_is_refused(tmp_path, stamps, values):
    write_npy(tmp_path, images=values)
    assert only_reject(stamps()).reason == "unreadable"


def test_nothing_is_unpickled(tmp_path, stamps):
    np.save(tmp_path / "a.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    reject = only_reject(stamps())
    assert reject.reason == "unreadable"
    assert "unpickled" in reject.detail


@pytest.mark.parametrize("write", FORMATS)
def test_every_truncation_is_a_reject(tmp_path, stamps, write):
    write(tmp_path, images=STAMPS[:3, :1].astype("u1"))
    (path,) = tmp_path.iterdir()
    raw = path.read_bytes()
    for n in range(0, len(raw) - 1, 97):
        path.write_bytes(raw[:n])
        found = stamps()
        assert sum(isinstance(item, Stamp) for item in found) < 3, n
        assert any(isinstance(item, Reject) for item in found), n


def header_of(shape, dtype="<f4") -> bytes:
    stream = BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def test_claims_of_too_many_pixels_are_refused_before_memory_is_taken(tmp_path, stamps):
    (tmp_path / "a.npy").write_bytes(header_of((10**6, 1000, 1000)))
    assert only_reject(stamps()).reason == "truncated file"
    os.remove(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header_of((10**6, 1000, 1000)))
    assert only_reject(stamps(dataset="images")).reason == "truncated file"


def test_bombs_are_refused(tmp_path, stamps, monkeypatch):
    monkeypatch.setattr(array_files, "MAX_CLAIMED_BYTES", 2**20)
    monkeypatch.setattr(array_files, "MAX_CHUNK_BYTES", 2**22)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 64, 64), np.float32))
    assert only_reject(stamps(dataset="images")).reason == "too large"
    os.remove(tmp_path / "a.npz")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("empty", (10**9, 64, 64), "f4", chunks=(1, 64, 64))
        ones = np.ones((300, 64, 64), np.float32)
        file.create_dataset("wide", data=ones, chunks=ones.shape)
    assert only_reject(stamps(dataset="empty")).reason == "too large"
    assert only_reject(stamps(dataset="wide")).reason == "too large"
    os.remove(tmp_path / "a.h5")
    write_npy(tmp_path, images=STAMPS)
    assert only_reject(stamps(max_pixels=100)).reason == "too large"


def test_hdf5_does_not_lead_outside_the_root(tmp_path, read_all):
    root = tmp_path / "root"
    root.mkdir()
    write_hdf5(tmp_path, images=STAMPS)
    STAMPS.astype("<f4").tofile(tmp_path / "raw")
    with h5py.File(root / "b.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("../a.h5", "images")
        raw = [(str(tmp_path / "raw"), 0, STAMPS.size * 4)]
        file.create_dataset("raw", STAMPS.shape, "<f4", external=raw)
        layout = h5py.VirtualLayout(STAMPS.shape, "i8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "a.h5"), "images", STAMPS.shape)
        file.create_virtual_dataset("virtual", layout)
    reasons = {
        name: only_reject(read_all(ArrayReader(dataset=name), root)).reason
        for name in ("linked", "raw", "virtual")
    }
    assert reasons == {
        "linked": "no such array",
        "raw": "outside the root",
        "virtual": "outside the root",
    }


def test_a_file_that_changes_or_vanishes_is_a_reject(tmp_path):
    for write in (write_npy, write_npz, write_hdf5):
        write(tmp_path, images=STAMPS)
    root, reader = open_root(str(tmp_path)), ArrayReader()
    sources = reader.find(root)
    for path in tmp_path.iterdir():
        os.utime(path, ns=(1, 1))
    assert [item.reason for item in reader.read(sources, root)] == ["changed"] * 3
    for path in tmp_path.iterdir():
        path.unlink()
    assert [item.reason for item in reader.read(sources, root)] == ["vanished"] * 3


def test_an_array_cut_short_while_it_is_read_is_a_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 1)
    write_npy(tmp_path, images=STAMPS)
    root, reader = open_root(str(tmp_path)), ArrayReader()
    items = reader.read(reader.find(root), root)
    assert len(next(items)) == 1
    os.truncate(tmp_path / "a.npy", 200)
    assert [item.reason for item in items] == ["changed"]


def test_without_h5py_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    write_hdf5(tmp_path, images=STAMPS)
    monkeypatch.setattr(arrays, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'vae-astro\[hdf5\]'"):
        ArrayReader().find(open_root(str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"dataset": ""}, "data.dataset"),
        ({"axes": "HWN"}, "data.axes"),
        ({"columns": {"x": "a"}}, "data.columns"),
        ({"columns": "id"}, "data.columns"),
        ({"noise": 3}, "data.noise"),
        ({"noise_kind": "rms"}, "data.noise_kind"),
        ({"mask_bits": 3}, "data.mask_bits"),
        ({"max_pixels": 0}, "data.max_pixels"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, key):
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        ArrayReader(**settings)


@pytest.mark.real_data
def test_a_real_archive_of_bands_with_variance_and_mask(real_data, read_all):
    archive = real_data / "sky_images" / "hsc_cosmos_35.npz"
    settings = {"noise": "variance", "noise_kind": "variance", "mask": "mask", "mask_bits": [0, 5]}
    (stamp,) = read_all(ArrayReader(dataset="images", axes="CHW", **settings), archive)
    with np.load(archive) as contents:
        images, variance, mask = (contents[name] for name in ("images", "variance", "mask"))
    good = np.isfinite(stamp.pixels)
    assert stamp.pixels.shape == (5, 58, 48)
    np.testing.assert_array_equal(good, (mask & 33) == 0)
    np.testing.assert_array_equal(stamp.pixels[good], images[good])
    np.testing.assert_array_equal(stamp.noise[good], np.sqrt(variance[good]))
