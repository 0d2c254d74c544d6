"""The golden stream: simulated transactions with the scores that the shipped model gave them.

    python -m tests.stream        # writes the expected scores anew, after a wanted change of features or model
    python -m tests.stream --all  # draws the transactions and the list anew as well

A difference that a change explains is committed with it; any other one is a mistake.
"""

import csv
import gzip
import itertools
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from features import screening
from features.accounts import Accounts
from models import registry
from models.scorer import Scorer
from service import simulator
from service.codec import Decoder, decode_score
from service.pipeline import Message, Pipeline
from service.policy import policy
from service.simulator import Simulated

FOLDER = Path(__file__).resolve().parent / "golden" / "stream"
MESSAGES = FOLDER / "messages.jsonl.gz"
LIST = FOLDER / "list.csv"
SCORES = FOLDER / "scores.jsonl"

SEED = 7
N = 1_500
"""220 KB packed: hashes and addresses do not compress."""

DRAWN = 20_000
"""Transactions of some five days, of which those are kept that show most: the frauds and their victims' own."""


class Expected(Struct, frozen=True, omit_defaults=True):
    """What one transaction must come out as."""

    id: str
    score: float
    decision: str
    reasons: tuple[str, ...] = ()
    """Features of the reasons, the strongest first."""

    lists: tuple[str, ...] = ()
    """Side and list of each hit."""


def messages() -> list[bytes]:
    """Return the stream's messages."""
    return gzip.decompress(MESSAGES.read_bytes()).splitlines()


def scored(values: list[bytes], *, batch: int) -> list[Expected]:
    """Return what the shipped model makes of messages, with an empty past before the first."""
    lists = screening.read([LIST])
    scorer = Scorer.load(registry.model_path(""))
    pipeline = Pipeline(
        accounts=Accounts(accounts_max=10_000, pairs_max=20_000, screening=lists),
        scorer=scorer,
        policy=policy(scorer.thresholds, lists),
        decoder=Decoder(chain_id=1, message_bytes_max=1 << 20),
    )
    stream = [Message(value, None, "transactions", 0, offset, 0) for offset, value in enumerate(values)]
    outputs = [pipeline.process(stream[i : i + batch], now_ms=0) for i in range(0, len(stream), batch)]
    return [_expected(key, value) for output in outputs for key, value in output.scores]


def expected() -> list[Expected]:
    """Return what the stream must come out as."""
    return [msgspec.json.decode(line, type=Expected) for line in SCORES.read_bytes().splitlines()]


def _expected(key: bytes, value: bytes) -> Expected:
    score = decode_score(value)
    return Expected(
        id=key.decode(),
        score=score.score,
        decision=score.decision,
        reasons=tuple(reason.feature for reason in score.reasons),
        lists=tuple(f"{hit.side} {hit.list}" for hit in score.list_hits),
    )


def drawn() -> list[Simulated]:
    """Return the stream anew: of the simulator's first transactions the frauds, and the payments of their victims."""
    simulated = list(itertools.islice(simulator.stream(SEED), DRAWN))
    senders = [msgspec.json.decode(one.value)["from_address"] for one in simulated]
    victims = {sender for sender, one in zip(senders, simulated, strict=True) if one.kind is not None}
    return [one for sender, one in zip(senders, simulated, strict=True) if one.kind is not None or sender in victims][
        :N
    ]


def _draw() -> None:
    """Write messages and list: who defrauds in the stream is known an hour after its first transaction there."""
    stream = drawn()
    names = {entry.address: entry.list for entry in simulator.flagged(simulator.inhabited(SEED), DRAWN)}
    first_seen: dict[str, int] = {}
    for one in stream:
        message = msgspec.json.decode(one.value)
        for address in (message["from_address"], message["to_address"]):
            if address in names:
                first_seen.setdefault(address, one.timestamp)
    # No time and no name in the header: the same messages give the same file.
    MESSAGES.write_bytes(gzip.compress(b"\n".join(one.value for one in stream) + b"\n", mtime=0))
    with LIST.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(screening.COLUMNS)
        writer.writerows((address, names[address], time_s + 3600) for address, time_s in sorted(first_seen.items()))


def main() -> None:
    """Write the golden files."""
    FOLDER.mkdir(exist_ok=True)
    if "--all" in sys.argv[1:]:
        _draw()
    lines = [msgspec.json.encode(one) for one in scored(messages(), batch=N)]
    SCORES.write_bytes(b"\n".join(lines) + b"\n")


if __name__ == "__main__":
    main()
