"""What is packed and read at once is, byte by byte, what kafka-python packs and reads one by one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from service.kafka import Headers, Record
from service.kafka_records import Producer, _Batch, pack, places

TIMESTAMP_MS = 1_700_000_000_000
FIRST = (b"first", b"\x00")

sizes = st.integers(0, 130) | st.sampled_from([8_100, 8_175, 8_176, 8_177, 8_191, 8_192, 70_000])
keys = st.none() | sizes.map(lambda n: b"k" * n)
headers = st.lists(
    st.tuples(st.text(max_size=5), st.binary(max_size=5) | st.sampled_from([b"h" * 100, b"h" * 9_000])), max_size=3
)
records = st.lists(st.tuples(keys, sizes.map(lambda n: b"v" * n)), max_size=150)


def builder(room: int) -> DefaultRecordBatchBuilder:
    """Return the library's builder of a transaction's batch."""
    return DefaultRecordBatchBuilder(2, 0, True, 7, 0, 0, room)


@given(records, st.none() | st.lists(headers, min_size=1, max_size=4), st.integers(0, 20), st.integers(200, 200_000))
def test_packed_is_what_the_library_packs(
    drawn: list[Record], pool: list[Headers] | None, start: int, room: int
) -> None:
    """From any record on and whatever the room, up to the first that the library must take itself."""
    each = None if pool is None else [pool[i % len(pool)] for i in range(len(drawn))]
    theirs = builder(room)
    theirs.append(0, TIMESTAMP_MS, *FIRST, [])
    body, n = pack(drawn, each, start, 1, room - theirs.size())
    before = bytes(theirs._buffer)
    taken = [
        theirs.append(1 + i, TIMESTAMP_MS, *drawn[start + i], each[start + i] if each else []) is not None
        for i in range(n)
    ]

    assert all(taken)
    assert before + body == bytes(theirs._buffer)
    for i in range(start + n, min(start + n + 1, len(drawn))):
        # What is left is long, or does not fit the library's batch either.
        key, value = drawn[i]
        own = each[i] if each else []
        size = len(key or b"") + len(value) + sum(4 + len(name.encode()) + len(text) for name, text in own)
        assert size > 8_100 or theirs.append(1 + n, TIMESTAMP_MS, key, value, own) is None


def test_each_record_has_its_headers() -> None:
    """Lists of different length are a mistake of the caller's, told before anything is sent."""
    with pytest.raises(ValueError, match="1 headers for 2 records"):
        Producer.send_all(object(), "scores", [FIRST, FIRST], [[]], 0)  # type: ignore[arg-type]


def test_a_batch_ends_before_offsets_take_three_bytes() -> None:
    """What comes after the 8,192nd record of a batch is the library's."""
    body, n = pack([(b"", b"")] * 10_000, None, 0, 1, 10**6)
    full = builder(10**6)
    full.append(0, TIMESTAMP_MS, *FIRST, [])
    full._buffer += body
    full._num_records += n
    full._last_offset += n
    [batch] = MemoryRecords(bytes(full.build()))

    assert n == 8_191
    assert batch.validate_crc()
    assert [record.offset for record in batch] == list(range(8_192))


written = st.lists(
    st.tuples(
        st.integers(-(2**40), 2**40),
        st.none() | st.binary(max_size=200),
        st.none() | st.binary(max_size=20_000),
        st.just([]) | headers,
    ),
    max_size=40,
)


def fetched(
    drawn: list[tuple[int, bytes | None, bytes | None, Headers]], *, compressed: bool, is_log_time: bool
) -> Any:
    """Return a batch as a broker would hand it over."""
    made = DefaultRecordBatchBuilder(2, int(compressed), False, -1, -1, -1, 10**9)
    for i, (later_ms, *record) in enumerate(drawn):
        made.append(i, TIMESTAMP_MS + later_ms, *record)
    batch = MemoryRecords(bytes(made.build())).next_batch()
    if is_log_time:
        batch._header_data = (*batch._header_data[:5], batch.attributes | 0x08, *batch._header_data[6:])
    return batch


@settings(deadline=None)  # the first call compiles
@given(written, st.booleans(), st.booleans())
def test_read_is_what_the_library_reads(drawn: list[Any], compressed: bool, is_log_time: bool) -> None:
    """Any times, nulls, headers and compression; with the base offset and the sizes."""
    theirs = [vars_of(each) for each in fetched(drawn, compressed=compressed, is_log_time=is_log_time)]
    ours = [vars_of(each) for each in _Batch(fetched(drawn, compressed=compressed, is_log_time=is_log_time))]

    assert ours == theirs


def vars_of(record: Any) -> tuple[Any, ...]:
    """Return everything that the consumer asks a record for."""
    names = ("size_in_bytes", "offset", "timestamp", "timestamp_type", "key", "value", "headers", "checksum")
    return *(getattr(record, name) for name in names), record.validate_crc()


@settings(deadline=None)
@example([(0, None, None, [])], (62, 128, 78))  # the first record's attributes
@example([(0, b"key", b"value", [])], (62, 128, 200))
@given(written.filter(bool), st.tuples(st.integers(61, 10**6), st.integers(0, 255), st.integers(61, 10**6)))
def test_damage_is_the_librarys_to_judge(drawn: list[Any], damage: tuple[int, int, int]) -> None:
    """With bytes exchanged or cut, nothing is read beyond the batch, and what is read is what the library reads."""

    def damaged() -> Any:
        batch = fetched(drawn, compressed=False, is_log_time=False)
        n = len(batch._buffer)
        batch._buffer[61 + (at - 61) % (n - 61)] = byte
        del batch._buffer[61 + (cut - 61) % (n - 60) :]
        return batch

    at, byte, cut = damage
    try:
        theirs = [vars_of(each) for each in damaged()]
    except (CorruptRecordError, UnicodeDecodeError):
        with pytest.raises((CorruptRecordError, UnicodeDecodeError)):
            list(_Batch(damaged()))
        return

    assert [vars_of(each) for each in _Batch(damaged())] == theirs


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 20,  # a number without end
        b"\xfe" + b"\xff" * 8 + b"\x01",  # a record of 2^63 - 1 bytes
        b"\x18\0\0\0" + b"\xfe" + b"\xff" * 8 + b"\x01" + b"\0" * 8,  # a key of as many
        b"\x02\0",  # a record that ends before its fields
    ],
)
def test_no_number_leads_out_of_the_batch(data: bytes) -> None:
    """Lengths that nothing has are refused, also those that wrap around when they are added."""
    assert not places(np.frombuffer(data, dtype=np.uint8), 0, np.empty((1, 7), dtype=np.int64))
