"""The naive oracle: every column of the feature row recomputed from the whole history, in float64, as the docs say it.

It keeps each account's events in lists, and each pair that ever met, and knows nothing of the kernel's arrays. It
takes one thing from the product: the hash of an address, of which linear counting uses six bits.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from features import schema
from features.table import hash_key
from features.transaction import Transaction

HOUR, DAY = 3600, 86_400
HALF_LIVES = {"1h": HOUR, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}
PERIOD = 30 * DAY
NOTHING = 1e-12
"""A decayed sum below this is 0."""

ETHER_MAX = 1e12
EVICTION_WINDOW = 64
ALL = ("1h", "1d", "7d", "30d")
SUMS = {
    **dict.fromkeys(("in_count", "out_count", "in_amount", "out_amount"), ALL),
    **dict.fromkeys(("in_log", "in_log2", "out_log", "out_log2", "in_new", "out_new"), ("30d",)),
    **dict.fromkeys(("in_gap", "in_gap2", "in_gaps", "out_gap", "out_gap2", "out_gaps"), ("30d",)),
    **dict.fromkeys(("in_round", "out_round"), ("30d",)),
    **dict.fromkeys(("token_in", "token_out", "zero_in", "zero_out", "failed", "approvals"), ("30d",)),
    **dict.fromkeys(("flagged", "passed", "onward", "onward_count"), ("30d",)),
}
"""The decayed sums of an account, and the half-lives they are kept for."""

METHODS = {
    "0xa9059cbb": 2,
    "0x23b872dd": 2,
    "0x42842e0e": 2,
    "0x095ea7b3": 3,
    "0x39509351": 3,
    "0xd505accf": 4,
    "0x8fcbaf0c": 4,
    "0xa22cb465": 5,
}

Lists = dict[tuple[str, str], int]
"""From (address, list) to the time from which it was known."""


@dataclass
class Account:
    """The whole past of an address."""

    address: str
    known_from: int
    updated: int
    """The latest event's time: sums stand as of it, and a late event leaves it as it is."""

    period: int
    """The latest 30-day period of the first event and of payments."""

    events: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: {name: [] for name in SUMS})
    """What each event added to a sum, and when."""

    n_forgotten: dict[tuple[str, str], int] = field(default_factory=dict)
    """How many of a sum's first events counted less than NOTHING together when the account was last touched."""

    payments: dict[str, list[tuple[int, float, int]]] = field(default_factory=lambda: {"in": [], "out": []})
    """Time, amount, and the counterparty's bit."""

    def total(self, name: str, half_life: str, at: int) -> float:
        """Return a sum as of `at`: an event counts 1, and half as much after each half-life."""
        return math.fsum(x * 2.0 ** -((at - t) / HALF_LIVES[half_life]) for t, x in self.left(name, half_life))

    def left(self, name: str, half_life: str) -> list[tuple[int, float]]:
        """Return the events of a sum that are not forgotten."""
        return self.events[name][self.n_forgotten.get((name, half_life), 0) :]

    def touch(self, time: int) -> None:
        """Move `updated` forward to an event's time and forget the sums that have become nothing."""
        if time <= self.updated:
            return
        self.updated = time
        for name, half_lives in SUMS.items():
            for half_life in half_lives:
                if abs(self.total(name, half_life, time)) < NOTHING:
                    self.n_forgotten[name, half_life] = len(self.events[name])

    def add(self, name: str, time: int, x: float = 1.0) -> None:
        """Add an event to a sum."""
        self.events[name].append((time, x))

    def mean_age(self, way: str, at: int) -> float:
        """Return the mean age in days of the receipts or payments, each weighing what is left of it."""
        count = self.total(f"{way}_count", "30d", self.updated)
        if count <= NOTHING:
            return math.nan
        ages = [
            2.0 ** -((self.updated - t) / HALF_LIVES["30d"]) * (self.updated - t) / DAY
            for t, _ in self.left(f"{way}_count", "30d")
        ]
        return math.fsum(ages) / count + (at - self.updated) / DAY

    def recent(self, way: str, now: int) -> list[tuple[int, float, int]]:
        """Return the payments of the period of `now` (or of a later one already seen) and of the one before."""
        period = max(self.period, now // PERIOD)
        return [payment for payment in self.payments[way] if payment[0] // PERIOD in (period, period - 1)]


@dataclass
class Pair:
    """The payments of one sender to one recipient."""

    key: tuple[str, str]
    last: int
    count: int = 0
    amount: float = 0.0


class Oracle:
    """What `Accounts` does, slowly."""

    def __init__(
        self,
        *,
        history_start: int | None = None,
        lists: Lists | None = None,
        accounts_max: int | None = None,
        pairs_max: int | None = None,
    ) -> None:
        """Start without a past.

        Args:
            history_start: As in `Accounts`.
            lists: Screening lists; those of `flagged_lists` count for exposure.
            accounts_max: Evict accounts as `Accounts` says it does; None keeps all.
            pairs_max: Keep this many pairs, the stalest given up, as one bucket of the kernel does; None keeps all.
        """
        self.horizon = self.since = history_start
        self.lists = lists or {}
        self.flagged_lists = {"sanctioned", "scam", "phishing", "stolen", "mixer"} & {name for _, name in self.lists}
        self.accounts_max, self.pairs_max = accounts_max, pairs_max
        self.slots: list[Account] = []
        self.accounts: dict[str, Account] = {}
        self.hand = 0
        self.evicted: list[Account] = []
        self.pairs: list[Pair] = []
        self.by_pair: dict[tuple[str, str], Pair] = {}
        self.pairs_horizon = 0

    def score(self, tx: Transaction) -> dict[str, float]:
        """Return the row of a transaction from the past, then make the transaction part of it."""
        row = self.row(tx)
        self.observe(tx)
        return row

    def row(self, tx: Transaction) -> dict[str, float]:
        """Return every column of the feature table by name, NaN where unknown."""
        now, amount = tx.block_timestamp, ether(tx)
        if self.horizon is None:
            self.horizon = self.since = now
        row = columns_of_transaction(tx)
        sides = (("from", tx.from_address), ("to", tx.to_address))
        for side, address in sides:
            account = self.accounts.get(address) if address is not None else None
            if account is not None:
                columns = self.side(account, now, amount)
            else:
                columns = unknown_side(now - self.horizon if address is not None else -1)
            row |= {f"{side}_{name}": value for name, value in columns.items()}
        row |= self.pair_columns(tx)
        return row

    def hits(self, tx: Transaction) -> tuple[set[str], set[str]]:
        """Return the lists on which the sender and the recipient stood at the transaction's time."""
        return self.listed(tx.from_address, tx.block_timestamp), self.listed(tx.to_address, tx.block_timestamp)

    def listed(self, address: str | None, time: int) -> set[str]:
        """Return the lists on which an address stood at a time."""
        return {name for (listed, name), since in self.lists.items() if listed == address and since <= time}

    def side(self, account: Account, now: int, amount: float) -> dict[str, float]:
        """Return one side's columns, named without the side."""
        columns = unknown_side(now - account.known_from)
        at = max(now, account.updated)
        for name in columns:
            if not math.isnan(columns[name]):
                columns[name] = self.counted(account, name, now)
        for half_life in ("1d", "30d"):
            received, paid = (account.total(f"{way}_amount", half_life, account.updated) for way in ("in", "out"))
            columns[f"balance_{half_life}"] = balance(received, paid)
        for way in ("in", "out"):
            amounts = moments(account, f"{way}_log", f"{way}_count")
            columns[f"{way}_magnitude_30d"], columns[f"{way}_spread_30d"] = amounts
            columns[f"{way}_gap"], columns[f"{way}_gap_spread"] = moments(account, f"{way}_gap", f"{way}_gaps")

        def stored(name: str, half_life: str = "30d") -> float:
            return account.total(name, half_life, account.updated)

        columns["count_balance_30d"] = balance(stored("in_count"), stored("out_count"))
        for way in ("in", "out"):
            columns[f"{way}_new_share_30d"] = share(stored(f"{way}_new"), stored(f"{way}_count"))
            columns[f"{way}_round_share"] = share(stored(f"{way}_round"), stored(f"{way}_count"))
            columns[f"{way}_burst"] = share(
                account.total(f"{way}_count", "1d", at), account.total(f"{way}_count", "30d", at)
            )
            times = [time for time, _, _ in account.payments[way]]
            columns[f"seconds_since_{way}"] = max(now - max(times), 0) if times else math.nan
            columns[f"{way}_age"] = account.mean_age(way, at)
            if amount > 0.0:
                columns[f"amount_over_{way}"] = math.log10(amount) - columns[f"{way}_magnitude_30d"]
        columns["in_pause"] = math.log10(1 + columns["seconds_since_in"]) - columns["in_gap"]
        columns["residence"] = columns["in_age"] - columns["out_age"]
        columns["onward"] = share(stored("onward"), stored("onward_count"))
        if amount > 0.0:
            columns["amount_of_in_1d"] = share(amount, account.total("in_amount", "1d", at))
        if self.flagged_lists:
            columns["exposure_direct"] = share(stored("flagged"), stored("in_amount"))
            columns["exposure_passed"] = share(stored("passed"), stored("in_amount"))
        return columns

    @staticmethod
    def counted(account: Account, column: str, now: int) -> float:
        """Return a column that is 0 for an account known to have done nothing."""
        if column in ("senders", "recipients"):
            bits = {bit for _, _, bit in account.recent("in" if column == "senders" else "out", now)}
            return -64.0 * math.log(max(64 - len(bits), 1) / 64.0) if bits else 0.0
        if column in ("in_max", "out_max"):
            return max((amount for _, amount, _ in account.recent(column.removesuffix("_max"), now)), default=0.0)
        name, half_life = column.rsplit("_", 1)
        return account.total(name, half_life, max(now, account.updated))

    def pair_columns(self, tx: Transaction) -> dict[str, float]:
        """Return the pair's history, both ways, and the look-alikes."""
        names = ("count", "amount", "seconds")
        if tx.to_address is None:
            nan = {f"{way}_{name}": math.nan for way in ("pair", "reverse") for name in names}
            return nan | {"to_imitates": math.nan, "from_imitates": math.nan}
        assert self.since is not None
        is_known = tx.block_timestamp - max(self.since, self.pairs_horizon) >= 60 * DAY
        columns = {}
        for way, imitates, key in (
            ("pair", "to_imitates", (tx.from_address, tx.to_address)),
            ("reverse", "from_imitates", (tx.to_address, tx.from_address)),
        ):
            pair = self.by_pair.get(key)
            n, amount = (pair.count, pair.amount) if pair is not None else (0, 0.0)
            columns[f"{way}_count"] = n if n or is_known else math.nan
            columns[f"{way}_amount"] = amount if n or is_known else math.nan
            columns[f"{way}_seconds"] = max(tx.block_timestamp - pair.last, 0) if pair is not None else math.nan
            columns[imitates] = sum(
                other.key[0] == key[0] and other.count > 0 and other.key[1] != key[1] and alike(other.key[1], key[1])
                for other in self.pairs
            )
        return columns

    def observe(self, tx: Transaction) -> None:
        """Make a transaction part of the past."""
        time, amount = tx.block_timestamp, ether(tx)
        moved = amount > 0.0 and tx.receipt_status != 0
        pair = self.by_pair.get((tx.from_address, tx.to_address or ""))
        is_first = moved and tx.to_address is not None and (pair is None or pair.count == 0)
        recipient = self.accounts.get(tx.to_address) if tx.to_address is not None else None
        sender = self.accounts.get(tx.from_address) or self.insert(tx.from_address, time, keep=recipient)
        sender.touch(time)
        if tx.receipt_status == 0:
            sender.add("failed", time)
        elif moved:
            receipts = [t for t, _, _ in sender.payments["in"]]
            if receipts and max(receipts) <= time:
                sender.add("onward", time, math.log10(1 + time - max(receipts)))
                sender.add("onward_count", time)
            # A contract's creation pays the address 0x00..00 as far as counting recipients goes.
            self.pay(sender, "out", time, amount, tx.to_address or "0x" + "00" * 20, is_first)
        else:
            sender.add("token_out" if tx.type == "token_transfer" else "zero_out", time)
            if METHODS.get((tx.input or "")[:10], 0) in (3, 4, 5):
                sender.add("approvals", time)
        if tx.to_address is None:
            return
        recipient = self.accounts.get(tx.to_address) or self.insert(tx.to_address, time, keep=sender)
        recipient.touch(time)
        if moved:
            self.expose(recipient, sender, time, amount)
            self.pay(recipient, "in", time, amount, tx.from_address, is_first)
        elif tx.receipt_status != 0:
            recipient.add("token_in" if tx.type == "token_transfer" else "zero_in", time)
        self.meet((tx.from_address, tx.to_address), time, amount if moved else 0.0)

    @staticmethod
    def pay(account: Account, way: str, time: int, amount: float, other: str, is_first: bool) -> None:
        """Add a payment to one side's sums."""
        account.add(f"{way}_count", time)
        account.add(f"{way}_amount", time, amount)
        account.add(f"{way}_log", time, math.log10(amount))
        account.add(f"{way}_log2", time, math.log10(amount) ** 2)
        if is_first:
            account.add(f"{way}_new", time)
        if significant_digits(amount) <= 2:
            account.add(f"{way}_round", time)
        earlier = [t for t, _, _ in account.payments[way]]
        if earlier and max(earlier) <= time:
            gap = math.log10(1 + time - max(earlier))
            account.add(f"{way}_gap", time, gap)
            account.add(f"{way}_gap2", time, gap**2)
            account.add(f"{way}_gaps", time)
        account.period = max(account.period, time // PERIOD)
        account.payments[way].append((time, amount, bit(other)))

    def expose(self, account: Account, sender: Account, time: int, amount: float) -> None:
        """Add a receipt from a flagged address, or the share of the sender's own receipts that was flagged."""
        if not self.flagged_lists:
            return
        if self.listed(sender.address, time) & self.flagged_lists:
            account.add("flagged", time, amount)
            return
        received = sender.total("in_amount", "30d", sender.updated)
        if received > NOTHING:
            flagged = sum(sender.total(name, "30d", sender.updated) for name in ("flagged", "passed"))
            account.add("passed", time, amount * min(flagged / received, 1.0))

    def meet(self, key: tuple[str, str], time: int, amount: float) -> None:
        """Make a contact part of the pair's past, giving up a mere contact or the stalest pair where memory is full."""
        pair = self.by_pair.get(key)
        if pair is None:
            pair = Pair(key, time)
            if self.pairs_max is not None and len(self.pairs) == self.pairs_max:
                given_up = min(self.pairs, key=lambda other: (other.count > 0, other.last))
                if given_up.count > 0:
                    if amount <= 0.0:
                        return
                    self.pairs_horizon = max(self.pairs_horizon, given_up.last)
                del self.by_pair[given_up.key]
                self.pairs[self.pairs.index(given_up)] = pair
            else:
                self.pairs.append(pair)
            self.by_pair[key] = pair
        pair.last = max(pair.last, time)
        if amount > 0.0:
            pair.count += 1
            pair.amount += amount

    def insert(self, address: str, time: int, *, keep: Account | None) -> Account:
        """Add an account, in the place of the stalest of the next 64 where the table is full."""
        assert self.horizon is not None
        slot = len(self.slots)
        if slot == self.accounts_max:
            window = [(self.hand + i) % slot for i in range(EVICTION_WINDOW)]
            slot = min((i for i in window if self.slots[i] is not keep), key=lambda i: self.slots[i].updated)
            self.hand = (self.hand + EVICTION_WINDOW) % len(self.slots)
            victim = self.slots[slot]
            self.evicted.append(victim)
            del self.accounts[victim.address]
            # What the victim did is forgotten: from here on nothing before its last event is known of a stranger.
            self.horizon = max(self.horizon, victim.updated)
        account = Account(address, known_from=self.horizon, updated=time, period=time // PERIOD)
        self.slots[slot : slot + 1] = [account]
        self.accounts[address] = account
        return account


def ether(tx: Transaction) -> float:
    """Return the amount moved in ether; a token's worth is unknown."""
    return math.nan if tx.type == "token_transfer" else min(tx.value / 10**18, ETHER_MAX)


@lru_cache
def bit(address: str) -> int:
    """Return which of 64 bits stands for a counterparty."""
    return int(hash_key(*np.frombuffer(bytes.fromhex(address[2:]) + bytes(4), dtype=np.uint64))) % 64


def alike(one: str, other: str) -> bool:
    """Return whether two addresses share their first and last four hex digits."""
    return one[2:6] == other[2:6] and one[-4:] == other[-4:]


def share(part: float, whole: float) -> float:
    """Return a part of a whole, unknown where the whole is nothing."""
    return part / whole if whole > NOTHING else math.nan


def balance(received: float, paid: float) -> float:
    """Return 1 where all was received, -1 where all was paid."""
    return share(received - paid, received + paid)


def columns_of_transaction(tx: Transaction) -> dict[str, float]:
    """Return the columns that need no past."""
    method = math.nan
    if tx.input is not None:
        method = METHODS.get(tx.input[:10], 6) if len(tx.input) >= 10 else 1
    return {
        "amount": ether(tx),
        "is_token": tx.type == "token_transfer",
        "is_creation": tx.to_address is None,
        "is_failed": math.nan if tx.receipt_status is None else tx.receipt_status == 0,
        "method_class": method,
        "input_bytes": math.nan if tx.input is None else len(tx.input) // 2 - 1,
        "is_self": tx.from_address == tx.to_address,
        "digits": significant_digits(ether(tx)),
    }


def moments(account: Account, name: str, count: str) -> tuple[float, float]:
    """Return mean and standard deviation of what was summed under a name and, squared, under name2."""
    total, squares, n = (account.total(of, "30d", account.updated) for of in (name, f"{name}2", count))
    mean, square = share(total, n), share(squares, n)
    return mean, math.sqrt(max(square - mean * mean, 0.0)) if not math.isnan(mean) else math.nan


def significant_digits(amount: float) -> float:
    """Return the digits of the shortest decimal number within 1e-5 of an amount: 1 to 4, 5 for more."""
    if not amount > 0.0:
        return math.nan
    for digits in range(1, 5):
        if abs(amount - float(f"{amount:.{digits - 1}e}")) < 1e-5 * amount:
            return digits
    return 5


def unknown_side(watched_s: int) -> dict[str, float]:
    """Return a side of which nothing is known but for how long it was watched: 0 where that says so, else NaN."""
    columns = {feature.name.removeprefix("from_"): math.nan for feature in schema.SENDER_FEATURES}
    zeros = {
        half_life: [f"{way}_{what}_{half_life}" for way in ("in", "out") for what in ("count", "amount")]
        for half_life in HALF_LIVES
    }
    zeros["30d"] += ["in_new_30d", "out_new_30d", "senders", "recipients", "in_max", "out_max"]
    zeros["30d"] += [f"{name}_30d" for name in ("token_in", "token_out", "zero_in", "zero_out", "failed", "approvals")]
    for half_life, names in zeros.items():
        if watched_s >= 2 * HALF_LIVES[half_life]:
            columns |= dict.fromkeys(names, 0.0)
    return columns


def differences(
    row: NDArray[np.float32], expected: dict[str, float], columns: Iterable[str] | None = None
) -> dict[str, tuple[float, float]]:
    """Return (value, expected) of the columns that differ by more than float32 sums may.

    Sums, counts and ratios: 1e-4 relative. Logarithms of amounts reach 18, so their means carry 1e-3 and their
    spreads, roots of differences of squares, 0.02. Exact to the last bit of float32: what stands in the transaction,
    seconds, extremes, pairs.
    """
    assert set(expected) == {feature.name for feature in schema.FEATURES}
    return {
        name: (float(row[schema.index(name)]), expected[name])
        for name in (columns or expected)
        if not close(float(row[schema.index(name)]), float(expected[name]), *tolerance(name, expected))
    }


def close(value: float, expected: float, relative: float, absolute: float) -> bool:
    """Return whether two values are within tolerances, NaN equal to NaN only."""
    if math.isnan(value) or math.isnan(expected):
        return math.isnan(value) and math.isnan(expected)
    return abs(value - float(np.float32(expected))) <= absolute + relative * abs(expected)


def tolerance(name: str, expected: dict[str, float]) -> tuple[float, float]:
    """Return the relative and absolute difference allowed in a column."""
    if schema.index(name) < schema.SENDER_START or "seconds" in name or "imitates" in name or name.endswith("_max"):
        return 0.0, 0.0
    if "_spread" in name:
        return 0.0, 0.02
    if "_magnitude_" in name or "_amount_over_" in name or name.endswith(("_onward", "_gap", "_pause")):
        return 0.0, 1e-3
    if name.endswith("_residence"):
        side = name.removesuffix("residence")
        ages = (expected[f"{side}in_age"], expected[f"{side}out_age"])
        return 0.0, 1e-4 * (1.0 + sum(age for age in ages if not math.isnan(age)))
    if schema.FEATURES[schema.index(name)].unit in ("share", "-1 to 1", "days"):
        return 1e-4, 1e-4
    # Sums that were nothing are dropped one by one.
    return 1e-4, 10 * NOTHING
