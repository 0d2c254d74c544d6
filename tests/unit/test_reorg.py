"""What the service makes of orphaned blocks: retractions, and a past that never saw them."""

import itertools
from pathlib import Path

import msgspec
import pytest

from features.accounts import Accounts
from features.errors import ReorgError
from features.journal import Journal
from models.scorer import Scorer
from service import simulator
from service.codec import Decoder
from service.loop import Loop
from service.messages import Retraction
from service.metrics import Metrics
from service.pipeline import Candidate, Judge, Message, Pipeline
from service.policy import policy
from service.settings import Settings
from tests.fakes import FakeKafka

DECODER = Decoder(chain_id=1, message_bytes_max=1_000_000)


def blocks(seed: int, n: int) -> list[list[bytes]]:
    """Return a simulated chain's first n blocks, each the messages of its transactions."""
    values = simulator.messages(seed, 40 * n)
    found = [list(block) for _, block in itertools.groupby(values, key=lambda value: DECODER.decode(value).block_hash)]
    assert len(found) > n
    return found[:n]


def orphaned(block: list[bytes], **changes: object) -> bytes:
    """Return the announcement that takes a block back."""
    tx = DECODER.decode(block[0])
    fields = {"block_number": tx.block_number, "block_hash": tx.block_hash, "block_timestamp": tx.block_timestamp}
    return msgspec.json.encode({"type": "orphaned_block", "chain_id": 1} | fields | changes)


def renumbered(blocks: list[list[bytes]], first: int) -> list[list[bytes]]:
    """Return blocks with numbers from the first one on."""
    return [
        [msgspec.json.encode(msgspec.json.decode(value) | {"block_number": number}) for value in block]
        for number, block in enumerate(blocks, first)
    ]


OLD = blocks(5, 8)
KEPT, GONE = OLD[:5], OLD[5:]
REPLACEMENT = renumbered(blocks(6, 4), DECODER.decode(GONE[0][0]).block_number)
BEFORE, AFTER = [tx for block in OLD for tx in block], [tx for block in REPLACEMENT for tx in block]
STREAM = [*BEFORE, *(orphaned(block) for block in reversed(GONE)), *AFTER]
UNSEEN = [*(tx for block in KEPT for tx in block), *AFTER]


def make_pipeline(model: Path, *, depth: int = 8, n_partitions: int = 1, candidate: bool = False) -> Pipeline:
    scorer = Scorer.load(model / "model.falconet")
    accounts = Accounts(accounts_max=1_000, pairs_max=1_000, undo_transactions=depth * 64)
    if depth:
        Journal(accounts, chain_id=1, depth=depth, n_partitions=n_partitions)
    # Everything from here up is reviewed, so that alerts are retracted too.
    thresholds = scorer.thresholds | {"review": 0.0, "block": 0.5}
    judge = Judge.of(scorer, policy(thresholds, None))
    return Pipeline(
        accounts=accounts,
        scorer=scorer,
        policy=policy(thresholds, None),
        decoder=DECODER,
        candidate=Candidate(judge, is_written=True) if candidate else None,
    )


def make_loop(kafka: FakeKafka, pipeline: Pipeline, **settings: object) -> Loop:
    """Return a loop that stops when the messages run out."""
    chosen = Settings(**{"batch_records_max": 20, "broker_retry_seconds": 5.0, "drain_seconds": 1.0} | settings)
    loop = Loop(kafka, pipeline, Metrics(), chosen, offsets=kafka.committed())
    kafka.on_empty = loop.stop
    return loop


def written(kafka: FakeKafka, topic: str, status: str) -> list[tuple[bytes | None, dict]]:
    """Return key and value of a topic's records of a status, in order, without what depends on place and time."""
    records = [(key, msgspec.json.decode(value)) for name, key, value, _ in kafka.written if name == topic]
    place_and_time = ("source", "scored_at", "retracted_at")
    return [
        (key, {name: one for name, one in record.items() if name not in place_and_time})
        for key, record in records
        if record["status"] == status
    ]


def bits(accounts: Accounts) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in accounts.arrays().items() if not name.startswith("undo")}


def counts(loop: Loop) -> dict[str, int]:
    return {outcome: int(counter._value.get()) for outcome, counter in loop._metrics.transactions_total.items()}


@pytest.mark.parametrize("batch", [7, 20, 1_000])
def test_later_scores_are_those_of_a_run_that_never_saw_the_branch(batch: int, small_model: Path) -> None:
    """Whatever the batches, past and scores after a reorganisation are the same as without the orphaned blocks."""
    kafka, unseen = FakeKafka(STREAM), FakeKafka(UNSEEN)
    loop, other = (make_loop(one, make_pipeline(small_model), batch_records_max=batch) for one in (kafka, unseen))
    loop.run()
    other.run()

    assert bits(loop._pipeline.accounts) == bits(other._pipeline.accounts)
    expected = written(unseen, "scores", "scored")[-len(AFTER) :]
    assert written(kafka, "scores", "scored")[-len(AFTER) :] == expected
    assert kafka.group_offsets == {0: len(STREAM)}
    assert counts(loop) == {
        "scored": len(BEFORE) + len(AFTER),
        "rejected": 0,
        "skipped": 0,
        "orphaned": 0,
        "announced": len(GONE),
    }


def test_each_orphaned_score_is_retracted_once_with_its_key(small_model: Path) -> None:
    """Of each transaction of the orphaned blocks one retraction follows, the newest first, before what replaces it."""
    kafka = FakeKafka(STREAM)
    loop = make_loop(kafka, make_pipeline(small_model))
    loop.run()

    orphans = [DECODER.decode(value) for block in GONE for value in block][::-1]
    found = [(key, value) for topic, key, value, _ in kafka.written if topic == "scores"]
    retracted = [(key, msgspec.json.decode(value, type=Retraction)) for key, value in found if b"retracted" in value]
    assert [key for key, _ in retracted] == [tx.id.encode() for tx in orphans]
    for (_, retraction), tx in zip(retracted, orphans, strict=True):
        names = ("type", "chain_id", "hash", "log_index", "block_number", "block_hash", "block_timestamp")
        for name in (*names, "from_address", "to_address"):
            assert getattr(retraction, name) == getattr(tx, name)
        assert msgspec.json.decode(STREAM[retraction.source.offset])["block_hash"] == tx.block_hash
    places = [b"retracted" in value for _, value in found]
    assert places == [False] * len(BEFORE) + [True] * len(orphans) + [False] * len(AFTER)
    assert written(kafka, "alerts", "retracted") == written(kafka, "scores", "retracted")
    assert loop._metrics.retractions_total._value.get() == len(orphans)
    assert loop._metrics.undo_blocks._value.get() == 8  # the depth: five that stayed, less one, and four


def test_transaction_that_returns_is_scored_anew(small_model: Path) -> None:
    """A transaction of the orphaned block that the replacement holds too is scored, retracted and scored."""
    again = [
        value.replace(
            b'"block_hash": "' + (DECODER.decode(value).block_hash or "").encode(), b'"block_hash": "0x' + b"77" * 32
        )
        for value in GONE[-1]
    ]
    kafka = FakeKafka([*BEFORE, orphaned(GONE[-1]), *again])
    make_loop(kafka, make_pipeline(small_model), batch_records_max=1_000).run()

    key = DECODER.decode(again[0]).id.encode()
    records = [
        msgspec.json.decode(value) for topic, name, value, _ in kafka.written if (topic, name) == ("scores", key)
    ]
    assert [record["status"] for record in records] == ["scored", "retracted", "scored"]
    assert records[0]["score"] == records[2]["score"]


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (2, r"deeper than the journal reaches.*at most 2 blocks \(reorg_depth_max\)"),
        (0, "reorg_depth_max is 0"),
    ],
)
def test_refused_reorganisation_commits_what_is_before_and_ends(depth: int, message: str, small_model: Path) -> None:
    """What cannot be taken back ends the loop loudly, at the offset of its announcement, with all before committed."""
    kafka = FakeKafka(STREAM)
    loop = make_loop(kafka, make_pipeline(small_model, depth=depth), batch_records_max=1_000)

    with pytest.raises(ReorgError, match=message):
        loop.run()

    n_taken = min(depth, len(GONE))
    assert kafka.group_offsets == loop.offsets == {0: len(BEFORE) + n_taken}
    assert loop.unsettled == []
    assert loop._metrics.reorgs_refused_total._value.get() == 1
    assert len(written(kafka, "scores", "retracted")) == sum(len(block) for block in GONE[len(GONE) - n_taken :])


def test_refusal_at_the_first_message_repeats(small_model: Path) -> None:
    """A start that stands before the refused announcement refuses it again and moves nothing."""
    kafka = FakeKafka(STREAM[len(BEFORE) :])
    loop = make_loop(kafka, make_pipeline(small_model, depth=0))

    with pytest.raises(ReorgError):
        loop.run()

    assert kafka.written == []
    assert loop.offsets == {}


def as_messages(values: list[bytes], partition: int) -> list[Message]:
    return [Message(value, None, "transactions", partition, offset, 0) for offset, value in enumerate(values)]


def test_partition_that_lags_behind_is_not_scored_for_an_orphaned_block(small_model: Path) -> None:
    """Transactions of a block that another partition has announced are counted and not scored, until announced too."""
    block, after = max(OLD, key=len), as_messages(REPLACEMENT[0], 0)
    here, there = block[:1], block[1:]
    assert there
    pipeline = make_pipeline(small_model, n_partitions=2, candidate=True)
    unseen = make_pipeline(small_model, n_partitions=2)
    ahead = pipeline.process(as_messages([*here, orphaned(block)], 0), now_ms=0)
    behind = pipeline.process(as_messages(there, 1), now_ms=0)
    late = pipeline.process([*as_messages([orphaned(block)], 1), *after], now_ms=0)
    expected = unseen.process(after, now_ms=0)

    assert (len(ahead.scores), ahead.n_retracted, ahead.n_announced) == (2 * len(here), len(here), 1)
    assert ahead.candidate is not None
    assert [key for key, _ in ahead.candidate.scores] == [key for key, _ in ahead.scores]
    assert (behind.scores, behind.n_orphaned, behind.n_read) == ([], len(there), len(there))
    assert (late.n_retracted, late.n_announced, late.n_orphaned) == (0, 1, 0)
    assert late.scores == expected.scores
    assert bits(pipeline.accounts) == bits(unseen.accounts)


def test_unnamed_block_beside_an_orphaned_one_is_refused(small_model: Path) -> None:
    """A transaction that names no block, of a number that is orphaned on one partition only, cannot be placed."""
    block = GONE[0]
    tx = msgspec.json.decode(block[0])
    nameless = msgspec.json.encode(tx | {"block_hash": None})
    pipeline = make_pipeline(small_model, n_partitions=2)
    outputs = pipeline.process([*as_messages([orphaned(block)], 0), *as_messages([*KEPT[0], nameless], 1)], now_ms=0)

    assert "names no block_hash" in str(outputs.refusal)
    assert (outputs.n_read, len(outputs.scores)) == (1 + len(KEPT[0]), len(KEPT[0]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block_hash": None}, "missing_field"),
        ({"block_hash": "0x12"}, "malformed_hash"),
        ({"block_number": "x"}, "wrong_type"),
        ({"block_number": -1}, "negative_value"),
        ({"block_timestamp": 1}, "timestamp_out_of_range"),
    ],
)
def test_damaged_announcement_is_rejected_by_the_same_reasons(change: dict, reason: str, small_model: Path) -> None:
    """An announcement that cannot be read goes to the dead-letter topic and takes nothing back."""
    pipeline = make_pipeline(small_model)
    pipeline.process(as_messages(BEFORE, 0), now_ms=0)
    before = bits(pipeline.accounts)

    outputs = pipeline.process(as_messages([orphaned(GONE[-1], **change)], 0), now_ms=0)

    assert [rejection.reason for rejection in outputs.rejections] == [reason]
    assert bits(pipeline.accounts) == before


def test_announcement_is_read_in_any_spelling() -> None:
    """Integers as text and hex, and hashes in capitals, name the same block; the chain defaults to the setting's."""
    block = DECODER.read(orphaned(GONE[0]))
    number = block.block_number
    shouted = orphaned(GONE[0], block_number=hex(number), block_hash="0x" + block.block_hash[2:].upper(), chain_id=None)

    assert DECODER.read(shouted) == block
