"""Only packets come out of a tarball, all of them, and only below its folder."""

import gzip
import io
import os
import tarfile
import time

import pytest

from vae_astro.data import tarballs
from vae_astro.data.tarballs import TarballError, unpack_tarball, unpacked_folder


def entry(name, content=b"packet", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mtime = 1_700_000_000
    for key, value in fields.items():
        setattr(member, key, value)
    return member, content


def tar_of(entries, **options):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for member, content in entries:
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write(folder, entries, **options):
    path = folder / "night.tar.gz"
    path.write_bytes(gzip.compress(tar_of(entries, **options), 1))
    return path


def packets(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


NIGHT = [entry(f"{k}.avro", bytes([k]) * (k * 100)) for k in range(30)]


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_the_packets_of_a_night_come_out_as_they_went_in(tmp_path, pack):
    path = tmp_path / "night.tar"
    path.write_bytes(pack(tar_of(NIGHT)))
    assert unpack_tarball(path, tmp_path / "out") == (30, {})
    assert packets(tmp_path / "out") == {member.name: content for member, content in NIGHT}
    assert (tmp_path / "out" / "3.avro").stat().st_mtime == 1_700_000_000  # the same if again
    assert sorted(os.listdir(tmp_path)) == ["night.tar", "out"]


def test_a_night_without_alerts_is_an_empty_folder(tmp_path):
    assert unpack_tarball(write(tmp_path, []), tmp_path / "out") == (0, {})
    assert packets(tmp_path / "out") == {}


def test_what_is_no_packet_or_leads_elsewhere_is_left_out_and_counted(tmp_path):
    link = {"linkname": "../../victim.avro"}
    unwanted = [
        entry("../up.avro"),
        entry("/tmp/absolute-path-of-a-test.avro"),
        entry("a/../../up.avro"),
        entry("link.avro", b"", type=tarfile.SYMTYPE, **link),
        entry("hard.avro", b"", type=tarfile.LNKTYPE, **link),
        entry("pipe.avro", b"", type=tarfile.FIFOTYPE),
        entry("device.avro", b"", type=tarfile.CHRTYPE),
        entry("run.sh"),
        entry("0.avro", b"again"),
        entry("0.avro/below.avro"),
        entry("x" * 300 + ".avro"),
    ]
    path = write(tmp_path, [NIGHT[0], entry("deep/b.AVRO"), *unwanted])
    unpacked = unpack_tarball(path, tmp_path / "out")
    assert unpacked.n_packets == 2
    assert unpacked.left_out == {
        "outside the folder": 3,
        "no regular file": 4,
        "no .avro file": 1,
        "there already": 1,
        "unfit name": 2,
    }
    assert packets(tmp_path / "out") == {"0.avro": b"", "deep/b.AVRO": b"packet"}
    assert not os.path.exists("/tmp/absolute-path-of-a-test.avro")
    assert sorted(os.listdir(tmp_path)) == ["night.tar.gz", "out"]


def test_a_packet_through_a_link_of_the_same_tarball_stays_inside(tmp_path):
    link = entry("dir", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path))
    assert unpack_tarball(
        write(tmp_path, [link, entry("dir/evil.avro")]), tmp_path / "out"
    ).left_out == {"no regular file": 1}
    assert not (tmp_path / "evil.avro").exists()
    assert packets(tmp_path / "out") == {"dir/evil.avro": b"packet"}


def test_packets_that_are_too_large_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tarballs, "LARGEST_PACKET_BYTES", 1500)
    unpacked = unpack_tarball(write(tmp_path, NIGHT), tmp_path / "out")
    assert (unpacked.n_packets, unpacked.left_out) == (16, {"larger than 1500 bytes": 14})


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("LARGEST_TARBALL_BYTES", 20_000, "unpacks to more than 20000 bytes"),
        ("MOST_PACKETS", 7, "holds more than 7 entries"),
    ],
)
def test_a_tarball_that_unpacks_to_too_much_leaves_nothing(
    tmp_path, monkeypatch, limit, value, message
):
    monkeypatch.setattr(tarballs, limit, value)
    with pytest.raises(TarballError, match=message):
        unpack_tarball(write(tmp_path, NIGHT), tmp_path / "out")
    assert os.listdir(tmp_path) == ["night.tar.gz"]


def test_a_header_that_claims_much_takes_no_memory(tmp_path):
    (pax, _), content = entry("x"), bytes(2**20)
    pax.type, pax.size = tarfile.XHDTYPE, 2**33
    path = tmp_path / "night.tar.gz"
    path.write_bytes(gzip.compress(pax.tobuf(tarfile.GNU_FORMAT) + content))
    with pytest.raises(TarballError, match="a header claims 8589934592 bytes"):
        unpack_tarball(path, tmp_path / "out")


@pytest.mark.parametrize("size", ["-1024", "-5"])
def test_a_header_that_leads_backwards_ends(tmp_path, size):
    member, content = entry("a.avro")
    member.pax_headers = {"size": size}
    path = write(tmp_path, [(member, content), *NIGHT], format=tarfile.PAX_FORMAT)
    began = time.perf_counter()
    with pytest.raises(TarballError):
        unpack_tarball(path, tmp_path / "out")
    assert time.perf_counter() - began < 5
    assert os.listdir(tmp_path) == ["night.tar.gz"]


def test_a_tarball_cut_anywhere_or_damaged_leaves_nothing(tmp_path):
    path = write(tmp_path, NIGHT)
    whole, plain = path.read_bytes(), tar_of(NIGHT)
    ending = len(plain.rstrip(b"\0")) + 512
    cuts = [whole[:n] for n in range(0, len(whole), 37)]
    cuts += [plain[:n] for n in range(0, ending, 1999)]
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # the checksum
    header = bytearray(plain)
    header[512 + 148] ^= 1  # of the second entry: the first is empty
    for content in [*cuts, bytes(flipped), bytes(header), gzip.compress(bytes(header))]:
        path.write_bytes(content)
        with pytest.raises(TarballError):
            unpack_tarball(path, tmp_path / "out")
        assert os.listdir(tmp_path) == ["night.tar.gz"]


def test_the_time_to_unpack_grows_as_the_tarball_does(tmp_path):
    """Many entries that make tarfile look back: from the start each time would take minutes."""
    path = write(tmp_path, [entry(f"{k}.txt", bytes(512)) for k in range(4000)])
    began = time.perf_counter()
    assert unpack_tarball(path, tmp_path / "out").left_out == {"no .avro file": 4000}
    assert time.perf_counter() - began < 10


def test_what_an_interrupted_run_left_is_cleared_away(tmp_path):
    path = write(tmp_path, NIGHT)
    (tmp_path / ".out.unpacking").mkdir()
    (tmp_path / ".out.unpacking" / "half.avro").write_bytes(b"x")
    unpack_tarball(path, tmp_path / "out")
    assert "half.avro" not in packets(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("a.tar.gz", "a"), ("a.TGZ", "a"), ("a.b.tar", "a.b"), ("a.fits", None), ("a.gz", None)],
)
def test_a_tarball_is_told_by_its_name(tmp_path, name, folder):
    assert unpacked_folder(tmp_path / name) == (None if folder is None else tmp_path / folder)
