"""The account state at rest: files with the past and the offsets it reflects, each whole or refused.

A folder holds the newest snapshots, numbered. A file is a few bytes of preface, a header in MessagePack, the plain
arrays of every part of the past, and a BLAKE2b digest of all before it: a flipped bit anywhere makes it refused. It is
never a pickle, and its sizes are compared with the file's before anything is allocated.
"""

import hashlib
import math
import mmap
import os
import re
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features import durable, schema
from features.errors import StateError

FORMAT = 2
KEPT = 2
"""Snapshots that stay: the newest, and the one before it for the case that the newest is damaged."""

_NAME = re.compile(r"state-(\d{12})\.snapshot")
_UNFINISHED = re.compile(r"state-(\d{12})\.snapshot\..*")
_PREFACE = struct.Struct("<8sIQ")
_MAGIC = b"FALCONET"
_DIGEST_BYTES = 32
_ALIGNMENT = 64
_CHUNK = 1 << 24
_KINDS = frozenset({"<f4", "<f8", "<u8", "<i8", "<u4", "<i4", "<u2", "<i2", "|u1", "|i1", "|b1"})
"""Types of plain numbers; a file that names another one is refused."""

Arrays = dict[str, NDArray[np.generic]]

Offsets = dict[int, int]
"""The offset of the next message to read, by partition; a partition nobody has read from is absent."""

Tell = Callable[[str, int, int], None]
"""Is told a stage, how much of it is done, and how much there is."""


class Part(Protocol):
    """What the past consists of: something that can be put into named arrays and continued from them."""

    def arrays(self) -> Arrays:
        """Return everything that must be saved to continue, without copying what is large."""

    def restore(self, arrays: Arrays) -> object:
        """Continue from saved arrays, among which are those of other parts and may be none of this one.

        Raises:
            StateError: They do not fit.
        """


class Write(Struct, frozen=True):
    """Records for one topic."""

    topic: str
    records: Sequence[tuple[bytes | None, bytes]]
    headers: list[list[tuple[str, bytes]]] | None = None


class Batch(Struct, frozen=True):
    """What one Kafka transaction holds: what scoring a batch made, and the offsets around it."""

    before: Offsets
    after: Offsets
    writes: list[Write]


class Stream(Struct, frozen=True, kw_only=True):
    """Whose past it is."""

    cluster: str
    """Kafka's id of the cluster, empty where there is none, as for a file."""

    topic: str
    n_partitions: int
    lists: str = ""
    """Digest of the screening lists in use; other ones do not make a snapshot wrong, but are told."""


class Array(Struct, frozen=True):
    """One array of the file, in the file's order."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Size in the file, without the padding."""
        return int(np.dtype(self.kind).itemsize * math.prod(self.shape))


class Header(Struct, frozen=True, kw_only=True):
    """What must match before a saved past is continued."""

    schema: str
    """Fingerprint of the feature schema: another schema keeps other sums in the same words."""

    stream: Stream
    offsets: Offsets
    """Up to where the past has absorbed the topic, the unsettled batches included."""

    unsettled: list[Batch]
    """Batches that the past has absorbed, in order, while their Kafka transaction may not be committed."""

    saved_at_s: float
    """When the past was this, in Unix seconds."""

    arrays: list[Array] = []


class Snapshot(NamedTuple):
    """A file that was found whole."""

    path: Path
    header: Header
    arrays: Arrays
    """Views of the mapped file, to be copied from."""


def name(serial: int) -> str:
    """Return the file name of a snapshot by its number."""
    return f"state-{serial:012}.snapshot"


def files(folder: Path) -> list[Path]:
    """Return the snapshots of a folder, the newest first; none where the folder is missing.

    Raises:
        StateError: The folder cannot be read.
    """
    try:
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StateError(f"{folder}: cannot be read: {error.strerror or error}") from error
    return sorted(found, reverse=True)


def next_path(folder: Path) -> Path:
    """Return the name of the next snapshot of a folder."""
    newest = next(iter(files(folder)), None)
    return folder / name(1 if newest is None else int(newest.name[6:18]) + 1)


def header_of(stream: Stream, *, offsets: Offsets, unsettled: list[Batch]) -> Header:
    """Return the header of a past as it is at this moment; the arrays are listed when it is written."""
    return Header(
        schema=schema.FINGERPRINT, stream=stream, offsets=offsets, unsettled=unsettled, saved_at_s=time.time()
    )


def save(path: Path, header: Header, parts: Sequence[Part]) -> None:
    """Write a snapshot so that a reader finds all of it or nothing, even after a power cut; then drop older ones.

    Raises:
        StateError: It cannot be written.
    """
    arrays = collected(parts)
    listed = [Array(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes may save under one number: whoever is last has the name, and neither writes into the other's.
        with durable.replacing(path, suffix=f".{os.getpid()}{durable.SUFFIX}") as file:
            _write(file, msgspec.structs.replace(header, arrays=listed), list(arrays.values()))
        _drop_older(path, header.stream)
    except OSError as error:
        raise StateError(f"{path}: cannot be written: {error.strerror or error}") from error


def collected(parts: Sequence[Part]) -> Arrays:
    """Return the arrays of all parts of the past."""
    arrays: Arrays = {}
    for part in parts:
        added = part.arrays()
        twice = sorted(arrays.keys() & added.keys())
        assert not twice, f"two parts of the past have an array {twice[0]!r}"
        arrays |= added
    return arrays


def _write(file: BinaryIO, header: Header, arrays: Sequence[NDArray[np.generic]]) -> None:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def put(content: bytes | memoryview) -> None:
        for start in range(0, len(content), _CHUNK):
            piece = content[start : start + _CHUNK]
            digest.update(piece)
            file.write(piece)

    encoded = msgspec.msgpack.encode(header)
    put(_PREFACE.pack(_MAGIC, FORMAT, len(encoded)) + encoded)
    put(bytes(-(_PREFACE.size + len(encoded)) % _ALIGNMENT))
    for array in arrays:
        if array.size:
            put(np.ascontiguousarray(array).data.cast("B"))
        put(bytes(-array.nbytes % _ALIGNMENT))
    file.write(digest.digest())


def _drop_older(path: Path, stream: Stream) -> None:
    """Remove the snapshots of the same stream that are older than those kept, and what a kill left unfinished."""
    # A snapshot of another topic was put here by somebody: it is refused at each start, and not ours to remove.
    ours = [other for other in files(path.parent) if not _is_foreign(other, stream)]
    for other in ours[KEPT:]:
        other.unlink(missing_ok=True)
    for other in path.parent.iterdir():
        unfinished = _UNFINISHED.fullmatch(other.name)
        if unfinished is not None and name(int(unfinished[1])) < path.name:
            other.unlink(missing_ok=True)


def _is_foreign(path: Path, stream: Stream) -> bool:
    if not path.is_file():
        return True
    try:
        with path.open("rb") as file:
            header = _header(file.read(_PREFACE.size), file)
    except (OSError, StateError):
        return False
    return (header.stream.cluster, header.stream.topic) != (stream.cluster, stream.topic)


def read(path: Path, *, tell: Tell | None = None) -> Snapshot:
    """Return a snapshot whose every byte is as it was written.

    Args:
        path: The file.
        tell: Told how many bytes are compared with the digest.

    Raises:
        StateError: The file is missing, damaged, cut, of another format or no snapshot.
    """
    try:
        if path.exists() and not path.is_file():
            raise StateError("is no plain file")
        with path.open("rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes < _PREFACE.size + _DIGEST_BYTES:
                raise StateError(f"{n_bytes} bytes are no snapshot")
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            _check_digest(content, tell)
            header = _header(file.read(_PREFACE.size), file)
        return Snapshot(path, header, _arrays(content, header))
    except StateError as error:
        raise StateError(f"{path}: {error}") from error
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_digest(content: memoryview, tell: Tell | None) -> None:
    magic, form, _ = _PREFACE.unpack_from(content)
    if magic != _MAGIC:
        raise StateError("damaged, or not a snapshot")
    end = len(content) - _DIGEST_BYTES
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for start in range(0, end, _CHUNK):
        digest.update(content[start : min(start + _CHUNK, end)])
        if tell is not None:
            tell("snapshot bytes", min(start + _CHUNK, end), end)
    if digest.digest() != content[end:]:
        raise StateError("damaged or cut: its digest is not that of its content")
    if form != FORMAT:
        raise StateError(f"format {form}, this program reads {FORMAT}")


def _header(preface: bytes, file: BinaryIO) -> Header:
    """Return the header of an open file, read up to the end of its preface."""
    if len(preface) < _PREFACE.size:
        raise StateError("damaged, or not a snapshot")
    magic, form, size = _PREFACE.unpack(preface)
    if magic != _MAGIC or form != FORMAT or size > os.fstat(file.fileno()).st_size:
        raise StateError("damaged, or not a snapshot")
    try:
        return msgspec.msgpack.decode(file.read(size), type=Header)
    except msgspec.MsgspecError as error:
        raise StateError(f"damaged, or not a snapshot: {error}") from error


def _arrays(content: memoryview, header: Header) -> Arrays:
    """Return views of the arrays, whose sizes must be exactly what the file holds."""
    arrays: Arrays = {}
    start = _PREFACE.size + _PREFACE.unpack_from(content)[2]
    start += -start % _ALIGNMENT
    end = len(content) - _DIGEST_BYTES
    for array in header.arrays:
        if array.kind not in _KINDS or any(n < 0 for n in array.shape) or array.name in arrays:
            raise StateError(f"array {array.name[:80]!r} is of {array.kind[:20]!r} and shape {array.shape}")
        n_bytes = array.n_bytes
        if n_bytes > end - start:
            raise StateError(f"array {array.name[:80]!r} of {n_bytes} bytes does not fit into the file")
        flat = np.frombuffer(content, dtype=array.kind, count=math.prod(array.shape), offset=start)
        arrays[array.name] = flat.reshape(array.shape)
        start += n_bytes + -n_bytes % _ALIGNMENT
    if start != end:
        raise StateError(f"holds {end - start} bytes that belong to no array")
    return arrays


def check(header: Header, stream: Stream) -> None:
    """Refuse a past that is another stream's.

    Raises:
        StateError: It says which.
    """
    if header.schema != schema.FINGERPRINT:
        raise StateError(f"feature schema {header.schema}, this program has {schema.FINGERPRINT}")
    if header.stream.topic != stream.topic:
        raise StateError(f"the past of topic {header.stream.topic!r}, this is {stream.topic!r}")
    if header.stream.cluster != stream.cluster:
        raise StateError(f"the past of Kafka cluster {header.stream.cluster!r}, this is {stream.cluster!r}")
    if header.stream.n_partitions > stream.n_partitions:
        raise StateError(
            f"the past of {header.stream.n_partitions} partitions, topic {stream.topic!r} has {stream.n_partitions}: "
            "it was made anew"
        )


def load(folder: Path, stream: Stream, parts: Sequence[Part]) -> Header | None:
    """Make the past what the newest whole snapshot of a folder holds, and return its header; None where there is none.

    Raises:
        StateError: There are snapshots, and none can be used; it says why of the newest.
    """
    refusals: list[StateError] = []
    for path in files(folder):
        try:
            snapshot = read(path)
            check(snapshot.header, stream)
            for part in parts:
                part.restore(snapshot.arrays)
        except StateError as error:
            refusals.append(placed(path, error))
        else:
            return snapshot.header
    if refusals:
        raise refusals[0]
    return None


def placed(path: Path, error: StateError) -> StateError:
    """Return an error that names the file it is about."""
    return error if str(error).startswith(str(path)) else StateError(f"{path}: {error}")


def digest_of(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """Return a short digest of named arrays, to tell whether two are the same."""
    digest = hashlib.blake2b(digest_size=8)
    for key in sorted(arrays):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return digest.hexdigest()
