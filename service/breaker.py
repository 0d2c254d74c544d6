"""The circuit breaker: while too much is flagged nothing is blocked, so that a bad model or list cannot block everyone.

It looks at what model, lists and rules say of the last scored transactions, not at what became of it: held back
decisions count as they were meant, and so it closes once the cause has gone, never because it works.

It opens with the transaction at which more than `share` of the window is not `allow`, and closes with the one at which
at most half of that is. The window counts transactions of the stream and starts as if all before it had been allowed:
no clock, so that the same stream from the same state gives the same decisions, in batches of any size.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.errors import StateError
from service.policy import ALLOW, BLOCK, REVIEW

NAME = "breaker"
"""Of its state among other arrays at rest."""

CLOSES_AT = 0.5
"""Times the share: half-way back, so that a share around the limit does not switch it to and fro."""

_OPEN, _PLACE, _FLAGGED, _TRIPS, _RING = range(5)
"""What the words of the state hold; the ring of flags, one a transaction, from the last on."""


@compiled
def _run(codes, is_held, state, opens_above, closes_at):
    window = state.shape[0] - _RING
    for i in range(codes.shape[0]):
        flagged = 1 if codes[i] != ALLOW else 0
        at = _RING + state[_PLACE]
        state[_FLAGGED] += flagged - state[at]
        state[at] = flagged
        state[_PLACE] = state[_PLACE] + 1 if state[_PLACE] + 1 < window else 0
        if state[_OPEN] == 0 and state[_FLAGGED] > opens_above:
            state[_OPEN] = 1
            state[_TRIPS] += 1
        elif state[_OPEN] == 1 and state[_FLAGGED] <= closes_at:
            state[_OPEN] = 0
        is_held[i] = state[_OPEN] == 1
        if is_held[i] and codes[i] == BLOCK:
            codes[i] = REVIEW


class Breaker:
    """One stream's breaker; its state is part of the past, as the account table is."""

    def __init__(self, *, share: float, window: int) -> None:
        """Make a closed breaker.

        Args:
            share: Of the window that may be flagged; with 1.0 it never opens.
            window: Transactions looked at, at least 1; 8 bytes each.
        """
        self._opens_above = math.floor(share * window)
        self._closes_at = math.floor(share * window * CLOSES_AT)
        self._state = np.zeros(_RING + window, dtype=np.int64)

    @property
    def is_open(self) -> bool:
        """Whether decisions are held to `review` after the last transaction."""
        return bool(self._state[_OPEN])

    @property
    def n_trips(self) -> int:
        """How often it has opened."""
        return int(self._state[_TRIPS])

    @property
    def share(self) -> float:
        """Share of the window that was meant not to be allowed."""
        return float(self._state[_FLAGGED]) / (len(self._state) - _RING)

    def hold(self, codes: NDArray[np.int8]) -> NDArray[np.bool_]:
        """Turn `block` into `review`, in place, wherever the breaker is open, and say where it is.

        Args:
            codes: What was decided on a batch, in the order of the stream, shape (n,); 2 ns each.

        Returns:
            Whether the breaker was open at each transaction, itself counted, shape (n,).
        """
        is_held = np.empty(len(codes), dtype=np.bool_)
        _run(codes, is_held, self._state, self._opens_above, self._closes_at)
        return is_held

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the whole state by name, for a file; the array is the breaker's own."""
        return {NAME: self._state}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> bool:
        """Continue from a saved state; False where there is none of this window, and the breaker starts anew.

        Raises:
            StateError: The array holds what no breaker leaves behind.
        """
        found = arrays.get(NAME)
        if found is not None and (found.ndim != 1 or found.dtype != np.int64):
            raise StateError(f"{NAME}: {found.dtype} of {found.ndim} dimensions, expected int64 of one")
        if found is None or found.shape != self._state.shape:
            self._state[:] = 0
            return False
        saved = found.view(np.int64)
        ring = saved[_RING:]
        is_sound = (
            saved[_OPEN] in (0, 1)
            and 0 <= saved[_PLACE] < len(ring)
            and saved[_TRIPS] >= 0
            and bool(np.isin(ring, (0, 1)).all())
            and saved[_FLAGGED] == ring.sum()
        )
        if not is_sound:
            raise StateError(f"{NAME}: holds what no breaker leaves behind")
        self._state[:] = saved
        return True
