"""Sanction and entity lists: who stood on which list from when on, as the arrays the kernel looks up."""

import csv
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features.errors import ScreeningError
from features.table import LIST_WORDS, hash_key
from features.transaction import TIMESTAMP_MAX

LISTS_MAX = 16
"""Lists have one bit each in the halves of a 32-bit hit."""

FILE_BYTES_MAX = 1 << 28
"""256 MiB of a list: 4 million lines; OFAC's digital currency addresses are under a thousand."""

NAME_MAX = 64
"""Characters of a list's name, which stands in every score that hits it."""

FLAGGED = frozenset({"sanctioned", "scam", "phishing", "stolen", "mixer"})
"""Lists whose addresses count as flagged: receipts from them are an account's exposure."""

COLUMNS = ("address", "list", "known_from")


class Screening(Struct, frozen=True):
    """Addresses by list, ready for the kernel."""

    names: tuple[str, ...]
    """The list of bit i."""

    entries: NDArray[np.uint64]
    """Open addressing, shape (2**k, LIST_WORDS); one entry for each address and list, last word 0 where empty."""

    n_entries: int

    @property
    def flagged_bits(self) -> int:
        """Bits of the lists in FLAGGED."""
        return sum(1 << i for i, name in enumerate(self.names) if name in FLAGGED)

    def lists(self, bits: int) -> list[str]:
        """Return the names of the lists in one half of a hit."""
        return [name for i, name in enumerate(self.names) if bits >> i & 1]


def read(paths: Sequence[Path]) -> Screening:
    """Read lists from CSV files with the columns `address,list,known_from` (Unix seconds; empty: always known).

    Raises:
        ScreeningError: A file is missing, lacks a column, or a line holds no address, list or time.
    """
    return build(entry for path in paths for entry in _rows(path))


def build(entries: Iterable[tuple[str, str, int]]) -> Screening:
    """Build the arrays from (address, list, known_from) entries; repeated ones keep the earliest time."""
    earliest: dict[tuple[str, str], int] = {}
    for address, name, known_from in entries:
        key = (address, name)
        earliest[key] = min(known_from, earliest.get(key, known_from))
    names = tuple(sorted({name for _, name in earliest}))
    if len(names) > LISTS_MAX:
        raise ScreeningError(f"{len(names)} lists, at most {LISTS_MAX} fit: {', '.join(names)}")
    # Twice the entries, so that a probe for an address on no list ends after about one step.
    size = 1 << max(2 * len(earliest), 1).bit_length()
    table = np.zeros((size, LIST_WORDS), dtype=np.uint64)
    for (address, name), known_from in earliest.items():
        words = np.frombuffer(bytes.fromhex(address[2:]) + bytes(4), dtype=np.uint64)
        position = int(hash_key(*words)) & (size - 1)
        while table[position, 3]:
            position = (position + 1) & (size - 1)
        table[position, :3] = words
        table[position, 3] = known_from << 32 | 1 << names.index(name)
    return Screening(names=names, entries=table, n_entries=len(earliest))


def _rows(path: Path) -> Iterable[tuple[str, str, int]]:
    try:
        with _opened(path) as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ScreeningError(f"{path}: no column {', '.join(missing)}; a list has {', '.join(COLUMNS)}")
            for row in reader:
                yield _entry(row, f"{path}:{reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScreeningError(f"{path}: cannot be read: {error}") from error


def _opened(path: Path) -> TextIO:
    """Open a plain file of bearable size; without waiting, should it be a pipe."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), newline="", encoding="utf-8")
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= FILE_BYTES_MAX:
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise ScreeningError(f"{path}: cannot be read: is no plain file")
    raise ScreeningError(f"{path}: {status.st_size} bytes, over the limit of {FILE_BYTES_MAX}")


def _entry(row: dict[str, str], place: str) -> tuple[str, str, int]:
    address, name, since = row["address"] or "", row["list"] or "", row["known_from"] or "0"
    address = address.strip().lower()
    if len(address) != 42 or address[:2] != "0x" or any(digit not in "0123456789abcdef" for digit in address[2:]):
        raise ScreeningError(f"{place}: address is {address[:80]!r}, not 0x and 40 hex digits")
    if not name.strip():
        raise ScreeningError(f"{place}: the list has no name")
    if len(name) > NAME_MAX or not name.isprintable():
        raise ScreeningError(f"{place}: the list's name is {name[:80]!r}, not {NAME_MAX} printable characters at most")
    if not since.isascii() or not since.isdigit() or len(since) > 10 or int(since) > TIMESTAMP_MAX:
        raise ScreeningError(f"{place}: known_from is {since[:80]!r}, not Unix seconds up to {TIMESTAMP_MAX}")
    return address, name.strip(), int(since)
