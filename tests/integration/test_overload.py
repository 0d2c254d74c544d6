"""More than the service was made for, on Apache Kafka, with each client library; `tests/bench` has the long forms."""

from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from tests.bench.load import BAD, Stream
from tests.integration.conftest import LIMIT_S, World, until
from tests.integration.test_kafka_loop import count

MEGABYTE = 1_000_000


def firsts(stream: Stream, n: int) -> list[bytes]:
    """Return the first messages of a stream."""
    values = stream.values()
    return [next(values) for _ in range(n)]


def padded(value: bytes, size: int) -> bytes:
    """Return a transaction whose input makes it so many bytes long."""
    missing = size - len(value)
    return value.replace(b'"input":"0x"', b'"input":"0x' + b"0" * missing + b'"')


def test_megabyte_is_scored_and_more_is_rejected_in_its_place(world: World) -> None:
    """A message of 1 MB is a message; one above the limit is rejected whole, and its neighbours are scored."""
    topic = NewTopic(world.settings.transactions_topic, 1, 1, config={"max.message.bytes": str(3 * MEGABYTE)})
    world.admin.create_topics([topic])[topic.topic].result(LIMIT_S)
    values = firsts(Stream("ordinary"), 40)
    values[10] = padded(values[10], MEGABYTE)
    values[20] = padded(values[20], world.settings.message_bytes_max)
    values[30] = padded(values[30], world.settings.message_bytes_max + 2)
    producer = Producer({"bootstrap.servers": world.settings.bootstrap_servers, "message.max.bytes": 3 * MEGABYTE})
    for value in values:
        producer.produce(topic.topic, value, b"key")
    producer.flush()

    with world.serving():
        found = world.scores(39)
        [rejected] = world.read(world.settings.dlq_topic, 1)

    assert len(values[10]) == MEGABYTE
    assert [offset for offset, _ in found] == [i for i in range(40) if i != 30]
    assert rejected.value == values[30]
    assert rejected.headers["reason"] == b"too_large"
    assert str(world.settings.message_bytes_max).encode() in rejected.headers["detail"]


def test_backlog_from_one_address_with_bad_messages_is_worked_off_in_order(world: World) -> None:
    """Behind by 3,000, every third message bad and all others from one address: in order, and the lag is shown."""
    world.create(world.settings.transactions_topic)
    values = firsts(Stream("hot", 1 / 3), 3_000)
    good = [i for i, value in enumerate(values) if value != BAD]
    world.publish(values)

    with world.serving(world.but(batch_records_max=5)) as service:

        def lag() -> float | None:
            return service.metrics.registry.get_sample_value("falconet_consumer_lag_records", {"partition": "0"})

        # Batches of 5 take longer than the second after which the lag is looked at again.
        until(lambda: (lag() or 0) > 0)
        behind = lag()
        until(lambda: count(service.metrics, "scored") + count(service.metrics, "rejected") == len(values))
        until(lambda: lag() == 0)
        found = world.scores(len(good))
        rejected = world.read(world.settings.dlq_topic, len(values) - len(good))

    assert behind
    assert len(good) == 2_000
    assert [offset for offset, _ in found] == good
    assert [int(record.headers["source_offset"]) for record in rejected] == sorted(set(range(3_000)) - set(good))
