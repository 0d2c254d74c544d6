"""One stream under fire: what is fed, the replicas that are kept running as a platform would, and who reads."""

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from msgspec import Struct

from service import simulator
from service.settings import Settings
from tests.chaos import verdict
from tests.chaos.proxy import Proxy
from tests.chaos.verdict import Verdict
from tests.replica import Replica, own_names
from tests.servers import KafkaBroker

LIMIT_S = 120.0
"""Longest that anything may take; what takes longer hangs."""

RETRY_SECONDS = 15.0
"""`broker_retry_seconds` of the services here."""

RATE = 150.0
"""Messages a second: batches of a few, as many commits as can be."""

DAMAGED_EVERY, EMPTY_EVERY = 97, 211
KILLED = -signal.SIGKILL

_FAST = {"reconnect.backoff.max.ms": 500, "log_level": 2}


class ChaosError(Exception):
    """What must not happen did; the message says what, and where the log is."""


class End(NamedTuple):
    """How a replica ended."""

    code: int
    said: str


class _Timed(Struct):
    scored_at: int


class Stage:
    """A service's own topics, group and state, between a broker and a proxy before it."""

    def __init__(
        self,
        broker: KafkaBroker,
        proxy: Proxy,
        client: str,
        name: str,
        folder: Path,
        *,
        seed: int,
        n_partitions: int = 1,
    ) -> None:
        """Make the topics; nothing is started.

        Args:
            broker: Running.
            proxy: Before it; the service knows no other way.
            client: The library that the service uses.
            name: Of topics, group and transactional id.
            folder: For state and logs.
            seed: Of the traffic and of what the faults draw.
            n_partitions: Of the input topic.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.broker, self.proxy, self.folder = broker, proxy, folder
        self.random = Random(seed)
        self.settings = msgspec.structs.replace(_settings(proxy.address, client, name), state_dir=folder / "state")
        self.replicas: list[Replica] = []
        self.n_wanted = 0
        """How many replicas are kept running."""

        self.ends: list[End] = []
        self.recoveries_s: list[float] = []
        self.n_faults = 0
        self.n_read = 0
        self.n_partitions = n_partitions
        self.admin = AdminClient({"bootstrap.servers": broker.address, **_FAST})
        self._n_started = self._n_fed = 0
        self._feed = simulator.stream(seed)
        self._due_from_s: float | None = None
        self._mark_ms: int | None = None
        self._recovered = False
        self._create(self.settings)
        self._producer = Producer(
            # Its own repetitions may neither double nor turn the order of what is fed.
            {
                "bootstrap.servers": broker.address,
                "enable.idempotence": True,
                "linger.ms": 5,
                "topic.metadata.refresh.interval.ms": 500,
                **_FAST,
            }
        )
        self._reader = Consumer(
            {
                "bootstrap.servers": broker.address,
                "group.id": f"{name}.reader",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 20,
                **_FAST,
            }
        )
        self._reader.assign([TopicPartition(self.settings.scores_topic, 0, 0)])

    def _create(self, settings: Settings) -> None:
        names = {*settings.topics()} - {*self.admin.list_topics(timeout=LIMIT_S).topics}
        n_partitions = {settings.transactions_topic: self.n_partitions}
        wanted = [NewTopic(each, n_partitions.get(each, 1), 1) for each in sorted(names)]
        for made in self.admin.create_topics(wanted).values():
            made.result(timeout=LIMIT_S)

    def start(self) -> Replica:
        """Start a replica more than there are."""
        self._n_started += 1
        replica = Replica(self.settings, self.folder / f"serve-{self._n_started}.log")
        self.replicas.append(replica)
        return replica

    def tend(self) -> None:
        """Feed what is due, read what is committed, and start again what has ended."""
        now_s = time.monotonic()
        if self._due_from_s is not None:
            while self._n_fed < (now_s - self._due_from_s) * RATE:
                self._put()
        self._producer.poll(0)
        for message in self._reader.consume(1_000, 0.02):
            if message.error() is None:
                self._note(message.value())
        for replica in list(self.replicas):
            if replica.code is not None:
                self.replicas.remove(replica)
                self._check(replica)
        while len(self.replicas) < self.n_wanted:
            self.start()

    def _put(self) -> None:
        self._n_fed += 1
        value = next(self._feed).value
        if self._n_fed % DAMAGED_EVERY == 0:
            value = value[: len(value) // 2]
        content = None if self._n_fed % EMPTY_EVERY == 0 else value
        partition = self._n_fed % self.n_partitions
        self._producer.produce(self.settings.transactions_topic, content, f"{self._n_fed}".encode(), partition)

    def _note(self, value: bytes) -> None:
        self.n_read += 1
        if self._mark_ms is not None and msgspec.json.decode(value, type=_Timed).scored_at >= self._mark_ms:
            self._recovered = True

    def _check(self, replica: Replica) -> None:
        """Hold an end against what an end must be: asked for, or exit code 1 with an error in one line."""
        assert replica.code is not None
        line = replica.last_line()
        self.ends.append(End(replica.code, line))
        if replica.code == 1 and (not line.startswith("falconet: ") or replica.said("Traceback")):
            raise ChaosError(f"no clear error: {line!r}, see {replica.log}")
        if replica.code not in (0, 1, KILLED):
            raise ChaosError(f"ended with code {replica.code}: {line!r}, see {replica.log}")

    def until(self, condition: Callable[[], object], what: str, *, limit_s: float = LIMIT_S) -> None:
        """Tend the stream until a condition holds.

        Raises:
            ChaosError: It does not within the limit, or a replica ended as none may.
        """
        deadline_s = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline_s:
                logs = ", ".join(str(each.log) for each in self.replicas)
                raise ChaosError(f"{self.settings.group_id}: not within {limit_s:g} s: {what}; see {logs}")
            self.tend()

    def last(self, seconds: float) -> None:
        """Let some time pass."""
        end_s = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end_s, "time to pass", limit_s=seconds + LIMIT_S)

    def serving(self) -> Replica:
        """Return the replica that serves, once one does."""
        self.until(lambda: any(each.is_serving for each in self.replicas), "a replica serves")
        return next(each for each in self.replicas if each.is_serving)

    def begin(self) -> None:
        """Start the service and the feed, and return when scores flow."""
        self.n_wanted, self._due_from_s = 1, time.monotonic()
        self.serving()
        self.until(lambda: self.n_read, "the first score")

    def mark(self) -> None:
        """Count the recovery from this moment."""
        self.n_faults += 1
        self._mark_ms, self._recovered = int(time.time() * 1000), False
        self._marked_s = time.monotonic()

    def recover(self) -> None:
        """Return when a score is committed that was made after the mark, and note how long that took."""
        self.until(lambda: self._recovered, "a score after the fault")
        self.recoveries_s.append(time.monotonic() - self._marked_s)
        self._mark_ms = None

    def alter(self, topic: str, **configuration: str) -> None:
        """Set a topic's configuration on the broker."""
        entries = [
            ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for name, value in configuration.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        for altered in self.admin.incremental_alter_configs([resource]).values():
            altered.result(timeout=LIMIT_S)

    def finish(self) -> Verdict:
        """Have everything scored, stop all replicas cleanly, and judge against an undisturbed run."""
        self._due_from_s = None
        self._producer.flush(LIMIT_S)
        self.until(lambda: self._is_done(self.settings), "all is scored")
        self._stop_all()
        calm = self._calm()
        self._create(calm)
        self.settings, disturbed = calm, self.settings
        self.n_wanted = 1
        self.until(lambda: self._is_done(calm), "the undisturbed run")
        self._stop_all()
        return verdict.judge(self.broker.address, disturbed, calm)

    def _stop_all(self) -> None:
        n_before = len(self.ends)
        # Before that a process has no handler for the signal yet.
        self.until(lambda: all(each.is_serving or each.said("standby group=") for each in self.replicas), "a start")
        self.n_wanted = 0
        for replica in self.replicas:
            replica.signal(signal.SIGTERM)
        self.until(lambda: not self.replicas, "SIGTERM ends the service")
        if any(end.code != 0 for end in self.ends[n_before:]):
            raise ChaosError(f"a clean stop failed: {self.ends[n_before:]}")

    def _calm(self) -> Settings:
        """Return the settings of a run over the same topic that nothing disturbs."""
        names = ("group_id", "transactional_id", "scores_topic", "alerts_topic", "dlq_topic")
        return msgspec.structs.replace(
            self.settings,
            bootstrap_servers=self.broker.address,
            state_dir=self.folder / "calm",
            **{name: f"{getattr(self.settings, name)}.calm" for name in names},
        )

    def _is_done(self, settings: Settings) -> bool:
        """Say whether a group has committed the whole topic."""
        reader = Consumer({"bootstrap.servers": self.broker.address, "group.id": settings.group_id, **_FAST})
        places = [TopicPartition(settings.transactions_topic, each) for each in range(self.n_partitions)]
        with contextlib.closing(reader):
            try:
                at = {each.partition: each.offset for each in reader.committed(places, timeout=5)}
                ends = {each.partition: reader.get_watermark_offsets(each, timeout=5)[1] for each in places}
            except KafkaException:  # its coordinator is starting
                return False
        return all(at[each] >= end for each, end in ends.items())

    def close(self) -> None:
        """Leave nothing running."""
        self.n_wanted = 0
        for replica in self.replicas:
            replica.kill()
        self._reader.close()
        self._producer.purge()
        self._producer.close(2)


def _settings(address: str, client: str, name: str) -> Settings:
    return Settings(
        bootstrap_servers=address,
        kafka_client=client,  # type: ignore[arg-type]
        **own_names(name),
        accounts_max=20_000,
        pairs_max=40_000,
        metrics_port=0,
        shadow_share=0.0,
        # So often that kills fall into them.
        snapshot_seconds=0.5,
        # So small and low that the breaker opens and closes, and its state must survive as well.
        breaker_window=200,
        breaker_share=0.03,
        broker_retry_seconds=RETRY_SECONDS,
    )
