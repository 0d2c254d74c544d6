"""The `export` command: a topic's transactions as an archive by day, from where the last run ended.

It reads without a consumer group, so nobody's offsets move and it may run beside the service. Only committed records
are read. What it knows of its place stands in the archive itself (`service/archiver.py`).
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from features.errors import BrokerError, InputError, OutageError
from service import kafka_python, security
from service.archiver import Archiver, Origin, Progress
from service.codec import Decoder
from service.kafka import FETCH_BYTES_MAX, REQUEST_SECONDS
from service.pipeline import Message
from service.settings import Settings

POLL_SECONDS = 0.2
POLL_RECORDS = 5_000

PROBE_SECONDS = 1.0
"""Between two questions for the topic's end while nothing comes: they tell an idle topic from a broker that is away."""

FLUSH_SECONDS = 60.0
"""Longest that records wait in memory while following a slow topic: 1,440 files a day and partition."""

METADATA_SECONDS = 5.0
"""Between two looks for partitions that were added to the topic; asking at once could block without a limit."""

PROGRESS_SECONDS = 5.0

INTERRUPTED = 130

Tell = Callable[[int, int], None]
"""Told how many records of how many are done."""


def command(settings: Settings, *, folder: Path, follow: bool) -> int:
    """Export until the end or until stopped, tell the progress on standard error, and return the exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    done = export(settings, folder=folder, follow=follow, stop=stop, tell=_Telling().tell)
    sys.stderr.write(
        f"the archive holds {done.n_transactions:,} transactions and {done.n_rejected:,} rejected messages of "
        f"{settings.transactions_topic!r}; {done.n_skipped:,} records without a value were left out\n"
    )
    if stop.is_set() and not follow:
        sys.stderr.write("stopped before the end; the next run goes on from here\n")
        return INTERRUPTED
    return 0


def export(
    settings: Settings, *, folder: Path, follow: bool = False, stop: threading.Event | None = None, tell: Tell
) -> Progress:
    """Export a topic's committed records that an archive does not hold yet.

    Args:
        settings: Brokers, security, topic, chain and the limits of a message.
        folder: The archive.
        follow: Go on with what comes until stopped; otherwise end where the topic ended at the start.
        stop: When set, what was read is written and the export ends.
        tell: Told of the progress.

    Returns:
        What the archive holds.

    Raises:
        InputError: The folder holds something else, cannot be written, or the topic no longer holds what comes next.
        OutageError: Kafka was away, or records did not come, for `broker_retry_seconds`.
        BrokerError: Kafka refuses us, or has no such topic.
    """
    stop = stop or threading.Event()
    patience = Patience(settings.broker_retry_seconds)
    reader = patience.insist(lambda: Reader(settings), stop)
    try:
        decoder = Decoder(chain_id=settings.chain_id, message_bytes_max=settings.message_bytes_max)
        archiver = Archiver(folder, origin=reader.origin, decoder=decoder)
        try:
            return _copy(reader, archiver, patience, follow=follow, stop=stop, tell=tell)
        finally:
            archiver.close()
    finally:
        reader.close()


def _copy(
    reader: "Reader", archiver: Archiver, patience: "Patience", *, follow: bool, stop: threading.Event, tell: Tell
) -> Progress:
    ends = patience.insist(lambda: reader.begin(archiver.progress.next), stop)
    n_before = sum(reader.positions.values())
    flushed_s = probed_s = time.monotonic()
    while True:
        messages: list[Message] = []
        try:
            messages = reader.poll()
        except OutageError as error:
            patience.spend(error)
        archiver.add(messages)
        positions = reader.positions
        is_behind = any(positions[partition] < end for partition, end in ends.items())
        is_done = stop.is_set() or not (follow or is_behind)
        now_s = time.monotonic()
        if is_done or archiver.is_full or now_s - flushed_s >= FLUSH_SECONDS:
            archiver.flush(positions)
            flushed_s = now_s
        tell(sum(positions.values()) - n_before, max(sum(ends.values()), sum(positions.values())) - n_before)
        if is_done:
            return archiver.progress
        if messages:
            patience.restore()
        # Asked while records come as well, if seldom, because of partitions that may be added.
        if now_s - probed_s >= (METADATA_SECONDS if messages else PROBE_SECONDS):
            probed_s = now_s
            ends = _probe(reader, patience, ends, follow=follow)


def _probe(reader: "Reader", patience: "Patience", ends: dict[int, int], *, follow: bool) -> dict[int, int]:
    """Ask where the topic ends, because nothing came for a moment; return the ends to reach."""
    try:
        found = reader.grow() if follow else reader.ends()
    except OutageError as error:
        patience.spend(error)
        return ends
    if all(reader.positions[partition] >= end for partition, end in found.items()):
        patience.restore()
    else:  # restored by the records, if they come
        patience.spend(OutageError(f"{reader.place} sends no records of {reader.topic!r}, though there are more"))
    return found if follow else ends


class Patience:
    """How long the world may keep us waiting in one piece."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self.restore()

    def restore(self) -> None:
        """Begin anew: something went on."""
        self._until_s = time.monotonic() + self._budget_s

    def spend(self, error: OutageError) -> None:
        """Raise the error once the budget is spent."""
        if time.monotonic() >= self._until_s:
            raise OutageError(f"{error}; gave up after {self._budget_s:g} s") from error

    def insist(self, call: Callable[[], Any], stop: threading.Event) -> Any:
        """Return what a call returns, made again within the budget, or raise its error when the budget is spent."""
        while True:
            try:
                return call()
            except OutageError as error:
                self.spend(error)
                if stop.wait(POLL_SECONDS):
                    raise


class Reader:
    """Every partition of a topic, read without a group; made connected."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.place = f"Kafka at {settings.bootstrap_servers}"
        self.topic = settings.transactions_topic
        # A question ends within the budget, or the first one would outlast it.
        self._timeout_ms = int(1000 * min(REQUEST_SECONDS, max(1.0, settings.broker_retry_seconds)))
        security.knock(settings)
        common = kafka_python.connection(settings) | {"bootstrap_timeout_ms": self._timeout_ms}
        admin = kafka_python.asked(settings, "connecting", lambda: kafka_python.Admin(**common))
        try:
            described = kafka_python.asked(
                self._settings, "describing the topic", lambda: admin.describe_topics([self.topic])
            )
            cluster = kafka_python.asked(self._settings, "describing the cluster", admin.describe_cluster)
        finally:
            admin.close()
        if not described or not described[0].get("partitions"):
            raise BrokerError(f"{self.place} has no topic {self.topic!r}")
        self.origin = Origin(str(cluster.get("cluster_id")), self.topic, str(described[0].get("topic_id")))
        self._partitions = sorted(each["partition_index"] for each in described[0]["partitions"])
        self.positions: dict[int, int] = {}
        """The offset after the last record read of each partition."""
        self._consumer: Any = kafka_python.asked(settings, "connecting", lambda: _consumer(common))

    def begin(self, offsets: dict[int, int]) -> dict[int, int]:
        """Go to these offsets, of other partitions to their beginning; return where the partitions end.

        Raises:
            InputError: The topic does not hold the offsets any more, or not yet.
            OutageError: No answer.
        """
        starts = self._offsets("asking for the topic's beginning", self._consumer.beginning_offsets)
        ends = self.ends()
        for partition, wanted in offsets.items():
            start, end = starts.get(partition, 0), ends.get(partition, 0)
            if not start <= wanted <= end:
                raise InputError(
                    f"{self.place} holds offsets {start} to {end} of {self.topic!r}, partition {partition}, and the "
                    f"archive goes on at {wanted}: what lies between is gone; export to another folder"
                )
        self.positions = starts | offsets
        self._consumer.assign([TopicPartition(self.topic, partition) for partition in self._partitions])
        for partition, offset in self.positions.items():
            self._consumer.seek(TopicPartition(self.topic, partition), offset)
        return ends

    def poll(self) -> list[Message]:
        """Return the next records, waiting for the first one for a moment.

        Raises:
            InputError: They were deleted before they were read.
            OutageError: The broker failed in a way that may pass.
        """
        try:
            fetched = self._consumer.poll(timeout_ms=int(POLL_SECONDS * 1000), max_records=POLL_RECORDS)
        except kafka_errors.OffsetOutOfRangeError as error:
            raise InputError(f"{self.place} has deleted what is next in {self.topic!r}: {error}") from error
        except kafka_errors.KafkaError as error:
            raise kafka_python.failure(self._settings, "reading", error) from error
        for place, records in fetched.items():
            self.positions[place.partition] = records[-1].offset + 1
        for partition, known in self.positions.items():
            # Markers of transactions and aborted records lie between the last record and where the consumer is.
            with contextlib.suppress(kafka_errors.KafkaError):
                position = self._consumer.position(TopicPartition(self.topic, partition), timeout_ms=0)
                self.positions[partition] = max(known, position or 0)
        return [
            Message(record.value, record.key, record.topic, record.partition, record.offset, record.timestamp)
            for records in fetched.values()
            for record in records
        ]

    def ends(self) -> dict[int, int]:
        """Ask for the end of each partition, up to which all records are committed or aborted.

        Raises:
            OutageError: No answer.
        """
        return self._offsets("asking for the topic's end", self._consumer.end_offsets)

    def grow(self) -> dict[int, int]:
        """Go on with partitions that were added to the topic, from their beginning, and return where all end."""
        added = (self._consumer.partitions_for_topic(self.topic) or set()) - set(self._partitions)
        if not added:
            return self.ends()
        before = self._partitions
        self._partitions = sorted({*before, *added})
        try:
            return self.begin(self.positions)
        except OutageError:
            self._partitions = before
            raise

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(autocommit=False, timeout_ms=2000)

    def _offsets(self, doing: str, ask: Callable[..., dict[Any, int]]) -> dict[int, int]:
        places = [TopicPartition(self.topic, partition) for partition in self._partitions]
        found = kafka_python.asked(self._settings, doing, lambda: ask(places, timeout_ms=self._timeout_ms))
        return {place.partition: offset for place, offset in found.items()}


def _consumer(common: dict[str, Any]) -> Any:
    return KafkaConsumer(
        **common,
        group_id=None,
        enable_auto_commit=False,
        # What was deleted before it was exported is an error, not a jump.
        auto_offset_reset="none",
        metadata_max_age_ms=int(METADATA_SECONDS * 1000),
        isolation_level="read_committed",
        allow_auto_create_topics=False,
        max_partition_fetch_bytes=FETCH_BYTES_MAX,
        fetch_max_bytes=FETCH_BYTES_MAX,
        metrics_enabled=False,
    )


class _Telling:
    """The progress on standard error: a moving line on a terminal, a plain one now and then elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._started_s = self._told_s = time.monotonic()

    def tell(self, n_done: int, n: int) -> None:
        """Say how far it is, unless that was said a moment ago."""
        now_s = time.monotonic()
        if now_s - self._told_s < (0.2 if self._is_terminal else PROGRESS_SECONDS) and n_done < n:
            return
        if n_done == n and not self._is_terminal and now_s - self._told_s < PROGRESS_SECONDS:
            return
        self._told_s = now_s
        rate = n_done / max(now_s - self._started_s, 1e-9)
        line = f"read {n_done:,} of {n:,} offsets, {rate:,.0f} a second"
        sys.stderr.write(f"\r{line}" if self._is_terminal else f"{line}\n")
