"""The kernel equals the naive oracle on drawn streams, whatever the batches, the order and the limits of memory."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from features import schema, screening, table
from features.accounts import Accounts
from features.transaction import TIMESTAMP_MAX, Transaction, pack, records
from tests.oracle import DAY, HOUR, Lists, Oracle, differences
from tests.transactions import transaction

SEED = int(os.environ.get("FALCONET_SEED", "1"))
"""Of every drawn stream in this file."""

START = 1_420_070_400
ALIKE = tuple(f"0xd1ce{i:032x}beef" for i in range(3))
POOL = (*ALIKE, "0x" + "00" * 20, "0x" + "ff" * 20, *(f"0x{i:02x}" + f"{i * 7919:038x}" for i in range(3)))
LISTS: Lists = {
    (POOL[3], "sanctioned"): 0,
    (POOL[3], "exchange"): START + 30 * DAY,
    (POOL[5], "phishing"): START + 10 * DAY,
    (POOL[6], "exchange"): 0,
}


@pytest.fixture(autouse=True)
def _printed_seed() -> None:
    """Say what to give FALCONET_SEED to see the same streams again."""
    print(f"FALCONET_SEED={SEED}")


GAPS = (0, 0, 1, 59, HOUR, 5 * HOUR, DAY, 8 * DAY, 29 * DAY, 30 * DAY, 31 * DAY, 70 * DAY)
LATE = (-1, -HOUR, -3 * DAY, -31 * DAY, -65 * DAY, -200 * DAY)
YEARS = (365 * DAY, 1300 * DAY, 5 * 365 * DAY)
METHODS = (None, "0x", "0x095ea7b3", "0xa22cb465", "0xd505accf", "0xa9059cbb", "0x12345678")

VALUES = st.one_of(
    st.sampled_from((0, 0, 1, 10**18, 2**53 + 1, 2**63 - 1, 2**64, 2**64 + 1, 2**255, 2**256 - 1)),
    st.integers(1, 10**15).map(lambda n: n * 10**5 + 7),
    st.floats(-6.0, 4.0).map(lambda magnitude: int(10.0 ** (18 + magnitude))),
)
"""Wei, rarely near 10**6: there a sum is as large as what counts as nothing, and rounding decides."""

STEPS = st.tuples(
    st.one_of(st.sampled_from(GAPS), st.sampled_from(LATE), st.sampled_from((*GAPS, *YEARS))),
    st.sampled_from(POOL),
    st.one_of(st.sampled_from(POOL), st.sampled_from((*POOL, None))),
    VALUES,
    st.sampled_from(("ether", "ether", "ether", "token")),
    st.sampled_from((None, 1, 1, 1, 0)),
    st.sampled_from(METHODS),
    st.booleans(),
)
HISTORY_STARTS = st.sampled_from((None, START, START - 3 * DAY, START - 100 * DAY))


def stream(steps: list[tuple[int, str, str | None, int, str, int | None, str | None, bool]]) -> list[Transaction]:
    """Turn drawn steps into transactions; a late one does not turn the clock back, a repeated one comes twice."""
    transactions, now = [], START
    for gap, sender, recipient, value, kind, status, data, is_repeated in steps:
        time = min(now + gap, TIMESTAMP_MAX)
        now = max(now, time)
        is_token = kind == "token" and recipient is not None
        tx = transaction(sender, recipient, value, time, is_token=is_token, status=status, data=data)
        transactions += [tx, tx] if is_repeated else [tx]
    return transactions


PAYMENTS = st.tuples(
    st.sampled_from((0, 1, HOUR, DAY, 31 * DAY, -DAY, -40 * DAY)),
    st.sampled_from(POOL[2:7]),
    st.sampled_from(POOL[2:7]),
    st.integers(10**15, 10**20),
    st.just("ether"),
    st.just(1),
    st.none(),
    st.just(False),
)
"""Among few addresses, two of them flagged, so that what they paid goes round."""

STREAMS = st.lists(STEPS, min_size=1, max_size=30).map(stream)


def drawn(n: int, *, n_addresses: int, late: float = 0.1, gap_s: float = HOUR) -> list[Transaction]:
    """Return a long stream from the seed alone, cheaper than drawing it step by step."""
    rng = np.random.default_rng(SEED)
    addresses = ["0x" + rng.bytes(20).hex() for _ in range(n_addresses)]
    times = START + np.cumsum(rng.exponential(gap_s, n)).astype(int)
    times -= np.where(rng.random(n) < late, rng.exponential(20 * DAY, n).astype(int), 0)
    transactions = []
    for time in times:
        sender, recipient = rng.choice(n_addresses, 2) if rng.random() < 0.9 else rng.choice(n_addresses // 8, 2)
        transactions.append(
            transaction(
                addresses[sender],
                addresses[recipient] if rng.random() < 0.97 else None,
                int(10.0 ** rng.normal(17.0, 2.0)) if rng.random() < 0.8 else 0,
                int(time),
                is_token=rng.random() < 0.1,
                status=int(rng.random() < 0.9),
                data=METHODS[rng.integers(len(METHODS))],
            )
        )
    return transactions


def packed(transactions: list[Transaction]) -> np.ndarray:
    """Return the array that the kernel reads."""
    return records([pack(tx) for tx in transactions])


def accounts_of(**limits: int | None) -> Accounts:
    """Return a table that is large enough unless told otherwise."""
    return Accounts(**{"accounts_max": 256, "pairs_max": 1 << 16, **limits})


def listed(**limits: int | None) -> Accounts:
    """Return a table with the lists of this file."""
    lists = screening.build((address, name, since) for (address, name), since in LISTS.items())
    return Accounts(**{"accounts_max": 256, "pairs_max": 1 << 16, "screening": lists, **limits})


def state(accounts: Accounts) -> tuple[bytes, ...]:
    """Return every bit of a table."""
    arrays = accounts.table
    return tuple(array.tobytes() for array in (arrays.f32, arrays.slots, arrays.pairs_f32, arrays.meta))


def assert_equal(accounts: Accounts, oracle: Oracle, transactions: list[Transaction]) -> None:
    """Compare every row and every hit of a stream."""
    rows, hits = accounts.score_rows(packed(transactions))
    names = accounts.screening
    for i, tx in enumerate(transactions):
        expected_lists = oracle.hits(tx)
        assert differences(rows[i], oracle.score(tx)) == {}, f"transaction {i} of {transactions}"
        if names is not None:
            assert (set(names.lists(int(hits[i]) & 0xFFFF)), set(names.lists(int(hits[i]) >> 16))) == expected_lists
        else:
            assert hits[i] == 0


def examples(n: int):
    """Draw n examples from the seed, the same on every run, without a database of earlier failures."""
    profile = settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=False,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        print_blob=False,
    )
    return lambda test: seed(SEED)(profile(test))


@examples(100)
@given(STREAMS, HISTORY_STARTS)
def test_kernel_equals_oracle(transactions: list[Transaction], history_start: int | None) -> None:
    """Every column equals its recomputation, with equal, late and repeated times, gaps of years and extreme values."""
    accounts = accounts_of(history_start=history_start)

    assert_equal(accounts, Oracle(history_start=history_start), transactions)


@examples(80)
@given(STREAMS | st.lists(PAYMENTS, min_size=10, max_size=30).map(stream))
def test_exposure_and_hits_equal_oracle(transactions: list[Transaction]) -> None:
    """With lists, each from its own time on, exposure direct and passed on equals its recomputation, as do the hits."""
    assert_equal(listed(), Oracle(lists=LISTS), transactions)


@examples(80)
@given(st.lists(STEPS, min_size=5, max_size=30).map(stream))
def test_full_pair_memory_equals_oracle(transactions: list[Transaction]) -> None:
    """A full bucket gives up its stalest pair, and then an absent pair is unknown until that contact is long past."""
    accounts = accounts_of(pairs_max=4)

    assert_equal(accounts, Oracle(pairs_max=4), transactions)

    assert accounts.n_pairs <= 4


def test_long_stream_equals_oracle() -> None:
    """Float32 sums stay within tolerance over accounts that were touched a hundred times."""
    transactions = drawn(700, n_addresses=12)

    assert_equal(accounts_of(), Oracle(), transactions)


@pytest.mark.parametrize("name", ["transactions", "background_blocks"])
def test_real_transactions_equal_oracle(data: Path, name: str) -> None:
    """Of 700 real transactions, selected ones in a row or whole blocks years apart, every column is the oracle's."""
    file = pq.ParquetFile(data / f"{name}.parquet")
    rows = next(file.iter_batches(batch_size=5_700)).slice(5_000).to_pylist()
    rows.sort(key=lambda row: row["block_timestamp"])
    transactions = [
        transaction(
            row["from_address"],
            row["to_address"] or None,
            int(row["value"]),
            row["block_timestamp"],
            status=row.get("receipt_status"),
            data=(row["method_id"] or "0x") if row["input_bytes"] is not None else None,
        )
        for row in rows
    ]

    assert_equal(accounts_of(accounts_max=4000), Oracle(), transactions)


def test_evicting_kernel_equals_oracle() -> None:
    """A full table forgets the stalest of the next 64 slots, and what a stranger did before that is unknown."""
    transactions = drawn(2000, n_addresses=300, gap_s=20 * HOUR)
    accounts, oracle = accounts_of(accounts_max=100), Oracle(accounts_max=100)

    assert_equal(accounts, oracle, transactions)

    assert accounts.n_accounts == 100
    assert accounts.n_evicted == len(oracle.evicted) > 1000


def test_index_stays_whole_under_eviction() -> None:
    """Over 40,000 transactions in 64 slots, the index holds the accounts in the slab, each findable, and no other."""
    accounts = accounts_of(accounts_max=64, pairs_max=64)
    everything = packed(drawn(4000, n_addresses=2000))
    for batch in np.array_split(np.concatenate([everything] * 10), 400):
        accounts.score_rows(batch)

        slots, keys = accounts.table.slots, accounts.table.u64
        indexed = np.sort((slots[slots != 0] & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1)
        found = []
        for key in keys[: accounts.n_accounts]:
            a, b, c = key[0], key[1], key[2] & np.uint64(0xFFFFFFFF)
            found.append(table.find(accounts.table, a, b, c, np.uint64(table.hash_key(a, b, c))))
        assert indexed.tolist() == found == list(range(accounts.n_accounts))
    assert accounts.n_accounts == 64
    assert accounts.n_pairs <= 64


def test_what_eviction_forgot_is_unknown_for_two_half_lives() -> None:
    """A stranger's window is NaN until the last evicted event lies two half-lives back, then 0."""
    accounts = accounts_of(accounts_max=64, history_start=START - 1000 * DAY)
    crowd = [f"0x{i:040x}" for i in range(1, 67)]
    accounts.score_rows(
        packed([transaction(crowd[i], crowd[i + 1], 10**18, START + i * HOUR) for i in range(0, 64, 2)])
    )
    stranger, other = "0x" + "ab" * 20, "0x" + "cd" * 20
    accounts.score_rows(packed([transaction(crowd[64], crowd[65], 1, START + 100 * HOUR)]))
    evicted_s = START  # The first pair of the crowd was the stalest.

    for name, half_life_s in (("1h", HOUR), ("1d", DAY), ("7d", 7 * DAY), ("30d", 30 * DAY)):
        column = schema.index(f"from_out_count_{name}")
        times = [evicted_s + 2 * half_life_s + late for late in (-1, 0)]
        rows, _ = accounts.emit(packed([transaction(stranger, other, 1, time) for time in times]))
        np.testing.assert_array_equal(rows[:, column], [np.nan, 0.0])


@examples(40)
@given(st.lists(STEPS, min_size=20, max_size=60).map(stream), st.integers(0, 60))
def test_emit_leaves_the_past_alone(transactions: list[Transaction], n_before: int) -> None:
    """Emitting changes no bit of the table, an empty one included, and gives the row that scoring gives next."""
    accounts = listed(accounts_max=64)
    n_before = min(n_before, len(transactions) - 1)
    accounts.score_rows(packed(transactions[:n_before]))
    before = state(accounts)
    emitted, emitted_hits = accounts.emit(packed(transactions[n_before:]))

    assert state(accounts) == before
    scored, scored_hits = accounts.score_rows(packed(transactions[n_before : n_before + 1]))
    assert emitted[:1].tobytes() == scored.tobytes()
    assert emitted_hits[:1].tobytes() == scored_hits.tobytes()


@pytest.mark.parametrize("accounts_max", [64, 1000])
def test_batch_size_does_not_matter(accounts_max: int) -> None:
    """Rows, hits and the table are the same bits in batches of 1, 7, 500 and all at once."""
    everything = packed(drawn(3000, n_addresses=400))
    outcomes = []
    for size in (1, 7, 500, len(everything)):
        accounts = accounts_of(accounts_max=accounts_max, pairs_max=256)
        batches = [accounts.score_rows(everything[i : i + size]) for i in range(0, len(everything), size)]
        rows, hits = (np.concatenate(part).tobytes() for part in zip(*batches, strict=True))
        outcomes.append((rows, hits, state(accounts)))

    assert all(outcome == outcomes[0] for outcome in outcomes)


ORDERED = ("_new_", "_onward", "_gap", "_pause", "_exposure_passed")
"""What depends on the order of events: first meetings, the event before another, what a sender passes on."""
COMMUTATIVE = [f.name for f in schema.FEATURES if not any(part in f.name for part in ORDERED)]


def views(accounts: Accounts, time: int) -> np.ndarray:
    """Return what every pair of the pool looks like at a time."""
    probes = [transaction(one, other, 10**18, time) for one in POOL for other in POOL]
    return accounts.emit(packed(probes))[0]


def faint(row: dict[str, float]) -> set[str]:
    """Return the means and ratios over next to nothing.

    Sums below 1e-12 are dropped one by one when an account is touched: in two halves a sum may be dropped that the
    whole would have kept, and a ratio of what little is left shows it.
    """
    columns = set()
    for side in ("from", "to"):
        for way in ("in", "out"):
            if row[f"{side}_{way}_count_30d"] < 1e-6:
                columns |= {f"{side}_{way}_{name}" for name in ("magnitude_30d", "spread_30d", "round_share")}
                columns |= {f"{side}_{way}_burst", f"{side}_{way}_age", f"{side}_residence"}
                columns |= {f"{side}_count_balance_30d", f"{side}_amount_over_{way}"}
            for name in ("1d", "30d"):
                if row[f"{side}_{way}_amount_{name}"] < 1e-6:
                    columns |= {f"{side}_balance_{name}", f"{side}_exposure_direct", f"{side}_amount_of_in_1d"}
    return columns


def assert_same_view(one: np.ndarray, other: np.ndarray) -> None:
    """Compare the commutative columns of two tables."""
    for row, expected in zip(one, other, strict=True):
        by_name = {feature.name: float(x) for feature, x in zip(schema.FEATURES, expected, strict=True)}
        skipped = faint(by_name)
        assert differences(row, by_name, [name for name in COMMUTATIVE if name not in skipped]) == {}


@examples(80)
@given(st.data(), st.lists(STEPS, min_size=2, max_size=40).map(stream))
def test_order_of_events_does_not_matter(data: st.DataObject, transactions: list[Transaction]) -> None:
    """A stream in any order, so that most of it comes late, leaves the same sums, extremes, counts and times."""
    shuffled = data.draw(st.permutations(transactions))
    one, other = (listed(history_start=START - 300 * DAY) for _ in range(2))
    one.score_rows(packed(transactions))
    other.score_rows(packed(shuffled))
    end = max(tx.block_timestamp for tx in transactions)

    assert_same_view(views(one, end), views(other, end))


@examples(80)
@given(st.lists(st.tuples(STEPS, st.booleans()), min_size=1, max_size=40))
def test_merged_halves_equal_the_whole(halves: list[tuple[tuple, bool]]) -> None:
    """Two tables that saw half of a stream each merge to what one table would hold, but for what needs the order."""
    transactions = stream([(*step[:-1], False) for step, _ in halves])
    is_left = [side for _, side in halves]
    whole, left, right = (listed(history_start=START - 300 * DAY) for _ in range(3))
    whole.score_rows(packed(transactions))
    left.score_rows(packed([tx for tx, side in zip(transactions, is_left, strict=True) if side]))
    right.score_rows(packed([tx for tx, side in zip(transactions, is_left, strict=True) if not side]))
    left.merge(right)
    end = max(tx.block_timestamp for tx in transactions)

    assert_same_view(views(left, end), views(whole, end))
    assert (left.n_accounts, left.n_pairs) == (whole.n_accounts, whole.n_pairs)
