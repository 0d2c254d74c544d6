"""Snapshots of a running service."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from features import transaction
from features.accounts import Accounts
from features.errors import StateError
from service import capture, simulator, snapshot
from service.capture import Snapshots
from service.codec import Decoder
from service.metrics import Metrics
from service.snapshot import Arrays, Stream

STREAM = Stream(cluster="c", topic="t", n_partitions=1)
VALUES = simulator.messages(5, 300)


def packed() -> np.ndarray:
    decode = Decoder(chain_id=1, message_bytes_max=100_000).decode
    return transaction.records([transaction.pack(decode(value)) for value in VALUES])


def make(folder: Path, part: object, every_s: float = 1e-6) -> Snapshots:
    return Snapshots(folder, [part], STREAM, Metrics(), every_s=every_s)  # type: ignore[list-item]


def count(snapshots: Snapshots, outcome: str) -> float:
    return snapshots._metrics.snapshots_total[outcome]._value.get()  # type: ignore[index]


def until_done(snapshots: Snapshots) -> None:
    """Wait until the child is done."""
    pause = threading.Event()
    deadline = time.monotonic() + 30.0
    while snapshots._writing is not None:
        assert time.monotonic() < deadline
        snapshots.is_due({0: -1})
        pause.wait(0.01)


def test_child_writes_the_past_of_the_fork(tmp_path: Path) -> None:
    """What the stream changes while the child writes is not in the snapshot, and the stream's past is whole."""
    stream, accounts, undisturbed = packed(), *(Accounts(accounts_max=1_000, pairs_max=1_000) for _ in range(2))
    accounts.score_rows(stream[:100])
    snapshots = make(tmp_path, accounts)
    assert snapshots.is_due({0: 100})
    snapshots.take({0: 100}, started_s=time.perf_counter())
    rows, _ = accounts.score_rows(stream[100:])
    until_done(snapshots)

    loaded = Accounts(accounts_max=1_000, pairs_max=1_000)
    header = snapshot.load(tmp_path, STREAM, [loaded])
    expected, _ = undisturbed.score_rows(stream)
    assert header is not None
    assert header.offsets == {0: 100}
    assert loaded.score_rows(stream[100:])[0].tobytes() == expected[100:].tobytes() == rows.tobytes()
    assert count(snapshots, "saved") == 1


def test_one_at_a_time_and_none_of_a_past_at_rest(tmp_path: Path) -> None:
    """Nothing is due while a child writes, nor where nothing was read since the last snapshot, nor by a period of 0."""
    accounts = Accounts(accounts_max=64, pairs_max=64)
    snapshots = make(tmp_path, accounts)
    snapshots.take({0: 5}, started_s=time.perf_counter())
    assert not snapshots.is_due({0: 6}) or count(snapshots, "saved") == 1
    until_done(snapshots)

    assert not snapshots.is_due({0: 5})
    assert snapshots.is_due({0: 6})
    assert not make(tmp_path, accounts, every_s=0).is_due({0: 6})


def test_snapshot_that_cannot_be_written_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The stream goes on, the log has the system's reason, and nothing half-written stays."""
    folder = tmp_path / "state"
    folder.mkdir()
    snapshots = make(folder, Accounts(accounts_max=64, pairs_max=64))
    (folder / f"{snapshot.name(1)}").mkdir()
    (folder / snapshot.name(1) / "in the way").touch()
    snapshots.take({0: 1}, started_s=time.perf_counter())
    until_done(snapshots)
    assert count(snapshots, "saved") + count(snapshots, "failed") == 1

    (tmp_path / "file").touch()
    blocked = make(tmp_path / "file" / "state", Accounts(accounts_max=64, pairs_max=64))
    blocked.take({0: 1}, started_s=time.perf_counter())
    until_done(blocked)
    assert count(blocked, "failed") == 1
    assert "snapshot not written" in caplog.text
    assert "Not a directory" in caplog.text


class Hanging:
    """A part of the past that never comes to an end in the child."""

    def arrays(self) -> Arrays:
        threading.Event().wait()
        return {}

    def restore(self, arrays: Arrays) -> None:
        raise AssertionError("nothing is restored")


class Broken(Hanging):
    """A part that fails in a way nobody thought of."""

    def arrays(self) -> Arrays:
        raise RuntimeError("unthought of")


def test_child_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that never answers costs a snapshot, not a process."""
    monkeypatch.setattr(capture, "WRITE_SECONDS_MAX", 0.05)
    snapshots = make(tmp_path, Hanging())
    snapshots.take({0: 1}, started_s=time.perf_counter())
    assert snapshots._writing is not None
    pid = snapshots._writing.pid
    until_done(snapshots)

    assert count(snapshots, "failed") == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_child_that_breaks_does_not_live_on(tmp_path: Path) -> None:
    """Whatever happens in the child, it ends, and the parent counts a failure."""
    snapshots = make(tmp_path, Broken())
    snapshots.take({0: 1}, started_s=time.perf_counter())
    until_done(snapshots)

    assert count(snapshots, "failed") == 1
    assert snapshot.files(tmp_path) == []


def test_save_at_the_end_takes_the_place_of_one_being_written(tmp_path: Path) -> None:
    """A clean stop ends the child, leaves nothing of it, and writes the whole past itself."""
    hanging = make(tmp_path, Hanging())
    hanging.take({0: 1}, started_s=time.perf_counter())
    hanging._parts = [Accounts(accounts_max=64, pairs_max=64)]
    path = hanging.save({0: 9}, [])

    assert list(tmp_path.iterdir()) == [path]
    assert snapshot.read(path).header.offsets == {0: 9}
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="file"):
        make(tmp_path / "file", Accounts(accounts_max=64, pairs_max=64)).save({}, [])
