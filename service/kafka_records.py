"""Kafka's records, many at a time, for kafka-python, which packs and reads them one by one in Python.

`KafkaProducer.send` costs 10 µs a record, more than decoding, features, model and encoding together: it checks each
record, takes five locks for it and makes a future that nobody reads. Here the first record of a partition's batch goes
through `send`, which checks the transaction, makes the batch and wakes the sender, and the others are packed behind it
in one piece. What is long or has no room goes through `send` as well, so that the library decides what becomes of it.

Reading costs 6 µs a record for its variable-length numbers. Here one compiled call finds where the keys and values of a
whole batch lie. Checksums, aborted transactions and control records stay the library's, and so does a batch with
headers or of another format.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from msgspec import Struct
from numpy.typing import NDArray

from features.compiled import compiled, inlined
from service.kafka import Headers, Record

_SHORT = 8192
"""Lengths and offsets below take two bytes at most; longer records are `send`'s."""


def _varint(number: int) -> bytes:
    """Return a number from 0 on as Kafka's protocol writes it: zigzag, then 7 bits a byte, the lowest first."""
    left = number << 1
    found = bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)


_VARINTS = [_varint(number) for number in range(_SHORT)]
_NULL, _NO_HEADERS = b"\x01", b"\0"


def pack(
    records: Sequence[Record], headers: Sequence[Headers] | None, start: int, offset: int, room: int
) -> tuple[bytes, int]:
    """Return records as the body of a record batch, format version 2, all with the batch's first timestamp.

    Args:
        records: Keys and values.
        headers: Of each record; None where none has any.
        start: The first of them that is packed.
        offset: Its offset in the batch.
        room: Bytes that may be filled.

    Returns:
        The bytes, and of how many records; it ends before one that is too long or has no room.
    """
    parts: list[bytes] = []
    add, varints, n = parts.extend, _VARINTS, 0
    tail = _NO_HEADERS
    for i in range(start, min(len(records), start + max(0, _SHORT - offset))):
        key, value = records[i]
        if headers is not None:
            tail = _packed(headers[i])
        n_key, n_value, n_tail = 0 if key is None else len(key), len(value), len(tail)
        if n_key + n_value + n_tail > _SHORT - 16:
            break
        at, value_length = varints[offset + n], varints[n_value]
        key_length = _NULL if key is None else varints[n_key]
        # Attributes, timestamp behind the first, offset, key, value, headers.
        size = 2 + len(at) + len(key_length) + n_key + len(value_length) + n_value + n_tail
        length = varints[size]
        room -= size + len(length)
        if room < 0:
            break
        add((length, b"\0\0", at, key_length, key or b"", value_length, value, tail))
        n += 1
    return b"".join(parts), n


def _packed(headers: Headers) -> bytes:
    """Return a record's headers, long enough to be refused where one of them is too long."""
    parts = [_VARINTS[len(headers)]]
    for name, value in headers:
        named = name.encode()
        if len(named) + len(value) >= _SHORT:
            return bytes(_SHORT)
        parts += (_VARINTS[len(named)], named, _VARINTS[len(value)], value)
    return b"".join(parts)


class Producer(KafkaProducer):  # type: ignore[misc]  # the library has no types
    """Adds `send_all`; it reaches into the library's accumulator, whose version is locked."""

    def send_all(
        self, topic: str, records: Sequence[Record], headers: Sequence[Headers] | None, partition: int
    ) -> None:
        """Hand records, and the headers of each, to the current transaction, in their order.

        Raises:
            KafkaError: As `send`.
            ValueError: There are not as many headers as records.
        """
        if headers is not None and len(headers) != len(records):
            raise ValueError(f"{len(headers)} headers for {len(records)} records")
        place = TopicPartition(topic, partition)
        i = 0
        while i < len(records):
            key, value = records[i]
            self.send(topic, value, key, None if headers is None else headers[i], partition)
            i += 1
            i += self._pack_behind(place, records, headers, i)

    def _pack_behind(
        self, place: TopicPartition, records: Sequence[Record], headers: Sequence[Headers] | None, start: int
    ) -> int:
        """Pack records into the newest batch of a partition; return how many it took."""
        accumulator = self._accumulator
        with accumulator._tp_lock(place):
            waiting = accumulator._batches[place]
            if not waiting or waiting[-1].records._closed:
                return 0  # the sender has just taken it
            batch = waiting[-1]
            builder: Any = batch.records._builder
            room = builder._batch_size - builder.size()
            body, n = pack(records, headers, start, batch.records.next_offset(), room)
            builder._buffer += body
            builder._num_records += n
            builder._last_offset += n
            batch.records._next_offset += n
            batch.last_append = time.monotonic()
            return n


@inlined
def _number(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """Return the number at a place and the place after it; that is behind the end where the number is cut."""
    found = np.uint64(0)
    shift = np.uint64(0)
    while at < end and shift < 64:
        byte = np.uint64(data[at])
        at += 1
        found |= (byte & np.uint64(0x7F)) << shift
        if byte < 0x80:
            return np.int64(found >> np.uint64(1)) ^ -np.int64(found & np.uint64(1)), at  # type: ignore[return-value]
        shift += np.uint64(7)
    return 0, end + 1


@compiled
def places(data: NDArray[np.uint8], at: int, found: NDArray[np.int64]) -> bool:
    """Find where the records of a batch lie, format version 2.

    Args:
        data: The batch, uncompressed.
        at: Where its records begin.
        found: Gets a row for each record, shape (n, 7): its size, its time and offset behind the batch's first, and
            where key and value begin and end; a start of -1 is null.

    Returns:
        Whether all of it are records without headers; `found` holds nothing of use otherwise.
    """
    end = len(data)
    for i in range(len(found)):
        size, at = _number(data, at, end)
        # The library reads the attributes, one byte of which nothing is used, as a number of any length.
        if not 1 <= size <= end - at or data[at] >= 0x80:
            return False
        last = at + size
        at += 1
        found[i, 0] = size
        found[i, 1], at = _number(data, at, last)
        found[i, 2], at = _number(data, at, last)
        for j in (3, 5):
            length, at = _number(data, at, last)
            if length < 0:
                found[i, j] = -1
                continue
            if length > last - at:
                return False
            found[i, j], found[i, j + 1] = at, at + length
            at += length
        n_headers, at = _number(data, at, last)
        if n_headers != 0 or at != last:
            return False
    return at == end


def warm() -> None:
    """Compile what reads a batch, or load it from the cache on disk."""
    places(np.frombuffer(b"", dtype=np.uint8), 0, np.empty((0, 7), dtype=np.int64))


class _Read(Struct, gc=False):
    """A record as the library's consumer asks for it; its own class answers by function calls, 15 a record."""

    size_in_bytes: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[Any]
    checksum: None = None

    def validate_crc(self) -> bool:
        """Say that the record is whole: the batch's checksum has told."""
        return True


class _Batch:
    """A batch of the library's that reads its records at once where it can."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        batch = self._batch
        iter(batch)  # decompresses it
        data = bytes(batch._buffer)
        if not 0 <= batch.records_count <= len(data):
            return iter(batch)
        found = np.empty((batch.records_count, 7), dtype=np.int64)
        if not places(np.frombuffer(data, dtype=np.uint8), batch._pos, found):
            return iter(batch)
        return self._records(found.tolist(), data)

    def _records(self, found: list[list[int]], data: bytes) -> Iterator[_Read]:
        batch = self._batch
        base, first, kind = batch.base_offset, batch.first_timestamp, batch.timestamp_type
        appended = batch.max_timestamp if kind == batch.LOG_APPEND_TIME else None
        for size, later, offset, key, key_end, value, value_end in found:
            yield _Read(
                size,
                base + offset,
                first + later if appended is None else appended,
                kind,
                None if key < 0 else data[key:key_end],
                None if value < 0 else data[value:value_end],
                [],
            )


class _Batches:
    """What was fetched, batch by batch."""

    def __init__(self, fetched: Any) -> None:
        self._fetched = fetched

    def next_batch(self) -> Any:
        batch = self._fetched.next_batch()
        return batch if batch is None or batch.magic != 2 or batch.is_control_batch else _Batch(batch)


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # the library has no types
    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        found: Iterator[Any] = super()._unpack_records(tp, _Batches(records), *deserializers)
        return found


class Consumer(KafkaConsumer):  # type: ignore[misc]  # the library has no types
    """Reads the records of a batch at once."""

    def __init__(self, **configs: Any) -> None:
        super().__init__(**configs)
        self._fetcher.PartitionRecords = _PartitionRecords
