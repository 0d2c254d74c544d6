"""The journal: takes the past back to where it would be if an orphaned block had never been seen.

The undo log (`undo.py`) restores bytes; this says which transactions belong to which block. A block that is taken back
need not be the newest thing in the past: what came after its first transaction is taken back with it, and what of that
belongs to other blocks is observed again, in the same order. The past is then bit by bit the one that the same
transactions without the orphaned ones leave.

A stream may come over several partitions, each of which announces an orphaned block by itself. The first announcement
takes the block back; until the others have come, transactions of the block that their partitions still hold are
orphaned too. A block that returns after that, as when a chain changes its mind twice, is a block like any other.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features import undo
from features.errors import ReorgError, StateError
from features.transaction import RECORD_WORDS, Transaction

if TYPE_CHECKING:
    from features.accounts import Accounts, Arrays

BLOCK_TRANSACTIONS = 512
"""Transactions and token transfers set aside for a block: Ethereum's have some 450 on average. Where they have more,
the journal reaches fewer blocks back, which `n_blocks` shows."""

HALF_ANNOUNCED_MAX = 4096
"""Blocks that some partitions have announced and others not: a chain's reorganisation has 64 of them at most."""

FORGOTTEN_MAX = 4096
"""Heights of forgotten blocks kept apart from those below what is held: one for each block that claimed a height far
above its neighbours'."""

Observe = Callable[[NDArray[np.uint64]], object]


class Stretch(Struct, gc=False):
    """Transactions of one block that were observed one after another."""

    chain_id: int
    number: int
    hash: str | None
    """None where the transactions name no block."""

    keys: list[bytes]
    """Kafka key of each transaction's score."""

    decisions: bytearray
    """What was decided on each, as the caller counts decisions."""


class TakenBack(NamedTuple):
    """A transaction that is no longer part of the past."""

    record: NDArray[np.uint64]
    """As it was packed, shape (RECORD_WORDS,)."""
    key: bytes
    decision: int


class Announced(Struct):
    """A block that some partitions have announced as orphaned and others not yet."""

    number: int
    counts: list[int]
    """How often each partition has announced it."""


class _Index(Struct, frozen=True):
    """What is saved besides the words of the log."""

    whole: bool
    floor: int
    stretches: list[Stretch]
    announced: dict[str, Announced]
    forgotten: list[int] = []


class Journal:
    """Which block each of the newest transactions belongs to, and how to take a block back."""

    def __init__(self, accounts: "Accounts", *, chain_id: int, depth: int, n_partitions: int = 1) -> None:
        """Keep a journal of a table that was made with `undo_transactions`.

        Args:
            accounts: The past; all that is observed from here on must be noted.
            chain_id: The chain whose reorganisations are followed.
            depth: Newest blocks that may be taken back, above 0.
            n_partitions: Over how many partitions the stream comes.
        """
        assert accounts.table.undo.size
        assert depth > 0
        self._accounts = accounts
        self._chain_id = chain_id
        self._depth = depth
        self.n_partitions = n_partitions
        self._stretches: deque[Stretch] = deque()
        self._numbers: dict[int, int] = {}
        """Of each height, how many stretches are kept."""

        self._heights: list[int] = []
        """The keys of `_numbers` in ascending order, so that how deep one lies needs no walk over all."""

        self._n_transactions = 0
        self._is_whole = True
        self._floor = -1
        """Nothing up to here can be taken back."""

        self._forgotten: list[int] = []
        """Heights above the floor of which something is no longer held, in ascending order. One block with a height
        out of all proportion must not lift the floor over those that follow."""

        self._announced: dict[str, Announced] = {}
        accounts.journal = self

    @property
    def n_blocks(self) -> int:
        """Blocks of the chain that can be taken back; those without transactions are not among them."""
        return len(self._numbers)

    @property
    def is_split(self) -> bool:
        """Whether a block is orphaned on some partitions and not yet on others."""
        return bool(self._announced)

    def note(self, transactions: Sequence[Transaction], keys: list[bytes], decisions: bytes) -> None:
        """Say what was just observed: each transaction, its key and what was decided on it, in the same order."""
        start, n = 0, len(transactions)
        while start < n:
            first = transactions[start]
            block_hash, number, chain_id = first.block_hash, first.block_number, first.chain_id
            end = start + 1
            while end < n and transactions[end].block_hash == block_hash:
                if block_hash is None and transactions[end].block_number != number:
                    break
                end += 1
            self._append(Stretch(chain_id, number, block_hash, keys[start:end], bytearray(decisions[start:end])))
            start = end
        self._trim()

    def is_orphaned(self, tx: Transaction, partition: int) -> bool:
        """Say whether a transaction belongs to a block that another partition has announced as orphaned.

        Raises:
            ReorgError: The transaction names no block, but has the number of such a one.
        """
        if tx.block_hash is None:
            if any(block.number == tx.block_number for block in self._announced.values()):
                raise ReorgError(f"{tx.id} names no block_hash: it may belong to the orphaned block {tx.block_number}")
            return False
        block = self._announced.get(tx.block_hash)
        return block is not None and block.counts[partition] < max(block.counts)

    def announce(
        self, *, chain_id: int, number: int, block_hash: str, partition: int, observe: Observe | None = None
    ) -> list[TakenBack] | None:
        """Take a block back, unless another partition has announced it before.

        Args:
            chain_id: The block's chain.
            number: Its height.
            block_hash: 0x and 64 hex digits.
            partition: Where it is announced.
            observe: Makes packed transactions part of the past again; None does it by a kernel of its own, which is
                compiled at first use.

        Returns:
            The block's transactions, the newest first, in this journal's past until here; None where another partition
            was the first to announce the block.

        Raises:
            ReorgError: The past cannot go back by this block; it is as it was.
        """
        if chain_id != self._chain_id:
            raise ReorgError(f"block {block_hash} is of chain {chain_id}, the journal follows chain {self._chain_id}")
        if not 0 <= partition < self.n_partitions:
            raise ReorgError(f"partition {partition} of {self.n_partitions} announces the orphaned block {block_hash}")
        block = self._announced.get(block_hash) or Announced(number, [0] * self.n_partitions)
        if len(self._announced) == HALF_ANNOUNCED_MAX and block_hash not in self._announced:
            raise ReorgError(
                f"{HALF_ANNOUNCED_MAX} orphaned blocks were announced on some of the {self.n_partitions} partitions "
                "and not on the others"
            )
        counts = block.counts
        taken = (
            self._take_back(number, block_hash, observe or self._accounts.score_rows)
            if counts[partition] == max(counts)
            else None
        )
        counts[partition] += 1
        if min(counts) == max(counts):
            self._announced.pop(block_hash, None)
        else:
            self._announced[block_hash] = block
        return taken

    def _take_back(self, number: int, block_hash: str, observe: Observe) -> list[TakenBack]:
        self._check(number, block_hash)
        places = [i for i, stretch in enumerate(self._stretches) if stretch.hash == block_hash]
        if not places:
            return []
        stretches = list(self._stretches)[places[0] :]
        n = sum(len(stretch.keys) for stretch in stretches)
        records = np.empty((n, RECORD_WORDS), dtype=np.uint64)
        undo.rewind(self._accounts.table, records)
        for _ in stretches:
            self._drop(self._stretches.pop())
        taken: list[TakenBack] = []
        start = 0
        for stretch in stretches:
            part = records[start : start + len(stretch.keys)]
            start += len(stretch.keys)
            if stretch.hash == block_hash:
                taken += map(TakenBack, part, stretch.keys, stretch.decisions)
            else:
                observe(part)
                self._append(stretch)
        self._trim()
        return taken[::-1]

    def _check(self, number: int, block_hash: str) -> None:
        if not self._is_whole or number <= self._floor or number in self._forgotten:
            reach = f"from block {self._floor + 1} on" if self._is_whole else "nothing yet"
            raise ReorgError(
                f"block {number} ({block_hash}) is orphaned, deeper than the journal reaches: it holds {reach}, "
                f"at most {self._depth} blocks (reorg_depth_max)"
            )
        if any(stretch.hash is None and stretch.number == number for stretch in self._stretches):
            raise ReorgError(
                f"block {number} ({block_hash}) is orphaned, but transactions of that number name no block_hash"
            )

    def _append(self, stretch: Stretch) -> None:
        last = self._stretches[-1] if self._stretches else None
        self._n_transactions += len(stretch.keys)
        is_ours = stretch.chain_id == self._chain_id
        if is_ours and not self._is_whole:
            # What was observed before may hold blocks up to here, or somewhat later where partitions are out of step.
            self._is_whole, self._floor = True, stretch.number + self._depth
        if (
            last is not None
            and last.hash == stretch.hash
            and last.number == stretch.number
            and last.chain_id == stretch.chain_id
        ):
            last.keys += stretch.keys
            last.decisions += stretch.decisions
            return
        self._stretches.append(stretch)
        if is_ours:
            n_there = self._numbers.get(stretch.number, 0)
            if not n_there:
                insort(self._heights, stretch.number)
            self._numbers[stretch.number] = n_there + 1

    def _drop(self, stretch: Stretch) -> None:
        self._n_transactions -= len(stretch.keys)
        if stretch.chain_id == self._chain_id:
            n_left = self._numbers.pop(stretch.number) - 1
            if n_left:
                self._numbers[stretch.number] = n_left
            else:
                self._heights.remove(stretch.number)

    def _trim(self) -> None:
        """Forget what lies deeper than the depth, and what the log no longer holds."""
        frames = self._accounts.table.frames
        n_whole = int(frames[undo.COUNT] - frames[undo.FIRST])
        while self._stretches and (self._n_transactions > n_whole or self._is_deep(self._stretches[0])):
            stretch = self._stretches.popleft()
            self._drop(stretch)
            if stretch.chain_id == self._chain_id:
                self._forget(stretch.number)

    def _forget(self, number: int) -> None:
        """Say that something of a block is no longer held, and lift the floor up to what is held."""
        forgotten = self._forgotten
        if number > self._floor and number not in forgotten:
            insort(forgotten, number)
        n_below = bisect_left(forgotten, self._heights[0]) if self._heights else 0
        n_below = max(n_below, len(forgotten) - FORGOTTEN_MAX)
        if n_below:
            self._floor = forgotten[n_below - 1]
            del forgotten[:n_below]

    def _is_deep(self, stretch: Stretch) -> bool:
        if stretch.chain_id != self._chain_id:
            return True
        return len(self._heights) - bisect_right(self._heights, stretch.number) >= self._depth

    def arrays(self) -> "Arrays":
        """Return what must be saved to continue; the log's words are copied in the order of the ring."""
        table = self._accounts.table
        frames = table.frames
        n_frames = len(frames) - undo.COUNTERS
        first = int(frames[undo.COUNT]) - self._n_transactions
        starts = frames[undo.COUNTERS + (np.arange(first, int(frames[undo.COUNT])) & (n_frames - 1))]
        low = int(starts[0]) if len(starts) else int(frames[undo.HEAD])
        words = table.undo[np.arange(low, int(frames[undo.HEAD])) & (table.undo.size - 1)]
        index = _Index(self._is_whole, self._floor, list(self._stretches), self._announced, self._forgotten)
        return {
            "undo_words": words,
            "undo_frames": starts - low,
            "undo_index": np.frombuffer(msgspec.msgpack.encode(index), dtype=np.uint8),
        }

    def restore(self, arrays: "Arrays") -> None:
        """Continue from saved arrays; where none were saved, nothing of what was observed before can be taken back.

        Raises:
            StateError: They do not fit together.
        """
        if "undo_index" not in arrays:
            self._clear()
            self._is_whole = False
            return
        words, starts = arrays["undo_words"], arrays["undo_frames"]
        try:
            index = msgspec.msgpack.decode(arrays["undo_index"].tobytes(), type=_Index)
        except msgspec.DecodeError as error:
            raise StateError(f"saved journal is damaged: {error}") from error
        n = sum(len(stretch.keys) for stretch in index.stretches)
        if words.dtype != np.uint64 or starts.dtype != np.int64 or words.ndim != 1 or starts.shape != (n,):
            raise StateError(f"saved journal has {n} transactions, but {starts.shape} frames of {words.dtype} words")
        if any(len(block.counts) != self.n_partitions for block in index.announced.values()):
            raise StateError(f"saved journal is of another number of partitions than {self.n_partitions}")
        # A standby restores one snapshot after the other.
        self._clear()
        self._load(words.view(np.uint64), starts.view(np.int64))
        self._is_whole, self._floor, self._forgotten = index.whole, index.floor, sorted(index.forgotten)
        for stretch in index.stretches:
            self._append(stretch)
        self._announced = index.announced
        self._trim()

    def _clear(self) -> None:
        self._stretches.clear()
        self._numbers.clear()
        self._heights.clear()
        self._n_transactions = 0
        self._is_whole, self._floor = True, -1
        self._forgotten.clear()
        self._announced = {}
        self._accounts.table.frames[: undo.COUNTERS] = 0

    def _load(self, words: NDArray[np.uint64], starts: NDArray[np.int64]) -> None:
        """Fill the log; of what is more than it holds, the newest."""
        table = self._accounts.table
        n_frames = len(table.frames) - undo.COUNTERS
        kept = words[-table.undo.size :]
        table.undo[np.arange(len(words) - len(kept), len(words)) & (table.undo.size - 1)] = kept
        newest = np.arange(max(0, len(starts) - n_frames), len(starts))
        table.frames[undo.COUNTERS + (newest & (n_frames - 1))] = starts[newest]
        low = len(words) - len(kept)
        first = max(int(newest[0]) if len(newest) else 0, int(np.searchsorted(starts, low)))
        table.frames[: undo.COUNTERS] = len(words), len(starts), low, first
        if np.any(np.diff(starts) <= 0) or (len(starts) and starts[0] != 0) or not undo.is_sound(table):
            raise StateError("saved journal leads to places that the table does not have")
