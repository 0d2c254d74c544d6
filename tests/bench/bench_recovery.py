"""What snapshots cost a stream, and how soon a killed service serves again: `python -m tests.bench.bench_recovery`.

An Apache Kafka of its own holds transactions among 1 million accounts that meet once each, then as many again. The
service works them off with snapshots, is killed (SIGKILL) 1 million transactions behind the newest, and
is started again. Printed are the pause at each snapshot (from the stop of the stream to the return of the fork), the
time from the start of the process to its serving, and how long the service had to replay.

    --client kafka-python|confluent-kafka    one of them only
    --transactions N                         behind the snapshot, instead of 1,000,000
    --rounds N                               restarts of each client, instead of 3
    --json FILE                              where the figures go
"""

import argparse
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from service import bench, snapshot
from service.bench import Figure
from service.settings import KAFKA_CLIENTS, Settings
from tests import replica, servers
from tests.bench import command

ACCOUNTS = 1_000_000
WAIT_SECONDS_MAX = 600.0

Process = subprocess.Popen[bytes]


class Restart(NamedTuple):
    """One start after a kill."""

    serving_s: float
    restore_s: float
    replayed: int


def values(n: int) -> Iterator[bytes]:
    """Yield transactions between accounts of which each pair of numbers comes once, then again."""
    for i in range(n):
        pair = i % (ACCOUNTS // 2)
        yield msgspec.json.encode(
            {
                "type": "transaction",
                "hash": f"0x{i:064x}",
                "from_address": f"0x{2 * pair + 1:040x}",
                "to_address": f"0x{2 * pair + 2:040x}",
                "value": 10**18 + i,
                "gas": 21_000,
                "gas_price": 20_000_000_000,
                "input": "0x",
                "receipt_status": 1,
                "block_number": i // 200,
                "block_timestamp": 1_600_000_000 + i // 20,
            }
        )


class World:
    """A topic, a group and a folder for one client."""

    def __init__(self, address: str, client: str, folder: Path) -> None:
        self.address = address
        self.client = client
        self.name = f"recovery-{client}"
        self.state = folder / client
        self.log = folder / f"{client}.log"
        admin = AdminClient({"bootstrap.servers": address})
        for created in admin.create_topics([NewTopic(f"{self.name}.transactions", 1, 1)]).values():
            created.result(30)

    def send(self, start: int, end: int) -> None:
        """Append transactions to the topic."""
        producer = Producer({"bootstrap.servers": self.address, "queue.buffering.max.messages": 2_000_000})
        for i, value in enumerate(values(end)):
            if i >= start:
                producer.produce(f"{self.name}.transactions", value)
            if i % 10_000 == 0:
                producer.poll(0)
        producer.flush(120)

    def start(self, snapshot_seconds: float) -> Process:
        """Start the service."""
        settings = Settings(
            bootstrap_servers=self.address,
            kafka_client=self.client,  # type: ignore[arg-type]
            **replica.own_names(self.name),
            state_dir=self.state,
            metrics_port=0,
            snapshot_seconds=snapshot_seconds,
        )
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve"], env=replica.environment(settings), stderr=log
            )

    def until_committed(self, process: Process, n: int) -> None:
        """Wait until the group has committed so far."""
        reader = Consumer({"bootstrap.servers": self.address, "group.id": self.name})
        place = TopicPartition(f"{self.name}.transactions", 0)
        with contextlib.closing(reader):
            self._until(process, lambda: _committed(reader, place) >= n)

    def until_logged(self, process: Process, text: str) -> str:
        """Wait for a line of the log and return all of it."""
        self._until(process, lambda: text in self.log.read_text())
        return self.log.read_text()

    def _until(self, process: Process, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the service did not go on:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)


def _committed(reader: Consumer, place: TopicPartition) -> int:
    """Return the group's offset, -1 while its coordinator is starting."""
    try:
        return int(reader.committed([place], timeout=10)[0].offset)
    except KafkaException:
        return -1


def end(process: Process, number: signal.Signals) -> None:
    """End a service and wait for it."""
    process.send_signal(number)
    process.wait(60)


def run(world: World, n: int, rounds: int) -> tuple[list[float], list[Restart]]:
    """Fill the accounts, take snapshots, fall behind, and restart."""
    world.send(0, n)
    process = world.start(2.0)
    world.until_committed(process, n)
    world.until_logged(process, "snapshot path=")
    pauses = [float(found) for found in re.findall(r"paused_ms=([\d.]+)", world.log.read_text())]
    end(process, signal.SIGTERM)
    kept = snapshot.files(world.state)[0]
    world.send(n, 2 * n)
    process = world.start(0)
    world.until_committed(process, 2 * n)
    end(process, signal.SIGKILL)
    assert snapshot.files(world.state)[0] == kept
    restarts = []
    for _ in range(rounds):
        # The killed one's session; what follows is the start alone.
        time.sleep(7)
        started_s = time.perf_counter()
        process = world.start(0)
        log = world.until_logged(process, "serving offsets=")
        serving_s = time.perf_counter() - started_s
        end(process, signal.SIGKILL)
        found = re.search(r"restored .*replayed=(\d+) in_s=([\d.]+)", log)
        assert found is not None, log
        restarts.append(Restart(serving_s, float(found[2]), int(found[1])))
    return pauses, restarts


def figures(world: World, n: int, rounds: int) -> Iterator[Figure]:
    """Measure one client."""
    pauses, restarts = run(world, n, rounds)
    what = f"{ACCOUNTS:,} accounts, {world.client}"
    yield bench.figure(f"pause of the stream at a snapshot, {what}", pauses, "ms", "≤ 50")
    behind = f"{restarts[0].replayed:,} behind, {what}"
    yield bench.figure(f"serving after a `kill -9`, {behind}", [each.serving_s for each in restarts], "s", "≤ 15")
    yield bench.figure(f"of it loading and replaying, {behind}", [each.restore_s for each in restarts], "s")


def main() -> int:
    """Measure both clients, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", choices=KAFKA_CLIENTS)
    parser.add_argument("--transactions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{bench.machine()}, commit {bench.commit()}")
    with tempfile.TemporaryDirectory() as folder, servers.kafka() as address:
        for client in [options.client] if options.client else KAFKA_CLIENTS:
            world = World(address, client, Path(folder))
            command.tell(figures(world, options.transactions, options.rounds), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
