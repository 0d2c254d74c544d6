"""The account state at rest: one file with the past and the offsets it reflects, replaced as a whole or not at all.

The file is an uncompressed zip of plain arrays (numpy's .npz, each with a checksum, never a pickle), the header one of
them in MessagePack.
"""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from features import durable, schema
from features.accounts import Accounts
from features.errors import StateError
from service.breaker import Breaker

STATE_FILE = "state.npz"
FORMAT = 1

Offsets = dict[int, int]
"""The offset of the next message to read, by partition; a partition nobody has read from is absent."""


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


class Header(Struct, frozen=True, kw_only=True):
    """What must match before a saved past is continued."""

    format: int
    schema: str
    """Fingerprint of the feature schema: another schema keeps other sums in the same words."""

    topic: str
    offsets: Offsets
    """Up to where the past has absorbed the topic, the unsettled batches included."""

    unsettled: list[Batch]
    """Batches that the past has absorbed, in order, while their Kafka transaction may not be committed."""


def save(
    folder: Path,
    accounts: Accounts,
    *,
    topic: str,
    offsets: Offsets,
    unsettled: list[Batch],
    breaker: Breaker | None = None,
) -> Path:
    """Write the state so that a reader finds either the old file or all of this one, even after a power cut.

    Raises:
        StateError: The folder cannot be written.
    """
    header = Header(format=FORMAT, schema=schema.FINGERPRINT, topic=topic, offsets=offsets, unsettled=unsettled)
    path = folder / STATE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes may save to one folder: whoever is last has the file, and neither writes into the other's.
        with durable.replacing(path, suffix=f".{os.getpid()}{durable.SUFFIX}") as file:
            encoded = np.frombuffer(msgspec.msgpack.encode(header), dtype=np.uint8)
            others = {} if breaker is None else breaker.arrays()
            np.savez(file, allow_pickle=False, header=encoded, **accounts.arrays(), **others)
    except OSError as error:
        raise StateError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def load(folder: Path, accounts: Accounts, *, topic: str, breaker: Breaker | None = None) -> Header | None:
    """Fill an empty table from the saved state and return its header, or None when nothing is saved.

    A breaker goes on, too, unless the state has none or one of another window.

    Raises:
        StateError: The file is damaged, or of another format, feature schema, topic or table size.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            header = msgspec.msgpack.decode(saved["header"].tobytes(), type=Header)
            _check(header, topic)
            accounts.restore({name: saved[name] for name in accounts.arrays()})
            if breaker is not None and set(breaker.arrays()) <= set(saved.files):
                breaker.restore({name: saved[name] for name in breaker.arrays()})
    except StateError as error:
        raise StateError(f"{path}: {error}") from error
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, msgspec.DecodeError) as error:
        raise StateError(f"{path}: damaged, or not a saved state: {error}") from error
    return header


def saved_at(folder: Path) -> int | None:
    """Return when a state was saved, in Unix nanoseconds, or None where none is: it tells one save from another."""
    try:
        return (folder / STATE_FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _check(header: Header, topic: str) -> None:
    if header.format != FORMAT:
        raise StateError(f"format {header.format}, this program reads {FORMAT}")
    if header.schema != schema.FINGERPRINT:
        raise StateError(f"feature schema {header.schema}, this program has {schema.FINGERPRINT}")
    if header.topic != topic:
        raise StateError(f"the past of topic {header.topic!r}, transactions_topic is {topic!r}")


def settle(header: Header, committed: Offsets) -> list[Batch]:
    """Return the saved batches that are still to be committed, given what the group has committed.

    Raises:
        StateError: The group's offsets stand elsewhere than where this past ends.
    """
    if header.offsets == committed:
        return []
    for place, batch in enumerate(header.unsettled):
        if batch.before == committed:
            return header.unsettled[place:]
    raise StateError(
        f"the saved state ends at offsets {_text(header.offsets)} of {header.topic!r}, but the consumer group has "
        f"committed {_text(committed)}; put the state that belongs to these offsets back, reset the group to the "
        "state's offsets, or start with --fresh-state, which forgets the past"
    )


def _text(offsets: Offsets) -> str:
    return ", ".join(f"{partition}:{offset}" for partition, offset in sorted(offsets.items())) or "none"
