"""Files that outlast a crash: replaced as a whole or not at all, and on the disk when the call returns.

A file appears under its name only by a rename of one that is whole and synced, and the folder is synced after it: a
rename is atomic, but until then a power cut may bring the old name back.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

SUFFIX = ".tmp"
"""Of a file that is not whole yet; a kill leaves it behind, and the next write to the same name takes it over."""


@contextlib.contextmanager
def replacing(path: Path, *, suffix: str = SUFFIX) -> Iterator[BinaryIO]:
    """Open what becomes the file when the block ends without an error; with one, the file stays as it was.

    Args:
        path: The file, whose folder exists.
        suffix: Of the unfinished file's name. Writers of one file that nothing keeps apart need one each, or they
            write into each other's.

    Raises:
        OSError: It cannot be written.
    """
    unfinished = path.parent / f"{path.name}{suffix}"
    try:
        with unfinished.open("wb", buffering=1 << 20) as file:
            yield file
            sync(file)
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    sync_folder(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Make a file hold this, see `replacing`.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path) as file:
        file.write(content)


def sync(file: IO[bytes]) -> None:
    """Have what was written on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last: those added, renamed or removed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
