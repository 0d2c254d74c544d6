"""The circuit breaker: when it opens, what it then changes, when it closes, and that only the stream decides."""

from collections import deque
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as drawing
from hypothesis import strategies as st

from features.accounts import Accounts
from features.errors import StateError
from models import compact, registry
from models.scorer import Scorer
from service import simulator, snapshot
from service.breaker import Breaker
from service.codec import Decoder
from service.loop import Loop
from service.messages import Score
from service.metrics import Metrics
from service.pipeline import Message, Pipeline
from service.policy import ALLOW, BLOCK, DECISIONS, REVIEW, policy
from service.reload import Replacement
from service.settings import Settings
from tests import boosters
from tests.fakes import FakeKafka

CODES = st.lists(st.sampled_from([ALLOW, ALLOW, REVIEW, BLOCK]), max_size=120)


def held(codes: list[int], *, share: float, window: int) -> tuple[list[int], list[bool], int]:
    """Return decisions, flags and openings as plain Python says, looking at the whole window each time."""
    last: deque[int] = deque([ALLOW] * window, maxlen=window)
    is_open, n_trips, decided, flags = False, 0, [], []
    for code in codes:
        last.append(code)
        n_flagged = sum(each != ALLOW for each in last)
        if not is_open and n_flagged > share * window:
            is_open, n_trips = True, n_trips + 1
        elif is_open and n_flagged <= share * window / 2:
            is_open = False
        flags.append(is_open)
        decided.append(min(code, REVIEW) if is_open else code)
    return decided, flags, n_trips


@drawing(deadline=None)  # the first call compiles
@given(CODES, st.integers(1, 40), st.sampled_from([0.1, 0.25, 0.5, 0.8, 1.0]), st.lists(st.integers(0, 120)))
def test_breaker_is_what_plain_python_says_in_batches_of_any_size(
    codes: list[int], window: int, share: float, cuts: list[int]
) -> None:
    """Decisions, flags and openings depend on the order of the transactions alone, not on where batches end."""
    breaker = Breaker(share=share, window=window)
    decided, flags = [], []
    for part in np.split(np.array(codes, dtype=np.int8), sorted(cuts)):
        batch = part.copy()
        flags += breaker.hold(batch).tolist()
        decided += batch.tolist()

    assert (decided, flags, breaker.n_trips) == held(codes, share=share, window=window)


@drawing(deadline=None)  # the first call compiles
@given(CODES, CODES)
def test_restored_breaker_goes_on_as_if_nothing_had_happened(before: list[int], after: list[int]) -> None:
    """From a saved state the same transactions get the same decisions: a replay after a crash repeats them."""
    first, second = (Breaker(share=0.3, window=10) for _ in range(2))
    first.hold(np.array(before, dtype=np.int8))
    saved = {name: array.copy() for name, array in first.arrays().items()}
    decided, again = (np.array(after, dtype=np.int8) for _ in range(2))
    flags = first.hold(decided)

    assert second.restore(saved)
    assert second.hold(again).tolist() == flags.tolist()
    assert again.tolist() == decided.tolist()
    assert second.n_trips == first.n_trips


def test_saved_state_holds_the_breaker(tmp_path: Path) -> None:
    """A clean stop and start goes on with the flags of the last transactions; a state without any starts anew."""
    accounts = Accounts(accounts_max=64, pairs_max=64)
    tripped, restarted, fresh = (Breaker(share=0.3, window=10) for _ in range(3))
    tripped.hold(np.full(5, BLOCK, dtype=np.int8))
    stream = snapshot.Stream(cluster="c", topic="t", n_partitions=1)
    header = snapshot.header_of(stream, offsets={}, unsettled=[])
    snapshot.save(snapshot.next_path(tmp_path), header, [accounts, tripped])
    snapshot.load(tmp_path, stream, [accounts, restarted])
    snapshot.save(snapshot.next_path(tmp_path), header, [accounts])
    snapshot.load(tmp_path, stream, [accounts, fresh])

    assert restarted.is_open
    assert restarted.arrays()["breaker"].tolist() == tripped.arrays()["breaker"].tolist()
    assert not fresh.is_open


def test_breaker_of_another_window_starts_anew() -> None:
    """Changed settings leave nothing to go on from, and are no damage."""
    breaker = Breaker(share=0.5, window=10)

    assert not breaker.restore(Breaker(share=0.5, window=11).arrays())
    assert not breaker.is_open


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.astype(np.float64),
        lambda state: state.reshape(2, -1),
        lambda state: np.full_like(state, -1),
        lambda state: np.where(np.arange(len(state)) == 1, 10**6, state),
        lambda state: np.where(np.arange(len(state)) == 2, 7, state),
        lambda state: np.where(np.arange(len(state)) == 9, 2, state),
    ],
)
def test_hostile_state_is_refused(spoil) -> None:
    """A place outside of the ring would be written to unseen: the kernel checks no bounds."""
    with pytest.raises(StateError, match="breaker"):
        Breaker(share=0.5, window=12).restore({"breaker": spoil(Breaker(share=0.5, window=12).arrays()["breaker"])})


def test_share_of_one_never_opens() -> None:
    """1 turns it off."""
    breaker = Breaker(share=1.0, window=5)
    codes = np.full(50, BLOCK, dtype=np.int8)

    assert not breaker.hold(codes).any()
    assert codes.tolist() == [BLOCK] * 50


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    """Return a model that allows everything and one that blocks everything."""
    folder = tmp_path_factory.mktemp("models")
    booster = boosters.trained()
    for name, probability in (("good", 1.0), ("bad", 0.0)):
        thresholds = {each: compact.Threshold(probability, "by hand") for each in ("review", "block")}
        (folder / name).mkdir()
        boosters.write_model(folder / name / registry.MODEL_FILE, booster, version=name, thresholds=thresholds)
    return {name: Scorer.load(folder / name / registry.MODEL_FILE) for name in ("good", "bad")}


def pipeline(scorer: Scorer, **breaker: float) -> Pipeline:
    return Pipeline(
        accounts=Accounts(accounts_max=2_000, pairs_max=2_000),
        scorer=scorer,
        policy=policy(scorer.thresholds, None),
        decoder=Decoder(chain_id=1, message_bytes_max=1 << 20),
        breaker=Breaker(**breaker),  # type: ignore[arg-type]
    )


def test_model_that_flags_everything_blocks_half_a_window_and_recovers(
    scorers: dict[str, Scorer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Promoted into a running loop it blocks until the limit, then all is reviewed, and rolled back all is allowed."""
    values = simulator.messages(5, 900)
    fake = FakeKafka(values[:300])
    settings = Settings(
        breaker_share=0.5, breaker_window=100, batch_records_max=70, state_dir=tmp_path, shadow_share=0.0
    )
    metrics, pipe = Metrics(), pipeline(scorers["good"], share=0.5, window=100)
    loop = Loop(fake, pipe, metrics, settings, offsets={})
    caplog.set_level("INFO", "falconet.loop")

    def scores() -> list[Score]:
        return [msgspec.json.decode(value, type=Score) for topic, _, value, _ in fake.written if topic == "scores"]

    def serve(part: list[bytes], model: str | None) -> list[Score]:
        n_before = len(scores())
        if model is not None:
            scorer = scorers[model]
            loop.replace(Replacement(scorer, policy(scorer.thresholds, None), None))
        first = len(fake.messages)
        fake.messages += [Message(value, None, fake.topic, 0, first + i, 0) for i, value in enumerate(part)]
        fake.on_empty = loop.stop
        loop._stop.clear()
        loop.run()
        return scores()[n_before:]

    allowed = serve([], None)
    flagged = serve(values[300:600], "bad")
    rolled_back = serve(values[600:], "good")

    assert {(each.decision, each.is_held) for each in allowed} == {("allow", False)}
    decisions = [(each.decision, each.is_held) for each in flagged]
    assert decisions == [("block", False)] * 50 + [("review", True)] * 250
    # All 100 of the window are flagged, and it closes when 25 are: with the 75th that is not.
    assert [(each.decision, each.is_held) for each in rolled_back] == [("allow", True)] * 74 + [("allow", False)] * 226
    assert metrics.breaker_held_total._value.get() == 250 + 74
    assert metrics._breaker_trips._value.get() == 1
    assert metrics._breaker_open._value.get() == 0
    told = [record.message.split(",")[0] for record in caplog.records]
    assert told.count("circuit breaker opened") == 1
    assert told.count("circuit breaker closed") == 1


def test_decision_on_a_list_is_held_too(scorers: dict[str, Scorer]) -> None:
    """A list that names everybody is as bad as a model that does: its hits stay on the score, the block does not."""
    from features import screening

    values = simulator.messages(5, 60)
    senders = {msgspec.json.decode(value)["from_address"] for value in values}
    lists = screening.build([(address, "sanctioned", 0) for address in senders])
    scorer = scorers["good"]
    pipe = Pipeline(
        accounts=Accounts(accounts_max=2_000, pairs_max=2_000, screening=lists),
        scorer=scorer,
        policy=policy(scorer.thresholds, lists),
        decoder=Decoder(chain_id=1, message_bytes_max=1 << 20),
        breaker=Breaker(share=0.5, window=40),
    )
    outputs = pipe.process([Message(value, None, "t", 0, i, 0) for i, value in enumerate(values)], now_ms=0)

    codes = outputs.verdicts.decisions.tolist()
    assert codes == [DECISIONS.index("block")] * 20 + [DECISIONS.index("review")] * 40
    assert len(outputs.alerts) == 60
    assert all(b'"list":"sanctioned"' in value for _, value in outputs.alerts)
