"""What export writes: the records of the live path, bit for bit, each once, whatever the process dies of."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from features import archive, backfill
from features.errors import InputError
from features.transaction import pack, records
from service import archiver, simulator
from service.archiver import Archiver, Origin
from service.codec import Decoder
from service.pipeline import Message
from tests.unit.test_backfill import ROWS, message

ORIGIN = Origin("cluster", "transactions", "id")
DECODER = Decoder(chain_id=1, message_bytes_max=1 << 20)


def stream(values: list[bytes | None], *, partition: int = 0, start: int = 0) -> list[Message]:
    """Return values as messages of a partition."""
    return [Message(v, b"k%d" % i, "transactions", partition, start + i, 7) for i, v in enumerate(values)]


def opened(folder: Path) -> Archiver:
    return Archiver(folder, origin=ORIGIN, decoder=DECODER)


def offsets(folder: Path, pattern: str = "date=*") -> list[tuple[int, int]]:
    """Return partition and offset of every row, in order."""
    tables = [pq.read_table(file) for file in folder.glob(f"{pattern}/*.parquet")]
    places = [zip(t["source_partition"].to_pylist(), t["source_offset"].to_pylist(), strict=True) for t in tables]
    return sorted(place for part in places for place in part)


@seed(1)
@settings(max_examples=60, deadline=None, database=None)
@given(
    st.lists(st.tuples(ROWS, st.booleans(), st.booleans()), min_size=1, max_size=20),
    st.integers(1, 5),
)
def test_archive_holds_the_live_records(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[dict[str, object], bool, bool]], size: int
) -> None:
    """Messages through an archive are the records that the live path packs of them, the inputs and unknowns too."""
    values = [
        message(row, {"receipt_status"} | ({"method_id"} if has_input else set()), is_token=is_token)
        for row, is_token, has_input in rows
    ]
    folder = tmp_path_factory.mktemp("archive")
    writing = opened(folder)
    for i in range(0, len(values), size):
        writing.add(stream(values[i : i + size], start=i))
        writing.flush({0: i + size})
    writing.close()
    live = records([pack(DECODER.decode(value)) for value in values])
    expected = live[np.argsort(live[:, 7], kind="stable")]

    found = np.concatenate([archive.read_day(day) for day in archive.days(folder)])
    assert found.tobytes() == expected.tobytes()


def test_columns_are_ethereum_etls(tmp_path: Path) -> None:
    """A transaction and a token transfer keep every field, amounts as digits, and say where they came from."""
    tx = {
        "type": "transaction", "hash": "0x" + "AB" * 32, "nonce": 3, "transaction_index": 4, "gas": "0x5208",
        "from_address": "0x" + "1a" * 20, "to_address": None, "value": 2**256 - 1, "gas_price": 2**70,
        "input": "0xa9059cbb" + "00" * 64, "block_timestamp": 1_532_118_564, "block_number": 6_000_000,
        "block_hash": "0x" + "cd" * 32, "receipt_status": 0, "receipt_gas_used": "21000", "chain_id": 5,
        "receipt_contract_address": "0x" + "EF" * 20,
    }  # fmt: skip
    token = {
        "type": "token_transfer", "transaction_hash": "0x" + "ab" * 32, "log_index": 9, "value": "17",
        "from_address": "0x" + "1a" * 20, "to_address": "0x" + "2b" * 20, "token_address": "0x" + "cc" * 20,
        "block_timestamp": 1_532_118_564, "block_number": 6_000_000,
    }  # fmt: skip
    writing = opened(tmp_path)
    writing.add(stream([json.dumps(tx).encode(), json.dumps(token).encode()], partition=2, start=40))
    writing.flush({2: 42})
    writing.close()

    file = tmp_path / "date=2018-07-20" / "part-2-40.parquet"
    assert pq.read_schema(file).remove_metadata() == archiver.SCHEMA
    first, second = pq.read_table(file, partitioning=None).to_pylist()
    source = {"source_topic": "transactions", "source_partition": 2, "source_timestamp_ms": 7}
    assert first == source | {
        "type": "transaction", "hash": "0x" + "ab" * 32, "log_index": None, "chain_id": 5, "nonce": 3, "gas": 21_000,
        "block_number": 6_000_000, "block_hash": "0x" + "cd" * 32, "block_timestamp": 1_532_118_564,
        "transaction_index": 4, "from_address": "0x" + "1a" * 20, "to_address": None, "value": str(2**256 - 1),
        "gas_price": str(2**70), "receipt_status": 0, "receipt_gas_used": 21_000,
        "receipt_contract_address": "0x" + "ef" * 20, "method_id": "0xa9059cbb", "input_bytes": 68,
        "token_address": None, "source_offset": 40,
    }  # fmt: skip
    assert {name: value for name, value in second.items() if value is not None} == source | {
        "type": "token_transfer", "hash": "0x" + "ab" * 32, "log_index": 9, "chain_id": 1, "value": "17",
        "block_number": 6_000_000, "block_timestamp": 1_532_118_564, "from_address": "0x" + "1a" * 20,
        "to_address": "0x" + "2b" * 20, "token_address": "0x" + "cc" * 20, "source_offset": 41,
    }  # fmt: skip
    assert len(list(backfill.batches(file, names=["hash"]))) == 1


@pytest.mark.parametrize(
    ("given", "kept"), [(5, 5), ("5", 5), (-1, None), (2**64, None), (True, None), ("x", None), (1.5, None), ([], None)]
)
def test_gas_used_that_is_no_count_is_unknown(tmp_path: Path, given: object, kept: int | None) -> None:
    """The codec accepts a transaction whatever its receipt says; the archive keeps of it only what is sound."""
    [value] = simulator.messages(3, 1)
    raw = json.dumps(json.loads(value) | {"receipt_gas_used": given}).encode()
    writing = opened(tmp_path)
    writing.add(stream([raw]))
    writing.flush({0: 1})
    writing.close()

    [file] = tmp_path.glob("date=*/*.parquet")
    assert pq.read_table(file, partitioning=None)["receipt_gas_used"].to_pylist() == [kept]


def test_rejected_messages_keep_their_bytes(tmp_path: Path) -> None:
    """What is no transaction lies apart with bytes, key, place and reason, and tombstones are counted."""
    good = simulator.messages(3, 4)
    values = [good[0], b"\xff", None, good[1], b"", b"{}", *good[2:]]
    writing = opened(tmp_path)
    writing.add(stream(values, partition=1))
    writing.flush({1: 8})
    writing.close()

    [file] = tmp_path.glob("rejected/*.parquet")
    assert file.name == "part-1-1.parquet"
    rows = pq.read_table(file).to_pylist()
    assert [(r["source_offset"], r["key"], r["value"], r["reason"]) for r in rows] == [
        (1, b"k1", b"\xff", "not_utf8"),
        (5, b"k5", b"{}", "missing_field"),
    ]
    assert "type is absent" in rows[1]["detail"]
    again = opened(tmp_path)
    again.close()
    done = again.progress
    assert (done.n_transactions, done.n_rejected, done.n_skipped) == (4, 2, 2)
    assert offsets(tmp_path) == [(1, 0), (1, 3), (1, 6), (1, 7)]


def test_death_between_any_two_writes_neither_loses_nor_doubles(tmp_path: Path) -> None:
    """From every state of the folder that a kill may leave, the next run makes the archive of an unbroken one."""
    values = [*simulator.messages(5, 60), b"damaged"]
    states = tmp_path / "states"
    whole = tmp_path / "whole"

    class Dying(Archiver):
        """Keeps a copy of the folder before and after each write, half-written temporary files included."""

        def _write(self, path: Path, table: object) -> None:
            keep(whole, half=path)
            super()._write(path, table)  # type: ignore[arg-type]
            keep(whole)

    def keep(folder: Path, half: Path | None = None) -> None:
        copy = states / str(len(list(states.iterdir()))) if states.exists() else states / "0"
        shutil.copytree(folder, copy)
        if half is not None:
            temporary = copy / half.relative_to(folder).parent / f"{half.name}.tmp"
            temporary.parent.mkdir(exist_ok=True)
            temporary.write_bytes(b"PAR1 half")

    def run(archiver: Archiver, size: int) -> None:
        start = archiver.progress.next.get(0, 0)
        for i in range(start, len(values), size):
            archiver.add(stream(values[i : i + size], start=i))
            archiver.flush({0: min(i + size, len(values))})
        archiver.close()

    run(Dying(whole, origin=ORIGIN, decoder=DECODER), 23)
    expected = [(0, i) for i in range(60)]
    assert offsets(whole) == expected
    assert len(list(states.iterdir())) >= 6

    for state in states.iterdir():
        run(opened(state), 17)
        assert offsets(state) == expected
        assert offsets(state, "rejected") == [(0, 60)]
        assert not list(state.glob("**/*.tmp"))
        done = msgspec.json.decode((state / "offsets.json").read_bytes())
        assert (done["n_transactions"], done["n_rejected"], done["next"]) == (60, 1, {"0": 61})


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    """Another topic, cluster or incarnation of the topic, a damaged file and a second process are told apart."""
    writing = opened(tmp_path)
    with pytest.raises(InputError, match="another process exports to it"):
        opened(tmp_path)
    writing.add(stream(simulator.messages(3, 1)))
    writing.flush({0: 1})
    writing.close()
    for origin, complaint in (
        (Origin("cluster", "others", "id"), "of topic 'transactions', not of 'others'"),
        (Origin("elsewhere", "transactions", "id"), "of cluster 'cluster', not of 'elsewhere'"),
        (Origin("cluster", "transactions", "again"), "of topic_id 'id', not of 'again'"),
    ):
        with pytest.raises(InputError, match=complaint):
            Archiver(tmp_path, origin=origin, decoder=DECODER)
    for content, complaint in (
        ('{"format": 2, "origin": {"cluster": "", "topic": "", "topic_id": ""}, "next": {}}', "format 2, this program"),
        ("{", "damaged"),
    ):
        (tmp_path / "offsets.json").write_text(content)
        with pytest.raises(InputError, match=complaint):
            opened(tmp_path)
    (tmp_path / "offsets.json").unlink()
    with pytest.raises(InputError, match=r"holds an archive without offsets\.json"):
        opened(tmp_path)
    assert offsets(tmp_path) == [(0, 0)]


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file in the folder's place is an input error."""
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="file: "):
        opened(tmp_path / "file")


def test_chunk_is_bounded_by_messages_and_bytes(tmp_path: Path) -> None:
    """Neither many small nor a few large messages pile up."""
    writing = opened(tmp_path)
    writing.add(stream([b"x" * (archiver.CHUNK_BYTES // 4)] * 3))
    assert not writing.is_full
    writing.add(stream([b"x" * (archiver.CHUNK_BYTES // 4)]))
    assert writing.is_full
    writing.flush({0: 4})
    assert not writing.is_full
    writing.add(stream([b"x"] * archiver.CHUNK_RECORDS))
    assert writing.is_full
    writing.close()
