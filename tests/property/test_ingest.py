"""Ingestion over drawn histories: chains that reorganise while they are read, brokers that fail, processes that end."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as drawing
from hypothesis import strategies as st

from features.errors import OutageError
from service import chain, ingest
from service.chain import Checkpoint
from service.ingest import Ingester
from service.ingest_metrics import IngestMetrics
from service.settings import Settings
from tests.fakes import FakeKafka
from tests.nodes import FakeChain

CHECKPOINTS = "transactions.checkpoint"

events = st.one_of(
    st.tuples(st.just("grow"), st.integers(1, 5)),
    st.tuples(st.just("reorganise"), st.integers(1, 6), st.integers(0, 8)),
    st.tuples(st.just("reorganise while read"), st.integers(1, 12), st.integers(1, 6)),
    st.tuples(st.just("fail"), st.sampled_from(["begin", "send", "commit", "wait"])),
    st.tuples(st.just("restart"), st.booleans()),
    st.tuples(st.just("step")),
)


@pytest.fixture(autouse=True, scope="module")
def without_pauses() -> Iterator[None]:
    """Nothing here waits for a broker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "RETRY_SECONDS", 0.0)
        patch.setattr(ingest, "MARKERS_SECONDS", 0.0)
        yield


class Killed(BaseException):
    """The process ends at this instant."""


class World:
    """A chain, a broker, and one ingester at a time between them."""

    def __init__(self, finality: str) -> None:
        self.chain = FakeChain(5)
        self.kafka = FakeKafka()
        self.settings = Settings(
            finality=finality, start_block="0", reorg_depth_max=1024, broker_retry_seconds=60.0, rpc_concurrency=1
        )
        self.restart()

    def restart(self) -> None:
        """Begin where the committed checkpoint says, as another process would."""
        begun = None
        for topic, _, value, _ in self.kafka.written:
            if topic == CHECKPOINTS:
                begun = chain.decode(value)
        self.kafka._open = self.kafka._committing = None
        self.ingester = Ingester(
            self.settings, self.chain, self.kafka, IngestMetrics(), begun=begun, stop=threading.Event()
        )

    def step(self) -> None:
        """Publish what can be published, and look whether the topic is right at this moment."""
        for _ in range(200):
            if not self.ingester.step():
                break
        self.check()

    def published(self) -> list[tuple[int, str]]:
        """Return number and hash of what stands, in the order of its records, corrections applied."""
        standing: list[dict[str, Any]] = []
        for topic, key, value, _ in self.kafka.written:
            if topic == CHECKPOINTS:
                continue
            if key is not None:
                number, block_hash = value.decode().split()
                standing.append({"number": int(number), "hash": block_hash})
                continue
            orphaned = msgspec.json.decode(value)
            assert all(each["number"] <= orphaned["block_number"] for each in standing), "newest first"
            standing = [each for each in standing if each["hash"] != orphaned["block_hash"]]
        return [(each["number"], each["hash"]) for each in standing]

    def check(self) -> None:
        """What stands is what the checkpoint says is published, block for block."""
        done = self.ingester.done
        if done is None:
            return
        known = [place for place in done.tail for _ in range(place.number % 3)]
        assert self.published() == [(place.number, place.hash) for place in known]


def expected(chain: FakeChain, upto: int) -> list[tuple[int, str]]:
    headers = [block.header for block in chain.blocks[: upto + 1]]
    return [(header.number, header.hash) for header in headers for _ in range(header.number % 3)]


def happen(world: World, event: tuple[Any, ...]) -> None:
    """Let one drawn thing happen."""
    match event:
        case ("grow", n):
            for _ in range(n):
                world.chain.grow()
        case ("reorganise", depth, growth):
            world.chain.reorganise(depth, growth=max(growth, 1))
        case ("reorganise while read", n_asked, depth):
            left = [n_asked]

            def ask() -> None:
                left[0] -= 1
                if left[0] == 0:
                    world.chain.reorganise(depth, growth=depth + 1)

            world.chain.on_ask = ask
        case ("fail", call):
            world.kafka.faults.setdefault(call, []).append(OutageError("a drawn fault"))
        case ("restart", is_killed):
            if is_killed:
                world.kafka.faults["wait"] = [Killed()]  # type: ignore[list-item]
                with contextlib.suppress(Killed):
                    world.step()
                world.kafka.faults.clear()
            world.ingester.close()
            world.restart()
        case ("step",):
            world.step()


@drawing(deadline=None)
@given(st.lists(events, max_size=25))
def test_topic_ends_as_the_chain_whatever_happens(history: list[tuple[Any, ...]]) -> None:
    """Each transaction of the chain stands once, in order, and nothing of any orphaned branch."""
    world = World("instant")
    for event in history:
        happen(world, event)
    world.chain.on_ask = lambda: None
    world.step()
    world.step()

    assert world.published() == expected(world.chain, len(world.chain.blocks) - 1)
    world.ingester.close()


@drawing(deadline=None)
@given(st.lists(events.filter(lambda event: event[0] in ("grow", "step", "fail", "restart")), max_size=20))
def test_confirmations_only_delay(history: list[tuple[Any, ...]]) -> None:
    """With confirmations what is published is the chain but for its newest blocks."""
    world = World("3")
    for event in history:
        happen(world, event)
    world.step()

    assert world.published() == expected(world.chain, len(world.chain.blocks) - 1 - 3)
    world.ingester.close()


@given(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=12), st.lists(st.sampled_from("ab"), min_size=1, max_size=12)
)
def test_orphaned_count_equals_the_naive_one(published: list[str], held: list[str]) -> None:
    """As many as stand above the longest common beginning, none where one is only shorter than the other."""

    def branch(names: list[str]) -> list[str]:
        return ["".join(names[: i + 1]) for i in range(len(names))]

    ours, theirs = branch(published), branch(held)
    n_common = sum(a == b for a, b in zip(ours, theirs, strict=False))
    done = Checkpoint(1, 0, tuple(chain.Place(i, name, i) for i, name in enumerate(ours)))

    found = chain.n_orphaned(done, lambda number: theirs[number] if number < len(theirs) else None)
    is_behind = n_common == len(theirs) and n_common > 0
    assert found == (0 if is_behind else len(ours) - n_common)
