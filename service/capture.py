"""Snapshots of a running service: a forked child writes what the past was at the fork, and the stream goes on.

A fork shares memory page by page until one side writes to it, so the child sees one moment of all arrays and the
stream waits only for the fork itself. The child has one thread, and it does nothing but write the file and exit: it
takes no lock that another thread may have held, logs nothing, and talks to nobody. docs/adr/0009 says why.
"""

import contextlib
import errno
import gc
import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from features.errors import StateError
from service import snapshot
from service.metrics import Metrics
from service.snapshot import Header, Offsets, Part, Stream

WRITE_SECONDS_MAX = 300.0
"""A child that writes for longer hangs on its disk and is killed: 336 MB of 1 million accounts take 1 s."""

KILL_SECONDS_MAX = 1.0
"""Waited for a killed child to be gone; one that its disk holds longer is left to the system."""

log = logging.getLogger("falconet.capture")


class _Writing(NamedTuple):
    """A child at work."""

    pid: int
    path: Path
    header: Header
    started_s: float
    paused_s: float


class Snapshots:
    """Takes a snapshot now and then and keeps the newest two; the loop's thread calls it."""

    def __init__(
        self, folder: Path, parts: Sequence[Part], stream: Stream, metrics: Metrics, *, every_s: float
    ) -> None:
        """Wait for the first moment.

        Args:
            folder: Where they stand.
            parts: The past.
            stream: Whose past it is.
            metrics: Where they are counted.
            every_s: Seconds from one to the next; 0 takes none but the one at the end.
        """
        self._folder = folder
        self._parts = parts
        self._stream = stream
        self._metrics = metrics
        self._every_s = every_s
        self._next_s = time.monotonic() + every_s
        self._writing: _Writing | None = None
        self._offsets: Offsets | None = None

    def is_due(self, offsets: Offsets) -> bool:
        """Say whether it is time, which it is not while one is being written or nothing has been read since."""
        if self._writing is not None:
            self._look(self._writing)
        if self._every_s == 0 or self._writing is not None or time.monotonic() < self._next_s:
            return False
        if offsets == self._offsets:
            # The past at rest is on the disk already, and no older for its age.
            self._metrics.set_snapshot(time.time())
            self._next_s = time.monotonic() + self._every_s
            return False
        return True

    def take(self, offsets: Offsets, *, started_s: float) -> None:
        """Have a child write the past as it is, while everything in it is committed; returns after the fork.

        Args:
            offsets: Up to where the past reaches.
            started_s: When the stream began to wait for it, by `perf_counter`.
        """
        self._next_s = time.monotonic() + self._every_s
        header = snapshot.header_of(self._stream, offsets=dict(offsets), unsettled=[])
        try:
            path = snapshot.next_path(self._folder)
            pid = os.fork()
        except (OSError, StateError) as error:
            self._failed(self._folder, str(error))
            return
        if pid == 0:
            _write_and_exit(path, header, self._parts)
        paused_s = time.perf_counter() - started_s
        self._writing = _Writing(pid, path, header, time.monotonic(), paused_s)
        self._metrics.snapshot_pause_seconds.set(paused_s)

    def save(self, offsets: Offsets, unsettled: list[snapshot.Batch]) -> Path:
        """Write the past here and now, with what could not be committed of it, and return the file.

        Raises:
            StateError: It cannot be written.
        """
        self.close()
        path = snapshot.next_path(self._folder)
        header = snapshot.header_of(self._stream, offsets=dict(offsets), unsettled=unsettled)
        snapshot.save(path, header, self._parts)
        self._metrics.set_snapshot(header.saved_at_s)
        return path

    def close(self) -> None:
        """End a child that is still writing: what it writes is about to be out of date."""
        writing, self._writing = self._writing, None
        if writing is not None:
            _kill(writing.pid)
            unfinished = writing.path.parent / f"{writing.path.name}.{writing.pid}.tmp"
            unfinished.unlink(missing_ok=True)

    def _look(self, writing: _Writing) -> None:
        """See whether the child is done."""
        pid, status = os.waitpid(writing.pid, os.WNOHANG)
        spent_s = time.monotonic() - writing.started_s
        if pid == 0:
            if spent_s > WRITE_SECONDS_MAX:
                self.close()
                self._failed(writing.path, f"not written within {WRITE_SECONDS_MAX:g} s")
            return
        self._writing = None
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            self._failed(writing.path, os.strerror(code) if code > 0 else f"killed by signal {-code}")
            return
        self._offsets = writing.header.offsets
        self._metrics.set_snapshot(writing.header.saved_at_s)
        self._metrics.snapshots_total["saved"].inc()
        log.info(
            "snapshot path=%s offsets=%s in_s=%.2f paused_ms=%.1f",
            writing.path,
            writing.header.offsets,
            spent_s,
            writing.paused_s * 1e3,
        )

    def _failed(self, path: Path, why: str) -> None:
        """Say that there is none this time: the stream goes on, and the age in the metrics tells for how long."""
        self._metrics.snapshots_total["failed"].inc()
        log.error("snapshot not written path=%s error=%s next_in_s=%g", path, why, self._every_s)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    # A child that waits for a disk does not die before the disk answers: the stream must not wait with it.
    given_up_s = time.monotonic() + KILL_SECONDS_MAX
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < given_up_s:
            time.sleep(0.001)


def _write_and_exit(path: Path, header: Header, parts: Sequence[Part]) -> NoReturn:
    """Be the child: write, and end with 0 or the number of the system's error."""
    code = errno.EIO
    try:
        # A collection would run the destructors of the parent's clients.
        gc.disable()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # Without the parent's sockets and streams: its broker and its successor on the same port must see them closed.
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        # What takes the place of the standard streams, so that the snapshot is none of them.
        for _ in range(3):
            os.open(os.devnull, os.O_RDWR)
        os.nice(5)
        snapshot.save(path, header, parts)
        code = 0
    except StateError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno:
            code = error.__cause__.errno
    finally:
        # Also where it fails in a way nobody thought of: what is left of the parent must not run twice.
        os._exit(code)
