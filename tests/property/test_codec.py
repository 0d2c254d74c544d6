"""The codec against a plain reading of its rules: the same verdict on drawn, misspelt and damaged messages."""

import json
import string

from hypothesis import given
from hypothesis import strategies as st

from features.errors import RejectedError
from features.transaction import TIMESTAMP_MAX, TIMESTAMP_MIN, Transaction
from service.codec import Decoder

BYTES_MAX = 2000
CHAIN_ID = 56
decode = Decoder(chain_id=CHAIN_ID, message_bytes_max=BYTES_MAX).decode

U64, U256 = 2**64 - 1, 2**256 - 1
DIGITS, HEX_DIGITS = set(string.digits), set(string.hexdigits)


class Refused(Exception):
    """A message that the plain reading rejects; its argument is the reason."""


def verdict(raw: bytes) -> Transaction | str:
    """Return what the codec makes of a message: a transaction or a reason."""
    try:
        return decode(raw)
    except RejectedError as error:
        return error.reason if error.detail else "no detail"


def plain_verdict(raw: bytes) -> Transaction | str:
    """Return the same by the rules as they are written, one at a time, over the standard library's JSON."""
    try:
        return plain_transaction(plain_message(raw))
    except Refused as refused:
        return str(refused)


def plain_message(raw: bytes) -> dict:
    if len(raw) > BYTES_MAX:
        raise Refused("too_large")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("not_utf8") from None
    if plain_depth(text) > 32:
        raise Refused("too_deep")
    try:
        message = json.loads(text, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        raise Refused("not_json") from None
    if not isinstance(message, dict):
        raise Refused("wrong_type")
    return message


def plain_depth(text: str) -> int:
    """Return the greatest number of open brackets outside strings."""
    depth = deepest = 0
    in_string = is_escaped = False
    for letter in text:
        if in_string:
            in_string = is_escaped or letter != '"'
            is_escaped = letter == "\\" and not is_escaped
        elif letter == '"':
            in_string, is_escaped = True, False
        elif letter in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in "]}":
            depth -= 1
    return deepest


def plain_transaction(message: dict) -> Transaction:
    kind = message.get("type")
    if kind is None:
        raise Refused("missing_field")
    if not isinstance(kind, str):
        raise Refused("wrong_type")
    if kind not in ("transaction", "token_transfer"):
        raise Refused("unsupported_type")
    is_token = kind == "token_transfer"
    id_name = "transaction_hash" if is_token else "hash"
    required = [id_name, "from_address", "value", "block_number", "block_timestamp"]
    for name in [*required, *(["log_index", "token_address", "to_address"] if is_token else [])]:
        if message.get(name) is None:
            raise Refused("missing_field")
    if "to_address" not in message:
        raise Refused("missing_field")
    fields = {"type": kind, "token_address": None, "log_index": None}
    fields["hash"] = plain_hex(message[id_name], 64, "malformed_hash")
    if is_token:
        fields["log_index"] = plain_integer(message["log_index"], U64)
    fields["from_address"] = plain_hex(message["from_address"], 40, "malformed_address")
    fields["to_address"] = plain_hex(message.get("to_address"), 40, "malformed_address")
    if is_token:
        fields["token_address"] = plain_hex(message["token_address"], 40, "malformed_address")
    fields["value"] = plain_integer(message["value"], U256)
    fields["block_number"] = plain_integer(message["block_number"], U64)
    fields["block_timestamp"] = plain_number(message["block_timestamp"])
    if not TIMESTAMP_MIN <= fields["block_timestamp"] <= TIMESTAMP_MAX:
        raise Refused("timestamp_out_of_range")
    fields["block_hash"] = plain_hex(message.get("block_hash"), 64, "malformed_hash")
    fields["transaction_index"] = plain_integer(message.get("transaction_index"), U64)
    chain_id = plain_integer(message.get("chain_id"), U64)
    fields["chain_id"] = CHAIN_ID if chain_id is None else chain_id
    if not is_token:
        fields["nonce"] = plain_integer(message.get("nonce"), U64)
        fields["gas"] = plain_integer(message.get("gas"), U64)
        fields["gas_price"] = plain_integer(message.get("gas_price"), U256)
        fields["input"] = plain_input(message.get("input"))
        fields["receipt_status"] = plain_integer(message.get("receipt_status"), 1)
    return Transaction(**fields)


def plain_hex(text: object, n_digits: int, reason: str) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise Refused("wrong_type")
    if not (text[:2] == "0x" and len(text) == 2 + n_digits and set(text[2:]) <= HEX_DIGITS):
        raise Refused(reason)
    return text.lower()


def plain_input(text: object) -> str | None:
    if text is None:
        return None
    if text == "":
        return "0x"
    is_hex = isinstance(text, str) and text[:2] == "0x" and len(text) % 2 == 0 and set(text[2:]) <= HEX_DIGITS
    if not is_hex:
        raise Refused("wrong_type")
    return text.lower()


def plain_integer(value: object, most: int) -> int | None:
    if value is None:
        return None
    number = plain_number(value)
    if number < 0:
        raise Refused("negative_value")
    if number > U256:
        raise Refused("value_over_256_bit")
    if number > most:
        raise Refused("wrong_type")
    return number


def plain_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Refused("wrong_type")
    if isinstance(value, int):
        return value
    digits = value.removeprefix("-")
    sign = -1 if digits != value else 1
    if digits and set(digits) <= DIGITS:
        return sign * int(digits)
    if digits[:2] == "0x" and len(digits) > 2 and set(digits[2:]) <= HEX_DIGITS:
        return sign * int(digits[2:], 16)
    raise Refused("wrong_type")


def hex_text(n_digits: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=n_digits // 2, max_size=n_digits // 2).map(lambda b: "0x" + b.hex())


uint64 = st.one_of(st.integers(0, 2**40), st.sampled_from([2**63 - 1, 2**63, U64]), st.integers(0, U64))
uint256 = st.one_of(uint64, st.sampled_from([U256, U256 - 1, 2**255]), st.integers(0, U256))
timestamps = st.one_of(st.integers(TIMESTAMP_MIN, TIMESTAMP_MAX), st.sampled_from([TIMESTAMP_MIN, TIMESTAMP_MAX]))
common = {
    "hash": hex_text(64),
    "chain_id": uint64,
    "block_number": uint64,
    "block_hash": st.none() | hex_text(64),
    "block_timestamp": timestamps,
    "transaction_index": st.none() | uint64,
    "from_address": hex_text(40),
    "value": uint256,
}
transactions = st.builds(
    Transaction,
    type=st.just("transaction"),
    log_index=st.none(),
    to_address=st.none() | hex_text(40),
    nonce=st.none() | uint64,
    gas=st.none() | uint64,
    gas_price=st.none() | uint256,
    input=st.none() | st.binary(max_size=80).map(lambda b: "0x" + b.hex()),
    receipt_status=st.none() | st.integers(0, 1),
    token_address=st.none(),
    **common,
) | st.builds(
    Transaction,
    type=st.just("token_transfer"),
    log_index=uint64,
    to_address=hex_text(40),
    nonce=st.none(),
    gas=st.none(),
    gas_price=st.none(),
    input=st.none(),
    receipt_status=st.none(),
    token_address=hex_text(40),
    **common,
)


def fields_of(tx: Transaction) -> dict:
    """Return a transaction as the message that ethereum-etl would send, absent fields null."""
    message = {name: getattr(tx, name) for name in tx.__struct_fields__}
    if tx.type == "token_transfer":
        message["transaction_hash"] = message.pop("hash")
    return message


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


SPELLINGS = {"number": lambda n: n, "decimal": str, "hex": hex, "capital hex": lambda n: f"0x{n:X}"}


@given(transactions, st.sampled_from(sorted(SPELLINGS)), st.booleans())
def test_round_trip_in_every_spelling_of_integers(tx: Transaction, spelling: str, is_sparse: bool):
    """A transaction comes back exactly, whether its integers are numbers, decimal strings or hex, nulls or gaps."""
    message = {k: SPELLINGS[spelling](v) if is_integer(v) else v for k, v in fields_of(tx).items()}
    if is_sparse:
        message = {k: v for k, v in message.items() if v is not None or k == "to_address"}

    assert tx == decode(json.dumps(message).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@st.composite
def spelt(draw) -> dict:
    """Draw a good message: each integer spelt its own way, mixed case, fields in any order among unknown ones."""
    message = fields_of(draw(transactions))
    for name, value in message.items():
        if is_integer(value):
            message[name] = SPELLINGS[draw(st.sampled_from(sorted(SPELLINGS)))](value)
        elif isinstance(value, str) and value.startswith("0x") and draw(st.booleans()):
            message[name] = "0x" + value[2:].upper()
    extras = draw(st.dictionaries(st.text(max_size=5), json_values, max_size=2))
    names = draw(st.permutations([*message, *extras.keys() - message.keys()]))
    return {name: message.get(name, extras.get(name)) for name in names}


NASTY = [
    None,
    True,
    False,
    0,
    1,
    2,
    -1,
    1.0,
    0.5,
    2**63,
    2**64,
    U256,
    U256 + 1,
    -(2**256),
    10**300,
    [],
    {},
    [1],
    {"a": 1},
]
NASTY += ["", "0", "-0", "-1", "+1", " 1", "1 ", "1_000", "٣", "²", "1e3", "0x", "0X1", "0x1", "-0x1", "0x-1", "0b1"]
NASTY += ["transaction", "token_transfer", "block", "0x0", "0x00", "0x0 0", "0xzz", "0x" + "0" * 80, "9" * 78, "9" * 79]
NASTY += [
    "0x" + "a" * 39,
    "0x" + "A" * 40,
    "0X" + "a" * 40,
    " x" + "a" * 40,
    "0x" + "a" * 39 + " ",
    "0x" + "a" * 39 + "５",
]
NASTY += ["0x" + "a" * 63, "0x" + "A" * 64, "0X" + "a" * 64, "0x" + "f" * 64, "0x1" + "0" * 64, "a" * 66, "é" * 42]
NASTY += [str(U256), str(U256 + 1), TIMESTAMP_MIN - 1, TIMESTAMP_MIN, TIMESTAMP_MAX, TIMESTAMP_MAX + 1, "\ud800", "\0"]
NAMES = sorted({*Transaction.__struct_fields__, "transaction_hash"})


@st.composite
def misspelt(draw) -> bytes:
    """Draw a good message and change, drop or repeat up to three of its fields."""
    pairs = list(draw(spelt()).items())
    for _ in range(draw(st.integers(0, 3))):
        name, value = draw(st.sampled_from(NAMES)), draw(st.sampled_from(NASTY) | json_values)
        if draw(st.booleans()):
            pairs = [pair for pair in pairs if pair[0] != name]
        if draw(st.integers(0, 3)):
            pairs.insert(draw(st.integers(0, len(pairs))), (name, value))
    text = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs)
    return f"{{{text}}}".encode()


PIECES = [b"", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b".", b"e", b" ", b"\n", b"\0", b"\xff"]
PIECES += [
    b"\xc3\xa9",
    b"\xef\xbb\xbf",
    b"null",
    b"true",
    b"NaN",
    b"Infinity",
    b"\\u0061",
    b"\\ud800",
    b"[" * 40,
    b"9" * 100,
]


@st.composite
def damaged(draw) -> bytes:
    """Draw a good message and put other bytes in up to three places."""
    raw = json.dumps(draw(spelt()), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.sampled_from([0, 0, 1, 2, 5, 10**6])))
        raw = raw[:start] + draw(st.sampled_from(PIECES) | st.binary(max_size=3)) + raw[end:]
    return raw


@given(spelt().map(lambda message: json.dumps(message).encode()))
def test_good_messages_get_the_plain_verdict(raw: bytes):
    """Messages without a fault are accepted by both readings alike, but for size, depth and numbers JSON lacks."""
    assert plain_verdict(raw) == verdict(raw)


@given(misspelt())
def test_misspelt_messages_get_the_plain_verdict(raw: bytes):
    """Accepted as the same transaction or rejected for the same reason, whatever stands in the fields."""
    assert plain_verdict(raw) == verdict(raw)


@given(damaged())
def test_damaged_messages_get_the_plain_verdict(raw: bytes):
    """Accepted as the same transaction or rejected for the same reason, whatever bytes went missing or came in."""
    assert plain_verdict(raw) == verdict(raw)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_arbitrary_bytes_get_the_plain_verdict(raw: bytes):
    """Nothing but a rejection comes of bytes that nobody meant as a message."""
    assert plain_verdict(raw) == verdict(raw)


@given(json_values.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_json_gets_the_plain_verdict(raw: bytes):
    """Nothing but a rejection comes of JSON that is no message."""
    assert plain_verdict(raw) == verdict(raw)


@given(st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b'"', b"\\", b'\\"', b"a"]), max_size=300).map(b"".join))
def test_brackets_and_quotes_get_the_plain_verdict(raw: bytes):
    """Depth is counted outside strings alone, closed or not."""
    assert plain_verdict(raw) == verdict(raw)
