"""The default client: kafka-python, all Python, its consumer and its transactional producer."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaAdminClient, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from features.errors import BrokerError, OutageError
from service.kafka import (
    FETCH_BYTES_MAX,
    FETCH_SECONDS,
    METADATA_SECONDS,
    RECORD_BYTES_MAX,
    REQUEST_SECONDS,
    TRANSACTION_SECONDS,
    Calls,
    Headers,
    Record,
    Topic,
    lost_messages,
    lost_partitions,
    poll_interval_ms,
    shared_partitions,
)
from service.kafka_records import Consumer, Producer
from service.pipeline import Message
from service.settings import Settings

# Another process took our place: no retry by this one can be right.
_LOST = (
    kafka_errors.ProducerFencedError,
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.CommitFailedError,
    kafka_errors.FencedInstanceIdError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.UnknownMemberIdError,
)
_NO_PLACE = (kafka_errors.OffsetOutOfRangeError, kafka_errors.NoOffsetForPartitionError)
_REFUSED = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedVersionError,
)


class KafkaPythonClient:
    """See `Client`; made connected."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._place = f"Kafka at {settings.bootstrap_servers}"
        self._topic = settings.transactions_topic
        self._common = connection(settings)
        self._listener = _Listener()
        self._consumer: Any = None
        self._producer: Any = None
        self._calls: Calls | None = None
        self._only_partition: dict[str, int | None] = {}
        self._admin: Any = asked(self._settings, "connecting", lambda: Admin(**self._common))

    def topics(self) -> dict[str, int]:
        """Ask for all topics."""
        described = asked(self._settings, "listing the topics", self._admin.describe_topics)
        return {topic["name"]: len(topic["partitions"]) for topic in described}

    def create_topic(self, topic: Topic, *, replication_factor: int, configuration: dict[str, str]) -> None:
        """Create the topic and wait until its leaders are known."""
        wanted = {
            "num_partitions": topic.n_partitions,
            "replication_factor": replication_factor,
            "configs": configuration,
        }
        try:
            self._admin.create_topics({topic.name: wanted}, wait_for_metadata=True)
        except kafka_errors.TopicAlreadyExistsError:
            pass
        except kafka_errors.KafkaError as error:
            raise BrokerError(f"{self._place} did not create topic {topic.name!r}: {error}") from error

    def cluster_id(self) -> str:
        """Ask any broker."""
        described = asked(self._settings, "describing the cluster", self._admin.describe_cluster)
        return str(described.get("cluster_id") or "")

    def n_members(self) -> int:
        """Ask the group's coordinator."""
        group_id = self._settings.group_id
        described = asked(self._settings, "describing the group", lambda: self._admin.describe_groups([group_id]))
        return len(described[group_id].get("members") or ())

    def begin_producing(self) -> None:
        """Make the producer and initialise its transactions."""
        self._only_partition = {name: 0 if n == 1 else None for name, n in self.topics().items()}
        self._producer = asked(self._settings, "connecting", self._make_producer)
        asked(self._settings, "initialising transactions", self._producer.init_transactions)
        self._calls = Calls()

    def _make_producer(self) -> Any:
        return Producer(
            **self._common,
            transactional_id=self._settings.transactional_id,
            transaction_timeout_ms=int(TRANSACTION_SECONDS * 1000),
            # The commit flushes, so nothing waits for the linger; without one the sender thread would wake up with the
            # first record and fight the scoring thread for the interpreter while the batch is still being handed over.
            linger_ms=1000,
            batch_size=1024 * 1024,
            max_request_size=RECORD_BYTES_MAX,
            max_block_ms=int(REQUEST_SECONDS * 1000),
            delivery_timeout_ms=int(TRANSACTION_SECONDS * 1000),
            request_timeout_ms=int(REQUEST_SECONDS * 1000),
            # The first requests of a transaction are refused until the broker has finished the one before, 1 to 3 ms.
            retry_backoff_ms=2,
            metrics_enabled=False,
        )

    def join(self, timeout_s: float) -> bool:
        """Subscribe on the first call, then poll until partitions are assigned; nothing is read yet."""
        if self._consumer is None:
            self._consumer = asked(self._settings, "connecting", self._make_consumer)
            self._consumer.subscribe([self._topic], listener=self._listener)
            # A join that is ahead of the topic's metadata gets no partitions, and kafka-python 3.0 can then lose the
            # answer to the join that follows: one start in 30 stood still for as long as it was let.
            asked(self._settings, "asking for the partitions", self._know_partitions)
        # What comes early is read again: the service seeks before it reads, and a group that has not committed has no
        # place until then.
        with contextlib.suppress(*_NO_PLACE):
            asked(self._settings, "joining the group", lambda: self._consumer.poll(timeout_ms=int(timeout_s * 1000)))
        ours = self._listener.assigned
        if not ours:
            return False
        n_partitions = len(self._consumer.partitions_for_topic(self._topic) or ())
        if len(ours) != n_partitions:
            raise shared_partitions(self._settings, n_ours=len(ours), n_partitions=n_partitions)
        self._listener.serving = True
        return True

    def _know_partitions(self) -> None:
        """Have the consumer learn the topic's partitions; it would wait for a broker that is away without a limit."""
        assert self._calls is not None
        self._calls.start(lambda: self._consumer.partitions_for_topic(self._topic))
        if self._calls.wait(REQUEST_SECONDS) is None:
            raise OutageError(f"{self._place} did not tell the partitions of {self._topic!r} in {REQUEST_SECONDS:g} s")

    def _make_consumer(self) -> Any:
        return Consumer(
            **self._common,
            group_id=self._settings.group_id,
            enable_auto_commit=False,
            # Going back to what is left would skip what is not, and nobody would know.
            auto_offset_reset="none",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            session_timeout_ms=int(self._settings.session_seconds * 1000),
            heartbeat_interval_ms=int(self._settings.session_seconds * 1000 / 4),
            max_poll_interval_ms=poll_interval_ms(self._settings),
            max_partition_fetch_bytes=FETCH_BYTES_MAX,
            fetch_max_bytes=FETCH_BYTES_MAX,
            fetch_max_wait_ms=int(FETCH_SECONDS * 1000),
            metadata_max_age_ms=int(METADATA_SECONDS * 1000),
            metrics_enabled=False,
        )

    def committed(self) -> dict[int, int]:
        """Ask for each partition."""
        timeout_ms = int(REQUEST_SECONDS * 1000)

        def ask() -> dict[int, int | None]:
            committed = self._consumer.committed
            return {each.partition: committed(each, timeout_ms=timeout_ms) for each in self._listener.assigned}

        offsets = asked(self._settings, "reading committed offsets", ask)
        return {partition: offset for partition, offset in offsets.items() if offset is not None}

    def spans(self) -> dict[int, tuple[int, int]]:
        """Ask for both ends."""
        ours, timeout_ms = self._listener.assigned, int(REQUEST_SECONDS * 1000)
        ask = self._consumer
        first = asked(self._settings, "asking for the topic's start", lambda: ask.beginning_offsets(ours, timeout_ms))
        end = asked(self._settings, "asking for the topic's end", lambda: ask.end_offsets(ours, timeout_ms))
        return {each.partition: (first[each], end[each]) for each in ours}

    def seek(self, offsets: dict[int, int]) -> None:
        """Move the consumer; what was fetched for another place is thrown away."""
        for partition, offset in offsets.items():
            self._consumer.seek(TopicPartition(self._topic, partition), offset)

    def positions(self) -> dict[int, int]:
        """Tell what the consumer would fetch next."""
        return {each.partition: self._position(each, 0) for each in self._listener.assigned}

    def poll(self, n_max: int, timeout_s: float) -> list[Message]:
        """Return what is fetched, or wait for the first fetch."""
        try:
            fetched = self._consumer.poll(timeout_ms=timeout_s * 1000, max_records=n_max)
        except _NO_PLACE as error:
            raise lost_messages(self._settings) from error
        except kafka_errors.KafkaError as error:
            raise failure(self._settings, "reading", error) from error
        if self._listener.lost:
            raise lost_partitions(self._settings)
        return [
            Message(record.value, record.key, record.topic, record.partition, record.offset, record.timestamp)
            for records in fetched.values()
            for record in records
        ]

    def begin(self) -> None:
        """Begin a transaction; no request is made yet."""
        try:
            self._producer.begin_transaction()
        except kafka_errors.KafkaError as error:
            raise failure(self._settings, "beginning a transaction", error) from error

    def send(
        self,
        topic: str,
        records: Sequence[Record],
        headers: Sequence[Headers] | None = None,
        *,
        partition: int | None = None,
    ) -> None:
        """Hand the records to the producer, which packs them at once and sends them from its own thread."""
        # Naming the only partition spares the partitioner's hash, written in Python: 12 µs for a 66-byte key.
        if partition is None:
            partition = self._only_partition.get(topic)
        try:
            if partition is not None:
                self._producer.send_all(topic, records, headers, partition)
                return
            for (key, value), each in zip(records, headers or [[]] * len(records), strict=True):
                self._producer.send(topic, value, key, each)
        except kafka_errors.KafkaError as error:
            raise failure(self._settings, f"writing to {topic!r}", error) from error

    def commit(self, offsets: dict[int, int]) -> None:
        """Send offsets and commit on the thread for calls."""
        assert self._calls is not None
        positions = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
        }
        metadata = self._consumer.group_metadata() if positions else None

        def call() -> None:
            if positions:
                self._producer.send_offsets_to_transaction(positions, metadata)
            self._producer.commit_transaction()

        self._calls.start(call)

    def wait(self, timeout_s: float) -> float | None:
        """Wait for the thread for calls."""
        assert self._calls is not None
        try:
            return self._calls.wait(timeout_s)
        except kafka_errors.KafkaError as error:
            raise failure(self._settings, "committing", error) from error

    def abort(self, timeout_s: float) -> None:
        """Abort on the thread for calls, unless that still hangs in a commit."""
        assert self._calls is not None
        if self._calls.pending:
            raise BrokerError(f"{self._place} neither committed nor refused the transaction")
        self._calls.start(self._producer.abort_transaction)
        try:
            done_at = self._calls.wait(timeout_s)
        except kafka_errors.KafkaError as error:
            raise BrokerError(f"{self._place} did not abort the transaction: {_text(error)}") from error
        if done_at is None:
            raise BrokerError(f"{self._place} did not abort the transaction within {timeout_s:g} s")

    def lag(self, *, timeout_s: float) -> dict[int, int]:
        """Take the ends seen with the last fetch, or ask for them."""
        ours = self._listener.assigned
        if timeout_s > 0:
            ends = asked(self._settings, "asking for the topic's end", lambda: self._ends(ours, timeout_s))
        else:
            ends = {each: self._consumer.highwater(each) for each in ours}
        known = {each: end for each, end in ends.items() if end is not None}
        return {each.partition: max(0, end - self._position(each, end)) for each, end in known.items()}

    def _ends(self, partitions: Sequence[Any], timeout_s: float) -> dict[Any, int]:
        ends: dict[Any, int] = self._consumer.end_offsets(partitions, timeout_ms=int(timeout_s * 1000))
        return ends

    def _position(self, partition: Any, unknown: int) -> int:
        position = self._consumer.position(partition, timeout_ms=100)
        return unknown if position is None else int(position)

    def close(self) -> None:
        """Close what was opened; a broker that is away cannot keep any of it, nor hide why the process ends."""
        self._listener.serving = False
        if self._calls is not None:
            self._calls.close()
        if self._producer is not None:
            with contextlib.suppress(kafka_errors.KafkaError):
                self._producer.close(timeout=1)
        if self._consumer is not None:
            with contextlib.suppress(kafka_errors.KafkaError):
                self._consumer.close(autocommit=False, timeout_ms=2000)
        with contextlib.suppress(kafka_errors.KafkaError):
            self._admin.close()


class Admin(KafkaAdminClient):  # type: ignore[misc]  # the library has no types
    """Leaves a group's permitted operations as numbers: the demo's broker sets bits without a name."""

    def _process_acl_operations(self, described: dict[str, Any]) -> dict[str, Any]:
        return described


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """Remembers what is assigned; anything taken away while serving is a loss."""

    def __init__(self) -> None:
        self.assigned: tuple[Any, ...] = ()
        self.serving = False
        self.lost = False

    def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ARG002 - the library's signature
        self.lost = self.lost or (self.serving and bool(self.assigned))
        self.assigned = ()

    def on_partitions_assigned(self, assigned: Any) -> None:
        self.assigned = tuple(sorted(assigned))


def asked(settings: Settings, doing: str, call: Callable[[], Any]) -> Any:
    """Return what a call of the library returns, or raise the product's error for its."""
    try:
        return call()
    except _NO_PLACE:
        raise
    except kafka_errors.KafkaError as error:
        raise failure(settings, doing, error) from error


def failure(settings: Settings, doing: str, error: Exception) -> BrokerError:
    """Return the product's error for the library's."""
    if _is_lost(error):
        return lost_partitions(settings)
    kind = BrokerError if isinstance(error, _REFUSED) else OutageError
    return kind(f"Kafka at {settings.bootstrap_servers} failed at {doing}: {_text(error)}")


def _is_lost(error: Exception) -> bool:
    """Say whether our place went to another, also where a later call only repeats that in its text."""
    return isinstance(error, _LOST) or any(kind.__name__ in str(error) for kind in _LOST)


def connection(settings: Settings) -> dict[str, Any]:
    """Return what consumer, producer and admin client share, unset entries left to the library's defaults."""
    values = {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "client_id": "falconet",
        "bootstrap_timeout_ms": int(REQUEST_SECONDS * 1000),
        # The default pauses 30 s after some failures, longer than a broker's restart takes.
        "reconnect_backoff_max_ms": 1000,
        "security_protocol": settings.security_protocol,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password,
        "ssl_cafile": settings.ssl_cafile,
        "ssl_certfile": settings.ssl_certfile,
        "ssl_keyfile": settings.ssl_keyfile,
        "ssl_password": settings.ssl_key_password,
    }
    return {name: value for name, value in values.items() if value is not None}


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
