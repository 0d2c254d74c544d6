"""The folder that `export` writes: files by day, rejected messages apart, and the offsets up to which it is whole.

A chunk's files are written first, each under a name of its own until it is whole, then `offsets.json` replaces the one
before. Its offsets are where each partition goes on: a file whose name begins at or after them was written by a run
that died before it got that far, and is removed at the next start. So a kill at any instant neither loses nor doubles.
"""

import contextlib
import fcntl
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from features import archive, durable
from features.errors import InputError, RejectedError
from features.table import DAY_S
from features.transaction import Transaction
from service.codec import UINT64_MAX, Decoder
from service.pipeline import Message

FORMAT = 1
OFFSETS_FILE = "offsets.json"
LOCK_FILE = ".lock"
REJECTED = "rejected"

CHUNK_RECORDS = 50_000
"""Messages held before they are written: 60 MB of them decoded."""

CHUNK_BYTES = 64 * 1024 * 1024
"""Bytes of messages after which a chunk is written, however few they are."""

_PART = re.compile(r"part-([0-9]+)-([0-9]+)\.parquet").fullmatch

COLUMNS = (
    ("type", pa.string(), "`transaction` or `token_transfer`."),
    ("hash", pa.string(), "Of the transaction, for a token transfer too."),
    ("log_index", pa.uint64(), "Of a token transfer in its block."),
    ("chain_id", pa.uint64(), "The message's, else the setting's."),
    ("block_number", pa.uint64(), ""),
    ("block_hash", pa.string(), ""),
    ("block_timestamp", pa.int64(), "Unix seconds; names the folder."),
    ("transaction_index", pa.uint64(), ""),
    ("nonce", pa.uint64(), ""),
    ("from_address", pa.string(), ""),
    ("to_address", pa.string(), "Null: the transaction creates a contract."),
    ("value", pa.string(), "Decimal digits of wei, or of the token's smallest unit."),
    ("gas", pa.uint64(), ""),
    ("gas_price", pa.string(), "Decimal digits of wei."),
    ("receipt_status", pa.int8(), "1 success, 0 failed."),
    ("receipt_gas_used", pa.uint64(), ""),
    ("receipt_contract_address", pa.string(), ""),
    ("method_id", pa.string(), "First 4 bytes of the input; null where it is shorter."),
    ("input_bytes", pa.int64(), "Length of the input; null where the message has none."),
    ("token_address", pa.string(), "Of a token transfer."),
    ("source_topic", pa.string(), ""),
    ("source_partition", pa.int32(), ""),
    ("source_offset", pa.int64(), ""),
    ("source_timestamp_ms", pa.int64(), "Kafka's time of the record."),
)
"""Name, type and meaning in an archive, after ethereum-etl; wei are digits, because 64 bits do not hold them."""

SCHEMA = pa.schema([column[:2] for column in COLUMNS])

REJECTED_SCHEMA = pa.schema([
    ("source_topic", pa.string()),
    ("source_partition", pa.int32()),
    ("source_offset", pa.int64()),
    ("source_timestamp_ms", pa.int64()),
    ("key", pa.binary()),
    ("value", pa.binary()),
    ("reason", pa.string()),
    ("detail", pa.string()),
])  # fmt: skip

# Hashes and amounts repeat nothing: a dictionary of them would only cost time.
_REPEATED = ["type", "from_address", "to_address", "token_address", "method_id", "source_topic", "reason"]

Row = tuple[Any, ...]


class Origin(Struct, frozen=True):
    """Where an archive comes from."""

    cluster: str
    topic: str
    topic_id: str
    """Differs when a topic was deleted and created again."""


class Progress(Struct, frozen=True, forbid_unknown_fields=True):
    """What `offsets.json` holds: how far the archive is whole, and what is in it."""

    format: int
    origin: Origin
    next: dict[int, int]
    """By partition, the offset that the next run begins with."""
    n_transactions: int = 0
    n_rejected: int = 0
    n_skipped: int = 0
    """Tombstones: records without a value, which hold no transaction."""


class _Receipt(Struct, frozen=True, gc=False):
    """What an archive keeps of a message beyond the transaction; ethereum-etl's names."""

    receipt_gas_used: Any = None
    receipt_contract_address: Any = None


class Rejected(NamedTuple):
    """A message that is no transaction."""

    message: Message
    reason: str
    detail: str


class Archiver:
    """An archive that is being written; one process at a time."""

    def __init__(self, folder: Path, *, origin: Origin, decoder: Decoder) -> None:
        """Open an archive, or make one, and remove what an earlier run left unfinished.

        Args:
            folder: New, empty, or what an earlier run made of the same topic.
            origin: Where the messages come from.
            decoder: Of the messages.

        Raises:
            InputError: The folder holds another topic's archive, a foreign or a damaged one, or is being written to.
        """
        self._folder = folder
        self._decoder = decoder
        self._rows: dict[tuple[int, int], list[Row]] = defaultdict(list)
        self._rejected: dict[int, list[Rejected]] = defaultdict(list)
        self._n_bytes = self._n_held = self._n_skipped = 0
        with self._named_errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK_FILE).open("wb")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._lock.close()
                raise InputError(f"{folder}: another process exports to it") from error
            try:
                self.progress = self._resume(origin)
            except BaseException:
                self._lock.close()
                raise

    def _resume(self, origin: Origin) -> Progress:
        path = self._folder / OFFSETS_FILE
        if not path.exists():
            if archive.is_archive(self._folder):
                raise InputError(f"{self._folder}: holds an archive without {OFFSETS_FILE}; give an empty folder")
            # Ahead of the first file, so that a folder with files and no offsets is never ours.
            self._write_progress(Progress(FORMAT, origin, {}))
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Progress)
        except msgspec.DecodeError as error:
            raise InputError(f"{path}: damaged: {error}") from error
        if found.format != FORMAT:
            raise InputError(f"{path}: format {found.format}, this program reads {FORMAT}")
        for name in ("topic", "cluster", "topic_id"):
            theirs, ours = getattr(found.origin, name), getattr(origin, name)
            if theirs != ours:
                raise InputError(f"{path}: the archive is of {name} {theirs!r}, not of {ours!r}; give another folder")
        self._repair(found)
        return found

    def _repair(self, progress: Progress) -> None:
        """Remove what was written after the offsets, and files that are not whole."""
        for home in (*self._folder.glob("date=*"), self._folder / REJECTED):
            for path in home.glob("part-*"):
                match = _PART(path.name)
                if match is None and path.suffix != durable.SUFFIX:
                    continue
                if match is None or int(match[2]) >= progress.next.get(int(match[1]), 0):
                    path.unlink()

    def add(self, messages: Sequence[Message]) -> None:
        """Take messages in the order of each partition; nothing is written yet."""
        for message in messages:
            # An empty value is no transaction either; the service skips both.
            if not message.value:
                self._n_skipped += 1
                continue
            try:
                tx = self._decoder.decode(message.value)
            except RejectedError as error:
                self._rejected[message.partition].append(Rejected(message, error.reason, error.detail))
            else:
                day = tx.block_timestamp - tx.block_timestamp % DAY_S
                self._rows[message.partition, day].append(_row(tx, message))
            self._n_held += 1
            self._n_bytes += len(message.value)

    @property
    def is_full(self) -> bool:
        """Whether what is held should be written before more is taken."""
        return self._n_held >= CHUNK_RECORDS or self._n_bytes >= CHUNK_BYTES

    def flush(self, positions: dict[int, int]) -> None:
        """Write what is held, then where each partition goes on.

        Args:
            positions: By partition, the offset after the last message taken.

        Raises:
            InputError: The folder cannot be written.
        """
        if positions == {partition: self.progress.next.get(partition) for partition in positions}:
            return
        offset = SCHEMA.get_field_index("source_offset")
        with self._named_errors():
            for (partition, day), rows in self._rows.items():
                name = f"part-{partition}-{rows[0][offset]}.parquet"
                self._write(self._folder / archive.folder_name(day) / name, _table(rows, SCHEMA))
            for partition, rejected in self._rejected.items():
                name = f"part-{partition}-{rejected[0].message.offset}.parquet"
                table = _table([_rejected_row(each) for each in rejected], REJECTED_SCHEMA)
                self._write(self._folder / REJECTED / name, table)
            done = self.progress
            self._write_progress(
                Progress(
                    FORMAT,
                    done.origin,
                    done.next | positions,
                    done.n_transactions + sum(map(len, self._rows.values())),
                    done.n_rejected + sum(map(len, self._rejected.values())),
                    done.n_skipped + self._n_skipped,
                )
            )
        self._rows.clear()
        self._rejected.clear()
        self._n_bytes = self._n_held = self._n_skipped = 0

    def close(self) -> None:
        """Let another process write; what was not flushed is read again by the next run."""
        self._lock.close()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{error.filename or self._folder}: {error.strerror}, the archive stays as it was"
            ) from error

    def _write(self, path: Path, table: pa.Table) -> None:
        if not path.parent.exists():
            path.parent.mkdir()
            durable.sync_folder(self._folder)
        with durable.replacing(path) as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=_present(table))

    def _write_progress(self, progress: Progress) -> None:
        encoded = msgspec.json.format(msgspec.json.encode(progress)) + b"\n"
        durable.replace(self._folder / OFFSETS_FILE, encoded)
        self.progress = progress


def _present(table: pa.Table) -> list[str]:
    return [name for name in _REPEATED if name in table.column_names]


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _row(tx: Transaction, message: Message) -> Row:
    """Return a transaction in the order of SCHEMA; of its input only what is needed later, for memory's sake."""
    data = tx.input
    gas_used, contract = _receipt(message.value or b"") if tx.type == "transaction" else (None, None)
    return (
        tx.type,
        tx.hash,
        tx.log_index,
        tx.chain_id,
        tx.block_number,
        tx.block_hash,
        tx.block_timestamp,
        tx.transaction_index,
        tx.nonce,
        tx.from_address,
        tx.to_address,
        str(tx.value),
        tx.gas,
        None if tx.gas_price is None else str(tx.gas_price),
        tx.receipt_status,
        gas_used,
        contract,
        data[:10] if data is not None and len(data) >= 10 else None,
        None if data is None else (len(data) - 2) // 2,
        tx.token_address,
        message.topic,
        message.partition,
        message.offset,
        message.timestamp_ms,
    )


_decode_receipt = msgspec.json.Decoder(_Receipt).decode


def _receipt(raw: bytes) -> tuple[int | None, str | None]:
    """Return gas used and contract address where a message tells them; the codec does not judge a message by them."""
    try:
        receipt = _decode_receipt(raw)
    except ValueError:
        return None, None
    used, contract = receipt.receipt_gas_used, receipt.receipt_contract_address
    if isinstance(used, str) and used.isascii() and used.isdigit() and len(used) <= 20:
        used = int(used)
    is_count = type(used) is int and 0 <= used <= UINT64_MAX
    return used if is_count else None, contract.lower() if isinstance(contract, str) and len(contract) == 42 else None


def _rejected_row(rejected: Rejected) -> Row:
    message = rejected.message
    source = (message.topic, message.partition, message.offset, message.timestamp_ms)
    return (*source, message.key, message.value, rejected.reason, rejected.detail)
