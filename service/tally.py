"""The demo's books: what was sent, what came back of it, and what was found of each kind of fraud."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

NEWEST_MAX = 6
"""Alerts kept for the view."""


class Reason(Struct, frozen=True):
    """The part of a reason that is shown."""

    feature: str
    sentence: str


class Hit(Struct, frozen=True):
    """The part of a list hit that is shown."""

    side: str
    list: str


class Scored(Struct, frozen=True, tag_field="status", tag="scored"):
    """The part of a score that is counted and shown."""

    hash: str
    log_index: int | None
    from_address: str
    to_address: str | None
    score: float
    decision: str
    reasons: list[Reason]
    list_hits: list[Hit]

    @property
    def id(self) -> str:
        """The Kafka key of its transaction."""
        return _key(self.hash, self.log_index)


class Retracted(Struct, frozen=True, tag_field="status", tag="retracted"):
    """The part of a retraction that is counted."""

    hash: str
    log_index: int | None

    @property
    def id(self) -> str:
        """The Kafka key of its transaction."""
        return _key(self.hash, self.log_index)


def _key(tx_hash: str, log_index: int | None) -> str:
    return tx_hash if log_index is None else f"{tx_hash}:{log_index}"


decode = msgspec.json.Decoder(Scored | Retracted).decode


@dataclass
class Found:
    """What became of the transactions of one kind."""

    n_scored: int = 0
    n_alerted: int = 0
    n_blocked: int = 0
    n_by_model: int = 0
    """Alerted, and the model's score alone would have done it."""

    n_by_rule: int = 0
    n_by_list: int = 0


@dataclass
class Tally:
    """Counts of one run; memory grows by some 200 bytes a transaction, and a run is minutes."""

    review: float
    """The model's threshold for review."""

    n_sent: int = 0
    n_damaged: int = 0
    """Sent on purpose as no transaction."""

    n_rejected: int = 0
    n_alerts: int = 0
    """Records on the alerts topic."""

    n_repeated: int = 0
    """Scores of a transaction that had one already."""

    n_orphaned: int = 0
    """Transactions that a chain held and then replaced, all of them answered before."""

    n_retracted: int = 0
    """Scores taken back."""

    n_rescored: int = 0
    """Transactions scored again after their score was taken back."""

    decisions: Counter[str] = field(default_factory=Counter)
    newest: deque[Scored] = field(default_factory=lambda: deque(maxlen=NEWEST_MAX))
    _kinds: dict[str, str | None] = field(default_factory=dict)
    _scored: dict[str, tuple[str, bool, bool, bool]] = field(default_factory=dict)
    _rejected: set[str] = field(default_factory=set)
    _retracted: set[str] = field(default_factory=set)

    @property
    def n_scored(self) -> int:
        """Transactions with a score."""
        return len(self._scored)

    @property
    def n_open(self) -> int:
        """Messages sent, and scores to be taken back, of which nothing came back yet."""
        return max(0, self.n_sent - self.n_scored - self.n_rejected) + max(0, self.n_orphaned - self.n_retracted)

    def sent(self, transactions: Iterable[tuple[str, str | None]]) -> None:
        """Count transactions sent, each with its id and its kind of fraud."""
        before = len(self._kinds)
        self._kinds.update(transactions)
        self.n_sent += len(self._kinds) - before

    def reorganised(self, orphaned: Iterable[str], standing: Iterable[tuple[str, str | None]]) -> None:
        """Count transactions that the chain no longer holds, then those that its new blocks hold."""
        for one in orphaned:
            del self._kinds[one]
            self.n_orphaned += 1
            self.n_sent -= 1
        self.sent(standing)

    def damaged(self, n: int) -> None:
        """Count messages sent that are no transaction."""
        self.n_damaged += n
        self.n_sent += n

    def scored(self, value: bytes) -> None:
        """Count a score, or that one is taken back."""
        score = decode(value)
        if isinstance(score, Retracted):
            self.n_retracted += 1
            self._retracted.add(score.id)
            self.decisions[self._scored.pop(score.id)[0]] -= 1
            return
        if score.id in self._scored:
            self.n_repeated += 1
            return
        self.n_rescored += score.id in self._retracted
        by_rule = any(reason.feature == "to_imitates" for reason in score.reasons[:1])
        self._scored[score.id] = (score.decision, score.score >= self.review, by_rule, bool(score.list_hits))
        self.decisions[score.decision] += 1
        if score.decision != "allow":
            self.newest.append(score)

    def rejected(self, key: bytes | None) -> None:
        """Count a message that came back as no transaction."""
        self.n_rejected += 1
        if key is not None:
            self._rejected.add(key.decode(errors="replace"))

    def unanswered(self) -> list[str]:
        """Return the ids of transactions that were sent and have neither score nor rejection."""
        return [one for one in self._kinds if one not in self._scored and one not in self._rejected]

    def alerted(self, value: bytes) -> None:
        """Count an alert, or that one is taken back."""
        self.n_alerts += -1 if isinstance(decode(value), Retracted) else 1

    def vanished(self) -> list[str]:
        """Return the ids of transactions that have a score and are not on the chain any more."""
        return [one for one in self._scored if one not in self._kinds]

    @property
    def n_wrongly_rejected(self) -> int:
        """Rejections of transactions, not of the messages damaged on purpose."""
        return sum(one in self._kinds for one in self._rejected)

    def kind(self, transaction_id: str) -> str | None:
        """Return the kind of fraud a transaction is part of, as far as it is known."""
        return self._kinds.get(transaction_id)

    def found(self) -> dict[str | None, Found]:
        """Return what was found, by kind; None holds the ordinary transactions."""
        kinds: dict[str | None, Found] = {None: Found()}
        for one, (decision, by_model, by_rule, by_list) in self._scored.items():
            found = kinds.setdefault(self._kinds.get(one), Found())
            found.n_scored += 1
            if decision != "allow":
                found.n_alerted += 1
                found.n_blocked += decision == "block"
                found.n_by_model += by_model
                found.n_by_rule += by_rule
                found.n_by_list += by_list
        return kinds
