"""The fast client: confluent-kafka, whose network threads run in C beside the interpreter."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from features.errors import BrokerError, OutageError, UsageError
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
from service.pipeline import Message
from service.settings import Settings

try:
    import confluent_kafka
    from confluent_kafka import OFFSET_END, OFFSET_STORED, KafkaError, KafkaException, TopicPartition
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
except ImportError as error:
    raise UsageError(
        "kafka_client is 'confluent-kafka', which is not installed: install falconet[confluent]"
    ) from error

# Another process took our place: no retry by this one can be right.
_LOST = (
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._MAX_POLL_EXCEEDED,
)


CALL_SECONDS = 1.0
"""How long one transactional call blocks before it is made again; only that lets the thread end with the process."""


STUCK_SECONDS = 5.0
"""How long offsets may be on their way while their coordinator answers another question; they take 1 to 3 ms."""


class Stuck:
    """Tells offsets that librdkafka will never send from those that wait for a broker which is away.

    After a lost connection to the group's coordinator `send_offsets_to_transaction` may hang for good, with the broker
    there again (librdkafka 2.16, its issues 5456 and 5511). Nothing but a new process sends them then, and the sooner
    the better: waiting out `broker_retry_seconds` would help nobody.
    """

    def __init__(self, answers: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """Know nothing yet.

        Args:
            answers: Asks the coordinator something, for a second at most, and says whether it answered.
            clock: In seconds.
        """
        self._answers = answers
        self._clock = clock
        self._asked_s = 0.0
        self._answering_since_s: float | None = None
        self.sending_since_s: float | None = None
        """When offsets were sent that have not arrived; None while nothing is under way. Set by the calling thread."""

    def for_s(self) -> float | None:
        """Return for how long the coordinator has answered while offsets did not arrive, None while that may be."""
        since_s, now_s = self.sending_since_s, self._clock()
        if since_s is None or now_s - since_s < CALL_SECONDS:
            self._answering_since_s = None
            return None
        if now_s - self._asked_s >= CALL_SECONDS:
            is_there = self._answers()
            self._asked_s = self._clock()
            if not is_there:
                self._answering_since_s = None
            elif self._answering_since_s is None:
                self._answering_since_s = now_s
        if self._answering_since_s is None or now_s - self._answering_since_s < STUCK_SECONDS:
            return None
        return now_s - since_s


class ConfluentClient:
    """See `Client`; made connected."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._place = f"Kafka at {settings.bootstrap_servers}"
        self._topic = settings.transactions_topic
        self._common = connection(settings)
        self._assigned: list[int] = []
        self._ends: dict[int, int] = {}
        self._serving = False
        self._lost = False
        self._calls: Calls | None = None
        self._stuck = Stuck(self._coordinator_answers)
        self._consumer: Any = None
        self._producer: Any = None
        self._admin = AdminClient(self._common)
        self.topics()

    def topics(self) -> dict[str, int]:
        """Ask for all topics."""
        found = self._asked("listing the topics", lambda: self._admin.list_topics(timeout=REQUEST_SECONDS))
        return {name: len(topic.partitions) for name, topic in found.topics.items()}

    def create_topic(self, topic: Topic, *, replication_factor: int, configuration: dict[str, str]) -> None:
        """Create the topic and wait until it is listed."""
        wanted = NewTopic(
            topic.name,
            num_partitions=topic.n_partitions,
            replication_factor=replication_factor,
            config=configuration,
        )
        created = self._admin.create_topics([wanted], operation_timeout=REQUEST_SECONDS)[topic.name]
        try:
            created.result(timeout=2 * REQUEST_SECONDS)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise BrokerError(f"{self._place} did not create topic {topic.name!r}: {_text(error)}") from error
        deadline = time.monotonic() + REQUEST_SECONDS
        while topic.name not in self.topics():
            if time.monotonic() > deadline:
                raise BrokerError(f"{self._place} created topic {topic.name!r} and does not list it")

    def cluster_id(self) -> str:
        """Ask any broker."""
        found = self._asked("describing the cluster", lambda: self._admin.list_topics(timeout=REQUEST_SECONDS))
        return str(found.cluster_id or "")

    def n_members(self) -> int:
        """Ask the group's coordinator."""
        group_id = self._settings.group_id
        asked = self._admin.describe_consumer_groups([group_id], request_timeout=REQUEST_SECONDS)[group_id]
        try:
            return len(asked.result(timeout=2 * REQUEST_SECONDS).members)
        except KafkaException as error:
            # A group that nobody has joined yet is unknown to brokers from Kafka 4.0 on.
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return 0
            self._fail("describing the group", error)

    def begin_producing(self) -> None:
        """Make the producer and initialise its transactions."""
        self._producer = confluent_kafka.Producer(
            {
                **self._common,
                "transactional.id": self._settings.transactional_id,
                "transaction.timeout.ms": int(TRANSACTION_SECONDS * 1000),
                # The commit flushes whatever lingers, so this only decides how early a large batch starts to leave.
                "linger.ms": 5,
                # The first requests of a transaction are refused until the broker has finished the one before, 1 to
                # 3 ms: with the default of 100 ms every commit took 106 ms. It doubles up to a second in an outage.
                "retry.backoff.ms": 2,
                "batch.size": 1024 * 1024,
                "message.max.bytes": RECORD_BYTES_MAX,
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 1024 * 1024,
                # The placement of keys that Java's and kafka-python's producers use.
                "partitioner": "murmur2_random",
            }
        )
        self._asked("initialising transactions", lambda: self._producer.init_transactions(REQUEST_SECONDS))
        self._calls = Calls()

    def join(self, timeout_s: float) -> bool:
        """Subscribe on the first call, then poll until partitions are assigned; nothing is read yet."""
        if self._consumer is None:
            self._consumer = confluent_kafka.Consumer(self._consumer_settings())
            self._consumer.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )
        early = self._consumer.poll(timeout_s)
        # What comes early is read again: the service seeks before it reads.
        if early is not None and early.error() is not None and early.error().code() != KafkaError._PARTITION_EOF:
            self._fail("joining the group", KafkaException(early.error()))
        if not self._assigned:
            return False
        n_partitions = self.topics()[self._topic]
        if len(self._assigned) != n_partitions:
            raise shared_partitions(self._settings, n_ours=len(self._assigned), n_partitions=n_partitions)
        self._serving = True
        return True

    def _consumer_settings(self) -> dict[str, Any]:
        return {
            **self._common,
            "group.id": self._settings.group_id,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Going back to what is left would skip what is not, and nobody would know.
            "auto.offset.reset": "error",
            # Only so is the end of a partition known where markers stand there.
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "allow.auto.create.topics": False,
            "session.timeout.ms": int(self._settings.session_seconds * 1000),
            "heartbeat.interval.ms": int(self._settings.session_seconds * 1000 / 4),
            "max.poll.interval.ms": poll_interval_ms(self._settings),
            "fetch.message.max.bytes": FETCH_BYTES_MAX,
            "fetch.max.bytes": FETCH_BYTES_MAX,
            "queued.max.messages.kbytes": 2 * FETCH_BYTES_MAX // 1024,
            # Once its queue is full the library stops fetching for this long: the default of 1 s shows as a stall.
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": int(FETCH_SECONDS * 1000),
            "topic.metadata.refresh.interval.ms": int(METADATA_SECONDS * 1000),
        }

    def _on_assign(self, consumer: Any, partitions: list[Any]) -> None:
        self._assigned = sorted(each.partition for each in partitions)
        # Until the service seeks, nothing is read, and a partition without a committed offset is no error.
        consumer.assign([TopicPartition(self._topic, each, OFFSET_END) for each in self._assigned])

    def _on_revoke(self, consumer: Any, _partitions: list[Any]) -> None:
        if self._serving:
            self._lost = True
            # Else the library would join again by itself, and take the place from whoever has it by then.
            consumer.unsubscribe()
        self._assigned = []

    def committed(self) -> dict[int, int]:
        """Ask for all partitions."""
        ours = [TopicPartition(self._topic, partition) for partition in self._assigned]
        found = self._asked(
            "reading committed offsets", lambda: self._consumer.committed(ours, timeout=REQUEST_SECONDS)
        )
        return {each.partition: each.offset for each in found if each.offset >= 0}

    def spans(self) -> dict[int, tuple[int, int]]:
        """Ask for each partition."""
        found = {}
        for partition in self._assigned:
            place = TopicPartition(self._topic, partition)
            span = self._asked("asking for the topic's ends", partial(self._ask_span, place))
            if span is None:
                raise OutageError(
                    f"{self._place} did not tell the ends of {self._topic!r} within {REQUEST_SECONDS:g} s"
                )
            found[partition] = span
        return found

    def _ask_span(self, place: Any) -> tuple[int, int] | None:
        span: tuple[int, int] | None = self._consumer.get_watermark_offsets(place, timeout=REQUEST_SECONDS)
        return span

    def seek(self, offsets: dict[int, int]) -> None:
        """Assign the partitions anew at these offsets: `seek` fails on a partition that is not being fetched yet."""
        places = [TopicPartition(self._topic, each, offsets.get(each, OFFSET_STORED)) for each in self._assigned]
        self._ends.clear()
        self._asked("moving the consumer", lambda: self._consumer.assign(places))

    def positions(self) -> dict[int, int]:
        """Tell what was returned, or the end of the partition where that was seen."""
        places = self._consumer.position([TopicPartition(self._topic, each) for each in self._assigned])
        return {each.partition: max(each.offset, self._ends.get(each.partition, 0)) for each in places}

    def poll(self, n_max: int, timeout_s: float) -> list[Message]:
        """Take what is queued, or wait for the first message.

        The library's `consume` waits until it has `n_max` messages, so that only the first one may be waited for.
        """
        found = self._consumer.consume(n_max, 0)
        if not found and timeout_s > 0:
            first = self._consumer.poll(timeout_s)
            found = [] if first is None else [first, *(self._consumer.consume(n_max - 1, 0) if n_max > 1 else ())]
        if self._lost:
            raise lost_partitions(self._settings)
        messages = []
        for each in found:
            if each.error() is not None:
                self._note(each)
                continue
            stamp = each.timestamp()[1]
            messages.append(Message(each.value(), each.key(), each.topic(), each.partition(), each.offset(), stamp))
        return messages

    def _note(self, event: Any) -> None:
        """Take note of a partition's end; anything else that is no message is an error."""
        error = event.error()
        if error.code() == KafkaError._PARTITION_EOF:
            self._ends[event.partition()] = event.offset()
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise lost_messages(self._settings)
        else:
            self._fail("reading", KafkaException(error))

    def begin(self) -> None:
        """Begin a transaction; no request is made yet."""
        self._asked("beginning a transaction", self._producer.begin_transaction)

    def send(
        self,
        topic: str,
        records: Sequence[Record],
        headers: Sequence[Headers] | None = None,
        *,
        partition: int | None = None,
    ) -> None:
        """Queue the records for the library's threads."""
        try:
            if partition is not None:
                assert headers is None, "nothing with headers is sent to a partition by name"
                for key, value in records:
                    self._producer.produce(topic, value, key, partition)
            elif headers is None:
                batch = [{"key": key, "value": value} for key, value in records]
                n_queued = self._producer.produce_batch(topic, batch)
                if n_queued != len(batch):
                    failed = next(each["_error"] for each in batch if "_error" in each)
                    raise OutageError(f"the producer took {n_queued} of {len(batch)} records for {topic!r}: {failed!s}")
            else:
                for (key, value), each in zip(records, headers, strict=True):
                    self._producer.produce(topic, value, key, headers=each)
        except KafkaException as error:
            self._fail(f"writing to {topic!r}", error)
        except BufferError as error:
            raise OutageError(f"the producer's queue is full at {topic!r}: {error}") from error

    def commit(self, offsets: dict[int, int]) -> None:
        """Send offsets and commit on the thread for calls."""
        assert self._calls is not None
        positions = [TopicPartition(self._topic, partition, at) for partition, at in offsets.items()]
        metadata = self._consumer.consumer_group_metadata() if positions else None

        def call() -> None:
            if positions:
                self._stuck.sending_since_s = time.monotonic()
                try:
                    _insist(lambda: self._producer.send_offsets_to_transaction(positions, metadata, CALL_SECONDS))
                finally:
                    self._stuck.sending_since_s = None
            _insist(lambda: self._producer.commit_transaction(CALL_SECONDS))

        self._calls.start(call)

    def wait(self, timeout_s: float) -> float | None:
        """Wait for the thread for calls."""
        assert self._calls is not None
        try:
            done_at_s = self._calls.wait(timeout_s)
        except KafkaException as error:
            self._fail("committing", error)
        stuck_s = self._stuck.for_s() if done_at_s is None else None
        if stuck_s is not None:
            raise BrokerError(
                f"{self._place} answers, and librdkafka has not sent it the offsets for {stuck_s:.0f} s; "
                "the next start commits what is in hand"
            )
        return done_at_s

    def _coordinator_answers(self) -> bool:
        ours = [TopicPartition(self._topic, partition) for partition in self._assigned]
        try:
            self._consumer.committed(ours, timeout=CALL_SECONDS)
        except KafkaException:
            return False
        return True

    def abort(self, timeout_s: float) -> None:
        """Abort, waiting for the broker's answer, unless a commit still hangs."""
        assert self._calls is not None
        if self._calls.pending:
            raise BrokerError(f"{self._place} neither committed nor refused the transaction")
        try:
            self._producer.abort_transaction(timeout_s)
        except KafkaException as error:
            raise BrokerError(f"{self._place} did not abort the transaction: {_text(error)}") from error

    def lag(self, *, timeout_s: float) -> dict[int, int]:
        """Take the ends seen with the last fetch, or ask for them."""
        lags = {}
        for place in self._consumer.position([TopicPartition(self._topic, each) for each in self._assigned]):
            end = self._end(place, timeout_s)
            if end >= 0:
                lags[place.partition] = max(0, end - place.offset) if place.offset >= 0 else 0
        return lags

    def _end(self, place: Any, timeout_s: float) -> int:
        """Return a partition's end, -1 where nothing is known of it yet."""
        ask = self._consumer.get_watermark_offsets
        if timeout_s > 0:
            found = self._asked("asking for the topic's end", lambda: ask(place, timeout=timeout_s))
            if found is None:
                raise OutageError(f"{self._place} did not tell the end of {self._topic!r} within {timeout_s:g} s")
        else:
            found = ask(place, cached=True)
        return int(found[1])

    def close(self) -> None:
        """Close what was opened.

        The library's own close waits without a limit for a broker that is away, so it gets a thread and two seconds.
        """
        self._serving = False
        if self._calls is not None:
            self._calls.close()
        opened = [each for each in (self._producer, self._consumer) if each is not None]
        for each in opened:
            closing = threading.Thread(target=_close, args=(each,), name="kafka-close", daemon=True)
            closing.start()
            closing.join(2)

    def _asked(self, doing: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except KafkaException as error:
            self._fail(doing, error)

    def _fail(self, doing: str, exception: Exception) -> NoReturn:
        """Raise the product's error for the library's."""
        error = exception.args[0]
        if error.code() in _LOST:
            raise lost_partitions(self._settings) from exception
        kind = BrokerError if error.fatal() or error.code() in _REFUSED else OutageError
        raise kind(f"{self._place} failed at {doing}: {_text(exception)}") from exception


_REFUSED = (
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.UNSUPPORTED_VERSION,
)


def _close(client: Any) -> None:
    """Close a producer or consumer; one that was fenced says so once more."""
    with contextlib.suppress(KafkaException):
        client.close()


def _insist(call: Callable[[], None]) -> None:
    """Make a transactional call again for as long as the library says that this goes on where it stopped.

    The wait has no end of its own, see `Stuck`: the loop gives up on a call that hangs, and the process with it.
    """
    while True:
        try:
            return call()
        except KafkaException as error:
            if not error.args[0].retriable():
                raise


def connection(settings: Settings) -> dict[str, Any]:
    """Return what consumer, producer and admin client share, unset entries left to the library's defaults."""
    values = {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": "falconet",
        "reconnect.backoff.max.ms": 1000,
        "security.protocol": settings.security_protocol,
        "sasl.mechanisms": settings.sasl_mechanism,
        "sasl.username": settings.sasl_username,
        "sasl.password": settings.sasl_password,
        "ssl.ca.location": settings.ssl_cafile,
        "ssl.certificate.location": settings.ssl_certfile,
        "ssl.key.location": settings.ssl_keyfile,
        "ssl.key.password": settings.ssl_key_password,
        # Its log goes to standard error past our own; what matters comes back as an error of a call.
        "log_level": 2,
    }
    return {name: value for name, value in values.items() if value is not None}


def _text(error: Exception) -> str:
    cause = error.args[0]
    return f"{cause.str()} ({cause.name()})" if isinstance(cause, KafkaError) else str(error)
