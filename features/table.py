"""The memory of the past: accounts, pairs and lists in flat arrays of fixed size, and how an address finds its place.

An account is 64 words of 32 bits (256 bytes), seen through three views of the same memory: float32 for the decayed
sums, uint32 for times, uint64 for the key and the counterparty bitmaps.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import inlined
from features.undo import remember_account, remember_slot

WORDS = 64
"""32-bit words of an account: 256 bytes."""

HOUR_S, DAY_S = 3600, 86_400
HALF_LIVES_S = (HOUR_S, DAY_S, 7 * DAY_S, 30 * DAY_S)
EPOCH_S = 30 * DAY_S
"""Counterparty bitmaps and maxima cover this period and the previous one."""

AMOUNT_MAX = 1e12
"""Ether; larger amounts count as this. 8,000 times all ether there is, and a float32 sum of 1e26 of them is finite."""

DIGITS_MAX = 5
"""Significant digits of an amount are told apart up to 4; this stands for more."""
DIGITS_TOLERANCE = 1e-5
"""Relative: wide enough for amounts rounded to 15 digits, finer than the fees that make a round amount odd."""
ROUND_DIGITS_MAX = 2
"""An amount of at most this many significant digits is round: 0.5, 12, 3000."""

TINY = 1e-12
"""A decayed sum below this is 0: it keeps float32 out of subnormals, which cost a hundred cycles each."""

# Words of an account. The key takes words 0 to 4.
KNOWN_FROM, UPDATED, LAST_IN, LAST_OUT, EPOCH = 5, 6, 7, 8, 9
SENDERS, SENDERS_BEFORE, RECIPIENTS, RECIPIENTS_BEFORE = 5, 6, 7, 8  # 64-bit words: 32-bit words 10 to 17
SUMS = 18  # in_count, out_count, in_amount, out_amount for each half-life
LOGS = 34  # in_log, in_log2, out_log, out_log2, in_new, out_new
GAPS = 40  # in_gap, in_gap2, in_gaps, out_gap, out_gap2, out_gaps: log10(1 + s) between events, and how many gaps
ROUND = 46  # in, out
TOKEN_IN, TOKEN_OUT, ZERO_IN, ZERO_OUT, FAILED, APPROVALS = 48, 49, 50, 51, 52, 53
FLAGGED, PASSED, IN_AGE, OUT_AGE, ONWARD, ONWARD_COUNT = 54, 55, 56, 57, 58, 59
MAXIMA = 60  # in, in_before, out, out_before
DECAYED_30D = LOGS  # words 34 to 59 decay with 30 d

# Words of the table's own counters.
N_ACCOUNTS, HAND, HORIZON, N_EVICTED, N_PAIRS, N_PAIRS_EVICTED, STARTED, SINCE = range(8)
META_WORDS = 8

EVICTION_WINDOW = 64
"""Slots looked at for the stalest account. The expected victim is among the stalest 1.5 %."""

PAIR_WORDS, PAIR_WAYS = 8, 4
PAIR_TAG, PAIR_PEER = 0, 1  # 64-bit words
PAIR_COUNT, PAIR_AMOUNT, PAIR_LAST = 4, 5, 6  # 32-bit words
BUCKET_HORIZON = 7  # 32-bit word of a bucket's first row: last contact of any paid pair that the bucket gave up

LIST_WORDS = 4  # 64-bit words of a screening entry: three of address, one of known_from << 32 | list bits


class Table(NamedTuple):
    """The arrays behind `Accounts`; f32, u32 and u64 are one memory."""

    f32: NDArray[np.float32]
    u32: NDArray[np.uint32]
    u64: NDArray[np.uint64]
    slots: NDArray[np.uint64]
    """Open addressing with linear probing: low half of the hash << 32 | slot + 1; 0 is empty."""
    pairs_f32: NDArray[np.float32]
    pairs_u32: NDArray[np.uint32]
    pairs_u64: NDArray[np.uint64]
    lists: NDArray[np.uint64]
    flagged: np.uint64
    """List bits that count as flagged for exposure; 0 without a list."""
    meta: NDArray[np.int64]
    undo: NDArray[np.uint64]
    """Ring of what was overwritten, of a power of two words; empty without a journal."""
    frames: NDArray[np.int64]
    """Counters of the ring, then where each transaction begins in it, a power of two of them."""


@inlined
def mix(h):
    """Finalise a 64-bit hash (splitmix64)."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@inlined
def hash_key(a, b, c):
    """Hash an address given as three words, the third of 32 bits."""
    return mix(a * np.uint64(0x9E3779B97F4A7C15) ^ mix(b + np.uint64(0xD6E8FEB86659FD93)) ^ mix(c + np.uint64(1)))


@inlined
def visual(a, c):
    """Return the first and last four hex digits of an address, what people compare."""
    return (a & np.uint64(0xFFFF)) | ((c >> np.uint64(16)) << np.uint64(16))


@inlined
def find(table, a, b, c, h):
    """Return the slot of an account, -1 if the table has none."""
    mask = np.uint64(table.slots.size - 1)
    position = h & mask
    tag = h & np.uint64(0xFFFFFFFF)
    while True:
        entry = table.slots[position]
        if entry == 0:
            return np.int64(-1)
        if entry >> np.uint64(32) == tag:
            slot = np.int64(entry & np.uint64(0xFFFFFFFF)) - 1
            key = table.u64[slot]
            if key[0] == a and key[1] == b and key[2] & np.uint64(0xFFFFFFFF) == c:
                return slot
        position = (position + np.uint64(1)) & mask


@inlined
def is_indexed(table, n):
    """Return whether the index leads to each of the first n accounts and to nothing else.

    What follows the index checks no bounds, and looks for an account until it is found: an index from a file that did
    not hold this could send it into foreign memory or round and round.
    """
    for position in range(table.slots.size):
        entry = table.slots[position]
        place = np.int64(entry & np.uint64(0xFFFFFFFF))
        if entry != 0 and (place < 1 or place > n):
            return False
    for slot in range(n):
        key = table.u64[slot]
        c = key[2] & np.uint64(0xFFFFFFFF)
        if find(table, key[0], key[1], c, hash_key(key[0], key[1], c)) != slot:
            return False
    return True


@inlined
def unlink(table, slot):
    """Remove a slot from the index, closing the gap so that probes need no tombstones."""
    mask = np.uint64(table.slots.size - 1)
    key = table.u64[slot]
    hole = hash_key(key[0], key[1], key[2] & np.uint64(0xFFFFFFFF)) & mask
    while np.int64(table.slots[hole] & np.uint64(0xFFFFFFFF)) != slot + 1:
        hole = (hole + np.uint64(1)) & mask
    position = hole
    while True:
        position = (position + np.uint64(1)) & mask
        entry = table.slots[position]
        if entry == 0:
            break
        home = (entry >> np.uint64(32)) & mask
        if (position - home) & mask >= (position - hole) & mask:
            remember_slot(table, hole)
            table.slots[hole] = entry
            hole = position
    remember_slot(table, hole)
    table.slots[hole] = 0


@inlined
def evict(table, keep):
    """Free the stalest of the next EVICTION_WINDOW slots (never `keep`) and return it.

    What the victim did is forgotten, so the horizon moves up to its last event: an account that is unknown from here
    on may be the victim, and its windows are unknown until they lie behind that time.
    """
    n = table.f32.shape[0]
    hand = table.meta[HAND]
    victim = np.int64(-1)
    for i in range(min(EVICTION_WINDOW, n)):
        slot = (hand + i) % n
        if slot != keep and (victim < 0 or table.u32[slot, UPDATED] < table.u32[victim, UPDATED]):
            victim = slot
    table.meta[HAND] = (hand + EVICTION_WINDOW) % n
    table.meta[HORIZON] = max(table.meta[HORIZON], np.int64(table.u32[victim, UPDATED]))
    table.meta[N_EVICTED] += 1
    unlink(table, victim)
    return victim


@inlined
def insert(table, a, b, c, h, time, keep):
    """Give an account a slot of zeros and return it."""
    if table.meta[N_ACCOUNTS] < table.f32.shape[0]:
        slot = table.meta[N_ACCOUNTS]
        table.meta[N_ACCOUNTS] += 1
    else:
        slot = evict(table, keep)
    remember_account(table, slot)
    table.u64[slot, :] = 0
    table.u64[slot, 0] = a
    table.u64[slot, 1] = b
    table.u64[slot, 2] = c
    table.u32[slot, KNOWN_FROM] = table.meta[HORIZON]
    table.u32[slot, UPDATED] = time
    table.u32[slot, EPOCH] = time // EPOCH_S
    mask = np.uint64(table.slots.size - 1)
    position = h & mask
    while table.slots[position] != 0:
        position = (position + np.uint64(1)) & mask
    remember_slot(table, position)
    table.slots[position] = (h & np.uint64(0xFFFFFFFF)) << np.uint64(32) | np.uint64(slot + 1)
    return slot


@inlined
def gives_way(table, row, other):
    """Return whether a pair is given up before another: mere contacts before payments, then the stalest.

    Four faked token transfers from a victim to look-alikes, which share a bucket, would otherwise push out the
    payment that they imitate.
    """
    is_paid, is_other_paid = table.pairs_f32[row, PAIR_COUNT] > 0.0, table.pairs_f32[other, PAIR_COUNT] > 0.0
    if is_paid != is_other_paid:
        return is_other_paid
    return table.pairs_u32[row, PAIR_LAST] < table.pairs_u32[other, PAIR_LAST]


@inlined
def find_pair(table, a, c, owner, other):
    """Look for a payment from `owner` to another address.

    Args:
        table: The account table.
        a: First word of the other address.
        c: Third word.
        owner: Hash of the owner's address.
        other: Hash of the other address.

    Returns:
        Row of the pair or -1; number of earlier recipients that look like it but are other addresses; the row for
        a pair that is absent: a free one of its bucket, or the one to give up; the pair's tag.
    """
    tag = mix(owner ^ mix(visual(a, c) + np.uint64(0xA0761D6478BD642F)))
    tag = tag if tag != 0 else np.uint64(1)
    start = np.int64(tag % np.uint64(table.pairs_u64.shape[0] // PAIR_WAYS)) * PAIR_WAYS
    found, alike, spare = np.int64(-1), 0, start
    for row in range(start, start + PAIR_WAYS):
        row_tag = table.pairs_u64[row, PAIR_TAG]
        if row_tag == 0:  # Rows fill from the bucket's start and never empty again.
            spare = row
            break
        if row_tag == tag:
            if table.pairs_u64[row, PAIR_PEER] == other:
                found = row
            elif table.pairs_f32[row, PAIR_COUNT] > 0.0:
                alike += 1
        if gives_way(table, row, spare):
            spare = row
    return found, alike, spare, tag


@inlined
def listed(table, a, b, c, h, time):
    """Return the bits of the lists on which the address stood at `time`."""
    mask = np.uint64(table.lists.shape[0] - 1)
    position = h & mask
    bits = np.uint64(0)
    while True:
        entry = table.lists[position]
        if entry[3] == 0:
            return bits
        if entry[0] == a and entry[1] == b and entry[2] == c and np.int64(entry[3] >> np.uint64(32)) <= time:
            bits |= entry[3] & np.uint64(0xFFFF)
        position = (position + np.uint64(1)) & mask
