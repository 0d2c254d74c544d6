"""Measure ingestion: `python -m tests.bench.bench_ingest [--json FILE] [--blocks N] [--client NAME] [NAME …]`.

    catch-up   our own ceiling: blocks of 200 transactions with a transfer each, from a node of canned answers
    anvil      the same path on a real node, whose own speed it shows
    head       from the mining of a block to its messages being readable, and to their scores, on anvil
    memory     resident memory over many small blocks, 100,000 by default

Ingestion runs on one core, the node and Apache Kafka on the others. Without names all are run.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from service import bench_kafka
from service.anvil import Anvil
from service.bench import Figure
from service.ingest import Ingest
from service.settings import KAFKA_CLIENTS, Settings
from tests import servers
from tests.bench import command
from tests.nodes import ingesting

TRANSACTIONS = 200
"""In a block, about mainnet's mean."""

CATCH_UP_BLOCKS = 400
ROUNDS = 3
ANVIL_BLOCKS, ANVIL_TRANSACTIONS = 60, 100
HEADS, WARM_HEADS = 300, 20
HEAD_TRANSACTIONS = 20
HEAD_EVERY_SECONDS = 0.1
MARKS = 10


def apart(core: int) -> None:
    """Have this process, and what it starts, keep to one core, or off it where the number is negative."""
    there = sorted(os.sched_getaffinity(0) | set(range(os.cpu_count() or 1)))
    others = {each for each in there if each != there[abs(core) - 1]} or {there[0]}
    os.sched_setaffinity(0, {there[core - 1]} if core > 0 else others)


@contextlib.contextmanager
def canned(head: int, n_transactions: int) -> Iterator[str]:
    """Run a node of canned answers and yield its URL."""
    command = [sys.executable, "-m", "tests.bench.canned_node", str(head), str(n_transactions)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def reach(ingest: Ingest, number: int) -> None:
    """Return when a block is published."""
    pause = threading.Event()
    while ingest.published is None or ingest.published.next <= number:
        assert not ingest.is_over.is_set(), "ingestion ended"
        pause.wait(0.002)


def made(address: str, client: str, name: str, url: str, **changes: Any) -> Settings:
    """Return the settings of one round, with topics of its own."""
    topics = {"transactions_topic": name, "checkpoint_topic": f"{name}.checkpoint", "transactional_id": name}
    plain = {"bootstrap_servers": address, "kafka_client": client, "rpc_urls": (url,), "start_block": "1"}
    return msgspec.structs.replace(Settings(metrics_port=0), **(plain | topics | changes))


def spread(name: str, values: list[float], unit: str, target: str = "") -> Figure:
    return Figure(name, float(np.median(values)), unit, min(values), max(values), target)


def catch_up(address: str, clients: list[str]) -> Iterator[Figure]:
    """Yield our own ceiling, by Kafka client."""
    for client in clients:
        rates, cpu_rates = [], []
        with canned(CATCH_UP_BLOCKS, TRANSACTIONS) as url:
            apart(1)
            for i in range(ROUNDS):
                with ingesting(made(address, client, f"catch-up-{client}-{i}", url)) as ingest:
                    reach(ingest, 1)
                    assert ingest.published is not None
                    first, started_s, cpu_s = ingest.published.next, time.perf_counter(), time.process_time()
                    reach(ingest, CATCH_UP_BLOCKS)
                    n = (CATCH_UP_BLOCKS + 1 - first) * TRANSACTIONS
                    rates.append(n / (time.perf_counter() - started_s))
                    cpu_rates.append(n / (time.process_time() - cpu_s))
            apart(-1)
        yield spread(f"catching up from canned answers, one core, {client}", rates, "tx/s", "≥ 5,000")
        yield spread(f"catching up from canned answers, by CPU time, {client}", cpu_rates, "tx/CPU-s")


def anvil(address: str) -> Iterator[Figure]:
    """Yield what a real node gives."""
    with servers.anvil("--no-mining", "--gas-limit", "300000000") as node:
        fill(node, ANVIL_BLOCKS, ANVIL_TRANSACTIONS)
        apart(1)
        blocks, transactions = [], []
        for i in range(ROUNDS):
            with ingesting(made(address, "confluent-kafka", f"anvil-{i}", node.url)) as ingest:
                ingest.ready.wait(30)
                started_s = time.perf_counter()
                reach(ingest, ANVIL_BLOCKS)
                passed_s = time.perf_counter() - started_s
            blocks.append(ANVIL_BLOCKS / passed_s)
            transactions.append(ANVIL_BLOCKS * ANVIL_TRANSACTIONS / passed_s)
        apart(-1)
    yield spread("catching up from anvil, 100 transactions a block", blocks, "blocks/s")
    yield spread("catching up from anvil", transactions, "tx/s")


def fill(node: Anvil, n_blocks: int, n_transactions: int) -> None:
    """Mine blocks of plain transfers."""
    accounts = node.ask("eth_accounts")
    for _ in range(n_blocks):
        for i in range(n_transactions):
            sender, recipient = accounts[i % 10], accounts[(i + 3) % 10]
            node.ask("eth_sendTransaction", {"from": sender, "to": recipient, "value": hex(i), "gas": "0x5208"})
        node.ask("evm_mine")


def head(address: str, clients: list[str]) -> Iterator[Figure]:
    """Yield the delays of fresh blocks, to the topic and to the scores."""
    for client in clients:
        settings = Settings(bootstrap_servers=address)
        names = bench_kafka._topics(settings)
        with (
            servers.anvil("--no-mining") as node,
            bench_kafka._reader(settings, names["transactions_topic"]) as messages,
            bench_kafka._reader(settings, names["scores_topic"]) as scores,
            bench_kafka._serve(settings, client, names),
        ):
            chosen = made(address, client, names["transactions_topic"], node.url, start_block="latest")
            with ingesting(msgspec.structs.replace(chosen, rpc_urls=(node.url, node.ws_url))) as ingest:
                reach(ingest, 0)
                mined = [time.time()]
                seen = [watch(reader) for reader in (messages, scores)]
                pause = threading.Event()
                for _ in range(HEADS):
                    pause.wait(HEAD_EVERY_SECONDS)
                    send(node, mined)
                for thread, _ in seen:
                    thread.join(60)
        for (_, arrived), what in zip(seen, ("topic", "score"), strict=True):
            delays = [1e3 * (arrived[number] - mined[number]) for number in range(1 + WARM_HEADS, HEADS + 1)]
            for quantile in (50, 99):
                value = float(np.percentile(delays, quantile))
                target = "≤ 150" if (what, quantile) == ("topic", 99) else ""
                name = f"from a mined block of {HEAD_TRANSACTIONS} to the {what}, {client}, p{quantile}"
                yield Figure(name, value, "ms", value, value, target)


def send(node: Anvil, mined: list[float]) -> None:
    """Mine a block and note when the node was told to."""
    accounts = node.ask("eth_accounts")
    for i in range(HEAD_TRANSACTIONS):
        node.ask(
            "eth_sendTransaction",
            {"from": accounts[i % 10], "to": accounts[(i + 3) % 10], "value": hex(i), "gas": "0x5208"},
        )
    mined.append(time.time())
    node.ask("evm_mine")


def watch(reader: Any) -> tuple[threading.Thread, dict[int, float]]:
    """Note when the last message of each block became readable, until all heads are there."""
    arrived: dict[int, float] = {}
    n = HEADS * HEAD_TRANSACTIONS

    def run() -> None:
        n_read = 0
        until_s = time.monotonic() + 120
        while n_read < n and time.monotonic() < until_s:
            message = reader.poll(0.05)
            now_s = time.time()
            for each in [] if message is None else [message, *reader.consume(1_000, 0)]:
                arrived[msgspec.json.decode(each.value())["block_number"]] = now_s
                n_read += 1

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, arrived


def memory(address: str, n_blocks: int) -> Iterator[Figure]:
    """Yield what is resident after a tenth of many blocks and after all of them."""
    marks = []
    with canned(n_blocks, 2) as url, ingesting(made(address, "confluent-kafka", "memory", url)) as ingest:
        for i in range(1, MARKS + 1):
            reach(ingest, n_blocks * i // MARKS)
            status = Path("/proc/self/status").read_text(encoding="ascii")
            marks.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    yield Figure(f"resident memory after {n_blocks // MARKS:,} blocks", marks[0], "MiB", marks[0], marks[0])
    yield Figure(f"resident memory after {n_blocks:,} blocks", marks[-1], "MiB", min(marks), max(marks))


def main() -> int:
    """Measure what is named, print it, and write it where asked."""
    parser = argparse.ArgumentParser(description="Measure ingestion.")
    parser.add_argument("names", nargs="*", metavar="catch-up|anvil|head|memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", choices=KAFKA_CLIENTS, help="else both")
    parser.add_argument("--blocks", type=int, default=100_000)
    options = parser.parse_args()
    clients = [options.client] if options.client else list(KAFKA_CLIENTS)
    apart(-1)
    measures = {
        "catch-up": lambda address: catch_up(address, clients),
        "anvil": anvil,
        "head": lambda address: head(address, clients),
        "memory": lambda address: memory(address, options.blocks),
    }
    with servers.kafka() as address:
        for name in options.names or measures:
            command.tell(measures[name](address), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
