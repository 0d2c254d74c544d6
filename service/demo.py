"""The `demo` command: a broker, the real service as its own process, traffic at a fixed rate, and what comes of it.

One loop in this process draws the view, reads what the service wrote and counts it. The service is `falconet serve`
with settings in its environment; the sender is a process too, so that neither takes time from the other.
Exit codes: 0 every transaction was answered, 1 not, 130 interrupted (after the summary).
"""

import contextlib
import csv
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from features.errors import FalconetError, InputError, UsageError
from service import chain_sender, ethereum_etl, publisher, scrape, settings, simulator, view
from service.anvil import Anvil
from service.anvil import program as anvil_program
from service.children import Interruption, Sender, Service
from service.embedded import EmbeddedBroker, free_port
from service.settings import PREFIX, Settings
from service.tally import Tally

INTERRUPTED = 130

READY_SECONDS = 60.0
"""Longest wait for the first score: the first start on a machine compiles the kernels."""

SILENCE_SECONDS = 10.0
"""The demo stops waiting for answers when none came for so long."""

SHADOW_SHARE = 0.005
"""At 2,000 transactions a second ten go to the large model: enough for its p50, a few percent of a core."""

LISTED_MESSAGES_MAX = 60_000
"""The list holds the frauds of so many first messages, a second of simulating; later ones are on no list."""

CHAIN_ID = 31337
"""Anvil's own: what is signed for it is worth nothing elsewhere."""

RATE = 2_000.0
"""Transactions a second."""

CHAIN_RATE = 40.0
"""Transactions a second on a live chain: to sign one takes 5 ms in Python."""

_CONNECTION = ("BOOTSTRAP_SERVERS", "SECURITY_PROTOCOL", "SASL_", "SSL_", "CONFIG")


class Options(Struct, frozen=True, kw_only=True):
    """What the command line gives."""

    rate: float
    seconds: float
    seed: int
    chain: bool = False
    """Send through a chain of one's own: a local node, the ingester, and a reorganisation in the middle."""

    input: Path | None = None
    bootstrap_servers: str | None = None
    config: Path | None = None

    @property
    def n(self) -> int:
        """Messages to send."""
        return max(1, round(self.rate * self.seconds))


class Run:
    """One run from the first transaction to the last answer."""

    def __init__(
        self, options: Options, effective: Settings, processes: list[Service], sender: Sender, shown: view.Shown
    ) -> None:
        from models.scorer import Scorer
        from service import trust

        scorer = Scorer.load(trust.model_path(effective))
        self.tally = Tally(review=scorer.thresholds["review"])
        self._options = options
        self._settings = effective
        self._processes = processes
        self._sender = sender
        self._shown = shown
        self._consumer = _consumer(effective)
        self._url = f"http://{effective.metrics_host}:{effective.metrics_port}/metrics"
        self._model = f"{scorer.model.name} {scorer.model.version}"
        self._first_page: scrape.Page | None = None
        self._page: scrape.Page | None = None
        self._started_s = self._looked_s = time.monotonic()
        self._looked_at = (0, 0)
        self._rates = (0.0, 0.0)

    def until_ready(self, interruption: Interruption) -> None:
        """Wait for the first score.

        Raises:
            FalconetError: The service ended, or nothing came in time.
        """
        deadline = time.monotonic() + READY_SECONDS
        while not self.tally.n_scored and not interruption.asked:
            self._receive()
            if time.monotonic() > deadline:
                raise FalconetError(f"the service scored nothing within {READY_SECONDS:g} s of its start")
        self._first_page = None if interruption.asked else scrape.read(self._url)
        self._started_s = self._looked_s = time.monotonic()

    def until_answered(self, interruption: Interruption) -> None:
        """Let the sender send, and follow until everything is answered or nothing comes any more."""
        self._sender.tell("go")
        heard_s = time.monotonic()
        told_to_stop = False
        while not (self._sender.is_done and not self.tally.n_open):
            n_answered = self.tally.n_scored + self.tally.n_rejected
            self._receive()
            if interruption.asked and not told_to_stop:
                self._sender.tell("stop")
                told_to_stop = True
            if self.tally.n_scored + self.tally.n_rejected > n_answered or not self._sender.waits:
                heard_s = time.monotonic()
            if time.monotonic() - heard_s > SILENCE_SECONDS:
                break
        self._look(force=True)

    def moment(self) -> view.Moment:
        """Return the state to draw."""
        page = None if self._page is None else self._page.since(self._first_page)
        elapsed_s = time.monotonic() - self._started_s
        return view.Moment(self.tally, elapsed_s, *self._rates, page, self._model)

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _receive(self) -> None:
        for process in self._processes:
            process.check()
        for found in self._sender.collect(self.tally):
            n_vanished = len(set(found.orphaned) - {name for name, _ in found.standing})
            self._shown.say(
                f"chain     reorganised: {found.n_blocks} blocks with {len(found.orphaned):,} transactions and token "
                f"transfers are replaced, {n_vanished:,} of them vanish"
            )
        if self._sender.is_ready_to_reorganise and not self.tally.n_open:
            self._sender.is_ready_to_reorganise = False
            self._sender.tell("go")
        for partition, records in self._consumer.poll(timeout_ms=50, max_records=5_000).items():
            if partition.topic == self._settings.scores_topic:
                for record in records:
                    self.tally.scored(record.value)
            elif partition.topic == self._settings.dlq_topic:
                for record in records:
                    self.tally.rejected(record.key)
            else:
                for record in records:
                    self.tally.alerted(record.value)
        self._look(force=False)

    def _look(self, *, force: bool) -> None:
        """Twice a second, or where forced: read the metrics and show the moment."""
        now_s = time.monotonic()
        passed_s = now_s - self._looked_s
        if passed_s < 0.5 and not force:
            return
        if self._first_page is not None:
            self._page = scrape.read(self._url)
        counts = (self.tally.n_sent, self.tally.n_scored)
        if passed_s >= 0.5:
            sent_per_s, scored_per_s = (
                (now - then) / passed_s for now, then in zip(counts, self._looked_at, strict=True)
            )
            self._rates = (sent_per_s, scored_per_s)
            self._looked_at, self._looked_s = counts, now_s
        if self._first_page is not None:
            self._shown.show(self.moment())


def run(options: Options) -> int:
    """Run the demo and return the exit code.

    Raises:
        UsageError: The `demo` extra is missing, or a setting is wrong.
        InputError: The file of transactions cannot be read.
        BrokerError: The broker cannot be reached or started.
        FalconetError: The service ended or failed.
    """
    if options.config is not None and options.bootstrap_servers is None:
        raise UsageError("--config says how to reach a broker of yours: name it with --bootstrap-servers")
    if options.chain and options.input is not None:
        raise UsageError("--chain sends what the simulator makes; it takes no --input")
    if options.input is not None and next(ethereum_etl.from_parquet(options.input), None) is None:
        raise InputError(f"{options.input} holds no transactions")
    shown = view.shown()
    with Interruption() as interruption, contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="falconet-demo-")))
        servers = options.bootstrap_servers
        if servers is None:
            servers = stack.enter_context(EmbeddedBroker(folder)).bootstrap_servers
            shown.say(f"broker    embedded, in memory, on {servers}")
        n_listed = 0 if options.input is not None else _write_list(options, folder / "simulated.csv")
        environment = _environment(options, servers, folder, with_list=n_listed > 0)
        effective = settings.load(environment=environment)
        stack.enter_context(_topics(effective, are_ours=options.bootstrap_servers is not None))
        processes, sender = _started(options, effective, environment, folder, stack, shown)
        run = Run(options, effective, processes, sender, shown)
        stack.callback(run.close)
        begun_s = time.monotonic()
        run.until_ready(interruption)
        if interruption.asked:
            shown.say("interrupted before the first score: nothing to report")
            return INTERRUPTED
        shown.say(f"service   scored its first transaction after {time.monotonic() - begun_s:.1f} s")
        with shown:
            run.until_answered(interruption)
        for process in processes:
            process.stop(effective.drain_seconds + 5.0)
        source = f"seed {options.seed}" if options.input is None else str(options.input)
        if run.tally.n_sent < options.n and options.input is None and not interruption.asked:
            shown.say(f"The sender did not keep up with {options.rate:,.0f} a second: it sent {run.tally.n_sent:,}.")
        shown.say(view.summary(run.moment(), source=source, is_simulated=options.input is None, n_listed=n_listed))
        if options.chain:
            shown.say(view.chain_summary(run.tally))
        if interruption.asked:
            return INTERRUPTED
        return 1 if run.tally.unanswered() or run.tally.vanished() else 0


def _started(
    options: Options,
    effective: Settings,
    environment: dict[str, str],
    folder: Path,
    stack: contextlib.ExitStack,
    shown: view.Shown,
) -> tuple[list[Service], Sender]:
    """Start the processes of a run, each to be ended with the stack: those that must go on running, and the sender."""
    commands = ["serve"]
    if options.chain:
        # 2^30 gas a block: the simulator fills as many as the rate asks for.
        begin = ("--no-mining", "--timestamp", str(simulator.START - 1), "--gas-limit", str(2**30))
        node = stack.enter_context(Anvil(anvil_program(), *begin, chain_id=CHAIN_ID))
        shown.say(f"chain     anvil, a local node of chain {CHAIN_ID}, on {node.url}")
        environment = environment | {f"{PREFIX}RPC_URLS": f"{node.url},{node.ws_url}"}
        commands = ["ingest", "serve"]
        plan = chain_sender.ChainPlan(node.url, CHAIN_ID, options.seed, options.rate, options.n)
        sender = Sender(chain_sender.publish, plan)
    else:
        sender = Sender(
            publisher.publish, publisher.Plan(effective, options.input, options.seed, options.rate, options.n)
        )
    stack.callback(sender.close)
    processes = []
    for command in commands:
        # Each serves its metrics at a port of its own.
        own = {f"{PREFIX}METRICS_PORT": str(free_port())} if command != "serve" else {}
        processes.append(Service(environment | own, folder, command))
        stack.callback(processes[-1].kill)
    if options.chain:
        shown.say("ingest    falconet ingest follows the chain from its first block")
    shown.say("service   falconet serve starts and joins its consumer group")
    return processes, sender


def _write_list(options: Options, path: Path) -> int:
    """Write the addresses that lists come to name, each with its time, and return how many."""
    world = (chain_sender if options.chain else simulator).inhabited(options.seed)
    entries = simulator.flagged(world, min(options.n, LISTED_MESSAGES_MAX))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(simulator.Flagged._fields)
        writer.writerows(entries)
    return len(entries)


def _environment(options: Options, servers: str, folder: Path, *, with_list: bool) -> dict[str, str]:
    """Return the environment of the service: the user's, with everything that the demo decides.

    How the user reaches a broker of their own means nothing to the embedded one.
    """
    is_embedded = options.bootstrap_servers is None
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (is_embedded and name.startswith(tuple(PREFIX + each for each in _CONNECTION)))
    }
    if options.config is not None:
        kept[settings.CONFIG_VARIABLE] = str(options.config)
    # Topics of its own on a broker of the user's: simulated frauds never meet real ones.
    prefix = "" if is_embedded else f"falconet-demo-{secrets.token_hex(4)}."
    decided: dict[str, object] = {
        "bootstrap_servers": servers,
        "transactions_topic": f"{prefix}transactions",
        "scores_topic": f"{prefix}scores",
        "alerts_topic": f"{prefix}alerts",
        "dlq_topic": f"{prefix}transactions.dlq",
        "group_id": f"{prefix}falconet",
        "transactional_id": f"{prefix}falconet",
        "create_topics": "true",
        "partitions": 1,
        "state_dir": folder / "state",
        "metrics_host": "127.0.0.1",
        "metrics_port": free_port(),
    }
    if options.chain:
        decided |= {"chain_id": CHAIN_ID, "start_block": 0, "finality": "instant"}
        decided["checkpoint_topic"] = f"{prefix}checkpoint"
    if with_list:
        decided["screening_lists"] = folder / "simulated.csv"
    defaults = {f"{PREFIX}SHADOW_SHARE": str(SHADOW_SHARE)}
    return defaults | kept | {PREFIX + name.upper(): str(value) for name, value in decided.items()}


@contextlib.contextmanager
def _topics(effective: Settings, *, are_ours: bool) -> Iterator[None]:
    """Create the topics; on a broker that outlives the demo, delete them afterwards."""
    from kafka import KafkaAdminClient

    from service import kafka
    from service.kafka_python import connection

    client = kafka.connect(effective)
    try:
        kafka.ensure_topics(client, effective)
    finally:
        client.close()
    try:
        yield
    finally:
        if are_ours:
            admin = KafkaAdminClient(**connection(effective))
            names = (effective.transactions_topic, effective.scores_topic, effective.alerts_topic, effective.dlq_topic)
            admin.delete_topics(list(names))
            admin.close()


def _consumer(effective: Settings) -> Any:
    from kafka import KafkaConsumer, TopicPartition

    from service.kafka_python import connection

    consumer = KafkaConsumer(
        **connection(effective),
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=20,
        metrics_enabled=False,
    )
    consumer.assign(
        [TopicPartition(topic, 0) for topic in (effective.scores_topic, effective.alerts_topic, effective.dlq_topic)]
    )
    return consumer
