"""Time contestants in turns: each round every one scores the same rows, one at a time and in batches of 500.

This module stands on numpy and the standard library alone, because a contestant that cannot live in this environment
runs it in another: `python turns.py` answers requests on standard input (see `lleaves_apart.py`).
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BATCH = 500
PAUSE_S = 0.05
"""Between two contestants: OpenMP's threads spin for some milliseconds after a call, and would be counted to the next
one's processor time."""

SINGLE_S, SINGLES_MIN, SINGLES_MAX = 0.2, 15, 2_000
"""Calls of one row that a round holds: as many as fit the time, within these."""
BATCH_S, BATCHES_MAX = 0.1, 50


class Round(NamedTuple):
    """What one contestant took in one round."""

    single_us: NDArray[np.float64]
    """Of each call of one row, with the 0.05 µs that reading the clock takes."""
    single_cpu_us: float
    """Processor time of a row, all threads, one at a time."""
    batch_us: float
    """Of a row in a batch of 500; NaN, as the others, where there was none."""
    batch_cpu_us: float


class Calls(NamedTuple):
    """A contestant in this process: a call, and its rows in the form it takes, made before the clock starts."""

    call: Callable[[Any], Any]
    singles: Sequence[Any]
    batch: Any

    def size(self) -> tuple[int, int]:
        """Return how many single calls and how many batches a round holds."""
        self.call(self.singles[0])
        self.call(self.batch)
        single_s, batch_s = _seconds(self.call, self.singles[1]), _seconds(self.call, self.batch)
        return (
            int(np.clip(SINGLE_S / single_s, SINGLES_MIN, min(SINGLES_MAX, len(self.singles)))),
            int(np.clip(BATCH_S / batch_s, 1, BATCHES_MAX)),
        )

    def round(self, n_singles: int, n_batches: int) -> Round:
        """Run a round."""
        call, clock, nan = self.call, time.perf_counter_ns, float("nan")
        spent = np.empty(n_singles)
        cpu_s = time.process_time()
        for i, row in enumerate(self.singles[:n_singles]):
            started = clock()
            call(row)
            spent[i] = clock() - started
        single_cpu_us = (time.process_time() - cpu_s) / n_singles * 1e6 if n_singles else nan
        cpu_s, started = time.process_time(), clock()
        for _ in range(n_batches):
            call(self.batch)
        batch_ns, cpu_s, n_rows = clock() - started, time.process_time() - cpu_s, n_batches * BATCH
        if not n_rows:
            return Round(spent / 1e3, single_cpu_us, nan, nan)
        return Round(spent / 1e3, single_cpu_us, batch_ns / 1e3 / n_rows, cpu_s / n_rows * 1e6)


def _seconds(call: Callable[[Any], Any], rows: Any) -> float:
    started = time.perf_counter()
    call(rows)
    return time.perf_counter() - started


@contextmanager
def one_core(is_alone: bool = True) -> Iterator[None]:
    """Bind this thread to its last core, unless the contestant is to show what its threads do."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)} if is_alone else before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
