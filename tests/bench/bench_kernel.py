"""Time emit and observe, and weigh the table: `python -m tests.bench.bench_kernel [--accounts N] [--json FILE]`.

Prints machine, commit and versions, then microseconds a transaction in batches of 500 and of 1, each the median of
alternating rounds with its least and largest, on drawn and, where they are, real transactions. With `--accounts` a
table of that size is filled to the last account, and what the process then holds in memory is printed.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features import backfill
from features.accounts import Accounts
from features.errors import InputError
from features.table import WORDS
from features.transaction import IS_STATUS_KNOWN, METHOD_NONE, METHOD_SHIFT, RECORD_WORDS
from service.bench import Figure, figure, of_now, write

ROOT = Path(__file__).resolve().parents[2]
SEED = 1
ROUNDS = 7
N = 200_000
N_SINGLE = 50_000
"""Of the same stream one by one: the call itself is most of the time."""

ACCOUNTS, PAIRS = 1_000_000, 2_000_000
"""The service's own defaults: 256 MB of accounts, far beyond every cache."""

UNDO_TRANSACTIONS = 32_768
"""64 blocks of 512: a log of 32 MB."""

START = 1_500_000_000
CHUNK = 500_000


def drawn(n: int) -> NDArray[np.uint64]:
    """Return payments among 300,000 accounts, some of them much busier than others, a second apart."""
    rng = np.random.default_rng(SEED)
    addresses = rng.integers(0, 2**64, (300_000, 3), dtype=np.uint64)
    sides = (len(addresses) * rng.random((n, 2)) ** 3).astype(np.int64)
    return payments(addresses[sides[:, 0]], addresses[sides[:, 1]], START + np.arange(n), rng)


def payments(
    senders: NDArray[np.uint64], recipients: NDArray[np.uint64], times: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.uint64]:
    """Return packed payments of drawn amounts, one in four a call of value 0."""
    n = len(times)
    records = np.zeros((n, RECORD_WORDS), dtype=np.uint64)
    records[:, 0:3], records[:, 3:6] = senders, recipients
    records[:, [2, 5]] &= np.uint64(0xFFFFFFFF)
    records.view(np.float64)[:, 6] = 10.0 ** rng.normal(0.0, 1.5, n) * (rng.random(n) < 0.75)
    records[:, 7] = times
    records[:, 8] = IS_STATUS_KNOWN | METHOD_NONE << METHOD_SHIFT
    return records


def real(n: int) -> NDArray[np.uint64] | None:
    """Return the last transactions of the labelled ones by time, None where they are not at hand."""
    folder = Path(os.environ.get("FALCONET_DATA") or ROOT.parent / "shared" / "data" / "ethereum")
    try:
        return backfill.read(folder / "transactions.parquet").records[-n:]
    except InputError as error:
        print(f"real transactions not measured: {error}")
        return None


def microseconds(accounts: Accounts, records: NDArray[np.uint64], size: int) -> float:
    """Return the time of a transaction in batches of a size."""
    started = time.perf_counter()
    for i in range(0, len(records), size):
        accounts.score_rows(records[i : i + size])
    return (time.perf_counter() - started) / len(records) * 1e6


def speed() -> list[Figure]:
    """Measure emit and observe on a table that has seen the first half of each stream."""
    streams = {"drawn": drawn(2 * N)}
    if (found := real(2 * N)) is not None:
        streams["real"] = found
    ways = [(name, size, undo) for name in streams for size in (500, 1) for undo in (0, UNDO_TRANSACTIONS)]
    spent: dict[tuple[str, int, int], list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for (name, size, undo), values in spent.items():
            records = streams[name]
            accounts = Accounts(accounts_max=ACCOUNTS, pairs_max=PAIRS, undo_transactions=undo)
            accounts.score_rows(records[:N])
            values.append(microseconds(accounts, records[N : N + (N if size > 1 else N_SINGLE)], size))
    return [
        figure(
            f"emit + observe{' + undo log' if undo else ''}, {name} transactions, batches of {size}",
            values,
            "µs",
            "≤ 2" if size == 500 else "",
        )
        for (name, size, undo), values in spent.items()
    ]


def resident_bytes() -> int:
    """Return what this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def weight(accounts_max: int, pairs_max: int) -> list[Figure]:
    """Fill a table to the last account and pair; return what it weighs and how fast it then is, at random places."""
    rng = np.random.default_rng(SEED)
    before = resident_bytes()
    accounts = Accounts(accounts_max=accounts_max, pairs_max=pairs_max)
    for first in range(0, accounts_max // 2, CHUNK):
        ids = np.arange(first, min(first + CHUNK, accounts_max // 2))
        senders, recipients = sides(ids * 2), sides(ids * 2 + 1)
        records = payments(senders, recipients, START + ids // 100, rng)
        for i in range(0, len(records), 500):
            accounts.score_rows(records[i : i + 500])
    del records, senders, recipients, ids
    held = resident_bytes() - before
    if accounts.n_accounts < accounts_max - 1:
        raise SystemExit(f"{accounts.n_accounts} accounts came of {accounts_max}")
    values = []
    for _ in range(ROUNDS):
        chosen = sides(rng.integers(0, accounts_max, N)), sides(rng.integers(0, accounts_max, N))
        later = payments(*chosen, START + accounts_max + np.arange(N), rng)
        values.append(microseconds(accounts, later, 500))
    name = f"{accounts.n_accounts:,} accounts and {accounts.n_pairs:,} pairs"
    return [
        figure("account", [WORDS * 4.0], "bytes", "≤ 256"),
        figure(f"arrays of {name}", [accounts.memory_bytes / 1e9], "GB", "< 3" if accounts_max == 10_000_000 else ""),
        figure(f"resident for {name}", [held / 1e9], "GB", "< 3" if accounts_max == 10_000_000 else ""),
        figure(f"emit + observe at random places of {name}, batches of 500", values, "µs"),
    ]


def sides(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the address words of numbered accounts, scattered like real addresses."""
    words = np.zeros((len(ids), 3), dtype=np.uint64)
    words[:, 0] = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words[:, 2] = ids
    return words


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=0, help="also fill a table of this many, such as 10000000")
    parser.add_argument("--pairs", type=int, default=4_000_000, help="pairs of that table (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args()
    report = of_now([])
    print(f"machine: {report.machine}\ncommit: {report.commit}  date: {report.date}")
    print("versions: " + ", ".join(f"{name} {version}" for name, version in report.versions.items()))
    print(f"{N:,} transactions after {N:,} unmeasured ones, {ROUNDS} alternating rounds: median (least to largest)")
    Accounts(accounts_max=64, pairs_max=64).score_rows(drawn(10))
    report.figures.extend(speed())
    if options.accounts:
        report.figures.extend(weight(options.accounts, options.pairs))
    for line in report.figures:
        print(line.line())
    if options.json is not None:
        write(report, options.json)


if __name__ == "__main__":
    main()
