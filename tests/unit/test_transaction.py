"""The packed record: 80 bytes of a transaction as the kernel reads them."""

import math
import struct

import numpy as np
import pytest
from web3 import Web3

from features.transaction import (
    IS_CREATION,
    IS_FAILED,
    IS_STATUS_KNOWN,
    IS_TOKEN,
    METHOD_APPROVE,
    METHOD_APPROVE_ALL,
    METHOD_CLASSES,
    METHOD_NONE,
    METHOD_OTHER,
    METHOD_PERMIT,
    METHOD_SHIFT,
    METHOD_TRANSFER,
    METHOD_UNKNOWN,
    RECORD_WORDS,
    Transaction,
    method_class,
    pack,
    records,
)

SENDER, RECIPIENT = "0x" + bytes(range(20)).hex(), "0x" + bytes(range(100, 120)).hex()


def transaction(**fields: object) -> Transaction:
    """Return a transaction with some fields of its own."""
    known = {
        "type": "transaction",
        "hash": "0x" + "ab" * 32,
        "log_index": None,
        "chain_id": 1,
        "block_number": 4_000_000,
        "block_hash": None,
        "block_timestamp": 1_500_000_000,
        "transaction_index": None,
        "from_address": SENDER,
        "to_address": RECIPIENT,
        "value": 10**18,
    }
    return Transaction(**(known | fields))


def test_record_holds_addresses_amount_time_and_flags():
    """A record is both addresses in three words each, then the amount in ether, the time, the flags, the input."""
    packed = pack(transaction(input="0xa9059cbb" + "00" * 64, receipt_status=0))

    flags = IS_STATUS_KNOWN | IS_FAILED | METHOD_TRANSFER << METHOD_SHIFT
    expected = bytes(range(20)) + bytes(4) + bytes(range(100, 120)) + bytes(4)
    expected += struct.pack("<dqqq", 1.0, 1_500_000_000, flags, 68)
    assert packed == expected


def test_what_is_absent_is_unknown():
    """Without a receipt, an input and a recipient the status and the method are unknown and a contract is created."""
    words = records([pack(transaction(to_address=None))])[0]

    assert words[3:6].tolist() == [0, 0, 0]
    assert words[8] == IS_CREATION
    assert words.view(np.int64)[9] == -1
    assert int(words[8]) >> METHOD_SHIFT == METHOD_UNKNOWN


def test_token_transfer_has_no_amount_in_ether():
    """A token's amount is NaN whatever its value."""
    words = records([pack(transaction(type="token_transfer", log_index=3, value=10**30))])[0]

    assert math.isnan(words.view(np.float64)[6])
    assert words[8] == IS_TOKEN


@pytest.mark.parametrize("value", [0, 1, 2**53 + 1, 2**64 - 1, 2**64, 2**64 + 1, 2**256 - 1])
def test_amount_is_the_nearest_float_of_the_value(value: int):
    """A value of any size becomes the nearest float64, then ether: two roundings, stated and the same everywhere."""
    words = records([pack(transaction(value=value))])[0]

    assert words.view(np.float64)[6] == float(value) / 1e18


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("0x", METHOD_NONE),
        ("0x095ea7", METHOD_NONE),
        ("0x095ea7b3", METHOD_APPROVE),
        ("0x12345678", METHOD_OTHER),
        *METHOD_CLASSES.items(),
    ],
)
def test_method_class_is_that_of_the_selector(selector: str, expected: int):
    """An input shorter than four bytes calls no method; a selector that is in no class is another method."""
    assert expected == method_class(selector)


def test_records_join_to_rows():
    """Packed transactions become one row of words each; none become no rows."""
    packed = [pack(transaction(value=i)) for i in range(3)]

    assert records(packed).shape == (3, RECORD_WORDS)
    assert records(packed).tobytes() == b"".join(packed)
    assert records([]).shape == (0, RECORD_WORDS)


def test_id_is_the_kafka_key():
    """A transaction is known by its hash, a token transfer by hash and position of its log."""
    assert transaction().id == "0x" + "ab" * 32
    assert transaction(type="token_transfer", log_index=0).id == "0x" + "ab" * 32 + ":0"


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("transfer(address,uint256)", METHOD_TRANSFER),
        ("transferFrom(address,address,uint256)", METHOD_TRANSFER),
        ("safeTransferFrom(address,address,uint256)", METHOD_TRANSFER),
        ("approve(address,uint256)", METHOD_APPROVE),
        ("increaseAllowance(address,uint256)", METHOD_APPROVE),
        ("permit(address,address,uint256,uint256,uint8,bytes32,bytes32)", METHOD_PERMIT),
        ("permit(address,address,uint256,uint256,bool,uint8,bytes32,bytes32)", METHOD_PERMIT),
        ("setApprovalForAll(address,bool)", METHOD_APPROVE_ALL),
        ("deposit()", METHOD_OTHER),
    ],
)
def test_selectors_are_the_hashes_of_their_signatures(signature: str, expected: int) -> None:
    """The first four bytes of the signature's Keccak-256, as a node's own library computes it."""
    assert method_class(Web3.keccak(text=signature)[:4].to_0x_hex()) == expected
