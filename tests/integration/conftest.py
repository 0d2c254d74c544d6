"""One Apache Kafka for all tests here, topics of its own for each, and what they read and write with."""

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from service.serve import Service
from service.settings import Settings
from tests import replica, servers
from tests.replica import environment

LIMIT_S = 40.0
"""Longest that a test waits for what must happen."""


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """Run Apache Kafka and return its address."""
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(servers.kafka())
        except servers.MissingServerError as error:
            pytest.skip(str(error))
        yield address


@pytest.fixture(params=["kafka-python", "confluent-kafka"])
def library(request: pytest.FixtureRequest) -> str:
    """Each client library."""
    return str(request.param)


class Record(NamedTuple):
    """What a reader of committed records sees."""

    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


class World:
    """A test's own topics, group and state on a broker."""

    def __init__(self, address: str, library: str, name: str, folder: Path, model: Path) -> None:
        self.admin = AdminClient({"bootstrap.servers": address})
        self.settings = Settings(
            bootstrap_servers=address,
            kafka_client=library,  # type: ignore[arg-type]
            **replica.own_names(name),
            model=str(model),
            state_dir=folder / "state",
            accounts_max=10_000,
            pairs_max=10_000,
            metrics_port=0,
            shadow_share=0.0,
            drain_seconds=5.0,
        )

    def but(self, **changes: object) -> Settings:
        """Return the settings with changes."""
        return msgspec.structs.replace(self.settings, **changes)

    def create(self, topic: str, *, n_partitions: int = 1) -> None:
        """Create a topic and wait until it is there."""
        for created in self.admin.create_topics([NewTopic(topic, n_partitions, 1)]).values():
            created.result(timeout=LIMIT_S)
        until(lambda: topic in self.admin.list_topics().topics)

    def topics(self) -> set[str]:
        """Return the topics of this test that exist."""
        return {name for name in self.admin.list_topics().topics if name.startswith(self.settings.group_id)}

    def publish(self, values: Sequence[bytes | None], *, is_aborted: bool | None = None, partitions: int = 1) -> None:
        """Write messages in turn to partitions: plainly, or in a transaction that is committed or aborted."""
        settings: dict[str, object] = {"bootstrap.servers": self.settings.bootstrap_servers}
        if is_aborted is not None:
            settings["transactional.id"] = f"{self.settings.group_id}.ingester"
        producer = Producer(settings)
        if is_aborted is not None:
            producer.init_transactions()
            producer.begin_transaction()
        for i, value in enumerate(values):
            producer.produce(self.settings.transactions_topic, value, f"key {i}".encode(), partition=i % partitions)
        producer.flush()
        if is_aborted is not None:
            producer.abort_transaction() if is_aborted else producer.commit_transaction()
        producer.close()

    def read(self, topic: str, n: int) -> list[Record]:
        """Return all committed records of a topic once there are n of them; more than n are seen too."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.settings.bootstrap_servers,
                "group.id": f"{self.settings.group_id}.reader",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        until(lambda: topic in self.topics())
        n_partitions = len(self.admin.list_topics().topics[topic].partitions)
        consumer.assign([TopicPartition(topic, i, 0) for i in range(n_partitions)])
        found: list[Record] = []
        at_end: set[int] = set()
        deadline = time.monotonic() + LIMIT_S
        try:
            while len(found) < n or len(at_end) < n_partitions:
                assert time.monotonic() < deadline, f"{len(found)} of {n} records in {topic}"
                for message in consumer.consume(1_000, 0.05):
                    if message.error() is not None:
                        at_end.add(message.partition())
                        continue
                    headers = dict(message.headers() or ())
                    found.append(Record(message.key(), message.value(), headers))  # type: ignore[arg-type]
        finally:
            consumer.close()
        return found

    def scores(self, n: int) -> list[tuple[int, float]]:
        """Return source offset and probability of all committed scores once there are n."""
        scores = [msgspec.json.decode(record.value or b"") for record in self.read(self.settings.scores_topic, n)]
        return [(score["source"]["offset"], score["score"]) for score in scores]

    def committed(self, partition: int = 0) -> int:
        """Return the group's committed offset."""
        consumer = Consumer({"bootstrap.servers": self.settings.bootstrap_servers, "group.id": self.settings.group_id})
        [place] = consumer.committed([TopicPartition(self.settings.transactions_topic, partition)], timeout=LIMIT_S)
        consumer.close()
        return int(place.offset)

    @contextlib.contextmanager
    def serving(self, settings: Settings | None = None) -> Iterator[Service]:
        """Run a service in a thread while the block runs, then stop it; what it raised is raised here."""
        running = Running(settings or self.settings)
        try:
            running.until_ready()
            yield running.service
        finally:
            running.stop()
        if running.error is not None:
            raise running.error


class Running:
    """A service in a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self.service = Service(settings)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.service.run()
        except BaseException as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def until_ready(self) -> None:
        """Wait until it serves, or raise what it raised."""
        until(lambda: self.service.ready.is_set() or self.is_over)
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Ask it to stop and wait for its end."""
        self.service.stop()
        self.until_over()

    def until_over(self) -> None:
        """Wait for its end."""
        self._thread.join(LIMIT_S)
        assert self.is_over, "the service did not end"


def serve_apart(settings: Settings) -> "subprocess.Popen[str]":
    """Start `falconet serve` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve"],
        env=environment(settings),
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    pause = threading.Event()
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold"
        pause.wait(0.02)


@pytest.fixture
def world(
    broker: str, library: str, request: pytest.FixtureRequest, tmp_path: Path, small_model: Path
) -> Iterator[World]:
    """Return the test's own world, named after it; its topics are removed at the end."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name).strip("-")
    world = World(broker, library, name, tmp_path, small_model)
    yield world
    there = sorted(world.topics())
    if there:
        for deleted in world.admin.delete_topics(there).values():
            deleted.result(timeout=LIMIT_S)
