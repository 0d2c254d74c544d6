"""The loop against a Kafka that fails when told to."""

from pathlib import Path

import msgspec
import pytest

from features.accounts import Accounts
from features.errors import BrokerError, FencedError, OutageError
from models.scorer import Scorer
from service import simulator
from service.codec import Decoder
from service.loop import WAIT_SECONDS, Loop
from service.metrics import Metrics
from service.pipeline import Candidate, Judge, Pipeline
from service.policy import DECISIONS, policy
from service.settings import Settings
from tests.fakes import FakeKafka

VALUES = simulator.messages(3, 60)
TOPICS = ("scores", "scores.candidate")


def make_pipeline(model: Path) -> Pipeline:
    scorer = Scorer.load(model / "model.falconet")
    return Pipeline(
        accounts=Accounts(accounts_max=1_000, pairs_max=1_000),
        scorer=scorer,
        policy=policy(scorer.thresholds, None),
        decoder=Decoder(chain_id=1, message_bytes_max=1_000_000),
    )


def make_loop(kafka: FakeKafka, model: Path, **settings: object) -> Loop:
    """Return a loop that stops when the messages run out."""
    chosen = Settings(**{"batch_records_max": 20, "broker_retry_seconds": 5.0, "drain_seconds": 1.0} | settings)
    loop = Loop(kafka, make_pipeline(model), Metrics(), chosen, offsets=kafka.committed())
    kafka.on_empty = loop.stop
    return loop


def scores(kafka: FakeKafka) -> list[tuple[int, float]]:
    """Return offset and probability of each written score, in order."""
    found = [msgspec.json.decode(value) for topic, _, value, _ in kafka.written if topic == "scores"]
    return [(score["source"]["offset"], score["score"]) for score in found]


@pytest.fixture(scope="module")
def undisturbed(small_model: Path) -> list[tuple[int, float]]:
    """The scores of a run in which nothing fails."""
    kafka = FakeKafka(VALUES)
    make_loop(kafka, small_model).run()
    return scores(kafka)


def test_each_message_is_scored_once(undisturbed: list[tuple[int, float]]) -> None:
    """Every message has one score, in order."""
    assert [offset for offset, _ in undisturbed] == list(range(len(VALUES)))


def test_batch_and_offsets_share_a_transaction(small_model: Path) -> None:
    """Batches hold at most the limit, and the group's offset is the next message's."""
    kafka = FakeKafka(VALUES)

    make_loop(kafka, small_model).run()

    alerts = sum(topic == "alerts" for topic, *_ in kafka.written)
    assert len(kafka.transactions) == 3
    assert sum(kafka.transactions) == len(VALUES) + alerts
    assert kafka.group_offsets == {0: len(VALUES)}


@pytest.mark.parametrize("call", ["begin", "send", "commit", "wait"])
def test_failed_transaction_is_sent_again_not_scored_again(
    call: str, small_model: Path, undisturbed: list[tuple[int, float]]
) -> None:
    """Wherever a transaction fails, the same scores are written as if nothing had failed: the past saw each once."""
    kafka = FakeKafka(VALUES)
    kafka.faults[call] = [OutageError("away"), OutageError("still away")]

    make_loop(kafka, small_model).run()

    assert scores(kafka) == undisturbed
    assert kafka.n_aborted == 2


def test_poll_failure_is_waited_out(small_model: Path, undisturbed: list[tuple[int, float]]) -> None:
    """A consumer that fails for a moment loses nothing."""
    kafka = FakeKafka(VALUES)
    kafka.faults["poll"] = [OutageError("away")]

    make_loop(kafka, small_model).run()

    assert scores(kafka) == undisturbed


def test_lone_message_does_not_wait(small_model: Path) -> None:
    """After a message that nothing follows, only a poll that waits for nothing stands before its transaction."""
    kafka = FakeKafka(VALUES[:1])

    make_loop(kafka, small_model, poll_seconds=10.0).run()

    waits_s = [timeout_s for _, timeout_s, _ in kafka.polls]
    assert waits_s[:2] == [WAIT_SECONDS, 0.0]
    assert kafka.transactions == [len(kafka.written)]


def test_messages_that_trickle_form_one_batch(small_model: Path) -> None:
    """While messages keep coming, a batch grows to its limit and not beyond."""
    kafka = FakeKafka(VALUES)
    kafka.n_found_max = 7

    make_loop(kafka, small_model).run()

    assert len(kafka.transactions) == 3
    assert all(n_max <= 20 for n_max, _, _ in kafka.polls)


def test_messages_collect_while_a_commit_runs(small_model: Path, undisturbed: list[tuple[int, float]]) -> None:
    """A commit that takes its time does not stop the reading, and never overlaps with another."""
    kafka = FakeKafka(VALUES)
    kafka.n_found_max, kafka.n_commits_hanging = 1, 5

    make_loop(kafka, small_model).run()

    assert scores(kafka) == undisturbed


def test_spent_budget_keeps_what_is_not_committed(small_model: Path, undisturbed: list[tuple[int, float]]) -> None:
    """When Kafka stays away, the loop ends with the scored batches in hand, and a later one commits exactly those."""
    kafka = FakeKafka(VALUES)
    loop = make_loop(kafka, small_model, broker_retry_seconds=0.2)
    kafka.faults["wait"] = [OutageError("away")] * 10
    with pytest.raises(OutageError, match="gave up after"):
        loop.run()
    assert kafka.written == []
    assert loop.offsets == loop.unsettled[-1].after

    pipeline = loop._pipeline
    kafka.faults.clear()
    kafka.abort(0)
    later = Loop(
        kafka, pipeline, Metrics(), Settings(batch_records_max=20), offsets=loop.offsets, unsettled=loop.unsettled
    )
    kafka.on_empty = later.stop
    kafka.seek(loop.offsets)
    later.run()

    assert scores(kafka) == undisturbed
    assert later.unsettled == []


def test_hanging_commit_ends_with_the_budget(small_model: Path) -> None:
    """A commit that is neither done nor refused ends the loop when the budget is spent."""
    kafka = FakeKafka(VALUES)
    kafka.n_commits_hanging = 1_000_000
    loop = make_loop(kafka, small_model, broker_retry_seconds=0.1)

    with pytest.raises(OutageError, match="has not answered a commit"):
        loop.run()

    assert loop.unsettled


def test_stop_gives_a_hanging_commit_the_drain_only(small_model: Path) -> None:
    """Once a stop was asked for, the drain's limit counts and not the budget of an outage."""
    kafka = FakeKafka(VALUES[:20])
    kafka.n_commits_hanging = 1_000_000
    loop = make_loop(kafka, small_model, broker_retry_seconds=1_000.0, drain_seconds=0.2)

    with pytest.raises(OutageError, match="gave up while stopping"):
        loop.run()


def test_lost_place_is_not_retried(small_model: Path) -> None:
    """A loop that was fenced ends at once."""
    kafka = FakeKafka(VALUES)
    kafka.faults["wait"] = [FencedError("gone")]

    with pytest.raises(FencedError):
        make_loop(kafka, small_model).run()

    assert kafka.n_aborted == 0
    assert kafka.written == []


def test_impossible_abort_ends_the_loop(small_model: Path) -> None:
    """Where not even an abort works, the loop ends and keeps the batch."""
    kafka = FakeKafka(VALUES)
    kafka.faults = {"send": [OutageError("away")], "abort": [BrokerError("no")]}
    loop = make_loop(kafka, small_model)

    with pytest.raises(BrokerError, match="no"):
        loop.run()

    assert [batch.before for batch in loop.unsettled] == [{}]


def test_rejection_keeps_bytes_and_says_where_from(small_model: Path) -> None:
    """A message that is no transaction goes to the dead-letter topic untouched, and a tombstone nowhere."""
    kafka = FakeKafka([b"\xff not json", None, VALUES[0]])
    loop = make_loop(kafka, small_model)

    loop.run()

    [(_, key, value, headers)] = [each for each in kafka.written if each[0] == "transactions.dlq"]
    assert (key, value) == (b"key 0", b"\xff not json")
    assert headers is not None
    facts = dict(headers)
    assert facts.pop("detail")
    assert facts == {
        "reason": b"not_utf8",
        "source_topic": b"transactions",
        "source_partition": b"0",
        "source_offset": b"0",
    }
    counts = {outcome: counter._value.get() for outcome, counter in loop._metrics.transactions_total.items()}
    assert counts == {"scored": 1, "rejected": 1, "skipped": 1, "orphaned": 0, "announced": 0}
    assert kafka.group_offsets == {0: 3}


def test_candidate_is_counted_and_written_beside_the_scores(small_model: Path, tmp_path: Path) -> None:
    """Its scores share the transaction of the scores; each pair of decisions is counted once it is committed."""
    from tests.boosters import trained, write_model

    write_model(tmp_path / "model.falconet", trained(seed=2), version="2")
    other = Scorer.load(tmp_path / "model.falconet")
    kafka = FakeKafka(VALUES)
    kafka.faults["commit"] = [OutageError("away")]
    loop = make_loop(kafka, small_model, candidate_model="any", candidate_topic="scores.candidate")
    loop._pipeline.candidate = Candidate(Judge.of(other, policy({"review": 0.02, "block": 0.1}, None)), is_written=True)

    loop.run()

    champion, candidate = ([value for topic, _, value, _ in kafka.written if topic == name] for name in TOPICS)
    pairs = [
        (msgspec.json.decode(one)["decision"], msgspec.json.decode(other)["decision"])
        for one, other in zip(champion, candidate, strict=True)
    ]
    counted = {pair: counter._value.get() for pair, counter in loop._metrics.candidate_decisions_total.items()}
    buckets, _ = loop._metrics.candidate_score.cumulative()
    assert len(pairs) == len(VALUES)
    assert {msgspec.json.decode(value)["model"]["version"] for value in candidate} == {"2"}
    assert counted == {(one, other): pairs.count((one, other)) for one in DECISIONS for other in DECISIONS}
    assert len({pair for pair in pairs if pair[0] != pair[1]}) > 0
    assert buckets[-1][1] == len(VALUES)
    assert len(kafka.transactions) == 3
    assert sum(topic == "alerts" for topic, *_ in kafka.written) == sum(pair[0] != "allow" for pair in pairs)
