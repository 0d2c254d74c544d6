"""Messages in; scores, alerts and rejections out."""

import time
from pathlib import Path

import numpy as np
import pytest

from features import schema, screening
from features.accounts import Accounts
from features.transaction import pack, records
from models.scorer import Scorer
from service import simulator
from service.codec import Decoder, decode_score
from service.metrics import ALERT_REASONS
from service.pipeline import Candidate, Judge, Message, Outputs, Pipeline
from service.policy import policy
from tests.boosters import trained, write_model

DECODER = Decoder(chain_id=1, message_bytes_max=1 << 20)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    path: Path = tmp_path_factory.mktemp("model") / "model.falconet"
    write_model(path, trained())
    return Scorer.load(path)


def pipeline(scorer: Scorer, lists: screening.Screening | None = None, **thresholds: float) -> Pipeline:
    accounts = Accounts(accounts_max=4_096, pairs_max=8_192, screening=lists)
    return Pipeline(
        accounts=accounts,
        scorer=scorer,
        policy=policy({"review": 2.0, "block": 2.0, **thresholds}, lists),
        decoder=DECODER,
    )


def messages(n: int, *, seed: int = 3) -> list[Message]:
    values = simulator.messages(seed, n)
    return [Message(value, b"k%d" % i, "transactions", i % 2, i, 1_000 + i) for i, value in enumerate(values)]


def test_each_message_becomes_exactly_one_score_rejection_or_skip(scorer):
    """A batch with bad messages and tombstones in it loses nothing, keeps the order and says where each came from."""
    batch = messages(6)
    bad = batch[2]._replace(value=b"{not json")
    empty, absent = batch[4]._replace(value=b""), batch[5]._replace(value=None)
    outputs = pipeline(scorer).process([*batch[:2], bad, batch[3], empty, absent], now_ms=7)

    assert [decode_score(value).source.offset for _, value in outputs.scores] == [0, 1, 3]
    assert [(r.value, r.key, r.reason, r.source.offset) for r in outputs.rejections] == [
        (b"{not json", b"k2", "not_json", 2)
    ]
    assert outputs.n_skipped == 2


def test_a_score_carries_the_identity_of_its_transaction_and_of_its_model(scorer):
    """Everything an analyst needs to find the transaction, the model and the features again stands in the score."""
    [message] = messages(1)
    [(key, value)] = pipeline(scorer).process([message], now_ms=1_234).scores
    tx = DECODER.decode(message.value)
    score = decode_score(value)

    assert key == tx.id.encode()
    assert (score.hash, score.log_index, score.from_address, score.to_address) == (
        tx.hash,
        tx.log_index,
        tx.from_address,
        tx.to_address,
    )
    assert scorer.model.digest.encode() in bytes(score.model)
    assert (score.schema, score.status, score.scored_at) == (schema.FINGERPRINT, "scored", 1_234)


def test_the_size_of_a_batch_changes_no_byte(scorer):
    """One by one, in sevens or all at once: the same scores, so a replay after a crash repeats them."""
    batch = messages(400)

    def scores(size: int) -> list[tuple[bytes, bytes]]:
        one = pipeline(scorer, review=0.02)
        return [
            record
            for start in range(0, len(batch), size)
            for record in one.process(batch[start : start + size], now_ms=0).scores
        ]

    whole = scores(len(batch))
    assert scores(1) == whole
    assert scores(7) == whole


def test_stages_are_ticked_in_the_order_of_the_flow(scorer):
    """The loop's latencies rest on the order of the ticks."""
    ticks: list[tuple[str, float]] = []
    pipeline(scorer).process(messages(3), now_ms=0, tick=lambda *tick: ticks.append(tick))

    assert [stage for stage, _ in ticks] == ["decode", "features", "score", "encode"]


def test_model_is_ticked_apart_from_the_features(scorer):
    """One compiled call does both; the seconds that belong to the model are handed to its stage."""
    started_s = time.perf_counter()
    ticks: dict[str, float] = {}
    pipeline(scorer).process(messages(300), now_ms=0, tick=ticks.__setitem__)

    assert 0 < ticks.pop("features") < time.perf_counter() - started_s
    assert set(ticks.values()) == {0.0}


def test_a_batch_without_any_transaction_is_no_special_case(scorer):
    """Nothing but tombstones, or nothing at all, gives empty outputs."""
    for batch in ([], [messages(1)[0]._replace(value=None)]):
        outputs = pipeline(scorer).process(batch, now_ms=0)

        assert (outputs.scores, outputs.alerts, outputs.rejections) == ([], [], [])
        assert outputs.n_skipped == len(batch)


def test_only_what_is_not_allowed_is_an_alert_with_reasons(scorer):
    """Alerts are the same bytes as their scores; an allowed transaction has no reasons."""
    batch = messages(500)
    free = pipeline(scorer).process(batch, now_ms=0)
    limit = float(np.quantile(free.verdicts.probabilities, 0.9))
    outputs = pipeline(scorer, review=limit).process(batch, now_ms=0)
    scores = [decode_score(value) for _, value in outputs.scores]
    alerted = [score for score in scores if score.decision != "allow"]

    assert free.alerts == [] or all(b"imitate" in v or b"looks like" in v for _, v in free.alerts)
    assert [value for _, value in outputs.alerts] == [
        value for (_, value), score in zip(outputs.scores, scores, strict=True) if score.decision != "allow"
    ]
    assert all(score.score >= limit or score.reasons[0].feature == "to_imitates" for score in alerted)
    assert all(score.reasons for score in alerted)
    assert all(not score.reasons for score in scores if score.decision == "allow")
    assert list(outputs.alert_reasons) == [score.reasons[0].feature for score in alerted]
    assert set(outputs.alert_reasons) <= set(ALERT_REASONS)


def test_reasons_are_the_largest_contributions_first(scorer):
    """Each reason names a feature of the schema and its sentence holds no open placeholder."""
    outputs = pipeline(scorer, review=0.0).process(messages(50), now_ms=0)
    names = {feature.name for feature in schema.FEATURES}
    for _, value in outputs.alerts:
        reasons = decode_score(value).reasons
        weights = [reason.contribution for reason in reasons if reason.feature != "to_imitates"]

        assert {reason.feature for reason in reasons} <= names
        assert weights == sorted(weights, reverse=True)
        assert all("{" not in reason.sentence for reason in reasons)


def listed(scorer: Scorer, name: str) -> tuple[Message, Outputs]:
    [message] = messages(1)
    tx = DECODER.decode(message.value)
    lists = screening.build([(tx.from_address, name, 0)])
    return message, pipeline(scorer, lists).process([message], now_ms=0)


@pytest.mark.parametrize(("name", "decision"), [("sanctioned", "block"), ("mixer", "review"), ("exchange", "allow")])
def test_a_listed_side_decides_by_its_list(scorer, name, decision):
    """Sanctioned is blocked, flagged is reviewed, a mere tag is only told."""
    message, outputs = listed(scorer, name)
    [(_, value)] = outputs.scores
    score = decode_score(value)

    assert score.decision == decision
    assert [(hit.address, hit.side, hit.list) for hit in score.list_hits] == [
        (DECODER.decode(message.value).from_address, "from", name)
    ]
    assert list(outputs.alert_reasons) == ([] if decision == "allow" else ["listed"])


def test_the_pipeline_and_packed_records_give_the_same_scores(scorer):
    """`replay` scores records without messages; bit for bit it decides as the service does."""
    batch = messages(300)
    packed = records([pack(DECODER.decode(message.value)) for message in batch])
    by_messages = pipeline(scorer).process(batch, now_ms=0).verdicts
    by_records = pipeline(scorer).score(packed)

    assert np.array_equal(by_messages.probabilities, by_records.probabilities)
    assert np.array_equal(by_messages.rows, by_records.rows, equal_nan=True)


@pytest.mark.parametrize("is_written", [False, True])
def test_a_candidate_judges_the_same_rows_and_decides_nothing(scorer, tmp_path, is_written):
    """What leaves is as without it; its own verdicts and, if wanted, scores are those it would make alone."""
    write_model(tmp_path / "model.falconet", trained(seed=2), version="2")
    other = Scorer.load(tmp_path / "model.falconet")
    thresholds = {"review": 0.02, "block": 0.1}
    decides, beside, alone = (pipeline(each, **thresholds) for each in (scorer, scorer, other))
    beside.candidate = Candidate(Judge.of(other, policy(thresholds, None)), is_written=is_written)
    batch = messages(200)

    plain, both, expected = (each.process(batch, now_ms=7) for each in (decides, beside, alone))

    assert plain.candidate is None
    assert both.candidate is not None
    assert (both.scores, both.alerts) == (plain.scores, plain.alerts)
    np.testing.assert_array_equal(both.candidate.verdicts.probabilities, expected.verdicts.probabilities)
    np.testing.assert_array_equal(both.candidate.verdicts.decisions, expected.verdicts.decisions)
    assert both.candidate.scores == (expected.scores if is_written else [])


def test_the_candidate_has_a_stage_of_its_own(scorer):
    """Its time is not counted as the served model's."""
    one = pipeline(scorer)
    stages = []
    one.process(messages(3), now_ms=7, tick=lambda stage, *_: stages.append(stage))
    one.candidate = Candidate(one.judge, is_written=False)
    one.process(messages(3), now_ms=7, tick=lambda stage, *_: stages.append(stage))

    assert stages == ["decode", "features", "score", "encode", "decode", "features", "score", "candidate", "encode"]
