"""What is asked for is fetched once, one after another, and what fails is listed."""

import gzip
import hashlib
import io
import tarfile
import time

import pytest
from filelock import FileLock
from web_server import Answer, serve

from vae_astro.data import download as module
from vae_astro.data.download import download, read_urls, ztf_nights
from vae_astro.data.transfer import Manners, Wanted
from vae_astro.errors import InputError

QUICK = Manners(None, pause_s=0, timeout_s=0.3, n_attempts=2, first_wait_s=0.01)
FIRST, SECOND = "ztf_public_20240101.tar.gz", "ztf_public_20240102.tar.gz"


def night(n_packets):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for k in range(n_packets):
            member = tarfile.TarInfo(f"{k}.avro")
            member.size = 10
            tar.addfile(member, io.BytesIO(b"0123456789"))
    return gzip.compress(buffer.getvalue())


@pytest.fixture
def archive():
    """A server with two nights and their sums below ``/public/``."""
    with serve() as server:
        nights = {FIRST: night(3), SECOND: night(5)}
        server.files = {f"/public/{name}": content for name, content in nights.items()}
        sums = [f"{hashlib.md5(content).hexdigest()}  {name}" for name, content in nights.items()]
        server.files["/public/MD5SUMS"] = "\n".join(sums).encode()
        yield server


def get_nights(server, folder, nights="20240101-20240102", **options):
    address = f"{server.address}/public/"
    return download(ztf_nights(nights, address), folder, QUICK, archive=address, **options)


# Nights


def test_nights_are_fetched_and_a_second_run_asks_for_nothing(archive, tmp_path):
    first = get_nights(archive, tmp_path / "new" / "folder")
    assert (first.n_downloaded, first.n_there, first.failed, first.notes) == (2, 0, {}, [])
    for name in (FIRST, SECOND):
        found = (tmp_path / "new" / "folder" / name).read_bytes()
        assert found == archive.files[f"/public/{name}"]
    n_requests = len(archive.requests)
    second = get_nights(archive, tmp_path / "new" / "folder")
    assert (second.n_downloaded, second.n_there) == (0, 2)
    assert len(archive.requests) == n_requests


def test_a_night_that_differs_from_its_sum_is_a_failure(archive, tmp_path):
    archive.files[f"/public/{FIRST}"] = night(4)
    outcome = get_nights(archive, tmp_path)
    assert (outcome.n_downloaded, list(outcome.failed)) == (
        1,
        [f"{archive.address}/public/{FIRST}"],
    )
    assert "its md5 is" in next(iter(outcome.failed.values()))
    assert not (tmp_path / FIRST).exists()


def test_a_night_that_is_not_there_does_not_keep_the_others(archive, tmp_path):
    del archive.files[f"/public/{FIRST}"]
    outcome = get_nights(archive, tmp_path)
    assert outcome.failed == {f"{archive.address}/public/{FIRST}": "HTTP 404 Not Found"}
    assert outcome.n_downloaded == 1


def test_without_sums_nights_are_fetched_and_it_is_said(archive, tmp_path):
    del archive.files["/public/MD5SUMS"]
    outcome = get_nights(archive, tmp_path)
    assert outcome.n_downloaded == 2
    assert len(outcome.notes) == 1
    assert "without checksums, no MD5SUMS" in outcome.notes[0]


@pytest.mark.parametrize("keep", [True, False])
def test_nights_are_unpacked_and_not_asked_for_again(archive, tmp_path, keep):
    outcome = get_nights(archive, tmp_path, unpack=True, keep_tarballs=keep)
    assert outcome.n_packets == 8
    assert len(list((tmp_path / "ztf_public_20240102").glob("*.avro"))) == 5
    assert (tmp_path / FIRST).exists() == keep
    n_requests = len(archive.requests)
    again = get_nights(archive, tmp_path, unpack=True, keep_tarballs=keep)
    assert (again.n_there, again.n_packets, len(archive.requests)) == (2, 0, n_requests)


def test_nights_that_are_there_packed_are_unpacked_without_a_request(archive, tmp_path):
    get_nights(archive, tmp_path)
    n_requests = len(archive.requests)
    outcome = get_nights(archive, tmp_path, unpack=True)
    assert (outcome.n_downloaded, outcome.n_there, outcome.n_packets) == (0, 2, 8)
    assert len(archive.requests) == n_requests


def test_a_tarball_that_cannot_be_unpacked_is_kept_and_listed(archive, tmp_path):
    archive.files["/public/MD5SUMS"] = b""
    archive.files[f"/public/{FIRST}"] = archive.files[f"/public/{FIRST}"][:-30]
    outcome = get_nights(archive, tmp_path, unpack=True, keep_tarballs=False)
    assert "not unpacked: damaged or cut short" in next(iter(outcome.failed.values()))
    assert (tmp_path / FIRST).exists()
    assert not (tmp_path / "ztf_public_20240101").exists()
    assert outcome.n_packets == 5


@pytest.mark.parametrize(
    ("nights", "expected"),
    [
        (20240101, ["20240101"]),
        ("20240101", ["20240101"]),
        ([20240102, "20240101", 20240102], ["20240101", "20240102"]),
        ("20240227-20240301", ["20240227", "20240228", "20240229", "20240301"]),
        (["20231231-20240101", 20240105], ["20231231", "20240101", "20240105"]),
    ],
)
def test_nights_are_dates_lists_and_ranges(nights, expected):
    found = ztf_nights(nights, "https://h.org/public")
    assert [file.url for file in found] == [
        f"https://h.org/public/ztf_public_{night}.tar.gz" for night in expected
    ]


@pytest.mark.parametrize(
    "nights",
    [20240230, "2024-01-01", "20240102-20240101", "20240101-", "today", 20170101, 29990101, 1.5],
)
def test_nights_that_cannot_be_are_errors(nights):
    with pytest.raises(InputError, match=r"^nights must"):
        ztf_nights(nights, "https://h.org/public")


# Lists


def test_a_list_has_addresses_checksums_and_comments(tmp_path):
    path = tmp_path / "urls.txt"
    md5, sha256 = f"md5:{'a' * 32}", f"sha256:{'0' * 64}"
    path.write_text(
        f"# stamps\n\nhttps://h.org/a.fits\n  https://h.org/b.fits\t{md5.upper()}\n"
        f"https://h.org/c.fits?key=1 {sha256}\nhttps://h.org/a.fits\n".replace("MD5:", "md5:")
    )
    assert read_urls(path) == [
        Wanted("https://h.org/a.fits"),
        Wanted("https://h.org/b.fits", md5),
        Wanted("https://h.org/c.fits?key=1", sha256),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", "holds no address"),
        ("\nhttps://h.org/a b c\n", "line 2: expected an address and at most one"),
        ("ftp://h.org/a\n", "line 1: ftp://h.org/a is no address"),
        ("https://h.org/a md5:1\n", "line 1: 'md5:1' is no checksum"),
        ("https://h.org/a\nhttps://i.org/a\n", "line 2: a second file called a"),
        ("\0\n", "line 1"),
    ],
)
def test_a_list_that_is_not_understood_is_an_error_with_its_line(tmp_path, text, message):
    (tmp_path / "urls.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_urls(tmp_path / "urls.txt")
    with pytest.raises(InputError, match=r"urls=.*nowhere cannot be read"):
        read_urls(tmp_path / "nowhere")


def test_files_of_a_list_are_fetched_one_after_another_with_pauses(archive, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    wanted = [Wanted(f"{archive.address}/public/{name}") for name in (FIRST, SECOND, "MD5SUMS")]
    (tmp_path / SECOND).write_bytes(b"there")
    outcome = download(wanted, tmp_path, Manners(None, pause_s=7, timeout_s=5))
    assert (outcome.n_downloaded, outcome.n_there) == (2, 1)
    assert slept == [7]
    assert (tmp_path / SECOND).read_bytes() == b"there"


def test_a_failure_names_no_key(archive, tmp_path):
    outcome = download([Wanted(f"{archive.address}/gone?key=geheim")], tmp_path, QUICK)
    assert "geheim" not in repr(outcome)
    assert len(outcome.failed) == 1


# The folder


def test_two_downloads_into_one_folder_do_not_mix(archive, tmp_path):
    with (
        FileLock(tmp_path / ".download.lock"),
        pytest.raises(InputError, match="another download is writing there"),
    ):
        get_nights(archive, tmp_path)
    assert archive.requests == []


def test_a_folder_that_cannot_be_made_is_an_error(archive, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"out={tmp_path}/file"):
        get_nights(archive, tmp_path / "file")


def test_a_server_that_stalls_delays_the_others_only_so_long(archive, tmp_path):
    archive.answers[f"/public/{FIRST}"] = [Answer(stall_after=20)] * 2
    began = time.perf_counter()
    outcome = get_nights(archive, tmp_path)
    assert time.perf_counter() - began < 5
    assert outcome.n_downloaded == 1
    assert "given up after 2 attempts" in next(iter(outcome.failed.values()))
