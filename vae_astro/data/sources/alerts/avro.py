"""Avro files: their header and blocks, read strictly and within limits of memory.

fastavro's own file reader parses the schema of every file again and unpacks a block whatever its
size. Alerts come one a file, all of a night with the same schema: here a header that was seen
before is known by its bytes.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import cramjam
from fastavro import parse_schema, schemaless_reader
from isal import isal_zlib

from vae_astro.data.sources.alerts.avro_record import RecordDecoder, read_long
from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import Root

__all__ = ["MAX_BLOCK_BYTES", "numbered_records", "packets", "read_records"]

IN_MEMORY_BYTES = 2**24  # a larger file is read block by block
MAX_BLOCK_BYTES = 2**28  # largest block once unpacked
MAX_SCHEMA_BYTES = 2**22
N_KNOWN_HEADERS = 16
KNOWN_HEADER_BYTES = 2**18  # longer ones are not kept
SYNC_BYTES = 16  # marker between the blocks, another one in each file
INTEGER_BYTES = 10  # of the longest integer

_HEADER_SCHEMA = parse_schema(
    {
        "type": "record",
        "name": "header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "magic", "size": 4}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
        ],
    }
)


Records = Callable[
    [BinaryIO, int, tuple[str, ...]], Iterator[tuple[str, dict[str, Any] | Exception]]
]


class _Header(NamedTuple):
    """What stands before the marker of a file, and what was made of it."""

    text: bytes
    wanted: tuple[str, ...]
    codec: str
    decoder: RecordDecoder


_known_headers: deque[_Header] = deque(maxlen=N_KNOWN_HEADERS)


def packets(
    sources: Sequence[Source], root: Root, wanted: tuple[str, ...], records: Records | None = None
) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
    """The records of Avro files, each with its source, or what was in the way of reading one.

    Parameters
    ----------
    sources, root
        The files.
    wanted : tuple of str
        Fields to read; see `RecordDecoder`.
    records : callable, optional
        Reads one file, as `numbered_records` does by default.
    """
    records = records or numbered_records
    files = [source.files[0] for source in sources]
    contents = root.read_many([f for f in files if f.n_bytes <= IN_MEMORY_BYTES], IN_MEMORY_BYTES)
    for file in files:
        if file.n_bytes <= IN_MEMORY_BYTES:
            content = next(contents)
            if not isinstance(content, bytes):
                yield file.name, content
                continue
            stream: BinaryIO = BytesIO(content)
        else:
            try:
                stream = root.open(file)
            except Exception as error:
                yield file.name, error
                continue
        with stream:
            for place, record in records(stream, file.n_bytes, wanted):
                yield file.name + place, record


def numbered_records(
    stream: BinaryIO, n_bytes: int, wanted: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
    """The records of an Avro file with ``[k]`` where it holds several, else an empty text.

    What ends the file before its time comes in the place of the record that it cost. See
    `read_records` for the parameters.
    """
    # One record is held back: only the next one tells whether the file holds several.
    held: dict[str, Any] | None = None
    n_seen = 0
    try:
        for record in read_records(stream, n_bytes, wanted):
            if held is not None:
                yield f"[{n_seen - 1}]", held
            held, n_seen = record, n_seen + 1
        if held is None:
            raise RefusedError("no record", "an Avro file without a record")
        yield f"[{n_seen - 1}]" if n_seen > 1 else "", held
    except Exception as error:
        if held is not None:
            yield f"[{n_seen - 1}]", held
        yield f"[{n_seen}]" if n_seen else "", error


def read_records(
    stream: BinaryIO, n_bytes: int, wanted: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """The records of an Avro file, one by one.

    Parameters
    ----------
    stream : binary file
        The file; it can be searched.
    n_bytes : int
        Its size.
    wanted : tuple of str
        Fields to read; see `RecordDecoder`.

    Raises
    ------
    RefusedError
        If the file is no Avro file, breaks off, is packed with an unknown codec or unpacks to too
        much.
    Exception
        Whatever fastavro makes of damaged data.
    """
    try:
        header = _read_header(stream, wanted)
        sync = _exactly(stream, SYNC_BYTES)
        while block := _next_block(stream):
            n_records, n_packed = block
            n_there = min(n_packed, n_bytes - stream.tell())
            if n_there > MAX_BLOCK_BYTES:
                raise _too_large(f"a block of {n_packed} bytes")
            packed = stream.read(n_there)
            whole = len(packed) == n_packed
            if not whole and header.codec != "null":
                raise EOFError(f"a block of {n_packed} bytes has only {len(packed)}")
            yield from _unpack_records(_unpack(packed, header.codec), n_records, header.decoder)
            if not whole or _exactly(stream, SYNC_BYTES) != sync:
                raise EOFError("a block does not end with the marker of the file")
    except EOFError as error:
        raise RefusedError("truncated file", f"the packet breaks off: {error}") from error


def _read_header(stream: BinaryIO, wanted: tuple[str, ...]) -> _Header:
    """The header; the stream stands at the marker after it."""
    for header in tuple(_known_headers):
        stream.seek(0)
        if header.wanted == wanted and stream.read(len(header.text)) == header.text:
            return header
    stream.seek(0)
    head = stream.read(16)
    if not head.startswith(b"Obj\x01"):
        raise RefusedError("not an Avro file", f"begins with {head!r}, expected Obj and a 1")
    stream.seek(0)
    # In memory, a length that lies about the file cannot make Python reserve it.
    start = BytesIO(stream.read(MAX_SCHEMA_BYTES))
    meta: Any = schemaless_reader(start, _HEADER_SCHEMA, None)
    meta = meta["meta"]
    if "avro.schema" not in meta:
        raise RefusedError("unreadable", f"its header has {sorted(meta)}, expected avro.schema")
    codec = meta.get("avro.codec", b"null").decode()
    if codec not in ("null", "deflate", "snappy"):
        raise RefusedError("unsupported codec", f"{codec}, expected null, deflate or snappy")
    stream.seek(start.tell())
    text = start.getvalue()[: start.tell()]
    header = _Header(text, wanted, codec, RecordDecoder(meta["avro.schema"], wanted))
    if len(text) <= KNOWN_HEADER_BYTES:
        _known_headers.appendleft(header)
    return header


def _next_block(stream: BinaryIO) -> tuple[int, int] | None:
    """Numbers of records and of bytes of the block that begins here; None at the end."""
    head = stream.read(2 * INTEGER_BYTES)
    if not head:
        return None
    n_records, place = read_long(head, 0)
    n_packed, place = read_long(head, place)
    if n_records < 0 or n_packed < 0:
        raise RefusedError("unreadable", f"a block of {n_records} records in {n_packed} bytes")
    stream.seek(place - len(head), 1)
    return n_records, n_packed


def _unpack_records(data: bytes, n_records: int, decoder: RecordDecoder) -> Iterator[Any]:
    """The records of an unpacked block."""
    place = 0
    for k in range(n_records):
        if place >= len(data):  # a record takes at least a byte; a claim of more would never end
            raise EOFError(f"a block holds {k} records and claims {n_records}")
        record, place = decoder.read(data, place)
        if k == n_records - 1 and place != len(data):
            break
        yield record
    if place != len(data):
        detail = f"{n_records} records take {place} bytes of a block that has {len(data)}"
        raise RefusedError("unreadable", detail)


def _unpack(packed: bytes, codec: str) -> bytes:
    """A block as it was before it was packed."""
    if codec == "deflate":
        inflater = isal_zlib.decompressobj(wbits=-15)
        data = inflater.decompress(packed, MAX_BLOCK_BYTES + 1)
        if len(data) > MAX_BLOCK_BYTES:
            raise _too_large("a block that is packed with deflate")
        if not inflater.eof:
            raise EOFError("a block that is packed with deflate ends early")
        return data
    if codec == "snappy":
        body, checksum = packed[:-4], packed[-4:]
        if cramjam.snappy.decompress_raw_len(body) > MAX_BLOCK_BYTES:
            raise _too_large("a block that is packed with snappy")
        data = bytes(cramjam.snappy.decompress_raw(body))
        if zlib.crc32(data).to_bytes(4, "big") != checksum:
            raise RefusedError("unreadable", "a block that is packed with snappy has another sum")
        return data
    return packed


def _exactly(stream: BinaryIO, n_bytes: int) -> bytes:
    data = stream.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError(f"{len(data)} bytes are left of {n_bytes}")
    return data


def _too_large(what: str) -> RefusedError:
    return RefusedError("too large", f"{what}; at most {MAX_BLOCK_BYTES} bytes are unpacked")
