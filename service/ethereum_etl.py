"""Messages as ethereum-etl 2.4 streams them to Kafka: its fields in its order and spacing, integers as numbers."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from features.errors import InputError

REQUIRED_COLUMNS = ("block_number", "block_timestamp", "from_address", "to_address", "value")
HASH_COLUMNS = ("hash", "hash_prefix")
"""Either will do; a prefix is padded with zeros."""

OPTIONAL_COLUMNS = (
    "transaction_index",
    "nonce",
    "gas",
    "gas_price",
    "contract_address",
    "receipt_gas_used",
    "receipt_status",
    "method_id",
    "input_bytes",
)

_UNUSED_RECEIPT = (
    '"receipt_l1_fee": null, "receipt_l1_gas_used": null, "receipt_l1_gas_price": null, "receipt_l1_fee_scalar": null, '
    '"receipt_blob_gas_price": null, "receipt_blob_gas_used": null'
)


def rfc3339(timestamp: int) -> str:
    """Return Unix seconds as ethereum-etl writes `item_timestamp`.

    >>> rfc3339(1_700_000_000)
    '2023-11-14T22:13:20Z'
    """
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def transaction(
    *,
    tx_hash: str,
    nonce: int,
    transaction_index: int,
    from_address: str,
    to_address: str | None,
    value: int,
    gas: int,
    gas_price: int,
    input_hex: str,
    block_timestamp: int,
    block_number: int,
    block_hash: str,
    gas_used: int,
    contract_address: str | None,
    status: int,
    item_timestamp: str,
) -> bytes:
    """Write a `transaction` message of a chain with priority fees.

    A format string instead of a JSON encoder: 2 us a message instead of 6 (2 cores, 2026-11), and the exact spacing.
    """
    to_json = f'"{to_address}"' if to_address is not None else "null"
    contract_json = f'"{contract_address}"' if contract_address is not None else "null"
    return (
        f'{{"type": "transaction", "hash": "{tx_hash}", "nonce": {nonce}, "transaction_index": {transaction_index}, '
        f'"from_address": "{from_address}", "to_address": {to_json}, "value": {value}, "gas": {gas}, '
        f'"gas_price": {gas_price}, "input": "{input_hex}", "block_timestamp": {block_timestamp}, '
        f'"block_number": {block_number}, "block_hash": "{block_hash}", "max_fee_per_gas": {2 * gas_price}, '
        '"max_priority_fee_per_gas": 1000000000, "transaction_type": 2, "max_fee_per_blob_gas": null, '
        f'"blob_versioned_hashes": [], "receipt_cumulative_gas_used": {gas_used * (transaction_index + 1)}, '
        f'"receipt_gas_used": {gas_used}, "receipt_contract_address": {contract_json}, "receipt_root": null, '
        f'"receipt_status": {status}, "receipt_effective_gas_price": {gas_price}, {_UNUSED_RECEIPT}, '
        f'"item_id": "transaction_{tx_hash}", "item_timestamp": "{item_timestamp}"}}'
    ).encode()


def token_transfer(
    *,
    token_address: str,
    from_address: str,
    to_address: str,
    value: int,
    tx_hash: str,
    log_index: int,
    block_timestamp: int,
    block_number: int,
    block_hash: str,
    item_timestamp: str,
) -> bytes:
    """Write a `token_transfer` message: one ERC-20 Transfer event."""
    return (
        f'{{"type": "token_transfer", "token_address": "{token_address}", "from_address": "{from_address}", '
        f'"to_address": "{to_address}", "value": {value}, "transaction_hash": "{tx_hash}", "log_index": {log_index}, '
        f'"block_number": {block_number}, "block_timestamp": {block_timestamp}, "block_hash": "{block_hash}", '
        f'"item_id": "token_transfer_{tx_hash}_{log_index}", "item_timestamp": "{item_timestamp}"}}'
    ).encode()


def from_parquet(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the id and the message of each transaction in a parquet file of real transactions, in the file's order.

    What the file lacks stays null. The hash is known by its first 8 bytes and padded with zeros; of the input its first
    4 bytes and its length are known, so the rest is written as zeros.

    Raises:
        InputError: The file is missing, is no parquet file, or lacks a column.
    """
    import pyarrow as pa  # A third of a second that only this path needs.
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from error
    there = set(file.schema_arrow.names)
    missing = [name for name in REQUIRED_COLUMNS if name not in there]
    if not there.intersection(HASH_COLUMNS):
        missing.append(" or ".join(HASH_COLUMNS))
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}")
    columns = [name for name in (*REQUIRED_COLUMNS, *HASH_COLUMNS, *OPTIONAL_COLUMNS) if name in there]
    for batch in file.iter_batches(batch_size=10_000, columns=columns):
        for row in batch.to_pylist():
            yield _from_row(row)


def _from_row(row: dict[str, Any]) -> tuple[str, bytes]:
    tx_hash = row.get("hash") or "0x" + row["hash_prefix"].hex().ljust(64, "0")
    timestamp = row["block_timestamp"]
    message = {
        "type": "transaction",
        "hash": tx_hash,
        "nonce": row.get("nonce"),
        "transaction_index": row.get("transaction_index"),
        "from_address": row["from_address"],
        # Some exports write a contract's creation as an empty recipient.
        "to_address": row["to_address"] or None,
        "value": int(row["value"]),
        "gas": row.get("gas"),
        "gas_price": row.get("gas_price"),
        "input": _input_hex(row.get("method_id"), row.get("input_bytes")),
        "block_timestamp": timestamp,
        "block_number": row["block_number"],
        "block_hash": None,
        "receipt_gas_used": row.get("receipt_gas_used"),
        "receipt_contract_address": row.get("contract_address"),
        "receipt_status": row.get("receipt_status"),
        "item_id": f"transaction_{tx_hash}",
        "item_timestamp": rfc3339(timestamp),
    }
    return tx_hash, json.dumps(message).encode()


def _input_hex(method_id: str | None, n_bytes: int | None) -> str | None:
    if n_bytes is None:
        return None
    return "0x" + (method_id or "").removeprefix("0x").ljust(2 * n_bytes, "0")
