"""Who is known to be what: labelled addresses, from a data folder's `accounts.csv` or from a list with times.

A list with times (`address,label,known_from` and perhaps `source`) says when each label became known. A model that is
trained as of some date takes of each address the last label that was known by then; an address whose first label came
later is an address without one. Features read no label at all.
"""

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.errors import InputError
from features.transaction import TIMESTAMP_MAX, TIMESTAMP_MIN

LABELS = ("phishing", "normal")

SIEVE_BITS = 22
"""Of a word of the address: 4 MiB of flags, 0.3 % of them set by 11,786 labels: one row in 350 is searched for."""


class Labels(NamedTuple):
    """The labelled accounts; a row's account counts into these arrays."""

    key: NDArray[np.void]
    """The three words of each address, sorted."""
    is_phishing: NDArray[np.bool_]
    source: NDArray[np.str_]
    """`A` or `B` in the data folder, any name or none in a list with times."""
    n_malformed: int
    """Lines of `accounts.csv` whose address is not 20 bytes; no transaction can touch them."""
    n_later: int = 0
    """Lines of a list that were not yet known."""
    is_service: NDArray[np.bool_] | None = None
    """`exchange_or_service` of `accounts.csv`; None where the file does not say. For the analysis of errors only."""
    is_capped: NDArray[np.bool_] | None = None
    """`history_capped`, likewise: the data holds only the account's first 10,000 transactions."""


class Label(NamedTuple):
    """A line of a list with times."""

    address: str
    is_phishing: bool
    known_from: int
    """Unix seconds."""
    source: str
    line: int


def read_accounts(path: Path) -> Labels:
    """Read a data folder's `accounts.csv`, whose labels carry no time.

    Raises:
        InputError: The file cannot be read or lacks a column.
    """
    lines = [line for _, line in _lines(path, {"address", "label", "source"})]
    sound = [line for line in lines if is_address(line["address"])]
    addresses = [line["address"] for line in sound]
    labels = _labels(
        addresses,
        [line["label"] == "phishing" for line in sound],
        [line["source"] for line in sound],
        n_malformed=len(lines) - len(sound),
    )
    order = np.argsort(_address_keys(addresses))
    flags = (
        [
            np.array([line[name] == "1" for line in sound], dtype=np.bool_)[order] if name in lines[0] else None
            for name in ("exchange_or_service", "history_capped")
        ]
        if lines
        else [None, None]
    )
    return labels._replace(is_service=flags[0], is_capped=flags[1])


def read_list(path: Path) -> list[Label]:
    """Read a list with times.

    Raises:
        InputError: The file cannot be read, lacks a column, or a line says nothing sound; line and value are named.
    """
    found: dict[tuple[str, int], Label] = {}
    for number, line in _lines(path, {"address", "label", "known_from"}):
        label = _label(line, number, f"{path}:{number}")
        same = found.setdefault((label.address, label.known_from), label)
        if (same.is_phishing, same.source) != (label.is_phishing, label.source):
            raise InputError(
                f"{path}:{number}: {label.address} has another label for the same time in line {same.line}"
            )
    return list(found.values())


def known(labels: list[Label], as_of: int) -> Labels:
    """Return the labels as they were known at a time: of each address the last one with `known_from` up to it."""
    last: dict[str, Label] = {}
    for label in sorted(labels, key=lambda label: label.known_from):
        if label.known_from <= as_of:
            last[label.address] = label
    n_later = sum(label.known_from > as_of for label in labels)
    values = last.values()
    return _labels([v.address for v in values], [v.is_phishing for v in values], [v.source for v in values], 0, n_later)


def is_address(text: str) -> bool:
    """Say whether a text is 0x and 40 lower-case hex digits."""
    return len(text) == 42 and text.startswith("0x") and all(digit in "0123456789abcdef" for digit in text[2:])


def unix_time(text: str) -> int:
    """Return the time of a text: Unix seconds, or an ISO date or time, in UTC where it names no zone.

    >>> unix_time("2018-07-01"), unix_time("1530403200"), unix_time("2018-07-01T02:00:00+02:00")
    (1530403200, 1530403200, 1530403200)

    Raises:
        ValueError: It is neither, or lies outside 2009 to 2100.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        seconds = int(text[:20])
    else:
        moment = datetime.fromisoformat(text)
        seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if not TIMESTAMP_MIN <= seconds <= TIMESTAMP_MAX:
        raise ValueError(f"{text} is outside 2009-01-03 to 2100-01-01")
    return seconds


class Finder:
    """Finds addresses among the labels, millions at a time."""

    def __init__(self, labels: Labels) -> None:
        self._key = labels.key
        self._first = np.ascontiguousarray(labels.key["a"])
        # A search among the sorted words costs 0.2 µs an address; the sieve lets nearly all others go at 5 ns.
        self._sieve = np.zeros(1 << SIEVE_BITS, dtype=np.bool_)
        self._sieve[_sifted(labels.key["a"])] = True

    def find(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return each address's place in the labels, -1 where it has none; `words` has shape (n, 3)."""
        place = np.full(len(words), -1)
        candidates = np.flatnonzero(self._sieve[_sifted(words[:, 0])])
        if not len(candidates):
            return place
        first = words[candidates, 0]
        nearest = np.minimum(np.searchsorted(self._first, first), len(self._key) - 1)
        alike = self._first[nearest] == first
        candidates, nearest = candidates[alike], nearest[alike]
        key = keys(words[candidates])
        # Whole keys are compared ten times as slowly, so only where two labels begin with the same eight bytes.
        other = np.flatnonzero(self._key[nearest] != key)
        nearest[other] = np.minimum(np.searchsorted(self._key, key[other]), len(self._key) - 1)
        place[candidates] = np.where(self._key[nearest] == key, nearest, -1)
        return place


def keys(words: NDArray[np.uint64]) -> NDArray[np.void]:
    """Return one comparable value for the three words of each address."""
    return np.ascontiguousarray(words).view([("a", "u8"), ("b", "u8"), ("c", "u8")]).ravel()


def _sifted(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return word >> np.uint64(64 - SIEVE_BITS)


def _lines(path: Path, columns: set[str]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restval="")
            lines = [(reader.line_num, line) for line in reader]
            missing = columns - set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if missing:
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}")
    return iter(lines)


def _label(line: dict[str, str], number: int, place: str) -> Label:
    address = line["address"].lower()
    if not is_address(address):
        raise InputError(f"{place}: address is {line['address']!r}; allowed: 0x and 40 hex digits")
    if line["label"] not in LABELS:
        raise InputError(f"{place}: label is {line['label']!r}; allowed: {', '.join(LABELS)}")
    try:
        known_from = unix_time(line["known_from"])
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{place}: known_from is {line['known_from']!r}; allowed: Unix seconds or an ISO date, 2009 to 2099"
        ) from error
    return Label(address, line["label"] == "phishing", known_from, line.get("source") or "", number)


def _labels(
    addresses: list[str], is_phishing: list[bool], sources: list[str], n_malformed: int, n_later: int = 0
) -> Labels:
    key = _address_keys(addresses)
    order = np.argsort(key)
    return Labels(
        key[order],
        np.array(is_phishing, dtype=np.bool_)[order],
        np.array(sources, dtype=np.str_)[order],
        n_malformed,
        n_later,
    )


def _address_keys(addresses: list[str]) -> NDArray[np.void]:
    words = b"".join(bytes.fromhex(address[2:]) + bytes(4) for address in addresses)
    return keys(np.frombuffer(words, dtype=np.uint64).reshape(-1, 3))
