"""The codec: golden messages, and for each rejection reason the messages that get it."""

import io
import json
from pathlib import Path

import msgspec
import pytest

from features.errors import Reason, RejectedError
from features.transaction import TIMESTAMP_MAX, TIMESTAMP_MIN, Transaction
from service.codec import Decoder, decode_score, encode_rejection, encode_score, read_lines
from service.messages import Contribution, ListHit, Rejection, Score, Source

GOLDEN = Path(__file__).parents[1] / "golden" / "messages"
BYTES_MAX = 4096
decode = Decoder(chain_id=1, message_bytes_max=BYTES_MAX).decode

TX = json.loads((GOLDEN / "accepted" / "transaction.json").read_bytes())
TRANSFER = json.loads((GOLDEN / "accepted" / "token_transfer.json").read_bytes())
ADDRESS = TX["from_address"]


def encoded(message: object) -> bytes:
    """Return a message as JSON."""
    return json.dumps(message).encode()


def rejection(raw: bytes) -> RejectedError:
    """Return the error with which a message is rejected."""
    with pytest.raises(RejectedError) as caught:
        decode(raw)
    return caught.value


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("accepted/*.record.json")), ids=lambda path: path.name)
def test_golden_message_becomes_its_record(path: Path):
    """Every variant of ethereum-etl's messages becomes the record that stands beside it, to the last digit."""
    expected = msgspec.json.decode(path.read_bytes(), type=Transaction, strict=False)

    assert expected == decode(path.with_name(path.name.replace(".record", "")).read_bytes())


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("rejected/*.json")), ids=lambda path: path.stem)
def test_golden_message_is_rejected(path: Path):
    """Each rejected golden message is rejected for the reason that is its name."""
    assert path.stem == rejection(path.read_bytes()).reason


def test_every_reason_has_a_golden_message():
    """Only the reason that takes a large file has none."""
    reasons = {path.stem for path in GOLDEN.glob("rejected/*.json")}

    assert reasons == set(Reason.__args__) - {"too_large"}


def without(message: dict, *names: str) -> dict:
    """Return a message that lacks some fields."""
    return {name: value for name, value in message.items() if name not in names}


def integer_cases():
    """Yield spellings of an integer that none of the fields may take."""
    wrong = [True, False, 1.0, 1e3, [], {}, "", " ", "1 ", " 1", "+1", "1_0", "1.0", "1e3", "0x", "0X1", "0xg", "x1"]
    wrong += ["٣", "²", "１", "0b1", "0o7", "1\n", "0x1\n", "-", "--1", "0x-1", "null", "true", "NaN"]
    for value in wrong:
        for name in ("value", "block_number", "gas_price", "chain_id", "block_timestamp"):
            yield "wrong_type", TX | {name: value}, name
    for value in (-1, "-1", "-0x1", -(2**300), "-" + "9" * 200):
        for name in ("value", "block_number", "nonce", "gas", "gas_price", "receipt_status", "transaction_index"):
            yield "negative_value", TX | {name: value}, name
    for value in (2**256, str(2**256), hex(2**256), 10**300, "9" * 3000, "0x" + "f" * 3000):
        for name in ("value", "block_number", "gas_price", "receipt_status"):
            yield "value_over_256_bit", TX | {name: value}, name
    for name in ("block_number", "nonce", "gas", "transaction_index", "chain_id"):
        yield "wrong_type", TX | {name: 2**64}, "0 to 2**64 - 1"
        yield "wrong_type", TX | {name: 2**256 - 1}, "0 to 2**64 - 1"
    yield "wrong_type", TX | {"receipt_status": 2}, "allowed: 0, 1"
    yield "negative_value", TRANSFER | {"log_index": -1}, "log_index"
    yield "wrong_type", TRANSFER | {"log_index": "x"}, "log_index"


def text_cases():
    """Yield hex strings that are none, and values that are no strings."""
    digits = ADDRESS[2:]
    wrong = [digits, ADDRESS[:-1], ADDRESS + "0", "0X" + digits, "", "0x", " " + ADDRESS[1:], ADDRESS[:-1] + " "]
    wrong += [ADDRESS[:-1] + "g", ADDRESS[:-1] + "\n", ADDRESS + "\n", ADDRESS[:20] + " " + ADDRESS[21:]]
    wrong += [ADDRESS[:-1] + "５", "\ud800" + ADDRESS[1:], "0x0x" + digits[2:], ADDRESS[:-2] + "K1"]
    for value in wrong:
        for name in ("from_address", "to_address"):
            yield "malformed_address", TX | {name: value}, name
        yield "malformed_address", TRANSFER | {"token_address": value}, "token_address"
        yield "malformed_hash", TX | {"hash": value}, "hash"
        yield "malformed_hash", TX | {"block_hash": value}, "block_hash"
        yield "malformed_hash", TRANSFER | {"transaction_hash": value}, "transaction_hash"
    for value in (1, 1.5, True, [], {}):
        for name in ("hash", "from_address", "to_address", "block_hash", "input"):
            yield "wrong_type", TX | {name: value}, name
    for value in ("0x0", "a9059cbb", "0X00", "0x0g", "0x 0", "0x00 ", "0x0\n", " ", "x", "0x5５"):
        yield "wrong_type", TX | {"input": value}, "input is "


def shape_cases():
    """Yield messages whose fields, type or time are not there, null or out of range."""
    for name in ("hash", "from_address", "to_address", "value", "block_number", "block_timestamp"):
        yield "missing_field", without(TX, name), f"{name} is absent"
        if name != "to_address":
            yield "missing_field", TX | {name: None}, f"{name} is null"
    for name in ("transaction_hash", "log_index", "from_address", "to_address", "token_address", "value"):
        yield "missing_field", without(TRANSFER, name), f"{name} is absent"
        yield "missing_field", TRANSFER | {name: None}, f"{name} is null"
    yield "missing_field", without(TX, "type"), "type is absent"
    yield "missing_field", TX | {"type": None}, "type is null"
    yield "missing_field", {}, "type is absent"
    yield "wrong_type", TX | {"type": 1}, "type is 1"
    for kind in ("block", "log", "", "Transaction", "transaction ", "\ud800"):
        yield "unsupported_type", TX | {"type": kind}, "type is "
    for time in (TIMESTAMP_MIN - 1, TIMESTAMP_MAX + 1, 0, -1, 2**256, str(TIMESTAMP_MAX + 1), "-1", "0x0"):
        yield "timestamp_out_of_range", TX | {"block_timestamp": time}, f"{TIMESTAMP_MIN} to {TIMESTAMP_MAX}"
    for message in ([], [TX], "transaction", 5, 1.5, True, None):
        yield "wrong_type", message, "a JSON object"


def order_cases():
    """Yield messages with two faults and the one that counts."""
    yield "missing_field", without(TX, "block_number") | {"value": -1}, "block_number"
    yield "unsupported_type", {"type": "trace"}, "trace"
    yield "malformed_hash", TX | {"hash": "x", "from_address": "x", "value": -1}, "hash"
    yield "malformed_address", TX | {"to_address": "x", "value": -1, "block_timestamp": 0}, "to_address"
    yield "negative_value", TX | {"value": -1, "block_timestamp": 0, "nonce": "x"}, "value"
    yield "timestamp_out_of_range", TX | {"block_timestamp": 0, "nonce": -1}, "block_timestamp"


CASES = [*integer_cases(), *text_cases(), *shape_cases(), *order_cases()]


@pytest.mark.parametrize(("reason", "message", "named"), CASES)
def test_message_is_rejected_for_the_most_specific_reason(reason: str, message: object, named: str):
    """Each fault gets its reason, and the detail names the field and stays short printable ASCII."""
    error = rejection(encoded(message))

    assert (reason, True) == (error.reason, named in error.detail), error.detail
    assert len(error.detail) < 250
    assert error.detail.replace("…", "").isascii()
    assert error.detail.isprintable()


def with_field(text: bytes) -> bytes:
    """Return a good message with a piece of JSON as an unknown field's value."""
    return encoded(TX)[:-1] + b', "unknown": ' + text + b"}"


@pytest.mark.parametrize(
    ("reason", "raw"),
    [
        ("not_json", b""),
        ("not_json", b" "),
        ("not_json", b"{"),
        ("not_json", encoded(TX)[:-1]),
        ("not_json", encoded(TX) + b" x"),
        ("not_json", encoded(TX) * 2),
        ("not_json", b"\xef\xbb\xbf" + encoded(TX)),
        ("not_json", encoded(TX).replace(b'"', b"'")),
        ("not_json", with_field(b"NaN")),
        ("not_json", with_field(b"-Infinity")),
        ("not_json", with_field(b"01")),
        ("not_json", with_field(b"[1,]")),
        ("not_json", with_field(b'"\x01"')),
        ("not_json", with_field(b'"\\x"')),
        ("not_json", encoded(TX).replace(b"1500000000000000000", b"NaN")),
        ("not_utf8", b"\xff"),
        ("not_utf8", with_field(b'"\xff"')),
        ("not_utf8", with_field(b'"\xed\xa0\x80"')),
        ("not_utf8", with_field(b'"\xc0\xaf"')),
        ("not_utf8", encoded(TX).decode().encode("utf-16")),
        ("too_large", encoded(TX).ljust(BYTES_MAX + 1)),
        ("too_large", b"\xff" * (BYTES_MAX + 1)),
        ("too_deep", with_field(b"[" * 32 + b"]" * 32)),
        ("too_deep", b"[" * 4000),
        ("too_deep", b'{"a":' * 800),
        ("too_deep", with_field(b'["]", ' * 32 + b"1" + b"]" * 32)),
        ("wrong_type", encoded(TX).replace(b"1500000000000000000", b"1e999")),
        ("value_over_256_bit", encoded(TX | {"x": 0}).replace(b"1500000000000000000", b"9" * 3000)),
        ("negative_value", encoded(TX | {"x": 0}).replace(b"1500000000000000000", b"-" + b"9" * 3000)),
    ],
)
def test_bytes_are_rejected(reason: str, raw: bytes):
    """Bytes that are no JSON object of bounded size and depth are rejected before any field is looked at."""
    assert reason == rejection(raw).reason


@pytest.mark.parametrize("n_digits", [100, 4300, 4301, 100_000])
@pytest.mark.parametrize(("sign", "reason"), [("", "value_over_256_bit"), ("-", "negative_value")])
def test_integer_of_any_length_is_classified(n_digits: int, sign: str, reason: str):
    """Neither msgspec's nor Python's limit on digits decides the reason."""
    raw = encoded(TX).replace(b"1500000000000000000", sign.encode() + b"9" * n_digits)

    with pytest.raises(RejectedError) as caught:
        Decoder(chain_id=1, message_bytes_max=1 << 20).decode(raw)

    assert reason == caught.value.reason


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "raw",
    [
        b"{" * 40 + b'"' + b'\\"' * 500_000,
        b"[" * 40 + b'"' + b"\\" * 1_000_001,
        b"[" * 1_000_000,
        b"[]" * 500_000,
        b'{"a":' + b'"[' * 500_000,
        b'"' * 1_000_000,
        encoded(TX).replace(b"1500000000000000000", b"9" * 1_000_000),
        encoded(TX | {"value": "9" * 1_000_000}),
        encoded(TX | {"value": "0x" + "f" * 1_000_000}),
        encoded(TX | {"input": "0x" + "0g" * 500_000}),
    ],
    ids=range(10),
)
def test_hostile_megabyte_is_rejected_in_linear_time(raw: bytes):
    """A megabyte made to be slow takes at most 0.15 s; at the square of its length it would take minutes."""
    with pytest.raises(RejectedError):
        Decoder(chain_id=1, message_bytes_max=1 << 20).decode(raw)


@pytest.mark.parametrize(
    "raw",
    [
        with_field(b"[" * 31 + b"]" * 31),
        with_field(b"[" + b"[]," * 500 + b"[]]"),
        with_field(b'"' + b"[" * 500 + b'"'),
        with_field(b'"' + b'\\"[' * 500 + b'"'),
        with_field(b'"\\ud800"'),
        with_field(b'"\xf0\x9f\xa6\x85"'),
        with_field(b"1e999"),
        with_field(b"9" * 2000),
        b" \r\n\t" + encoded(TX) + b"\n",
        encoded(TX)[:-1] + b', "value": 1500000000000000000}',
        b'{"value": true, "type": "block", ' + encoded(TX)[1:],
        encoded(TX).ljust(BYTES_MAX),
        encoded(TX).replace(b'"value"', b'"val\\u0075e"'),
        json.dumps(TX).replace('"hash"', '"h\\u0061sh"').encode(),
    ],
)
def test_oddly_written_message_is_accepted(raw: bytes):
    """Unknown fields, blanks, escapes and repeated keys, of which the last counts, change nothing."""
    assert decode(encoded(TX)) == decode(raw)


def test_time_limits_are_included():
    """The first and the last second of the range are accepted, in every spelling."""
    for time in (TIMESTAMP_MIN, TIMESTAMP_MAX):
        for spelt in (time, str(time), hex(time)):
            assert time == decode(encoded(TX | {"block_timestamp": spelt})).block_timestamp


def test_leading_zeros_are_no_digits():
    """Zero-padded strings, as some exporters write, are the numbers they stand for."""
    for spelt in ("0" * 100 + "7", "0x" + "0" * 100 + "7", "07", "0x07"):
        assert decode(encoded(TX | {"value": spelt})).value == 7
    for spelt in (0, "0", "00", "0x0", "0x00", "-0"):
        assert decode(encoded(TX | {"value": spelt})).value == 0
    assert decode(encoded(TX).replace(b"1500000000000000000", b"-0")).value == 0


def test_empty_input_is_a_call_without_data():
    """Senders write no data as an empty string or as 0x; what is absent stays unknown."""
    assert decode(encoded(TX | {"input": ""})).input == "0x"
    assert decode(encoded(TX | {"input": "0x"})).input == "0x"
    assert decode(encoded(TX | {"input": None})).input is None
    assert decode(encoded(without(TX, "input"))).input is None


def test_chain_is_the_settings_where_the_message_names_none():
    """The default chain comes from the settings, a named one from the message, zero included."""
    other = Decoder(chain_id=56, message_bytes_max=BYTES_MAX).decode

    assert other(encoded(TX)).chain_id == 56
    assert other(encoded(TX | {"chain_id": 0})).chain_id == 0
    assert other(encoded(TRANSFER)).chain_id == 56
    assert other(encoded(TRANSFER | {"chain_id": "0x89"})).chain_id == 137


def test_token_transfer_has_no_transaction_details():
    """A transaction's own fields in a token transfer are unknown fields, whatever they hold."""
    assert decode(encoded(TRANSFER)) == decode(encoded(TRANSFER | {"nonce": "x", "input": 5, "receipt_status": -1}))


def test_detail_is_cut():
    """A megabyte of nonsense makes no megabyte of detail."""
    error = rejection(encoded(TX | {"input": "y" * 3000}))

    assert len(error.detail) < 200
    assert "…" in error.detail


SCORE = Score(
    type="token_transfer",
    chain_id=1,
    hash=TX["hash"],
    log_index=17,
    block_number=7_000_000,
    block_timestamp=1_546_300_800,
    from_address=ADDRESS,
    to_address=None,
    score=0.1 + 0.2,
    decision="review",
    reasons=[Contribution("sender_n_1h", 12.5, 0.7, "The sender made 12 transactions in an hour — unusual.")],
    list_hits=[ListHit(ADDRESS, "from", "ofac")],
    model=msgspec.Raw(b'{"name":"kestrel","version":"1","digest":"ab"}'),
    schema="0123456789abcdef",
    source=Source("transactions", 3, 2**40),
    status="scored",
    scored_at=1_700_000_000_000,
)


def test_score_survives_the_trip():
    """A score read back is the score written, floats to the last bit, the model an object and not a string."""
    raw = encode_score(SCORE)

    assert decode_score(raw) == SCORE
    assert json.loads(raw)["model"] == {"name": "kestrel", "version": "1", "digest": "ab"}
    assert json.loads(raw)["score"] == 0.1 + 0.2


def test_score_reader_refuses_what_is_none():
    """Another message on the scores topic is an error, not a half-empty score."""
    with pytest.raises(msgspec.DecodeError):
        decode_score(encoded(TX))


@pytest.mark.parametrize("key", [None, b"", b"\xff"])
def test_rejection_keeps_the_original_bytes(key):
    """The dead-letter record has the message's own key and value; reason and origin stand in headers."""
    rejected = Rejection(b"\xff\x00", key, "not_utf8", "byte 0 …", Source("transactions", 2, 7))

    record_key, value, headers = encode_rejection(rejected)

    assert (record_key, value) == (key, b"\xff\x00")
    assert dict(headers) == {
        "reason": b"not_utf8",
        "detail": "byte 0 …".encode(),
        "source_topic": b"transactions",
        "source_partition": b"2",
        "source_offset": b"7",
    }


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_are_messages(end: bytes):
    """Blank lines and line ends fall away, and the last line needs no end."""
    stream = io.BytesIO(end.join([b'{"a": 1}', b"", b"  ", b'{"b": 2}', b"{}"]))

    assert list(read_lines(stream, message_bytes_max=100)) == [b'{"a": 1}', b'{"b": 2}', b"{}"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("n_bytes", range(6, 30))
def test_overlong_line_is_cut_just_past_the_limit(n_bytes: int, end: bytes):
    """A line over the limit comes as limit + 1 bytes and takes nothing of the next line with it."""
    limit = 8
    stream = io.BytesIO(b"x" * n_bytes + end + (b"next" if end else b""))

    lines = list(read_lines(stream, message_bytes_max=limit))

    assert lines == [b"x" * min(n_bytes, limit + 1), *([b"next"] if end else [])]
