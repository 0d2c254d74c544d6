"""The loop: the only place that waits. It polls, has a batch scored, and commits the outcome with the offsets.

Two batches are in memory at most. While the transaction of one is being committed, the next one collects and is scored;
it is handed over when that commit is done.

The rule for what goes wrong: scoring makes a batch part of the past, so a batch is scored once and never again. A
transaction that fails is aborted and sent again with the outputs kept from the first time, within the budget
`broker_retry_seconds`. When the budget is spent or our place goes to another process, the past is saved together with
the outputs that are not committed, and the process ends; the next start commits them if the group still stands there.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features.errors import OutageError
from models.drift import Drift
from service.capture import Snapshots
from service.codec import encode_rejection
from service.kafka import TRANSACTION_SECONDS, Client
from service.metrics import Metrics, Role, Stage, position
from service.pipeline import Message, Outputs, Pipeline
from service.policy import DECISIONS
from service.reload import Replacement
from service.settings import Settings
from service.shadow import Shadow
from service.snapshot import Batch, Offsets, Write

SLICE_SECONDS = 0.02
"""How long messages collect between two polls while a commit runs, longer than it takes as a rule. Each poll keeps the
interpreter from the commit and asks the broker for a fetch: one every 6 ms gave 1.25 times the p99 of none at 2,000
messages a second with kafka-python (medians of four alternating runs)."""

FEW = 20
"""A poll that brings less than this part of a batch shows no backlog: the batch goes, for asking again takes 1 ms."""

MARKERS_SECONDS = 0.0015
"""How long a transaction is not begun after the one before: the broker writes its markers after it has answered, and
refuses the next one until then. librdkafka tries again only after 20 ms: one commit in twenty took 24 ms, none with
this pause, in which messages collect (2 cores with the broker on them, batches of 20)."""

WAIT_SECONDS = 0.2
"""How long to wait for a message or a commit before looking at budget and stop again."""

HANGING_SECONDS = 1.0
"""A commit that takes longer counts as an outage; it takes 3 to 30 ms."""

LAG_SECONDS = 1.0
"""How often the lag is taken from what the fetches told."""

PROBE_SECONDS = 5.0
"""How often a silent broker is asked for the topic's end: nothing else shows that it is away while nothing arrives."""

RETRY_SECONDS = 0.1
"""Pause between two tries of a transaction; a restarting broker takes seconds."""

ROLES: dict[Stage, Role] = {"score": "student", "candidate": "candidate"}
"""The stages that a model takes alone."""

log = logging.getLogger("falconet.loop")


class Patience:
    """How long trouble may last: a budget for an outage, and a shorter one once a stop was asked for."""

    def __init__(self, *, outage_s: float, drain_s: float) -> None:
        self._outage_s = outage_s
        self._drain_s = drain_s
        self._since: float | None = None
        self.trouble: str | None = None
        """What failed last, None where it works."""

        self._stopping_since: float | None = None

    def stop(self) -> None:
        """Count the drain from this moment."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()

    def succeeded(self) -> None:
        """End an outage."""
        if self._since is not None:
            log.warning("outage over after_s=%.1f", time.monotonic() - self._since)
        self._since = self.trouble = None

    def failed(self, error: OutageError) -> None:
        """Note a failure.

        Raises:
            OutageError: The outage lasts longer than allowed.
        """
        now = time.monotonic()
        self.trouble = str(error)
        if self._since is None:
            self._since = now
            log.warning("outage retried_for_s=%g error=%s", self._outage_s, error)
        if now - self._since >= self._outage_s:
            raise OutageError(f"{error}; gave up after {now - self._since:.0f} s (broker_retry_seconds)") from error
        if self._stopping_since is not None and now - self._stopping_since >= self._drain_s:
            raise OutageError(f"{error}; gave up while stopping after {self._drain_s:g} s (drain_seconds)") from error


class _Scored(Struct, frozen=True):
    """A batch that was scored, with what its metrics need once it is committed."""

    batch: Batch
    outputs: Outputs | None
    """None when an earlier process scored the batch, and counted it."""

    stamps_s: NDArray[np.float64]
    """Kafka's timestamp of each message, in Unix seconds."""

    oldest: Mapping[str, str]
    """Where the message with the earliest timestamp stands: the slowest of the batch."""

    polled_s: float
    """When poll returned the first message, by `perf_counter`."""


class Loop:
    """Moves batches from a joined client through the pipeline and back; one thread runs it, any may stop it."""

    def __init__(
        self,
        client: Client,
        pipeline: Pipeline,
        metrics: Metrics,
        settings: Settings,
        *,
        offsets: Offsets,
        unsettled: Sequence[Batch] = (),
        shadow: Shadow | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """Make the loop.

        Args:
            client: Joined, its next message the one after `offsets`.
            pipeline: Its past reflects everything up to `offsets`.
            metrics: Where everything is counted.
            settings: Topics, limits and budgets.
            offsets: The next message's offset in each partition that was ever read.
            unsettled: Batches that the past has absorbed and that are to be committed first.
            shadow: Gets the feature rows, None for no shadow.
            snapshots: Takes them between two batches, None for none.
        """
        self._client = client
        self._pipeline = pipeline
        self._metrics = metrics
        self._settings = settings
        self.shadow = shadow
        self._snapshots = snapshots
        self._drift: Drift | None = None
        self._replacement: Replacement | None = None
        self._patience = Patience(outage_s=settings.broker_retry_seconds, drain_s=settings.drain_seconds)
        self._stop = threading.Event()
        self._waiting = list(unsettled)
        self._open: _Scored | None = None
        self._next: _Scored | None = None
        self._stage_started_s = 0.0
        self._markers_at_s = 0.0
        self._handed_over_s = 0.0
        self._lag_at_s = self._heard_at_s = time.monotonic()
        self.offsets = dict(offsets)
        self._n_trips, self._is_held = pipeline.breaker.n_trips, pipeline.breaker.is_open

    @property
    def outage(self) -> str | None:
        """What Kafka does not do, None where it does; from any thread."""
        return self._patience.trouble

    @property
    def unsettled(self) -> list[Batch]:
        """The scored batches that are not known to be committed, in order."""
        return [scored.batch for scored in (self._open, self._next) if scored is not None] + self._waiting

    def stop(self) -> None:
        """Have the loop finish what it has and return; safe in a signal handler."""
        self._patience.stop()
        self._stop.set()

    def replace(self, replacement: Replacement) -> None:
        """Have another model decide from the next batch on; safe from another thread."""
        self._replacement = replacement

    def watch_drift(self, drift: Drift | None) -> None:
        """Compare the traffic with the reference of the model in use from the next batch on; None compares nothing."""
        self._drift = drift
        self._metrics.set_drift(None if drift is None else drift.psi)

    def run(self) -> None:
        """Serve until stopped; on return everything that was scored is committed.

        Raises:
            OutageError: Kafka stayed away for longer than the budget; see `unsettled`.
            BrokerError: Kafka refuses to go on.
            ReorgError: The past cannot follow the chain; everything before that message is committed.
        """
        while self._waiting:
            self._open = _Scored(self._waiting.pop(0), None, np.empty(0), {}, time.perf_counter())
            self._hand_over(self._open)
            self._finish()
        while not self._stop.is_set():
            messages, polled_s = self._collect()
            if self._replacement is not None:
                self._adopt(self._replacement)
            if self._snapshots is not None and self._snapshots.is_due(self.offsets):
                # Settled first, so that no snapshot is ahead of the committed offsets.
                started_s = time.perf_counter()
                self._finish()
                self._snapshots.take(self.offsets, started_s=started_s)
            if messages:
                self._next = self._score(messages, polled_s)
                self._finish()
                self._open, self._next = self._next, None
                self._rested()
                self._hand_over(self._open)
                if self._open.outputs is not None:
                    self._refuse(self._open.outputs)
            self._watch()
        self._finish()

    def _refuse(self, outputs: Outputs) -> None:
        """End the loop where the pipeline refused a message, once what stands before it is committed."""
        if outputs.refusal is None:
            return
        self._finish()
        self._metrics.reorgs_refused_total.inc()
        raise outputs.refusal

    def _adopt(self, replacement: Replacement) -> None:
        self._replacement = None
        self._pipeline.replace(replacement.scorer, replacement.policy)
        self.shadow, replacement.shadow = replacement.shadow, self.shadow
        self.watch_drift(replacement.drift)
        replacement.adopted.set()

    def _collect(self) -> tuple[list[Message], float]:
        """Return the next batch and when its first message came; it is empty when none came in time.

        A message that finds no commit running goes at once. While one runs, messages collect with the broker, as they
        could not be handed over anyway; behind a batch that was half full or more they are asked for at once, so that
        they are scored meanwhile, and while a backlog lasts they collect up to the batch's limits of size and time.
        """
        n_max = self._settings.batch_records_max
        messages: list[Message] = []
        polled_s = 0.0
        is_backlog = self._open is not None and 2 * len(self._open.stamps_s) >= n_max
        while len(messages) < n_max and not self._stop.is_set():
            if not is_backlog:
                self._settled(SLICE_SECONDS)
            is_backlog = False
            is_open = self._open is not None
            # In slices, for a poll does not return when a stop is asked for.
            idle_s = min(self._settings.poll_seconds, WAIT_SECONDS)
            found = self._poll(n_max - len(messages), 0.0 if messages or is_open else idle_s)
            if found and not messages:
                polled_s = time.perf_counter()
            messages += found
            if messages and time.perf_counter() - polled_s > self._settings.batch_seconds_max:
                break
            if not is_open and not self._rested() and FEW * len(found) < n_max:
                break
        return messages, polled_s

    def _poll(self, n_max: int, wait_s: float) -> list[Message]:
        try:
            return self._client.poll(n_max, wait_s)
        except OutageError as error:
            self._patience.failed(error)
            time.sleep(RETRY_SECONDS)
            return []

    def _score(self, messages: list[Message], polled_s: float) -> _Scored:
        """Run the pipeline; from here on the batch is part of the past."""
        n = len(messages)
        seconds = self._metrics.stage_seconds
        self._stage_started_s = time.perf_counter()

        def tick(stage: Stage, later_s: float) -> None:
            now_s = time.perf_counter() - later_s
            share_s = (now_s - self._stage_started_s) / n
            seconds[stage].observe(share_s, n)
            if stage in ROLES:
                self._metrics.inference_seconds[ROLES[stage]].observe(share_s, n)
            self._stage_started_s = now_s

        outputs = self._pipeline.process(messages, now_ms=int(time.time() * 1000), tick=tick)
        self._tell_breaker()
        if not outputs.n_read:
            self._refuse(outputs)
        messages = messages[: outputs.n_read]
        before = dict(self.offsets)
        self.offsets.update({message.partition: message.offset + 1 for message in messages})
        batch = Batch(before, dict(self.offsets), self._writes(outputs))
        if self.shadow is not None:
            self.shadow.offer(outputs.verdicts.rows)
        if self._drift is not None:
            self._drift.observe(outputs.verdicts.rows, outputs.verdicts.probabilities)
        stamps_s = np.array([message.timestamp_ms for message in messages]) / 1000.0
        oldest = messages[int(stamps_s.argmin())]
        where = position(oldest.topic, oldest.partition, oldest.offset)
        return _Scored(batch, outputs, stamps_s, where, polled_s)

    def _tell_breaker(self) -> None:
        """Say that the circuit breaker opened or closed with the batch at hand."""
        breaker = self._pipeline.breaker
        n_opened, was_open = breaker.n_trips - self._n_trips, self._is_held
        self._n_trips, self._is_held = breaker.n_trips, breaker.is_open
        if n_opened:
            log.error(
                "circuit breaker opened, nothing is blocked: flagged_share=%.3f limit=%g window=%d",
                breaker.share,
                self._settings.breaker_share,
                self._settings.breaker_window,
            )
        if not breaker.is_open and (was_open or n_opened):
            log.warning("circuit breaker closed, decisions hold as they are: flagged_share=%.3f", breaker.share)

    def _writes(self, outputs: Outputs) -> list[Write]:
        settings = self._settings
        letters = [encode_rejection(rejection) for rejection in outputs.rejections]
        writes = [
            Write(settings.scores_topic, outputs.scores),
            Write(settings.alerts_topic, outputs.alerts),
            Write(settings.dlq_topic, [(key, value) for key, value, _ in letters], [each for _, _, each in letters]),
        ]
        if settings.candidate_topic is not None and outputs.candidate is not None:
            writes.append(Write(settings.candidate_topic, outputs.candidate.scores))
        return [write for write in writes if write.records]

    def _hand_over(self, scored: _Scored) -> None:
        """Send a batch and start its commit, trying again until that much works."""
        started_s = time.perf_counter()
        while True:
            try:
                self._client.begin()
                for write in scored.batch.writes:
                    self._client.send(write.topic, write.records, write.headers)
                done_s = time.perf_counter()
                self._handed_over_s = time.monotonic()
                self._client.commit(scored.batch.after)
                break
            except OutageError as error:
                self._give_back(error)
        n = len(scored.stamps_s)
        if n:
            self._metrics.stage_seconds["produce"].observe((done_s - started_s) / n, n)
            self._metrics.decision_seconds.observe(done_s - scored.polled_s, n)
            self._metrics.decision_seconds.exemplify(done_s - scored.polled_s, scored.oldest, at_s=time.time())

    def _give_back(self, error: OutageError) -> None:
        """Abort what failed and pause, unless the budget is spent."""
        self._patience.failed(error)
        self._client.abort(self._settings.drain_seconds)
        time.sleep(RETRY_SECONDS)

    def _settled(self, wait_s: float = 0.0) -> bool:
        """Say whether the open transaction is committed; one that failed is begun again."""
        if self._open is None:
            return True
        try:
            done_at_s = self._client.wait(wait_s)
        except OutageError as error:
            self._give_back(error)
            self._hand_over(self._open)
            return False
        if done_at_s is None:
            age_s = time.monotonic() - self._handed_over_s
            if age_s > HANGING_SECONDS:
                hanging = OutageError(f"Kafka has not answered a commit for {age_s:.1f} s")
                self._patience.failed(hanging)
                # The broker has aborted it by itself by this time.
                if age_s > TRANSACTION_SECONDS:
                    raise hanging
            return False
        self._patience.succeeded()
        self._count(self._open, done_at_s)
        self._open = None
        self._markers_at_s = time.monotonic() + MARKERS_SECONDS
        return True

    def _rested(self) -> bool:
        """Wait until the broker should be done with the last transaction; say whether that took any time."""
        rest_s = self._markers_at_s - time.monotonic()
        if rest_s <= 0:
            return False
        time.sleep(rest_s)
        return True

    def _finish(self) -> None:
        """Wait until the open transaction is committed."""
        while not self._settled(WAIT_SECONDS):
            pass

    def _count(self, scored: _Scored, done_at_s: float) -> None:
        """Count a committed batch."""
        outputs, metrics = scored.outputs, self._metrics
        if outputs is None:
            return
        metrics.end_to_end_seconds.observe_all(done_at_s - scored.stamps_s)
        slowest_s = done_at_s - float(scored.stamps_s.min())
        metrics.end_to_end_seconds.exemplify(slowest_s, scored.oldest, at_s=done_at_s)
        metrics.transactions_total["scored"].inc(len(outputs.verdicts.decisions))
        metrics.transactions_total["rejected"].inc(len(outputs.rejections))
        metrics.transactions_total["skipped"].inc(outputs.n_skipped)
        metrics.transactions_total["orphaned"].inc(outputs.n_orphaned)
        metrics.transactions_total["announced"].inc(outputs.n_announced)
        metrics.retractions_total.inc(outputs.n_retracted)
        counts = np.bincount(outputs.verdicts.decisions, minlength=len(DECISIONS)).tolist()
        for decision, n in zip(DECISIONS, counts, strict=True):
            metrics.decisions_total[decision].inc(n)
        metrics.score.observe_all(outputs.verdicts.probabilities)
        metrics.count_hits(outputs.verdicts.hits)
        for reason in outputs.alert_reasons:
            metrics.alert_reasons_total[reason].inc()
        metrics.breaker_held_total.inc(int(outputs.verdicts.is_held.sum()))
        breaker = self._pipeline.breaker
        metrics.set_breaker(is_open=breaker.is_open, share=breaker.share, n_trips=breaker.n_trips)
        if outputs.candidate is not None:
            beside = outputs.candidate.verdicts
            metrics.candidate_score.observe_all(beside.probabilities)
            pairs = zip(outputs.verdicts.decisions.tolist(), beside.decisions.tolist(), strict=True)
            for (champion, candidate), n in Counter(pairs).items():
                metrics.candidate_decisions_total[DECISIONS[champion], DECISIONS[candidate]].inc(n)
        for reason, n in Counter(rejection.reason for rejection in outputs.rejections).items():
            metrics.dlq_total[reason].inc(n)
        accounts = self._pipeline.accounts
        metrics.set_state(n_accounts=accounts.n_accounts, n_pairs=accounts.n_pairs, n_evicted=accounts.n_evicted)
        metrics.undo_blocks.set(0 if accounts.journal is None else accounts.journal.n_blocks)
        self._heard_at_s = time.monotonic()

    def _watch(self) -> None:
        """Take the lag now and then, and make sure that a silent broker is still there."""
        now_s = time.monotonic()
        is_silent = self._open is None and now_s - self._heard_at_s >= PROBE_SECONDS
        if not is_silent and now_s - self._lag_at_s < LAG_SECONDS:
            return
        self._lag_at_s = now_s
        self._metrics.set_offsets(self.offsets)
        self._metrics.take_energy()
        try:
            self._metrics.set_lag(self._client.lag(timeout_s=1.0 if is_silent else 0.0))
        except OutageError as error:
            self._patience.failed(error)
            return
        if is_silent:
            self._heard_at_s = now_s
            self._patience.succeeded()
