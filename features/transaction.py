"""The record that enters: one transaction or token transfer, validated once, and the packed form the kernel reads."""

import math
import struct
from collections.abc import Sequence
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Kind = Literal["transaction", "token_transfer"]

TIMESTAMP_MIN = 1_230_940_800
"""2009-01-03: no chain has an older block."""
TIMESTAMP_MAX = 4_102_444_800
"""2100-01-01: still fits the 32 bits the account table spends on a time."""

WEI_PER_ETHER = 1e18
"""Exact in float64, so dividing rounds once more and never differs between the live and the backfill path."""

RECORD_WORDS = 10
"""64-bit words of a packed record: sender 0-2, recipient 3-5, amount 6, timestamp 7, flags 8, input bytes 9."""

IS_TOKEN = 1
IS_CREATION = 2
IS_FAILED = 4
IS_STATUS_KNOWN = 8
METHOD_SHIFT = 8

METHOD_UNKNOWN, METHOD_NONE, METHOD_TRANSFER, METHOD_APPROVE, METHOD_PERMIT, METHOD_APPROVE_ALL, METHOD_OTHER = range(7)
"""The called method's class. UNKNOWN: the message has no input field; NONE: an input without a selector."""

METHOD_CLASSES = {
    "0xa9059cbb": METHOD_TRANSFER,  # transfer(address,uint256)
    "0x23b872dd": METHOD_TRANSFER,  # transferFrom(address,address,uint256)
    "0x42842e0e": METHOD_TRANSFER,  # safeTransferFrom(address,address,uint256)
    "0x095ea7b3": METHOD_APPROVE,  # approve(address,uint256)
    "0x39509351": METHOD_APPROVE,  # increaseAllowance(address,uint256)
    "0xd505accf": METHOD_PERMIT,  # permit(address,address,uint256,uint256,uint8,bytes32,bytes32)
    "0x8fcbaf0c": METHOD_PERMIT,  # permit(address,address,uint256,uint256,bool,uint8,bytes32,bytes32)
    "0xa22cb465": METHOD_APPROVE_ALL,  # setApprovalForAll(address,bool)
}

_PACK = struct.Struct("<20s4x20s4xdqqq").pack


class Transaction(Struct, frozen=True, gc=False):
    """One transaction or token transfer as it arrives, in ethereum-etl's names; addresses and hashes lower-case."""

    type: Kind
    hash: str
    """0x and 64 hex digits. A token transfer carries its `transaction_hash` here."""

    log_index: int | None
    """Position of a token transfer's log in its block, None for a transaction."""

    chain_id: int
    block_number: int
    block_hash: str | None
    block_timestamp: int
    """Unix seconds from the block header, the only clock features may read."""

    transaction_index: int | None
    from_address: str
    to_address: str | None
    """None when the transaction creates a contract."""

    value: int
    """Wei, or the token's smallest unit for a token transfer; 0 to 2**256 - 1."""

    nonce: int | None = None
    gas: int | None = None
    gas_price: int | None = None
    input: str | None = None
    receipt_status: int | None = None
    token_address: str | None = None

    @property
    def id(self) -> str:
        """The Kafka key: the hash, and for a token transfer `hash:log_index`."""
        return self.hash if self.log_index is None else f"{self.hash}:{self.log_index}"


class OrphanedBlock(Struct, frozen=True, gc=False):
    """A block that the chain no longer holds: what was made of its transactions is to be taken back."""

    chain_id: int
    block_number: int
    block_hash: str
    block_timestamp: int


def method_class(selector: str) -> int:
    """Return the class of a method selector such as `0xa9059cbb`; NONE for an input shorter than a selector."""
    return METHOD_CLASSES.get(selector, METHOD_OTHER) if len(selector) == 10 else METHOD_NONE


def pack(tx: Transaction) -> bytes:
    """Return the 80 bytes that the kernel reads of a transaction.

    A token's amount is NaN: its unit is not ether and its worth is unknown.
    """
    flags = 0
    to_address = tx.to_address
    if to_address is None:
        flags = IS_CREATION
        to_bytes = b""
    else:
        to_bytes = bytes.fromhex(to_address[2:])
    if tx.type == "transaction":
        amount = tx.value / WEI_PER_ETHER
    else:
        amount = math.nan
        flags |= IS_TOKEN
    if tx.receipt_status is not None:
        flags |= IS_STATUS_KNOWN if tx.receipt_status else IS_STATUS_KNOWN | IS_FAILED
    input_bytes = -1
    if tx.input is not None:
        input_bytes = (len(tx.input) - 2) // 2
        flags |= method_class(tx.input[:10]) << METHOD_SHIFT
    return _PACK(bytes.fromhex(tx.from_address[2:]), to_bytes, amount, tx.block_timestamp, flags, input_bytes)


def records(packed: Sequence[bytes]) -> NDArray[np.uint64]:
    """Join packed transactions into the array the kernel reads, shape (n, RECORD_WORDS)."""
    return np.frombuffer(b"".join(packed), dtype=np.uint64).reshape(-1, RECORD_WORDS)
