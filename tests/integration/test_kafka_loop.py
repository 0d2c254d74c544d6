"""The service on Apache Kafka, with each client library: what readers of committed records see."""

import signal
import time
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from features.errors import BrokerError, FencedError
from service import simulator, snapshot
from service.kafka_python import KafkaPythonClient
from tests import servers
from tests.integration.conftest import LIMIT_S, Running, World, serve_apart, until

VALUES = simulator.messages(11, 400)


def count(running_metrics: object, outcome: str) -> int:
    return int(running_metrics.transactions_total[outcome]._value.get())  # type: ignore[attr-defined]


def test_group_is_joined_once_and_with_known_partitions(broker: str, tmp_path: Path, small_model: Path) -> None:
    """kafka-python knows the partitions when it joins: a join without them was followed by one that could hang."""
    for i in range(3):
        world = World(broker, "kafka-python", f"joined-{i}", tmp_path, small_model)
        world.create(world.settings.transactions_topic)
        client = KafkaPythonClient(world.settings)
        try:
            client.begin_producing()
            until(lambda joining=client: joining.join(0.1))

            assert client._consumer.group_metadata().generation_id == 1
        finally:
            client.close()


def test_records_packed_at_once_arrive_in_order(broker: str, tmp_path: Path, small_model: Path) -> None:
    """Records of any size, with and without key, in several batches; those of an aborted transaction do not arrive."""
    world = World(broker, "kafka-python", "packed", tmp_path, small_model)
    topic = world.settings.scores_topic
    world.create(topic)
    sizes = [0, 1, 63, 64, 600, 8_100, 8_200, 300_000]
    records = [(None if i % 97 == 0 else b"%d" % i, b"%d " % i + b"x" * sizes[i % 8]) for i in range(4_000) if i % 50]
    headers = [[("number", b"%d" % i)] * (i % 3) for i in range(len(records) - 1_500)]
    client = KafkaPythonClient(world.settings)
    try:
        client.begin_producing()
        client.begin()
        client.send(topic, records[:1_000])
        client.abort(LIMIT_S)
        for part, each in ((records[:1_500], None), (records[1_500:], headers)):
            client.begin()
            client.send(topic, part, each)
            client.commit({})
            assert client.wait(LIMIT_S) is not None
        found = world.read(topic, len(records))
    finally:
        client.close()

    assert [(each.key, each.value) for each in found] == records
    assert [each.headers for each in found] == [dict(each) for each in [[]] * 1_500 + headers]


def test_each_transaction_is_scored_once(world: World) -> None:
    """One score per accepted message; the rest is rejected with its bytes or skipped; the offsets are committed."""
    world.create(world.settings.transactions_topic)
    damaged = b'{"type": "transaction", "hash": \xff'
    world.publish(VALUES[:300])
    world.publish([damaged, None, b""])
    world.publish(VALUES[300:])

    with world.serving() as service:
        until(lambda: count(service.metrics, "scored") == len(VALUES))
        found = world.scores(len(VALUES))
        [rejected] = world.read(world.settings.dlq_topic, 1)

    expected = [*range(300), *range(303, 403)]
    assert [offset for offset, _ in found] == expected
    assert (rejected.key, rejected.value) == (b"key 0", damaged)
    assert rejected.headers["reason"] == b"not_utf8"
    assert rejected.headers["source_topic"].decode() == world.settings.transactions_topic
    assert (rejected.headers["source_partition"], rejected.headers["source_offset"]) == (b"0", b"300")
    assert rejected.headers["detail"]
    assert (count(service.metrics, "rejected"), count(service.metrics, "skipped")) == (1, 2)
    assert world.committed() == 403


def test_score_has_the_transactions_key_and_alerts_repeat_scores(world: World) -> None:
    """A score is keyed by its transaction, and what is not allowed stands on the alerts topic too."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES)

    with world.serving():
        scores = world.read(world.settings.scores_topic, len(VALUES))
    flagged = [record for record in scores if msgspec.json.decode(record.value or b"")["decision"] != "allow"]

    assert flagged
    assert world.read(world.settings.alerts_topic, len(flagged)) == flagged
    for record in scores[:50]:
        score = msgspec.json.decode(record.value or b"")
        assert record.key is not None
        assert record.key.decode().startswith(score["hash"])


def test_aborted_messages_are_not_scored(world: World) -> None:
    """An ingester's aborted transaction is invisible, its committed one is scored."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:50], is_aborted=True)
    world.publish(VALUES[50:100], is_aborted=False)

    with world.serving() as service:
        until(lambda: count(service.metrics, "scored") >= 50)

    assert len(world.scores(50)) == 50
    assert world.scores(50)[0][0] == 51  # 50 aborted records and their marker


def test_restart_continues_with_the_same_past(world: World, broker: str, tmp_path: Path, small_model: Path) -> None:
    """Two runs over the halves of a stream give the very scores of one run over the whole."""
    whole = World(broker, world.settings.kafka_client, world.settings.group_id + ".whole", tmp_path / "w", small_model)
    for each in (world, whole):
        each.create(each.settings.transactions_topic)
    whole.publish(VALUES)
    with whole.serving():
        expected = whole.scores(len(VALUES))

    world.publish(VALUES[:170])
    with world.serving():
        world.scores(170)
    world.publish(VALUES[170:])
    with world.serving():
        found = world.scores(len(VALUES))

    assert found == expected


def test_missing_topics_are_created_with_the_settings(world: World) -> None:
    """At start the service makes its topics, and the dead-letter topic takes what the transactions topic takes."""
    with world.serving(world.but(partitions=2)):
        topics = world.admin.list_topics().topics

    mine = {name: len(topics[name].partitions) for name in world.topics()}
    assert mine == {f"{world.settings.group_id}.{name}": 2 for name in ("transactions", "scores", "alerts", "dlq")}


def test_missing_topic_is_told(world: World) -> None:
    """Where the service may not create topics, it says which are missing and what to do."""
    world.create(world.settings.scores_topic)

    with (
        pytest.raises(
            BrokerError, match=r"no topic '.*transactions', '.*alerts', '.*dlq'; create it, or set create_topics"
        ),
        world.serving(world.but(create_topics=False)),
    ):
        pass


def test_lone_transaction_does_not_wait(world: World) -> None:
    """A transaction that nothing follows is committed long before a batch or a poll would have to end."""
    world.create(world.settings.transactions_topic)
    with world.serving(world.but(poll_seconds=5.0, batch_seconds_max=5.0)) as service:
        world.publish(VALUES[:1])
        world.scores(1)
        started_s = time.monotonic()
        world.publish(VALUES[1:2])
        world.scores(2)
        took_s = time.monotonic() - started_s
        service.stop()

    assert took_s < 2.0


def test_second_replica_stands_by_and_takes_over(world: World, tmp_path: Path) -> None:
    """A second replica reads nothing while the first serves, and continues its past when it has stopped."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:100])
    with world.serving():
        world.scores(100)
        second = Running(world.settings)
        until(lambda: second.service.is_standby)
    try:
        second.until_ready()
        world.publish(VALUES[100:])
        found = world.scores(len(VALUES))
    finally:
        second.stop()

    assert [offset for offset, _ in found] == list(range(len(VALUES)))
    assert second.error is None


def test_fenced_replica_ends_and_its_successor_continues(world: World) -> None:
    """When another producer takes the transactional id, the service ends; restarted, it commits what was in hand."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:100])
    running = Running(world.settings)
    running.until_ready()
    world.scores(100)
    usurper = Producer(
        {"bootstrap.servers": world.settings.bootstrap_servers, "transactional.id": world.settings.transactional_id}
    )
    usurper.init_transactions()

    world.publish(VALUES[100:200])
    running.until_over()
    with world.serving():
        found = world.scores(200)

    assert isinstance(running.error, FencedError)
    assert [offset for offset, _ in found] == list(range(200))


def test_broker_restart_is_waited_out(library: str, tmp_path: Path, small_model: Path, broker: str) -> None:
    """A broker that is killed and comes back costs time, at worst a restart, and neither a score nor a second one."""
    own = servers.KafkaBroker(tmp_path / "broker", servers.kafka_libs())
    own.home.mkdir()
    own.start()
    try:
        world = World(own.address, library, "restart", tmp_path, small_model)
        world.create(world.settings.transactions_topic)
        world.publish(VALUES[:100])
        running = Running(world.but(broker_retry_seconds=15.0))
        running.until_ready()
        world.scores(100)
        own.stop(kill=True)
        own.start()
        world.publish(VALUES[100:])
        until(lambda: running.is_over or count(running.service.metrics, "scored") == len(VALUES))
        running.stop()
        # librdkafka's call can hang for good after a restart; the service then ends, and what runs it starts it again.
        if library == "confluent-kafka" and isinstance(running.error, BrokerError):
            with world.serving():
                world.scores(len(VALUES))
            running.error = None
        found = world.scores(len(VALUES))
    finally:
        own.stop()

    assert running.error is None
    assert [offset for offset, _ in found] == list(range(len(VALUES)))


def test_sigterm_drains_and_ends_with_0(world: World) -> None:
    """`falconet serve` on SIGTERM commits what it has, saves the state and exits with 0 within the drain."""
    world.create(world.settings.transactions_topic)
    world.publish(VALUES[:150])
    process = serve_apart(world.settings)
    try:
        world.scores(150)
        started_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=LIMIT_S)
        took_s = time.monotonic() - started_s
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 0, log
    assert took_s < world.settings.drain_seconds
    assert "state saved" in log
    assert world.committed() >= 150
    assert len(snapshot.files(world.settings.state_dir)) == 1
