"""An archive: transactions in parquet files, a folder a day, `date=YYYY-MM-DD/part-<partition>-<offset>.parquet`.

The day is the one of `block_timestamp` in UTC, so a record that arrives late lies with its day and the days follow one
another in time. Inside a day the files may hold any order; a day is sorted when it is read.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import backfill
from features.errors import InputError
from features.table import DAY_S
from features.transaction import RECORD_WORDS

FOLDER = re.compile(r"date=([0-9]{4}-[0-9]{2}-[0-9]{2})").fullmatch


class Day(NamedTuple):
    """The files of one day."""

    start: int
    """Unix seconds of its midnight."""
    files: tuple[Path, ...]
    """By partition, then by offset."""
    n_records: int


def folder_name(start: int) -> str:
    """Return the name of a day's folder.

    >>> folder_name(1_532_044_800)
    'date=2018-07-20'
    """
    return f"date={np.datetime64(start, 's').astype('datetime64[D]')}"


def is_archive(folder: Path) -> bool:
    """Say whether a folder holds days."""
    return any(FOLDER(path.name) for path in folder.glob("date=*"))


def days(folder: Path) -> list[Day]:
    """Return an archive's days in order of time, with what their files say of their length.

    Raises:
        InputError: There is none, a folder's name is no date, or a file is damaged.
    """
    found = []
    for path in sorted(folder.glob("date=*")):
        files = tuple(sorted(path.glob("*.parquet"), key=lambda file: _natural(file.name)))
        if files:
            found.append(Day(_midnight(path), files, sum(map(_count, files))))
    if not found:
        raise InputError(f"{folder}: holds no date=YYYY-MM-DD/*.parquet, it is no archive")
    return found


def read_day(day: Day) -> NDArray[np.uint64]:
    """Return a day's records by time, equal times in the order of the files; 160 bytes a record while it sorts.

    Raises:
        InputError: A file is damaged, or a record belongs to another day.
    """
    parts = [packed for file in day.files for packed in _packed(file, day)]
    records = np.concatenate(parts) if parts else np.zeros((0, RECORD_WORDS), dtype=np.uint64)
    time = records[:, 7]
    if (time[1:] < time[:-1]).any():
        records = records[np.argsort(time, kind="stable")]
    records.flags.writeable = False
    return records


def _packed(file: Path, day: Day) -> Iterator[NDArray[np.uint64]]:
    for _, packed in backfill.batches(file):
        time = packed[:, 7].astype(np.int64)
        foreign = np.flatnonzero((time < day.start) | (time >= day.start + DAY_S))
        if len(foreign):
            raise InputError(f"{file}: block_timestamp {time[foreign[0]]} is not of the day its folder names")
        yield packed


def _midnight(folder: Path) -> int:
    match = FOLDER(folder.name)
    try:
        if match is None:
            raise ValueError(folder.name)
        return int(np.datetime64(match[1], "s").astype(np.int64))
    except ValueError as error:
        raise InputError(f"{folder}: the folder's name is not date=YYYY-MM-DD") from error


def _count(file: Path) -> int:
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: cannot be read as parquet: {error}") from error


def _natural(name: str) -> list[str | int]:
    """Return a key by which part-0-1000 comes after part-0-999."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]
