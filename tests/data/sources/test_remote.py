"""Remote roots list and read as local ones do, whatever the server does, and tell no secrets."""

import pickle
import threading
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from web_server import Answer, serve

from vae_astro.data.sources import network, remote
from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.root import FileVersion, Root, open_root
from vae_astro.errors import InputError

LARGE = 2**30
SKY = bytes(range(256)) * 30


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr(network, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def server():
    with serve() as server:
        yield server


@pytest.fixture
def memory():
    """An empty ``memory://``, and empty again when the test is over."""
    filesystem = fsspec.filesystem("memory", use_listings_cache=False)
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


# What is there


def test_a_web_server_is_listed_by_its_links_with_size_and_etag(server):
    server.files = {
        "/sky/b 100%41.fits": SKY,
        "/sky/deep/er/a.fits": b"12",
        "/sky/.hidden.fits": SKY,
        "/sky/.git/c.fits": SKY,
        "/elsewhere/d.fits": SKY,
    }
    root = open_root(f"{server.address}/sky")
    listed = root.list_files()
    assert [file[:2] for file in listed] == [("b 100%41.fits", len(SKY)), ("deep/er/a.fits", 2)]
    assert all(file.version.startswith('"') for file in listed)
    assert open_root(f"{server.address}/sky/").list_files() == listed
    assert root.describe("deep/er/a.fits") == listed[1]
    assert list(root.read_many(listed, LARGE)) == [SKY, b"12"]
    assert not server.asked("GET", "/elsewhere/") + server.asked("GET", "/sky/.git/")


def test_a_web_address_of_one_file_is_a_root_of_that_file(server):
    server.files["/sky/a b.fits"] = SKY
    root = open_root(f"{server.address}/sky/a%20b.fits?token=geheim")
    (file,) = root.list_files()
    assert file.name == "a b.fits"
    assert root.read(file, LARGE) == SKY
    assert root.folder == f"{server.address}/sky"


def test_memory_is_listed_and_read(memory):
    memory.pipe({"/sky/b.fits": SKY, "/sky/deep/a.fits": b"12", "/sky/.c.fits": SKY})
    root = open_root("memory://sky")
    listed = root.list_files()
    assert [file[:2] for file in listed] == [("b.fits", len(SKY)), ("deep/a.fits", 2)]
    assert list(root.read_many(listed, LARGE)) == [SKY, b"12"]
    assert root.describe("b.fits") == listed[0]
    (alone,) = open_root("memory://sky/b.fits").list_files()
    assert alone == listed[0]
    assert open_root("memory://sky/b.fits").read(alone, LARGE) == SKY


def test_a_root_that_does_not_exist_is_an_error_that_names_it(server, memory):
    for address in (f"{server.address}/nowhere", f"{server.address}/nowhere/", "memory://nowhere"):
        with pytest.raises(InputError, match=f"data.root={address} does not exist"):
            open_root(address).list_files()


def test_a_server_that_refuses_or_is_not_there_is_an_error_that_says_so(server):
    server.always = Answer(status=403)
    with pytest.raises(InputError, match=r"cannot list it: .*403.* passwords and keys"):
        open_root(f"{server.address}/sky/").list_files()
    server.always = Answer(status=503)
    with pytest.raises(InputError, match=r"cannot list it: after 4 attempts: .*503"):
        open_root(f"{server.address}/sky/").list_files()
    with pytest.raises(InputError, match="ConnectionRefused"):
        open_root("http://127.0.0.1:9/sky/").list_files()


def test_a_missing_driver_is_an_error_with_the_command_that_installs_it(monkeypatch):
    def without_driver(protocol, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", without_driver)
    with pytest.raises(InputError, match=r"pip install 'vae-astro\[remote\]'\): Install s3fs"):
        open_root("s3://bucket/sky")


def test_an_unknown_protocol_is_an_error_that_lists_known_ones():
    with pytest.raises(InputError, match="nonsense:// is not known; use a folder, s3://"):
        open_root("nonsense://bucket/sky")


# Reading


def test_order_is_kept_while_requests_overlap_and_errors_come_in_their_place(server):
    server.files = {f"/sky/{k:02}.fits": bytes([k]) * (k + 1) for k in range(40)}
    root = open_root(f"{server.address}/sky")
    listed = root.list_files()
    del server.files["/sky/07.fits"]
    server.files["/sky/09.fits"] = b"other"
    read = list(root.read_many(listed, 35))
    assert isinstance(read[7], FileNotFoundError)
    assert read[9].reason == "changed"
    assert [item.reason for item in read[35:]] == ["too large"] * 5
    good = [k for k in range(35) if k not in (7, 9)]
    assert [read[k] for k in good] == [bytes([k]) * (k + 1) for k in good]


def test_only_so_many_bytes_and_requests_are_ahead(memory, monkeypatch):
    memory.pipe({f"/sky/{k:02}.fits": bytes(100) for k in range(50)})
    monkeypatch.setattr(remote, "BYTES_AHEAD", 500)
    monkeypatch.setattr(remote, "N_CONNECTIONS", 4)
    begun, running, most = [], [], []
    cat, lock = MemoryFileSystem.cat_file, threading.Lock()

    def watched(self, path, **options):
        with lock:
            begun.append(path)
            running.append(path)
            most.append(len(running))
        time.sleep(0.005)
        with lock:
            running.remove(path)
        return cat(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", watched)
    root = open_root("memory://sky")
    for k, content in enumerate(root.read_many(root.list_files(), LARGE)):
        assert content == bytes(100)
        assert len(begun) <= k + 6
    assert len(begun) == 50
    assert 1 < max(most) <= 4


def test_reading_may_be_given_up_midway(server):
    server.files = {f"/sky/{k:03}.fits": SKY for k in range(100)}
    root = open_root(f"{server.address}/sky")
    contents = root.read_many(root.list_files(), LARGE)
    assert next(contents) == SKY
    contents.close()
    assert sum(method == "GET" for method, path, _ in server.requests if "fits" in path) < 60


def test_overlapping_requests_take_less_time_than_one_after_another(memory, monkeypatch):
    memory.pipe({f"/sky/{k:02}.fits": SKY for k in range(32)})
    info = MemoryFileSystem.info

    def slow(self, path, **options):
        time.sleep(0.02)
        return info(self, path, **options)

    root = open_root("memory://sky")
    listed = root.list_files()
    monkeypatch.setattr(MemoryFileSystem, "info", slow)
    began = time.perf_counter()
    assert list(root.read_many(listed, LARGE)) == [SKY] * 32
    assert time.perf_counter() - began < 32 * 0.02 / 2


@pytest.mark.parametrize(
    "failure",
    [Answer(status=503), Answer(status=429), Answer(cut_after=100), Answer(cut_after=0)],
    ids=["unavailable", "too many", "cut", "hung up"],
)
def test_a_passing_failure_is_tried_again(server, failure):
    server.files["/a.fits"] = SKY
    root = open_root(server.address)
    (file,) = root.list_files()
    server.answers["/a.fits"] = [Answer(), failure]  # the check, then the content
    assert root.read(file, LARGE) == SKY


def test_a_lasting_failure_is_an_error_after_a_few_attempts(server):
    server.files["/a.fits"] = SKY
    root = open_root(server.address)
    (file,) = root.list_files()
    server.always, before = Answer(cut_after=10), len(server.asked("GET", "/a.fits"))
    with pytest.raises(OSError, match="after 4 attempts"):
        root.read(file, LARGE)
    assert len(server.asked("GET", "/a.fits")) == before + 4


def test_a_server_that_stalls_is_given_up(server, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(network, "N_ATTEMPTS", 2)
    server.files["/a.fits"] = SKY
    root = open_root(server.address)
    (file,) = root.list_files()
    server.answers["/a.fits"] = [Answer(), Answer(stall_after=50)] * 2
    began = time.perf_counter()
    with pytest.raises(OSError, match=r"after 2 attempts: .*Timeout"):
        root.read(file, LARGE)
    assert time.perf_counter() - began < 5


def test_a_server_that_sends_more_than_it_said_is_refused_without_taking_it_all(server):
    server.files["/a.fits"] = SKY
    root = open_root(server.address)
    (file,) = root.list_files()
    server.answers["/a.fits"] = [Answer(), Answer(become=SKY + bytes(2**22))]
    with pytest.raises(RefusedError, match="changed: more than the 7680 bytes"):
        root.read(file, LARGE)


def test_a_file_without_size_or_content_is_refused(server, memory):
    memory.pipe("/sky/a.fits", b"")
    root = open_root("memory://sky")
    with pytest.raises(RefusedError, match="empty file"):
        root.read(root.list_files()[0], LARGE)
    server.files["/a.fits"] = SKY
    server.always = Answer(headers={"Content-Encoding": "gzip"})
    root = open_root(server.address)
    with pytest.raises(RefusedError, match="size unknown"):
        root.read(root.list_files()[0], LARGE)


def test_packed_files_arrive_as_they_are_stored(server):
    server.files["/a.fits.gz"] = b"\x1f\x8b" + SKY
    root = open_root(server.address)
    assert root.read(root.list_files()[0], LARGE) == b"\x1f\x8b" + SKY
    asked = server.asked("GET", "/a.fits.gz") + server.asked("HEAD", "/a.fits.gz")
    assert {headers["Accept-Encoding"] for headers in asked} == {"identity"}


@pytest.mark.parametrize("ignore_range", [False, True])
def test_an_open_file_is_searched_without_reading_all_of_it(server, ignore_range):
    content = bytes(range(256)) * 20_000
    server.files["/a.fits"] = content
    server.always = Answer(ignore_range=ignore_range)
    root = open_root(server.address)
    with root.open(root.list_files()[0]) as stream:
        assert stream.read(10) == content[:10]
        stream.seek(3_000_001)
        assert stream.read(100) == content[3_000_001:3_000_101]
        assert stream.seek(0, 2) == len(content)
    if not ignore_range:
        ranges = [headers["Range"] for headers in server.asked("GET", "/a.fits")]
        assert len(ranges) == 3


def test_there_is_no_path_so_readers_read_the_content(memory):
    memory.pipe("/sky/a.fits", SKY)
    root = open_root("memory://sky")
    (file,) = root.list_files()
    for use in (root.local_path, root.descriptor):
        with pytest.raises(RefusedError, match="not on this machine: lies below memory://sky"):
            use(file)


@pytest.mark.parametrize("name", ["../a.fits", "/a.fits", "x/../../a.fits", "http://u:p@h/a.fits"])
def test_a_name_that_leads_outside_is_refused(memory, name):
    with pytest.raises(RefusedError, match="outside the root") as error:
        open_root("memory://sky", allow_outside=True).describe(name)
    assert "u:p" not in str(error.value)


# Secrets


def test_user_and_password_are_used_but_never_shown(server):
    server.files["/sky/a.fits"] = SKY
    with_secret = server.address.replace("http://", "http://me:geheim@")
    root = pickle.loads(pickle.dumps(open_root(f"{with_secret}/sky/")))
    (file,) = root.list_files()
    assert root.read(file, LARGE) == SKY
    assert all("Authorization" in headers for _, _, headers in server.requests)
    server.always = Answer(status=403)
    shown = [repr(root), str(root), root.address, root.identity, root.folder]
    with pytest.raises(OSError, match="403") as error:
        root.read(file, LARGE)
    shown.append(str(error.value))
    with pytest.raises(InputError, match="403") as refused:
        root.list_files()
    shown.append(str(refused.value))
    with pytest.raises(InputError) as missing:
        root.find((".fits",), (), "")
    shown.append(str(missing.value))
    assert not [text for text in shown if "geheim" in text or "me:" in text]


def test_the_identity_is_that_of_the_place_and_not_of_who_asks():
    def identity(address):
        return open_root(address).identity

    assert identity("https://me:pw@Host.org/sky/") == identity("HTTPS://host.org/sky")
    assert identity("https://host.org/sky") == "https://host.org/sky"
    one, other = identity("https://h.org/get?file=1"), identity("https://h.org/get?file=2")
    assert one != other
    assert "file" not in one
    assert identity("memory://Sky") != identity("memory://sky")


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://u:p@h.org/a?k=v gone", "https://h.org/a gone"),
        ("url='http://h/a?X-Amz-Signature=1&b=2'", "url='http://h/a'"),
        ("s3://key:secret@bucket/x and s3://b/y", "s3://bucket/x and s3://b/y"),
        ("me@host.org wrote a.fits?", "me@host.org wrote a.fits?"),
    ],
)
def test_secrets_are_taken_out_of_texts(text, hidden):
    assert network.hide_secrets(text) == hidden


# Object stores


class Bucket(MemoryFileSystem):
    """What s3fs tells of its files, kept in memory."""

    protocol = "s3"
    store: dict = {}  # noqa: RUF012 - the class's own, as in its base
    pseudo_dirs = [""]  # noqa: RUF012
    failures: list = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("s3://"))

    def info(self, path, **options):
        path = self._strip_protocol(path)
        if self.failures:
            raise self.failures.pop()
        told = super().info(path, **options)
        return {**told, "ETag": f'"{hash(self.store[path].getvalue())}"'} if told["size"] else told

    def find(self, path, detail=False, **options):
        return {name: self.info(name) for name in super().find(path)}


@pytest.fixture
def bucket():
    from fsspec.registry import _registry, register_implementation

    before = _registry.get("s3")
    register_implementation("s3", Bucket, clobber=True)
    yield fsspec.filesystem("s3", use_listings_cache=False)
    Bucket.store.clear()
    Bucket.failures.clear()
    if before is None:
        _registry.pop("s3")
    else:
        register_implementation("s3", before, clobber=True)


def test_an_object_store_is_listed_by_etag_and_read(bucket):
    bucket.pipe({"/stamps/night/a.fits": SKY, "/stamps/night/b.fits": b"12"})
    root = open_root("s3://stamps/night")
    first, second = root.list_files()
    assert first == FileVersion("a.fits", len(SKY), f'"{hash(SKY)}"')
    assert list(root.read_many([first, second], LARGE)) == [SKY, b"12"]
    with root.open(first) as stream:
        stream.seek(256)
        assert stream.read(3) == SKY[:3]
    bucket.pipe("/stamps/night/b.fits", b"21")
    (changed,) = root.read_many([second], LARGE)
    assert changed.reason == "changed"


def test_an_object_store_that_fails_for_a_moment_is_asked_again(bucket):
    bucket.pipe("/stamps/a.fits", SKY)
    root = open_root("s3://stamps")
    (file,) = root.list_files()
    Bucket.failures[:] = [TimeoutError("slow"), ConnectionResetError("gone")]
    assert root.read(file, LARGE) == SKY
    Bucket.failures[:] = [PermissionError("no key for s3://me:geheim@stamps")]
    with pytest.raises(PermissionError) as error:
        root.read(file, LARGE)
    assert "geheim" not in str(error.value)


def test_remote_roots_offer_what_local_ones_do():
    public = {name for name in dir(Root) if not name.startswith("_")}
    assert public <= set(dir(remote.RemoteRoot))
    own = vars(remote.RemoteRoot)
    inherited = {name for name in public - {"address", "allow_outside"} if name not in own}
    assert inherited == {"find"}
