"""What must hold for any bytes on the transactions topic, checked on one batch at a time.

Every message ends as exactly one of score, rejection and skip; what is scored or rejected says so in records that read
back; the past stays sound; and the same batch gives the same decisions in a pipeline that met it in one piece.
"""

from collections.abc import Sequence
from typing import get_args

import numpy as np

from features.accounts import Accounts
from features.errors import Reason
from models import registry
from models.scorer import Scorer
from service import simulator
from service.codec import Decoder, decode_score, encode_rejection
from service.pipeline import Message, Outputs, Pipeline
from service.policy import DECISIONS, policy

BYTES_MAX = 4096
ACCOUNTS_MAX = 256
"""Few, so that fuzzing soon evicts, re-uses slots and fills buckets."""

REASONS = frozenset(get_args(Reason))


class Harness:
    """A pipeline that goes on from batch to batch, as the service's does."""

    def __init__(self) -> None:
        scorer = Scorer.load(registry.model_path(""))
        self.pipeline = Pipeline(
            accounts=Accounts(accounts_max=ACCOUNTS_MAX, pairs_max=ACCOUNTS_MAX),
            scorer=scorer,
            policy=policy(scorer.thresholds, None),
            decoder=Decoder(chain_id=1, message_bytes_max=BYTES_MAX),
        )
        self.n_cases = 0
        self.n_scored = 0
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
        self.n_cases += len(values)
        self.n_scored += len(outputs.scores)
        self._check(values, outputs, first)
        return outputs

    def _check(self, values: Sequence[bytes | None], outputs: Outputs, first: int) -> None:
        scored = [decode_score(value) for _, value in outputs.scores]
        offsets = [score.source.offset for score in scored]
        offsets += [rejection.source.offset for rejection in outputs.rejections]
        skipped = [first + i for i, value in enumerate(values) if not value]
        assert sorted(offsets + skipped) == list(range(first, first + len(values))), "not exactly one end each"
        assert outputs.n_skipped == len(skipped)
        for rejection in outputs.rejections:
            key, value, headers = encode_rejection(rejection)
            assert rejection.reason in REASONS
            assert (key, value) == (b"key", values[rejection.source.offset - first])
            assert rejection.detail.replace("…", "").isascii()
            assert len(dict(headers)["detail"]) <= 400, "a detail without bound"
        for (key, _), score in zip(outputs.scores, scored, strict=True):
            assert 0.0 <= score.score <= 1.0
            assert score.decision in DECISIONS
            assert key.startswith(score.hash.encode())
            assert score.decision != "allow" or not score.reasons
        assert len(outputs.alerts) == sum(score.decision != "allow" for score in scored)
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
        Accounts(accounts_max=ACCOUNTS_MAX, pairs_max=ACCOUNTS_MAX).restore(accounts.arrays())
