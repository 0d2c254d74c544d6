"""The check before signing: what an exchange asks about a withdrawal, and what it is told. Pure.

A withdrawal that is not signed has no hash, no block and no nonce, and the score reads none of them.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from features.errors import RejectedError
from features.transaction import TIMESTAMP_MAX, TIMESTAMP_MIN, Transaction
from service.messages import Contribution, ListHit
from service.pipeline import Checked, Pipeline

UINT256_MAX = 2**256 - 1

# `$` also matches before a last newline; the length refuses that.
Address = Annotated[
    str,
    Meta(pattern="^0x[0-9a-fA-F]{40}$", min_length=42, max_length=42, description="0x and 40 hex digits."),
]
Amount = Annotated[int, Meta(ge=0, le=2**63 - 1)] | Annotated[str, Meta(pattern="^[0-9]{1,78}$", max_length=78)]


class Withdrawal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transaction that is about to be signed."""

    from_address: Annotated[Address, Meta(description="Who pays.")]
    to_address: Annotated[Address | None, Meta(description="Who is paid; null where a contract is created.")]
    value: Annotated[
        Amount,
        Meta(description="Wei, or the token's smallest unit, up to 2^256 - 1; from 2^63 on as a string of digits."),
    ]
    token_address: Annotated[
        Address | None, Meta(description="The token's contract where tokens are moved; null for ether.")
    ] = None
    input: Annotated[
        Annotated[str, Meta(pattern="^0x([0-9a-fA-F]{2})*$", max_length=262_146)] | None,
        Meta(description="Call data of an ether transaction, 0x for none; null where it is not known yet."),
    ] = None
    block_timestamp: Annotated[
        Annotated[int, Meta(ge=TIMESTAMP_MIN, le=TIMESTAMP_MAX)] | None,
        Meta(description="Unix seconds to score at, so that a check can be repeated; null means this moment."),
    ] = None


class ModelIdentity(Struct, frozen=True):
    """The model that decided."""

    name: str
    version: str
    digest: str


class Answer(Struct, frozen=True, kw_only=True):
    """What would be decided on the withdrawal were it the next transaction of the stream."""

    score: Annotated[float, Meta(ge=0, le=1, description="Calibrated probability of fraud.")]
    decision: Annotated[str, Meta(description="`allow`, `review` or `block`; an open set.")]
    reasons: Annotated[
        list[Contribution], Meta(description="The largest contributions first; empty where the decision is `allow`.")
    ]
    list_hits: list[ListHit]
    model: ModelIdentity
    schema: Annotated[str, Meta(description="Fingerprint of the feature schema.")]
    block_timestamp: Annotated[int, Meta(description="Unix seconds that it was scored at.")]
    is_held: Annotated[bool, Meta(description="The circuit breaker is open: the decision is `review` at most.")]
    status: Annotated[Literal["checked"], Meta(description="It has not become part of the past.")] = "checked"


class _Encoded(Struct, frozen=True):
    """`Answer` with the model encoded once per process, as `messages.Score` has it."""

    score: float
    decision: str
    reasons: list[Contribution]
    list_hits: list[ListHit]
    model: Raw
    schema: str
    block_timestamp: int
    is_held: bool
    status: str = "checked"


decode = msgspec.json.Decoder(Withdrawal).decode
_encode = msgspec.json.Encoder().encode


def transaction(withdrawal: Withdrawal, *, chain_id: int, now_s: int) -> Transaction:
    """Return the transaction that the withdrawal would be.

    Args:
        withdrawal: As it was asked.
        chain_id: The stream's.
        now_s: Unix seconds, where the withdrawal names no time.

    Raises:
        RejectedError: The value exceeds 256 bits, or what is said contradicts itself.
    """
    value = int(withdrawal.value)
    if value > UINT256_MAX:
        raise RejectedError("value_over_256_bit", "value exceeds 2^256 - 1")
    is_token = withdrawal.token_address is not None
    if is_token and withdrawal.to_address is None:
        raise RejectedError("missing_field", "to_address is null, but a token transfer creates no contract")
    if is_token and withdrawal.input is not None:
        raise RejectedError(
            "unsupported_type", "input is set with token_address; a token transfer is scored without it"
        )
    to_address = withdrawal.to_address
    return Transaction(
        "token_transfer" if is_token else "transaction",
        "",
        None,
        chain_id,
        0,
        None,
        now_s if withdrawal.block_timestamp is None else withdrawal.block_timestamp,
        None,
        withdrawal.from_address.lower(),
        None if to_address is None else to_address.lower(),
        value,
        input=None if withdrawal.input is None else withdrawal.input.lower(),
        token_address=None if withdrawal.token_address is None else withdrawal.token_address.lower(),
    )


def answer(checked: Checked, tx: Transaction, schema: str) -> bytes:
    """Return the answer's JSON."""
    return _encode(
        _Encoded(
            checked.probability,
            checked.decision,
            checked.reasons,
            checked.list_hits,
            checked.judge.model,
            schema,
            tx.block_timestamp,
            checked.is_held,
        )
    )


def check(pipeline: Pipeline, body: bytes, *, chain_id: int, now_s: int, schema: str) -> bytes:
    """Judge the withdrawal that a request's body holds and return the answer's JSON; 40 µs.

    Raises:
        msgspec.ValidationError: The body is JSON, but no withdrawal.
        ValueError: The body is no JSON.
        RejectedError: It is a withdrawal that cannot be.
    """
    tx = transaction(decode(body), chain_id=chain_id, now_s=now_s)
    return answer(pipeline.check(tx), tx, schema)
