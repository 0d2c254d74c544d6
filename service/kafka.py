"""What the loop needs of Kafka, whichever client library provides it, and how topics are made sure of at start.

The two implementations stand in `kafka_python.py` and `kafka_confluent.py` and pass the same tests.
Of their errors an `OutageError` may pass, so the loop aborts and tries again within its budget; any other `BrokerError`
ends the process, because the place in the group or the transaction is lost or was never granted.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from features.errors import BrokerError, FencedError
from service.pipeline import Message
from service.settings import Settings

Record = tuple[bytes | None, bytes]
"""Key and value of what is written."""

Headers = list[tuple[str, bytes]]

TRANSACTION_SECONDS = 30.0
"""The broker aborts a transaction left open for longer, which otherwise holds up every `read_committed` reader."""

FETCH_SECONDS = 0.02
"""How long a broker may hold a fetch that finds nothing. Kafka answers with the first record all the same; the demo's
broker looks for records less often the longer it may wait, and with 0.2 s each came 54 ms late, with 0.02 s 5 ms."""

METADATA_SECONDS = 10.0
"""How often the topic's partitions are asked for: one that is added is read so much later, 5 minutes by default."""

POLL_SECONDS_MAX = 60.0
"""How long a member of the group may go without a poll, at least, and so how long a rebalance waits for one that is
gone. The broker strikes that one off after `session_seconds`; but one that was cut off while it started was seen to
forget it, and with the libraries' 5 minutes nobody scored for so long."""

REQUEST_SECONDS = 10.0
"""Longest wait for an answer to one question at start, such as which topics there are."""

FETCH_BYTES_MAX = 4 * 1024 * 1024
"""Most bytes fetched ahead of the batch at hand: 4,000 messages of ethereum-etl (1.1 KB), 0.1 s of work."""

RECORD_BYTES_MAX = 104_857_600
"""Largest record the producer sends: a rejected message goes to the dead-letter topic whole, whatever its size."""


class Topic(NamedTuple):
    """A topic as it is, or as it should be created."""

    name: str
    n_partitions: int


class Calls:
    """A thread that makes one blocking call at a time; a daemon, so that a call that hangs cannot keep the process.

    Both libraries' commits block while the broker works, kafka-python's without a limit while it is away. On a thread
    of their own they overlap with the next batch's scoring, and a stop or a spent budget is noticed in time.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._done_at = 0.0
        self._error: BaseException | None = None
        self.pending = False
        threading.Thread(target=self._run, name="kafka-calls", daemon=True).start()

    def start(self, call: Callable[[], None]) -> None:
        """Make a call; `wait` tells how it ended."""
        assert not self.pending
        self.pending, self._error = True, None
        self._done.clear()
        self._calls.put(call)

    def wait(self, timeout_s: float) -> float | None:
        """Return when the call was done, in Unix seconds, or None when it is not; raise what it raised."""
        if not self._done.wait(timeout_s):
            return None
        self.pending = False
        if self._error is not None:
            raise self._error
        return self._done_at

    def close(self) -> None:
        """Let the thread end after the call at hand."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException as error:  # raised again by `wait`, in the thread that asked
                self._error = error
            self._done_at = time.time()
            self._done.set()


class Client(Protocol):
    """One consumer in a group and one transactional producer, on one broker address.

    The order of calls is: `topics`, `create_topic`, `cluster_id` and `n_members` at any time, `begin_producing`,
    `join`, then `committed`, `spans`, `seek` and `positions` while no transaction is open, and batches of `poll`,
    `begin`, `send`, `commit`, `wait`. While a commit runs, `poll` and `lag` may be called. `close` may come
    at any time. Not safe for use by several threads.
    """

    def topics(self) -> dict[str, int]:
        """Return the number of partitions of every topic.

        Raises:
            OutageError: No broker answered.
        """

    def create_topic(self, topic: Topic, *, replication_factor: int, configuration: dict[str, str]) -> None:
        """Create a topic; one that exists already is left as it is.

        Raises:
            BrokerError: The broker refuses.
        """

    def cluster_id(self) -> str:
        """Return what the brokers call their cluster, empty where they have no name for it.

        Raises:
            OutageError: No broker answered.
        """

    def n_members(self) -> int:
        """Return how many members the consumer group has, this client not counted before it joined."""

    def begin_producing(self) -> None:
        """Take the transactional id over: unfinished transactions of an earlier holder are aborted and it is fenced."""

    def join(self, timeout_s: float) -> bool:
        """Join the group, or go on with joining, and say whether every partition of the topic is ours.

        Raises:
            BrokerError: Another member holds some of the partitions.
        """

    def committed(self) -> dict[int, int]:
        """Return the group's committed offset of each partition that has one: the offset of the next message."""

    def spans(self) -> dict[int, tuple[int, int]]:
        """Return the first offset that each partition still holds, and the one after its last.

        Raises:
            OutageError: No answer.
        """

    def seek(self, offsets: dict[int, int]) -> None:
        """Have the next `poll` return the messages from these offsets on; name all partitions."""

    def positions(self) -> dict[int, int]:
        """Return up to where everything readable was returned by `poll`, markers and aborted messages included."""

    def poll(self, n_max: int, timeout_s: float) -> list[Message]:
        """Return the next messages, at most `n_max`; wait for the first one only, and at most `timeout_s`.

        Raises:
            BrokerError: The partitions were taken away, or the topic no longer holds the next message.
        """

    def begin(self) -> None:
        """Begin a transaction."""

    def send(
        self,
        topic: str,
        records: Sequence[Record],
        headers: Sequence[Headers] | None = None,
        *,
        partition: int | None = None,
    ) -> None:
        """Write records in the open transaction, placed by their keys unless a partition is named.

        Returns before they are written.

        Raises:
            OutageError: They cannot be taken; the transaction is to be aborted.
        """

    def commit(self, offsets: dict[int, int]) -> None:
        """Start committing the open transaction with the offsets of the next messages to read; `wait` tells the end.

        Without offsets no group is needed, so a client that only writes need not `join`.
        """

    def wait(self, timeout_s: float) -> float | None:
        """Return when the started commit was done, in Unix seconds; None after `timeout_s`, then ask again.

        Raises:
            OutageError: It is not committed; abort and try the same again.
            BrokerError: Another process took our place.
        """

    def abort(self, timeout_s: float) -> None:
        """Abort the open transaction.

        Raises:
            BrokerError: Not even that is possible: another process took our place, or the broker stays away.
        """

    def lag(self, *, timeout_s: float) -> dict[int, int]:
        """Return the records behind the end of each partition, from what was seen last, or asked if `timeout_s` > 0.

        Raises:
            OutageError: No answer within `timeout_s`.
        """

    def close(self) -> None:
        """Leave the group and close the connections; an open transaction is aborted by the broker."""


def connect(settings: Settings) -> Client:
    """Return a client of the library that the settings name, connected.

    Raises:
        UsageError: The library is not installed, or a certificate or key cannot be used.
        OutageError: No broker answers at `bootstrap_servers`.
        BrokerError: The brokers refuse our login or certificate, or are not who they should be.
    """
    # Here, because it takes kafka-python, which the other library does without until it is asked to.
    from service import security

    security.knock(settings)
    if settings.kafka_client == "confluent-kafka":
        from service.kafka_confluent import ConfluentClient

        return ConfluentClient(settings)
    from service.kafka_python import KafkaPythonClient

    return KafkaPythonClient(settings)


def poll_interval_ms(settings: Settings) -> int:
    """Return how long the group waits for a poll of ours: longer than an outage that is to be lived through.

    At most a day, which is as long as librdkafka takes.
    """
    return int(1000 * min(86_400, max(POLL_SECONDS_MAX, settings.session_seconds, settings.broker_retry_seconds + 30)))


def ensure_topics(client: Client, settings: Settings) -> None:
    """Create the topics that are missing, or refuse to go on without them.

    Raises:
        BrokerError: A topic is missing and `create_topics` is off, or the broker refuses to create it.
    """
    wanted = settings.topics()
    missing = [name for name in wanted if name not in client.topics()]
    if missing and not settings.create_topics:
        raise BrokerError(
            f"Kafka at {settings.bootstrap_servers} has no topic {', '.join(map(repr, missing))}; "
            "create it, or set create_topics to true"
        )
    for name in missing:
        # A message that the transactions topic took must fit into the dead-letter topic together with its headers.
        configuration = {"max.message.bytes": str(RECORD_BYTES_MAX)} if name == settings.dlq_topic else {}
        client.create_topic(
            Topic(name, settings.partitions),
            replication_factor=settings.replication_factor,
            configuration=configuration,
        )


def lost_partitions(settings: Settings) -> FencedError:
    """Return the error of a consumer whose partitions were taken away while it was serving.

    The account state has absorbed what was read, and somebody else may read on from the committed offsets, so going on
    would mix two halves of a past.
    """
    return FencedError(
        f"consumer group {settings.group_id!r} gave our partitions of {settings.transactions_topic!r} to another "
        "member, or took us for dead; one replica is active at a time, so this one ends"
    )


def lost_messages(settings: Settings) -> BrokerError:
    """Return the error of a consumer whose next message was removed before it was read."""
    return BrokerError(
        f"topic {settings.transactions_topic!r} no longer holds the next message to read: its retention has removed "
        "messages that were never scored; the next start says which, see the setting missing_history"
    )


def shared_partitions(settings: Settings, *, n_ours: int, n_partitions: int) -> FencedError:
    """Return the error of a consumer that was given only some of the partitions."""
    return FencedError(
        f"consumer group {settings.group_id!r} gives us {n_ours} of the {n_partitions} partitions of "
        f"{settings.transactions_topic!r}, another member has the others; stop it, or choose another group_id"
    )
