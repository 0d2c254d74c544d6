"""How far long work is: a moving bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Told what is done, how many of how many."""

PLAIN_SECONDS = 5.0
"""Between two plain lines of one stage, so that a log of ten minutes stays a screen or two."""


@contextmanager
def progress() -> Iterator[Progress]:
    """Yield what is told of the progress; it writes to standard error."""
    if not sys.stderr.isatty():
        yield _Plain().report
        return
    from rich import progress as rich_progress
    from rich.console import Console

    with rich_progress.Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def report(stage: str, n_done: int, n: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=n)
            bars.update(tasks[stage], completed=n_done)

        yield report


class _Plain:
    def __init__(self) -> None:
        self._stage = ""
        self._next_s = 0.0

    def report(self, stage: str, n_done: int, n: int) -> None:
        """Write a line when the stage begins, when it ends, and every PLAIN_SECONDS between."""
        now_s = time.monotonic()
        if stage == self._stage and n_done < n and now_s < self._next_s:
            return
        self._stage, self._next_s = stage, now_s + PLAIN_SECONDS
        sys.stderr.write(f"{stage}: {n_done:,} of {n:,}\n")
