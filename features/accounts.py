"""The past of each address: a table of fixed size, and the three verbs on it: observe, merge, emit."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from features import kernel, observe, schema, table, undo
from features.errors import StateError, UsageError
from features.transaction import TIMESTAMP_MAX

if TYPE_CHECKING:
    from features.journal import Journal
    from features.screening import Screening

ACCOUNTS_MIN, ACCOUNTS_LIMIT = 64, 100_000_000

_NO_LISTS = np.zeros((1, table.LIST_WORDS), dtype=np.uint64)

Arrays = dict[str, NDArray[np.generic]]


class Accounts:
    """The accounts, the pairs that met, and the horizon behind which nothing is known.

    Memory is allocated at once and never grows: 256 bytes an account, 8 bytes an index entry (a power of two of at
    least 1.5 times the accounts) and 32 bytes a pair.
    """

    def __init__(
        self,
        *,
        accounts_max: int,
        pairs_max: int,
        history_start: int | None = None,
        screening: "Screening | None" = None,
        undo_transactions: int = 0,
    ) -> None:
        """Make an empty table.

        Args:
            accounts_max: Accounts kept; beyond it the stalest are evicted.
            pairs_max: Sender-recipient pairs kept, rounded up to whole buckets of four.
            history_start: Unix seconds from which on every transaction is going to be observed; None takes the first
                one's time. What happened before is unknown, not zero.
            screening: Lists to look addresses up in, None for none.
            undo_transactions: How many of the newest transactions a `Journal` may take back, rounded up to a power of
                two; each takes 0.8 to 1.6 KB. 0 keeps nothing and costs nothing.
        """
        if not ACCOUNTS_MIN <= accounts_max <= ACCOUNTS_LIMIT:
            raise UsageError(f"accounts_max is {accounts_max}, not {ACCOUNTS_MIN} to {ACCOUNTS_LIMIT}")
        if not 4 <= pairs_max <= 4 * ACCOUNTS_LIMIT:
            raise UsageError(f"pairs_max is {pairs_max}, not 4 to {4 * ACCOUNTS_LIMIT}")
        n_pairs = -(-pairs_max // table.PAIR_WAYS) * table.PAIR_WAYS
        meta = np.zeros(table.META_WORDS, dtype=np.int64)
        if history_start is not None:
            if not 0 <= history_start <= TIMESTAMP_MAX:
                raise UsageError(f"history_start is {history_start}, not 0 to {TIMESTAMP_MAX}")
            meta[table.STARTED] = 1
            meta[table.HORIZON] = meta[table.SINCE] = history_start
        self._adopt(
            np.zeros((accounts_max, table.WORDS), dtype=np.float32),
            np.zeros(1 << (3 * accounts_max // 2).bit_length(), dtype=np.uint64),
            np.zeros((n_pairs, table.PAIR_WORDS), dtype=np.float32),
            meta,
            screening,
            1 << (undo_transactions - 1).bit_length() if undo_transactions else 0,
        )

    def _adopt(
        self,
        accounts: NDArray[np.float32],
        slots: NDArray[np.uint64],
        pairs: NDArray[np.float32],
        meta: NDArray[np.int64],
        screening: "Screening | None",
        n_frames: int,
    ) -> None:
        self.screening = screening
        self.journal: Journal | None = None
        """Set by the journal of this table."""
        self.weights = np.empty(4)
        """Scratch of the kernel."""
        self.table = table.Table(
            f32=accounts,
            u32=accounts.view(np.uint32),
            u64=accounts.view(np.uint64),
            slots=slots,
            pairs_f32=pairs,
            pairs_u32=pairs.view(np.uint32),
            pairs_u64=pairs.view(np.uint64),
            lists=_NO_LISTS if screening is None else screening.entries,
            flagged=np.uint64(0 if screening is None else screening.flagged_bits),
            meta=meta,
            undo=np.zeros(1 << (n_frames * undo.FRAME_WORDS - 1).bit_length() if n_frames else 0, dtype=np.uint64),
            frames=np.zeros(undo.COUNTERS + n_frames, dtype=np.int64),
        )

    def score_rows(self, records: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Emit each record's row from the past and make the record part of the past, in order.

        Args:
            records: Packed transactions, shape (n, RECORD_WORDS).

        Returns:
            Rows, float32 of shape (n, N_FEATURES), NaN where unknown; and list hits, uint32 of shape (n,).
        """
        return self._run(records, observing=True)

    def emit(self, records: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Emit rows like `score_rows` and leave the past as it is."""
        return self._run(records, observing=False)

    def _run(self, records: NDArray[np.uint64], *, observing: bool) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        n = len(records)
        rows = np.empty((n, schema.N_FEATURES), dtype=np.float32)
        hits = np.empty(n, dtype=np.uint32)
        kernel.run(self.table, records, records.view(np.float64), rows, hits, self.weights, observing)
        return rows, hits

    def merge(self, other: "Accounts") -> None:
        """Take over another table's past, as if this one had seen both streams.

        Args:
            other: A table of as many pairs; it is decayed on the way and must not be used afterwards.
        """
        if len(self.table.pairs_u64) != len(other.table.pairs_u64):
            raise StateError(f"pairs_max {len(other.table.pairs_u64)} differs from {len(self.table.pairs_u64)}")
        if self.table.undo.size or other.table.undo.size:
            raise StateError("a table with a journal cannot merge: what it took over could not be taken back")
        observe.merge_accounts(self.table, other.table, self.weights)
        observe.merge_pairs(self.table, other.table)

    @property
    def n_accounts(self) -> int:
        """Accounts in the table."""
        return int(self.table.meta[table.N_ACCOUNTS])

    @property
    def n_evicted(self) -> int:
        """Accounts evicted since the table was made."""
        return int(self.table.meta[table.N_EVICTED])

    @property
    def n_pairs(self) -> int:
        """Pairs in memory."""
        return int(self.table.meta[table.N_PAIRS])

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays, allocated whether used or not."""
        arrays = self.table
        return arrays.f32.nbytes + arrays.slots.nbytes + arrays.pairs_f32.nbytes + arrays.undo.nbytes

    def arrays(self) -> Arrays:
        """Return what must be saved to continue: the used accounts, the index, the pairs, the counters, the journal."""
        arrays = self.table
        past: Arrays = {
            "accounts": arrays.f32[: self.n_accounts],
            "slots": arrays.slots,
            "pairs": arrays.pairs_f32,
            "meta": arrays.meta,
        }
        return past if self.journal is None else past | self.journal.arrays()

    def restore(self, arrays: Arrays) -> None:
        """Continue from saved arrays; a journal continues where one was saved with them.

        Raises:
            StateError: The arrays were saved with other limits.
        """
        own = self.table
        missing = [name for name in ("accounts", "slots", "pairs", "meta") if name not in arrays]
        if missing:
            raise StateError(f"saved state has no {', '.join(missing)}")
        for name, expected in (("slots", own.slots), ("pairs", own.pairs_f32), ("meta", own.meta)):
            if arrays[name].shape != expected.shape or arrays[name].dtype != expected.dtype:
                raise StateError(
                    f"saved {name} has shape {arrays[name].shape}, this table {expected.shape}: "
                    "start with the accounts_max and pairs_max it was saved with"
                )
        accounts = arrays["accounts"]
        if len(accounts) > len(own.f32) or accounts.shape[1:] != own.f32.shape[1:] or accounts.dtype != np.float32:
            raise StateError(
                f"saved accounts have shape {accounts.shape} of {accounts.dtype}, this table {own.f32.shape} of float32"
            )
        # The kernel follows slots without looking: an index of other accounts would read foreign memory.
        n_indexed, n_counted = np.count_nonzero(arrays["slots"]), int(arrays["meta"][table.N_ACCOUNTS])
        if not len(accounts) == n_indexed == n_counted:
            raise StateError(f"saved state has {len(accounts)} accounts, {n_indexed} indexed and {n_counted} counted")
        meta = arrays["meta"]
        limits = {table.HAND: len(own.f32), table.HORIZON: TIMESTAMP_MAX, table.SINCE: TIMESTAMP_MAX}
        limits |= {table.N_PAIRS: len(own.pairs_u64), table.STARTED: 1}
        if int(meta.min()) < 0 or any(int(meta[place]) > most for place, most in limits.items()):
            raise StateError(f"saved counters are {meta.tolist()}, some beyond this table's limits")
        keys = np.ascontiguousarray(accounts).view(np.uint64)
        if not table.is_indexed(own._replace(u64=keys, slots=np.ascontiguousarray(arrays["slots"])), len(accounts)):
            raise StateError("the saved index does not lead to the saved accounts")
        # Slots behind the accounts are zeroed when they are given out; touching them here would make them resident.
        own.f32[: len(accounts)] = accounts
        own.slots[:] = arrays["slots"]
        own.pairs_f32[:] = arrays["pairs"]
        own.meta[:] = arrays["meta"]
        if self.journal is not None:
            self.journal.restore(arrays)
