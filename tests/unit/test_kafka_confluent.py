"""What the fast client knows of calls that its library never ends."""

import pytest

pytest.importorskip("confluent_kafka")

from service.kafka_confluent import CALL_SECONDS, STUCK_SECONDS, Stuck


class Coordinator:
    """A clock, and a coordinator that is there or not."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.is_there = True
        self.n_asked = 0

    def answers(self) -> bool:
        self.n_asked += 1
        return self.is_there


@pytest.fixture
def coordinator() -> Coordinator:
    """One that answers."""
    return Coordinator()


@pytest.fixture
def stuck(coordinator: Coordinator) -> Stuck:
    """Offsets sent at 100 s."""
    stuck = Stuck(coordinator.answers, lambda: coordinator.now_s)
    stuck.sending_since_s = 100.0
    return stuck


def looked(stuck: Stuck, coordinator: Coordinator, until_s: float) -> list[float]:
    """Look ten times a second and return what was said."""
    said = []
    while coordinator.now_s < until_s:
        coordinator.now_s += 0.1
        found = stuck.for_s()
        if found is not None:
            said.append(found)
    return said


def test_offsets_that_do_not_arrive_beside_answers_are_stuck(stuck: Stuck, coordinator: Coordinator) -> None:
    """The coordinator has answered for STUCK_SECONDS, and is asked once a second, not each time."""
    said = looked(stuck, coordinator, 100.0 + STUCK_SECONDS + 2.0)

    assert said[0] == pytest.approx(STUCK_SECONDS + CALL_SECONDS, abs=0.25)
    assert coordinator.n_asked <= STUCK_SECONDS + 2


def test_offsets_wait_for_a_coordinator_that_is_away(stuck: Stuck, coordinator: Coordinator) -> None:
    """However long it is away; and once it is back they get their time."""
    coordinator.is_there = False

    assert looked(stuck, coordinator, 130.0) == []
    coordinator.is_there = True
    assert looked(stuck, coordinator, 130.0 + STUCK_SECONDS - 0.2) == []
    assert looked(stuck, coordinator, 130.0 + STUCK_SECONDS + 1.2) != []


def test_offsets_that_arrived_are_not_stuck(stuck: Stuck, coordinator: Coordinator) -> None:
    """What is said is about the offsets at hand."""
    looked(stuck, coordinator, 105.0)
    stuck.sending_since_s = None

    assert looked(stuck, coordinator, 120.0) == []
    stuck.sending_since_s = 120.0
    assert looked(stuck, coordinator, 120.0 + STUCK_SECONDS) == []
