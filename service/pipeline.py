"""The main job without the world: messages in, scores, alerts and rejections out, the past updated on the way.

A batch in which a block is announced as orphaned is taken in parts: what stands before the announcement, then the
announcement, which takes the block's transactions out of the past and retracts their scores, then what follows.
"""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from features import schema
from features.accounts import Accounts
from features.errors import RejectedError, ReorgError
from features.transaction import OrphanedBlock, Transaction, pack, records
from models.scorer import Scorer
from service import reorg
from service.breaker import Breaker
from service.codec import Decoder, encode_score
from service.messages import Contribution, ListHit, Rejection, Score, Source
from service.metrics import LISTED, Stage
from service.policy import DECISIONS, REVIEW, Policy
from service.settings import BREAKER_SHARE, BREAKER_WINDOW
from service.snapshot import Part

REASONS_MAX = 3
"""Reasons on a score that is not allowed: an analyst reads no more at a glance."""


class Message(NamedTuple):
    """One Kafka record as it came."""

    value: bytes | None
    key: bytes | None
    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class Verdicts(NamedTuple):
    """What was decided on a batch of n records, in their order."""

    rows: NDArray[np.float32]
    """Feature rows, shape (n, N_FEATURES)."""

    probabilities: NDArray[np.float64]
    decisions: NDArray[np.int8]
    """Places in `policy.DECISIONS`."""

    hits: NDArray[np.uint32]
    """List bits: the sender's in the low half, the recipient's in the high half."""

    is_held: NDArray[np.bool_]
    """Where the circuit breaker was open: the decision is `review` at most."""


class Judge(NamedTuple):
    """A model and what is decided by it."""

    scorer: Scorer
    policy: Policy
    model: Raw
    """As it stands in each score: name, version and digest, encoded once."""

    @classmethod
    def of(cls, scorer: Scorer, policy: Policy) -> "Judge":
        """Return the judge that a model and a policy make."""
        model = scorer.model
        facts = {"name": model.name, "version": model.version, "digest": model.digest}
        return cls(scorer, policy, Raw(msgspec.json.encode(facts)))


class Candidate(NamedTuple):
    """A model that judges beside the one that decides."""

    judge: Judge
    is_written: bool
    """Whether its scores are wanted as records, not only counted."""


class Beside(NamedTuple):
    """What the candidate said of the accepted transactions."""

    verdicts: Verdicts
    scores: list[tuple[bytes, bytes]]
    """Like those of `Outputs`, empty where nobody wants them."""


class Outputs(NamedTuple):
    """What a batch of messages became: each is one score, one rejection or one skip."""

    scores: list[tuple[bytes, bytes]]
    """Key and value of each accepted transaction, in order."""

    alerts: list[tuple[bytes, bytes]]
    """The scores whose decision is not `allow`."""

    rejections: list[Rejection]
    n_skipped: int
    """Tombstones."""

    verdicts: Verdicts
    """On the accepted transactions, for metrics and the shadow model."""

    candidate: Beside | None = None
    """None where there is none."""

    alert_reasons: Sequence[str] = ()
    """Of each alert, what says most; one of `metrics.ALERT_REASONS`."""

    n_orphaned: int = 0
    """Transactions of blocks that another partition had announced as orphaned: not scored."""

    n_announced: int = 0
    """Announcements of orphaned blocks."""

    n_retracted: int = 0
    """Of the records in `scores`, how many are retractions."""

    n_read: int = 0
    """Messages of which the past and the outputs are whole: all, unless `refusal` is set."""

    refusal: ReorgError | None = None
    """Why the message after those cannot be followed."""


class Decoded(NamedTuple):
    """What messages hold, in their order."""

    transactions: list[Transaction]
    sources: list[Source]
    rejections: list[Rejection]
    n_skipped: int
    announced: list[tuple[int, OrphanedBlock]]
    """Orphaned blocks with the places of their messages."""


class Checked(NamedTuple):
    """What would be decided on one transaction that is not in the stream."""

    judge: Judge
    probability: float
    decision: str
    reasons: list[Contribution]
    """Empty where the decision is `allow`."""

    list_hits: list[ListHit]
    is_held: bool
    """Whether the circuit breaker is open: the decision is `review` at most."""


class Pipeline:
    """Codec, past, model and policy in the order a transaction meets them.

    There is one past, so one thread processes. Any other may `check` beside it.
    """

    def __init__(
        self,
        *,
        accounts: Accounts,
        scorer: Scorer,
        policy: Policy,
        decoder: Decoder,
        candidate: Candidate | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """Make the pipeline.

        Args:
            accounts: The past.
            scorer: The model that decides.
            policy: What is decided by it.
            decoder: Of messages.
            candidate: A model that judges beside it and decides nothing.
            breaker: Holds decisions back while too many are flagged; None takes one of the default settings.
        """
        self.accounts = accounts
        self.breaker = breaker or Breaker(share=BREAKER_SHARE, window=BREAKER_WINDOW)
        self.judge = Judge.of(scorer, policy)
        self.candidate = candidate
        self._read = decoder.read
        self._turn = threading.Lock()
        """Held for the one compiled call that reads or writes the past, with the model's scratch memory: 0.7 µs for
        each transaction of a batch, so a check waits 1.4 ms for the largest."""

    def replace(self, scorer: Scorer, policy: Policy) -> None:
        """Have another model decide from the next batch on; the past stays."""
        self.judge = Judge.of(scorer, policy)

    def process(
        self, messages: Sequence[Message], *, now_ms: int, tick: Callable[[Stage, float], None] | None = None
    ) -> Outputs:
        """Turn a batch into what it becomes; afterwards its transactions are part of the past.

        Args:
            messages: In the order of the stream.
            now_ms: Unix milliseconds, written to the scores.
            tick: Called at the end of each stage, for its latency, with the seconds since that belong to the next one:
                features and model are one compiled call.
        """
        decoded = self._decode(messages)
        if tick is not None:
            tick("decode", 0.0)
        journal = self.accounts.journal
        if not decoded.announced and (journal is None or not journal.is_split):
            return self._judged(decoded, len(messages), now_ms, tick)
        # Its stages are not timed: a batch in parts has no share of a transaction to tell.
        parts: list[Outputs] = []
        start = 0
        for place, block in decoded.announced:
            parts.append(self._unless_orphaned(messages[start:place], now_ms))
            if parts[-1].refusal is None:
                parts.append(self._taken_back(block, messages[place], now_ms))
            if parts[-1].refusal is not None:
                return reorg.joined(parts)
            start = place + 1
        return reorg.joined([*parts, self._unless_orphaned(messages[start:], now_ms)])

    def _judged(
        self, decoded: Decoded, n_read: int, now_ms: int, tick: Callable[[Stage, float], None] | None = None
    ) -> Outputs:
        """Score what was decoded and make it part of the past."""
        transactions, sources = decoded.transactions, decoded.sources
        packed = records([pack(tx) for tx in transactions])
        with self._turn:
            rows, hits, margins = self.judge.scorer.score(self.accounts, packed)
            model_s = self.judge.scorer.model_seconds
        if tick is not None:
            tick("features", model_s)
        verdicts = self._held(_verdicts(self.judge, rows, hits, margins))
        if tick is not None:
            tick("score", 0.0)
        beside: Beside | None = None
        if self.candidate is not None:
            judge = self.candidate.judge
            others = _verdicts(judge, rows, hits, judge.scorer.margins(rows))
            if tick is not None:
                tick("candidate", 0.0)
            is_written = self.candidate.is_written
            written = self._encode(transactions, sources, judge, others, now_ms)[0] if is_written else []
            beside = Beside(others, written)
        scores, alerts, leading = self._encode(transactions, sources, self.judge, verdicts, now_ms)
        if tick is not None:
            tick("encode", 0.0)
        if self.accounts.journal is not None:
            keys = [key for key, _ in scores]
            self.accounts.journal.note(transactions, keys, verdicts.decisions.tobytes())
        return Outputs(scores, alerts, decoded.rejections, decoded.n_skipped, verdicts, beside, leading, n_read=n_read)

    def _unless_orphaned(self, messages: Sequence[Message], now_ms: int) -> Outputs:
        """Score messages without announcements, but for transactions of blocks that are known to be orphaned."""
        decoded = self._decode(messages)
        journal = self.accounts.journal
        if journal is None or not journal.is_split:
            return self._judged(decoded, len(messages), now_ms)
        kept: list[int] = []
        for i, (tx, source) in enumerate(zip(decoded.transactions, decoded.sources, strict=True)):
            try:
                if not journal.is_orphaned(tx, source.partition):
                    kept.append(i)
            except ReorgError as error:
                places = [(message.partition, message.offset) for message in messages]
                before = messages[: places.index((source.partition, source.offset))]
                return self._unless_orphaned(before, now_ms)._replace(refusal=error)
        found = decoded._replace(
            transactions=[decoded.transactions[i] for i in kept], sources=[decoded.sources[i] for i in kept]
        )
        outputs = self._judged(found, len(messages), now_ms)
        return outputs._replace(n_orphaned=len(decoded.transactions) - len(kept))

    def _taken_back(self, block: OrphanedBlock, message: Message, now_ms: int) -> Outputs:
        """Take a block back, or say why that cannot be."""
        source = Source(message.topic, message.partition, message.offset)
        verdicts = self.score(records([]))

        def observe(packed: NDArray[np.uint64]) -> object:
            # With the kernel that scores, which is compiled already; the breaker has counted these decisions.
            return self.judge.scorer.score(self.accounts, packed)

        try:
            with self._turn:
                retracted, alerted = reorg.take_back(self.accounts.journal, observe, block, source, now_ms)
        except ReorgError as error:
            return Outputs([], [], [], 0, verdicts, None, refusal=error)
        beside = None
        if self.candidate is not None:
            beside = Beside(verdicts, retracted if self.candidate.is_written else [])
        return Outputs(retracted, alerted, [], 0, verdicts, beside, n_announced=1, n_retracted=len(retracted), n_read=1)

    def observe(self, messages: Sequence[Message]) -> None:
        """Make a batch that was scored before part of the past, as `process` did; the breaker counts it too.

        Raises:
            ReorgError: An announcement that was followed then cannot be followed from this past.
        """
        decoded, journal = self._decode(messages), self.accounts.journal
        if journal is not None and (decoded.announced or journal.is_split):
            outputs = self.process(messages, now_ms=0)
            if outputs.refusal is not None:
                raise outputs.refusal
            return
        transactions = decoded.transactions
        rows, hits, margins = self.judge.scorer.score(self.accounts, records([pack(tx) for tx in transactions]))
        verdicts = self._held(_verdicts(self.judge, rows, hits, margins))
        if journal is not None:
            journal.note(transactions, [tx.id.encode() for tx in transactions], verdicts.decisions.tobytes())

    def parts(self) -> tuple[Part, ...]:
        """Return everything that a snapshot holds of the past."""
        return (self.accounts, self.breaker)

    def score(self, packed: NDArray[np.uint64]) -> Verdicts:
        """Score packed transactions, shape (n, RECORD_WORDS), and make them part of the past."""
        with self._turn:
            rows, hits, margins = self.judge.scorer.score(self.accounts, packed)
        return self._held(_verdicts(self.judge, rows, hits, margins))

    def _held(self, verdicts: Verdicts) -> Verdicts:
        """Return what the circuit breaker leaves of verdicts that decide."""
        return verdicts._replace(is_held=self.breaker.hold(verdicts.decisions))

    def check(self, tx: Transaction) -> Checked:
        """Judge a transaction by the past between two batches, without making it part of it; from any thread."""
        judge = self.judge
        packed = records([pack(tx)])
        with self._turn:
            rows, hits, margins = judge.scorer.score(self.accounts, packed, observing=False)
        verdicts = _verdicts(judge, rows, hits, margins)
        decision = int(verdicts.decisions[0])
        # Asked, not counted: what is checked is no part of the breaker's window.
        is_held = self.breaker.is_open
        if is_held:
            decision = min(decision, REVIEW)
        return Checked(
            judge,
            float(verdicts.probabilities[0]),
            DECISIONS[decision],
            _reasons(judge, rows[0]) if decision else [],
            self._list_hits(tx, int(hits[0])) if hits[0] else [],
            is_held,
        )

    def _decode(self, messages: Sequence[Message]) -> Decoded:
        read = self._read
        decoded = Decoded([], [], [], 0, [])
        transactions, sources, rejections, n_skipped, announced = decoded
        for place, message in enumerate(messages):
            value, key, topic, partition, offset, _ = message
            if not value:
                n_skipped += 1
                continue
            source = Source(topic, partition, offset)
            try:
                found = read(value)
            except RejectedError as error:
                rejections.append(Rejection(value, key, error.reason, error.detail, source))
                continue
            if isinstance(found, OrphanedBlock):
                announced.append((place, found))
            else:
                transactions.append(found)
                sources.append(source)
        return decoded._replace(n_skipped=n_skipped)

    def _encode(
        self, transactions: list[Transaction], sources: list[Source], judge: Judge, verdicts: Verdicts, now_ms: int
    ) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]], list[str]]:
        model = judge.model
        listed = int(judge.policy.review_bits | judge.policy.block_bits)
        leading: list[str] = []
        scores: list[tuple[bytes, bytes]] = []
        alerts: list[tuple[bytes, bytes]] = []
        probabilities, decisions = verdicts.probabilities.tolist(), verdicts.decisions.tolist()
        hits = verdicts.hits.tolist()
        is_held = verdicts.is_held.tolist()
        for i, tx in enumerate(transactions):
            decision = decisions[i]
            reasons = _reasons(judge, verdicts.rows[i]) if decision else []
            score = Score(
                tx.type,
                tx.chain_id,
                tx.hash,
                tx.log_index,
                tx.block_number,
                tx.block_timestamp,
                tx.from_address,
                tx.to_address,
                probabilities[i],
                DECISIONS[decision],
                reasons,
                self._list_hits(tx, hits[i]) if hits[i] else [],
                model,
                schema.FINGERPRINT,
                sources[i],
                "scored",
                now_ms,
                is_held[i],
            )
            record = (tx.id.encode(), encode_score(score))
            scores.append(record)
            if decision:
                alerts.append(record)
                leading.append(LISTED if hits[i] & listed else reasons[0].feature if reasons else "none")
        return scores, alerts, leading

    def _list_hits(self, tx: Transaction, hits: int) -> list[ListHit]:
        screening = self.accounts.screening
        if screening is None:
            return []
        found = [ListHit(tx.from_address, "from", name) for name in screening.lists(hits & 0xFFFF)]
        if tx.to_address is not None:
            found += [ListHit(tx.to_address, "to", name) for name in screening.lists(hits >> 16)]
        return found


def _verdicts(
    judge: Judge, rows: NDArray[np.float32], hits: NDArray[np.uint32], margins: NDArray[np.float64]
) -> Verdicts:
    probabilities = judge.scorer.probabilities(margins)
    codes = judge.policy.decide(probabilities, rows, hits)
    return Verdicts(rows, probabilities, codes, hits, np.zeros(len(codes), dtype=np.bool_))


def _reasons(judge: Judge, row: NDArray[np.float32]) -> list[Contribution]:
    """Explain one row: rules first, then what raised the model's risk most."""
    rules = [Contribution(feature, value, 0.0, sentence) for feature, value, sentence in judge.policy.rules(row)]
    raised = [Contribution(*reason) for reason in judge.scorer.reasons(row, REASONS_MAX)]
    return rules + raised
