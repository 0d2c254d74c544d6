"""Reorganisations on Apache Kafka, with each client library: what readers of committed records see of them."""

from pathlib import Path

import msgspec
import pytest

from features.errors import ReorgError
from tests.integration.conftest import Record, World, until
from tests.unit.test_reorg import AFTER, BEFORE, DECODER, GONE, STREAM, UNSEEN


def statuses(records: list[Record]) -> list[tuple[bytes | None, str]]:
    return [(record.key, msgspec.json.decode(record.value or b"")["status"]) for record in records]


def scores(records: list[Record]) -> list[tuple[bytes | None, float]]:
    """Return key and probability of the scores, without the retractions."""
    found = [(record.key, msgspec.json.decode(record.value or b"")) for record in records]
    return [(key, score["score"]) for key, score in found if score["status"] == "scored"]


def test_retractions_are_seen_once_and_later_scores_never_saw_the_branch(
    world: World, broker: str, tmp_path: Path, small_model: Path
) -> None:
    """Across a restart before the announcement too, which goes back to blocks from before it."""
    unseen = World(
        broker, world.settings.kafka_client, world.settings.group_id + ".unseen", tmp_path / "u", small_model
    )
    for each in (world, unseen):
        each.create(each.settings.transactions_topic)
    unseen.publish(UNSEEN)
    with unseen.serving():
        expected = scores(unseen.read(unseen.settings.scores_topic, len(UNSEEN)))

    world.publish(BEFORE)
    with world.serving():
        world.read(world.settings.scores_topic, len(BEFORE))
    world.publish(STREAM[len(BEFORE) :], is_aborted=False)
    orphans = [DECODER.decode(value).id.encode() for block in GONE for value in block][::-1]
    n = len(BEFORE) + len(orphans) + len(AFTER)
    with world.serving() as service:
        found = world.read(world.settings.scores_topic, n)
        until(lambda: service.metrics.retractions_total._value.get() == len(orphans))

    assert [key for key, status in statuses(found) if status == "retracted"] == orphans
    assert statuses(found)[len(BEFORE) : len(BEFORE) + len(orphans)] == [(key, "retracted") for key in orphans]
    assert scores(found)[-len(AFTER) :] == expected[-len(AFTER) :]
    assert len(scores(found)) == len(BEFORE) + len(AFTER)


def test_refused_reorganisation_stops_at_its_announcement(world: World) -> None:
    """Everything before it is committed, the next start refuses the same message, and nothing after it is scored."""
    world.create(world.settings.transactions_topic)
    world.publish(STREAM)
    settings = world.but(reorg_depth_max=0)

    for _ in range(2):
        with pytest.raises(ReorgError, match="reorg_depth_max is 0"), world.serving(settings) as service:
            until(lambda service=service: service.metrics.reorgs_refused_total._value.get() == 1)

    assert world.committed() == len(BEFORE)
    assert len(world.read(world.settings.scores_topic, len(BEFORE))) == len(BEFORE)
