"""The `serve` command: from settings to a running loop, and from a signal to a state at rest."""

import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NamedTuple

from features import screening
from features.accounts import Accounts
from features.errors import BrokerError, FencedError, OutageError, ReorgError
from features.journal import BLOCK_TRANSACTIONS, Journal
from features.screening import Screening
from models.drift import Drift
from models.progress import progress
from models.scorer import Scorer
from service import check, drift, http, kafka, logs, shadow, trust
from service.breaker import Breaker
from service.capture import Snapshots
from service.codec import Decoder
from service.kafka import Client
from service.loop import RETRY_SECONDS, Loop, Patience
from service.metrics import Metrics
from service.pipeline import Candidate, Judge, Pipeline
from service.policy import policy
from service.recovery import Recovery
from service.reload import Follower, Watcher
from service.settings import Settings
from service.shadow import Shadow

STANDBY_SECONDS = 0.2
"""How often a standby looks whether the group is free. It serves 10 s after the active replica's death: at most 6 s of
session, this, 3 s of Kafka's delay for the first member of a group, and what is left for the replay."""

JOIN_SECONDS = 0.1
"""Slice of waiting for partitions, between two looks at the stop."""

JOIN_SECONDS_MAX = 20.0
"""An empty group hands its partitions out within three seconds, Kafka's default delay for the first member."""

ALARM_SECONDS = 45.0
"""How long the metrics page stays up after a refused reorganisation: three of Prometheus' usual 15 s, so that the count
is seen, then the process ends."""

YOUNG_OBJECTS_MAX = {"kafka-python": 5_000, "confluent-kafka": 100_000}
"""How many objects come to be before the garbage among them is freed, 0.4 µs each."""

log = logging.getLogger("falconet.serve")


def serve(settings: Settings, *, is_fresh: bool = False) -> None:
    """Run the service until SIGTERM or SIGINT, then drain, save the state and return.

    Args:
        settings: The effective settings, echoed to the log.
        is_fresh: Start with an empty past at the committed offsets, whatever was saved.

    Raises:
        InputError: The model, a list or the saved state cannot be used.
        BrokerError: Kafka stayed away, refused us, or gave our place to another process.
    """
    logs.begin(settings.log_format, settings.log_level)
    log.info("settings effective=%s", settings.effective())
    _calm_garbage_collector(YOUNG_OBJECTS_MAX[settings.kafka_client])
    if settings.kafka_client == "kafka-python":
        _share_interpreter()
    service = Service(settings, is_fresh=is_fresh)
    with _on_signal(service):
        service.run()


class _Built(NamedTuple):
    """What a model brings to the loop."""

    pipeline: Pipeline
    shadow: Shadow | None
    drift: Drift | None


class Service:
    """One replica from start to end: `run` in one thread, `stop` from any."""

    def __init__(
        self, settings: Settings, *, is_fresh: bool = False, connect: Callable[[Settings], Client] = kafka.connect
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._is_fresh = is_fresh
        self._stop = threading.Event()
        self._patience = Patience(outage_s=settings.broker_retry_seconds, drain_s=settings.drain_seconds)
        self._loop: Loop | None = None
        self._watcher: Watcher | None = None
        self._snapshots: Snapshots | None = None
        self._recovery: Recovery | None = None
        self._pipeline: Pipeline | None = None
        self.metrics = Metrics()
        self.metrics_port = 0
        """Where HTTP is served, once `ready` is set or it is a standby."""

        self.is_standby = False
        """Whether it waits for another replica to leave the group."""

        self.ready = threading.Event()
        """Set when transactions are being read."""

    def stop(self) -> None:
        """Ask for the end; safe in a signal handler."""
        self._stop.set()
        self._patience.stop()
        if self._recovery is not None:
            self._recovery.stop.set()
        if self._loop is not None:
            self._loop.stop()

    def reload(self) -> None:
        """Look for another champion at once; safe in a signal handler."""
        if self._watcher is not None:
            self._watcher.wake()

    def unready(self) -> list[str]:
        """Return why no transactions are being scored, empty where they are; from any thread."""
        if self._stop.is_set():
            return ["stopping"]
        if self.is_standby:
            return [f"standby: another replica holds the place in group {self._settings.group_id!r}"]
        if not self.ready.is_set() or self._loop is None:
            return ["starting"]
        return [] if self._loop.outage is None else [f"outage: {self._loop.outage}"]

    def run(self) -> None:
        """Start, serve until stopped, save the state. For errors see `serve`."""
        started_s = time.perf_counter()
        with ExitStack() as stack:
            built = self._build(stack)
            pipeline = self._pipeline = built.pipeline
            self._serve_http(stack)
            with progress(_log_progress) as tell:
                recovery = self._recovery = Recovery(self._settings, pipeline, self.metrics, tell=tell)
                client = self._take_place(stack, recovery)
                self._loop = None if client is None else self._restore(client, pipeline, recovery, built.shadow)
            if self._loop is None or self._snapshots is None:
                return
            stack.callback(self._snapshots.close)
            self._loop.watch_drift(built.drift)
            self._show_state(pipeline)
            log.info("serving offsets=%s started_in_s=%.2f", self._loop.offsets, time.perf_counter() - started_s)
            if self._stop.is_set():
                self._loop.stop()
            self._follow(stack, pipeline, self._loop)
            self.ready.set()
            self._serve(self._loop, self._snapshots)

    def _build(self, stack: ExitStack) -> _Built:
        """Make what needs no Kafka, so that a wrong model is known at once.

        All of it is of one version: while a standby waits, `champion` may come to name another.
        """
        settings = self._settings
        path = trust.model_path(settings)
        scorer = Scorer.load(path)
        lists = screening.read(settings.screening_lists)
        check.warm(settings, scorer, lists)
        pipeline = Pipeline(
            accounts=_past(settings, lists),
            scorer=scorer,
            policy=policy(scorer.thresholds, lists),
            decoder=Decoder(chain_id=settings.chain_id, message_bytes_max=settings.message_bytes_max),
            candidate=self._candidate(lists),
            breaker=Breaker(share=settings.breaker_share, window=settings.breaker_window),
        )
        self.metrics.set_model("student", **scorer.model._asdict())
        self.metrics.set_lists(() if lists is None else lists.names)
        shadowed = shadow.start(path, scorer.model, self.metrics, share=settings.shadow_share)
        if shadowed is not None:
            stack.callback(shadowed.close)
        return _Built(pipeline, shadowed, drift.start(path, scorer, n_rows=settings.drift_rows))

    def _candidate(self, lists: Screening) -> Candidate | None:
        """Return the candidate of the settings, fixed from here on."""
        settings = self._settings
        if not settings.candidate_model:
            return None
        scorer = Scorer.load(trust.candidate_path(settings))
        check.warm(settings, scorer, lists)
        self.metrics.set_model("candidate", **scorer.model._asdict())
        judge = Judge.of(scorer, policy(scorer.thresholds, lists))
        return Candidate(judge, is_written=settings.candidate_topic is not None)

    def _take_place(self, stack: ExitStack, recovery: Recovery) -> Client | None:
        """Return a client that holds every partition, or None when stopped before."""
        client: Client | None = None
        closing = stack.enter_context(ExitStack())
        while not self._stop.is_set():
            try:
                if client is None:
                    client = self._connect(self._settings)
                    closing.callback(client.close)
                kafka.ensure_topics(client, self._settings)
                n_members = client.n_members()
                if n_members == 0:
                    self.is_standby = False
                    self.metrics.standby.set(0)
                    self._join(client)
                elif not self._is_fresh:
                    # What is loaded need not be loaded when the place is free.
                    recovery.warm(recovery.stream(client))
                self._patience.succeeded()
            except OutageError as error:
                self._patience.failed(error)
                # Another try needs another client: kafka-python was seen to wait for partitions for ever on a broker
                # whose group coordinator was just starting.
                closing.close()
                client = None
                self._stop.wait(RETRY_SECONDS)
                continue
            if n_members == 0:
                return None if self._stop.is_set() else client
            if not self.is_standby:
                log.warning("standby group=%s members=%d", self._settings.group_id, n_members)
                self.metrics.standby.set(1)
            self.is_standby = True
            self._stop.wait(STANDBY_SECONDS)
        return None

    def _join(self, client: Client) -> None:
        """Return when the client holds every partition, or when a stop is asked for."""
        client.begin_producing()
        deadline = time.monotonic() + JOIN_SECONDS_MAX
        while not self._stop.is_set():
            if client.join(JOIN_SECONDS):
                return
            if time.monotonic() > deadline:
                raise OutageError(
                    f"consumer group {self._settings.group_id!r} gave us no partition of "
                    f"{self._settings.transactions_topic!r} within {JOIN_SECONDS_MAX:g} s"
                )

    def _restore(self, client: Client, pipeline: Pipeline, recovery: Recovery, shadowed: Shadow | None) -> Loop | None:
        """Make the loop that continues where the committed past ends, or None when stopped before."""
        settings = self._settings
        stream = recovery.stream(client)
        restored = recovery.restore(client, stream, is_fresh=self._is_fresh)
        if restored is None:
            return None
        if restored.unsettled:
            log.warning("unsettled batches from the last run are committed first: %d", len(restored.unsettled))
        if restored.saved_at_s is not None:
            self.metrics.set_snapshot(restored.saved_at_s)
        self._snapshots = Snapshots(
            settings.state_dir, pipeline.parts(), stream, self.metrics, every_s=settings.snapshot_seconds
        )
        return Loop(
            client,
            pipeline,
            self.metrics,
            settings,
            offsets=restored.offsets,
            unsettled=restored.unsettled,
            shadow=shadowed,
            snapshots=self._snapshots,
        )

    def _follow(self, stack: ExitStack, pipeline: Pipeline, loop: Loop) -> None:
        """Follow the registry's champion, unless the settings name a model."""
        if self._settings.model:
            return
        digest = pipeline.judge.scorer.model.digest
        follower = Follower(self._settings, pipeline.accounts.screening, self.metrics, digest=digest, adopter=loop)
        watcher = Watcher(follower, poll_seconds=self._settings.model_poll_seconds)
        self._watcher = watcher

        def close() -> None:
            watcher.close()
            if loop.shadow is not None:
                loop.shadow.close()

        stack.callback(close)

    def _serve_http(self, stack: ExitStack) -> None:
        settings = self._settings
        site = http.Site(settings, self.metrics, unready=self.unready, pipeline=lambda: self._pipeline)
        server = http.serve(site, host=settings.metrics_host, port=settings.metrics_port)
        stack.callback(server.close)
        self.metrics_port = server.port

    def _show_state(self, pipeline: Pipeline) -> None:
        settings, accounts, breaker = self._settings, pipeline.accounts, pipeline.breaker
        self.metrics.set_breaker(is_open=breaker.is_open, share=breaker.share, n_trips=breaker.n_trips)
        self.metrics.set_limits(accounts_max=settings.accounts_max, pairs_max=settings.pairs_max)
        # The page is served since before the state was loaded: a rate would see its count as a jump.
        self.metrics.resume_evictions(accounts.n_evicted)
        self.metrics.set_state(n_accounts=accounts.n_accounts, n_pairs=accounts.n_pairs, n_evicted=accounts.n_evicted)

    def _serve(self, loop: Loop, snapshots: Snapshots) -> None:
        """Run the loop, and save the past with what could not be committed of it."""
        try:
            loop.run()
        except FencedError:
            # Another replica goes on from the committed offsets; this past may hold what it is going to score itself.
            log.error("state not saved: our place is another process's")
            raise
        except BrokerError:
            _save(loop, snapshots)
            raise
        except ReorgError as error:
            log.critical("reorganisation refused, nothing is scored any more: %s", error)
            _save(loop, snapshots)
            self._stop.wait(ALARM_SECONDS)
            raise
        _save(loop, snapshots)


def _log_progress(stage: str, n_done: int, n: int) -> None:
    log.info("recovering stage=%s n_done=%d n=%d", stage, n_done, n)


def _save(loop: Loop, snapshots: Snapshots) -> None:
    started_s = time.perf_counter()
    path = snapshots.save(loop.offsets, loop.unsettled)
    log.info(
        "state saved path=%s offsets=%s unsettled=%d in_s=%.2f",
        path,
        loop.offsets,
        len(loop.unsettled),
        time.perf_counter() - started_s,
    )


def _past(settings: Settings, lists: Screening) -> Accounts:
    """Return an empty table, with a journal where the settings allow reorganisations."""
    depth = settings.reorg_depth_max
    accounts = Accounts(
        accounts_max=settings.accounts_max,
        pairs_max=settings.pairs_max,
        screening=lists,
        undo_transactions=depth * BLOCK_TRANSACTIONS,
    )
    if depth:
        Journal(accounts, chain_id=settings.chain_id, depth=depth)
    return accounts


def _calm_garbage_collector(n_young_max: int) -> None:
    """Have the collector look at what serving makes, less often than by default, and at nothing else.

    kafka-python leaves 8,000 objects a second behind that only the collector frees: each poll that finds nothing raises
    in its thread, and the traceback keeps the loop's frame with its messages. Freed 100,000 at a time they stopped
    every thread for 0.13 s once in 10 s, which made the p99 at 2,000 transactions a second; 5,000 at a time take 2 ms
    twice a second, for the same throughput (2 cores, 2026-11). The default of 700 walks the records of a batch again
    and again. Frozen modules are not walked any more, which takes 0.1 s each time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(n_young_max, 50, 100)


def _share_interpreter() -> None:
    """Have threads take turns at the interpreter 25 times as often as Python's 5 ms.

    kafka-python's commit passes between four threads, and each waited for the scoring thread's turn to end: end to end
    at 2,000 transactions a second, p50 fell from 21 to 16 ms, for a tenth of the throughput (2 cores, 2026-11).
    """
    sys.setswitchinterval(0.0002)


@contextmanager
def _on_signal(service: Service) -> Iterator[None]:
    """Have SIGTERM and SIGINT stop the service and SIGHUP look for a promoted model while the block runs."""

    def stop(number: int, _frame: FrameType | None) -> None:
        log.info("stopping signal=%s", signal.Signals(number).name)
        service.stop()

    def reload(_number: int, _frame: FrameType | None) -> None:
        log.info("looking for another champion signal=SIGHUP")
        service.reload()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
