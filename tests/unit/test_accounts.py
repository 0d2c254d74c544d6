"""The table of accounts: its limits, its memory, and a saved past."""

import numpy as np
import pytest

from features import schema, screening
from features.accounts import Accounts
from features.errors import StateError, UsageError
from features.table import HORIZON, META_WORDS, N_ACCOUNTS, SINCE, STARTED, WORDS
from features.transaction import pack, records
from tests.transactions import transaction

T, DAY = 1_500_000_000, 86_400


def paid(sender: int, recipient: int, time: int, value: int = 10**18) -> bytes:
    """Return a packed payment between two numbered addresses."""
    return pack(transaction(f"0x{sender:040x}", f"0x{recipient:040x}", value, time, status=1, data="0x"))


def crowd(n: int, *, seed: int = 1) -> np.ndarray:
    """Return payments among 200 addresses."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(1, 200, (n, 2))
    return records([paid(int(a), int(b), T + 600 * i, 10**17 * int(a)) for i, (a, b) in enumerate(sides)])


def test_ten_million_accounts_stay_below_three_gigabytes():
    """An account is 256 bytes; 10 million, their index and 4 million pairs take less than 3 GB."""
    # np.zeros maps the pages and touches none, so this costs no memory; tests/bench/bench_kernel.py fills them.
    accounts = Accounts(accounts_max=10_000_000, pairs_max=4_000_000)

    assert WORDS * 4 == 256
    assert accounts.table.f32.nbytes == 10_000_000 * 256
    assert accounts.memory_bytes < 3_000_000_000


@pytest.mark.parametrize(
    "arguments",
    [
        {"accounts_max": 63},
        {"accounts_max": 100_000_001},
        {"pairs_max": 3},
        {"pairs_max": 400_000_001},
        {"history_start": -1},
        {"history_start": 4_102_444_801},
    ],
)
def test_limits_out_of_range_are_refused(arguments: dict[str, int]):
    """A limit that the table cannot hold is an error that names it with its value."""
    ((name, value),) = arguments.items()

    with pytest.raises(UsageError, match=f"{name} is {value}, not "):
        Accounts(**({"accounts_max": 64, "pairs_max": 64} | arguments))


@pytest.mark.parametrize(("pairs_max", "n_rows"), [(4, 4), (5, 8), (8, 8)])
def test_pairs_come_in_whole_buckets(pairs_max: int, n_rows: int):
    """The pairs asked for are rounded up to buckets of four."""
    assert len(Accounts(accounts_max=64, pairs_max=pairs_max).table.pairs_f32) == n_rows


def test_pair_memory_is_bounded():
    """A thousand pairs in room for 64 fill it, and no more."""
    accounts = Accounts(accounts_max=1000, pairs_max=64)
    accounts.score_rows(crowd(2000))

    assert accounts.n_pairs == 64


def test_history_start_says_what_the_first_transaction_knows():
    """Without it the past begins with the first transaction and is unknown; with it, what is absent is zero."""
    column = schema.index("from_out_count_30d")
    record = records([paid(1, 2, T)])
    fresh = Accounts(accounts_max=64, pairs_max=64)
    watched = Accounts(accounts_max=64, pairs_max=64, history_start=T - 60 * DAY)
    late = Accounts(accounts_max=64, pairs_max=64, history_start=T - 60 * DAY + 1)

    np.testing.assert_array_equal([a.emit(record)[0][0, column] for a in (fresh, watched, late)], [np.nan, 0, np.nan])
    fresh.score_rows(record)
    assert fresh.table.meta[[STARTED, HORIZON, SINCE]].tolist() == [1, T, T]


def test_no_records_give_no_rows():
    """An empty batch is a batch."""
    rows, hits = Accounts(accounts_max=64, pairs_max=64).score_rows(records([]))

    assert rows.shape == (0, schema.N_FEATURES)
    assert hits.shape == (0,)


def test_restored_table_continues_bit_for_bit():
    """A table restored over another past gives the rows that the saved one gives, evictions and pairs included."""
    everything = crowd(1000)
    one = Accounts(accounts_max=100, pairs_max=64)
    one.score_rows(everything[:600])
    saved = {name: array.copy() for name, array in one.arrays().items()}
    other = Accounts(accounts_max=100, pairs_max=64)
    other.score_rows(crowd(300, seed=2))
    other.restore(saved)

    assert (other.n_accounts, other.n_evicted, other.n_pairs) == (one.n_accounts, one.n_evicted, one.n_pairs)
    assert other.score_rows(everything[600:])[0].tobytes() == one.score_rows(everything[600:])[0].tobytes()
    assert all(other.arrays()[name].tobytes() == array.tobytes() for name, array in one.arrays().items())


def test_restore_into_a_longer_past_forgets_it():
    """Slots beyond the restored accounts are given out clean, whatever stood in them."""
    few, fresh, used = (Accounts(accounts_max=300, pairs_max=64) for _ in range(3))
    few.score_rows(crowd(5))
    saved = {name: array.copy() for name, array in few.arrays().items()}
    used.score_rows(crowd(900, seed=3))
    for accounts in (fresh, used):
        accounts.restore(saved)

    assert used.score_rows(crowd(500))[0].tobytes() == fresh.score_rows(crowd(500))[0].tobytes()


@pytest.mark.parametrize("limits", [{"accounts_max": 400}, {"accounts_max": 50 + 64}, {"pairs_max": 128}])
def test_state_of_other_limits_is_refused(limits: dict[str, int]):
    """A state saved with another number of accounts or pairs is refused, and the past stays as it was."""
    saved = Accounts(accounts_max=200, pairs_max=64)
    saved.score_rows(crowd(300))
    accounts = Accounts(**({"accounts_max": 200, "pairs_max": 64} | limits))
    accounts.score_rows(crowd(10))
    before = accounts.emit(crowd(10))[0].tobytes()

    with pytest.raises(StateError, match=r"saved \w+ ha(s|ve) shape"):
        accounts.restore(saved.arrays())
    assert accounts.emit(crowd(10))[0].tobytes() == before


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("slots", None, "saved state has no slots"),
        ("accounts", np.zeros((0, WORDS), np.float32), "0 accounts, .* indexed and .* counted"),
        ("accounts", np.zeros((9, WORDS), np.float64), "float64"),
        ("accounts", np.zeros((9, WORDS - 1), np.float32), r"shape \(9, 63\)"),
        ("meta", np.zeros(META_WORDS + 1, np.int64), "saved meta has shape"),
        ("meta", np.zeros(META_WORDS, np.int64), "and 0 counted"),
        ("pairs", np.zeros((64, 8), np.float64), "saved pairs has"),
    ],
)
def test_damaged_state_is_refused(name: str, value: np.ndarray | None, complaint: str):
    """Arrays that are missing, of another kind, or that contradict each other never reach the kernel."""
    saved = Accounts(accounts_max=200, pairs_max=64)
    saved.score_rows(crowd(20))
    arrays = {key: array for key, array in saved.arrays().items() if key != name}
    if value is not None:
        arrays[name] = value

    with pytest.raises(StateError, match=complaint):
        Accounts(accounts_max=200, pairs_max=64).restore(arrays)


def test_merge_needs_as_many_pairs():
    """Pairs are found by bucket, so tables of different buckets do not merge."""
    with pytest.raises(StateError, match="pairs_max 128 differs from 64"):
        Accounts(accounts_max=64, pairs_max=64).merge(Accounts(accounts_max=64, pairs_max=128))


def test_merge_keeps_what_either_table_does_not_know():
    """An account that one table may have evicted is unknown in the merged one until that eviction lies far back."""
    column = schema.index("from_out_count_1d")
    start = T - 100 * DAY
    one, other = (Accounts(accounts_max=n, pairs_max=1024, history_start=start) for n in (256, 64))
    one.score_rows(records([paid(1001, 1002, T)]))
    other.score_rows(records([paid(i, i + 1, T + i) for i in range(1, 200, 2)]))
    assert one.emit(records([paid(1001, 1002, T + DAY)]))[0][0, column] == 0.5
    one.merge(other)

    assert np.isnan(one.emit(records([paid(1001, 1002, T + DAY)]))[0][0, column])
    assert one.emit(records([paid(1001, 1002, T + 3 * DAY)]))[0][0, column] == 0.125
    evictor, whole = (Accounts(accounts_max=n, pairs_max=1024, history_start=start) for n in (64, 256))
    evictor.score_rows(records([paid(i, i + 1, T + i) for i in range(1, 200, 2)]))
    whole.score_rows(records([paid(1001, 1002, T)]))
    evictor.merge(whole)
    assert np.isnan(evictor.emit(records([paid(1001, 1002, T + DAY)]))[0][0, column])


def test_merge_keeps_the_horizon_of_pairs_given_up():
    """A pair that the other table gave up is unknown in the merged one, not zero."""
    column = schema.index("pair_count")
    one, other = (Accounts(accounts_max=64, pairs_max=4, history_start=T - 100 * DAY) for _ in range(2))
    other.score_rows(records([paid(1, i, T + i) for i in range(2, 8)]))
    stranger = records([paid(1, 99, T + 10)])
    assert one.emit(stranger)[0][0, column] == 0
    one.merge(other)

    assert np.isnan(one.emit(stranger)[0][0, column])
    assert one.n_pairs == 4


def test_table_without_lists_has_no_exposure():
    """Exposure is NaN without a list, and also with lists of which none taints."""
    columns = [schema.index("to_exposure_direct"), schema.index("to_exposure_passed")]
    harmless = screening.build([(f"0x{1:040x}", "exchange", 0)])
    tainting = screening.build([(f"0x{1:040x}", "scam", 0)])
    for lists, expected in ((None, [np.nan] * 2), (harmless, [np.nan] * 2), (tainting, [1.0, 0.0])):
        accounts = Accounts(accounts_max=64, pairs_max=64, screening=lists)
        accounts.score_rows(records([paid(1, 2, T)]))
        np.testing.assert_array_equal(accounts.emit(records([paid(3, 2, T)]))[0][0, columns], expected)


def test_exposure_is_passed_on_in_shares():
    """A flagged address's 1 ETH mixed with 3 clean ones makes a quarter, which further hands pass on as a quarter."""
    lists = screening.build([(f"0x{1:040x}", "scam", 0)])
    accounts = Accounts(accounts_max=64, pairs_max=64, screening=lists)
    payments = [(1, 2, 1), (9, 2, 3), (2, 3, 1), (3, 4, 1), (9, 4, 1), (4, 5, 2)]
    accounts.score_rows(records([paid(a, b, T, n * 10**18) for a, b, n in payments]))
    rows, _ = accounts.emit(records([paid(9, i, T) for i in (2, 3, 4, 5)]))

    assert rows[:, schema.index("to_exposure_direct")].tolist() == [0.25, 0, 0, 0]
    assert rows[:, schema.index("to_exposure_passed")].tolist() == [0, 0.25, 0.125, 0.125]


def test_amount_of_a_days_receipts_stays_finite():
    """Receipts of long ago are nothing, not a divisor that makes any amount infinite."""
    accounts = Accounts(accounts_max=64, pairs_max=64)
    accounts.score_rows(records([paid(1, 2, T)]))
    rows, _ = accounts.emit(records([paid(2, 3, T + days * DAY, 2**256 - 1) for days in (1, 200, 900, 5000)]))

    assert not np.isinf(rows).any()
    column = rows[:, schema.index("from_amount_of_in_1d")]
    np.testing.assert_allclose(column, [2e12, np.nan, np.nan, np.nan], rtol=1e-6)


def test_contact_without_payment_leaves_the_pair_unknown():
    """A call of value 0 just before does not make the payments of an unwatched past zero."""
    accounts = Accounts(accounts_max=64, pairs_max=64)
    accounts.score_rows(records([paid(1, 2, T, 0)]))
    row = accounts.emit(records([paid(1, 2, T + 5)]))[0][0]

    assert np.isnan(row[[schema.index("pair_count"), schema.index("pair_amount")]]).all()
    assert row[schema.index("pair_seconds")] == 5


def test_look_alikes_share_first_and_last_four_digits():
    """Another digit among the first or last four is seen by people, so it is no look-alike; one in the middle is."""
    accounts = Accounts(accounts_max=64, pairs_max=1 << 12)
    genuine = 0x1234_5678_9ABC_DEF0_1234_5678_9ABC_DEF0_5678_BEEF
    accounts.score_rows(records([paid(1, genuine, T)]))
    changed = [genuine ^ 1 << 4 * digit for digit in range(40)]
    to_imitates = accounts.emit(records([paid(1, other, T) for other in changed]))[0][:, schema.index("to_imitates")]
    from_imitates = accounts.emit(records([paid(other, 1, T) for other in changed]))[0][
        :, schema.index("from_imitates")
    ]

    expected = [0] * 4 + [1] * 32 + [0] * 4
    assert (to_imitates.tolist(), from_imitates.tolist()) == (expected, expected)


def test_faked_transfers_do_not_hide_whom_they_imitate():
    """Transfers of nothing from a victim to many look-alikes leave the payment that they imitate in memory."""
    accounts = Accounts(accounts_max=64, pairs_max=4096)
    genuine, fakes = 0x1234 << 144 | 0xBEEF, [0x1234 << 144 | i << 32 | 0xBEEF for i in range(1, 9)]
    accounts.score_rows(records([paid(1, genuine, T), *(paid(1, fake, T + 1, 0) for fake in fakes)]))
    rows, _ = accounts.emit(records([paid(1, genuine, T + 9), *(paid(1, fake, T + 9) for fake in fakes)]))

    assert rows[:, schema.index("pair_count")][0] == 1
    assert rows[:, schema.index("to_imitates")].tolist() == [0] + [1] * 8


def test_n_accounts_counts_both_sides():
    """Both sides of a payment get an account, once."""
    accounts = Accounts(accounts_max=64, pairs_max=64)
    accounts.score_rows(records([paid(1, 2, T), paid(2, 1, T), paid(3, 3, T)]))

    assert accounts.n_accounts == accounts.table.meta[N_ACCOUNTS] == 3
    assert (accounts.n_pairs, accounts.n_evicted) == (3, 0)
