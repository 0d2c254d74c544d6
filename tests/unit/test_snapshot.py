"""The account state at rest."""

from pathlib import Path

import numpy as np
import pytest

from features import transaction
from features.accounts import Accounts
from features.errors import StateError
from service import simulator, snapshot
from service.codec import Decoder
from service.snapshot import Batch, Header, Write

VALUES = simulator.messages(5, 200)
BATCHES = [
    Batch({0: 5}, {0: 8}, [Write("scores", [(b"a", b"1"), (None, b"2")])]),
    Batch({0: 8}, {0: 10}, [Write("dlq", [(b"b", b"\xff")], [[("reason", b"not_utf8")]])]),
]


def make_accounts(**limits: int) -> Accounts:
    return Accounts(**{"accounts_max": 1_000, "pairs_max": 1_000} | limits)


def packed() -> np.ndarray:
    decode = Decoder(chain_id=1, message_bytes_max=100_000).decode
    return transaction.records([transaction.pack(decode(value)) for value in VALUES])


def test_saved_past_continues_bit_identically(tmp_path: Path) -> None:
    """A table that was saved and loaded in mid-stream emits the rows of one that never was."""
    stream = packed()
    through, before, after = make_accounts(), make_accounts(), make_accounts()
    expected, _ = through.score_rows(stream)
    before.score_rows(stream[:90])

    snapshot.save(tmp_path, before, topic="t", offsets={0: 90, 3: 7}, unsettled=BATCHES)
    header = snapshot.load(tmp_path, after, topic="t")
    rows, _ = after.score_rows(stream[90:])

    assert header is not None
    assert (header.offsets, header.unsettled) == ({0: 90, 3: 7}, BATCHES)
    assert rows.tobytes() == expected[90:].tobytes()


def test_nothing_saved_is_no_state(tmp_path: Path) -> None:
    """A folder that is missing or empty holds no state, and the table stays as it is."""
    assert snapshot.load(tmp_path / "none", make_accounts(), topic="t") is None
    assert snapshot.saved_at(tmp_path) is None


def test_save_replaces_the_whole_file(tmp_path: Path) -> None:
    """After a second save only its file is there."""
    accounts = make_accounts()
    snapshot.save(tmp_path, accounts, topic="t", offsets={0: 1}, unsettled=[])

    snapshot.save(tmp_path, accounts, topic="t", offsets={0: 2}, unsettled=[])

    assert [path.name for path in tmp_path.iterdir()] == [snapshot.STATE_FILE]
    header = snapshot.load(tmp_path, make_accounts(), topic="t")
    assert header is not None
    assert header.offsets == {0: 2}


def test_save_that_cannot_be_written_names_the_place(tmp_path: Path) -> None:
    """A folder that cannot be made is told by its path."""
    blocked = tmp_path / "file"
    blocked.write_text("")

    with pytest.raises(StateError, match="file"):
        snapshot.save(blocked / "state", make_accounts(), topic="t", offsets={}, unsettled=[])


@pytest.mark.parametrize("place", [0.05, 0.3, 0.6, 0.9])
def test_damaged_file_is_refused(tmp_path: Path, place: float) -> None:
    """A changed byte in any array is an error that names the file."""
    path = snapshot.save(tmp_path, make_accounts(), topic="t", offsets={}, unsettled=[])
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x55
    path.write_bytes(content)

    with pytest.raises(StateError, match=snapshot.STATE_FILE):
        snapshot.load(tmp_path, make_accounts(), topic="t")


def test_cut_file_is_refused(tmp_path: Path) -> None:
    """A file that ends early is an error that names it."""
    path = snapshot.save(tmp_path, make_accounts(), topic="t", offsets={}, unsettled=[])
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(StateError, match="damaged"):
        snapshot.load(tmp_path, make_accounts(), topic="t")


def test_state_of_another_topic_or_size_is_refused(tmp_path: Path) -> None:
    """A past continues only on its own topic and in a table of its own size."""
    snapshot.save(tmp_path, make_accounts(), topic="t", offsets={}, unsettled=[])

    with pytest.raises(StateError, match="topic 't', transactions_topic is 'u'"):
        snapshot.load(tmp_path, make_accounts(), topic="u")
    with pytest.raises(StateError, match="pairs_max"):
        snapshot.load(tmp_path, make_accounts(pairs_max=2_000), topic="t")


def header(offsets: dict[int, int], unsettled: list[Batch]) -> Header:
    return Header(format=1, schema="s", topic="t", offsets=offsets, unsettled=unsettled)


def test_settle_finds_what_is_not_committed() -> None:
    """The group's offsets tell which of the saved batches were committed after all."""
    saved = header({0: 10}, BATCHES)

    assert snapshot.settle(saved, {0: 5}) == BATCHES
    assert snapshot.settle(saved, {0: 8}) == BATCHES[1:]
    assert snapshot.settle(saved, {0: 10}) == []


@pytest.mark.parametrize("committed", [{}, {0: 4}, {0: 11}, {0: 10, 1: 1}])
def test_offsets_that_do_not_meet_the_state_are_refused(committed: dict[int, int]) -> None:
    """An operator reads both offsets and the way out."""
    with pytest.raises(StateError, match=r"ends at offsets 0:10 .* --fresh-state"):
        snapshot.settle(header({0: 10}, BATCHES), committed)
