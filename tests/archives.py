"""The small data folder as an archive by day with a list of labels: what export writes and training reads."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features import archive
from features.table import DAY_S

SCHEMA = pa.schema([
    ("type", pa.string()),
    ("block_timestamp", pa.int64()),
    ("from_address", pa.string()),
    ("to_address", pa.string()),
    ("value", pa.string()),
    ("receipt_status", pa.int8()),
    ("method_id", pa.string()),
    ("input_bytes", pa.int64()),
    ("token_address", pa.string()),
])  # fmt: skip


def table_of(folder: Path, name: str) -> pa.Table:
    """Return a file of a data folder with an archive's columns."""
    table = pq.read_table(folder / f"{name}.parquet")
    kind = "token_transfer" if name == "token_transfers" else "transaction"
    columns = {"type": pa.array([kind] * len(table))} | {n: table[n] for n in table.column_names if n in SCHEMA.names}
    return pa.table(
        [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(len(table), f.type) for f in SCHEMA],
        schema=SCHEMA,
    )


def write_archive(data: Path, folder: Path, *, n_partitions: int = 3, background: bool = False) -> Path:
    """Write a data folder's transactions and token transfers by day and partition and return the archive's folder.

    The files of a day overlap in time, and inside a file the order is any. Only one day in eight is spread over the
    partitions: opening a file takes a millisecond.
    """
    names = ("transactions", "token_transfers", *(("background_blocks",) if background else ()))
    table = pa.concat_tables([table_of(data, name) for name in names])
    day = pc.divide(table["block_timestamp"], DAY_S)
    for number in pc.unique(day).to_pylist():
        rows = table.filter(pc.equal(day, number))
        home = folder / archive.folder_name(number * DAY_S)
        home.mkdir(parents=True, exist_ok=True)
        n = n_partitions if number % 8 == 0 else 1
        for partition in range(n):
            part = rows.take(pa.array(range(len(rows) - 1 - partition, -1, -n), pa.int64()))
            if len(part):
                pq.write_table(part, home / f"part-{partition}-{number}.parquet")
    return folder


def write_labels(data: Path, path: Path, *, known_from: int | str, source: bool = True) -> Path:
    """Write the sound labels of a data folder's accounts.csv as a list with times, all known at one time."""
    with (data / "accounts.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if len(line["address"]) == 42]
    names = ["address", "label", "known_from", *(["source"] if source else [])]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(line | {"known_from": known_from} for line in lines)
    return path


def append_label(path: Path, *fields: object) -> None:
    """Add a line to a list."""
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(fields)
