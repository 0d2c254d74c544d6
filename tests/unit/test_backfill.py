"""Files of past transactions: the same records, bit for bit, as the same transactions get live."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from features import backfill
from features.accounts import Accounts
from features.errors import InputError
from features.transaction import (
    IS_TOKEN,
    METHOD_CLASSES,
    RECORD_WORDS,
    TIMESTAMP_MAX,
    TIMESTAMP_MIN,
    pack,
    records,
)
from service.codec import Decoder

T = 1_500_000_000
ONE, OTHER, TOKEN = ("0x" + byte * 20 for byte in ("1a", "f0", "cc"))
decode = Decoder(chain_id=1, message_bytes_max=1 << 20).decode

EDGES = (0, 1, 2**53 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, 10**18 + 1, 2**255, 2**256 - 1)
VALUES = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**256 - 1), st.integers(0, 10**22))
ADDRESSES = st.one_of(st.sampled_from((ONE, OTHER)), st.binary(min_size=20, max_size=20).map(lambda b: "0x" + b.hex()))
METHODS = st.one_of(st.none(), st.sampled_from([*METHOD_CLASSES, "0x12345678"]))
ROWS = st.fixed_dictionaries(
    {
        "block_timestamp": st.one_of(st.integers(T, T + 90 * 86_400), st.sampled_from((TIMESTAMP_MIN, TIMESTAMP_MAX))),
        "from_address": ADDRESSES,
        "to_address": ADDRESSES | st.none(),
        "value": VALUES,
        "receipt_status": st.sampled_from((None, 0, 1)),
        "method_id": METHODS,
        "input_bytes": st.integers(0, 300),
    }
)


def message(row: dict[str, object], columns: set[str], *, is_token: bool) -> bytes:
    """Return a row of a file as the message that a live service gets of it."""
    common = {name: row[name] for name in ("block_timestamp", "from_address", "to_address")}
    common |= {"value": str(row["value"]), "block_number": 1}
    if is_token:
        common |= {"type": "token_transfer", "transaction_hash": "0x" + "ab" * 32, "log_index": 7}
        return json.dumps(common | {"token_address": TOKEN, "to_address": row["to_address"] or OTHER}).encode()
    common |= {"type": "transaction", "hash": "0x" + "ab" * 32}
    if "receipt_status" in columns and row["receipt_status"] is not None:
        common["receipt_status"] = row["receipt_status"]
    if "method_id" in columns:
        method = str(row["method_id"] or "0x")
        common["input"] = method + "00" * (input_bytes(row) - (len(method) - 2) // 2)
    return json.dumps(common).encode()


def input_bytes(row: dict[str, object]) -> int:
    """Return the length of an input that fits the method: less than a selector without, at least one with."""
    drawn = row["input_bytes"]
    assert isinstance(drawn, int)
    return drawn % 4 if row["method_id"] is None else 4 + drawn


def columns_of(rows: list[dict[str, object]], names: set[str], *, is_token: bool) -> pa.Table:
    """Return the same rows as a file holds them."""
    arrays: dict[str, object] = {
        "block_timestamp": pa.array([row["block_timestamp"] for row in rows], pa.int64()),
        "from_address": pa.array([row["from_address"] for row in rows], pa.string()).dictionary_encode(),
        "to_address": pa.array([row["to_address"] or (OTHER if is_token else None) for row in rows], pa.string()),
        "value": pa.array([str(row["value"]) for row in rows], pa.string()),
    }
    if is_token:
        return pa.table(arrays | {"token_address": pa.array([TOKEN] * len(rows), pa.string())})
    if "receipt_status" in names:
        arrays["receipt_status"] = pa.array([row["receipt_status"] for row in rows], pa.int8())
    if "method_id" in names:
        arrays["method_id"] = pa.array([row["method_id"] for row in rows], pa.string())
        arrays["input_bytes"] = pa.array([input_bytes(row) for row in rows], pa.int32())
    return pa.table(arrays)


def scored(packed: np.ndarray, size: int) -> bytes:
    """Return every bit of the rows that a small table gives in batches of a size."""
    accounts = Accounts(accounts_max=64, pairs_max=64)
    parts = [accounts.score_rows(packed[i : i + size])[0] for i in range(0, len(packed), size)]
    return np.concatenate(parts).tobytes()


@seed(1)
@settings(max_examples=150, deadline=None, database=None)
@given(
    st.lists(ROWS, min_size=1, max_size=40), st.sets(st.sampled_from(("receipt_status", "method_id"))), st.booleans()
)
def test_live_and_backfill_records_and_rows_are_the_same_bits(
    rows: list[dict[str, object]], columns: set[str], is_token: bool
):
    """JSON messages through the codec and the same values as a file's columns give the same records and rows."""
    live = records([pack(decode(message(row, columns, is_token=is_token))) for row in rows])
    table = columns_of(rows, columns, is_token=is_token)
    packed = backfill.pack_table(table, place="drawn")

    assert live.tobytes() == packed.tobytes()
    assert scored(live, 1) == scored(packed, len(packed))


@pytest.mark.parametrize("name", ["transactions", "token_transfers", "background_blocks"])
def test_real_transactions_are_the_same_bits_live(data: Path, name: str):
    """20,000 rows of each real file, written as messages, give the records and rows that the file itself gives."""
    file = pq.ParquetFile(data / f"{name}.parquet")
    table = pa.Table.from_batches([next(file.iter_batches(batch_size=20_000))])
    packed = backfill.pack_table(table, place=name)
    is_token = name == "token_transfers"
    messages = []
    for row in table.to_pylist():
        method, n_bytes = row.get("method_id"), row.get("input_bytes")
        fields = {key: row[key] for key in ("block_timestamp", "from_address", "value", "block_number")}
        fields |= {"to_address": row["to_address"] or None}
        if is_token:
            fields |= {"type": "token_transfer", "transaction_hash": "0x" + "00" * 32, "log_index": 0}
            fields["token_address"] = row["token_address"]
        else:
            fields |= {"type": "transaction", "hash": "0x" + "00" * 32}
            if row.get("receipt_status") is not None:
                fields["receipt_status"] = int(row["receipt_status"])
            if n_bytes is not None:
                fields["input"] = (method or "0x") + "00" * (int(n_bytes) - (len(method or "0x") - 2) // 2)
        messages.append(json.dumps(fields).encode())
    live = records([pack(decode(raw)) for raw in messages])

    np.testing.assert_array_equal(live, packed)
    assert scored(live, 333) == scored(packed, len(packed))


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.int64(), pa.uint64(), pa.decimal128(38, 0), pa.decimal256(76, 0)],
)
def test_value_column_may_have_any_exact_type(kind: pa.DataType):
    """Wei as decimal strings, integers or decimals give the same amount: the nearest float64, then ether."""
    values = [0, 1, 2**53 + 1, 2**62 + 1, 10**18 + 1, 2**63 - 1]
    table = plain(len(values), value=pa.array([str(v) for v in values]).cast(kind))

    amounts = backfill.pack_table(table, place="x").view(np.float64)[:, 6]
    assert amounts.tolist() == [float(v) / 1e18 for v in values]


def plain(n: int = 1, **columns: pa.Array) -> pa.Table:
    """Return a table of n payments with some columns of its own."""
    known = {
        "block_timestamp": pa.array([T] * n, pa.int64()),
        "from_address": pa.array([ONE] * n),
        "to_address": pa.array([OTHER] * n),
        "value": pa.array(["1"] * n),
    }
    return pa.table(known | columns)


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"value": pa.array(["1", "-5"])}, "row 1 has value '-5', not a decimal"),
        ({"value": pa.array(["1", "1.5"])}, "row 1 has value '1.5', not a decimal"),
        ({"value": pa.array(["1", None])}, "row 1 has value None, not a decimal"),
        ({"value": pa.array(["1", "9" * 79])}, "row 1 has value '9+', not a decimal"),
        ({"value": pa.array([1, -5])}, "row 1 has value -5, not a decimal"),
        ({"value": pa.array([1, None], pa.int64())}, "row 1 has value None, not a decimal"),
        ({"value": pa.array([1.0, 1.5e18])}, r"row 1 has value '1.5e\+18', not a decimal"),
        ({"block_timestamp": pa.array([T, TIMESTAMP_MIN - 1])}, f"row 1 has block_timestamp {TIMESTAMP_MIN - 1}, not"),
        ({"block_timestamp": pa.array([T, TIMESTAMP_MAX + 1])}, f"row 1 has block_timestamp {TIMESTAMP_MAX + 1}, not"),
        ({"block_timestamp": pa.array([T, None])}, "row 1 has block_timestamp None, not"),
        ({"block_timestamp": pa.array(["1500000000", "soon"])}, "column block_timestamp of type string holds no int"),
        ({"receipt_status": pa.array(["1", "ok"])}, "column receipt_status of type string holds no integers"),
        ({"input_bytes": pa.array([[1], [2]])}, "column input_bytes of type list<.*> holds no integers"),
        ({"from_address": pa.array([ONE, None])}, "row 1 has from_address None and"),
        ({"from_address": pa.array([ONE, ""])}, "row 1 has from_address '' and"),
        ({"from_address": pa.array([ONE, ONE[:-1]])}, "row 1 has from_address '0x1a1a.*: an address is 0x and 40 hex"),
        ({"from_address": pa.array([ONE, ONE[:-1] + "g"])}, "row 1 has from_address"),
        ({"from_address": pa.array([ONE, ONE[2:] + "1a"])}, "row 1 has from_address"),
        ({"to_address": pa.array([OTHER, OTHER[:-2] + "é"])}, "row 1 has .* to_address '0xf0f0.*é'"),
        ({"to_address": pa.array([7, 8])}, "row 0 has .* to_address 7"),
    ],
)
def test_value_that_no_transaction_has_is_refused_by_row(columns: dict[str, pa.Array], complaint: str):
    """What cannot be a transaction is an error with place, row and value, never a zero or a NaN."""
    with pytest.raises(InputError, match=f"^file.parquet: {complaint}"):
        backfill.pack_table(plain(2, **columns), place="file.parquet")


def test_file_that_is_no_table_of_transactions_is_refused(tmp_path: Path):
    """A missing file, foreign bytes and a missing column are errors that name the file."""
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(plain().drop_columns(["value", "to_address"]), tmp_path / "short.parquet")

    for name, complaint in (
        ("none.parquet", "cannot be read as parquet"),
        ("text.parquet", "cannot be read as parquet"),
        ("short.parquet", "no column to_address, value"),
    ):
        with pytest.raises(InputError, match=f"{name}: {complaint}"):
            backfill.read(tmp_path / name)


def test_read_keeps_the_columns_in_the_files_order(tmp_path: Path):
    """A file becomes its records, and the table stays at hand for what the kernel does not read."""
    table = plain(3, value=pa.array(["3", "1", "2"]), hash_prefix=pa.array([b"a", b"b", b"c"]))
    pq.write_table(table, tmp_path / "past.parquet")
    packed, kept = backfill.read(tmp_path / "past.parquet")

    assert packed.view(np.float64)[:, 6].tolist() == [3e-18, 1e-18, 2e-18]
    assert kept["hash_prefix"].to_pylist() == [b"a", b"b", b"c"]
    assert not packed.flags.writeable


def test_slices_and_chunks_pack_like_the_whole():
    """Arrow's offsets and chunks do not show: parts of a table give the parts of its records."""
    n = 50
    addresses = pa.array([f"0x{i:040x}" if i % 7 else None for i in range(n)])
    table = plain(n, to_address=addresses, value=pa.array([str(10**i) for i in range(n)]))
    whole = backfill.pack_table(table, place="x")
    chunked = pa.concat_tables([table.slice(0, 13), table.slice(13, 0), table.slice(13, 1), table.slice(14)])

    assert backfill.pack_table(chunked, place="x").tobytes() == whole.tobytes()
    assert backfill.pack_table(table.slice(11, 22), place="x").tobytes() == whole[11:33].tobytes()
    assert backfill.pack_table(table.slice(0, 0), place="x").shape == (0, RECORD_WORDS)


def test_upper_case_and_empty_addresses_are_read():
    """Checksum spelling is the same address, and a recipient of "" is none, as some exports write it."""
    table = plain(2, from_address=pa.array([ONE.upper().replace("X", "x"), ONE]), to_address=pa.array(["", OTHER]))
    packed = backfill.pack_table(table, place="x")

    assert packed[0, :3].tolist() == packed[1, :3].tolist()
    assert packed[:, 8].tolist() == [2, 0]


def test_token_transfers_have_no_amount_in_ether():
    """A file with token addresses holds token transfers, whose values are not even looked at."""
    table = plain(1, token_address=pa.array([TOKEN]), value=pa.array(["12"]))
    packed = backfill.pack_table(table, place="x")

    assert np.isnan(packed.view(np.float64)[0, 6])
    assert packed[0, 8] == IS_TOKEN


def test_order_by_time_keeps_equal_times_as_given():
    """Parts are joined and sorted by time; of equal times the earlier part and row comes first."""
    one, other = (np.zeros((n, RECORD_WORDS), np.uint64) for n in (3, 2))
    one[:, 7] = [5, 3, 5]
    other[:, 7] = [3, 1]

    assert backfill.by_time(one, other).tolist() == [4, 1, 3, 0, 2]
