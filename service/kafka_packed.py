"""kafka-python's transactional producer, with records handed over many at a time.

`KafkaProducer.send` costs 10 µs a record, more than decoding, features, model and encoding together: it checks each
record, takes five locks for it and makes a future that nobody reads. Here the first record of a partition's batch goes
through `send`, which checks the transaction, makes the batch and wakes the sender, and the others are packed behind it
in one piece. What cannot be packed goes through `send` as well, so that the library decides what becomes of it.
"""

import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer, TopicPartition

from service.kafka import Record

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


def pack(records: Sequence[Record], start: int, offset: int, room: int) -> tuple[bytes, int]:
    """Return records as the body of a record batch, format version 2, all with the batch's first timestamp.

    Args:
        records: Keys and values.
        start: The first of them that is packed.
        offset: Its offset in the batch.
        room: Bytes that may be filled.

    Returns:
        The bytes, and of how many records; it ends before one that has no key or value, is too long or has no room.
    """
    parts: list[bytes] = []
    add, varints, n = parts.extend, _VARINTS, 0
    for key, value in records[start : start + max(0, _SHORT - offset)]:
        if key is None or value is None:
            break
        n_key, n_value = len(key), len(value)
        if n_key + n_value > _SHORT - 16:
            break
        at, key_length, value_length = varints[offset + n], varints[n_key], varints[n_value]
        # Attributes, timestamp behind the first, offset, key, value, number of headers.
        size = 3 + len(at) + len(key_length) + n_key + len(value_length) + n_value
        length = varints[size]
        room -= size + len(length)
        if room < 0:
            break
        add((length, b"\0\0", at, key_length, key, value_length, value, b"\0"))
        n += 1
    return b"".join(parts), n


class Producer(KafkaProducer):  # type: ignore[misc]  # the library has no types
    """Adds `send_all`; it reaches into the library's accumulator, whose version is locked."""

    def send_all(self, topic: str, records: Sequence[Record], partition: int) -> None:
        """Hand records without headers to the current transaction, in their order.

        Raises:
            KafkaError: As `send`.
        """
        place = TopicPartition(topic, partition)
        i = 0
        while i < len(records):
            key, value = records[i]
            self.send(topic, value, key, None, partition)
            i += 1
            i += self._pack_behind(place, records, i)

    def _pack_behind(self, place: TopicPartition, records: Sequence[Record], start: int) -> int:
        """Pack records into the newest batch of a partition; return how many it took."""
        accumulator = self._accumulator
        with accumulator._tp_lock(place):
            waiting = accumulator._batches[place]
            if not waiting or waiting[-1].records._closed:
                return 0  # the sender has just taken it
            batch = waiting[-1]
            builder: Any = batch.records._builder
            body, n = pack(records, start, batch.records.next_offset(), builder._batch_size - builder.size())
            builder._buffer += body
            builder._num_records += n
            builder._last_offset += n
            batch.records._next_offset += n
            batch.last_append = time.monotonic()
            return n
