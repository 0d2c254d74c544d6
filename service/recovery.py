"""From a snapshot, or from nothing, to the past that the group's committed offsets stand for.

The newest whole snapshot is loaded, else the older one, else the past is rebuilt from the topic. What was scored since
is read again and observed, nothing is emitted: the past is then bit by bit the one that the committed scores left, and
the next message is scored as if nothing had happened. With one partition that is exact; with several the order between
partitions is taken from Kafka's timestamps, which is near to the order of the first time and not always the same.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.errors import OutageError, StateError
from features.screening import Screening
from service import snapshot
from service.kafka import Client
from service.metrics import Metrics
from service.pipeline import Message, Pipeline
from service.settings import Settings
from service.snapshot import Batch, Header, Offsets, Stream, Tell

REPLAY_RECORDS = 5_000
"""Messages observed at once; at 150,000 a second a stop waits for 33 ms."""

POLL_SECONDS = 0.2
SILENCE_SECONDS_MAX = 30.0
"""Longest wait for a message that the broker says it has."""

RETRY_SECONDS = 0.2

MERGED_MAX = 200_000
"""Messages held back to put several partitions in order; beyond them the earliest goes whatever is still to come."""

Span = tuple[int, int]

log = logging.getLogger("falconet.recovery")


class Restored(NamedTuple):
    """Where serving begins."""

    offsets: Offsets
    unsettled: list[Batch]
    """Batches that the past has absorbed and that are to be committed first."""

    saved_at_s: float | None
    """When the snapshot was taken, None without one."""


class Recovery:
    """Loads ahead while a standby waits, and goes to the committed offsets once its place is there."""

    def __init__(self, settings: Settings, pipeline: Pipeline, metrics: Metrics, *, tell: Tell) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._metrics = metrics
        self._tell = tell
        self._loaded: tuple[Path, Header] | None = None
        self._refused: set[Path] = set()
        self.stop = threading.Event()
        """Set to end a replay; `restore` returns None then."""

    def stream(self, client: Client) -> Stream:
        """Return whose past it is going to be."""
        settings = self._settings
        return Stream(
            cluster=client.cluster_id(),
            topic=settings.transactions_topic,
            n_partitions=client.topics().get(settings.transactions_topic, 0),
            lists=lists_digest(self._pipeline.accounts.screening),
        )

    def warm(self, stream: Stream) -> None:
        """Load the newest whole snapshot, unless it is loaded already."""
        for path in snapshot.files(self._settings.state_dir):
            if self._loaded is not None and self._loaded[0] == path:
                return
            if path not in self._refused and self._load(path, stream):
                return

    def restore(self, client: Client, stream: Stream, *, is_fresh: bool) -> Restored | None:
        """Bring the past to the committed offsets and the client to the next message; None when stopped before.

        Args:
            client: Holds every partition.
            stream: Whose past it is.
            is_fresh: Begin with an empty past, whatever was saved.

        Raises:
            StateError: The topic no longer holds what is missing, and `missing_history` is `refuse`.
            OutageError: The broker has the messages and does not send them.
            ReorgError: What is replayed takes back a block that this past does not reach.
        """
        started_s = time.perf_counter()
        self._expect(stream)
        committed, spans = client.committed(), client.spans()
        self._check_unread(committed, spans)
        if is_fresh:
            log.warning("empty past at offsets=%s: history before them is unknown to every score", committed)
            start, header, unsettled = dict(committed), None, list[Batch]()
        else:
            start, header, unsettled = self._begin(stream, committed, spans)
        offsets = dict(header.offsets) if unsettled and header is not None else dict(committed)
        n_replayed = 0
        if not unsettled:
            n_replayed = self._replay(client, start, committed, spans)
            if self.stop.is_set():
                return None
        client.seek({each: max(offsets.get(each, 0), first) for each, (first, _) in spans.items()})
        spent_s = time.perf_counter() - started_s
        self._metrics.restore_seconds.set(spent_s)
        self._metrics.restore_replayed.set(n_replayed)
        log.info("restored offsets=%s replayed=%d in_s=%.2f", offsets, n_replayed, spent_s)
        return Restored(offsets, unsettled, None if header is None else header.saved_at_s)

    def _begin(
        self, stream: Stream, committed: Offsets, spans: dict[int, Span]
    ) -> tuple[Offsets, Header | None, list[Batch]]:
        """Return where the past stands, by which snapshot, and what of it is still to be committed."""
        paths = snapshot.files(self._settings.state_dir)
        for path in paths:
            if (self._loaded is None or self._loaded[0] != path) and not self._load(path, stream):
                continue
            assert self._loaded is not None
            header = self._loaded[1]
            try:
                unsettled = settle(header, committed)
            except StateError as error:
                # A group that has lost its offsets would score the whole topic once more.
                if not committed:
                    raise snapshot.placed(path, error) from error
                log.error("snapshot refused %s", snapshot.placed(path, error))
                continue
            lost = {} if unsettled else missing(header.offsets, committed, spans)
            if lost:
                log.error(
                    "snapshot refused %s: it ends at %s and the topic begins at %s: what was scored between is missing",
                    path, text(header.offsets), text(lost),
                )  # fmt: skip
                continue
            log.info("snapshot loaded path=%s offsets=%s unsettled=%d", path, header.offsets, len(unsettled))
            return dict(header.offsets), header, unsettled
        return self._from_nothing(committed, spans, has_files=bool(paths)), None, []

    def _load(self, path: Path, stream: Stream) -> bool:
        """Make the past what a snapshot holds; one that cannot be used is told and not tried again."""
        if path in self._refused:
            return False
        try:
            found = snapshot.read(path, tell=self._tell)
            snapshot.check(found.header, stream)
            self._loaded = None
            self._expect(stream)
            for part in self._pipeline.parts():
                part.restore(found.arrays)
        except StateError as error:
            log.error("snapshot refused %s", snapshot.placed(path, error))
            self._refused.add(path)
            return False
        if found.header.stream.lists != stream.lists:
            log.warning("screening lists are not those of the snapshot: what they flagged so far stays path=%s", path)
        self._loaded = path, found.header
        return True

    def _expect(self, stream: Stream) -> None:
        """Tell the journal over how many partitions an orphaned block is announced."""
        journal = self._pipeline.accounts.journal
        if journal is not None:
            journal.n_partitions = max(1, stream.n_partitions)

    def _from_nothing(self, committed: Offsets, spans: dict[int, Span], *, has_files: bool) -> Offsets:
        """Empty the past and return where in the topic to begin."""
        self._loaded = None
        if has_files:
            empty(self._pipeline)
        start = {each: first for each, (first, _) in spans.items() if each in committed}
        lost = {each: first for each, first in start.items() if first > 0 and committed[each] > 0}
        if lost:
            self._go_without(
                f"no snapshot can be used, and the topic begins at offsets {text(lost)}: the past before them cannot "
                "be rebuilt"
            )
        if committed:
            log.warning("no snapshot: rebuilding the past from the topic from=%s to=%s", start, committed)
        return start

    def _check_unread(self, committed: Offsets, spans: dict[int, Span]) -> None:
        """Refuse to go on behind messages that nobody scored and the topic no longer holds."""
        lost = {each: spans[each][0] - at for each, at in committed.items() if each in spans and spans[each][0] > at}
        if lost:
            self._go_without(
                f"the topic no longer holds {sum(lost.values()):,} offsets that were never scored, by partition "
                f"{text(lost)}, after the committed {text(committed)}"
            )

    def _go_without(self, lack: str) -> None:
        """Refuse to start because of a lack, unless the settings accept it."""
        if self._settings.missing_history == "refuse":
            raise StateError(
                f"{lack}; retention of {self._settings.transactions_topic!r} is shorter than the service was away: "
                "put a newer snapshot into state_dir, or set missing_history to accept, which goes on without them"
            )
        log.error("going on by missing_history=accept: %s", lack)

    def _replay(self, client: Client, start: Offsets, end: Offsets, spans: dict[int, Span]) -> int:
        """Observe what lies between; return how many messages."""
        begin = {each: max(start.get(each, 0), first) for each, (first, _) in spans.items()}
        wanted = {each: end[each] for each in end if begin[each] < end[each]}
        if not wanted:
            return 0
        total = sum(end[each] - begin[each] for each in wanted)
        log.info("replaying from=%s to=%s offsets=%d", begin, end, total)
        n = 0
        client.seek(begin)
        for messages, n_left in _batches(client, wanted, self.stop):
            self._pipeline.observe(messages)
            n += len(messages)
            self._tell("replayed offsets", total - n_left, total)
        return n


def _batches(client: Client, end: Offsets, stop: threading.Event) -> Iterator[tuple[list[Message], int]]:
    """Yield the messages before `end` in order, and how many offsets are still to come."""
    at = dict.fromkeys(end, -1)
    merge = _Merge(set(end))
    heard_s = time.monotonic()
    while not stop.is_set():
        try:
            found = client.poll(REPLAY_RECORDS, POLL_SECONDS)
            at.update({each: place for each, place in client.positions().items() if each in end})
        except OutageError:
            if time.monotonic() - heard_s > SILENCE_SECONDS_MAX:
                raise
            stop.wait(RETRY_SECONDS)
            continue
        kept = [message for message in found if message.offset < end.get(message.partition, 0)]
        ended = {each for each, place in at.items() if place >= end[each]}
        ordered = kept if len(end) == 1 else merge.ordered(kept, ended)
        if found:
            heard_s = time.monotonic()
        if ordered:
            yield ordered, sum(max(0, end[each] - max(place, 0)) for each, place in at.items())
        if len(ended) == len(end):
            return
        if time.monotonic() - heard_s > SILENCE_SECONDS_MAX:
            raise OutageError(
                f"Kafka sent nothing for {SILENCE_SECONDS_MAX:g} s while the past was replayed from {text(at)} "
                f"to {text(end)}"
            )


class _Merge:
    """Puts the messages of several partitions into the order of their timestamps, each partition's own kept."""

    def __init__(self, partitions: set[int]) -> None:
        self._held: dict[int, deque[Message]] = {each: deque() for each in partitions}
        self._n = 0

    def ordered(self, messages: list[Message], ended: set[int]) -> list[Message]:
        """Take more, and return those that nothing still to come can precede."""
        for message in messages:
            self._held[message.partition].append(message)
        self._n += len(messages)
        out: list[Message] = []
        while self._n:
            waiting = [each for each, held in self._held.items() if not held and each not in ended]
            if waiting and self._n <= MERGED_MAX:
                break
            heads = ((held[0].timestamp_ms, each) for each, held in self._held.items() if held)
            out.append(self._held[min(heads)[1]].popleft())
            self._n -= 1
        return out


def settle(header: Header, committed: Offsets) -> list[Batch]:
    """Return the saved batches that are still to be committed, given what the group has committed.

    Raises:
        StateError: The past is ahead of the group, in other places than between its batches.
    """
    for place, batch in enumerate(header.unsettled):
        if batch.before == committed:
            return header.unsettled[place:]
    ahead = {each: at for each, at in header.offsets.items() if at > committed.get(each, 0)}
    if ahead:
        raise StateError(
            f"it is newer than the committed offsets: it ends at {text(header.offsets)}, the consumer group has "
            f"committed {text(committed)}; reset the group to the snapshot's offsets, or start with --fresh-state, "
            "which forgets the past"
        )
    return []


def missing(offsets: Offsets, committed: Offsets, spans: dict[int, Span]) -> Offsets:
    """Return where the topic begins in the partitions that no longer hold all between a past and the group's place."""
    return {
        each: spans[each][0]
        for each, at in committed.items()
        if each in spans and offsets.get(each, 0) < min(at, spans[each][0])
    }


def empty(pipeline: Pipeline) -> None:
    """Forget everything."""
    table = pipeline.accounts.table
    zeros = {name: np.zeros((), array.dtype) for name, array in (("slots", table.slots), ("meta", table.meta))}
    nothing: snapshot.Arrays = {
        "accounts": table.f32[:0],
        "slots": np.broadcast_to(zeros["slots"], table.slots.shape),
        "pairs": np.broadcast_to(np.float32(0), table.pairs_f32.shape),
        "meta": np.broadcast_to(zeros["meta"], table.meta.shape),
    }
    for part in pipeline.parts():
        part.restore(nothing)


def lists_digest(screening: Screening | None) -> str:
    """Return what tells the screening lists in use from others."""
    if screening is None or not screening.n_entries:
        return ""
    names = np.frombuffer("\n".join(screening.names).encode(), dtype=np.uint8)
    return snapshot.digest_of({"names": names, "entries": screening.entries})


def text(offsets: Offsets) -> str:
    """Return offsets as an operator reads them."""
    return ", ".join(f"{partition}:{offset}" for partition, offset in sorted(offsets.items())) or "none"
