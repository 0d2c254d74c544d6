"""What is packed at once is, byte by byte, what kafka-python packs one by one."""

from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from service.kafka import Record
from service.kafka_packed import pack

TIMESTAMP_MS = 1_700_000_000_000
FIRST = (b"first", b"\x00")

sizes = st.integers(0, 130) | st.sampled_from([8_100, 8_175, 8_176, 8_177, 8_191, 8_192, 70_000])
keys = st.none() | sizes.map(lambda n: b"k" * n)
records = st.lists(st.tuples(keys, sizes.map(lambda n: b"v" * n)), max_size=300)


def builder(room: int) -> DefaultRecordBatchBuilder:
    """Return the library's builder of a transaction's batch."""
    return DefaultRecordBatchBuilder(2, 0, True, 7, 0, 0, room)


@given(records, st.integers(0, 20), st.integers(200, 200_000))
def test_packed_is_what_the_library_packs(drawn: list[Record], start: int, room: int) -> None:
    """From any record on and whatever the room, up to the first that the library must take itself."""
    theirs = builder(room)
    theirs.append(0, TIMESTAMP_MS, *FIRST, [])
    body, n = pack(drawn, start, 1, room - theirs.size())
    before = bytes(theirs._buffer)
    taken = [
        theirs.append(1 + i, TIMESTAMP_MS, key, value, []) is not None
        for i, (key, value) in enumerate(drawn[start : start + n])
    ]

    assert all(taken)
    assert before + body == bytes(theirs._buffer)
    left = drawn[start + n : start + n + 1]
    # What is left has no key, is long, or does not fit the library's batch either.
    for key, value in left:
        is_short = key is not None and len(key) + len(value) <= 8_176
        assert not is_short or theirs.append(1 + n, TIMESTAMP_MS, key, value, []) is None


def test_a_batch_ends_before_offsets_take_three_bytes() -> None:
    """What comes after the 8,192nd record of a batch is the library's."""
    body, n = pack([(b"", b"")] * 10_000, 0, 1, 10**6)
    full = builder(10**6)
    full.append(0, TIMESTAMP_MS, *FIRST, [])
    full._buffer += body
    full._num_records += n
    full._last_offset += n
    [batch] = MemoryRecords(bytes(full.build()))

    assert n == 8_191
    assert batch.validate_crc()
    assert [record.offset for record in batch] == list(range(8_192))
