"""Observe and merge: how a transaction becomes part of the past.

Every decayed sum is exact for its account's `updated` time; an event at t adds its weight
2**-((updated - t) / half_life). Late events land where they would have, and two records of one account merge by
decaying to the later `updated` and adding: the sums are a commutative monoid.
"""

import math

import numpy as np

from features.compiled import inlined
from features.table import (
    APPROVALS,
    BUCKET_HORIZON,
    DAY_S,
    DECAYED_30D,
    DIGITS_MAX,
    DIGITS_TOLERANCE,
    EPOCH,
    EPOCH_S,
    FAILED,
    FLAGGED,
    GAPS,
    HORIZON,
    IN_AGE,
    KNOWN_FROM,
    LAST_IN,
    LAST_OUT,
    LOGS,
    MAXIMA,
    N_ACCOUNTS,
    N_PAIRS,
    N_PAIRS_EVICTED,
    ONWARD,
    ONWARD_COUNT,
    OUT_AGE,
    PAIR_AMOUNT,
    PAIR_COUNT,
    PAIR_LAST,
    PAIR_PEER,
    PAIR_TAG,
    PAIR_WAYS,
    PASSED,
    RECIPIENTS,
    RECIPIENTS_BEFORE,
    ROUND,
    ROUND_DIGITS_MAX,
    SENDERS,
    SENDERS_BEFORE,
    SINCE,
    STARTED,
    SUMS,
    TINY,
    TOKEN_IN,
    TOKEN_OUT,
    UPDATED,
    WORDS,
    ZERO_IN,
    ZERO_OUT,
    find,
    gives_way,
    hash_key,
    insert,
)
from features.transaction import (
    IS_FAILED,
    IS_TOKEN,
    METHOD_APPROVE,
    METHOD_APPROVE_ALL,
    METHOD_PERMIT,
    METHOD_SHIFT,
)
from features.undo import remember_pair


@inlined
def significant_digits(amount):
    """Return how many decimal digits write an amount, 1 to 4, 5 for more, NaN for none.

    Amounts within 1e-5 of a shorter number count as that: a source's rounding of wei changes nothing, and the fee
    that an exchange or a wallet takes off (1e-4 and more of an ether) still shows.
    """
    if not amount > 0.0:
        return math.nan
    x = amount / 10.0 ** math.floor(math.log10(amount))
    for n in range(1, DIGITS_MAX):
        if abs(x - math.floor(x + 0.5)) < DIGITS_TOLERANCE * x:
            return float(n)
        x *= 10.0
    return float(DIGITS_MAX)


@inlined
def weights(elapsed_s, out):
    """Write 2**-(elapsed / half-life) for the four half-lives; two exponentials and products give all four."""
    if elapsed_s <= 0.0:
        out[:] = 1.0
        return
    day30 = math.exp(-elapsed_s * (math.log(2.0) / (30.0 * DAY_S)))
    day7 = math.exp(-elapsed_s * (math.log(2.0) / (7.0 * DAY_S)))
    d2 = day7 * day7
    day1 = d2 * d2 * d2 * day7
    e2 = day1 * day1
    e4 = e2 * e2
    e8 = e4 * e4
    out[0], out[1], out[2], out[3] = e8 * e8 * e8, day1, day7, day30


@inlined
def decayed(x, weight):
    """Return the sum x after its weight fell."""
    y = x * weight
    return np.float32(0.0) if abs(y) < TINY else np.float32(y)


@inlined
def shift_epoch(table, slot, epoch):
    """Move an account's two periods forward until the current one is `epoch`."""
    behind = epoch - np.int64(table.u32[slot, EPOCH])
    if behind <= 0:
        return
    words, f32 = table.u64[slot], table.f32[slot]
    words[SENDERS_BEFORE] = words[SENDERS] if behind == 1 else np.uint64(0)
    words[RECIPIENTS_BEFORE] = words[RECIPIENTS] if behind == 1 else np.uint64(0)
    words[SENDERS], words[RECIPIENTS] = np.uint64(0), np.uint64(0)
    f32[MAXIMA + 1] = f32[MAXIMA] if behind == 1 else np.float32(0.0)
    f32[MAXIMA + 3] = f32[MAXIMA + 2] if behind == 1 else np.float32(0.0)
    f32[MAXIMA], f32[MAXIMA + 2] = np.float32(0.0), np.float32(0.0)
    table.u32[slot, EPOCH] = epoch


@inlined
def advance(table, slot, time, w):
    """Decay an account's sums to `time`; a late time changes nothing."""
    elapsed = time - np.int64(table.u32[slot, UPDATED])
    if elapsed <= 0:
        return
    s = table.f32[slot]
    weights(float(elapsed), w)
    # Ages grow with the counts they belong to, before both decay.
    days = elapsed / DAY_S
    s[IN_AGE] += np.float32(days * s[SUMS + 12])
    s[OUT_AGE] += np.float32(days * s[SUMS + 13])
    for k in range(4):
        for j in range(SUMS + 4 * k, SUMS + 4 * k + 4):
            s[j] = decayed(s[j], w[k])
    for j in range(DECAYED_30D, MAXIMA):
        s[j] = decayed(s[j], w[3])
    table.u32[slot, UPDATED] = time


@inlined
def observe_pair(table, row, spare, tag, other, amount, time):
    """Make a contact part of the pair's past; a payment of value 0 or of tokens counts as a contact only.

    A mere contact takes no paid pair's place: where its bucket is full of those it is not remembered.
    """
    kept = row if row >= 0 else spare
    remember_pair(table, kept)
    if kept % PAIR_WAYS != 0:
        # The bucket's horizon stands in its first row.
        remember_pair(table, kept - kept % PAIR_WAYS)
    if row < 0:
        row = spare
        if table.pairs_u64[row, PAIR_TAG] != 0:
            if table.pairs_f32[row, PAIR_COUNT] > 0.0:
                if amount <= 0.0:
                    return
                bucket = row - row % PAIR_WAYS
                horizon = max(table.pairs_u32[bucket, BUCKET_HORIZON], table.pairs_u32[row, PAIR_LAST])
                table.pairs_u32[bucket, BUCKET_HORIZON] = horizon
            table.meta[N_PAIRS_EVICTED] += 1
        else:
            table.meta[N_PAIRS] += 1
        table.pairs_u64[row, PAIR_TAG] = tag
        table.pairs_u64[row, PAIR_PEER] = other
        table.pairs_u32[row, PAIR_COUNT : PAIR_LAST + 1] = 0
    if amount > 0.0:
        table.pairs_f32[row, PAIR_COUNT] += np.float32(1.0)
        table.pairs_f32[row, PAIR_AMOUNT] += np.float32(amount)
    table.pairs_u32[row, PAIR_LAST] = max(table.pairs_u32[row, PAIR_LAST], np.uint32(time))


@inlined
def observe_side(table, slot, incoming, amount, digits, time, other, is_first, w):
    """Add a payment of `amount` > 0 to one side's sums."""
    s = table.f32[slot]
    updated = np.int64(table.u32[slot, UPDATED])
    late = updated - time
    weights(float(late), w)
    way = 0 if incoming else 1
    for k in range(4):
        s[SUMS + 4 * k + way] += np.float32(w[k])
        s[SUMS + 4 * k + 2 + way] += np.float32(w[k] * amount)
    magnitude = math.log10(amount)
    s[LOGS + 2 * way] += np.float32(w[3] * magnitude)
    s[LOGS + 2 * way + 1] += np.float32(w[3] * magnitude * magnitude)
    if is_first:
        s[LOGS + 4 + way] += np.float32(w[3])
    if digits <= ROUND_DIGITS_MAX:
        s[ROUND + way] += np.float32(w[3])
    last = np.int64(table.u32[slot, LAST_IN + way])
    # A late event's gap is not known: what came before it is forgotten.
    if 0 < last <= time:
        gap = math.log10(1.0 + time - last)
        j = GAPS + 3 * way
        s[j] += np.float32(w[3] * gap)
        s[j + 1] += np.float32(w[3] * gap * gap)
        s[j + 2] += np.float32(w[3])
    table.u32[slot, LAST_IN + way] = max(last, time)
    s[(IN_AGE if incoming else OUT_AGE)] += np.float32(w[3] * late / DAY_S)

    epoch = time // EPOCH_S
    shift_epoch(table, slot, epoch)
    before = np.int64(table.u32[slot, EPOCH]) - epoch
    if before <= 1:
        word = (SENDERS if incoming else RECIPIENTS) + before
        table.u64[slot, word] |= np.uint64(1) << (other & np.uint64(63))
        j = MAXIMA + 2 * way + before
        s[j] = max(s[j], np.float32(amount))


@inlined
def observe_onward(table, slot, time, w):
    """Add the time from the last receipt to this payment; a payment before that receipt has none."""
    last_in = np.int64(table.u32[slot, LAST_IN])
    if last_in == 0 or last_in > time:
        return
    weights(float(np.int64(table.u32[slot, UPDATED]) - time), w)
    table.f32[slot, ONWARD] += np.float32(w[3] * math.log10(1.0 + time - last_in))
    table.f32[slot, ONWARD_COUNT] += np.float32(w[3])


@inlined
def observe_minor(table, slot, word, time, w):
    """Count an event that moves no ether: a token transfer, a call, a failure, an approval."""
    weights(float(np.int64(table.u32[slot, UPDATED]) - time), w)
    table.f32[slot, word] += np.float32(w[3])


@inlined
def observe_exposure(table, slot, sender, amount, time, flagged, w):
    """Add a receipt from a flagged sender, or the share of the sender's own receipts that was flagged."""
    weights(float(np.int64(table.u32[slot, UPDATED]) - time), w)
    if flagged:
        table.f32[slot, FLAGGED] += np.float32(w[3] * amount)
    else:
        s = table.f32[sender]
        if s[SUMS + 14] > TINY:
            passed = min((s[FLAGGED] + s[PASSED]) / s[SUMS + 14], 1.0)
            table.f32[slot, PASSED] += np.float32(w[3] * amount * passed)


@inlined
def observe_sender(table, slot, flags, amount, digits, time, recipient_hash, is_first, w):
    """Make the transaction part of the sender's past."""
    advance(table, slot, time, w)
    method = (flags >> METHOD_SHIFT) & 0xFF
    if flags & IS_FAILED:
        observe_minor(table, slot, FAILED, time, w)
    elif amount > 0.0:
        observe_onward(table, slot, time, w)
        observe_side(table, slot, False, amount, digits, time, recipient_hash, is_first, w)
    else:
        observe_minor(table, slot, TOKEN_OUT if flags & IS_TOKEN else ZERO_OUT, time, w)
        if method in (METHOD_APPROVE, METHOD_PERMIT, METHOD_APPROVE_ALL):
            observe_minor(table, slot, APPROVALS, time, w)


@inlined
def observe_recipient(table, slot, sender, flags, amount, digits, time, sender_hash, is_first, sender_lists, w):
    """Make the transaction part of the recipient's past; a failed one moved nothing."""
    advance(table, slot, time, w)
    if flags & IS_FAILED:
        return
    if amount > 0.0:
        if table.flagged != 0:
            observe_exposure(table, slot, sender, amount, time, sender_lists & table.flagged != 0, w)
        observe_side(table, slot, True, amount, digits, time, sender_hash, is_first, w)
    else:
        observe_minor(table, slot, TOKEN_IN if flags & IS_TOKEN else ZERO_IN, time, w)


@inlined
def merge_account(table, slot, other, other_slot, w):
    """Add another table's record of the same account to this one's: the result is what one table would hold.

    Up to rounding; the periods of the older record that lie behind both periods of the newer are dropped. What the
    two tables could not know of each other (a payment's last receipt, a first meeting) stays as each saw it.
    """
    time = max(np.int64(table.u32[slot, UPDATED]), np.int64(other.u32[other_slot, UPDATED]))
    epoch = max(np.int64(table.u32[slot, EPOCH]), np.int64(other.u32[other_slot, EPOCH]))
    advance(table, slot, time, w)
    advance(other, other_slot, time, w)
    shift_epoch(table, slot, epoch)
    shift_epoch(other, other_slot, epoch)
    for j in range(SUMS, MAXIMA):
        table.f32[slot, j] += other.f32[other_slot, j]
    for j in range(MAXIMA, MAXIMA + 4):
        table.f32[slot, j] = max(table.f32[slot, j], other.f32[other_slot, j])
    for j in range(SENDERS, RECIPIENTS_BEFORE + 1):
        table.u64[slot, j] |= other.u64[other_slot, j]
    for j in (KNOWN_FROM, LAST_IN, LAST_OUT):
        table.u32[slot, j] = max(table.u32[slot, j], other.u32[other_slot, j])


@inlined
def merge_accounts(table, other, w):
    """Merge every account of `other` into `table`; `other` is decayed on the way and must be thrown away.

    What only one table knows may be what the other evicted: it is known from the other's horizon on.
    """
    own_horizon, other_horizon = table.meta[HORIZON], other.meta[HORIZON]
    for slot in range(table.meta[N_ACCOUNTS]):
        key = table.u64[slot]
        a, b, c = key[0], key[1], key[2] & np.uint64(0xFFFFFFFF)
        if find(other, a, b, c, hash_key(a, b, c)) < 0:
            table.u32[slot, KNOWN_FROM] = max(np.int64(table.u32[slot, KNOWN_FROM]), other_horizon)
    table.meta[HORIZON] = max(table.meta[HORIZON], other.meta[HORIZON])
    table.meta[STARTED] = max(table.meta[STARTED], other.meta[STARTED])
    table.meta[SINCE] = max(table.meta[SINCE], other.meta[SINCE])
    for other_slot in range(other.meta[N_ACCOUNTS]):
        key = other.u64[other_slot]
        a, b, c = key[0], key[1], key[2] & np.uint64(0xFFFFFFFF)
        h = hash_key(a, b, c)
        slot = find(table, a, b, c, h)
        if slot < 0:
            time = np.int64(other.u32[other_slot, UPDATED])
            slot = insert(table, a, b, c, h, time, np.int64(-1))
            for j in range(2, WORDS // 2):  # A slice would copy through memory that the kernels do not allocate.
                table.u64[slot, j] = other.u64[other_slot, j]
            table.u32[slot, KNOWN_FROM] = max(np.int64(table.u32[slot, KNOWN_FROM]), own_horizon)
        else:
            merge_account(table, slot, other, other_slot, w)


@inlined
def merge_pairs(table, other):
    """Merge every pair of `other` into `table`; both have the same number of rows."""
    for row in range(other.pairs_u64.shape[0]):
        start = row - row % PAIR_WAYS
        if row == start:
            horizon = max(table.pairs_u32[row, BUCKET_HORIZON], other.pairs_u32[row, BUCKET_HORIZON])
            table.pairs_u32[row, BUCKET_HORIZON] = horizon
        tag, peer = other.pairs_u64[row, PAIR_TAG], other.pairs_u64[row, PAIR_PEER]
        if tag == 0:
            continue
        found, spare = np.int64(-1), start
        for mine in range(start, start + PAIR_WAYS):
            if table.pairs_u64[mine, PAIR_TAG] == 0:
                spare = mine
                break
            if table.pairs_u64[mine, PAIR_TAG] == tag and table.pairs_u64[mine, PAIR_PEER] == peer:
                found = mine
            if gives_way(table, mine, spare):
                spare = mine
        count, amount = other.pairs_f32[row, PAIR_COUNT], other.pairs_f32[row, PAIR_AMOUNT]
        observe_pair(table, found, spare, tag, peer, amount, np.int64(other.pairs_u32[row, PAIR_LAST]))
        if count > 0.0:
            table.pairs_f32[found if found >= 0 else spare, PAIR_COUNT] += count - np.float32(1.0)
