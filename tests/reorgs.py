"""A node that reorganises, the ingester and the service behind it, and kills in the middle: `python -m tests.reorgs`.

A local chain takes signed simulated transactions and replaces its newest blocks again and again, by depths of 1 to 32.
Meanwhile the ingester or the service is killed (SIGKILL) at a drawn instant and started again. At the end a reader of
committed records must have seen every transaction that the chain holds scored once and not taken back, everything else
taken back, and each standing score, with decision and reasons, bit by bit as a run makes it over the final chain alone,
which never saw an orphaned branch.

    --client kafka-python|confluent-kafka    one of them only
    --depths N                               up to this one, instead of 32
    --seed N                                 of the traffic and of the instants
"""

import argparse
import contextlib
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from features.accounts import Accounts
from models import report
from models.scorer import Scorer
from service import settings, simulator, trust
from service.anvil import Anvil
from service.chain_sender import LiveChain
from service.children import Service
from service.codec import Decoder
from service.pipeline import Message, Pipeline
from service.policy import policy
from service.settings import KAFKA_CLIENTS, Settings
from tests import replica, servers

CHAIN_ID = 31337
READY = {"ingest": "ingesting next=", "serve": "serving offsets="}
"""What each says once it does its work."""

KILLED = ("ingest", "serve", "nobody")
WAIT_SECONDS_MAX = 90.0
KILL_SECONDS_MAX = 0.4
"""A reorganisation is read, announced and retracted in about this time."""


class Outcome(NamedTuple):
    """What a run left."""

    n_standing: int
    """Transactions and token transfers that the chain holds at the end."""

    n_retracted: int
    n_kills: int
    recoveries_s: list[float]
    """From each kill until everything the chain held was scored, the group's session time-out included."""

    n_lost: int
    """What the chain holds and has no standing score."""

    n_doubled: int
    """Scores of what had one that stood."""

    n_left: int
    """Standing scores of what the chain does not hold."""

    n_other: int
    """Standing scores that differ from those of a run over the final chain alone."""


class Reader:
    """Follows the scores as a reader of committed records, and knows which stand."""

    def __init__(self, chosen: Settings) -> None:
        self._consumer = consumer(chosen)
        self._consumer.assign([TopicPartition(chosen.scores_topic, 0, 0)])
        self.standing: dict[str, dict[str, Any]] = {}
        self.n_retracted = self.n_doubled = 0

    def read(self) -> None:
        """Take what has come."""
        for record in self._consumer.consume(1_000, 0.02):
            assert record.error() is None, record.error()
            key, score = record.key().decode(), msgspec.json.decode(record.value())
            if score["status"] == "retracted":
                self.n_retracted += 1
                del self.standing[key]
                continue
            self.n_doubled += key in self.standing
            self.standing[key] = score

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


class World:
    """A chain, and the processes that follow it into topics of their own."""

    def __init__(self, broker: str, client: str, name: str, folder: Path, node: Anvil, **changes: object) -> None:
        wanted: dict[str, object] = {
            "bootstrap_servers": broker,
            "kafka_client": client,
            **replica.own_names(name),
            "checkpoint_topic": f"{name}.checkpoint",
            "state_dir": folder / "state",
            "accounts_max": 50_000,
            "pairs_max": 100_000,
            "snapshot_seconds": 1,
            "metrics_port": 0,
            "shadow_share": 0,
            "chain_id": CHAIN_ID,
            "rpc_urls": f"{node.url},{node.ws_url}",
            "start_block": 0,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(settings.PREFIX)}
        own = {f"{settings.PREFIX}{key.upper()}": str(value) for key, value in (wanted | changes).items()}
        self._environment, self._folder = kept | own, folder
        self.settings = settings.load(environment=own)
        admin = AdminClient({"bootstrap.servers": broker})
        topics = [NewTopic(topic, 1, 1) for topic in (self.settings.transactions_topic, self.settings.scores_topic)]
        for created in admin.create_topics(topics).values():
            created.result(30)
        self.processes: dict[str, Service] = {}

    def start(self, command: str) -> None:
        """Start the ingester or the service."""
        self.processes[command] = Service(self._environment, self._folder, command)

    def is_up(self) -> bool:
        """Say whether both do their work; one that has ended by itself raises."""
        for process in self.processes.values():
            process.check()
        return all(process.has_said(READY[command]) for command, process in self.processes.items())

    def kill(self, command: str) -> None:
        """Kill one of them at once."""
        self.processes.pop(command).kill()

    def close(self) -> None:
        """Kill all that still run."""
        for command in list(self.processes):
            self.kill(command)


def consumer(chosen: Settings) -> Any:
    """Return a consumer of committed records."""
    return Consumer(
        {
            "bootstrap.servers": chosen.bootstrap_servers,
            "group.id": f"{chosen.group_id}.reader",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )


@contextlib.contextmanager
def node() -> Iterator[Anvil]:
    """Run a local chain that mines when told to, at the time where the simulator begins."""
    begin = ("--no-mining", "--timestamp", str(simulator.START - 1), "--gas-limit", str(2**30))
    with servers.anvil(*begin, chain_id=CHAIN_ID) as found:
        yield found


def run(world: World, chain: LiveChain, depths: Sequence[int], *, seed: int, say: Callable[[str], None]) -> Outcome:
    """Reorganise by each of the depths, with a kill around it, and compare what stands with the final chain."""
    draw = random.Random(seed)
    held: set[str] = set()
    recoveries_s: list[float] = []
    n_blocks = 0

    def extend(n: int) -> None:
        nonlocal n_blocks
        for _ in range(n):
            held.update(name for name, _ in chain.extend(3))
            n_blocks += 1

    world.start("ingest")
    world.start("serve")
    reader = Reader(world.settings)
    extend(1)
    caught_up(world, reader, held)
    for i, depth in enumerate(depths):
        victim = KILLED[i % len(KILLED)]
        extend(max(2, depth + 1 - n_blocks))
        killer = threading.Timer(draw.uniform(0.0, KILL_SECONDS_MAX), world.kill, [victim])
        if victim != "nobody":
            killer.start()
        found = chain.reorganise(depth)
        held.difference_update(found.orphaned)
        held.update(name for name, _ in found.standing)
        extend(2)
        started_s = time.monotonic()
        if victim != "nobody":
            killer.join()
            world.start(victim)
        caught_up(world, reader, held)
        if victim != "nobody":
            recoveries_s.append(time.monotonic() - started_s)
        say(f"  depth {depth}, killed {victim}: {len(held):,} stand, {reader.n_retracted:,} retracted so far")
    for process in world.processes.values():
        process.stop(30.0)
    reader.read()
    reader.close()
    expected = alone(world.settings)
    both = expected.keys() & reader.standing.keys()
    return Outcome(
        n_standing=len(held),
        n_retracted=reader.n_retracted,
        n_kills=len(recoveries_s),
        recoveries_s=recoveries_s,
        n_lost=len(held - reader.standing.keys()),
        n_doubled=reader.n_doubled,
        n_left=len(reader.standing.keys() - held),
        n_other=sum(judged(expected[key]) != judged(reader.standing[key]) for key in both) + len(held - both),
    )


def caught_up(world: World, reader: Reader, held: set[str]) -> None:
    """Wait until both processes work and exactly what the chain holds has a standing score."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not world.is_up() or reader.standing.keys() != held:
        reader.read()
        if time.monotonic() > deadline:
            missing, left = held - reader.standing.keys(), reader.standing.keys() - held
            raise AssertionError(f"{len(missing)} without a score, {len(left)} scores too many: {missing} {left}")


def alone(chosen: Settings) -> dict[str, dict[str, Any]]:
    """Return the scores that one run in one process makes of what stands on the transactions topic."""
    scorer = Scorer.load(trust.model_path(chosen))
    pipeline = Pipeline(
        accounts=Accounts(accounts_max=chosen.accounts_max, pairs_max=chosen.pairs_max),
        scorer=scorer,
        policy=policy(scorer.thresholds, None),
        decoder=Decoder(chain_id=CHAIN_ID, message_bytes_max=chosen.message_bytes_max),
    )
    values = standing(chosen)
    messages = [Message(value, None, "", 0, i, 0) for i, value in enumerate(values)]
    found = pipeline.process(messages, now_ms=0)
    assert not found.rejections
    return {key.decode(): msgspec.json.decode(value) for key, value in found.scores}


def standing(chosen: Settings) -> list[bytes]:
    """Return the topic's committed messages but those of orphaned blocks, in its order."""
    reader = consumer(chosen)
    place = TopicPartition(chosen.transactions_topic, 0, 0)
    _, end = reader.get_watermark_offsets(place, timeout=30)
    reader.assign([place])
    found: list[tuple[str, bytes]] = []
    # The end may be a transaction's marker, which nobody is given: the position tells that it was passed.
    while reader.position([place])[0].offset < end:
        for record in reader.consume(1_000, 0.1):
            message = msgspec.json.decode(record.value())
            if message["type"] == "orphaned_block":
                found = [each for each in found if each[0] != message["block_hash"]]
            else:
                found.append((message["block_hash"], record.value()))
    reader.close()
    return [value for _, value in found]


def judged(score: dict[str, Any]) -> dict[str, Any]:
    """Return a score without where and when it was made."""
    return {name: value for name, value in score.items() if name not in ("source", "scored_at")}


def main() -> int:
    """Run all depths with both clients, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", choices=KAFKA_CLIENTS)
    parser.add_argument("--depths", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"{report.machine()}, commit {report.commit()[:12]}, depths 1 to {options.depths}, seed {options.seed}")
    is_well = True
    with servers.kafka() as broker:
        for client in [options.client] if options.client else KAFKA_CLIENTS:
            with tempfile.TemporaryDirectory() as folder, node() as chain_node:
                world = World(broker, client, f"reorgs-{client}", Path(folder), chain_node)
                chain = LiveChain(chain_node.url, CHAIN_ID, options.seed, depth_max=options.depths)
                try:
                    found = run(world, chain, range(1, options.depths + 1), seed=options.seed, say=print)
                finally:
                    world.close()
            times = sorted(found.recoveries_s) or [0.0]
            print(
                f"{client}: {found.n_standing:,} stand, {found.n_retracted:,} retracted, {found.n_kills} kills; lost "
                f"{found.n_lost}, doubled {found.n_doubled}, left of orphaned blocks {found.n_left}, other than "
                f"without the branches {found.n_other}; whole again {statistics.median(times):.1f} s after a start "
                f"(worst {times[-1]:.1f})"
            )
            is_well = is_well and not (found.n_lost or found.n_doubled or found.n_left or found.n_other)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
