"""The records that leave: a score for each accepted transaction, an alert where it is not allowed, a rejection."""

from typing import Literal

from msgspec import Raw, Struct

from features.errors import Reason


class Source(Struct, frozen=True, gc=False):
    """Where the scored transaction stands in Kafka; offset -1 outside Kafka (`replay`)."""

    topic: str
    partition: int
    offset: int


class Contribution(Struct, frozen=True, gc=False):
    """One reason of a score: how much a feature moved it, and a sentence for the analyst."""

    feature: str
    value: float | None
    """The feature's value, None where it is unknown."""

    contribution: float
    """Shapley value in log-odds: positive raises the risk. 0 for a rule of the policy, outside of the model."""

    sentence: str


class ListHit(Struct, frozen=True, gc=False):
    """A side of the transaction that stands on a screening list at the transaction's time."""

    address: str
    side: Literal["from", "to"]
    list: str


class Score(Struct, frozen=True, gc=False):
    """What is written to `scores` for each accepted transaction, and to `alerts` where the decision is not `allow`."""

    type: str
    chain_id: int
    hash: str
    log_index: int | None
    block_number: int
    block_timestamp: int
    from_address: str
    to_address: str | None
    score: float
    """Calibrated probability of fraud at the prior stated in the artefact."""

    decision: str
    """An open set: `allow`, `review`, `block` and what is added later."""

    reasons: list[Contribution]
    """The largest contributions first; empty where the decision is `allow`."""

    list_hits: list[ListHit]
    model: Raw
    """The model's name, version and digest, encoded once per process."""

    schema: str
    """Fingerprint of the feature schema."""

    source: Source
    status: str
    """Always `scored`; a record whose status is `retracted` is a retraction."""

    scored_at: int
    """Unix milliseconds of the batch's scoring."""

    is_held: bool = False
    """Whether the circuit breaker was open: then the decision is `review` at most."""


class Retraction(Struct, frozen=True, gc=False):
    """What is written with a score's key when the block of its transaction was orphaned: the score no longer holds."""

    type: str
    chain_id: int
    hash: str
    log_index: int | None
    block_number: int
    block_hash: str
    """The orphaned block."""

    block_timestamp: int
    from_address: str
    to_address: str | None
    source: Source
    """The announcement of the orphaned block."""

    status: str
    """Always `retracted`."""

    retracted_at: int
    """Unix milliseconds."""


class Rejection(Struct, frozen=True, gc=False):
    """A message that could not be a transaction: its bytes untouched, why, and where it came from."""

    value: bytes
    key: bytes | None
    reason: Reason
    detail: str
    source: Source
