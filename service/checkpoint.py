"""How far a chain is published, as Kafka holds it: the last committed value under the chain's key.

The topic is compacted and written in the same Kafka transactions as the blocks, to its partition 0. It is read after
the transactional id was taken over, which settles the last writer's transaction one way or the other.
"""

import time
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition

from features.errors import BrokerError, OutageError, StateError
from service import chain, kafka_python
from service.chain import Checkpoint
from service.kafka import FETCH_BYTES_MAX, REQUEST_SECONDS, TRANSACTION_SECONDS, Client, Topic
from service.settings import Settings

CONFIGURATION = {
    "cleanup.policy": "compact",
    # Only closed segments are compacted, and a start reads what is left: 4 MiB are 600 checkpoints of 65 blocks.
    "segment.bytes": str(4 * 1024 * 1024),
    "min.cleanable.dirty.ratio": "0.1",
}

READ_SECONDS = TRANSACTION_SECONDS + REQUEST_SECONDS
"""Another chain's ingester in the same topic may hold up readers for as long as its open transaction lives."""


def key(settings: Settings) -> bytes:
    """Return the key of a chain's checkpoint for a topic."""
    return f"{settings.chain_id}/{settings.transactions_topic}".encode()


def ensure_topics(client: Client, settings: Settings) -> None:
    """Create the topics that ingestion writes to where they are missing, or refuse to go on without them.

    Raises:
        BrokerError: A topic is missing and `create_topics` is off, or the broker refuses to create it.
    """
    wanted = {
        settings.transactions_topic: (settings.partitions, {}),
        settings.checkpoint_topic: (1, CONFIGURATION),
    }
    there = client.topics()
    missing = [name for name in wanted if name not in there]
    if missing and not settings.create_topics:
        raise BrokerError(
            f"Kafka at {settings.bootstrap_servers} has no topic {', '.join(map(repr, missing))}; "
            "create it, or set create_topics to true"
        )
    for name in missing:
        n_partitions, configuration = wanted[name]
        client.create_topic(
            Topic(name, n_partitions), replication_factor=settings.replication_factor, configuration=configuration
        )


def read(settings: Settings) -> Checkpoint | None:
    """Return the committed checkpoint of the settings' chain, None where there is none.

    Raises:
        StateError: It is damaged or of another chain.
        OutageError: Kafka did not give all of the topic in time.
    """
    raw = kafka_python.asked(settings, f"reading {settings.checkpoint_topic!r}", lambda: _last(settings))
    if raw is None:
        return None
    try:
        found = chain.decode(raw)
    except msgspec.DecodeError as error:
        raise StateError(f"the checkpoint in {settings.checkpoint_topic!r} cannot be read: {error}") from error
    if found.chain_id != settings.chain_id:
        raise StateError(f"the checkpoint is of chain {found.chain_id}, the setting chain_id {settings.chain_id}")
    return found


def _last(settings: Settings) -> bytes | None:
    """Return the value of the last committed record under our key."""
    partition = TopicPartition(settings.checkpoint_topic, 0)
    timeout_ms = int(REQUEST_SECONDS * 1000)
    wanted = key(settings)
    consumer = _consumer(settings)
    try:
        consumer.assign([partition])
        start = consumer.beginning_offsets([partition], timeout_ms=timeout_ms)[partition]
        end = _end(settings, partition, timeout_ms)
        consumer.seek(partition, start)
        found = None
        deadline_s = time.monotonic() + READ_SECONDS
        while consumer.position(partition, timeout_ms=timeout_ms) < end:
            for records in consumer.poll(timeout_ms=100).values():
                found = next((record.value for record in reversed(records) if record.key == wanted), found)
            if time.monotonic() > deadline_s:
                raise OutageError(
                    f"Kafka at {settings.bootstrap_servers} gave {settings.checkpoint_topic!r} not up to offset {end} "
                    f"within {READ_SECONDS:g} s: a transaction of another writer may be open"
                )
        return found
    finally:
        consumer.close(autocommit=False, timeout_ms=2000)


def _end(settings: Settings, partition: Any, timeout_ms: int) -> int:
    """Return the offset behind all records, those of open transactions included.

    A committed reader's end is that of the oldest open transaction of any writer, and our own last checkpoint may stand
    behind it.
    """
    consumer = _consumer(settings, isolation_level="read_uncommitted")
    try:
        return int(consumer.end_offsets([partition], timeout_ms=timeout_ms)[partition])
    finally:
        consumer.close(autocommit=False, timeout_ms=2000)


def _consumer(settings: Settings, *, isolation_level: str = "read_committed") -> Any:
    return KafkaConsumer(
        **kafka_python.connection(settings),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level=isolation_level,
        allow_auto_create_topics=False,
        max_partition_fetch_bytes=FETCH_BYTES_MAX,
        fetch_max_bytes=FETCH_BYTES_MAX,
        metrics_enabled=False,
    )
