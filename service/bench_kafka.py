"""The part of `bench` that runs the real service as a process of its own, on the broker that the settings name.

Every run has topics and a consumer group of its own, checks that each transaction has exactly one score as a
`read_committed` reader sees it, and takes its times from that reader or from the scores, never from the service's word.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features.errors import BrokerError
from service import bench, scrape
from service.bench import Figure
from service.settings import KAFKA_CLIENTS, Settings

THROUGHPUT_MUST = {"kafka-python": "≥ 20,000", "confluent-kafka": "≥ 50,000"}
RATES = (2_000, 5_000)
"""Transactions a second, open-loop."""

RATE_SECONDS = 10.0
WARM_SECONDS = 3.0
"""Cut off at the front of an open-loop run: the first batch follows a rebalance."""

BROKER_WARM_SECONDS = 60.0
"""Transactions are run for so long before anything counts: until its code is compiled, the broker takes thrice as long
for a commit (18 against 6 ms)."""

READY_SECONDS_MAX = 60.0
DRAIN_SECONDS_MAX = 120.0


class _Source(Struct):
    offset: int


class _Score(Struct):
    source: _Source
    scored_at: int


_decode = msgspec.json.Decoder(_Score).decode


class Service(NamedTuple):
    """A running `falconet serve`."""

    process: "subprocess.Popen[bytes]"
    ready_s: float
    """From the start of the process to its page and its place in the group."""

    url: str


def figures(settings: Settings, *, quick: bool, say: Callable[[str], None]) -> Iterator[Figure]:
    """Measure throughput, latency at fixed rates, start-up and memory with every client that is installed."""
    from service import simulator

    clients = list(KAFKA_CLIENTS)
    if find_spec("confluent_kafka") is None:
        raise BrokerError(
            "confluent-kafka is not installed: the benchmark's reader and sender need it (falconet[confluent])"
        )
    n, rounds = (20_000, 1) if quick else (200_000, 3)
    values = simulator.messages(bench.SEED, n)
    if not quick:
        say(f"  warming the broker for {BROKER_WARM_SECONDS:.0f} s")
        warm(settings)
        _throughput(settings, clients[1], values)
    rates: dict[str, list[float]] = {client: [] for client in clients}
    starts: list[float] = []
    for _ in range(rounds):
        for client in clients:
            rate, ready_s = _throughput(settings, client, values)
            say(f"  {client}: {rate:,.0f} tx/s, ready after {ready_s:.2f} s")
            rates[client].append(rate)
            starts.append(ready_s)
    for client in clients:
        yield bench.figure(f"exactly once through Kafka, {client}", rates[client], "tx/s", THROUGHPUT_MUST[client])
    yield bench.figure("ready to serve after start, warm caches", starts, "s", "≤ 3")
    seconds = 5.0 if quick else RATE_SECONDS
    for client in clients:
        for rate in RATES[:1] if quick else RATES:
            delays = [_delays(settings, client, values, rate=rate, seconds=seconds) for _ in range(rounds)]
            for q in (50, 99, 99.9):
                name = f"end to end at {rate:,} tx/s, open loop, {client}, p{q:g}"
                must = "≤ 25" if (rate, q) == (2_000, 99) else ""
                yield bench.figure(name, [float(np.percentile(delay, q)) * 1e3 for delay in delays], "ms", must)
    yield _memory(settings)


def warm(settings: Settings) -> None:
    """Have a broker compile its code by transactions at a fixed rate."""
    from service import simulator

    values = simulator.messages(bench.SEED, 20_000)
    _delays(settings, "kafka-python", values, rate=RATES[0], seconds=BROKER_WARM_SECONDS)


def _throughput(settings: Settings, client: str, values: list[bytes]) -> tuple[float, float]:
    """Let the service work off a full topic; return its rate over the middle 80 % and its start-up time."""
    names = _topics(settings)
    _send(settings, names["transactions_topic"], values)
    with _reader(settings, names["scores_topic"]) as reader:
        with _serve(settings, client, names) as service:
            # Reading beside the service would take a fifth of a core from it.
            _await_end(reader, names["scores_topic"], len(values))
        _, scored_ms = _read(reader, len(values))
    first, last = len(values) // 10, len(values) * 9 // 10
    return (last - first) / ((scored_ms[last] - scored_ms[first]) / 1e3), service.ready_s


def _delays(settings: Settings, client: str, values: list[bytes], *, rate: int, seconds: float) -> Any:
    """Send at a fixed rate whatever the service does; return each transaction's seconds from due to readable.

    The due time is the schedule's, not the moment of sending: a stalled sender counts against the figure too.
    """
    n = int(rate * (seconds + WARM_SECONDS))
    names = _topics(settings)
    with _reader(settings, names["scores_topic"]) as reader, _serve(settings, client, names):
        schedule: list[float] = []
        sender = threading.Thread(
            target=_send_at, args=(settings, names["transactions_topic"], values, rate, n, schedule), daemon=True
        )
        sender.start()
        arrived_s, _ = _read(reader, n)
        sender.join()
    delays = arrived_s - (schedule[0] + np.arange(n) / rate)
    return delays[int(rate * WARM_SECONDS) :]


def _memory(settings: Settings) -> Figure:
    """Fill a table of 100,000 accounts and return the service's resident memory."""
    names = _topics(settings)
    _send(settings, names["transactions_topic"], _strangers(50_000))
    limits = {"FALCONET_ACCOUNTS_MAX": "100000", "FALCONET_PAIRS_MAX": "200000", "FALCONET_SHADOW_SHARE": "0.001"}
    scores = names["scores_topic"]
    with _reader(settings, scores) as reader, _serve(settings, "kafka-python", names, **limits) as service:
        _read(reader, 50_000)
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        n_accounts = scrape.read(service.url).values["falconet_state_accounts", ""]
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return bench.figure(
        f"resident memory with {n_accounts:,.0f} accounts, shadow model loaded", [resident * 1024 / 1e6], "MB", "≤ 400"
    )


def _strangers(n: int) -> list[bytes]:
    """Return n transactions between 2 n accounts that meet nobody else."""
    return [
        msgspec.json.encode(
            {
                "type": "transaction",
                "hash": f"0x{i:064x}",
                "from_address": f"0x{2 * i + 1:040x}",
                "to_address": f"0x{2 * i + 2:040x}",
                "value": 10**18,
                "block_number": i,
                "block_timestamp": 1_600_000_000 + i,
            }
        )
        for i in range(n)
    ]


@contextlib.contextmanager
def _serve(
    settings: Settings, client: str, names: dict[str, str], *, module: str = "service.cli", **limits: str
) -> Iterator[Service]:
    """Run `falconet serve` until the block ends; it must then end well."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    with tempfile.TemporaryDirectory() as folder:
        changes = {f"FALCONET_{name.upper()}": value for name, value in names.items()}
        changes |= {
            **_connection(settings),
            "FALCONET_KAFKA_CLIENT": client,
            "FALCONET_STATE_DIR": folder,
            "FALCONET_METRICS_HOST": "127.0.0.1",
            "FALCONET_METRICS_PORT": str(port),
        }
        log_path = Path(folder) / "serve.log"
        with log_path.open("wb") as log:
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", module, "serve"],
                env=bench.environment(settings, **changes, **limits),
                stdout=log,
                stderr=log,
            )
        try:
            _wait_ready(process, log_path)
            yield Service(process, time.perf_counter() - started, url)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if code != 0:
            raise BrokerError(f"falconet serve ended with exit code {code}:\n{log_path.read_text()[-2000:]}")


def _connection(settings: Settings) -> dict[str, str]:
    """Return the environment that has a process reach the broker as these settings do, whatever they came from."""
    names: tuple[str, ...] = ("bootstrap_servers", "security_protocol", "sasl_mechanism", "sasl_username")
    names += ("sasl_password", "ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_key_password")
    values = {name: getattr(settings, name) for name in names}
    for secret in ("sasl_password", "ssl_key_password"):
        # A secret and the file that it was read from are never set both.
        if (file := getattr(settings, f"{secret}_file")) is not None:
            values |= {secret: "", f"{secret}_file": file}
    return {f"FALCONET_{name.upper()}": value or "" for name, value in values.items()}


def _wait_ready(process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    """Wait until the log says that transactions are being read."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        if "serving offsets=" in log_path.read_text():
            return
        time.sleep(0.02)
    raise BrokerError(f"falconet serve did not become ready:\n{log_path.read_text()[-2000:]}")


def _topics(settings: Settings) -> dict[str, str]:
    """Create topics for one run and return the settings that name them and the group."""
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

    from service.kafka_confluent import connection

    run = uuid.uuid4().hex[:8]
    names = {
        "transactions_topic": f"bench-{run}-transactions",
        "scores_topic": f"bench-{run}-scores",
        "alerts_topic": f"bench-{run}-alerts",
        "dlq_topic": f"bench-{run}-dlq",
    }
    admin = AdminClient(connection(settings))
    for created in admin.create_topics([NewTopic(name, 1, 1) for name in names.values()]).values():
        created.result(30)
    return {**names, "group_id": f"bench-{run}", "transactional_id": f"bench-{run}"}


def _producer(settings: Settings) -> Any:
    from confluent_kafka import Producer

    from service.kafka_confluent import connection

    return Producer(connection(settings) | {"linger.ms": 1, "queue.buffering.max.messages": 1_000_000})


def _send(settings: Settings, topic: str, values: list[bytes]) -> None:
    """Fill a topic."""
    producer = _producer(settings)
    for value in values:
        producer.produce(topic, value)
        producer.poll(0)
    if producer.flush(60):
        raise BrokerError(f"{settings.bootstrap_servers} did not take the benchmark's messages within 60 s")


def _send_at(settings: Settings, topic: str, values: list[bytes], rate: int, n: int, schedule: list[float]) -> None:
    """Send message i at start + i / rate; the start goes into `schedule`."""
    producer = _producer(settings)
    start = time.time() + 0.2
    schedule.append(start)
    for i in range(n):
        due = start + i / rate
        while (wait := due - time.time()) > 0:
            time.sleep(wait)
        producer.produce(topic, values[i % len(values)])
        producer.poll(0)
    producer.flush(30)


@contextlib.contextmanager
def _reader(settings: Settings, topic: str) -> Iterator[Any]:
    """Yield a `read_committed` consumer at the start of a topic."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    from service.kafka_confluent import connection

    consumer = Consumer(
        {
            **connection(settings),
            "group.id": f"bench-reader-{uuid.uuid4().hex[:8]}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 10,
        }
    )
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    try:
        yield consumer
    finally:
        consumer.close()


def _await_end(reader: Any, topic: str, n: int) -> None:
    """Wait until a topic of one partition holds n records."""
    from confluent_kafka import TopicPartition

    deadline = time.monotonic() + DRAIN_SECONDS_MAX
    while (end := reader.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)[1]) < n:
        if time.monotonic() > deadline:
            raise BrokerError(f"{end} of {n} records after {DRAIN_SECONDS_MAX:.0f} s")
        time.sleep(0.1)


def _read(reader: Any, n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read n scores and return, by source offset, when each was readable (Unix seconds) and scored (milliseconds).

    Raises:
        BrokerError: A score is missing after a time, or came twice.
    """
    arrived_s, scored_ms = np.zeros(n), np.zeros(n, dtype=np.int64)
    n_read, deadline = 0, time.monotonic() + DRAIN_SECONDS_MAX
    while n_read < n:
        if time.monotonic() > deadline:
            raise BrokerError(f"{n_read} of {n} scores after {DRAIN_SECONDS_MAX:.0f} s")
        # `consume` waits until it has all that was asked for or the time is over: it must not be asked to wait.
        first = reader.poll(0.05)
        now = time.time()
        for record in [] if first is None else [first, *reader.consume(5_000, 0)]:
            score = _decode(record.value())
            if arrived_s[score.source.offset]:
                raise BrokerError(f"offset {score.source.offset} has two scores")
            arrived_s[score.source.offset] = now
            scored_ms[score.source.offset] = score.scored_at
            n_read += 1
    return arrived_s, scored_ms


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
