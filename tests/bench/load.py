"""A service under load: what is sent to it, from a process of its own, and what is read of it while it runs.

The messages are made as they are sent, so that a stream of any length needs no memory and its time only moves on. They
hold what Falconet reads of a transaction and no more, 0.4 KB each: ethereum-etl's 1.1 KB would fill the disk.
"""

import contextlib
import multiprocessing
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from msgspec import Struct

from features.errors import BrokerError
from service import scrape
from service.scrape import Page
from service.settings import Settings
from tests import replica, servers

WAIT_SECONDS_MAX = 120.0
"""For a start, a stop, or a message more while a backlog is worked off."""

CAPACITY_ROUNDS_MAX, CAPACITY_RISE_MIN = 10, 1.05

ACCOUNTS = 50_000
DRAWN = 1 << 20
BLOCK_TRANSACTIONS = 200
START = 1_700_000_000
BAD = b'{"type": "transaction", "hash": "0x12", "from_address": "0x'
"""Cut in the middle: the fast decoder and then the careful one read it, which is the dearest kind of rejection."""

SCORED, REJECTED = ("falconet_transactions_total", "scored"), ("falconet_transactions_total", "rejected")
EVICTED, ACCOUNTS_HELD = ("falconet_state_evictions_total", ""), ("falconet_state_accounts", "")
LAG, END_TO_END = ("falconet_consumer_lag_records", "0"), ("falconet_end_to_end_seconds", "")


class Stream(NamedTuple):
    """What is sent: message i is always the same."""

    kind: str
    """`ordinary`: among 50,000 accounts, few of them busy; `hot`: all from one address; `distinct`: between two
    addresses that nobody has used; `bad`: cut messages only."""

    bad_share: float = 0.0
    """Of bad messages among the others, spread evenly."""

    def values(self, start: int = 0) -> Iterator[bytes]:
        """Yield message `start` and all that follow."""
        drawn = random.Random(1)
        # Two draws with a heavy tail: one account in a thousand has a third of the traffic, as an exchange does.
        busy = [f"0x{int(ACCOUNTS * drawn.random() ** 3) + 1:040x}" for _ in range(DRAWN)]
        i = start
        while True:
            if self.kind == "bad" or int((i + 1) * self.bad_share) > int(i * self.bad_share):
                yield BAD
            else:
                sender, recipient = busy[i % DRAWN], busy[(7 * i + 3) % (DRAWN - 1)]
                if self.kind == "hot":
                    sender = "0x" + "ab" * 20
                elif self.kind == "distinct":
                    sender, recipient = f"0x{2 * i + 1:040x}", f"0x{2 * i + 2:040x}"
                block = i // BLOCK_TRANSACTIONS
                yield (
                    f'{{"type":"transaction","hash":"0x{i:064x}","from_address":"{sender}","to_address":"{recipient}",'
                    f'"value":{10**17 + i * 10**9},"gas":21000,"gas_price":20000000000,"input":"0x","receipt_status":1,'
                    f'"block_number":{18_000_000 + block},"block_timestamp":{START + 12 * block}}}'
                ).encode()
            i += 1


class Offered(NamedTuple):
    """What a sender did."""

    n: int
    seconds: float
    behind_s_max: float
    """How late a message left at worst, against the schedule."""


def send(address: str, topic: str, stream: Stream, n: int, rate: float, report: Connection) -> None:
    """Send n messages, at a fixed rate whatever the service does; a rate of 0 is as fast as it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    producer = Producer({"bootstrap.servers": address, "linger.ms": 5, "queue.buffering.max.messages": 200_000})
    values, started_s, behind_s = stream.values(), time.monotonic(), 0.0
    for i in range(n):
        # Every 200th message looks at the clock: 5 ms at 40,000 a second.
        if rate and i % 200 == 0:
            wait_s = started_s + i / rate - time.monotonic()
            behind_s = max(behind_s, -wait_s)
            time.sleep(max(wait_s, 0.0))
        while True:
            try:
                producer.produce(topic, next(values))
                break
            except BufferError:
                producer.poll(0.01)
        if i % 200 == 0:
            producer.poll(0)
    left = producer.flush(WAIT_SECONDS_MAX)
    report.send(Offered(n - left, time.monotonic() - started_s, behind_s))


class Sender:
    """A sending process."""

    def __init__(self, address: str, topic: str, stream: Stream, n: int, rate: float = 0.0) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._n = n
        self._process = context.Process(target=send, args=(address, topic, stream, n, rate, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def wait(self) -> Offered:
        """Wait for the last message and return what was offered.

        Raises:
            BrokerError: The broker did not take everything.
        """
        try:
            offered: Offered = self._pipe.recv()
        except EOFError:
            raise BrokerError("the sending process ended early; its error is above") from None
        self._process.join()
        if offered.n != self._n:
            raise BrokerError(f"the broker took {offered.n:,} of {self._n:,} messages")
        return offered

    @property
    def is_over(self) -> bool:
        """Whether it has sent everything, or failed."""
        return self._pipe.poll() or not self._process.is_alive()

    def stop(self) -> None:
        """End it at once if it still runs."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


class Sample(Struct, frozen=True):
    """One look at the service from outside."""

    at_s: float
    """Since the first look."""
    resident_mib: float
    files: int
    threads: int
    scored: float
    rejected: float
    lag: float
    accounts: float
    evicted: float
    p50_s: float | None
    """End to end, since the look before; None where nothing was scored."""
    p99_s: float | None


class Watch:
    """Looks at a service every so many seconds, from a thread."""

    def __init__(self, service: "Service", every_s: float) -> None:
        self._service, self._every_s = service, every_s
        self._over = threading.Event()
        self._error: BaseException | None = None
        self.samples: list[Sample] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        started_s, before = time.monotonic(), None
        try:
            # Once more when it is over, so that the last look is behind the last message.
            is_last = False
            while not is_last:
                is_last = self._over.is_set()
                page = self._service.page()
                sample = self._service.sample(time.monotonic() - started_s, page, before)
                self.samples.append(sample)
                before = page
                self._over.wait(max(0.0, started_s + len(self.samples) * self._every_s - time.monotonic()))
        except BaseException as error:
            self._error = error


class Service:
    """`falconet serve` as a process, on topics and in a folder of its own."""

    def __init__(self, address: str, client: str, folder: Path, name: str, **changes: Any) -> None:
        self.address, self.name = address, name
        self._log = folder / f"{name}.log"
        [port] = servers.free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        settings = Settings(
            bootstrap_servers=address,
            kafka_client=client,  # type: ignore[arg-type]
            **replica.own_names(name),
            state_dir=folder / name,
            metrics_port=port,
            **changes,
        )
        self.transactions, self.scores = settings.transactions_topic, settings.scores_topic
        self._topics = settings.topics()
        self._environment = replica.environment(settings)
        self._process: subprocess.Popen[bytes] | None = None

    def create(self, configuration: dict[str, str] | None = None) -> None:
        """Create the topic that is read."""
        admin = AdminClient({"bootstrap.servers": self.address})
        for created in admin.create_topics([NewTopic(self.transactions, 1, 1, config=configuration or {})]).values():
            created.result(WAIT_SECONDS_MAX)

    @contextlib.contextmanager
    def running(self) -> Iterator["Service"]:
        """Serve while the block runs; the process must then end well.

        Raises:
            BrokerError: It did not become ready, or its exit code is not 0; with the end of its log.
        """
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "service.cli", "serve"]
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        try:
            self.until(self._is_ready, "become ready")
            yield self
        finally:
            self._process.send_signal(signal.SIGTERM)
            try:
                code = self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
        if code != 0:
            raise BrokerError(f"falconet serve ended with {code}:\n{self._log.read_text()[-2000:]}")

    def remove(self) -> None:
        """Delete the topics, so that the next measurement has the disk."""
        admin = AdminClient({"bootstrap.servers": self.address})
        there = admin.list_topics(timeout=10).topics
        for deleted in admin.delete_topics([each for each in self._topics if each in there]).values():
            deleted.result(WAIT_SECONDS_MAX)

    def page(self) -> Page:
        """Return its metrics."""
        return scrape.read(f"{self._url}/metrics")

    def sample(self, at_s: float, page: Page, before: Page | None) -> Sample:
        """Return what the process and its page show."""
        assert self._process is not None
        process = Path(f"/proc/{self._process.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        latency = page.since(before).latencies[END_TO_END]
        return Sample(
            at_s,
            int(status["VmRSS"].split()[0]) / 1024,
            len(list((process / "fd").iterdir())),
            int(status["Threads"]),
            page.values[SCORED],
            page.values[REJECTED],
            page.values.get(LAG, 0.0),
            page.values[ACCOUNTS_HELD],
            page.values[EVICTED],
            latency.quantile(0.5),
            latency.quantile(0.99),
        )

    def until_done(self, n: int) -> None:
        """Wait until n messages were scored or rejected; it may take long, but never stand still."""
        best, moved_s = -1.0, time.monotonic()
        while True:
            page = self.page()
            done = page.values[SCORED] + page.values[REJECTED]
            if done >= n:
                return
            if done > best:
                best, moved_s = done, time.monotonic()
            if time.monotonic() - moved_s > WAIT_SECONDS_MAX:
                raise BrokerError(f"the service stands still at {done:,.0f} of {n:,} messages")
            time.sleep(0.1)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition while the process lives."""
        assert self._process is not None
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BrokerError(f"falconet serve did not {what}:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/ready", timeout=1) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class _Source(Struct):
    offset: int


class _Score(Struct):
    source: _Source


def offsets(service: Service, n: int) -> list[int]:
    """Return the source offsets of all committed scores in their order, at least n of them.

    Raises:
        BrokerError: Fewer came.
    """
    decode = msgspec.json.Decoder(_Score).decode
    reader = Consumer(
        {"bootstrap.servers": service.address, "group.id": f"{service.name}.reader", "enable.auto.commit": False}
        | {"isolation.level": "read_committed", "enable.partition.eof": True}
    )
    reader.assign([TopicPartition(service.scores, 0, OFFSET_BEGINNING)])
    found: list[int] = []
    quiet_s = time.monotonic()
    try:
        while True:
            records = reader.consume(5_000, 0.5)
            scores = [each for each in records if each.error() is None]
            found += [decode(each.value() or b"").source.offset for each in scores]
            quiet_s = time.monotonic() if scores else quiet_s
            if len(found) >= n and len(scores) < len(records):
                return found
            if time.monotonic() - quiet_s > WAIT_SECONDS_MAX:
                raise BrokerError(f"{len(found):,} of {n:,} scores in {service.scores}")
    finally:
        reader.close()


def rate(samples: Sequence[Sample]) -> float:
    """Return the scored transactions a second between the first sample and the last."""
    return (samples[-1].scored - samples[0].scored) / (samples[-1].at_s - samples[0].at_s)


def backlog_rate(service: Service, stream: Stream, n: int) -> tuple[float, float]:
    """Let the service work off a full topic; return the scored and the rejected a second over the middle 80 %."""
    service.create()
    sender = Sender(service.address, service.transactions, stream, n)
    try:
        sender.wait()
    finally:
        sender.stop()
    with service.running(), Watch(service, 0.2) as watch:
        service.until_done(n)
    service.remove()
    middle = [each for each in watch.samples if 0.1 * n <= each.scored + each.rejected <= 0.9 * n]
    if len(middle) < 2:
        raise BrokerError(f"{n:,} messages are too few: they were done within {watch.samples[-1].at_s:.1f} s")
    seconds = middle[-1].at_s - middle[0].at_s
    return rate(middle), (middle[-1].rejected - middle[0].rejected) / seconds


def watched(
    service: Service,
    stream: Stream,
    n: int,
    rate: float,
    every_s: float,
    *,
    configuration: dict[str, str] | None = None,
) -> tuple[list[Sample], int, Offered]:
    """Serve while n messages are sent at a rate and until they are done.

    Args:
        service: Not started.
        stream: What is sent.
        n: How many messages.
        rate: Messages a second.
        every_s: Seconds from one look to the next.
        configuration: Of the topic that is read, where the broker's is not wanted.

    Returns:
        What was seen, how much of it while messages were still sent, and what the sender did.
    """
    service.create(configuration)
    with service.running(), Watch(service, every_s) as watch:
        sender = Sender(service.address, service.transactions, stream, n, rate)
        try:
            while not sender.is_over:
                time.sleep(0.1)
            n_under = len(watch.samples)
            offered = sender.wait()
        finally:
            sender.stop()
        service.until_done(n)
    return watch.samples, n_under, offered


def capacity(service: Callable[[str], Service], stream: Stream, n: int) -> float:
    """Return the transactions a second of a backlog once they no longer rise: the broker compiles its code first.

    Args:
        service: Returns a service of that name, which is not started.
        stream: What the backlogs are of.
        n: Messages in each.
    """
    best = 0.0
    for i in range(CAPACITY_ROUNDS_MAX):
        found, _ = backlog_rate(service(f"warm-{i}"), stream, n)
        if found < CAPACITY_RISE_MIN * best:
            break
        best = max(best, found)
    return best


def capacity_beside(service: Callable[[str], Service], stream: Stream, n: int, *, alone: float, share: float) -> float:
    """Return the capacity while a sender takes its part of machine and broker without being listened to.

    Args:
        service: Returns a service of that name, which is not started.
        stream: What the backlog is of, and what the sender sends.
        n: Messages in the backlog.
        alone: Capacity with nobody sending, a second.
        share: How much of that the sender sends.

    Raises:
        BrokerError: The sender was done first.
    """
    decoy = service("decoy")
    decoy.create()
    # Ten times as long as the backlog should take: it is stopped.
    noise = Sender(decoy.address, decoy.transactions, stream, int(10 * share * n), share * alone)
    try:
        found, _ = backlog_rate(service("beside"), stream, n)
        if noise.is_over:
            raise BrokerError("the sender ended before the backlog did; the machine is too busy to measure on")
    finally:
        noise.stop()
    decoy.remove()
    return found
