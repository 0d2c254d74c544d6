"""The account state at rest."""

import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest

from features import schema, transaction
from features.accounts import Accounts
from features.errors import StateError
from service import simulator, snapshot
from service.codec import Decoder
from service.snapshot import Array, Arrays, Batch, Header, Stream, Write

VALUES = simulator.messages(5, 200)
STREAM = Stream(cluster="c", topic="t", n_partitions=1)
BATCHES = [
    Batch({0: 5}, {0: 8}, [Write("scores", [(b"a", b"1"), (None, b"2")])]),
    Batch({0: 8}, {0: 10}, [Write("dlq", [(b"b", b"\xff")], [[("reason", b"not_utf8")]])]),
]


def make_accounts(**limits: int) -> Accounts:
    return Accounts(**{"accounts_max": 64, "pairs_max": 64} | limits)


def packed() -> np.ndarray:
    decode = Decoder(chain_id=1, message_bytes_max=100_000).decode
    return transaction.records([transaction.pack(decode(value)) for value in VALUES])


def save(folder: Path, accounts: Accounts, offsets: dict[int, int] | None = None, **changes: object) -> Path:
    header = snapshot.header_of(STREAM, offsets=offsets or {}, unsettled=BATCHES)
    path = snapshot.next_path(folder)
    snapshot.save(path, msgspec.structs.replace(header, **changes), [accounts])
    return path


class Journal:
    """A part of the past beside the accounts, of another size each time."""

    def __init__(self, *words: int) -> None:
        self.words = np.array(words, dtype=np.uint64)

    def arrays(self) -> Arrays:
        return {"journal": self.words, "journal_none": np.zeros((0, 3), dtype=np.int64)}

    def restore(self, arrays: Arrays) -> None:
        self.words = np.array(arrays["journal"])


def test_saved_past_continues_bit_identically(tmp_path: Path) -> None:
    """A table that was saved and loaded in mid-stream emits the rows of one that never was."""
    stream = packed()
    through, before, after = make_accounts(), make_accounts(), make_accounts()
    expected, _ = through.score_rows(stream)
    before.score_rows(stream[:90])

    save(tmp_path, before, {0: 90, 3: 7})
    header = snapshot.load(tmp_path, STREAM, [after])
    rows, _ = after.score_rows(stream[90:])

    assert header is not None
    assert (header.offsets, header.unsettled) == ({0: 90, 3: 7}, BATCHES)
    assert rows.tobytes() == expected[90:].tobytes()


def test_parts_beside_the_accounts_are_saved(tmp_path: Path) -> None:
    """Whatever arrays the parts of the past name come back, empty ones too."""
    header = snapshot.header_of(STREAM, offsets={0: 1}, unsettled=[])
    snapshot.save(snapshot.next_path(tmp_path), header, [make_accounts(), Journal(1, 2, 2**63)])

    other = Journal()
    snapshot.load(tmp_path, STREAM, [make_accounts(), other])

    assert other.words.tolist() == [1, 2, 2**63]
    assert snapshot.read(snapshot.files(tmp_path)[0]).arrays["journal_none"].shape == (0, 3)


def test_nothing_saved_is_no_state(tmp_path: Path) -> None:
    """A folder that is missing or empty holds no state."""
    assert snapshot.load(tmp_path / "none", STREAM, [make_accounts()]) is None
    assert snapshot.load(tmp_path, STREAM, [make_accounts()]) is None


def test_two_snapshots_are_kept(tmp_path: Path) -> None:
    """The newest two stay, and neither what a kill left unfinished nor a third; a foreign one is nobody's to remove."""
    foreign = msgspec.structs.replace(STREAM, topic="u")
    save(tmp_path, make_accounts(), {0: 1}, stream=foreign)
    (tmp_path / "state-000000000001.snapshot.17.tmp").write_text("cut")
    for offset in (2, 3, 4):
        save(tmp_path, make_accounts(), {0: offset})

    assert [path.name for path in sorted(tmp_path.iterdir())] == [snapshot.name(i) for i in (1, 3, 4)]
    header = snapshot.load(tmp_path, STREAM, [make_accounts()])
    assert header is not None
    assert header.offsets == {0: 4}


def test_damaged_newest_leaves_the_older(tmp_path: Path) -> None:
    """The older one is loaded where the newest is damaged."""
    save(tmp_path, make_accounts(), {0: 1})
    newest = save(tmp_path, make_accounts(), {0: 2})
    newest.write_bytes(newest.read_bytes()[:-1])

    header = snapshot.load(tmp_path, STREAM, [make_accounts()])

    assert header is not None
    assert header.offsets == {0: 1}


def test_save_that_cannot_be_written_names_the_place(tmp_path: Path) -> None:
    """A folder that cannot be made is told by its path."""
    blocked = tmp_path / "file"
    blocked.write_text("")

    with pytest.raises(StateError, match="file"):
        snapshot.save(blocked / "s" / snapshot.name(1), snapshot.header_of(STREAM, offsets={}, unsettled=[]), [])


def test_any_flipped_bit_is_refused(tmp_path: Path) -> None:
    """One bit anywhere, in preface, header, padding, arrays or digest, makes the whole file refused."""
    accounts = make_accounts()
    accounts.score_rows(packed()[:20])
    path = save(tmp_path, accounts)
    whole = path.read_bytes()

    rng = np.random.default_rng(3)
    places = {*range(64), *range(len(whole) - 40, len(whole)), *rng.integers(0, len(whole), 300).tolist()}
    for place in sorted(places):
        content = bytearray(whole)
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        with pytest.raises(StateError, match=path.name):
            snapshot.read(path)
    path.write_bytes(whole)
    assert snapshot.read(path).header.offsets == {}


@pytest.mark.parametrize("size", [0, 1, 20, 52, 100, 2_000, -33, -32, -1])
def test_cut_file_is_refused(tmp_path: Path, size: int) -> None:
    """A file that ends early is an error that names it."""
    path = save(tmp_path, make_accounts())
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(StateError, match=path.name):
        snapshot.read(path)


def signed(content: bytes) -> bytes:
    """Return content with its right digest, as somebody would write who means harm."""
    return content + snapshot.hashlib.blake2b(content, digest_size=32).digest()


def crafted(header: bytes, body: bytes = b"") -> bytes:
    start = struct.pack("<8sIQ", b"FALCONET", snapshot.FORMAT, len(header)) + header
    return signed(start + bytes(-len(start) % 64) + body)


def encoded(*arrays: Array) -> bytes:
    header = Header(schema=schema.FINGERPRINT, stream=STREAM, offsets={}, unsettled=[], saved_at_s=0.0)
    return msgspec.msgpack.encode(msgspec.structs.replace(header, arrays=list(arrays)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (crafted(b"\x80"), "schema"),
        (crafted(b"\xc1"), "damaged"),
        (crafted(msgspec.msgpack.encode({"schema": 3})), "damaged"),
        (crafted(encoded(Array("accounts", "|O", (1,))), bytes(64)), "is of '|O'"),
        (crafted(encoded(Array("accounts", "<f4,<f4", (1,))), bytes(64)), "is of"),
        (crafted(encoded(Array("accounts", "<f4", (-1, 4))), bytes(64)), "shape"),
        (crafted(encoded(Array("accounts", "<f4", (2**40, 2**40)))), "does not fit"),
        (crafted(encoded(Array("a", "<f4", (1,)), Array("a", "<f4", (1,))), bytes(128)), "is of"),
        (crafted(encoded(), bytes(64)), "belong to no array"),
        (signed(struct.pack("<8sIQ", b"FALCONET", 1, 0) + bytes(64)), "format 1"),
        (signed(struct.pack("<8sIQ", b"FALCONET", snapshot.FORMAT, 2**63) + bytes(64)), "damaged"),
        (b"PK\x03\x04" + bytes(200), "not a snapshot"),
    ],
)
def test_crafted_file_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    """A file with a right digest and a wrong content allocates nothing and is refused."""
    path = tmp_path / snapshot.name(1)
    path.write_bytes(content)

    with pytest.raises(StateError, match=complaint.replace("|", r"\|")):
        snapshot.read(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": "other"}, "feature schema other, this program has"),
        ({"stream": Stream(cluster="c", topic="u", n_partitions=1)}, "the past of topic 'u', this is 't'"),
        ({"stream": Stream(cluster="d", topic="t", n_partitions=1)}, "Kafka cluster 'd', this is 'c'"),
        ({"stream": Stream(cluster="c", topic="t", n_partitions=2)}, "of 2 partitions, topic 't' has 1"),
    ],
)
def test_past_of_another_stream_is_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    """A past continues only with its schema, on its cluster, topic and partitions."""
    save(tmp_path, make_accounts(), **change)

    with pytest.raises(StateError, match=complaint):
        snapshot.load(tmp_path, STREAM, [make_accounts()])


def test_past_of_another_size_is_refused(tmp_path: Path) -> None:
    """A past continues only in a table of its own size."""
    save(tmp_path, make_accounts())

    with pytest.raises(StateError, match="pairs_max"):
        snapshot.load(tmp_path, STREAM, [make_accounts(pairs_max=2_000)])
