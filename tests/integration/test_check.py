"""`check` against Apache Kafka: it says what `serve` would find, and changes nothing."""

import pytest

from features.errors import BrokerError
from service import check
from tests.integration.conftest import World


def test_check_names_each_topic_and_creates_none(world: World) -> None:
    """A topic that is there is named with its partitions, a missing one as what serve will create."""
    world.create(world.settings.transactions_topic, n_partitions=3)

    lines = list(check.run(world.settings, is_offline=False))

    assert f"topic     {world.settings.transactions_topic}: 3 partitions" in lines
    assert f"topic     {world.settings.scores_topic}: serve will create it" in lines
    assert world.topics() == {world.settings.transactions_topic}


def test_check_refuses_what_serve_would_refuse(world: World) -> None:
    """Missing topics that may not be created are named in the error."""
    with pytest.raises(BrokerError) as raised:
        list(check.run(world.but(create_topics=False), is_offline=False))

    assert world.settings.dlq_topic in str(raised.value)


def test_check_disturbs_no_running_service(world: World) -> None:
    """Beside a running service the check passes and the service keeps its place in the group."""
    with world.serving() as service:
        lines = list(check.run(world.settings, is_offline=False))

        assert len([line for line in lines if line.startswith("topic")]) == 4
        assert service.ready.is_set()
