"""Arrays too large for memory: in a file without a name in the temporary folder, mapped, gone with the process."""

import mmap
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import InputError


class Spool:
    """A two-dimensional array that is written part by part and then read as if it were in memory."""

    def __init__(self, kind: Any, *, width: int, n_max: int) -> None:
        """Make an empty one.

        Args:
            kind: Type of the values.
            width: Values in a row.
            n_max: Rows that may come.

        Raises:
            InputError: The temporary folder has no room for them.
        """
        self._kind, self._width = kind, width
        _check_room(n_max * width * np.dtype(kind).itemsize)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving
        self._n = 0

    def __enter__(self) -> "Spool":
        """Return itself, to be written to."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the file; what was mapped stays."""
        self._file.close()

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows, shape (n, width)."""
        self._file.write(np.ascontiguousarray(rows, dtype=self._kind).data)
        self._n += len(rows)

    def array(self) -> NDArray[Any]:
        """Return all rows, read-only, shape (n, width)."""
        self._file.flush()
        if not self._n:
            return np.zeros((0, self._width), self._kind)
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype=self._kind).reshape(-1, self._width)


def empty(kind: Any, *, width: int, n: int, bytes_max: int) -> NDArray[Any]:
    """Return an array to write to, shape (n, width): in memory up to `bytes_max`, beyond in a file.

    Raises:
        InputError: The temporary folder has no room for it.
    """
    n_bytes = n * width * np.dtype(kind).itemsize
    if n_bytes <= bytes_max:
        return np.empty((n, width), dtype=kind)
    _check_room(n_bytes)
    with tempfile.TemporaryFile() as file:
        file.truncate(n_bytes)
        return np.frombuffer(mmap.mmap(file.fileno(), 0), dtype=kind).reshape(n, width)


def release(array: NDArray[Any]) -> None:
    """Let go of the pages of memory behind an array that is mapped from a file; their content stays in the file."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else base
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_DONTNEED)


def _check_room(n_bytes: int) -> None:
    place = Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    if n_bytes > free:
        raise InputError(f"{place}: {free:,} bytes free, {n_bytes:,} needed; TMPDIR may name a larger folder")
