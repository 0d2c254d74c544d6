"""The rows of a data folder or an archive that are learnt from or judged by, each scored at its own time.

A data folder holds `transactions.parquet`, `token_transfers.parquet`, `background_blocks.parquet` (ethereum-etl's
columns) and `accounts.csv` (`address`, `label`, `source`); an archive holds parquet files by day (`features.archive`)
and comes with a list of labels with times (`models.labels`). All records move the state of the live kernel, in order of
time; a row is kept where it is labelled (value above 0, a labelled side, among the first 50 of its account) or
background.

Records are gone through in chunks: an archive's are packed once into a file without a name, mapped into memory, so that
memory holds the kept rows, the accounts (bounded) and one day of the archive, whatever its length.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import archive, backfill, schema
from features.accounts import Accounts
from features.errors import InputError, UsageError
from features.transaction import IS_TOKEN, RECORD_WORDS
from models import labels as known_labels
from models import spool
from models.labels import Labels
from models.progress import Progress

VALIDATION_START = int(datetime(2018, 7, 1, tzinfo=UTC).timestamp())
TEST_START = int(datetime(2018, 10, 1, tzinfo=UTC).timestamp())

ACCOUNT_ROWS_MAX = 50
"""Labelled rows of one account that count: ten accounts would carry 18 % of the phishing rows otherwise."""

FILES = ("transactions.parquet", "token_transfers.parquet", "background_blocks.parquet", "accounts.csv")

CHUNK_RECORDS = 1 << 16
"""Records scored at once: 65,536 rows of 130 float32 are 34 MB."""

SCAN_RECORDS = 1 << 20
"""Records looked at once where no rows are made: 84 MB."""

BACKGROUND = -1
"""In the place of an account: a row of a whole block that nobody selected."""

BACKGROUND_ROWS = 20_000
"""Of an archive's blocks so many are drawn that about this many of their payments are background. The data folder has
9,000, which bound an alert rate of 1 in 1,000 within a factor of two."""

ACCOUNTS_MAX = 10_000_000
"""Accounts in memory: 2.7 GB when full. The data folder's 397,813 all fit."""

PAIRS_PER_ACCOUNT = 6
"""At most so many pairs for each account in memory, 1.9 GB for 10 million accounts."""

ROWS_BYTES_MAX = 1 << 32
"""Feature rows beyond 4 GiB (8 million) lie in a file without a name, mapped into memory."""


class Cuts(NamedTuple):
    """The times that part what is learnt from, tuned on and judged by."""

    validation_start: int = VALIDATION_START
    test_start: int = TEST_START


CUTS = Cuts()
"""The data folder's protocol."""


class Source(NamedTuple):
    """What to read and how."""

    folder: Path
    """Data folder or archive."""
    labels: Path | None = None
    """List of labels with times, for an archive."""
    as_of: int | None = None
    """For an archive: labels known later and records of a later time are as if they were not there; None takes the
    time of the last record."""
    cuts: Cuts = CUTS
    accounts_max: int = ACCOUNTS_MAX
    """Accounts kept in memory; beyond it the stalest are forgotten, as in the service."""


class Records(NamedTuple):
    """All records in order of time, equal times in the order transactions, tokens, background, or of the files."""

    packed: NDArray[np.uint64]
    """Shape (n, RECORD_WORDS); an archive's are mapped from a file, to be gone through in chunks."""
    is_background: NDArray[np.bool_]
    labels: Labels
    digest: str
    """SHA-256 over the names and contents of a folder's files, or over an archive's records and known labels."""
    cuts: Cuts = CUTS
    accounts_max: int = ACCOUNTS_MAX


class Sample(NamedTuple):
    """Rows to learn from or to judge by, all of shape (n,), in order of time."""

    position: NDArray[np.int64]
    """In the records."""
    time: NDArray[np.int64]
    account: NDArray[np.int64]
    """To whom the row counts, in `Labels`, or BACKGROUND: the phishing side, else the sender, else the recipient."""
    rank: NDArray[np.int64]
    """How many rows of this account came before."""
    is_phishing: NDArray[np.bool_]
    source: NDArray[np.str_]
    """The account's, `A` or `B` in the data folder; `` for background, and for a label that names none."""
    is_new: NDArray[np.bool_]
    """The account was first seen, in any transaction of value above 0, after the training period."""

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Sample":
        """Return the chosen rows."""
        return Sample._make(array[chosen] for array in self)


def read(source: Path | Source, *, report: Progress | None = None) -> Records:
    """Read a data folder or an archive.

    Args:
        source: A folder alone is read as it stands, with the protocol's dates.
        report: Told of the progress.

    Raises:
        InputError: A file is missing or damaged, or a label's line is unsound.
        UsageError: The options do not fit the kind of folder, or the dates one another.
    """
    source = Source(source) if isinstance(source, Path) else source
    if source.cuts.validation_start >= source.cuts.test_start:
        raise UsageError("the validation period must start before the test period")
    if archive.is_archive(source.folder):
        return _read_archive(source, report)
    if source.labels is not None or source.as_of is not None:
        raise UsageError(f"{source.folder}: holds no date=YYYY-MM-DD folder; labels with times are for an archive")
    return _read_folder(source)


def digest(folder: Path) -> str:
    """Return a SHA-256 over the names and contents of a data folder's files."""
    total = hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _read_folder(source: Source) -> Records:
    folder = source.folder
    labels = known_labels.read_accounts(folder / "accounts.csv")
    transactions, tokens, background = (backfill.read(folder / name).records for name in FILES[:3])
    order = backfill.by_time(transactions, tokens, background)
    is_background = np.arange(len(order)) >= len(transactions) + len(tokens)
    packed = np.concatenate([transactions, tokens, background])[order]
    return Records(packed, is_background[order], labels, digest(folder), source.cuts, source.accounts_max)


def _read_archive(source: Source, report: Progress | None) -> Records:
    if source.labels is None:
        raise UsageError(f"{source.folder}: is an archive, which needs a list of labels (address,label,known_from)")
    lines = known_labels.read_list(source.labels)
    packed, total = _spool(source, report)
    as_of = int(packed[-1, 7]) if source.as_of is None else source.as_of
    labels = known_labels.known(lines, as_of)
    for part in (labels.key.tobytes(), labels.is_phishing.tobytes(), "\n".join(labels.source.tolist()).encode()):
        total.update(part)
    is_background = _draw_background(packed, labels)
    return Records(packed, is_background, labels, total.hexdigest(), source.cuts, source.accounts_max)


def _spool(source: Source, report: Progress | None) -> tuple[NDArray[np.uint64], "hashlib._Hash"]:
    """Return an archive's records up to `as_of` in order of time, and their digest.

    They are decoded and sorted once for all passes; 50 million take 4 GB of the temporary folder.
    """
    days = archive.days(source.folder)
    n_records = sum(day.n_records for day in days)
    total = hashlib.sha256()
    n_read = 0
    with spool.Spool(np.uint64, width=RECORD_WORDS, n_max=n_records) as written:
        for day in days:
            records = archive.read_day(day)
            if source.as_of is not None:
                records = records[: bisect_left(records[:, 7], source.as_of + 1)]
            total.update(records.data)
            written.write(records)
            n_read += day.n_records
            if report is not None:
                report("reading", n_read, n_records)
        packed = written.array()
    if not len(packed):
        raise InputError(f"{source.folder}: no record up to the time to train as of")
    return packed, total


def _draw_background(packed: NDArray[np.uint64], labels: Labels) -> NDArray[np.bool_]:
    """Return which payments between unlabelled addresses stand in a drawn block, blocks told apart by their time.

    A block is drawn by a hash of its time: the same in every run, and whatever else is in the archive.
    """
    drawn = np.zeros(len(packed), dtype=np.bool_)
    share = min(1.0, BACKGROUND_ROWS / len(packed))
    finder = known_labels.Finder(labels)
    for start, part in _parts(packed, SCAN_RECORDS):
        chosen = np.flatnonzero(_is_paying(part) & (_uniform(part[:, 7]) < share))
        nobody = (finder.find(part[chosen, 0:3]) < 0) & (finder.find(part[chosen, 3:6]) < 0)
        drawn[start + chosen[nobody]] = True
    return drawn


def _uniform(time: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return a number from 0 to 1 for each time, the same for equal times (splitmix64)."""
    h = time * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((h ^ (h >> np.uint64(31))) / 2.0**64)


def _parts(packed: NDArray[np.uint64], size: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Yield where each part starts, and its records."""
    for start in range(0, len(packed), size):
        yield start, packed[start : start + size]
        spool.release(packed)


def _is_paying(packed: NDArray[np.uint64]) -> NDArray[np.bool_]:
    is_paying: NDArray[np.bool_] = (packed.view(np.float64)[:, 6] > 0) & (packed[:, 8] & np.uint64(IS_TOKEN) == 0)
    return is_paying


def sample(records: Records) -> Sample:
    """Return the labelled rows that count, and the background rows of value above 0."""
    labels = records.labels
    finder = known_labels.Finder(labels)
    n_seen = np.zeros(len(labels.key), dtype=np.int64)
    first_seen = np.full(len(labels.key), np.iinfo(np.int64).max)
    parts = []
    for start, packed in _parts(records.packed, SCAN_RECORDS):
        is_background = records.is_background[start : start + len(packed)]
        is_paying = _is_paying(packed)
        place = np.flatnonzero(is_paying & ~is_background)
        sides = (finder.find(packed[place, 0:3]), finder.find(packed[place, 3:6]))
        is_labelled = (sides[0] >= 0) | (sides[1] >= 0)
        place, sides = place[is_labelled], (sides[0][is_labelled], sides[1][is_labelled])
        time = packed[place, 7].astype(np.int64)
        for side in sides:
            np.minimum.at(first_seen, side[side >= 0], time[side >= 0])
        account = whose(*sides, labels.is_phishing)
        rank = ranks(account) + n_seen[account]
        n_seen += np.bincount(account, minlength=len(n_seen))
        counts = rank < ACCOUNT_ROWS_MAX
        parts.append((start + place[counts], time[counts], account[counts], rank[counts]))
        place = np.flatnonzero(is_paying & is_background)
        nobody = np.full(len(place), BACKGROUND)
        parts.append((start + place, packed[place, 7].astype(np.int64), nobody, np.zeros(len(place), dtype=np.int64)))
    position, time, account, rank = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(position, kind="stable")
    position, time, account, rank = position[order], time[order], account[order], rank[order]
    is_somebody = account != BACKGROUND
    chosen = account[is_somebody]
    is_phishing, is_new = (np.zeros(len(account), dtype=np.bool_) for _ in range(2))
    is_phishing[is_somebody] = labels.is_phishing[chosen]
    is_new[is_somebody] = first_seen[chosen] >= records.cuts.validation_start
    source = np.zeros(len(account), dtype=labels.source.dtype)
    source[is_somebody] = labels.source[chosen]
    return Sample(position, time, account, rank, is_phishing, source, is_new)


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
    report: Progress | None = None,
) -> NDArray[np.float32]:
    """Return the feature rows at some positions, each from the records before it, shape (n, N_FEATURES).

    Args:
        records: All of them move the state.
        position: Ascending positions of the rows to return.
        restarts: Times at which the past is forgotten, as when a service starts without a state; None for never.
        report: Told of the progress, and of accounts forgotten because `accounts_max` was reached.
    """
    packed = records.packed
    time = packed[:, 7]
    cuts = np.array([bisect_left(time, at) for at in ([] if restarts is None else restarts.tolist())], dtype=np.int64)
    bounds = np.unique(np.concatenate([cuts, np.arange(0, len(packed), CHUNK_RECORDS), [len(packed)]]))
    accounts = _no_past(records)
    n_forgotten = 0
    rows = spool.empty(np.float32, width=schema.N_FEATURES, n=len(position), bytes_max=ROWS_BYTES_MAX)
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if start and start in cuts:
            n_forgotten += accounts.n_evicted
            accounts = _no_past(records)
        scored, _ = accounts.score_rows(packed[start:end])
        wanted = slice(*np.searchsorted(position, (start, end)))
        rows[wanted] = scored[position[wanted] - start]
        for mapped in (packed, rows):
            spool.release(mapped)
        if report is not None:
            report("features", end, len(packed))
    n_forgotten += accounts.n_evicted
    if report is not None and n_forgotten:
        report(f"accounts forgotten beyond {records.accounts_max:,} in memory", n_forgotten, n_forgotten)
    return rows


def _no_past(records: Records) -> Accounts:
    """Return an empty table; one with room for every address and pair where `accounts_max` allows it."""
    n = len(records.packed)
    accounts_max = max(64, min(2 * n, records.accounts_max))
    return Accounts(accounts_max=accounts_max, pairs_max=max(64, min(4 * n, PAIRS_PER_ACCOUNT * records.accounts_max)))
