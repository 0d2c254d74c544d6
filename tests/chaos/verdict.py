"""What became of a stream, by a reader of committed records and an oracle that knows nothing of the service.

The oracle is the input topic itself and what the feeder put there: a whole message must have one score, a cut one its
one rejection with its bytes, an empty one nothing. The scores are then compared, byte by byte but for the time of
scoring, with those of a run over the same topic that nothing disturbed.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from confluent_kafka import Consumer, TopicPartition
from msgspec import Struct

from service.settings import Settings

READ_SECONDS_MAX = 120.0

Place = tuple[int, int]
"""Partition and offset in the input topic."""


class Record(NamedTuple):
    """One committed record."""

    place: Place
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


class Verdict(Struct, frozen=True):
    """Counts over one stream."""

    n_messages: int
    n_scores: int
    n_lost: int
    """Messages without the score or rejection that they must have."""

    n_doubled: int
    """Scores, alerts and rejections beyond the one."""

    n_wrong: int
    """Records that belong to no message, or to another one, alerts that are not their score, spoilt rejections."""

    n_different: int
    """Scores and rejections that are not, bit by bit, those of the undisturbed run."""


class _Source(Struct):
    partition: int
    offset: int


class _Score(Struct):
    hash: str
    decision: str
    source: _Source


def committed(address: str, topic: str) -> list[Record]:
    """Return every committed record of a topic.

    Raises:
        TimeoutError: Its end was not reached in time.
    """
    reader = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": f"{topic}.verdict",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    try:
        n_partitions = len(reader.list_topics(topic, timeout=READ_SECONDS_MAX).topics[topic].partitions)
        reader.assign([TopicPartition(topic, each, 0) for each in range(n_partitions)])
        found: list[Record] = []
        ended: set[int] = set()
        deadline_s = time.monotonic() + READ_SECONDS_MAX
        while len(ended) < n_partitions:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{topic!r} was not read to its end within {READ_SECONDS_MAX:g} s")
            for message in reader.consume(1_000, 0.05):
                if message.error() is not None:
                    ended.add(message.partition())
                    continue
                place = message.partition(), message.offset()
                found.append(Record(place, message.key(), message.value(), dict(message.headers() or ())))
        return found
    finally:
        reader.close()


class Output(NamedTuple):
    """What a run wrote."""

    scores: list[Record]
    alerts: list[Record]
    letters: list[Record]


def output(address: str, settings: Settings) -> Output:
    """Return everything that a service committed."""
    topics = settings.scores_topic, settings.alerts_topic, settings.dlq_topic
    return Output(*(committed(address, topic) for topic in topics))


def judge(address: str, settings: Settings, calm: Settings) -> Verdict:
    """Compare what a service wrote with what it had to write and with an undisturbed run's output."""
    given = committed(address, settings.transactions_topic)
    return compared(given, output(address, settings), output(address, calm))


def compared(messages: list[Record], found: Output, calm: Output) -> Verdict:
    """Compare an output with its input and with an undisturbed run's output."""
    given = {each.place: each.value for each in messages}
    whole = {place for place, value in given.items() if value and value.endswith(b"}")}
    cut = {place for place, value in given.items() if value and not value.endswith(b"}")}
    n_scored = Counter(_of_score(each) for each in found.scores)
    n_rejected = Counter(_of_letter(each) for each in found.letters)
    wanted_alerts = {(each.key, each.value) for each in found.scores if _decoded(each).decision != "allow"}
    n_alerted = Counter((each.key, each.value) for each in found.alerts)
    return Verdict(
        n_messages=len(given),
        n_scores=len(found.scores),
        n_lost=len(whole - n_scored.keys()) + len(cut - n_rejected.keys()) + len(wanted_alerts - n_alerted.keys()),
        n_doubled=sum(n - 1 for counts in (n_scored, n_rejected, n_alerted) for n in counts.values()),
        n_wrong=len(n_scored.keys() - whole)
        + len(n_rejected.keys() - cut)
        + len(n_alerted.keys() - wanted_alerts)
        + sum(_decoded(each).hash.encode() not in (given.get(_of_score(each)) or b"") for each in found.scores)
        + sum(each.value != given.get(_of_letter(each)) for each in found.letters),
        n_different=_n_different(found.scores, calm.scores, _of_score)
        + _n_different(found.letters, calm.letters, _of_letter),
    )


def _n_different(found: list[Record], expected: list[Record], place_of: Callable[[Record], Place]) -> int:
    ours, theirs = ({place_of(each): _lasting(each) for each in records} for records in (found, expected))
    return sum(ours.get(place) != theirs.get(place) for place in ours.keys() | theirs.keys())


def _lasting(record: Record) -> tuple[object, ...]:
    """Return all of a record but when it was made; scores are JSON whose shortest numbers give the very bits."""
    value: object = record.value
    if not record.headers:
        value = {name: each for name, each in msgspec.json.decode(record.value or b"").items() if name != "scored_at"}
    return record.key, value, record.headers


def _decoded(record: Record) -> _Score:
    return msgspec.json.decode(record.value or b"", type=_Score)


def _of_score(record: Record) -> Place:
    source = _decoded(record).source
    return source.partition, source.offset


def _of_letter(record: Record) -> Place:
    return int(record.headers["source_partition"]), int(record.headers["source_offset"])
