"""What a service that was killed goes on with, on Apache Kafka with each client library."""

import logging
import signal
import time
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from features.errors import StateError
from service import simulator, snapshot
from tests.integration.conftest import LIMIT_S, Running, World, serve_apart, until

VALUES = simulator.messages(11, 900)


@pytest.fixture(scope="module")
def expected(broker: str, tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> list[tuple[int, float]]:
    """Return the scores of one run that nothing disturbed."""
    whole = World(broker, "confluent-kafka", "undisturbed", tmp_path_factory.mktemp("whole"), small_model)
    whole.create(whole.settings.transactions_topic)
    whole.publish(VALUES)
    with whole.serving():
        return whole.scores(len(VALUES))


def kill_behind_snapshot(world: World) -> None:
    """Score 300 messages, have a snapshot written, score 300 more, and kill the process."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:300])
    process = serve_apart(world.but(snapshot_seconds=0.3))
    try:
        world.scores(300)
        until(lambda: bool(snapshot.files(world.settings.state_dir)))
        first = snapshot.files(world.settings.state_dir)[-1]
        # The last second's messages may be in no snapshot: that is what a replay is for.
        world.publish(VALUES[300:600])
        world.scores(600)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -9
    assert first.name == snapshot.name(1)


def keep_oldest(world: World) -> None:
    """Remove all snapshots but the oldest, so that the past is behind the group for certain."""
    for path in snapshot.files(world.settings.state_dir)[:-1]:
        path.unlink()


def test_kill_is_continued_bit_identically(
    world: World, expected: list[tuple[int, float]], caplog: pytest.LogCaptureFixture
) -> None:
    """After kill -9 the snapshot and a replay give the scores of a run that nothing disturbed."""
    kill_behind_snapshot(world)
    keep_oldest(world)

    world.publish(VALUES[600:])
    with caplog.at_level(logging.INFO, "falconet"), world.serving() as service:
        found = world.scores(len(VALUES))
        replayed = service.metrics.restore_replayed._value.get()

    assert found == expected
    assert "snapshot loaded" in caplog.text
    assert replayed in (300, 600)


def test_without_a_snapshot_the_past_is_rebuilt(
    world: World, expected: list[tuple[int, float]], caplog: pytest.LogCaptureFixture
) -> None:
    """Damaged snapshots are refused, each said, and the topic gives the same past again."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:600])
    with world.serving():
        world.scores(600)
    [path] = snapshot.files(world.settings.state_dir)
    path.write_bytes(path.read_bytes()[:-1])

    world.publish(VALUES[600:])
    with caplog.at_level(logging.INFO, "falconet"), world.serving() as service:
        found = world.scores(len(VALUES))
        assert service.metrics.restore_replayed._value.get() == 600

    assert found == expected
    assert f"snapshot refused {path}: damaged or cut" in caplog.text
    assert "rebuilding the past from the topic" in caplog.text


def delete_before(world: World, offset: int) -> None:
    """Have the broker remove messages, as retention does."""
    admin = AdminClient({"bootstrap.servers": world.settings.bootstrap_servers})
    place = TopicPartition(world.settings.transactions_topic, 0, offset)
    for deleted in admin.delete_records([place]).values():
        deleted.result(timeout=LIMIT_S)


def test_history_behind_retention_is_refused_or_accepted(world: World) -> None:
    """A past that cannot be rebuilt keeps the service from starting, unless that is accepted."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:100])
    with world.serving():
        world.scores(100)
    for path in snapshot.files(world.settings.state_dir):
        path.unlink()
    delete_before(world, 40)

    with pytest.raises(StateError, match=r"begins at offsets 0:40.*missing_history to accept"), world.serving():
        pass
    world.publish(VALUES[100:200])
    with world.serving(world.but(missing_history="accept")):
        assert [offset for offset, _ in world.scores(200)] == list(range(200))


def test_unscored_messages_behind_retention_are_refused_or_accepted(world: World) -> None:
    """Messages that were removed before they were scored are never skipped in silence."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:100])
    with world.serving():
        world.scores(100)
    world.publish(VALUES[100:200])
    delete_before(world, 150)

    with pytest.raises(StateError, match=r"no longer holds 50 offsets that were never scored"), world.serving():
        pass
    with world.serving(world.but(missing_history="accept")):
        assert [offset for offset, _ in world.scores(150)] == [*range(100), *range(150, 200)]


def test_group_without_offsets_beside_a_snapshot_is_refused(world: World) -> None:
    """A group that lost its offsets would score all again: the snapshot tells that it had some."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:50])
    with world.serving():
        world.scores(50)

    lost = world.but(group_id=world.settings.group_id + ".lost")
    newer = r"newer than the committed offsets: it ends at 0:50.*--fresh-state"
    with pytest.raises(StateError, match=newer), world.serving(lost):
        pass


def test_several_partitions_are_replayed_whole(world: World) -> None:
    """Each partition is replayed to its own committed offset, and none of its messages is scored twice."""
    world.create(world.settings.transactions_topic, n_partitions=3)
    world.publish(VALUES[:90], partitions=3)
    with world.serving():
        world.scores(90)
    for path in snapshot.files(world.settings.state_dir):
        path.unlink()
    world.publish(VALUES[90:180], partitions=3)

    with world.serving() as service:
        found = world.scores(180)
        assert service.metrics.restore_replayed._value.get() == 90

    assert sorted(offset for offset, _ in found) == sorted([*range(60)] * 3)


def test_standby_takes_over_from_a_killed_replica(world: World, expected: list[tuple[int, float]]) -> None:
    """A standby is warm, and within 10 s of a kill -9 it emits what the killed one would have, bit by bit."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:300])
    process = serve_apart(world.but(snapshot_seconds=0.3))
    try:
        world.scores(300)
        until(lambda: bool(snapshot.files(world.settings.state_dir)))
        standby = Running(world.settings)
        until(lambda: standby.service.is_standby and standby.service.metrics.standby._value.get() == 1)
        world.publish(VALUES[300:600])
        world.scores(600)
    finally:
        process.kill()
        killed_s = time.monotonic()
        process.communicate()
    try:
        world.publish(VALUES[600:])
        standby.until_ready()
        took_s = time.monotonic() - killed_s
        found = world.scores(len(VALUES))
        assert standby.service.metrics.standby._value.get() == 0
    finally:
        standby.stop()

    assert found == expected
    assert took_s < 10.0
    assert standby.error is None


def test_frozen_replica_is_fenced_by_the_standby(world: World, expected: list[tuple[int, float]]) -> None:
    """A replica that was stopped for longer than its session finds its place taken, ends, and emits nothing more."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:300])
    process = serve_apart(world.settings)
    try:
        world.scores(300)
        process.send_signal(signal.SIGSTOP)
        with world.serving():
            world.publish(VALUES[300:600])
            world.scores(600)
            process.send_signal(signal.SIGCONT)
            world.publish(VALUES[600:])
            found = world.scores(len(VALUES))
            _, log = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.communicate()

    assert found == expected
    assert process.returncode == 1, log
    assert "one replica is active at a time" in log
