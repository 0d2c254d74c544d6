"""Blocks and receipts as nodes write them, to messages as ethereum-etl streams them."""

from typing import Any

import msgspec
import pytest

from features.errors import NodeOutageError
from service import evm
from service.codec import Decoder

BLOCK_HASH = "0x" + "b1" * 32
SENDER, RECIPIENT, TOKEN = ("0x" + digits * 20 for digits in ("3f", "1a", "da"))
TIME = 1_700_000_000
decode = Decoder(chain_id=99, message_bytes_max=1_000_000).decode


def word(address: str) -> str:
    return "0x" + address[2:].rjust(64, "0")


def number(value: int) -> str:
    return f"0x{value:064x}"


def tx(index: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a transaction with priority fees inside a block."""
    plain = {
        "hash": f"0x{index + 1:064x}",
        "blockHash": BLOCK_HASH,
        "blockNumber": "0x10",
        "transactionIndex": hex(index),
        "from": SENDER,
        "to": RECIPIENT,
        "value": hex(10**18),
        "gas": "0x5208",
        "gasPrice": "0x3b9aca00",
        "maxFeePerGas": "0x77359400",
        "maxPriorityFeePerGas": "0x1",
        "nonce": "0x7",
        "input": "0x",
        "type": "0x2",
        "accessList": [],
        "chainId": "0x1",
        "v": "0x1",
    }
    return plain | fields


def receipt(index: int = 0, logs: list[dict[str, Any]] | None = None, **fields: Any) -> dict[str, Any]:
    """Return a transaction's receipt."""
    plain = {
        "transactionHash": f"0x{index + 1:064x}",
        "blockHash": BLOCK_HASH,
        "transactionIndex": hex(index),
        "gasUsed": "0x5208",
        "cumulativeGasUsed": hex(21_000 * (index + 1)),
        "effectiveGasPrice": "0x3b9aca00",
        "contractAddress": None,
        "status": "0x1",
        "logs": logs or [],
        "logsBloom": "0x00",
    }
    return plain | fields


def log(topics: list[str], data: str, index: int = 0) -> dict[str, Any]:
    return {"address": TOKEN, "topics": topics, "data": data, "logIndex": hex(index), "removed": False}


def block(
    transactions: list[dict[str, Any]], receipts: list[dict[str, Any]], *, timestamp: int = TIME, chain_id: int = 1
) -> evm.Block:
    """Return what a node's answers become."""
    header = {"number": "0x10", "hash": BLOCK_HASH, "parentHash": "0x" + "a0" * 32, "timestamp": hex(timestamp)}
    wire = msgspec.json.decode(
        msgspec.json.encode(header | {"transactions": transactions, "uncles": []}), type=evm.WireBlock
    )
    found = msgspec.json.decode(msgspec.json.encode(receipts), type=list[evm.WireReceipt])
    return evm.block(wire, found, chain_id=chain_id)


def message(found: evm.Block, index: int = 0) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(found.records[index][1])
    return decoded


def test_transaction_has_ethereum_etl_s_fields_and_the_service_reads_them() -> None:
    """Field for field, and in the service's own decoder."""
    found = block([tx()], [receipt()], chain_id=137)

    said = message(found)
    assert list(said)[:4] == ["type", "hash", "nonce", "transaction_index"]
    assert (said["receipt_status"], said["receipt_gas_used"], said["max_fee_per_gas"]) == (1, 21_000, 2 * 10**9)
    assert said["item_timestamp"] == "2023-11-14T22:13:20Z"
    assert found.records[0][0].decode() == said["hash"]
    read = decode(found.records[0][1])
    assert (read.chain_id, read.block_number, read.block_hash, read.block_timestamp) == (137, 16, BLOCK_HASH, TIME)
    assert (read.from_address, read.to_address, read.value, read.nonce) == (SENDER, RECIPIENT, 10**18, 7)
    assert (read.gas, read.gas_price, read.input, read.receipt_status) == (21_000, 10**9, "0x", 1)


def test_every_type_of_transaction_is_taken() -> None:
    """Legacy, with access list, priority fees, blobs, set code, a rollup's deposit; and one that creates a contract."""
    bare = {"maxFeePerGas", "maxPriorityFeePerGas", "type", "accessList"}
    legacy = {name: value for name, value in tx(0).items() if name not in bare}
    deposit = {name: value for name, value in tx(5, type="0x7e").items() if name not in (*bare, "gasPrice", "nonce")}
    blobs = ["0x01" + "ab" * 31]
    transactions = [
        legacy,
        tx(1, type="0x1"),
        tx(2, to=None, input="0x6080"),
        tx(3, type="0x3", maxFeePerBlobGas="0x5", blobVersionedHashes=blobs),
        tx(4, type="0x4", authorizationList=[{"chainId": "0x1"}]),
        deposit | {"type": "0x7e"},
    ]
    created = "0x" + "C0" * 20
    receipts = [receipt(i) for i in range(6)]
    receipts[2]["contractAddress"] = created
    receipts[3] |= {"blobGasUsed": "0x20000", "blobGasPrice": "0x1"}
    receipts[5] |= {"l1Fee": "0x9", "l1FeeScalar": "0.684", "effectiveGasPrice": None}

    found = block(transactions, receipts)

    said = [message(found, i) for i in range(6)]
    assert [each["transaction_type"] for each in said] == [0, 1, 2, 3, 4, 126]
    assert (said[2]["to_address"], said[2]["receipt_contract_address"]) == (None, created.lower())
    assert (said[3]["max_fee_per_blob_gas"], said[3]["blob_versioned_hashes"]) == (5, blobs)
    assert (said[3]["receipt_blob_gas_used"], said[3]["receipt_blob_gas_price"]) == (131_072, 1)
    assert (said[5]["receipt_l1_fee"], said[5]["receipt_l1_fee_scalar"], said[5]["gas_price"]) == (9, "0.684", None)
    assert [decode(value).to_address for _, value in found.records][2] is None
    assert found.n_transactions == 6


def test_receipt_before_byzantium_has_a_root_instead_of_a_status() -> None:
    """What it lacks is null, never zero."""
    said = message(block([tx()], [receipt(status=None, root="0x" + "77" * 32)]))

    assert (said["receipt_status"], said["receipt_root"]) == (None, "0x" + "77" * 32)


def test_transfers_follow_their_transaction_in_the_order_of_their_logs() -> None:
    """And carry the block, the place of the log and the token."""
    topics = [evm.TRANSFER, word(SENDER), word(RECIPIENT)]
    logs = [log(topics, number(5), 3), log(["0x" + "00" * 32], "0x", 4), log(topics, number(2**256 - 1), 5)]

    found = block([tx(0), tx(1)], [receipt(0, logs), receipt(1)])

    assert [key.decode()[-3:] for key, _ in found.records] == ["001", "1:3", "1:5", "002"]
    said = decode(found.records[2][1])
    assert (said.type, said.log_index, said.value, said.token_address) == ("token_transfer", 5, 2**256 - 1, TOKEN)
    assert (said.from_address, said.to_address, said.hash) == (SENDER, RECIPIENT, tx(0)["hash"])
    assert (said.block_number, said.block_hash, said.transaction_index) == (16, BLOCK_HASH, 0)
    assert (found.n_transactions, found.n_skipped) == (2, 0)


A, B, VALUE = word(SENDER), word(RECIPIENT), number(7)


@pytest.mark.parametrize(
    ("topics", "data", "is_transfer"),
    [
        ([evm.TRANSFER, A, B], VALUE, True),
        ([evm.TRANSFER.upper().replace("X", "x"), A, B], VALUE, True),
        ([evm.TRANSFER, A, B], VALUE + "00" * 32, True),  # a token that says more than the standard asks
        ([evm.TRANSFER, A], B + VALUE[2:], True),  # the recipient is not indexed
        ([evm.TRANSFER], A + B[2:] + VALUE[2:], True),  # nothing is
        ([evm.TRANSFER, A, B, VALUE], "0x", False),  # ERC-721: the fourth topic is the token's number
        ([evm.TRANSFER, A, B], "0x", False),
        ([evm.TRANSFER, A, B], "0x07", False),
        ([evm.TRANSFER, A, B], "0x" + "zz" * 32, False),
        ([evm.TRANSFER, "0x" + "11" * 32, B], VALUE, False),  # no address fills a whole word
        ([evm.TRANSFER], A + B[2:], False),
        ([evm.TRANSFER], A + B[2:] + VALUE[2:] + VALUE[2:], False),
    ],
)
def test_erc20_is_told_from_what_only_looks_like_it(topics: list[str], data: str, is_transfer: bool) -> None:
    """Odd tokens survive, other events with the same name are counted and left out."""
    found = block([tx()], [receipt(0, [log(topics, data)])])

    assert len(found.records) == 1 + is_transfer
    assert found.n_skipped == 1 - is_transfer
    if is_transfer:
        said = decode(found.records[1][1])
        assert (said.from_address, said.to_address, said.value) == (SENDER, RECIPIENT, 7)


@pytest.mark.parametrize(
    ("transactions", "receipts", "fault"),
    [
        ([tx()], [], "foreign_receipts"),
        ([], [receipt()], "foreign_receipts"),
        ([tx()], [receipt(blockHash="0x" + "00" * 32)], "foreign_receipts"),
        ([tx(0), tx(1)], [receipt(1), receipt(0)], "foreign_receipts"),
        ([tx(1)], [receipt(1)], "wrong_block"),
    ],
)
def test_answers_that_do_not_belong_together_are_refused(
    transactions: list[dict[str, Any]], receipts: list[dict[str, Any]], fault: str
) -> None:
    """Another block's receipts, too few, or out of order."""
    with pytest.raises(NodeOutageError, match="block 16") as raised:
        block(transactions, receipts)
    assert raised.value.fault == fault


def test_block_without_a_time_has_no_transactions() -> None:
    """Ethereum's first block has neither; another without a time is refused."""
    assert block([], [], timestamp=0).records == []
    with pytest.raises(NodeOutageError, match="timestamp 0"):
        block([tx()], [receipt()], timestamp=0)
