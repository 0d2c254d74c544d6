"""Stand-ins for the world that fail when told to."""

import threading
from collections.abc import Callable, Sequence

from service.kafka import Headers, Record, Topic
from service.pipeline import Message


class FakeKafka:
    """One topic partition with a consumer group and a transactional producer, in memory; a `Client` in every way.

    Each of `join`, `poll`, `begin`, `send`, `commit`, `wait`, `abort` and `lag` raises the next of its `faults` instead
    of working, while there is one. What an aborted transaction held is not in `written`.
    """

    def __init__(self, values: Sequence[bytes | None] = (), *, topic: str = "transactions") -> None:
        self.topic = topic
        self.messages = [
            Message(value, f"key {offset}".encode(), topic, 0, offset, 1_600_000_000_000)
            for offset, value in enumerate(values)
        ]
        self.written: list[tuple[str, bytes | None, bytes, Headers | None]] = []
        self.transactions: list[int] = []
        """How many records each committed transaction held."""
        self.group_offsets: dict[int, int] = {}
        self.faults: dict[str, list[Exception]] = {}
        self.polls: list[tuple[int, float, int]] = []
        """Of each poll: the limit, the wait allowed, and how many messages it returned."""
        self.n_found_max = 1_000_000
        self.first = 0
        """The first offset that the topic still holds."""
        self.n_aborted = 0
        self.n_commits_hanging = 0
        self.on_empty: Callable[[], None] = lambda: None
        self._position = 0
        self._open: list[tuple[str, bytes | None, bytes, Headers | None]] | None = None
        self._committing: dict[int, int] | None = None

    def _fail(self, call: str) -> None:
        waiting = self.faults.get(call)
        if waiting:
            raise waiting.pop(0)

    def topics(self) -> dict[str, int]:
        return {self.topic: 1}

    def create_topic(self, topic: Topic, *, replication_factor: int, configuration: dict[str, str]) -> None:
        raise AssertionError("no test of the loop creates a topic")

    def cluster_id(self) -> str:
        return "fake"

    def spans(self) -> dict[int, tuple[int, int]]:
        return {0: (self.first, len(self.messages))}

    def positions(self) -> dict[int, int]:
        return {0: self._position}

    def n_members(self) -> int:
        return 0

    def begin_producing(self) -> None:
        pass

    def join(self, timeout_s: float) -> bool:
        self._fail("join")
        return True

    def committed(self) -> dict[int, int]:
        return dict(self.group_offsets)

    def seek(self, offsets: dict[int, int]) -> None:
        self._position = offsets.get(0, 0)

    def poll(self, n_max: int, timeout_s: float) -> list[Message]:
        self._fail("poll")
        found = self.messages[self._position : self._position + min(n_max, self.n_found_max)]
        self._position += len(found)
        self.polls.append((n_max, timeout_s, len(found)))
        if not found:
            self.on_empty()
        return found

    def begin(self) -> None:
        self._fail("begin")
        assert self._open is None, "one transaction at a time"
        self._open = []

    def send(
        self,
        topic: str,
        records: Sequence[Record],
        headers: Sequence[Headers] | None = None,
        *,
        partition: int | None = None,
    ) -> None:
        assert self._open is not None
        for i, (key, value) in enumerate(records):
            self._open.append((topic, key, value, None if headers is None else headers[i]))
        # Some records are with the broker when it fails.
        self._fail("send")

    def commit(self, offsets: dict[int, int]) -> None:
        assert self._open is not None
        self._fail("commit")
        self._committing = offsets

    def wait(self, timeout_s: float) -> float | None:
        assert self._open is not None
        assert self._committing is not None
        if self.n_commits_hanging:
            self.n_commits_hanging -= 1
            threading.Event().wait(timeout_s)
            return None
        self._fail("wait")
        self.written += self._open
        self.transactions.append(len(self._open))
        self.group_offsets.update(self._committing)
        self._open = self._committing = None
        return 1_600_000_001.0

    def abort(self, timeout_s: float) -> None:
        self._fail("abort")
        self.n_aborted += 1
        self._open = self._committing = None

    def lag(self, *, timeout_s: float) -> dict[int, int]:
        self._fail("lag")
        return {0: len(self.messages) - self._position}

    def close(self) -> None:
        pass
