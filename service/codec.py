"""Bytes to transactions, scores and rejections to bytes.

A message is read twice at most. The fast path lets msgspec check types and ranges while it parses, and takes what
ethereum-etl and most others send; whatever it does not take goes to `_careful`, which accepts the other spellings or
says why the message is rejected. The first of these that applies is the reason:

1. `too_large`: more bytes than `message_bytes_max`.
2. `not_utf8`: anywhere in the message, unknown fields included.
3. `too_deep`: more than 32 objects and arrays inside one another, the message itself counted.
4. `not_json`: by RFC 8259, so NaN, Infinity, a byte-order mark and trailing bytes are refused.
5. `wrong_type`: the message is no object.
6. `type` itself: `missing_field`, `wrong_type` or `unsupported_type`.
7. `missing_field`: the first required field that is absent or null; only `to_address` of a transaction may be null.
8. Each field, the required ones first, in the order of the tables below: `wrong_type` for another JSON type, a string
   that is no integer, an `input` that is no hex, or an integer beyond the field's own limit; `malformed_address` and
   `malformed_hash` for other strings; `negative_value` and `value_over_256_bit` for an integer of any field but the
   timestamp, which has `timestamp_out_of_range`.

Of a key that stands twice the last one counts. Fields that the tables do not name are ignored.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, BinaryIO, NoReturn

import msgspec
import numpy as np
from msgspec import Meta, Struct

from features.errors import Reason, RejectedError
from features.transaction import TIMESTAMP_MAX, TIMESTAMP_MIN, OrphanedBlock, Transaction
from service.messages import Rejection, Retraction, Score

DEPTH_MAX = 32
"""ethereum-etl nests two deep (an access list); Python's parsers stop at about 1,000 with a RecursionError."""

KINDS = ("transaction", "token_transfer")
TRANSACTION_REQUIRED = ("hash", "from_address", "to_address", "value", "block_number", "block_timestamp")
TOKEN_TRANSFER_REQUIRED = (
    "transaction_hash",
    "log_index",
    "from_address",
    "to_address",
    "token_address",
    "value",
    "block_number",
    "block_timestamp",
)
OPTIONAL = ("block_hash", "transaction_index", "chain_id")
ORPHANED_BLOCK_REQUIRED = ("block_number", "block_hash", "block_timestamp")
TRANSACTION_OPTIONAL = (*OPTIONAL, "nonce", "gas", "gas_price", "input", "receipt_status")

_REQUIRED = {
    "transaction": TRANSACTION_REQUIRED,
    "token_transfer": TOKEN_TRANSFER_REQUIRED,
    "orphaned_block": ORPHANED_BLOCK_REQUIRED,
}

UINT256_MAX = 2**256 - 1
UINT64_MAX = 2**64 - 1

# Stands for an integer of too many digits to be worth converting: its exact size decides nothing.
_HUGE = 10**80
_SHOWN_MAX = 80

_HASH = re.compile(r"0x[0-9a-fA-F]{64}").fullmatch
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}").fullmatch
_INTEGER = re.compile(r"(-?)(?:0x0*([0-9a-fA-F]+)|0*([0-9]+))").fullmatch
# The lengths of the parts are known to be right, so the whole can only split at their ends.
_PARTS = re.compile(r"(?:0x[0-9a-fA-F]{40}){1,3}(?:0x[0-9a-fA-F]{64}){1,2}").fullmatch
# An unclosed string runs to the end, so that a message of quotes and backslashes is still read only once.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)

_STEPS = np.zeros(256, dtype=np.int8)
"""What each byte outside strings adds to the depth."""
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1

# msgspec compares such bounds while parsing and only knows those below 2**63; what lies above is left to `_careful`.
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Time = Annotated[int, Meta(ge=TIMESTAMP_MIN, le=TIMESTAMP_MAX)]
_Address = Annotated[str, Meta(min_length=42, max_length=42)]
_Hash = Annotated[str, Meta(min_length=66, max_length=66)]
_Value = Annotated[int, Meta(ge=0)] | str


class _WireTransaction(Struct, frozen=True, gc=False, tag_field="type", tag="transaction"):
    """A `transaction` message as most senders spell it."""

    hash: _Hash
    from_address: _Address
    to_address: _Address | None
    value: _Value
    block_number: _Count
    block_timestamp: _Time
    block_hash: _Hash | None = None
    transaction_index: _Count | None = None
    chain_id: _Count | None = None
    nonce: _Count | None = None
    gas: _Count | None = None
    gas_price: _Count | None = None
    input: str | None = None
    receipt_status: Annotated[int, Meta(ge=0, le=1)] | None = None


class _WireTokenTransfer(Struct, frozen=True, gc=False, tag_field="type", tag="token_transfer"):
    """A `token_transfer` message as most senders spell it."""

    transaction_hash: _Hash
    log_index: _Count
    from_address: _Address
    to_address: _Address
    token_address: _Address
    value: _Value
    block_number: _Count
    block_timestamp: _Time
    block_hash: _Hash | None = None
    transaction_index: _Count | None = None
    chain_id: _Count | None = None


_decode_wire = msgspec.json.Decoder(_WireTransaction | _WireTokenTransfer).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_decode_score = msgspec.json.Decoder(Score).decode


class Decoder:
    """Decodes messages of the transactions topic; keeps nothing from one to the next."""

    def __init__(self, *, chain_id: int, message_bytes_max: int) -> None:
        """Make a decoder.

        Args:
            chain_id: The chain of a message that names none.
            message_bytes_max: Size of the largest message that is decoded.
        """
        self._chain_id = chain_id
        self._bytes_max = message_bytes_max

    def decode(self, raw: bytes) -> Transaction:
        """Return the transaction that a message holds, as `read`, where nothing can be taken back.

        Raises:
            RejectedError: The message is no transaction, for the reason given; it may be an orphaned block.
        """
        found = self.read(raw)
        if isinstance(found, OrphanedBlock):
            raise RejectedError("unsupported_type", "type is 'orphaned_block'; allowed here: " + ", ".join(KINDS))
        return found

    def read(self, raw: bytes) -> Transaction | OrphanedBlock:
        """Return the transaction or orphaned block that a message holds.

        A transaction of 382 bytes as ethereum-etl writes them takes 2 µs.

        Raises:
            RejectedError: The message is neither, for the reason given.
        """
        if len(raw) > self._bytes_max:
            raise RejectedError("too_large", f"the message has {len(raw)} bytes; allowed: {self._bytes_max}")
        # msgspec skips unknown fields without looking whether they are UTF-8.
        if not raw.isascii():
            _check_utf8(raw)
        if b"[" in raw or raw.find(b"{", 1) >= 0:
            _check_depth(raw)
        try:
            wire = _decode_wire(raw)
        except ValueError:
            return _careful(raw, self._chain_id)
        if isinstance(wire, _WireTransaction):
            tx = _fast_transaction(wire, self._chain_id)
        else:
            tx = _fast_token_transfer(wire, self._chain_id)
        return _careful(raw, self._chain_id) if tx is None else tx


def encode_score(score: Score | Retraction) -> bytes:
    """Return a score, an alert or a retraction as JSON."""
    return _encode(score)


def decode_score(raw: bytes) -> Score:
    """Return the score that a message of the scores or alerts topic holds.

    Raises:
        msgspec.DecodeError: The message is none.
    """
    return _decode_score(raw)


def encode_rejection(rejection: Rejection) -> tuple[bytes | None, bytes, list[tuple[str, bytes]]]:
    """Return key, value and headers for the dead-letter topic: key and value as they came, the rest in headers."""
    source = rejection.source
    headers = [
        ("reason", rejection.reason.encode()),
        ("detail", rejection.detail.encode()),
        ("source_topic", source.topic.encode()),
        ("source_partition", b"%d" % source.partition),
        ("source_offset", b"%d" % source.offset),
    ]
    return rejection.key, rejection.value, headers


def read_lines(stream: BinaryIO, *, message_bytes_max: int) -> Iterator[bytes]:
    r"""Yield the messages of a JSON-lines stream, one a line, blank lines left out.

    Of a line over the limit only its first bytes come, one more than the limit: the decoder rejects them as too large,
    and a stream without line ends cannot fill the memory.

    >>> import io
    >>> list(read_lines(io.BytesIO(b'{"a":1}\n\n{"b":2}\r\n12345678'), message_bytes_max=7))
    [b'{"a":1}', b'{"b":2}', b'12345678']
    """
    # Room for the two bytes of a Windows line end.
    size = message_bytes_max + 2
    while line := stream.readline(size):
        if not line.endswith(b"\n") and len(line) == size:
            while (rest := stream.readline(size)) and not rest.endswith(b"\n"):
                pass
        line = line.rstrip(b"\r\n")
        if line and not line.isspace():
            yield line[: message_bytes_max + 1]


def _fast_transaction(wire: _WireTransaction, chain_id: int) -> Transaction | None:
    """Return the transaction, or None where only a careful look can tell."""
    value, tx_hash, block_hash, data = wire.value, wire.hash, wire.block_hash, wire.input
    sender, recipient = wire.from_address, wire.to_address
    text = sender + (recipient or "") + tx_hash + (block_hash or "")
    if isinstance(value, str):
        value = _decimal(value)
    if value > UINT256_MAX or not _PARTS(text):
        return None
    if text != text.lower():
        sender, tx_hash = sender.lower(), tx_hash.lower()
        recipient = None if recipient is None else recipient.lower()
        block_hash = None if block_hash is None else block_hash.lower()
    if data is not None and data != "0x":
        data = _input(data)
        if data is None:
            return None
    return Transaction(
        "transaction",
        tx_hash,
        None,
        chain_id if wire.chain_id is None else wire.chain_id,
        wire.block_number,
        block_hash,
        wire.block_timestamp,
        wire.transaction_index,
        sender,
        recipient,
        value,
        wire.nonce,
        wire.gas,
        wire.gas_price,
        data,
        wire.receipt_status,
    )


def _fast_token_transfer(wire: _WireTokenTransfer, chain_id: int) -> Transaction | None:
    """Return the token transfer, or None where only a careful look can tell."""
    value, tx_hash, block_hash = wire.value, wire.transaction_hash, wire.block_hash
    sender, recipient, token = wire.from_address, wire.to_address, wire.token_address
    text = sender + recipient + token + tx_hash + (block_hash or "")
    if isinstance(value, str):
        value = _decimal(value)
    if value > UINT256_MAX or not _PARTS(text):
        return None
    if text != text.lower():
        sender, recipient, token, tx_hash = sender.lower(), recipient.lower(), token.lower(), tx_hash.lower()
        block_hash = None if block_hash is None else block_hash.lower()
    return Transaction(
        "token_transfer",
        tx_hash,
        wire.log_index,
        chain_id if wire.chain_id is None else wire.chain_id,
        wire.block_number,
        block_hash,
        wire.block_timestamp,
        wire.transaction_index,
        sender,
        recipient,
        value,
        token_address=token,
    )


def _decimal(text: str) -> int:
    """Return the integer of a short string of digits, or one too large to accept for any other text."""
    # `isdigit` alone lets other scripts' digits and superscripts through.
    return int(text) if len(text) <= 78 and text.isascii() and text.isdigit() else _HUGE


def _input(text: str) -> str | None:
    """Return a call's input as 0x and pairs of lower-case hex digits, None if it is anything else."""
    if not text:
        return "0x"
    try:
        n_bytes = len(bytes.fromhex(text[2:]))
    except ValueError:
        return None
    # `fromhex` skips blanks, which then are missing from its length.
    return text.lower() if text.startswith("0x") and 2 + 2 * n_bytes == len(text) else None


def _check_utf8(raw: bytes) -> None:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise RejectedError(
            "not_utf8", f"byte {error.start} of the message is {raw[error.start]:#04x}; allowed: UTF-8"
        ) from None


def _check_depth(raw: bytes) -> None:
    # Two counts over the bytes clear nearly every message; strings and closing brackets matter only beyond them.
    if raw.count(b"{") + raw.count(b"[") <= DEPTH_MAX:
        return
    # A loop would take half a second over a megabyte of brackets.
    steps = _STEPS[np.frombuffer(_STRING.sub(b"", raw), dtype=np.uint8)]
    depth = int(np.cumsum(steps, dtype=np.int32).max(initial=0))
    if depth > DEPTH_MAX:
        raise RejectedError("too_deep", f"objects and arrays stand {depth} deep; allowed: {DEPTH_MAX}")


def _careful(raw: bytes, chain_id: int) -> Transaction | OrphanedBlock:
    """Return what a message in any accepted spelling holds, or raise why it is rejected."""
    message = _parse(raw)
    if type(message) is not dict:
        _reject("wrong_type", "the message", message, "a JSON object")
    kind = _kind(message)
    is_token = kind == "token_transfer"
    for name in _REQUIRED[kind]:
        if message.get(name) is None and (is_token or name != "to_address" or name not in message):
            state = "null" if name in message else "absent"
            raise RejectedError("missing_field", f"{name} is {state}; a {kind} must have it")
    if kind == "orphaned_block":
        return OrphanedBlock(
            block_number=_count(message, "block_number"),
            block_hash=_text(message, "block_hash", _hash),
            block_timestamp=_timestamp(message),
            chain_id=chain_id if message.get("chain_id") is None else _count(message, "chain_id"),
        )
    # The arguments are checked in the order in which they stand here.
    return Transaction(
        type="token_transfer" if is_token else "transaction",
        hash=_text(message, "transaction_hash" if is_token else "hash", _hash),
        log_index=_count(message, "log_index") if is_token else None,
        from_address=_text(message, "from_address", _address),
        to_address=_optional(message, "to_address", _address),
        token_address=_text(message, "token_address", _address) if is_token else None,
        value=_integer(message, "value", UINT256_MAX),
        block_number=_count(message, "block_number"),
        block_timestamp=_timestamp(message),
        block_hash=_optional(message, "block_hash", _hash),
        transaction_index=_optional_count(message, "transaction_index"),
        chain_id=chain_id if message.get("chain_id") is None else _count(message, "chain_id"),
        **({} if is_token else _details(message)),
    )


def _details(message: dict[str, Any]) -> dict[str, Any]:
    """Return the optional fields that only a transaction has."""
    return {
        "nonce": _optional_count(message, "nonce"),
        "gas": _optional_count(message, "gas"),
        "gas_price": _optional_count(message, "gas_price", UINT256_MAX),
        "input": _optional(message, "input", _data),
        "receipt_status": _optional_count(message, "receipt_status", 1),
    }


def _parse(raw: bytes) -> object:
    """Return what the JSON says, by the standard library where msgspec gives up on a number or a lone surrogate."""
    try:
        return _decode_any(raw)
    except ValueError:
        pass
    try:
        return json.loads(raw.decode(), parse_int=_bounded_int, parse_constant=_refuse_constant)
    except ValueError as error:
        raise RejectedError("not_json", f"the message is not JSON: {error}") from None


def _bounded_int(text: str) -> int:
    # int() takes time with the square of the digits.
    if len(text) <= _SHOWN_MAX:
        return int(text)
    return -_HUGE if text.startswith("-") else _HUGE


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _kind(message: dict[str, Any]) -> str:
    kind, allowed = message.get("type"), ", ".join(_REQUIRED)
    if kind is None:
        state = "null" if "type" in message else "absent"
        raise RejectedError("missing_field", f"type is {state}; allowed: {allowed}")
    if type(kind) is not str:
        _reject("wrong_type", "type", kind, allowed)
    if kind not in _REQUIRED:
        _reject("unsupported_type", "type", kind, allowed)
    return kind


def _text(message: dict[str, Any], name: str, check: Callable[[str, str], str]) -> str:
    text = message[name]
    if type(text) is not str:
        _reject("wrong_type", name, text, "a string")
    return check(name, text)


def _optional(message: dict[str, Any], name: str, check: Callable[[str, str], str]) -> str | None:
    return None if message.get(name) is None else _text(message, name, check)


def _hash(name: str, text: str) -> str:
    return text.lower() if _HASH(text) else _reject("malformed_hash", name, text, "0x and 64 hex digits")


def _address(name: str, text: str) -> str:
    return text.lower() if _ADDRESS(text) else _reject("malformed_address", name, text, "0x and 40 hex digits")


def _data(name: str, text: str) -> str:
    data = _input(text)
    return _reject("wrong_type", name, text, "0x and pairs of hex digits") if data is None else data


def _optional_count(message: dict[str, Any], name: str, most: int = UINT64_MAX) -> int | None:
    return None if message.get(name) is None else _integer(message, name, most)


def _count(message: dict[str, Any], name: str) -> int:
    return _integer(message, name, UINT64_MAX)


def _integer(message: dict[str, Any], name: str, most: int) -> int:
    value = _to_integer(name, message[name])
    limits = _LIMITS[most]
    if value < 0:
        _reject("negative_value", name, message[name], limits)
    if value > UINT256_MAX:
        _reject("value_over_256_bit", name, message[name], limits)
    if value > most:
        _reject("wrong_type", name, message[name], limits)
    return value


def _timestamp(message: dict[str, Any]) -> int:
    name = "block_timestamp"
    value = _to_integer(name, message[name])
    if not TIMESTAMP_MIN <= value <= TIMESTAMP_MAX:
        _reject("timestamp_out_of_range", name, message[name], f"{TIMESTAMP_MIN} to {TIMESTAMP_MAX}")
    return value


def _to_integer(name: str, value: object) -> int:
    """Return the integer that a JSON number, a decimal string or a 0x hex string stands for."""
    if type(value) is int:
        return value
    match = _INTEGER(value) if type(value) is str else None
    if match is None:
        _reject("wrong_type", name, value, "an integer, its decimal digits or 0x and its hex digits as a string")
    sign, in_hex, in_decimal = match.groups()
    digits, radix = (in_hex, 16) if in_decimal is None else (in_decimal, 10)
    size = int(digits, radix) if len(digits) <= _SHOWN_MAX else _HUGE
    return -size if sign else size


def _reject(reason: Reason, name: str, value: object, allowed: str) -> NoReturn:
    raise RejectedError(reason, f"{name} is {_shown(value)}; allowed: {allowed}")


def _shown(value: object) -> str:
    """Return a value as short printable ASCII: it goes into a Kafka header and into logs."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and abs(value) == _HUGE:
        return f"an integer of more than {_SHOWN_MAX} characters"
    text = ascii(value[: _SHOWN_MAX + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…"


_LIMITS: Mapping[int, str] = {UINT256_MAX: "0 to 2**256 - 1", UINT64_MAX: "0 to 2**64 - 1", 1: "0, 1"}
