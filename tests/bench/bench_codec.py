"""What the codec costs a message: `python -m tests.bench.bench_codec`.

Each case decodes or encodes 200 batches of 500 different messages; the figures are over the batches, per message.
"""

import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from features.errors import RejectedError
from service.codec import Decoder, encode_score
from service.messages import Contribution, Score, Source

N_BATCHES, N_MESSAGES, SEED = 200, 500, 11
TARGETS_US = {"decode transaction": 3.5, "encode score": 1.2}


def main() -> None:
    """Print machine, commit, seed, and a line for each case."""
    print(f"{processor()}, Python {platform.python_version()}, msgspec {msgspec.__version__}, {commit()}, seed {SEED}")
    decoder = Decoder(chain_id=1, message_bytes_max=1 << 20)
    plain = [transaction() for _ in range(N_MESSAGES)]
    in_hex = [{k: hex(v) if isinstance(v, int) else v for k, v in message.items()} for message in plain]
    cases = {
        "decode transaction": plain,
        "decode with block hash, input": [m | {"block_hash": hex_text(32), "input": hex_text(68)} for m in plain],
        "decode value as a string": [m | {"value": str(m["value"])} for m in plain],
        "decode checksummed addresses": [m | {"to_address": "0xF" + m["to_address"][3:]} for m in plain],
        "decode integers as 0x hex": in_hex,
        "reject negative value": [m | {"value": -1} for m in plain],
    }
    for name, messages in cases.items():
        raws = [json.dumps(message, separators=(",", ":")).encode() for message in messages]
        report(name, raws, lambda raw: attempt(decoder, raw))
    report("encode score", [score(m, []) for m in plain], encode_score)
    reason = Contribution("sender_n_1h", 12.5, 0.7, "The sender made 12 transactions in the last hour.")
    report("encode alert", [score(m, [reason] * 3) for m in plain], encode_score)


def report(name: str, values: list, call: Callable) -> None:
    """Print what a call costs; the lambda around `decode` adds about 0.1 µs to it."""
    costs_us = []
    for _ in range(N_BATCHES):
        start = time.perf_counter()
        for value in values:
            call(value)
        costs_us.append((time.perf_counter() - start) / len(values) * 1e6)
    costs_us.sort()
    size = len(values[0]) if isinstance(values[0], bytes) else len(encode_score(values[0]))
    target = f"  target {TARGETS_US[name]}" if name in TARGETS_US else ""
    p50, p99 = statistics.median(costs_us), costs_us[int(0.99 * len(costs_us))]
    print(f"{name:32} {size:4} bytes  p50 {p50:5.2f} µs  p99 {p99:5.2f} µs  max {costs_us[-1]:5.2f} µs{target}")


def attempt(decoder: Decoder, raw: bytes) -> object:
    """Decode a message or take its rejection."""
    try:
        return decoder.decode(raw)
    except RejectedError as error:
        return error


def transaction() -> dict:
    """Return a message as ethereum-etl writes it, without what the codec ignores."""
    return {
        "type": "transaction",
        "hash": hex_text(32),
        "nonce": RANDOM.randrange(1000),
        "transaction_index": RANDOM.randrange(200),
        "from_address": hex_text(20),
        "to_address": hex_text(20),
        "value": RANDOM.randrange(10**20),
        "gas": 21000,
        "gas_price": 20_000_000_000,
        "input": "0x",
        "block_timestamp": 1_546_300_800 + RANDOM.randrange(10**6),
        "block_number": 7_000_000,
    }


def score(message: dict, reasons: list[Contribution]) -> Score:
    """Return a score of a message."""
    sender, recipient, tx_hash = message["from_address"], message["to_address"], message["hash"]
    identity = ("transaction", 1, tx_hash, None, message["block_number"], message["block_timestamp"], sender, recipient)
    model = msgspec.Raw(b'{"name":"champion","version":"1","digest":"' + b"a" * 64 + b'"}')
    source = Source("transactions", 0, RANDOM.randrange(10**9))
    return Score(*identity, RANDOM.random(), "allow", reasons, [], model, "0" * 16, source, "scored", 1_700_000_000_000)


def hex_text(n_bytes: int) -> str:
    """Return random bytes as 0x hex."""
    return "0x" + RANDOM.randbytes(n_bytes).hex()


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.split(": ")[1] for line in lines if line.startswith("model name"))


def commit() -> str:
    """Return the commit that is measured."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, check=True, text=True).stdout.strip()


RANDOM = random.Random(SEED)

if __name__ == "__main__":
    main()
