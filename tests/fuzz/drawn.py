"""Messages spoilt on purpose: good ones with fields exchanged, bytes flipped, parts cut, doubled and nested.

Every draw comes from one seed, so that a run can be had again.
"""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

from service import simulator

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**256 - 1, 2**256, -(2**256), 10**100,
    0.0, -0.0, 1.5, 1e308, 1e-320, "", "0", "-0", "0x", "0x0", "-0x1", "0X1", "00000000000000000001", "1e3", "१२३",
    "0x" + "0" * 40, "0x" + "f" * 40, "0x" + "F" * 40, "0x" + "g" * 40, "0x" + "0" * 64, "0x" + "a" * 63, " 1", "1 ",
    "9" * 79, "9" * 5000, "\x00", "\ud800", "\U0001f600", "transaction", "token_transfer", "block", "TRANSACTION",
    "orphaned_block", [], {}, [[]], {"a": {"b": [1, 2, {"c": None}]}}, 1230940799, 1230940800, 4102444800, 4102444801,
    1532118564, "0x095ea7b3" + "0" * 128, "0xa9059cbb", "0xd505accf", "0xa22cb465",
)  # fmt: skip

PIECES = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"-Infinity", b"1e999", b"\xff", b"\xed\xa0\x80",
    b"\xef\xbb\xbf", b"\x00", b"\\u0000", b"\\ud800", b'"type":', b'"hash":', b"{" * 40, b"[" * 2000, b"9" * 500, b"\n",
)  # fmt: skip


def values(seed: int) -> Iterator[bytes | None]:
    """Yield messages without end: one in eight as it was, the others spoilt."""
    random = Random(seed)
    good = [*simulator.messages(seed % 1000, 2_000)]
    while True:
        raw = random.choice(good)
        way = random.randrange(8)
        if way == 0:
            yield raw
        elif way < 5:
            yield _fields(raw, random)
        elif way < 7:
            yield _bytes(raw, random)
        else:
            yield random.choice((None, b"", random.randbytes(random.randrange(200)), raw * 20, b"[" + raw + b"]"))


def _fields(raw: bytes, random: Random) -> bytes:
    """Exchange, drop and add fields of a good message."""
    message = json.loads(raw)
    names = [*message, "chain_id", "nonce", "gas", "gas_price", "receipt_status", "log_index", "block_hash", "extra"]
    for _ in range(random.randrange(1, 4)):
        name = random.choice(names)
        if random.random() < 0.2:
            message.pop(name, None)
        elif random.random() < 0.2:
            message[name] = message.get(random.choice(names))
        else:
            message[name] = random.choice(NASTY)
    return json.dumps(message, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")


def _bytes(raw: bytes, random: Random) -> bytes:
    """Flip, cut, insert and double bytes of a good message."""
    spoilt = bytearray(raw)
    for _ in range(random.randrange(1, 6)):
        at = random.randrange(len(spoilt) + 1)
        way = random.randrange(4)
        if way == 0 and at < len(spoilt):
            spoilt[at] ^= 1 << random.randrange(8)
        elif way == 1:
            del spoilt[at : at + random.randrange(1, 20)]
        elif way == 2:
            spoilt[at:at] = random.choice(PIECES)
        else:
            spoilt[at:at] = spoilt[at : at + random.randrange(1, 40)]
    return bytes(spoilt)
