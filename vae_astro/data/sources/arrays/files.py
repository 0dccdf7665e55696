"""Files of arrays, read row by row: .npy, .npz and HDF5, with nothing unpickled."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from vae_astro.data.sources.files import MAX_UNPACKED_BYTES, RefusedError
from vae_astro.data.sources.root import FileVersion, Root

__all__ = ["ARRAY_SUFFIXES", "HDF5_SUFFIXES", "ArrayFile", "StoredArray", "open_arrays"]

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
ARRAY_SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES)
MAX_CLAIMED_BYTES = 2**34
"""Most bytes that a compressed array may claim to unpack to."""
MAX_CHUNK_BYTES = 2**28
"""Most bytes of a chunk of an HDF5 dataset, which is unpacked as a whole."""
LARGEST_RATIO = 1100
"""Of unpacked to packed bytes: what deflate can do at best, and some."""


class StoredArray(NamedTuple):
    """An array in a file, its first axis read in parts.

    Attributes
    ----------
    shape : tuple of int
        As the file claims it; checked against the bytes that are there.
    dtype : dtype
        As the file has it.
    rows : callable
        ``rows(first, last)``: that part of the first axis. Parts of an ``.npz`` must be asked for
        from the first on.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Callable[[int, int], np.ndarray]


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """A file of arrays that is open; a context that closes it.

    Attributes
    ----------
    arrays : dict
        Every array by its name; the only one of an ``.npy`` has an empty name.
    refused : dict
        Arrays that are not read, and why.
    """

    arrays: dict[str, StoredArray]
    refused: dict[str, RefusedError]
    _open: list[Any] = field(repr=False)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._open:
            handle.close()


def open_arrays(root: Root, file: FileVersion) -> ArrayFile:
    """The arrays of a file, told apart by its ending; only headers are read.

    An ``.npy`` on this machine is mapped. Of an ``.npz`` and HDF5 what is asked for is read.

    Raises
    ------
    RefusedError
        If the file is truncated or of another kind than its ending says.
    OSError
        If it is not there.
    """
    name = file.name.lower()
    if name.endswith(".npy"):
        return _open_npy(root, file)
    if name.endswith(".npz"):
        return _open_npz(root, file)
    return _open_hdf5(root, file)


def _open_npy(root: Root, file: FileVersion) -> ArrayFile:
    stream: Any = root.open(file)
    try:
        shape, fortran, dtype = _read_header(stream)
        offset = stream.tell()
        n_held = file.n_bytes - offset
        if n_held < math.prod(shape) * dtype.itemsize:
            raise RefusedError(
                "truncated file",
                f"{n_held} bytes of values, the header claims {math.prod(shape) * dtype.itemsize}",
            )
        order: Literal["F", "C"] = "F" if fortran else "C"
        try:
            stream.fileno()
        except (OSError, AttributeError):  # not on this machine
            raw = root.read(file, MAX_UNPACKED_BYTES)
            values = np.frombuffer(raw, dtype, math.prod(shape), offset).reshape(shape, order=order)
        else:
            values = np.asarray(np.memmap(stream, dtype, "r", offset, shape, order))

        def rows(first: int, last: int) -> np.ndarray:
            # reading a mapping of a file that became shorter would end the process
            if not _is_unchanged(stream, file):
                raise RefusedError("changed", f"{file.name} was written to while it was read")
            return np.array(values[first:last])

        return ArrayFile({"": StoredArray(shape, dtype, rows)}, {}, [stream])
    except BaseException:
        stream.close()
        raise


def _is_unchanged(stream: BinaryIO, file: FileVersion) -> bool:
    try:
        status = os.fstat(stream.fileno())
    except (OSError, AttributeError):  # in memory, and so our own
        return True
    return (status.st_size, str(status.st_mtime_ns)) == file[1:]


def _open_npz(root: Root, file: FileVersion) -> ArrayFile:
    stream = root.open(file)
    handles: list[Any] = [stream]
    arrays: dict[str, StoredArray] = {}
    refused: dict[str, RefusedError] = {}
    try:
        try:
            archive = zipfile.ZipFile(stream)
        except zipfile.BadZipFile as error:
            raise RefusedError("truncated file", f"no archive of arrays: {error}") from error
        handles.insert(0, archive)
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                continue
            try:
                arrays[name] = _npz_array(archive, info, handles)
            except RefusedError as error:
                refused[name] = error
        return ArrayFile(arrays, refused, handles)
    except BaseException:
        for handle in handles:
            handle.close()
        raise


def _npz_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, handles: list[Any]) -> StoredArray:
    """One array of an archive, unpacked as it is read."""
    member: Any = archive.open(info)
    handles.insert(0, member)
    shape, fortran, dtype = _read_header(member)
    n_bytes = math.prod(shape) * dtype.itemsize
    if info.file_size - member.tell() != n_bytes:
        raise RefusedError(
            "truncated file",
            f"{info.file_size - member.tell()} bytes of values, the header claims {n_bytes}",
        )
    limit = MAX_UNPACKED_BYTES if fortran else MAX_CLAIMED_BYTES
    if (fortran or info.compress_type != zipfile.ZIP_STORED) and n_bytes > limit:
        raise RefusedError(
            "too large",
            f"claims to unpack to {n_bytes} bytes, at most {limit} are; save it as .npy or HDF5, "
            "in C order",
        )
    row_bytes = n_bytes // max(1, shape[0]) if shape else n_bytes
    position = 0
    whole: np.ndarray | None = None

    def values(n: int, of_shape: tuple[int, ...]) -> np.ndarray:
        raw = member.read(n)
        if len(raw) < n:
            raise RefusedError("truncated file", f"{len(raw)} bytes of values where {n} belong")
        return np.frombuffer(raw, dtype).reshape(of_shape, order="F" if fortran else "C")

    def rows(first: int, last: int) -> np.ndarray:
        nonlocal position, whole
        if fortran:
            whole = values(n_bytes, shape) if whole is None else whole
            return whole[first:last]
        if first != position:
            raise ValueError(f"row {first} asked for after row {position}")
        position = last
        return values((last - first) * row_bytes, (last - first, *shape[1:]))

    return StoredArray(shape, dtype, rows)


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, and dtype of an array in numpy's format."""
    try:
        version = npy_format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        read = npy_format.read_array_header_1_0
        if version == (2, 0):
            read = npy_format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (ValueError, SyntaxError, TypeError, EOFError) as error:
        raise RefusedError("unreadable", f"no array in numpy's format: {error}") from error
    if dtype.hasobject:
        raise RefusedError("unreadable", "holds Python objects, which are not unpickled")
    if any(n < 0 for n in shape):
        raise RefusedError("unreadable", f"the header claims the shape {shape}")
    return shape, fortran, dtype


def _open_hdf5(root: Root, file: FileVersion) -> ArrayFile:
    import h5py  # optional, and slow to import

    handles: list[Any] = []
    place: Any
    try:
        place = root.local_path(file)
    except RefusedError:  # not on this machine, or not the file that was listed
        place = root.open(file)
        handles.append(place)
    arrays: dict[str, StoredArray] = {}
    refused: dict[str, RefusedError] = {}
    try:
        options = {"locking": False} if isinstance(place, os.PathLike) else {}
        hdf5 = h5py.File(place, "r", **options)
        handles.insert(0, hdf5)

        def visit(name: str, item: Any) -> None:
            # links to other files are not followed here
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                try:
                    _check_dataset(item, root.allow_outside)
                    arrays[name] = _hdf5_array(h5py, item)
                except RefusedError as error:
                    refused[name] = error

        hdf5.visititems(visit)
        return ArrayFile(arrays, refused, handles)
    except BaseException:
        for handle in handles:
            handle.close()
        raise


def _hdf5_array(h5py: Any, dataset: Any) -> StoredArray:
    if h5py.check_string_dtype(dataset.dtype) is not None:
        texts = dataset.asstr(errors="replace")
        return StoredArray(dataset.shape, np.dtype(object), lambda first, last: texts[first:last])
    return StoredArray(dataset.shape, dataset.dtype, lambda first, last: dataset[first:last])


def _check_dataset(dataset: Any, allow_outside: bool) -> None:
    """Refuse a dataset that is somewhere else, or that claims more than it can hold."""
    if (dataset.external or dataset.is_virtual) and not allow_outside:
        raise RefusedError(
            "outside the root",
            "its values are in other files; copy them into one, or set data.allow_outside=true",
        )
    if dataset.is_virtual or dataset.external:
        return
    stored, claimed = dataset.id.get_storage_size(), int(dataset.nbytes)
    if claimed > MAX_CLAIMED_BYTES and claimed > LARGEST_RATIO * stored:
        raise RefusedError("too large", f"claims {claimed} bytes, of which {stored} were written")
    if dataset.chunks is not None:
        chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
        if chunk_bytes > MAX_CHUNK_BYTES:
            raise RefusedError(
                "too large",
                f"chunks of {chunk_bytes} bytes, at most {MAX_CHUNK_BYTES} are unpacked; rewrite "
                "it in smaller ones",
            )
