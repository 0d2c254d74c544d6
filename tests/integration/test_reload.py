"""A promotion during a running stream on Apache Kafka: nothing is lost, nothing is scored twice, nothing waits."""

import threading
import time
from itertools import groupby
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from models import promotion, registry
from service import simulator
from service.settings import Settings
from tests import registries
from tests.integration.conftest import World, until

RATE = 2_000
N = 6_000
VALUES = simulator.messages(11, 1_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A registry whose champion is version 1; 2 is as good, 3 of another schema."""
    root = tmp_path / "registry"
    for number in (1, 2):
        registries.add_version(root, str(number), evaluation={}, seed=number)
    registries.add_version(root, "3", seed=3, schema="0" * 16)
    (root / "champion").write_text("drawn/1\n")
    return root


def follows(world: World, root: Path, **changes: object) -> Settings:
    return world.but(model="", registry_dir=str(root), model_poll_seconds=0.05, **changes)


class Stream(threading.Thread):
    """Sends messages at a steady rate until there are N, and until it may end."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.n_sent = 0
        self._producer = Producer({"bootstrap.servers": world.settings.bootstrap_servers, "linger.ms": 1})
        self._topic = world.settings.transactions_topic
        self.may_end = threading.Event()

    def run(self) -> None:
        started_s, pause = time.perf_counter(), threading.Event()
        while self.n_sent < N or not self.may_end.is_set():
            due = int((time.perf_counter() - started_s) * RATE)
            while self.n_sent < due:
                self._producer.produce(self._topic, VALUES[self.n_sent % len(VALUES)])
                self.n_sent += 1
            self._producer.poll(0)
            pause.wait(0.001)
        self._producer.flush()


def reloads(service: object, outcome: str) -> int:
    return int(service.metrics.model_reloads_total[outcome]._value.get())  # type: ignore[attr-defined]


def test_promotion_in_mid_stream_loses_nothing(world: World, root: Path) -> None:
    """Every message has one score, in order; the model changes once, between two of them; a refusal changes nothing."""
    world.create(world.settings.transactions_topic)
    digests = [registry.verify(root / "drawn" / version).digest for version in ("1", "2")]
    stream = Stream(world)
    with world.serving(follows(world, root)) as service:
        stream.start()
        until(lambda: stream.n_sent > N // 4)
        (root / "champion").write_text("drawn/3\n")
        until(lambda: reloads(service, "refused") == 1)
        (root / "champion").write_text("drawn/1\n")
        until(lambda: stream.n_sent > N // 2)
        outcome = promotion.promote(root, root / "drawn" / "2", latency_budget=1_000.0)
        until(lambda: reloads(service, "loaded") == 1)
        stream.may_end.set()
        stream.join()
        records = world.read(world.settings.scores_topic, stream.n_sent)
    scores = [msgspec.json.decode(record.value or b"") for record in records]

    assert outcome.is_promoted
    assert [score["source"]["offset"] for score in scores] == list(range(stream.n_sent))
    assert [digest for digest, _ in groupby(score["model"]["digest"] for score in scores)] == digests


def test_candidate_scores_beside_the_champion(world: World, root: Path) -> None:
    """Its scores stand on its topic, one for each score; alerts are the champion's alone."""
    topic = f"{world.settings.group_id}.candidate"
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:300])
    settings = follows(world, root, candidate_model="drawn/2", candidate_topic=topic)

    with world.serving(settings) as service:
        champion = [msgspec.json.decode(r.value or b"") for r in world.read(world.settings.scores_topic, 300)]
        candidate = [msgspec.json.decode(r.value or b"") for r in world.read(topic, 300)]
        until(lambda: sum(c._value.get() for c in service.metrics.candidate_decisions_total.values()) == 300)

    assert [score["source"] for score in candidate] == [score["source"] for score in champion]
    assert {score["model"]["version"] for score in champion} == {"1"}
    assert {score["model"]["version"] for score in candidate} == {"2"}
    alerts = world.read(world.settings.alerts_topic, 0)
    assert {msgspec.json.decode(alert.value or b"")["model"]["version"] for alert in alerts} <= {"1"}
