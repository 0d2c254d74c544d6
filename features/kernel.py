"""Emit each row from the past, then make the transaction part of it: one implementation, live and in training."""

import numpy as np

from features import schema
from features.compiled import compiled, inlined
from features.emit import (
    emit_pair,
    emit_side,
    emit_transaction,
    emit_unknown,
)
from features.observe import (
    observe_pair,
    observe_recipient,
    observe_sender,
)
from features.table import (
    AMOUNT_MAX,
    HORIZON,
    PAIR_COUNT,
    SINCE,
    STARTED,
    find,
    find_pair,
    hash_key,
    insert,
    listed,
)
from features.transaction import (
    IS_CREATION,
    IS_FAILED,
)
from features.undo import begin, end, remember_account


@inlined
def start(table, time):
    """Begin to watch at the first record's time, unless the table was told since when it watches."""
    if table.meta[STARTED] == 0:
        table.meta[STARTED] = 1
        table.meta[HORIZON] = time
        table.meta[SINCE] = time


@inlined
def observe(
    table, record, amount, digits, sender, recipient, sender_hash, recipient_hash, pair, spare, tag, sender_lists, w
):
    """Make a record part of the past, given where its sides and its pair stand in the table, -1 for nowhere."""
    time, flags = np.int64(record[7]), np.int64(record[8])
    a, b, c = record[0], record[1], record[2]
    d, e, f = record[3], record[4], record[5]
    has_recipient = flags & IS_CREATION == 0
    is_self = has_recipient and a == d and b == e and c == f
    moved = amount > 0.0 and flags & IS_FAILED == 0
    is_first = has_recipient and moved and (pair < 0 or table.pairs_f32[pair, PAIR_COUNT] == 0.0)
    if sender < 0:
        sender = insert(table, a, b, c, sender_hash, time, recipient)
        recipient = sender if is_self else recipient
    else:
        remember_account(table, sender)
    observe_sender(table, sender, flags, amount, digits, time, recipient_hash, is_first, w)
    if has_recipient:
        if recipient < 0:
            recipient = insert(table, d, e, f, recipient_hash, time, sender)
        elif not is_self:
            remember_account(table, recipient)
        observe_recipient(table, recipient, sender, flags, amount, digits, time, sender_hash, is_first, sender_lists, w)
        observe_pair(table, pair, spare, tag, recipient_hash, amount if moved else 0.0, time)
    end(table)


@compiled
def run(table, records, floats, rows, hits, w, observing):
    """Emit each record's row from the past, then (if observing) make the record part of the past.

    Args:
        table: A `Table`.
        records: Packed transactions, uint64, shape (n, RECORD_WORDS).
        floats: The same memory as float64.
        rows: Written, float32, shape (n, N_FEATURES).
        hits: Written, uint32, shape (n,): the sender's lists in the low half, the recipient's in the high half.
        w: Scratch for four weights, float64, shape (4,).
        observing: False leaves the table as it is.
    """
    started = table.meta[STARTED]
    for i in range(records.shape[0]):
        time = np.int64(records[i, 7])
        flags = np.int64(records[i, 8])
        amount = min(floats[i, 6], AMOUNT_MAX)
        a, b, c = records[i, 0], records[i, 1], records[i, 2]
        d, e, f = records[i, 3], records[i, 4], records[i, 5]
        if observing:
            begin(table, records[i])
        start(table, time)
        sender_hash, recipient_hash = hash_key(a, b, c), hash_key(d, e, f)
        has_recipient = flags & IS_CREATION == 0
        sender = find(table, a, b, c, sender_hash)
        recipient = find(table, d, e, f, recipient_hash) if has_recipient else np.int64(-1)
        sender_lists = listed(table, a, b, c, sender_hash, time)
        recipient_lists = listed(table, d, e, f, recipient_hash, time) if has_recipient else np.uint64(0)
        hits[i] = np.uint32(sender_lists | recipient_lists << np.uint64(16))

        row = rows[i]
        is_self = has_recipient and a == d and b == e and c == f
        digits = emit_transaction(row, amount, flags, np.int64(records[i, 9]), is_self)
        known_s = time - table.meta[HORIZON]
        has_lists = table.flagged != 0
        if sender >= 0:
            emit_side(table, sender, row, schema.SENDER_START, amount, time, has_lists, w)
        else:
            emit_unknown(row, schema.SENDER_START, known_s)
        if recipient >= 0:
            emit_side(table, recipient, row, schema.RECIPIENT_START, amount, time, has_lists, w)
        else:
            emit_unknown(row, schema.RECIPIENT_START, known_s if has_recipient else np.int64(-1))
        pair, spare, tag = np.int64(-1), np.int64(-1), np.uint64(0)
        if not has_recipient:
            row[schema.PAIR_START :] = np.nan
        else:
            pair, alike, spare, tag = find_pair(table, d, f, sender_hash, recipient_hash)
            emit_pair(table, row, schema.PAIR_START, pair, spare, alike, time)
            reverse, reverse_alike, reverse_spare, _ = find_pair(table, a, c, recipient_hash, sender_hash)
            emit_pair(table, row, schema.PAIR_START + 3, reverse, reverse_spare, reverse_alike, time)
        if observing:
            observe(
                table, records[i], amount, digits, sender, recipient, sender_hash, recipient_hash,
                pair, spare, tag, sender_lists, w,
            )  # fmt: skip
    if not observing and started == 0:
        table.meta[STARTED] = table.meta[HORIZON] = table.meta[SINCE] = 0
