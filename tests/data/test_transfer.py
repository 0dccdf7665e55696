"""A file arrives whole and right, or not at all, whatever the server does."""

import errno
import hashlib
import json
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from web_server import Answer, serve

from vae_astro.data import transfer
from vae_astro.data.transfer import DownloadError, Manners, Wanted, fetch, fetch_text
from vae_astro.errors import InputError

NIGHT = bytes(range(256)) * 400
QUICK = Manners(None, pause_s=0, timeout_s=0.3, n_attempts=3, first_wait_s=0.01)
NAME = "/n.tar.gz"


@pytest.fixture
def server():
    with serve() as server:
        server.files[NAME] = NIGHT
        yield server


def md5(content):
    return f"md5:{hashlib.md5(content).hexdigest()}"


def get(server, folder, checksum="", manners=QUICK, name=NAME, told=None):
    told = [] if told is None else told
    return fetch(
        Wanted(f"{server.address}{name}", checksum), folder, manners, lambda *n: told.append(n)
    )


def begin(server, folder, n_bytes, checksum=""):
    """An attempt that breaks off after ``n_bytes``."""
    server.answers[NAME] = [Answer(cut_after=n_bytes)]
    with pytest.raises(DownloadError, match=f"broke off at byte {n_bytes} of {len(NIGHT)}"):
        get(server, folder, checksum, Manners(None, 0, 0.3, 1))
    assert files(folder) == {"n.tar.gz.part": NIGHT[:n_bytes]}


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".json"}


def test_a_file_arrives_and_is_not_asked_for_again(server, tmp_path):
    told = []
    assert get(server, tmp_path, md5(NIGHT), told=told)
    assert files(tmp_path) == {"n.tar.gz": NIGHT}
    assert list(tmp_path.iterdir()) == [tmp_path / "n.tar.gz"]
    assert told[0] == (0, len(NIGHT))
    assert told[-1] == (len(NIGHT), len(NIGHT))
    assert not get(server, tmp_path, md5(NIGHT))
    (asked,) = server.asked("GET", NAME)
    assert asked["User-Agent"].startswith("vae-astro/")
    assert "Range" not in asked


def test_a_file_that_broke_off_is_gone_on_with(server, tmp_path):
    begin(server, tmp_path, 1000)
    assert get(server, tmp_path, md5(NIGHT))
    assert files(tmp_path) == {"n.tar.gz": NIGHT}
    _, second = server.asked("GET", NAME)
    assert second["Range"] == "bytes=1000-"
    assert second["If-Range"] == f'"{md5(NIGHT)[4:]}"'


def test_truncated_answers_are_put_together_in_one_run(server, tmp_path):
    server.answers[NAME] = [Answer(cut_after=30_000), Answer(cut_after=30_000)]
    assert get(server, tmp_path)
    assert files(tmp_path) == {"n.tar.gz": NIGHT}
    assert [h.get("Range") for h in server.asked("GET", NAME)] == [
        None,
        "bytes=30000-",
        "bytes=60000-",
    ]


def test_a_server_that_stalls_is_left_and_asked_again(server, tmp_path):
    server.answers[NAME] = [Answer(stall_after=5000)]
    assert get(server, tmp_path)
    assert files(tmp_path) == {"n.tar.gz": NIGHT}
    assert server.asked("GET", NAME)[1]["Range"] == "bytes=5000-"
    server.files["/b"] = NIGHT
    server.answers["/b"] = [Answer(stall_after=0)] * 3
    began = time.perf_counter()
    with pytest.raises(DownloadError, match=r"[Tt]imed? ?out.*given up after 3 attempts"):
        get(server, tmp_path, name="/b")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("status", [503, 500, 429])
def test_a_server_that_refuses_for_a_moment_is_asked_again(server, tmp_path, status):
    server.answers[NAME] = [Answer(status=status), Answer(status=status)]
    assert get(server, tmp_path)
    assert files(tmp_path) == {"n.tar.gz": NIGHT}


def test_a_server_that_goes_on_refusing_is_given_up(server, tmp_path):
    server.always = Answer(status=503)
    with pytest.raises(DownloadError, match=r"HTTP 503 .*; given up after 3 attempts"):
        get(server, tmp_path)
    assert len(server.asked("GET", NAME)) == 3


@pytest.mark.parametrize("status", [404, 403, 401, 410])
def test_a_file_that_the_server_does_not_give_is_asked_for_once(server, tmp_path, status):
    server.always = Answer(status=status)
    with pytest.raises(DownloadError, match=f"^HTTP {status}"):
        get(server, tmp_path)
    assert len(server.asked("GET", NAME)) == 1
    assert files(tmp_path) == {}


def test_a_server_says_how_long_to_wait(server, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    in_90_s = formatdate(time.time() + 90, usegmt=True)
    server.answers[NAME] = [
        Answer(status=429, headers={"Retry-After": "7"}),
        Answer(status=503, headers={"Retry-After": in_90_s}),
    ]
    assert get(server, tmp_path)
    assert slept[0] == 7
    assert 80 < slept[1] <= 90
    server.files["/b"] = NIGHT
    server.answers["/b"] = [Answer(status=429, headers={"Retry-After": "86400"})]
    with pytest.raises(DownloadError, match=r"HTTP 429.*asks to wait 86400 s"):
        get(server, tmp_path, name="/b")
    assert len(slept) == 2


def test_waits_double(server, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    server.always = Answer(status=500)
    with pytest.raises(DownloadError):
        get(server, tmp_path, manners=Manners(None, 0, 1, 4, first_wait_s=3))
    assert slept == [3, 6, 12]


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    begin(server, tmp_path, 1000)
    server.always = Answer(ignore_range=True)
    told = []
    assert get(server, tmp_path, md5(NIGHT), told=told)
    assert files(tmp_path) == {"n.tar.gz": NIGHT}
    assert told[0] == (0, len(NIGHT))


def test_a_file_that_changed_between_two_parts_is_read_from_the_start(server, tmp_path):
    begin(server, tmp_path, 1000)
    changed = NIGHT[::-1]
    server.files[NAME] = changed
    assert get(server, tmp_path)
    assert files(tmp_path) == {"n.tar.gz": changed}


def test_without_a_validator_only_a_checksum_lets_a_file_be_gone_on_with(server, tmp_path):
    server.with_etag = False
    begin(server, tmp_path, 1000)
    assert get(server, tmp_path)
    assert "Range" not in server.asked("GET", NAME)[-1]
    (tmp_path / "n.tar.gz").unlink()
    begin(server, tmp_path, 1000, md5(NIGHT))
    server.files[NAME] = NIGHT[::-1]  # as long, and nothing tells that it is another
    assert get(server, tmp_path, md5(NIGHT[::-1]))
    assert server.asked("GET", NAME)[-2]["Range"] == "bytes=1000-"
    assert files(tmp_path) == {"n.tar.gz": NIGHT[::-1]}


def test_a_date_is_a_validator_and_a_weak_etag_is_none(server, tmp_path):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    headers = {"ETag": 'W/"x"', "Last-Modified": date}
    server.answers[NAME] = [Answer(headers=headers, cut_after=1000)]
    assert get(server, tmp_path)
    assert server.asked("GET", NAME)[1]["If-Range"] == date


def test_a_part_of_another_address_is_not_gone_on_with(server, tmp_path):
    begin(server, tmp_path, 1000)
    server.files[f"/other{NAME}"] = NIGHT[::-1]
    assert get(server, tmp_path, name=f"/other{NAME}")
    assert "Range" not in server.asked("GET", f"/other{NAME}")[0]
    assert files(tmp_path) == {"n.tar.gz": NIGHT[::-1]}


@pytest.mark.parametrize("notes", ["", "[]", '{"url": 1}', "\0"])
def test_a_part_with_damaged_notes_is_not_gone_on_with(server, tmp_path, notes):
    begin(server, tmp_path, 1000)
    (tmp_path / "n.tar.gz.part.json").write_text(notes)
    assert get(server, tmp_path)
    assert "Range" not in server.asked("GET", NAME)[-1]
    assert files(tmp_path) == {"n.tar.gz": NIGHT}


def test_a_part_that_is_whole_already_needs_no_request(server, tmp_path):
    begin(server, tmp_path, 1000)
    (tmp_path / "n.tar.gz.part").write_bytes(NIGHT)
    assert get(server, tmp_path, md5(NIGHT))
    assert len(server.asked("GET", NAME)) == 1
    assert files(tmp_path) == {"n.tar.gz": NIGHT}


def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path):
    begin(server, tmp_path, 1000)
    (tmp_path / "n.tar.gz.part").write_bytes(NIGHT + b"more")
    assert get(server, tmp_path)
    assert files(tmp_path) == {"n.tar.gz": NIGHT}


def test_a_file_with_a_wrong_checksum_is_not_kept(server, tmp_path):
    with pytest.raises(DownloadError, match=f"its md5 is {md5(NIGHT)[4:]}, expected {'0' * 32}"):
        get(server, tmp_path, f"md5:{'0' * 32}")
    assert list(tmp_path.iterdir()) == []
    assert len(server.asked("GET", NAME)) == 1  # what came in one piece would come again
    assert get(server, tmp_path, f"sha256:{hashlib.sha256(NIGHT).hexdigest()}")


def test_pieces_that_do_not_fit_together_are_read_again_from_the_start(server, tmp_path):
    begin(server, tmp_path, 1000)
    (tmp_path / "n.tar.gz.part").write_bytes(bytes(1000))
    assert get(server, tmp_path, md5(NIGHT))
    assert [h.get("Range") for h in server.asked("GET", NAME)[1:]] == ["bytes=1000-", None]
    assert files(tmp_path) == {"n.tar.gz": NIGHT}


def test_a_claim_of_more_than_there_is_is_settled_by_asking_for_the_rest(server, tmp_path):
    server.answers[NAME] = [Answer(claim=len(NIGHT) + 10)]
    assert get(server, tmp_path)
    assert server.asked("GET", NAME)[1]["Range"] == f"bytes={len(NIGHT)}-"
    assert files(tmp_path) == {"n.tar.gz": NIGHT}


def test_a_claim_that_is_never_kept_ends_without_a_file(server, tmp_path):
    server.always = Answer(claim=len(NIGHT) + 10, ignore_range=True)
    with pytest.raises(DownloadError, match="given up after 3 attempts"):
        get(server, tmp_path)
    assert "n.tar.gz" not in files(tmp_path)


def test_a_claim_of_less_than_there_is_is_noticed_by_the_checksum(server, tmp_path):
    server.always = Answer(claim=500)
    with pytest.raises(DownloadError, match="its md5 is"):
        get(server, tmp_path, md5(NIGHT))
    assert files(tmp_path) == {}


def test_a_part_that_was_not_asked_for_is_refused(server, tmp_path):
    begin(server, tmp_path, 1000)
    wrong = {"Content-Range": f"bytes 5-6/{len(NIGHT)}"}
    server.answers[NAME] = [Answer(status=206, headers=wrong)]
    assert get(server, tmp_path)
    assert files(tmp_path) == {"n.tar.gz": NIGHT}


def test_redirects_are_followed_and_keep_the_range(server, tmp_path):
    begin(server, tmp_path, 1000)
    server.files["/moved"] = NIGHT
    server.answers[NAME] = [Answer(status=302, headers={"Location": "/moved"})]
    assert get(server, tmp_path)
    assert server.asked("GET", "/moved")[0]["Range"] == "bytes=1000-"
    assert files(tmp_path) == {"n.tar.gz": NIGHT}


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:9/x", "file:///etc/passwd"])
def test_redirects_away_from_the_web_are_not_followed(server, tmp_path, target):
    server.always = Answer(status=302, headers={"Location": target})
    with pytest.raises(DownloadError):
        get(server, tmp_path)
    assert files(tmp_path) == {}


def test_redirects_never_leave_https():
    handler = transfer._SafeRedirects()
    request = transfer.urllib.request.Request("https://host.org/a")
    with pytest.raises(DownloadError, match=r"is moved to http://host.org/a, which is not https"):
        handler.redirect_request(request, None, 302, "", {}, "http://host.org/a?key=1")


def test_redirects_in_a_circle_end(server, tmp_path):
    server.always = Answer(status=302, headers={"Location": NAME})
    with pytest.raises(DownloadError):
        get(server, tmp_path)
    assert len(server.asked("GET", NAME)) < 50


def test_an_answer_that_is_no_http_is_an_error(tmp_path):
    with pytest.raises(DownloadError, match=r"ConnectionRefusedError.*given up after 3 attempts"):
        fetch(Wanted("http://127.0.0.1:9/a"), tmp_path, QUICK, lambda *n: None)


def test_no_more_is_asked_than_manners_allow(server, tmp_path):
    rate = len(NIGHT) / 2**20 / 0.5  # half a second for all
    began = time.perf_counter()
    assert get(server, tmp_path, manners=Manners(rate, timeout_s=5))
    assert 0.45 < time.perf_counter() - began < 5


def test_an_interruption_keeps_what_has_arrived(server, tmp_path):
    def interrupt(n_bytes, total):
        if n_bytes > 20_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(Wanted(f"{server.address}{NAME}"), tmp_path, Manners(0.08), interrupt)
    have = len(files(tmp_path)["n.tar.gz.part"])
    assert 20_000 < have < len(NIGHT)
    assert get(server, tmp_path)
    assert server.asked("GET", NAME)[1]["Range"] == f"bytes={have}-"
    assert files(tmp_path) == {"n.tar.gz": NIGHT}


def test_a_full_disk_is_an_error_that_says_so_and_the_part_stays(server, tmp_path, monkeypatch):
    begin(server, tmp_path, 1000)
    opened = Path.open

    def full(self, *args, **options):
        if args and "+" in args[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=f"out={tmp_path}: the disk is full; make room"):
        get(server, tmp_path)
    monkeypatch.undo()
    assert files(tmp_path) == {"n.tar.gz.part": NIGHT[:1000]}


def test_a_file_that_does_not_fit_on_the_disk_is_not_begun(server, tmp_path):
    server.always = Answer(claim=2**60)
    with pytest.raises(InputError, match=rf"{2**60} bytes to come, .* are free"):
        get(server, tmp_path)


def test_a_key_in_an_address_is_not_written_down(server, tmp_path):
    server.answers[NAME] = [Answer(cut_after=10)]
    wanted = Wanted(f"{server.address}{NAME}?key=geheim")
    with pytest.raises(DownloadError):
        fetch(wanted, tmp_path, Manners(None, 0, 0.3, 1), lambda *n: None)
    notes = json.loads((tmp_path / "n.tar.gz.part.json").read_text())
    assert notes["url"] == f"{server.address}{NAME}"
    assert fetch(wanted, tmp_path, QUICK, lambda *n: None)


def test_a_text_is_fetched_whole_or_not_at_all(server):
    server.files["/MD5SUMS"] = "naïve".encode()
    server.answers["/MD5SUMS"] = [Answer(cut_after=2)]
    assert fetch_text(f"{server.address}/MD5SUMS", QUICK) == "naïve"
    with pytest.raises(DownloadError, match="HTTP 404"):
        fetch_text(f"{server.address}/nowhere", QUICK)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://h.org/a", "no address to download from"),
        ("file:///etc/passwd", "no address"),
        ("https://me:geheim@h.org/a", "no address"),
        ("https:///a", "no address"),
        ("https://h.org/my file", "no address"),
        ("https://h.org/", "does not end in the name of a file"),
        ("https://h.org", "does not end"),
        ("https://h.org/a/..", "does not end"),
        ("https://h.org/a%2Fb", "does not end"),
        ("https://h.org/%2e%2e", "does not end"),
        ("https://h.org/.bashrc", "does not end"),
    ],
)
def test_addresses_are_checked(url, message):
    with pytest.raises(InputError, match=message) as error:
        Wanted(url)
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize("checksum", ["md5:12", "sha1:" + "0" * 40, "0" * 32, "md5:" + "g" * 32])
def test_checksums_are_checked(checksum):
    with pytest.raises(InputError, match="is no checksum; expected md5:"):
        Wanted("https://h.org/a", checksum)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_mib_per_s", 0), ("pause_s", -1), ("timeout_s", 0), ("n_attempts", 0)],
)
def test_manners_are_checked_and_named(key, value):
    with pytest.raises(InputError, match=f"^{key} must be"):
        Manners(**{key: value})
