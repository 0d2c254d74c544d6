"""Order and reorganisations of a chain, from the headers of its blocks alone: pure, so that any history can be drawn.

What was published ends in a tail: the newest blocks, oldest first, each the parent of the next. A block is published
only where its parent hash is the tip's hash. Where it is not, the chain was reorganised: the blocks of the tail that
the node no longer holds are orphaned, and what replaces them begins above the newest block that it still holds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from features.errors import NodeError


class Header(NamedTuple):
    """A block without its content."""

    number: int
    hash: str
    parent_hash: str
    timestamp: int


class Place(Struct, frozen=True, array_like=True):
    """A published block: what its announcement as orphaned needs."""

    number: int
    hash: str
    timestamp: int


class Checkpoint(Struct, frozen=True):
    """How far a chain is published: the value of the checkpoint topic."""

    chain_id: int
    start: int
    """Number of the first block that was ever published."""

    tail: tuple[Place, ...]
    """The newest published blocks, oldest first; empty before the first."""

    @property
    def next(self) -> int:
        """Number of the block to publish next."""
        return self.tail[-1].number + 1 if self.tail else self.start

    @property
    def is_whole(self) -> bool:
        """Whether the tail holds everything that was ever published."""
        return not self.tail or self.tail[0].number == self.start

    def joins(self, header: Header) -> bool:
        """Say whether a block continues what is published; a first block continues nothing."""
        return header.number == self.next and (not self.tail or header.parent_hash == self.tail[-1].hash)

    def after(self, headers: Sequence[Header], *, depth_max: int) -> "Checkpoint":
        """Return it after these blocks, each joining the one before.

        One block more is kept than may be orphaned, because a replacement must join something.
        """
        places = (Place(header.number, header.hash, header.timestamp) for header in headers)
        return Checkpoint(self.chain_id, self.start, (*self.tail, *places)[-(depth_max + 1) :])

    def without(self, n: int) -> "Checkpoint":
        """Return it without its newest n blocks."""
        return Checkpoint(self.chain_id, self.start, self.tail[: len(self.tail) - n])


def encode(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as JSON."""
    return msgspec.json.encode(checkpoint)


def decode(raw: bytes) -> Checkpoint:
    """Return the checkpoint that a record's value holds.

    Raises:
        msgspec.DecodeError: It holds none.
    """
    return msgspec.json.decode(raw, type=Checkpoint)


def n_orphaned(checkpoint: Checkpoint, hash_at: Callable[[int], str | None]) -> int:
    """Return how many of the newest published blocks the chain no longer holds; none while the node is only behind.

    Args:
        checkpoint: What is published.
        hash_at: The hash of the node's block of a number, None where it has none yet. It is asked from the tip down.
            The chain may change meanwhile: the replacement has to join what is left, or this is asked again.

    Raises:
        NodeError: Not even the oldest block that is remembered is left: the reorganisation is too deep to announce.
    """
    is_contradicted = False
    for n, place in enumerate(reversed(checkpoint.tail)):
        found = hash_at(place.number)
        if found == place.hash:
            return n if is_contradicted else 0
        is_contradicted = is_contradicted or found is not None
    if not is_contradicted:
        return 0
    if not checkpoint.is_whole:
        first = checkpoint.tail[0]
        raise NodeError(
            "deep_reorg",
            f"the chain was reorganised below block {first.number}, deeper than the {len(checkpoint.tail) - 1} blocks "
            "that can be taken back (reorg_depth_max); what was published from there on is wrong: stop who relies on "
            "it, and ingest into another topic from a final block on",
        )
    return len(checkpoint.tail)


class Orphaned(Struct, frozen=True, tag_field="type", tag="orphaned_block"):
    """The message that takes a block back."""

    chain_id: int
    block_number: int
    block_hash: str
    block_timestamp: int


def announcements(checkpoint: Checkpoint, n: int) -> list[bytes]:
    """Return the messages that take the newest n published blocks back, the newest first."""
    newest_first = checkpoint.tail[::-1][:n]
    return [
        msgspec.json.encode(Orphaned(checkpoint.chain_id, place.number, place.hash, place.timestamp))
        for place in newest_first
    ]
