"""From a probability and what the lists and the rules say to a decision."""

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features import schema
from features.compiled import compiled
from features.screening import FLAGGED, Screening

DECISIONS = ("allow", "review", "block")
"""In rising severity; a decision's code is its place here."""

ALLOW, REVIEW, BLOCK = range(3)

BLOCKED_LISTS = frozenset({"sanctioned"})
"""Either side on one of these: blocked whatever the score. On another flagged list: reviewed at least."""

_TO_IMITATES = schema.index("to_imitates")
_PAIR_COUNT = schema.index("pair_count")


@compiled
def _is_imitation(row):
    # Poisoners plant the look-alike by a transfer of nothing in the victim's name; from then on the genuine recipient
    # looks like it, too, but has been paid before.
    return row[_TO_IMITATES] > 0 and not row[_PAIR_COUNT] > 0


@compiled
def _decide(probabilities, rows, hits, review, block, review_bits, block_bits, codes):
    for i in range(probabilities.shape[0]):
        code = ALLOW
        if probabilities[i] >= review or hits[i] & review_bits != 0 or _is_imitation(rows[i]):
            code = REVIEW
        if probabilities[i] >= block or hits[i] & block_bits != 0:
            code = BLOCK
        codes[i] = code


class Policy(Struct, frozen=True):
    """What is allowed, reviewed and blocked.

    The model's thresholds come from its artefact. Two rules stand beside it: a listed side, and a recipient never paid
    before that imitates an earlier one (address poisoning), which the labels the model learns from do not show.
    """

    review: float
    block: float
    review_bits: np.uint32
    """List hits that are reviewed at least."""

    block_bits: np.uint32
    """List hits that are blocked."""

    def decide(
        self, probabilities: NDArray[np.float64], rows: NDArray[np.float32], hits: NDArray[np.uint32]
    ) -> NDArray[np.int8]:
        """Return each row's decision code, shape (n,)."""
        codes = np.empty(len(probabilities), dtype=np.int8)
        _decide(probabilities, rows, hits, self.review, self.block, self.review_bits, self.block_bits, codes)
        return codes

    def rules(self, row: NDArray[np.float32]) -> list[tuple[str, float, str]]:
        """Return the rules that a row breaks, as (feature, value, sentence); list hits speak for themselves."""
        if not _is_imitation(row):
            return []
        value = float(row[_TO_IMITATES])
        feature = schema.FEATURES[_TO_IMITATES]
        return [(feature.name, value, feature.sentence.format(value=f"{value:.0f}"))]


def policy(thresholds: dict[str, float], screening: Screening | None) -> Policy:
    """Make the policy of a model's thresholds and the lists in use."""
    names: tuple[str, ...] = () if screening is None else screening.names
    return Policy(
        review=thresholds["review"],
        block=thresholds["block"],
        review_bits=_both_sides(names, FLAGGED),
        block_bits=_both_sides(names, BLOCKED_LISTS),
    )


def _both_sides(names: tuple[str, ...], wanted: frozenset[str]) -> Any:
    bits = sum(1 << i for i, name in enumerate(names) if name in wanted)
    return np.uint32(bits | bits << 16)
