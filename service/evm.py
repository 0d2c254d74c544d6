"""Blocks and receipts of an EVM chain, as its nodes write them in JSON, to the messages of the transactions topic.

The messages have ethereum-etl's streaming fields, and `chain_id` besides. A block's come in the chain's order: each
transaction, then the ERC-20 transfers it caused by the place of their logs. Checks that need more than one answer of a
node stand here as well: a block's receipts must be of this block, one for each transaction, in its order.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct, field

from features.errors import NodeOutageError
from features.transaction import TIMESTAMP_MAX, TIMESTAMP_MIN
from service.chain import Header
from service.ethereum_etl import rfc3339

TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
"""Keccak-256 of `Transfer(address,address,uint256)`, the first topic of ERC-20's event and of ERC-721's."""

WORD = 64
"""Hex digits of one word of the EVM."""

_PADDING = "0" * (WORD - 40)

Number = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{1,64}\Z")]
Hash = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{64}\Z")]
Address = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{40}\Z")]
Hex = Annotated[str, Meta(pattern=r"^0x([0-9a-fA-F]{2})*\Z")]


class WireTransaction(Struct, frozen=True, gc=False, rename="camel"):
    """A transaction inside `eth_getBlockByNumber`; what some types or chains lack is None."""

    hash: Hash
    transaction_index: Number
    sender: Address = field(name="from")
    value: Number
    gas: Number
    to: Address | None = None
    nonce: Number = "0x0"
    input: Hex = "0x"
    gas_price: Number | None = None
    type: Number = "0x0"
    max_fee_per_gas: Number | None = None
    max_priority_fee_per_gas: Number | None = None
    max_fee_per_blob_gas: Number | None = None
    blob_versioned_hashes: list[Hash] | None = None


class WireHeader(Struct, frozen=True, rename="camel"):
    """What of a block's header counts here."""

    number: Number
    hash: Hash
    parent_hash: Hash
    timestamp: Number

    def header(self) -> Header:
        """Return it with numbers as numbers."""
        return Header(int(self.number, 16), self.hash.lower(), self.parent_hash.lower(), int(self.timestamp, 16))


class WireBlock(WireHeader, frozen=True, rename="camel"):
    """A block with whole transactions."""

    transactions: list[WireTransaction]


class WireLog(Struct, frozen=True, gc=False, rename="camel"):
    """One event that a contract logged."""

    address: Address
    topics: list[Hash]
    data: str
    log_index: Number


class WireReceipt(Struct, frozen=True, gc=False, rename="camel"):
    """What became of a transaction."""

    transaction_hash: Hash
    block_hash: Hash
    gas_used: Number
    cumulative_gas_used: Number
    logs: list[WireLog]
    contract_address: Address | None = None
    root: str | None = None
    """Before Byzantium a receipt had the state's root instead of a status."""

    status: Number | None = None
    effective_gas_price: Number | None = None
    blob_gas_price: Number | None = None
    blob_gas_used: Number | None = None
    l1_fee: Number | None = None
    l1_gas_used: Number | None = None
    l1_gas_price: Number | None = None
    l1_fee_scalar: str | None = None


class _Transaction(Struct, frozen=True, gc=False, tag_field="type", tag="transaction"):
    """A `transaction` message in ethereum-etl's order."""

    hash: str
    nonce: int
    transaction_index: int
    from_address: str
    to_address: str | None
    value: int
    gas: int
    gas_price: int | None
    input: str
    block_timestamp: int
    block_number: int
    block_hash: str
    max_fee_per_gas: int | None
    max_priority_fee_per_gas: int | None
    transaction_type: int
    max_fee_per_blob_gas: int | None
    blob_versioned_hashes: list[str]
    receipt_cumulative_gas_used: int
    receipt_gas_used: int
    receipt_contract_address: str | None
    receipt_root: str | None
    receipt_status: int | None
    receipt_effective_gas_price: int | None
    receipt_l1_fee: int | None
    receipt_l1_gas_used: int | None
    receipt_l1_gas_price: int | None
    receipt_l1_fee_scalar: str | None
    receipt_blob_gas_price: int | None
    receipt_blob_gas_used: int | None
    item_id: str
    item_timestamp: str
    chain_id: int


class _TokenTransfer(Struct, frozen=True, gc=False, tag_field="type", tag="token_transfer"):
    """A `token_transfer` message in ethereum-etl's order."""

    token_address: str
    from_address: str
    to_address: str
    value: int
    transaction_hash: str
    log_index: int
    block_number: int
    block_timestamp: int
    block_hash: str
    item_id: str
    item_timestamp: str
    transaction_index: int
    chain_id: int


class Transfer(NamedTuple):
    """What an ERC-20 Transfer event says."""

    from_address: str
    to_address: str
    value: int


class Block(NamedTuple):
    """A block ready to be written."""

    header: Header
    records: list[tuple[bytes, bytes]]
    """Key and value of each message: the key is the transaction's hash, of a transfer `hash:log_index`."""

    n_transactions: int
    n_skipped: int
    """Transfer events that are no ERC-20's: ERC-721's, and those whose words do not make a transfer."""


_encode = msgspec.json.Encoder().encode


def transfer(log: WireLog) -> Transfer | None:
    """Return the ERC-20 transfer that an event tells, None where it tells none.

    ERC-721 has the same event with its token's number indexed, so four topics. Some old tokens index less than the
    standard's two addresses; their words then stand in the data, in the same order. Data after the amount is ignored.
    """
    topics = log.topics
    if not topics or topics[0].lower() != TRANSFER or len(topics) > 3:
        return None
    data = log.data.removeprefix("0x").lower()
    n_words = 4 - len(topics)
    if len(data) < n_words * WORD or (len(topics) < 3 and len(data) != n_words * WORD):
        return None
    words = [topic[2:].lower() for topic in topics[1:]]
    words += [data[i * WORD : (i + 1) * WORD] for i in range(n_words)]
    sender, recipient, value = words
    # An address fills 20 of a word's 32 bytes; anything before it means that the word is something else.
    if not (sender.startswith(_PADDING) and recipient.startswith(_PADDING)):
        return None
    try:
        return Transfer(f"0x{sender[-40:]}", f"0x{recipient[-40:]}", int(value, 16))
    except ValueError:
        return None


def block(wire: WireBlock, receipts: Sequence[WireReceipt], *, chain_id: int) -> Block:
    """Return a block's messages; 13 µs a transaction with one transfer each (2 cores, 2026-11).

    Raises:
        NodeOutageError: The receipts are not this block's, or the transactions do not stand in their order.
    """
    header = wire.header()
    if len(receipts) != len(wire.transactions):
        raise NodeOutageError(
            "foreign_receipts",
            f"block {header.number} has {len(wire.transactions)} transactions and came with {len(receipts)} receipts",
        )
    # Ethereum's first block has no time, and no transactions either.
    stamp = rfc3339(header.timestamp) if wire.transactions and _is_time(header) else ""
    records: list[tuple[bytes, bytes]] = []
    n_skipped = 0
    for index, (tx, receipt) in enumerate(zip(wire.transactions, receipts, strict=True)):
        _check(header, index, tx, receipt)
        records.append((tx.hash.lower().encode(), _encode(_transaction(header, index, tx, receipt, stamp, chain_id))))
        for log in receipt.logs:
            found = transfer(log)
            if found is not None:
                records.append(_transfer_record(header, index, tx, log, found, stamp, chain_id))
            elif log.topics and log.topics[0].lower() == TRANSFER:
                n_skipped += 1
    return Block(header, records, len(wire.transactions), n_skipped)


def _is_time(header: Header) -> bool:
    if not TIMESTAMP_MIN <= header.timestamp <= TIMESTAMP_MAX:
        raise NodeOutageError(
            "wrong_block",
            f"block {header.number} has timestamp {header.timestamp}; allowed: {TIMESTAMP_MIN} to {TIMESTAMP_MAX}",
        )
    return True


def _check(header: Header, index: int, tx: WireTransaction, receipt: WireReceipt) -> None:
    if int(tx.transaction_index, 16) != index:
        raise NodeOutageError(
            "wrong_block",
            f"block {header.number} has transaction_index {int(tx.transaction_index, 16)} in place {index}",
        )
    if receipt.block_hash.lower() != header.hash or receipt.transaction_hash.lower() != tx.hash.lower():
        raise NodeOutageError(
            "foreign_receipts",
            f"receipt {index} of block {header.number} {header.hash} is of transaction {receipt.transaction_hash} "
            f"in block {receipt.block_hash}",
        )


def _transaction(
    header: Header, index: int, tx: WireTransaction, receipt: WireReceipt, stamp: str, chain_id: int
) -> _Transaction:
    tx_hash = tx.hash.lower()
    return _Transaction(
        tx_hash,
        int(tx.nonce, 16),
        index,
        tx.sender.lower(),
        None if tx.to is None else tx.to.lower(),
        int(tx.value, 16),
        int(tx.gas, 16),
        # The price of a transaction with priority fees is known once it stands in a block.
        _integer(tx.gas_price or receipt.effective_gas_price),
        tx.input.lower(),
        header.timestamp,
        header.number,
        header.hash,
        _integer(tx.max_fee_per_gas),
        _integer(tx.max_priority_fee_per_gas),
        int(tx.type, 16),
        _integer(tx.max_fee_per_blob_gas),
        tx.blob_versioned_hashes or [],
        int(receipt.cumulative_gas_used, 16),
        int(receipt.gas_used, 16),
        None if receipt.contract_address is None else receipt.contract_address.lower(),
        receipt.root,
        _integer(receipt.status),
        _integer(receipt.effective_gas_price),
        _integer(receipt.l1_fee),
        _integer(receipt.l1_gas_used),
        _integer(receipt.l1_gas_price),
        receipt.l1_fee_scalar,
        _integer(receipt.blob_gas_price),
        _integer(receipt.blob_gas_used),
        f"transaction_{tx_hash}",
        stamp,
        chain_id,
    )


def _transfer_record(
    header: Header, index: int, tx: WireTransaction, log: WireLog, found: Transfer, stamp: str, chain_id: int
) -> tuple[bytes, bytes]:
    tx_hash, log_index = tx.hash.lower(), int(log.log_index, 16)
    message = _TokenTransfer(
        log.address.lower(),
        found.from_address,
        found.to_address,
        found.value,
        tx_hash,
        log_index,
        header.number,
        header.timestamp,
        header.hash,
        f"token_transfer_{tx_hash}_{log_index}",
        stamp,
        index,
        chain_id,
    )
    return f"{tx_hash}:{log_index}".encode(), _encode(message)


def _integer(text: str | None) -> int | None:
    return None if text is None else int(text, 16)
