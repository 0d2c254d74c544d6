"""How far long work is: a moving bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Told what is done, how many of how many."""

PLAIN_SECONDS = 5.0
"""Between two plain lines of one stage, so that a log of ten minutes stays a screen or two."""


def _write_line(stage: str, n_done: int, n: int) -> None:
    sys.stderr.write(f"{stage}: {n_done:,} of {n:,}\n")


@contextmanager
def progress(line: Progress = _write_line) -> Iterator[Progress]:
    """Yield what is told of the progress; it moves a bar on a terminal, and has a line told elsewhere.

    Args:
        line: Tells one line; standard error's own unless another is given, such as a log's.
    """
    if not sys.stderr.isatty():
        yield _Plain(line).report
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
    def __init__(self, line: Progress) -> None:
        self._line = line
        self._stage = ""
        self._next_s = 0.0

    def report(self, stage: str, n_done: int, n: int) -> None:
        """Tell a line when the stage begins, when it ends, and every PLAIN_SECONDS between."""
        now_s = time.monotonic()
        if stage == self._stage and n_done < n and now_s < self._next_s:
            return
        self._stage, self._next_s = stage, now_s + PLAIN_SECONDS
        self._line(stage, n_done, n)
