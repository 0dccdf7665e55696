"""Files are listed in order and opened as they were listed; what is unsafe is refused."""

import os
import pickle
import time

import pytest

from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.remote import RemoteRoot
from vae_astro.data.sources.root import FileVersion, Root, open_root
from vae_astro.errors import InputError

LARGE = 2**30


def write(folder, names, content=b"1234567"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names(root):
    return [file.name for file in root.list_files()]


def find(folder):
    return Root(str(folder)).find((".fits", ".fits.gz"), (".avro",), "use data=alerts")


# What is there


def test_files_are_listed_at_any_depth_in_order_and_hidden_ones_are_skipped(tmp_path):
    wanted = ["B.FITS", "a.fits", "sub/d.fits.gz", "sub/deep/c.fits"]
    write(tmp_path, [*wanted, "notes.txt", ".hidden.fits", ".cache/x.fits", "sub/._e.fits"])
    assert names(Root(str(tmp_path))) == sorted([*wanted, "notes.txt"])
    assert [file.name for file in find(tmp_path)] == sorted(wanted)


def test_a_file_is_listed_with_its_size_and_time_of_change(tmp_path):
    write(tmp_path, ["a.fits"])
    os.utime(tmp_path / "a.fits", ns=(5, 123456789))
    listed = [FileVersion("a.fits", 7, "123456789")]
    assert Root(str(tmp_path)).list_files() == listed
    assert Root(str(tmp_path / "a.fits")).list_files() == listed
    assert Root(str(tmp_path)).describe("a.fits") == listed[0]


def test_a_root_is_the_same_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path)
    spelled = [str(tmp_path), ".", "link", "~", f"file://{tmp_path}", f"FILE://localhost{tmp_path}"]
    assert {open_root(address).identity for address in spelled} == {str(tmp_path)}


def test_a_file_address_is_decoded_and_that_of_another_machine_refused(tmp_path):
    assert open_root("file:///tmp/my%20stamps").address == "/tmp/my stamps"
    with pytest.raises(InputError, match=r"data\.root=file://other/x is on the machine other"):
        open_root("file://other/x")
    assert isinstance(open_root("memory://x"), RemoteRoot)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([], ["holds no files; expected some ending in .fits"]),
        (["notes.txt", "zoo.png"], ["holds 2 files", "none ending in .fits", "notes.txt"]),
        (["a.txt", "b.AVRO"], ["holds 2 files", "use data=alerts"]),
    ],
)
def test_a_folder_without_wanted_files_is_an_error_that_says_what_it_holds(tmp_path, held, words):
    write(tmp_path, held)
    with pytest.raises(InputError) as error:
        find(tmp_path)
    for word in [f"data.root={tmp_path}", *words]:
        assert word in str(error.value)
    assert ("data=alerts" in str(error.value)) == ("b.AVRO" in held)


def test_a_missing_root_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"data\.root=.*nowhere does not exist"):
        find(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_an_error_that_names_it(tmp_path):
    write(tmp_path, ["sub/a.fits"])
    (tmp_path / "sub").chmod(0)
    with pytest.raises(InputError, match=r"cannot list .*sub: Permission denied"):
        find(tmp_path)
    (tmp_path / "sub").chmod(0o700)


def test_a_folder_behind_a_link_is_entered_only_if_allowed_and_circles_end(tmp_path):
    write(tmp_path, ["root/a.fits", "other/b.fits"])
    (tmp_path / "root" / "loop.fits").symlink_to(tmp_path / "root", target_is_directory=True)
    (tmp_path / "root" / "far").symlink_to(tmp_path / "other", target_is_directory=True)
    (tmp_path / "other" / "back").symlink_to(tmp_path / "root", target_is_directory=True)
    assert names(Root(str(tmp_path / "root"))) == ["a.fits"]
    assert names(Root(str(tmp_path / "root"), allow_outside=True)) == ["a.fits", "far/b.fits"]


@pytest.mark.parametrize("name", [b"caf\xe9.fits", "étoile ★.fits".encode(), b" a\nb'.fits"])
def test_a_name_of_any_bytes_is_listed_and_read(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    try:
        with open(path, "wb") as file:
            file.write(b"sky")
    except OSError:
        pytest.skip("this file system takes no such name")
    root = Root(str(tmp_path))
    (file,) = root.find((".fits",), (), "")
    assert os.fsencode(file.name) == name
    assert root.read(file, LARGE) == b"sky"
    assert root.local_path(file).read_bytes() == b"sky"


# What may be read


def test_a_listed_file_is_read_opened_and_has_a_path(tmp_path):
    write(tmp_path, ["sub/a.fits"])
    root = pickle.loads(pickle.dumps(Root(str(tmp_path))))
    (file,) = root.list_files()
    assert root.read(file, 7) == b"1234567"
    with root.open(file) as stream:
        assert stream.seek(3) == 3
        assert stream.read() == b"4567"
    assert root.local_path(file) == tmp_path / "sub" / "a.fits"


def test_a_root_that_is_one_file_reads_that_file(tmp_path, monkeypatch):
    write(tmp_path, ["a.fits", "b.fits"])
    monkeypatch.chdir(tmp_path)
    for address in ("a.fits", str(tmp_path / "a.fits")):
        root = Root(address)
        (file,) = root.list_files()
        assert root.read(file, LARGE) == b"1234567"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.fits").symlink_to(tmp_path / "b.fits")
    root = Root(str(tmp_path / "elsewhere" / "link.fits"))  # named by the user, link or not
    assert root.read(root.list_files()[0], LARGE) == b"1234567"


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path):
    write(tmp_path, ["a.fits"])
    os.truncate(tmp_path / "a.fits", 2**40)  # sparse: takes no room on disk
    root = Root(str(tmp_path))
    with pytest.raises(RefusedError, match=f"too large: {2**40} bytes, at most 1000 are read"):
        root.read(root.list_files()[0], 1000)


def test_a_link_is_followed_only_within_the_root_unless_allowed(tmp_path):
    write(tmp_path, ["root/a.fits", "c.fits"])
    (tmp_path / "root" / "b.fits").symlink_to("a.fits")
    (tmp_path / "root" / "c.fits").symlink_to(tmp_path / "c.fits")
    root = Root(str(tmp_path / "root"))
    _, inside, outside = root.list_files()
    assert root.read(inside, LARGE) == b"1234567"
    for use in (root.open, root.local_path, lambda file: root.read(file, LARGE)):
        with pytest.raises(RefusedError, match=r"outside the root: .*data\.allow_outside=true"):
            use(outside)
    assert Root(root.address, allow_outside=True).read(outside, LARGE) == b"1234567"


def test_a_name_from_a_catalogue_that_leads_outside_is_refused_unless_allowed(tmp_path):
    write(tmp_path, ["root/a.fits", "c.fits", "root-2/d.fits"])
    (tmp_path / "root" / "far").symlink_to(tmp_path / "root-2", target_is_directory=True)
    root = Root(str(tmp_path / "root"))
    for name in ("../c.fits", str(tmp_path / "c.fits"), "far/d.fits", "../root-2/d.fits"):
        with pytest.raises(RefusedError, match="outside the root"):
            root.describe(name)
        assert Root(root.address, allow_outside=True).describe(name).n_bytes == 7
    with pytest.raises(FileNotFoundError):
        root.describe("nowhere.fits")


def test_empty_files_pipes_and_folders_are_refused_without_waiting(tmp_path):
    (tmp_path / "empty.fits").touch()
    os.mkfifo(tmp_path / "pipe.fits")
    (tmp_path / "folder.fits").mkdir()
    root = Root(str(tmp_path))
    reasons = {"empty.fits": "empty file", "pipe.fits": "not a regular file"}
    assert names(root) == list(reasons)
    began = time.perf_counter()
    for file in root.list_files():
        with pytest.raises(RefusedError, match=reasons[file.name]):
            root.read(file, LARGE)
    with pytest.raises(RefusedError, match="not a regular file"):
        root.open(root.describe("folder.fits"))
    assert time.perf_counter() - began < 5


def test_a_file_that_changed_since_it_was_listed_is_refused(tmp_path):
    write(tmp_path, ["a.fits", "b.fits"])
    os.utime(tmp_path / "b.fits", ns=(1, 1))
    root = Root(str(tmp_path))
    longer, newer = root.list_files()
    write(tmp_path, ["a.fits"], b"12345678")
    write(tmp_path, ["b.fits"], b"7654321")
    for file in (longer, newer):
        with pytest.raises(RefusedError, match=r"changed: . bytes, it was another file"):
            root.read(file, LARGE)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    write(tmp_path, ["a.fits"])
    root = Root(str(tmp_path))
    read, (file,) = os.read, root.list_files()
    parts = iter([b"123", b"45", b""])
    monkeypatch.setattr(os, "read", lambda descriptor, n: next(parts))
    with pytest.raises(RefusedError, match="changed: 5 bytes, 7 when it was listed"):
        root.read(file, LARGE)
    monkeypatch.setattr(os, "read", lambda descriptor, n: read(descriptor, min(n, 3)))
    assert root.read(file, LARGE) == b"1234567"  # as Linux does from 2 GiB


def test_what_cannot_be_read_comes_in_its_place_and_no_descriptor_is_lost(tmp_path):
    write(tmp_path, ["a.fits", "c.fits", "d.fits"])
    (tmp_path / "b.fits").symlink_to("nowhere")
    root = Root(str(tmp_path))
    files = root.list_files()
    (tmp_path / "c.fits").unlink()
    n_open = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    first, dangling, gone, last = root.read_many(files, LARGE)
    assert first == last == b"1234567"
    assert isinstance(dangling, FileNotFoundError)
    assert isinstance(gone, FileNotFoundError)
    assert next(root.read_many(files[:1], 3)).reason == "too large"
    if n_open:
        assert len(os.listdir("/proc/self/fd")) == n_open
