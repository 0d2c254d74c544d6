"""Emit: one feature row from the past as it stands, in the order of the schema."""

import math

import numpy as np

from features import schema
from features.compiled import inlined
from features.observe import (
    significant_digits,
    weights,
)
from features.table import (
    BUCKET_HORIZON,
    DAY_S,
    EPOCH,
    EPOCH_S,
    FLAGGED,
    GAPS,
    HALF_LIVES_S,
    IN_AGE,
    KNOWN_FROM,
    LAST_IN,
    LOGS,
    MAXIMA,
    ONWARD,
    ONWARD_COUNT,
    PAIR_AMOUNT,
    PAIR_COUNT,
    PAIR_LAST,
    PAIR_WAYS,
    PASSED,
    RECIPIENTS,
    RECIPIENTS_BEFORE,
    ROUND,
    SENDERS,
    SENDERS_BEFORE,
    SINCE,
    SUMS,
    TINY,
    TOKEN_IN,
    UPDATED,
)
from features.transaction import (
    IS_CREATION,
    IS_FAILED,
    IS_STATUS_KNOWN,
    IS_TOKEN,
    METHOD_SHIFT,
    METHOD_UNKNOWN,
)

_LINEAR = np.array(
    [abs(-64.0 * math.log(max(64 - n, 1) / 64.0)) for n in range(65)], dtype=np.float32
)  # linear counting (Whang et al., 1990) over 64 bits

_SIDE = schema.side_index
_BALANCE_1D, _MAGNITUDE_30D = _SIDE("balance_1d"), _SIDE("in_magnitude_30d")
_COUNT_BALANCE, _SENDERS_SEEN, _SECONDS_IN = _SIDE("count_balance_30d"), _SIDE("senders"), _SIDE("seconds_since_in")
_IN_AGE_MEAN, _ONWARD_MEAN, _IN_MAX = _SIDE("in_age"), _SIDE("onward"), _SIDE("in_max")
_GAP, _ROUND_SHARE = _SIDE("in_gap"), _SIDE("in_round_share")
_OVER_IN, _TOKEN_SEEN, _EXPOSURE = _SIDE("amount_over_in"), _SIDE("token_in_30d"), _SIDE("exposure_direct")
_SIDE_LENGTH = len(schema.SENDER_FEATURES)


@inlined
def share(part, whole):
    """Return part / whole, NaN without a whole.

    A whole below TINY counts as 0, as it does once its account decays: a day's receipts of a year ago would turn any
    amount into infinity.
    """
    return part / whole if whole > TINY else math.nan


@inlined
def balance(received, paid):
    """Return (received - paid) / (received + paid), NaN without either."""
    return share(received - paid, received + paid)


@inlined
def distinct(words, current, previous, behind):
    """Estimate the distinct accounts in two bitmaps, `behind` periods after the current one was current."""
    bits = words[current] | words[previous] if behind <= 0 else (words[current] if behind == 1 else np.uint64(0))
    n = 0
    while bits != 0:
        bits &= bits - np.uint64(1)
        n += 1
    return _LINEAR[n]


@inlined
def emit_unknown(row, start, known_s):
    """Write a side without an account: zero where the watched past says so, NaN elsewhere."""
    for j in range(start, start + _SIDE_LENGTH):
        row[j] = np.nan
    for k in range(4):
        if known_s >= 2 * HALF_LIVES_S[k]:
            for j in range(4):
                row[start + 4 * k + j] = 0.0
    if known_s >= 2 * HALF_LIVES_S[3]:
        row[start + _MAGNITUDE_30D + 5] = 0.0
        row[start + _MAGNITUDE_30D + 6] = 0.0
        for j in (_SENDERS_SEEN, _SENDERS_SEEN + 1, _IN_MAX, _IN_MAX + 1):
            row[start + j] = 0.0
        for j in range(_TOKEN_SEEN, _TOKEN_SEEN + 6):
            row[start + j] = 0.0


@inlined
def emit_moments(row, j, total, squares, n):
    """Write mean and standard deviation of what was summed; both stay NaN without any."""
    if n > TINY:
        mean = total / n
        row[j] = mean
        row[j + 1] = math.sqrt(max(squares / n - mean * mean, 0.0))


@inlined
def emit_means(row, start, s, time, last_in):
    """Write what an account's payments are like on average, whenever they were: sizes, intervals, roundness."""
    for way in range(2):
        n = s[SUMS + 12 + way]
        j = LOGS + 2 * way
        emit_moments(row, start + _MAGNITUDE_30D + 2 * way, s[j], s[j + 1], n)
        j = GAPS + 3 * way
        emit_moments(row, start + _GAP + 2 * way, s[j], s[j + 1], s[j + 2])
        row[start + _ROUND_SHARE + way] = share(s[ROUND + way], n)
    row[start + _BALANCE_1D] = balance(s[SUMS + 6], s[SUMS + 7])
    row[start + _MAGNITUDE_30D + 4] = balance(s[SUMS + 14], s[SUMS + 15])
    if last_in != 0:
        row[start + _GAP + 4] = math.log10(1.0 + max(time - last_in, 0)) - row[start + _GAP]


@inlined
def emit_side(table, slot, row, start, amount, time, has_lists, w):
    """Write one side's columns from its account as it stood before this transaction."""
    s, times, words = table.f32[slot], table.u32[slot], table.u64[slot]
    elapsed = max(time - np.int64(times[UPDATED]), 0)
    known_s = time - np.int64(times[KNOWN_FROM])
    emit_unknown(row, start, known_s)
    weights(float(elapsed), w)
    for k in range(4):
        if known_s >= 2 * HALF_LIVES_S[k]:
            for j in range(4):
                row[start + 4 * k + j] = s[SUMS + 4 * k + j] * w[k]
    known_30d = known_s >= 2 * HALF_LIVES_S[3]
    emit_means(row, start, s, time, np.int64(times[LAST_IN]))

    received, paid = s[SUMS + 12], s[SUMS + 13]
    j = start + _COUNT_BALANCE
    row[j] = balance(received, paid)
    row[j + 1] = share(s[LOGS + 4], received)
    row[j + 2] = share(s[LOGS + 5], paid)
    row[j + 3] = share(s[SUMS + 4] * w[1], received * w[3])
    row[j + 4] = share(s[SUMS + 5] * w[1], paid * w[3])

    behind = time // EPOCH_S - np.int64(times[EPOCH])
    if known_30d:
        row[start + _MAGNITUDE_30D + 5] = s[LOGS + 4] * w[3]
        row[start + _MAGNITUDE_30D + 6] = s[LOGS + 5] * w[3]
        row[start + _SENDERS_SEEN] = distinct(words, SENDERS, SENDERS_BEFORE, behind)
        row[start + _SENDERS_SEEN + 1] = distinct(words, RECIPIENTS, RECIPIENTS_BEFORE, behind)
        for way in range(2):
            now, before = s[MAXIMA + 2 * way], s[MAXIMA + 2 * way + 1]
            row[start + _IN_MAX + way] = max(now, before) if behind <= 0 else (now if behind == 1 else 0.0)
        for i in range(6):
            row[start + _TOKEN_SEEN + i] = s[TOKEN_IN + i] * w[3]
    for way in range(2):
        last = np.int64(times[LAST_IN + way])
        if last != 0:
            row[start + _SECONDS_IN + way] = max(time - last, 0)
        if s[SUMS + 12 + way] > TINY:
            row[start + _IN_AGE_MEAN + way] = s[IN_AGE + way] / s[SUMS + 12 + way] + elapsed / DAY_S
    row[start + _IN_AGE_MEAN + 2] = row[start + _IN_AGE_MEAN] - row[start + _IN_AGE_MEAN + 1]
    row[start + _ONWARD_MEAN] = s[ONWARD] / s[ONWARD_COUNT] if s[ONWARD_COUNT] > TINY else np.nan
    if amount > 0.0:
        magnitude = math.log10(amount)
        row[start + _OVER_IN] = magnitude - row[start + _MAGNITUDE_30D]
        row[start + _OVER_IN + 1] = magnitude - row[start + _MAGNITUDE_30D + 2]
        row[start + _OVER_IN + 2] = share(amount, s[SUMS + 6] * w[1])
    if has_lists:
        row[start + _EXPOSURE] = share(s[FLAGGED], s[SUMS + 14])
        row[start + _EXPOSURE + 1] = share(s[PASSED], s[SUMS + 14])


@inlined
def emit_transaction(row, amount, flags, input_bytes, is_self):
    """Write the columns of the transaction itself and return the digits of its amount."""
    row[0] = amount
    row[1] = 1.0 if flags & IS_TOKEN else 0.0
    row[2] = 1.0 if flags & IS_CREATION else 0.0
    row[3] = (1.0 if flags & IS_FAILED else 0.0) if flags & IS_STATUS_KNOWN else np.nan
    method = (flags >> METHOD_SHIFT) & 0xFF
    row[4] = method if method != METHOD_UNKNOWN else np.nan
    row[5] = input_bytes if input_bytes >= 0 else np.nan
    row[6] = 1.0 if is_self else 0.0
    digits = significant_digits(amount)
    row[7] = digits
    return digits


@inlined
def emit_pair(table, row, start, pair, spare, alike, time):
    """Write one direction of the pair's history; no payment means none only where the bucket's past is known."""
    bucket = spare - spare % PAIR_WAYS
    since = max(table.meta[SINCE], np.int64(table.pairs_u32[bucket, BUCKET_HORIZON]))
    known = time - since >= 2 * HALF_LIVES_S[3]
    row[start] = 0.0 if known else np.nan
    row[start + 1] = 0.0 if known else np.nan
    row[start + 2] = np.nan
    if pair >= 0:
        if table.pairs_f32[pair, PAIR_COUNT] > 0.0:
            row[start] = table.pairs_f32[pair, PAIR_COUNT]
            row[start + 1] = table.pairs_f32[pair, PAIR_AMOUNT]
        row[start + 2] = max(time - np.int64(table.pairs_u32[pair, PAIR_LAST]), 0)
    row[schema.PAIR_START + 6 + (start - schema.PAIR_START) // 3] = alike
