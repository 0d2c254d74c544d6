"""The undo log: what the kernels overwrite, kept in a ring so that the newest transactions can be taken back exactly.

Before a kernel writes to the table it copies the old words here, so that going back restores bytes and computes
nothing. An entry is the old words and then one word that says where they stood; entries are read from the newest back.
The entries of one transaction are a frame. Memory is allocated at once: where the ring is full the oldest frames are
overwritten. A frame takes some 95 words, two accounts of 32 most of them.
"""

import numpy as np

from features.compiled import compiled

ACCOUNT, PAIR, SLOT, META, RECORD = 0, 1, 2, 3, 4
ACCOUNT_WORDS, PAIR_WORDS, META_WORDS, RECORD_WORDS = 32, 4, 8, 10
"""64-bit words of each kind of entry; a slot of the index is one."""

FRAME_WORDS = 100
"""Words set aside for a transaction: record 11, counters 9, two accounts 66, two pair rows 10, two places of the
index 4. An eviction moves some more places of the index; a transaction of known accounts takes none."""

HEAD, COUNT, LOW, FIRST = 0, 1, 2, 3
"""Counters at the start of `frames`: words ever written less those taken back; frames likewise; the oldest word that
was not overwritten; the oldest frame that is whole."""
COUNTERS = 4

_KIND_SHIFT = 56


@compiled
def put(table, word):
    """Append a word."""
    counters = table.frames
    table.undo[counters[HEAD] & (table.undo.size - 1)] = word
    counters[HEAD] += 1


@compiled
def close(table, kind, place):
    """End an entry by saying where its words stood."""
    put(table, np.uint64(kind) << np.uint64(_KIND_SHIFT) | np.uint64(place))


@compiled
def begin(table, record):
    """Begin the frame of a packed transaction, before anything of it is written; nothing without a journal."""
    if table.undo.size == 0:
        return
    frames = table.frames
    frames[COUNTERS + (frames[COUNT] & (frames.size - COUNTERS - 1))] = frames[HEAD]
    frames[COUNT] += 1
    for j in range(RECORD_WORDS):
        put(table, record[j])
    close(table, RECORD, 0)
    for j in range(META_WORDS):
        put(table, np.uint64(table.meta[j]))
    close(table, META, 0)


@compiled
def end(table):
    """End a frame: those that the ring has overwritten can no longer be taken back."""
    if table.undo.size == 0:
        return
    frames = table.frames
    n_frames = frames.size - COUNTERS
    frames[LOW] = max(frames[LOW], frames[HEAD] - table.undo.size)
    frames[FIRST] = max(frames[FIRST], frames[COUNT] - n_frames)
    while frames[FIRST] < frames[COUNT] and frames[COUNTERS + (frames[FIRST] & (n_frames - 1))] < frames[LOW]:
        frames[FIRST] += 1


@compiled
def remember_account(table, slot):
    """Keep an account as it is; nothing without a journal."""
    if table.undo.size == 0:
        return
    for j in range(ACCOUNT_WORDS):
        put(table, table.u64[slot, j])
    close(table, ACCOUNT, slot)


@compiled
def remember_pair(table, row):
    """Keep a row of the pairs as it is; nothing without a journal."""
    if table.undo.size == 0:
        return
    for j in range(PAIR_WORDS):
        put(table, table.pairs_u64[row, j])
    close(table, PAIR, row)


@compiled
def remember_slot(table, position):
    """Keep a place of the index as it is; nothing without a journal."""
    if table.undo.size == 0:
        return
    put(table, table.slots[position])
    close(table, SLOT, position)


@compiled
def n_words(kind):
    """Return how many words stand before the last one of an entry, 0 for an unknown kind."""
    if kind == ACCOUNT:
        return ACCOUNT_WORDS
    if kind == PAIR:
        return PAIR_WORDS
    if kind == SLOT:
        return 1
    if kind == META:
        return META_WORDS
    return RECORD_WORDS if kind == RECORD else 0


@compiled
def restore(table, kind, place, start, records, i):
    """Write the words of one entry back to where they stood; a transaction goes to row `i` of `records`."""
    mask = table.undo.size - 1
    for j in range(n_words(kind)):
        word = table.undo[(start + j) & mask]
        if kind == ACCOUNT:
            table.u64[place, j] = word
        elif kind == PAIR:
            table.pairs_u64[place, j] = word
        elif kind == SLOT:
            table.slots[place] = word
        elif kind == META:
            table.meta[j] = np.int64(word)
        else:
            records[i, j] = word


@compiled
def rewind(table, records):
    """Take the newest transactions back and write them to `records`, in their order.

    Args:
        table: The account table; as many frames must be whole.
        records: Written, uint64, shape (n, RECORD_WORDS).
    """
    frames = table.frames
    mask, n_frames = table.undo.size - 1, frames.size - COUNTERS
    for i in range(records.shape[0] - 1, -1, -1):
        frames[COUNT] -= 1
        start = frames[COUNTERS + (frames[COUNT] & (n_frames - 1))]
        while frames[HEAD] > start:
            last = table.undo[(frames[HEAD] - 1) & mask]
            kind = np.int64(last >> np.uint64(_KIND_SHIFT))
            place = np.int64(last & np.uint64((1 << _KIND_SHIFT) - 1))
            frames[HEAD] -= 1 + n_words(kind)
            restore(table, kind, place, frames[HEAD], records, i)


@compiled
def is_sound(table):
    """Say whether every entry of the whole frames leads to a place in the table, and each frame to its start."""
    frames = table.frames
    mask, n_frames = table.undo.size - 1, frames.size - COUNTERS
    position = frames[HEAD]
    for frame in range(frames[COUNT] - 1, frames[FIRST] - 1, -1):
        start = frames[COUNTERS + (frame & (n_frames - 1))]
        if not 0 <= start < position:
            return False
        while position > start:
            last = table.undo[(position - 1) & mask]
            kind = np.int64(last >> np.uint64(_KIND_SHIFT))
            place = np.int64(last & np.uint64((1 << _KIND_SHIFT) - 1))
            size = 1
            if kind == ACCOUNT:
                size = table.u64.shape[0]
            elif kind == PAIR:
                size = table.pairs_u64.shape[0]
            elif kind == SLOT:
                size = table.slots.size
            if n_words(kind) == 0 or place >= size:
                return False
            position -= 1 + n_words(kind)
        if position != start:
            return False
    return True
