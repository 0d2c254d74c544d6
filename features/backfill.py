"""Files of past transactions as the records the kernel reads: the same 80 bytes as the live path packs, by column."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.compiled import compiled
from features.errors import InputError
from features.transaction import (
    IS_CREATION,
    IS_FAILED,
    IS_STATUS_KNOWN,
    IS_TOKEN,
    METHOD_NONE,
    METHOD_SHIFT,
    METHOD_UNKNOWN,
    RECORD_WORDS,
    TIMESTAMP_MAX,
    TIMESTAMP_MIN,
    WEI_PER_ETHER,
    method_class,
)

REQUIRED = ("block_timestamp", "from_address", "to_address", "value")
COLUMNS = (*REQUIRED, "receipt_status", "method_id", "input_bytes", "token_address", "type")
"""What a record is made of; only the first four must be there."""

KINDS = ("transaction", "token_transfer")
BATCH_ROWS = 65_536
"""Rows of a file held at once: about 20 MB of columns."""

ADDRESS_LENGTH = 42


class Columns(NamedTuple):
    """A file's transactions in the file's order."""

    records: NDArray[np.uint64]
    """Packed transactions, shape (n, RECORD_WORDS)."""

    table: pa.Table
    """The columns they came from."""


def read(path: Path) -> Columns:
    """Read a parquet file of transactions or token transfers with ethereum-etl's column names.

    Without a `method_id` column the method is unknown, with a null in it there is none; a `token_address` column
    makes the rows token transfers. A column `type` of strings, as an archive has, tells transactions and token
    transfers apart row by row instead, and a null `input_bytes` beside it means that the input is unknown. An address
    of "" is null.

    Raises:
        InputError: The file is missing or damaged, lacks a column, or holds a value that no transaction has.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: cannot be read as parquet: {error}") from error
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}")
    return Columns(pack_table(table, place=str(path)), table)


def batches(path: Path, *, names: Sequence[str] = ()) -> Iterator[tuple[pa.RecordBatch, NDArray[np.uint64]]]:
    """Yield a file's rows as `read` packs them, BATCH_ROWS at a time, so that its size does not matter.

    Args:
        path: Parquet file.
        names: Columns that may identify a row; of those the first that the file has is the first of each batch.

    Raises:
        InputError: As `read`, or the file has none of the names.
    """
    try:
        file = pq.ParquetFile(path)
        present = set(file.schema_arrow.names)
        name = [name for name in names if name in present][:1]
        missing = [column for column in REQUIRED if column not in present]
        if missing or (names and not name):
            raise InputError(f"{path}: no column {', '.join(missing) or ' or '.join(names)}")
        columns = [*name, *(column for column in COLUMNS if column in present)]
        done = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False):
            yield batch, pack_table(pa.Table.from_batches([batch]), place=f"{path} from row {done}")
            done += len(batch)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: cannot be read as parquet: {error}") from error


def pack_table(table: pa.Table, *, place: str) -> NDArray[np.uint64]:
    """Pack a table of transactions, shape (n, RECORD_WORDS); `place` names it in errors."""
    n = table.num_rows
    records = np.zeros((n, RECORD_WORDS), dtype=np.uint64)
    if not n:
        return records
    names = set(table.column_names)
    is_typed = _has_kinds(table)
    is_token = _tokens(table, place) if is_typed else np.full(n, "token_address" in names)

    bad = _parse_addresses(*_strings(table["from_address"]), records, 0)
    to_data, to_offsets = _strings(table["to_address"])
    bad = bad if bad >= 0 else _parse_addresses(to_data, to_offsets, records, 3)
    if bad >= 0:
        row = table.slice(bad, 1).to_pylist()[0]
        raise InputError(
            f"{place}: row {bad} has from_address {row['from_address']!r} and to_address {row['to_address']!r}: "
            "an address is 0x and 40 hex digits"
        )
    is_all_token = not is_typed and bool(is_token[0])
    records.view(np.float64)[:, 6] = np.nan if is_all_token else np.where(is_token, np.nan, _amounts(table, place))

    time = pc.fill_null(_integers(table, "block_timestamp", place), -1).to_numpy()
    outside = np.flatnonzero((time < TIMESTAMP_MIN) | (time > TIMESTAMP_MAX))
    if len(outside):
        found = table["block_timestamp"][int(outside[0])].as_py()
        raise InputError(
            f"{place}: row {outside[0]} has block_timestamp {found}, not {TIMESTAMP_MIN} to {TIMESTAMP_MAX}"
        )
    records[:, 7] = time

    flags = np.where(np.diff(to_offsets) == 0, IS_CREATION, 0)
    flags |= np.where(is_token, IS_TOKEN, 0)
    if "receipt_status" in names:
        status = pc.fill_null(_integers(table, "receipt_status", place), -1).to_numpy()
        flags |= np.where(status >= 0, IS_STATUS_KNOWN, 0) | np.where(status == 0, IS_FAILED, 0)
    lengths = np.full(n, -1)
    if "input_bytes" in names:
        lengths = pc.fill_null(_integers(table, "input_bytes", place), -1).to_numpy()
    methods = _methods(table)
    flags |= (np.where(lengths < 0, METHOD_UNKNOWN, methods) if is_typed else methods) << METHOD_SHIFT
    records[:, 8] = flags
    records.view(np.int64)[:, 9] = lengths
    # Like the live path's records, which stand on bytes: the kernel is compiled once for both.
    records.flags.writeable = False
    return records


def _has_kinds(table: pa.Table) -> bool:
    """Say whether the column `type` tells the kinds of record apart; in other files it is the number of EIP-2718."""
    if "type" not in table.column_names:
        return False
    kind = table.schema.field("type").type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(values) or pa.types.is_large_string(values))


def _tokens(table: pa.Table, place: str) -> NDArray[np.bool_]:
    kinds = pc.fill_null(table["type"].cast(pa.string()), "")
    known = pc.is_in(kinds, pa.array(KINDS))
    if not pc.all(known).as_py():
        bad = pc.index(known, False).as_py()
        raise InputError(f"{place}: row {bad} has type {table['type'][bad].as_py()!r}, not {' or '.join(KINDS)}")
    return np.asarray(pc.equal(kinds, KINDS[1]))


def _integers(table: pa.Table, name: str, place: str) -> pa.ChunkedArray:
    try:
        return table[name].cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{place}: column {name} of type {table[name].type} holds no integers: {error}") from error


def _amounts(table: pa.Table, place: str) -> NDArray[np.float64]:
    value = table["value"]
    if pa.types.is_integer(value.type):
        valid = pc.greater_equal(value, pa.scalar(0, value.type))
    else:
        value = pc.cast(value, pa.string())
        valid = pc.match_substring_regex(value, "^[0-9]{1,78}$")
    valid = pc.fill_null(valid, False)
    if not pc.all(valid).as_py():
        bad = pc.index(valid, False).as_py()
        raise InputError(f"{place}: row {bad} has value {value[bad].as_py()!r}, not a decimal of 1 to 78 digits")
    # Arrow turns decimals and integers into the nearest float64, as Python does an int: bit for bit the live amount.
    # `safe` would refuse integers from 2**53 on, which float64 cannot hold exactly.
    amounts: NDArray[np.float64] = pc.cast(value, pa.float64(), safe=False).to_numpy() / WEI_PER_ETHER
    return amounts


def _methods(table: pa.Table) -> NDArray[np.int64]:
    if "method_id" not in table.column_names:
        return np.full(table.num_rows, METHOD_UNKNOWN, dtype=np.int64)
    encoded = pc.fill_null(table["method_id"], "").combine_chunks().dictionary_encode()
    classes = np.array([method_class(selector) for selector in encoded.dictionary.to_pylist()], dtype=np.int64)
    if not len(classes):
        return np.full(table.num_rows, METHOD_NONE, dtype=np.int64)
    result: NDArray[np.int64] = classes[encoded.indices.to_numpy()]
    return result


def _strings(column: pa.ChunkedArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return a string column's bytes and the n + 1 offsets into them; null is the empty string."""
    array = pc.fill_null(pc.cast(column, pa.large_string()), "").combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], pa.large_string())
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, np.uint8), starts


@compiled
def _digit(byte: Any) -> Any:
    if 48 <= byte <= 57:
        return byte - 48
    if 97 <= byte <= 102:
        return byte - 87
    if 65 <= byte <= 70:
        return byte - 55
    return -1


@compiled
def _parse_addresses(data: Any, offsets: Any, records: Any, word: Any) -> Any:
    """Write addresses into three words of each record; return the first row that holds none, -1 if all do.

    The empty string is allowed in the recipient's place only.
    """
    for row in range(offsets.size - 1):
        start = np.int64(offsets[row])
        length = np.int64(offsets[row + 1]) - start
        if length == 0 and word == 3:
            continue
        if length != ADDRESS_LENGTH or data[start] != 48 or data[start + 1] != 120:
            return row
        for i in range(20):
            high, low = _digit(np.int64(data[start + 2 + 2 * i])), _digit(np.int64(data[start + 3 + 2 * i]))
            if high < 0 or low < 0:
                return row
            records[row, word + i // 8] |= np.uint64(high * 16 + low) << np.uint64(8 * (i % 8))
    return -1


def by_time(*parts: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the order that sorts the concatenated records by time, equal times in the order given."""
    return np.argsort(np.concatenate([part[:, 7] for part in parts]), kind="stable")
