"""The `ingest` command: from a chain's node to the transactions topic, in order, whole, and corrected.

One Kafka transaction holds a block's messages, or those of a bounded run of blocks, together with the checkpoint that
says so. A kill at any instant therefore leaves either both or neither, and the next start goes on from the checkpoint.
A block is published only where its parent is the block published before. Where it is not, the blocks that the chain no
longer holds are announced as orphaned on every partition, the newest first, in the same transaction and before what
replaces them; nothing is announced before its replacement was read.
"""

import logging
import signal
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Protocol

import msgspec

from features.errors import FencedError, NodeError, NodeOutageError, OutageError, UsageError
from service import chain, checkpoint, kafka, logs, metrics
from service.chain import Checkpoint, Header
from service.evm import Block
from service.ingest_metrics import IngestMetrics
from service.kafka import TRANSACTION_SECONDS, Client
from service.loop import MARKERS_SECONDS, RETRY_SECONDS, WAIT_SECONDS, Patience
from service.node import Node, Tag, labels
from service.settings import Settings

RUN_BLOCKS = 100
RUN_RECORDS = 2_000
"""Most blocks, and messages after which no other block is taken, in one Kafka transaction while catching up: with 2,000
messages the commit's 10 ms are 5 µs each."""

PROGRESS_SECONDS = 5.0

log = logging.getLogger("falconet.ingest")


class Chain(Protocol):
    """What is asked of a node; may be asked by several threads."""

    def head(self, tag: Tag = "latest") -> Header:
        """Return the head."""

    def block(self, number: int) -> Block:
        """Return a whole block."""

    def hash_at(self, number: int) -> str | None:
        """Return the hash of a block, None where the chain is not that high."""

    def leave(self, error: NodeOutageError) -> None:
        """Count what was found wrong and ask another node from here on."""


class Ahead:
    """Reads blocks ahead of the one that is wanted, in threads, at most twice as many as threads."""

    def __init__(self, node: Chain, n_threads: int) -> None:
        self._node = node
        self._n_max = 2 * n_threads
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="blocks")
        self._reading: deque[tuple[int, Future[Block]]] = deque()

    def take(self, number: int, *, until: int) -> Block:
        """Return a block, waiting for it, and go on reading what follows up to `until`."""
        if self._reading and self._reading[0][0] != number:
            self.forget()
        following = self._reading[-1][0] + 1 if self._reading else number
        for each in range(following, min(until, number + self._n_max - 1) + 1):
            self._reading.append((each, self._pool.submit(self._node.block, each)))
        _, found = self._reading.popleft()
        return found.result()

    def is_ready(self, number: int) -> bool:
        """Say whether `take` would not wait for a block."""
        return bool(self._reading) and self._reading[0][0] == number and self._reading[0][1].done()

    def forget(self) -> None:
        """Drop what was read: the chain is another one."""
        for _, each in self._reading:
            each.cancel()
        self._reading.clear()

    def close(self) -> None:
        """End the threads after what they are reading."""
        self.forget()
        self._pool.shutdown(wait=True, cancel_futures=True)


class Ingester:
    """Moves blocks from a node to the topic; `step` after `step` in one thread."""

    def __init__(
        self,
        settings: Settings,
        node: Chain,
        client: Client,
        metrics: IngestMetrics,
        *,
        begun: Checkpoint | None,
        stop: threading.Event,
    ) -> None:
        """Make it.

        Args:
            settings: Topics, finality, depth and budgets.
            node: The chain.
            client: Producing, its earlier transactions settled.
            metrics: Where everything is counted.
            begun: The committed checkpoint, None to begin where the settings say.
            stop: Ends a wait for Kafka's answers.
        """
        self._settings = settings
        self._node = node
        self._client = client
        self._metrics = metrics
        self._stop = stop
        self._ahead = Ahead(node, settings.rpc_concurrency)
        self._patience = Patience(outage_s=settings.broker_retry_seconds, drain_s=settings.drain_seconds)
        self._torn_since_s: float | None = None
        self._rested_at_s = 0.0
        self.done = begun
        """What is committed."""

    def step(self) -> bool:
        """Publish what is next, one block or one run of blocks, and say whether there was anything.

        Raises:
            NodeError: No node could be used within the budget, or the chain was reorganised too deep.
            BrokerError: Kafka stayed away or gave our place to another.
        """
        looked_s = time.monotonic()
        head = self._node.head()
        target = self._target(head)
        if self.done is None:
            self.done = self._beginning(target)
        n_orphaned = self._n_orphaned(self.done, head)
        base = self.done.without(n_orphaned)
        self._metrics.head_block.set(head.number)
        self._metrics.lag_blocks.set(max(0, target + 1 - base.next))
        if base.next > target:
            return False
        blocks = self._run(base, target)
        if not blocks and not n_orphaned and self._settings.finality == "instant":
            base = self.done.without(chain.n_orphaned(self.done, self._node.hash_at))
            blocks = self._run(base, target)
        if not blocks:
            self._torn(base)
            return False
        self._torn_since_s = None
        self._publish(base, blocks)
        self._metrics.lag_blocks.set(target + 1 - self.done.next)
        if self.done.next > target:
            self._metrics.head_to_topic.observe(time.monotonic() - looked_s)
        return True

    def close(self) -> None:
        """End the reading."""
        self._ahead.close()

    def _target(self, head: Header) -> int:
        """Return the number of the last block that may be published."""
        finality = self._settings.finality
        if finality == "instant":
            return head.number
        if finality in ("safe", "finalized"):
            return self._node.head("safe" if finality == "safe" else "finalized").number
        return head.number - int(finality)

    def _beginning(self, target: int) -> Checkpoint:
        start = self._settings.start_block
        assert start != "checkpoint"
        return Checkpoint(self._settings.chain_id, max(0, target) if start == "latest" else int(start), ())

    def _n_orphaned(self, done: Checkpoint, head: Header) -> int:
        """Return how many published blocks a head that is no higher than ours takes back.

        A higher one shows it by its blocks' parents, as they are read.
        """
        if self._settings.finality != "instant" or not done.tail or head.number >= done.next:
            return 0
        if any(place.hash == head.hash for place in done.tail):
            return 0
        return chain.n_orphaned(done, self._node.hash_at)

    def _run(self, base: Checkpoint, target: int) -> list[Block]:
        """Return the next blocks, each joining the one before; none where not even the first joins.

        A block that is not there yet is waited for only where there is no other.
        """
        blocks: list[Block] = []
        reached, n_records = base, 0
        while reached.next <= target and len(blocks) < RUN_BLOCKS and n_records < RUN_RECORDS:
            if blocks and not self._ahead.is_ready(reached.next):
                break
            block = self._ahead.take(reached.next, until=target)
            if not reached.joins(block.header):
                self._ahead.forget()
                break
            blocks.append(block)
            n_records += len(block.records)
            reached = reached.after([block.header], depth_max=self._settings.reorg_depth_max)
        return blocks

    def _torn(self, base: Checkpoint) -> None:
        """Note that the node's next block continues nothing that it holds itself, or that was final.

        Raises:
            NodeError: It stays so for the budget.
        """
        finality, now_s = self._settings.finality, time.monotonic()
        why = "the node contradicts itself" if finality == "instant" else f"finality {finality!r} was not kept"
        error = NodeOutageError(
            "parent_mismatch",
            f"block {base.next} is no child of the block published before it, {base.tail[-1].hash}: {why}",
        )
        self._node.leave(error)
        if self._torn_since_s is None:
            self._torn_since_s = now_s
        budget_s = self._settings.rpc_retry_seconds
        if now_s - self._torn_since_s >= budget_s:
            raise NodeError(error.fault, f"{error.detail}; gave up after {budget_s:g} s (rpc_retry_seconds)") from error

    def _publish(self, base: Checkpoint, blocks: list[Block]) -> None:
        """Commit blocks with what they replace and the checkpoint, trying again within the budget."""
        settings, before = self._settings, self.done
        assert before is not None
        after = base.after([block.header for block in blocks], depth_max=settings.reorg_depth_max)
        n_orphaned = len(before.tail) - len(base.tail)
        orphaned = [(None, value) for value in chain.announcements(before, n_orphaned)]
        records = [record for block in blocks for record in block.records]
        while True:
            try:
                self._rest()
                self._client.begin()
                if orphaned:
                    for partition in range(self._client.topics()[settings.transactions_topic]):
                        self._client.send(settings.transactions_topic, orphaned, partition=partition)
                self._client.send(settings.transactions_topic, records)
                key = checkpoint.key(settings)
                self._client.send(settings.checkpoint_topic, [(key, chain.encode(after))], partition=0)
                self._client.commit({})
                self._wait()
                break
            except OutageError as error:
                self._patience.failed(error)
                self._client.abort(settings.drain_seconds)
                time.sleep(RETRY_SECONDS)
        self._patience.succeeded()
        self.done = after
        self._count(blocks, n_orphaned)
        if n_orphaned:
            log.warning("reorganised depth=%d from=%d replaced_by=%s", n_orphaned, base.next, blocks[0].header.hash)

    def _wait(self) -> None:
        """Wait for the commit at hand."""
        since_s = time.monotonic()
        while self._client.wait(WAIT_SECONDS) is None:
            if self._stop.is_set():
                self._patience.stop()
            if time.monotonic() - since_s > TRANSACTION_SECONDS:
                raise OutageError(f"Kafka has not answered a commit for {TRANSACTION_SECONDS:g} s")
        self._rested_at_s = time.monotonic() + MARKERS_SECONDS

    def _rest(self) -> None:
        """Wait until the broker should be done with the last transaction."""
        rest_s = self._rested_at_s - time.monotonic()
        if rest_s > 0:
            time.sleep(rest_s)

    def _count(self, blocks: list[Block], n_orphaned: int) -> None:
        counted = self._metrics
        n_transactions = sum(block.n_transactions for block in blocks)
        counted.blocks.inc(len(blocks))
        counted.records["transaction"].inc(n_transactions)
        counted.records["token_transfer"].inc(sum(len(block.records) for block in blocks) - n_transactions)
        counted.records["orphaned_block"].inc(n_orphaned)
        counted.transfers_skipped.inc(sum(block.n_skipped for block in blocks))
        if n_orphaned:
            counted.reorg_depth.observe(n_orphaned)
        newest = blocks[-1].header
        counted.block.set(newest.number)
        counted.lag_seconds.set(max(0.0, time.time() - newest.timestamp))


class Ingest:
    """One process from start to end: `run` in one thread, `stop` from any."""

    def __init__(self, settings: Settings, *, forget_checkpoint: bool = False) -> None:
        self._settings = settings
        self._forget = forget_checkpoint
        self._stop = threading.Event()
        self._wake = threading.Event()
        self.metrics = IngestMetrics()
        self.metrics_port = 0
        """Where the metrics page is served, once `ready` is set."""

        self.ready = threading.Event()
        """Set when blocks are being read."""

        self.is_over = threading.Event()
        """Set when `run` ends."""

        self._ingester: Ingester | None = None

    @property
    def published(self) -> Checkpoint | None:
        """What is committed, None before the first look at the chain."""
        return None if self._ingester is None else self._ingester.done

    def stop(self) -> None:
        """Ask for the end; safe in a signal handler."""
        self._stop.set()
        self._wake.set()

    def run(self) -> None:
        """Start, and publish until stopped. For errors see `command`."""
        try:
            self._run()
        except NodeOutageError:
            # A wait for a node that was cut short.
            if not self._stop.is_set():
                raise
        finally:
            self.is_over.set()

    def _run(self) -> None:
        settings = self._settings
        http = [url for url in settings.rpc_urls if url.startswith("http")]
        sockets = [url for url in settings.rpc_urls if url.startswith("ws")]
        if not http:
            raise UsageError("no node to ask: set rpc_urls, or --rpc, to one http or https URL at least")
        with ExitStack() as stack:
            node = Node(
                http,
                chain_id=settings.chain_id,
                retry_seconds=settings.rpc_retry_seconds,
                metrics=self.metrics,
                stop=self._stop,
            )
            node.check()
            client, found = self._producing(stack)
            begun = self._begun(found)
            page = metrics.serve(self.metrics, host=settings.metrics_host, port=settings.metrics_port)
            stack.callback(page.close)
            self.metrics_port = page.port
            self._ingester = Ingester(settings, node, client, self.metrics, begun=begun, stop=self._stop)
            stack.callback(self._ingester.close)
            if sockets:
                from service.heads import Heads

                stack.callback(Heads(sockets, labels(sockets), self._wake.set, self.metrics).close)
            log.info("ingesting next=%s finality=%s", begun.next if begun else settings.start_block, settings.finality)
            self.ready.set()
            self._follow(self._ingester)

    def _follow(self, ingester: Ingester) -> None:
        progress = Progress(self.metrics)
        while not self._stop.is_set():
            # Cleared before the look, so that a head during it is looked for again.
            self._wake.clear()
            if ingester.step():
                progress.tell()
            elif not self._stop.is_set():
                self._wake.wait(self._settings.rpc_poll_seconds)

    def _producing(self, stack: ExitStack) -> tuple[Client, Checkpoint | None]:
        """Return a client that holds the chain's transactional id, and the checkpoint that this settled.

        Tried again within the budget.
        """
        settings = producer_settings(self._settings)
        patience = Patience(outage_s=settings.broker_retry_seconds, drain_s=settings.drain_seconds)
        while True:
            with ExitStack() as closing:
                try:
                    client = kafka.connect(settings)
                    closing.callback(client.close)
                    checkpoint.ensure_topics(client, settings)
                    client.begin_producing()
                    found = checkpoint.read(settings)
                except OutageError as error:
                    patience.failed(error)
                    self._stop.wait(RETRY_SECONDS)
                    continue
                stack.push(closing.pop_all())
                return client, found

    def _begun(self, begun: Checkpoint | None) -> Checkpoint | None:
        """Return where to go on, None to begin where the settings say."""
        if begun is not None and self._forget:
            log.warning("checkpoint forgotten next=%d: blocks may be published twice", begun.next)
            return None
        if begun is None and self._settings.start_block == "checkpoint":
            raise UsageError(
                f"topic {self._settings.checkpoint_topic!r} has no checkpoint of chain {self._settings.chain_id}, and "
                "start_block is 'checkpoint'; set it to a block's number or to 'latest'"
            )
        return begun


class Progress:
    """One line now and then while blocks are caught up with."""

    def __init__(self, counted: IngestMetrics) -> None:
        self._counted = counted
        self._told_s = time.monotonic()
        self._told = self._counts()

    def tell(self) -> None:
        """Say how far it is and how fast, unless that was said a moment ago."""
        now_s = time.monotonic()
        if now_s - self._told_s < PROGRESS_SECONDS:
            return
        n_blocks, n_transactions, number, behind = self._counts()
        passed_s = now_s - self._told_s
        blocks_per_s = (n_blocks - self._told[0]) / passed_s
        log.info(
            "published block=%d behind=%d blocks_per_s=%.1f transactions_per_s=%.0f left_s=%.0f",
            number,
            behind,
            blocks_per_s,
            (n_transactions - self._told[1]) / passed_s,
            behind / max(blocks_per_s, 1e-9),
        )
        self._told_s, self._told = now_s, (n_blocks, n_transactions, number, behind)

    def _counts(self) -> tuple[float, float, float, float]:
        counted = self._counted
        return (
            counted.blocks._value.get(),
            counted.records["transaction"]._value.get(),
            counted.block._value.get(),
            counted.lag_blocks._value.get(),
        )


def producer_settings(settings: Settings) -> Settings:
    """Return the settings with a transactional id of this chain's ingestion: a second one of the same fences it."""
    name = f"{settings.transactional_id}.ingest.{settings.chain_id}"
    return msgspec.structs.replace(settings, transactional_id=name[-249:])


def command(settings: Settings, *, forget_checkpoint: bool) -> None:
    """Ingest until SIGTERM or SIGINT.

    Raises:
        UsageError: No node is named, or web3 is not installed.
        NodeError: No node could be used within the budget, one is of another chain, or a reorganisation is too deep.
        BrokerError: Kafka stayed away, refused us, or gave our place to another ingester.
    """
    logs.begin(settings.log_format, settings.log_level)
    log.info("settings effective=%s", settings.effective())
    ingest = Ingest(settings, forget_checkpoint=forget_checkpoint)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ingest.stop())
    try:
        ingest.run()
    except FencedError as error:
        raise FencedError(
            f"another ingester of chain {settings.chain_id} took over "
            f"({producer_settings(settings).transactional_id!r}), so this one ends"
        ) from error
