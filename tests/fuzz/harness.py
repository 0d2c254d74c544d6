"""What must hold for any bytes on the transactions topic, checked on one batch at a time.

Every message ends as exactly one of score, rejection and skip, or, where the chain was reorganised, as an announcement
that was followed, as a transaction of an orphaned block, or as what the service refuses and ends with; what is scored,
rejected or taken back says so in records that read back; the past stays sound.
"""

import json
from collections.abc import Sequence
from typing import get_args

import msgspec
import numpy as np

from features.accounts import Accounts
from features.errors import Reason
from features.journal import BLOCK_TRANSACTIONS, Journal
from models import registry
from models.scorer import Scorer
from service import simulator
from service.codec import Decoder, decode_score, encode_rejection
from service.pipeline import Message, Outputs, Pipeline
from service.policy import DECISIONS, policy

BYTES_MAX = 4096
ACCOUNTS_MAX = 256
"""Few, so that fuzzing soon evicts, re-uses slots and fills buckets."""

DEPTH = 4
REASONS = frozenset(get_args(Reason))


class Status(msgspec.Struct):
    """What a record on the scores topic is."""

    status: str


def empty_past() -> Accounts:
    """Return accounts that a few blocks can be taken back from."""
    return Accounts(accounts_max=ACCOUNTS_MAX, pairs_max=ACCOUNTS_MAX, undo_transactions=DEPTH * BLOCK_TRANSACTIONS)


class Harness:
    """A pipeline that goes on from batch to batch, as the service's does."""

    def __init__(self) -> None:
        scorer = Scorer.load(registry.model_path(""))
        accounts = empty_past()
        Journal(accounts, chain_id=1, depth=DEPTH)
        self.pipeline = Pipeline(
            accounts=accounts,
            scorer=scorer,
            policy=policy(scorer.thresholds, None),
            decoder=Decoder(chain_id=1, message_bytes_max=BYTES_MAX),
        )
        self.n_cases = self.n_scored = self.n_announced = self.n_refused = 0
        # Whatever must be compiled is, before a slow case could be taken for one that hangs.
        for n in (1, 200):
            self.batch(simulator.messages(1, n))
        self.n_cases = self.n_scored = 0

    def batch(self, values: Sequence[bytes | None]) -> Outputs:
        """Process one batch and check what came of it.

        Raises:
            AssertionError: A message ended as none or as several, or a record does not say what it must.
        """
        first = self.n_cases
        messages = [Message(value, b"key", "fuzz", 0, first + i, 0) for i, value in enumerate(values)]
        outputs = self.pipeline.process(messages, now_ms=0)
        n_read = len(values) if outputs.refusal is None else outputs.n_read
        self.n_cases += n_read
        self.n_scored += len(outputs.scores) - outputs.n_retracted
        self.n_announced += outputs.n_announced
        self._check(values[:n_read], outputs, first)
        if outputs.refusal is not None:
            # Here the service ends; the messages behind are looked at as if that one had not been.
            assert _is_of_a_chain(values[n_read]), "what is refused is no announcement and no transaction"
            self.n_refused += 1
            self.n_cases += 1
            self.batch(values[n_read + 1 :])
        return outputs

    def _check(self, values: Sequence[bytes | None], outputs: Outputs, first: int) -> None:
        records = [(key, value) for key, value in outputs.scores if _status(value) != "retracted"]
        scored = [decode_score(value) for _, value in records]
        offsets = [score.source.offset for score in scored]
        offsets += [rejection.source.offset for rejection in outputs.rejections]
        skipped = [first + i for i, value in enumerate(values) if not value]
        ended, all_of_them = offsets + skipped, set(range(first, first + len(values)))
        left = all_of_them - set(ended)
        assert len(ended) == len(set(ended)), "not exactly one end each"
        assert set(ended) <= all_of_them, "not exactly one end each"
        assert len(left) == outputs.n_announced + outputs.n_orphaned, "not exactly one end each"
        assert all(_is_of_a_chain(values[offset - first]) for offset in left), "not exactly one end each"
        assert outputs.n_skipped == len(skipped)
        assert len(outputs.scores) - len(records) == outputs.n_retracted
        for rejection in outputs.rejections:
            key, value, headers = encode_rejection(rejection)
            assert rejection.reason in REASONS
            assert (key, value) == (b"key", values[rejection.source.offset - first])
            assert rejection.detail.replace("…", "").isascii()
            assert len(dict(headers)["detail"]) <= 400, "a detail without bound"
        for (key, _), score in zip(records, scored, strict=True):
            assert 0.0 <= score.score <= 1.0
            assert score.decision in DECISIONS
            assert key.startswith(score.hash.encode())
            assert score.decision != "allow" or not score.reasons
        alerts = [value for _, value in outputs.alerts if _status(value) != "retracted"]
        assert len(alerts) == sum(score.decision != "allow" for score in scored)
        rows = outputs.verdicts.rows
        assert not np.isinf(rows).any(), "a feature is infinite"
        accounts = self.pipeline.accounts
        assert accounts.n_accounts <= ACCOUNTS_MAX

    def check_past(self) -> None:
        """Check that the account table could be saved and read back: its index leads to each account.

        Raises:
            StateError: It could not.
        """
        accounts = self.pipeline.accounts
        empty_past().restore(accounts.arrays())


def _status(record: bytes) -> str:
    return msgspec.json.decode(record, type=Status).status


def _is_of_a_chain(value: bytes | None) -> bool:
    """Say whether a message is JSON of a kind that a reorganisation concerns."""
    return value is not None and json.loads(value)["type"] in (
        "orphaned_block",
        "transaction",
        "token_transfer",
    )
