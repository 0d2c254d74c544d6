"""From a snapshot to the committed offsets, on a stand-in for Kafka."""

import threading
from pathlib import Path

import msgspec
import pytest

from features import schema
from features.errors import OutageError, StateError
from service import recovery, simulator, snapshot
from service.pipeline import Message
from service.recovery import _Merge, missing, settle
from service.serve import Service
from service.settings import Settings
from service.snapshot import Batch, Header, Offsets, Stream, Write
from tests.fakes import FakeKafka

VALUES = simulator.messages(21, 300)
STREAM = Stream(cluster="fake", topic="transactions", n_partitions=1)
BATCHES = [
    Batch({0: 5}, {0: 8}, [Write("scores", [(b"a", b"1")])]),
    Batch({0: 8}, {0: 10}, [Write("scores", [(b"b", b"2")])]),
]


def header(offsets: Offsets, unsettled: list[Batch]) -> Header:
    return Header(schema=schema.FINGERPRINT, stream=STREAM, offsets=offsets, unsettled=unsettled, saved_at_s=0.0)


def test_settle_finds_what_is_not_committed() -> None:
    """The group's offsets tell which of the saved batches were committed after all; past them a replay begins."""
    saved = header({0: 10}, BATCHES)

    assert settle(saved, {0: 5}) == BATCHES
    assert settle(saved, {0: 8}) == BATCHES[1:]
    assert settle(saved, {0: 10}) == []
    assert settle(saved, {0: 11, 1: 3}) == []


@pytest.mark.parametrize("committed", [{}, {0: 4}, {0: 9}, {1: 20}])
def test_snapshot_ahead_of_the_group_is_refused(committed: Offsets) -> None:
    """An operator reads both offsets and the way out."""
    with pytest.raises(StateError, match=r"newer than the committed offsets: it ends at 0:10.*--fresh-state"):
        settle(header({0: 10}, BATCHES), committed)


def test_missing_names_the_partitions_with_a_gap() -> None:
    """A partition has a gap where the topic begins after the past ends and before the group goes on."""
    spans = {0: (50, 100), 1: (0, 100), 2: (80, 100)}

    assert missing({0: 50, 1: 3}, {0: 60, 1: 90}, spans) == {}
    assert missing({0: 49, 1: 3}, {0: 60, 1: 90}, spans) == {0: 50}
    assert missing({0: 60, 2: 70}, {0: 60, 2: 70}, spans) == {}
    assert missing({}, {2: 90}, spans) == {2: 80}


def message(partition: int, offset: int, timestamp_ms: int) -> Message:
    return Message(b"", None, "t", partition, offset, timestamp_ms)


def test_partitions_merge_by_time_and_keep_their_own_order() -> None:
    """Nothing passes before what another partition may still bring, unless that one is at its end."""
    merge = _Merge({0, 1})

    assert merge.ordered([message(0, 0, 10), message(0, 1, 30), message(0, 2, 20)], set()) == []
    first = merge.ordered([message(1, 0, 15), message(1, 1, 40)], set())
    assert [(each.partition, each.offset) for each in first] == [(0, 0), (1, 0), (0, 1), (0, 2)]
    assert [each.offset for each in merge.ordered([], {0})] == [1]


def test_merge_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition that lags behind cannot make the others' messages pile up."""
    monkeypatch.setattr(recovery, "MERGED_MAX", 3)
    merge = _Merge({0, 1})

    assert len(merge.ordered([message(0, i, i) for i in range(10)], set())) == 7


def settings(folder: Path, model: Path, **changes: object) -> Settings:
    plain = Settings(
        model=str(model),
        state_dir=folder / "state",
        accounts_max=2_000,
        pairs_max=2_000,
        metrics_port=0,
        shadow_share=0.0,
        snapshot_seconds=0.0,
    )
    return msgspec.structs.replace(plain, **changes)


def serve(settings: Settings, fake: FakeKafka) -> Service:
    """Serve what is there, then stop."""
    topics = dict.fromkeys(settings.topics(), 1)
    fake.topics = lambda: topics  # type: ignore[method-assign]
    service = Service(settings, connect=lambda _settings: fake)  # type: ignore[arg-type,return-value]
    fake.on_empty = service.stop
    service.run()
    return service


def scores(fake: FakeKafka) -> list[tuple[int, float]]:
    """Return source offset and probability of each score."""
    found = [msgspec.json.decode(value) for topic, _, value, _ in fake.written if topic == "scores"]
    return [(score["source"]["offset"], score["score"]) for score in found]


def grown(fake: FakeKafka, n: int) -> FakeKafka:
    """Let the topic hold the first n messages."""
    fake.messages = FakeKafka(VALUES[:n]).messages
    return fake


@pytest.fixture
def expected(tmp_path: Path, small_model: Path) -> list[tuple[int, float]]:
    """Return the scores of a run that nothing disturbed."""
    fake = FakeKafka(VALUES)
    serve(settings(tmp_path / "undisturbed", small_model), fake)
    return scores(fake)


def behind(tmp_path: Path, small_model: Path) -> tuple[FakeKafka, Path]:
    """Return a group that stands at 200 and the snapshot of 100, as after a kill."""
    chosen, fake = settings(tmp_path, small_model), FakeKafka(VALUES[:100])
    serve(chosen, fake)
    [path] = snapshot.files(chosen.state_dir)
    content = path.read_bytes()
    serve(chosen, grown(fake, 200))
    for each in snapshot.files(chosen.state_dir):
        each.unlink()
    path.write_bytes(content)
    return fake, path


def test_replay_from_a_snapshot_is_bit_identical(
    tmp_path: Path, small_model: Path, expected: list[tuple[int, float]]
) -> None:
    """What lies between snapshot and group is observed and not written again, and later scores are the same bits."""
    fake, _ = behind(tmp_path, small_model)
    service = serve(settings(tmp_path, small_model), grown(fake, 300))

    assert scores(fake) == expected
    assert service.metrics.restore_replayed._value.get() == 100


def test_rebuild_without_a_snapshot_is_bit_identical(
    tmp_path: Path, small_model: Path, expected: list[tuple[int, float]], caplog: pytest.LogCaptureFixture
) -> None:
    """A snapshot with a flipped bit is refused with its reason, and the topic gives the past again."""
    fake, path = behind(tmp_path, small_model)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    service = serve(settings(tmp_path, small_model), grown(fake, 300))

    assert scores(fake) == expected
    assert service.metrics.restore_replayed._value.get() == 200
    assert f"snapshot refused {path}: damaged or cut" in caplog.text
    assert "rebuilding the past from the topic" in caplog.text


def test_snapshot_ahead_gives_way_to_a_rebuild(tmp_path: Path, small_model: Path) -> None:
    """A group that was set back scores from there on, with the past of that place and none of what came later."""
    fake, _ = behind(tmp_path, small_model)
    fake.group_offsets = {0: 60}
    fake.written.clear()
    serve(settings(tmp_path, small_model), fake)

    other = FakeKafka(VALUES[:200])
    serve(settings(tmp_path / "other", small_model), other)
    assert scores(fake) == scores(other)[60:]


@pytest.mark.parametrize(("first", "starts"), [(100, True), (101, False), (200, False)])
def test_gap_behind_the_snapshot_is_refused(tmp_path: Path, small_model: Path, first: int, starts: bool) -> None:
    """A topic that begins where the snapshot ends is enough; one that begins later needs to be accepted."""
    fake, _ = behind(tmp_path, small_model)
    fake.first = first
    if starts:
        serve(settings(tmp_path, small_model), grown(fake, 300))
        assert len(scores(fake)) == 300
        return
    with pytest.raises(StateError, match=rf"begins at offsets 0:{first}.*missing_history to accept"):
        serve(settings(tmp_path, small_model), fake)
    service = serve(settings(tmp_path, small_model, missing_history="accept"), grown(fake, 300))
    assert [offset for offset, _ in scores(fake)] == list(range(300))
    assert service.metrics.restore_replayed._value.get() == 200 - first


def test_unscored_messages_that_are_gone_are_refused(tmp_path: Path, small_model: Path) -> None:
    """The message says how many are gone; accepted, scoring goes on with the first that is left."""
    fake, _ = behind(tmp_path, small_model)
    grown(fake, 300).first = 220
    with pytest.raises(StateError, match="no longer holds 20 offsets that were never scored"):
        serve(settings(tmp_path, small_model), fake)
    serve(settings(tmp_path, small_model, missing_history="accept"), fake)

    assert [offset for offset, _ in scores(fake)] == [*range(200), *range(220, 300)]


def test_group_without_offsets_beside_a_snapshot_is_refused(tmp_path: Path, small_model: Path) -> None:
    """Everything would be scored once more."""
    fake, path = behind(tmp_path, small_model)
    fake.group_offsets = {}

    with pytest.raises(StateError, match=rf"{path.name}.*newer than the committed offsets.*committed none"):
        serve(settings(tmp_path, small_model), fake)


def test_fresh_state_forgets_the_past(tmp_path: Path, small_model: Path) -> None:
    """Nothing is loaded and nothing replayed."""
    fake, _ = behind(tmp_path, small_model)
    grown(fake, 300)
    service = Service(
        settings(tmp_path, small_model),
        is_fresh=True,
        connect=lambda _settings: fake,  # type: ignore[arg-type,return-value]
    )
    fake.on_empty = service.stop
    service.run()

    assert [offset for offset, _ in scores(fake)] == list(range(300))
    assert service.metrics.restore_replayed._value.get() == 0


def test_broker_that_sends_nothing_ends_the_replay(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay waits for a message that is said to be there, and not without a limit."""
    monkeypatch.setattr(recovery, "SILENCE_SECONDS_MAX", 0.05)
    fake, _ = behind(tmp_path, small_model)
    fake.n_found_max = 0

    with pytest.raises(OutageError, match=r"sent nothing for 0.05 s while the past was replayed"):
        serve_without_stop(settings(tmp_path, small_model), fake)


def serve_without_stop(settings: Settings, fake: FakeKafka) -> None:
    fake.on_empty = lambda: None
    Service(settings, connect=lambda _settings: fake).run()  # type: ignore[arg-type,return-value]


def test_stop_ends_a_replay(tmp_path: Path, small_model: Path) -> None:
    """A stop that comes while the past is replayed ends the process, which has saved and written nothing."""
    fake, path = behind(tmp_path, small_model)
    fake.written.clear()
    fake.n_found_max = 10
    service = Service(settings(tmp_path, small_model), connect=lambda _settings: fake)  # type: ignore[arg-type,return-value]
    polled = fake.poll

    def poll(n_max: int, timeout_s: float) -> list[Message]:
        service.stop()
        return polled(n_max, timeout_s)

    fake.poll = poll  # type: ignore[method-assign]
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    thread.join(20)

    assert not thread.is_alive()
    assert not service.ready.is_set()
    assert (fake.written, snapshot.files(path.parent)) == ([], [path])
