"""Avro files of any schema: what is wanted of their records, and nothing that is not certain."""

import json
import random
import tracemalloc
from io import BytesIO
from typing import Any

import cramjam
import fastavro
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vae_astro.data.sources.alerts import avro, avro_record
from vae_astro.data.sources.alerts.avro import numbered_records, read_records
from vae_astro.data.sources.alerts.avro_record import RecordDecoder, read_long
from vae_astro.data.sources.files import RefusedError

SYNC = b"0123456789abcdef"
FLAT = {
    "type": "record",
    "name": "alert",
    "fields": [{"name": "id", "type": "long"}, {"name": "text", "type": "string"}],
}


def record_schema(*fields: tuple[str, Any], name: str = "alert") -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": key, "type": kind} for key, kind in fields],
    }


def encode(schema: Any, record: Any) -> bytes:
    stream = BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), record)
    return stream.getvalue()


def container(schema: Any, *blocks: tuple[int, bytes], codec: str = "null") -> bytes:
    """An Avro file put together by hand, so that its blocks can lie."""
    meta = {"avro.schema": json.dumps(schema).encode(), "avro.codec": codec.encode()}
    raw = b"Obj\x01" + encode({"type": "map", "values": "bytes"}, meta) + SYNC
    for n_records, data in blocks:
        raw += encode("long", n_records) + encode("long", len(data)) + data + SYNC
    return raw


def read(raw: bytes, *wanted: str) -> list[Any]:
    return list(read_records(BytesIO(raw), len(raw), wanted or ("id",)))


def decode(schema: Any, data: bytes, *wanted: str) -> dict[str, Any]:
    record, end = RecordDecoder(json.dumps(schema).encode(), wanted).read(data, 0)
    assert end == len(data)
    return record


PRIMITIVES = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32),
    "double": st.floats(),
    "bytes": st.binary(max_size=300),
    "string": st.text(max_size=200),
}


@st.composite
def typed_values(draw, depth: int = 2) -> tuple[Any, Any]:
    """A type and a value of it; names of records are unique by a counter in the draw."""
    kinds = list(PRIMITIVES) + (["array", "record", "optional", "map", "fixed"] if depth else [])
    kind = draw(st.sampled_from(kinds))
    if kind in PRIMITIVES:
        return kind, draw(PRIMITIVES[kind])
    if kind == "fixed":
        data = draw(st.binary(min_size=1, max_size=20))
        return {"type": "fixed", "name": f"f{draw(st.uuids()).hex}", "size": len(data)}, data
    if kind == "record":
        inner = draw(st.lists(typed_values(depth - 1), min_size=1, max_size=4))
        name = f"r{draw(st.uuids()).hex}"
        schema = record_schema(*((f"k{k}", kind) for k, (kind, _) in enumerate(inner)), name=name)
        return schema, {f"k{k}": value for k, (_, value) in enumerate(inner)}
    inner_kind, value = draw(typed_values(depth - 1))
    if kind == "map":
        return {"type": "map", "values": inner_kind}, {"key": value}
    if kind == "array":
        n = draw(st.integers(0, 3))
        if inner_kind == "null" or n == 0:
            return {"type": "array", "items": "long"}, [7] * n
        return {"type": "array", "items": inner_kind}, [value] * n
    if inner_kind == "null" or isinstance(inner_kind, list):
        return ["null", "long"], None
    return draw(
        st.sampled_from([(["null", inner_kind], value), ([inner_kind, "null"], value)])
        | st.just((["null", inner_kind], None))
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(typed_values(), min_size=1, max_size=6), st.data())
def test_wanted_fields_are_what_fastavro_reads_whatever_stands_between_them(drawn, data):
    fields = [(f"k{k}", kind) for k, (kind, _) in enumerate(drawn)]
    record = {f"k{k}": value for k, (_, value) in enumerate(drawn)}
    schema = record_schema(*fields)
    raw = encode(schema, record)
    wanted = tuple(data.draw(st.lists(st.sampled_from(sorted(record)), unique=True)))
    try:
        decoder = RecordDecoder(json.dumps(schema).encode(), wanted)
    except RefusedError:
        assume(False)  # an array of records that hold nothing
    found, end = decoder.read(raw, 0)
    expected = fastavro.schemaless_reader(BytesIO(raw), fastavro.parse_schema(schema), None)
    assert end == len(raw)
    assert repr(found) == repr({key: expected[key] for key in wanted})


HISTORY = record_schema(
    ("jd", "double"), ("mag", ["null", "float"]), ("name", ["null", "string"]), name="history"
)
ALERT = record_schema(
    ("name", "string"),
    ("candidate", record_schema(("jd", "double"), ("ra", "double"), name="candidate")),
    ("history", ["null", {"type": "array", "items": HISTORY}]),
    ("limits", [{"type": "array", "items": "history"}, "null"]),
    ("pixels", "bytes"),
)
PAST = [{"jd": k / 3, "mag": None if k % 2 else 20.5, "name": f"image {k}"} for k in range(40)]


def alert(**changes: Any) -> dict[str, Any]:
    candidate = {"jd": 1.5, "ra": 2.5}
    whole = {"name": "a", "candidate": candidate, "history": PAST, "limits": PAST, "pixels": b"px"}
    return whole | changes


@pytest.mark.parametrize(
    "changes", [{}, {"history": None, "limits": None}, {"history": []}, {"name": "x" * 5000}]
)
def test_history_is_stepped_over(changes):
    found = decode(ALERT, encode(ALERT, alert(**changes)), "candidate.ra", "pixels")
    assert found == {"candidate.ra": 2.5, "pixels": b"px"}


def test_history_is_not_built(monkeypatch):
    decoded = []
    original = avro_record.schemaless_reader

    def spy(stream, schema, reader_schema):
        record = original(stream, schema, reader_schema)
        decoded.append(sorted(record))
        return record

    monkeypatch.setattr(avro_record, "schemaless_reader", spy)
    decode(ALERT, encode(ALERT, alert()), "candidate.ra", "pixels")
    assert decoded == [["candidate.ra"], ["pixels"]]


def test_what_the_expressions_do_not_fit_is_left_to_fastavro():
    far = [{"jd": 0.5, "mag": None, "name": "y" * 500}]
    found = decode(ALERT, encode(ALERT, alert(limits=far)), "name", "pixels")
    assert found == {"name": "a", "pixels": b"px"}


def test_a_field_of_a_record_that_may_be_null_is_found_and_a_missing_one_left_out():
    schema = record_schema(("source", ["null", record_schema(("ra", "double"), name="source")]))
    assert decode(schema, encode(schema, {"source": {"ra": 3.0}}), "source.ra") == {
        "source.ra": 3.0
    }
    assert decode(schema, encode(schema, {"source": None}), "source.ra", "other") == {}


@pytest.mark.parametrize("value", [0, -1, 1, 63, 64, -65, 2**31, 2**63 - 1, -(2**63)])
def test_integers_are_those_of_fastavro(value):
    data = encode("long", value)
    assert read_long(b"junk" + data + b"junk", 4) == (value, 4 + len(data))


@pytest.mark.parametrize(("data", "error"), [(b"", EOFError), (b"\x80", EOFError)])
def test_an_integer_that_breaks_off_or_never_ends_is_an_error(data, error):
    with pytest.raises(error):
        read_long(data, 0)
    with pytest.raises(ValueError, match="64 bits"):
        read_long(b"\xff" * 30, 0)


def doubling(depth: int) -> Any:
    kind: Any = "null"
    for k in range(depth):
        kind = record_schema(("a", kind), ("b", f"n{k - 1}" if k else "null"), name=f"n{k}")
    return kind


def nested(depth: int) -> Any:
    kind: Any = "long"
    for _ in range(depth):
        kind = {"type": "array", "items": kind}
    return record_schema(("a", kind))


@pytest.mark.parametrize(
    ("schema", "reason", "words"),
    [
        (record_schema(("next", ["null", "alert"])), "unsupported schema", "contains itself"),
        (
            record_schema(("a", {"type": "array", "items": "null"})),
            "unsupported schema",
            "no space",
        ),
        (doubling(18), "unsupported schema", "types"),
        (nested(100), "unsupported schema", "deep"),
        (
            record_schema(("a", {"type": "fixed", "name": "f", "size": -4})),
            "unsupported schema",
            "-4",
        ),
        ("long", "unreadable", "expected a record"),
        ({"type": "array", "items": "long"}, "unreadable", "is a array"),
    ],
)
def test_a_schema_that_fastavro_would_crash_or_hang_on_is_refused(schema, reason, words):
    with pytest.raises(RefusedError, match=words) as refused:
        read(container(schema, (1, b"\x02" * 100_000)))
    assert refused.value.reason == reason


def test_a_file_of_several_blocks_gives_its_records_in_order():
    blocks = [
        (2, b"".join(encode(FLAT, {"id": 2 * k + j, "text": "t"}) for j in (0, 1)))
        for k in range(3)
    ]
    raw = container(FLAT, *blocks)
    assert read(raw) == [{"id": k} for k in range(6)]
    places = [place for place, _ in numbered_records(BytesIO(raw), len(raw), ("id",))]
    assert places == [f"[{k}]" for k in range(6)]


def test_a_header_in_several_parts_is_read():
    meta = {"avro.schema": json.dumps(FLAT).encode()}
    entries = encode({"type": "map", "values": "bytes"}, meta)[1:-1]
    # a negative number of entries, followed by their size: as the standard allows
    sized = encode("long", -1) + encode("long", len(entries)) + entries + b"\0"
    data = encode(FLAT, {"id": 5, "text": ""})
    raw = b"Obj\x01" + sized + SYNC + b"\x02" + encode("long", len(data)) + data + SYNC
    assert read(raw) == [{"id": 5}]


RECORD = encode(FLAT, {"id": 5, "text": "five"})


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (container(FLAT, (10**15, RECORD)), "truncated file"),
        (container(FLAT, (2, RECORD)), "truncated file"),
        (container(FLAT, (1, RECORD + b"more")), "unreadable"),
        (container(FLAT, (0, RECORD)), "unreadable"),
        (container(FLAT, (-1, RECORD)), "unreadable"),
        (container(FLAT, (1, RECORD))[:-1], "truncated file"),
        (container(FLAT, (1, RECORD))[:-17], "truncated file"),
        (container(FLAT, (1, RECORD))[:-16] + bytes(16), "truncated file"),
        (container(FLAT)[:40], "truncated file"),
        (container(FLAT)[:-1], "truncated file"),
        (container(FLAT) + b"\x02" + encode("long", 2**61), "truncated file"),
        (container(FLAT) + b"\x02", "truncated file"),
        (container(FLAT, (1, RECORD), codec="zstandard"), "unsupported codec"),
        (container(FLAT, (1, b"\x07junk"), codec="deflate"), "unreadable"),
        (container(FLAT, (1, b"\x01"), codec="deflate"), "truncated file"),
        (container(FLAT, (1, b"\xff" * 9), codec="snappy"), "unreadable"),
        (container(FLAT, (1, bytes(cramjam.snappy.compress_raw(RECORD)) + b"0000"), codec="snappy"),
         "unreadable"),
    ],
)  # fmt: skip
def test_a_file_that_lies_about_its_blocks_is_refused(raw, reason):
    *_, (_, error) = numbered_records(BytesIO(raw), len(raw), ("id",))
    assert isinstance(error, Exception)
    assert getattr(error, "reason", "unreadable") == reason


def test_claims_take_no_memory():
    claims = [
        container(FLAT) + b"\x02" + encode("long", 2**40) + RECORD,
        container(FLAT, (1, encode("long", 5) + encode("long", 2**40) + b"abc")),
        container(FLAT, (1, b"\x80\x80\x80\x80\x80\x80\x01"), codec="snappy"),
    ]
    tracemalloc.start()
    for raw in claims:
        *_, (_, error) = numbered_records(BytesIO(raw), len(raw), ("text",))
        assert isinstance(error, Exception)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_few_headers_are_remembered_and_each_is_told_from_the_others():
    for _ in range(2):
        for k in range(40):
            schema = record_schema((f"k{k}", "long"), ("id", "long"))
            raw = container(schema, (1, encode(schema, {f"k{k}": 1, "id": k})))
            assert read(raw) == [{"id": k}]
            assert read(raw, f"k{k}") == [{f"k{k}": 1}]
    assert len(avro._known_headers) <= avro.N_KNOWN_HEADERS


def test_damaged_files_of_many_records_end_in_an_error_or_in_records():
    rng = random.Random(5)
    records = b"".join(encode(ALERT, alert(name=f"a{k}")) for k in range(3))
    whole = container(ALERT, (3, records), (3, records))
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 3])):
            damaged[rng.randrange(len(damaged))] = rng.choice([0, 1, 2, 0x80, 0xFF])
        found = [item for _, item in numbered_records(BytesIO(damaged), len(damaged), ("pixels",))]
        assert 0 < len(found) <= 7
        assert all(isinstance(item, dict) for item in found[:-1])
