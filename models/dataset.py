"""The labelled rows of a data folder, each scored at its own time by the live kernel, to learn from and to judge by.

The folder holds `transactions.parquet`, `token_transfers.parquet`, `background_blocks.parquet` (ethereum-etl's columns)
and `accounts.csv` (`address`, `label`, `source`). All records move the accounts' state, in order of time; a row is kept
where it is labelled (value above 0, a side in `accounts.csv`, among the first 50 of its account) or background.
"""

import csv
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import backfill, schema
from features.accounts import Accounts
from features.errors import InputError
from features.transaction import IS_TOKEN

VALIDATION_START = int(datetime(2018, 7, 1, tzinfo=UTC).timestamp())
TEST_START = int(datetime(2018, 10, 1, tzinfo=UTC).timestamp())

ACCOUNT_ROWS_MAX = 50
"""Labelled rows of one account that count: ten accounts would carry 18 % of the phishing rows otherwise."""

FILES = ("transactions.parquet", "token_transfers.parquet", "background_blocks.parquet", "accounts.csv")

CHUNK_RECORDS = 1 << 16
"""Records scored at once: 65,536 rows of 127 float32 are 33 MB."""

BACKGROUND = -1
"""In the place of an account: a row of a whole block that nobody selected."""

Report = Callable[[str, int, int], None]
"""Told what is done, how many records of how many."""


class Labels(NamedTuple):
    """The labelled accounts; a row's account counts into these arrays."""

    key: NDArray[np.void]
    """The three words of each address, sorted."""
    is_phishing: NDArray[np.bool_]
    source: NDArray[np.str_]
    """`A` or `B`."""
    n_malformed: int
    """Lines of `accounts.csv` whose address is not 20 bytes; no transaction can touch them."""


class Records(NamedTuple):
    """All records of a folder in order of time, equal times in the order transactions, tokens, background."""

    packed: NDArray[np.uint64]
    is_background: NDArray[np.bool_]
    labels: Labels
    digest: str
    """SHA-256 over the names and contents of the files."""


class Sample(NamedTuple):
    """Rows to learn from or to judge by, all of shape (n,), in order of time."""

    position: NDArray[np.int64]
    """In the folder's records."""
    time: NDArray[np.int64]
    account: NDArray[np.int64]
    """To whom the row counts, in `Labels`, or BACKGROUND: the phishing side, else the sender, else the recipient."""
    rank: NDArray[np.int64]
    """How many rows of this account came before."""
    is_phishing: NDArray[np.bool_]
    source: NDArray[np.str_]
    """`A` or `B`, the account's; `` for background."""
    is_new: NDArray[np.bool_]
    """The account was first seen, in any transaction of value above 0, after the training period."""

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Sample":
        """Return the chosen rows."""
        return Sample._make(array[chosen] for array in self)


def read(folder: Path) -> Records:
    """Read a data folder.

    Raises:
        InputError: A file is missing or damaged.
    """
    labels = _labels(folder / "accounts.csv")
    transactions, tokens, background = (backfill.read(folder / name).records for name in FILES[:3])
    order = backfill.by_time(transactions, tokens, background)
    is_background = np.arange(len(order)) >= len(transactions) + len(tokens)
    return Records(
        np.concatenate([transactions, tokens, background])[order], is_background[order], labels, digest(folder)
    )


def digest(folder: Path) -> str:
    """Return a SHA-256 over the names and contents of a folder's files."""
    total = hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _labels(path: Path) -> Labels:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    missing = {"address", "label", "source"} - set(lines[0] if lines else ())
    if missing:
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}")
    sound = [line for line in lines if _is_address(line["address"])]
    words = b"".join(bytes.fromhex(line["address"][2:]) + bytes(4) for line in sound)
    key = _keys(np.frombuffer(words, dtype=np.uint64).reshape(-1, 3))
    order = np.argsort(key)
    return Labels(
        key[order],
        np.array([line["label"] == "phishing" for line in sound], dtype=np.bool_)[order],
        np.array([line["source"] for line in sound], dtype=np.str_)[order],
        len(lines) - len(sound),
    )


def _is_address(text: str) -> bool:
    return len(text) == 42 and text.startswith("0x") and all(digit in "0123456789abcdef" for digit in text[2:])


def _keys(words: NDArray[np.uint64]) -> NDArray[np.void]:
    """Return one comparable value for the three words of each address."""
    return np.ascontiguousarray(words).view([("a", "u8"), ("b", "u8"), ("c", "u8")]).ravel()


def _find(labels: Labels, words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return each address's place in the labels, -1 where it has none."""
    if not len(labels.key):
        return np.full(len(words), -1)
    key = _keys(words)
    place = np.minimum(np.searchsorted(labels.key, key), len(labels.key) - 1)
    return np.where(labels.key[place] == key, place, -1)


def sample(records: Records) -> Sample:
    """Return the labelled rows that count, and the background rows of value above 0."""
    labels = records.labels
    packed = records.packed
    is_paying = (packed.view(np.float64)[:, 6] > 0) & (packed[:, 8] & np.uint64(IS_TOKEN) == 0)
    position = np.flatnonzero(is_paying & ~records.is_background)
    sides = (_find(labels, packed[position, 0:3]), _find(labels, packed[position, 3:6]))
    is_labelled = (sides[0] >= 0) | (sides[1] >= 0)
    position, sides = position[is_labelled], (sides[0][is_labelled], sides[1][is_labelled])
    time = packed[position, 7].astype(np.int64)
    account = whose(*sides, labels.is_phishing)
    rank = ranks(account)
    counts = rank < ACCOUNT_ROWS_MAX
    first_seen = np.full(len(labels.key), np.iinfo(np.int64).max)
    for side in sides:
        np.minimum.at(first_seen, side[side >= 0], time[side >= 0])
    position, time, account, rank = position[counts], time[counts], account[counts], rank[counts]
    labelled = Sample(
        position,
        time,
        account,
        rank,
        labels.is_phishing[account],
        labels.source[account],
        first_seen[account] >= VALIDATION_START,
    )
    background = _background(np.flatnonzero(is_paying & records.is_background), packed)
    both = zip(labelled, background, strict=True)
    joined = Sample._make(np.concatenate(parts) for parts in both)
    return joined.take(np.argsort(joined.position, kind="stable"))


def _background(position: NDArray[np.int64], packed: NDArray[np.uint64]) -> Sample:
    n = len(position)
    nobody = np.full(n, BACKGROUND)
    no = np.zeros(n, dtype=np.bool_)
    return Sample(position, packed[position, 7].astype(np.int64), nobody, np.zeros(n, np.int64), no, np.full(n, ""), no)


def whose(sender: NDArray[np.int64], recipient: NDArray[np.int64], is_phishing: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the account each row counts to: the phishing side, else the sender, else the recipient; -1 is no label.

    >>> whose(np.array([0, 0, -1]), np.array([1, -1, 1]), np.array([False, True])).tolist()
    [1, 0, 1]
    """
    sender_phishes = (sender >= 0) & is_phishing[sender]
    recipient_phishes = (recipient >= 0) & is_phishing[recipient]
    otherwise = np.where(sender >= 0, sender, recipient)
    return np.where(sender_phishes, sender, np.where(recipient_phishes, recipient, otherwise))


def ranks(account: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many earlier rows have the same account.

    >>> ranks(np.array([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(account, kind="stable")
    ordered = account[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(ordered) else np.zeros(0, int)
    lengths = np.diff(np.concatenate((starts, [len(ordered)])))
    result = np.empty(len(account), dtype=np.int64)
    result[order] = np.arange(len(account)) - np.repeat(starts, lengths)
    return result


def matrix(
    records: Records,
    position: NDArray[np.int64],
    *,
    restarts: NDArray[np.int64] | None = None,
    report: Report | None = None,
) -> NDArray[np.float32]:
    """Return the feature rows at some positions, each from the records before it, shape (n, N_FEATURES).

    Args:
        records: All of them move the state.
        position: Ascending positions of the rows to return.
        restarts: Times at which the past is forgotten, as when a service starts without a state; None for never.
        report: Told of the progress.
    """
    packed = records.packed
    cuts = np.searchsorted(packed[:, 7], np.array([] if restarts is None else restarts, dtype=np.uint64))
    bounds = np.unique(np.concatenate([cuts, np.arange(0, len(packed), CHUNK_RECORDS), [len(packed)]]))
    n_addresses = _count_addresses(packed)
    accounts = _empty(n_addresses, len(packed))
    rows = np.empty((len(position), schema.N_FEATURES), dtype=np.float32)
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if start and start in cuts:
            accounts = _empty(n_addresses, len(packed))
        scored, _ = accounts.score_rows(packed[start:end])
        wanted = slice(*np.searchsorted(position, (start, end)))
        rows[wanted] = scored[position[wanted] - start]
        if report is not None:
            report("features", end, len(packed))
    return rows


def _count_addresses(packed: NDArray[np.uint64]) -> int:
    return len(np.unique(np.concatenate([_keys(packed[:, 0:3]), _keys(packed[:, 3:6])])))


def _empty(n_addresses: int, n_records: int) -> Accounts:
    """Return a table in which nothing need be evicted: the rows must not depend on a budget."""
    return Accounts(accounts_max=max(64, n_addresses), pairs_max=max(64, 4 * n_records))
