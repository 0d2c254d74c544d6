"""What a model is worth, by the data folder's protocol: two tables, with bootstrap intervals over accounts.

Intervals resample accounts, not rows: rows of one account resemble each other, and an interval over rows would be too
narrow. Background rows are resampled by block.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from models.dataset import BACKGROUND, TEST_START, VALIDATION_START, Sample

RECALLS = (0.3, 0.5, 0.7)
FALSE_POSITIVE_RATES = (0.01, 0.001)
N_REPLICATES = 1_000
REPLICATES_AT_ONCE = 50
"""50 x 12,631 weights of 8 bytes: 5 MB a matrix, some of which fit the cache."""

Probabilities = NDArray[np.float64]
"""Scores of a sample's rows; any increasing function of the risk does."""


class Estimate(Struct, frozen=True):
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Ranking(Struct, frozen=True):
    """A row of the protocol's first table: how well phishing is ranked above the normal rows of one test set."""

    test_set: str
    n_rows: int
    n_accounts: int
    share_phishing: float
    roc_auc: Estimate
    average_precision: Estimate
    recall_at_1_percent: Estimate
    """Of false positives."""
    recall_at_01_percent: Estimate


class Operation(Struct, frozen=True):
    """A row of the protocol's second table: what a share of caught new phishing costs in false alerts."""

    recall: float
    threshold: float
    """Least probability that is alerted on."""
    false_positives_a: Estimate
    false_positives_b: Estimate
    background: Estimate


class Decision(Struct, frozen=True):
    """What one of the model's own thresholds does."""

    name: str
    threshold: float
    recall_new: float
    """Share of new phishing accounts' rows that reach it."""
    false_positives_a: float
    false_positives_b: float
    background: float


class Evaluation(Struct, frozen=True):
    """One model by the protocol."""

    name: str
    version: str
    digest: str
    n_bytes: int
    n_trees: int
    rankings: list[Ranking]
    operations: list[Operation]
    decisions: list[Decision]
    n_background: int


def evaluate(
    sample: Sample, probabilities: Probabilities, *, seed: int, n_replicates: int = N_REPLICATES
) -> tuple[list[Ranking], list[Operation]]:
    """Return both tables of a sample that holds the test period's labelled rows and later background.

    Args:
        sample: Other rows are left out.
        probabilities: Of each row.
        seed: Of the bootstrap.
        n_replicates: Resamplings of the accounts.
    """
    random = np.random.default_rng(seed)
    rankings = []
    for name, chosen in test_sets(sample).items():
        part = sample.take(chosen)
        ranks = _Ranks.of(part.is_phishing, probabilities[chosen])
        figures = _resampled(ranks.figures, [part.account], random, n_replicates)
        accounts = len(np.unique(part.account))
        rankings.append(Ranking(name, len(part.time), accounts, float(part.is_phishing.mean()), *figures))
    return rankings, _operations(sample, probabilities, random, n_replicates)


def test_sets(sample: Sample) -> dict[str, NDArray[np.bool_]]:
    """Return the protocol's test sets, in its order."""
    test = (sample.account != BACKGROUND) & (sample.time >= TEST_START)
    phishing = sample.is_phishing
    new = test & sample.is_new & (phishing | (sample.source == "B"))
    return {
        "all": test,
        "against A's normals": test & (phishing | (sample.source == "A")),
        "against B's normals": test & (phishing | (sample.source == "B")),
        "new accounts": new,
        "new accounts, first transaction": new & (sample.rank == 0),
    }


def threshold_at(scores: NDArray[np.float64], recall: float) -> float:
    """Return the highest threshold that at least this share of the scores reaches.

    >>> threshold_at(np.array([0.1, 0.2, 0.3, 0.4]), 0.5)
    0.3
    """
    n_reached = max(1, int(np.ceil(recall * len(scores) - 1e-9)))
    return float(np.sort(scores)[len(scores) - n_reached])


class _Ranks(NamedTuple):
    """Rows in order of falling score, ready to be weighted many times."""

    order: NDArray[np.int64]
    is_phishing: NDArray[np.bool_]
    """In that order."""
    last: NDArray[np.int64]
    """Last row of each run of equal scores: a threshold cannot part equals."""

    @classmethod
    def of(cls, is_phishing: NDArray[np.bool_], scores: NDArray[np.float64]) -> "_Ranks":
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        last = np.flatnonzero(np.concatenate((ordered[1:] != ordered[:-1], [True])))
        return cls(order, is_phishing[order], last)

    def figures(self, weights: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return ROC AUC, average precision and the recalls for weights of shape (n, n_rows), shape (4, n)."""
        ordered = weights[0][:, self.order]
        caught = np.cumsum(ordered * self.is_phishing, axis=1)[:, self.last]
        alarms = np.cumsum(ordered * ~self.is_phishing, axis=1)[:, self.last]
        with np.errstate(invalid="ignore", divide="ignore"):
            recall, false = caught / caught[:, -1:], alarms / alarms[:, -1:]
            precision = caught / (caught + alarms)
        start = np.zeros((len(recall), 1))
        recall_step = np.diff(recall, axis=1, prepend=start)
        false_step = np.diff(false, axis=1, prepend=start)
        auc = (false_step * (recall - recall_step / 2)).sum(axis=1)
        average_precision = np.nansum(recall_step * precision, axis=1)
        at_rates = [np.where(false <= rate, recall, 0.0).max(axis=1) for rate in FALSE_POSITIVE_RATES]
        return np.stack([auc, average_precision, *at_rates])


def _resampled(
    figures: Callable[[list[NDArray[np.float64]]], NDArray[np.float64]],
    groups: list[NDArray[np.int64]],
    random: np.random.Generator,
    n_replicates: int,
) -> list[Estimate]:
    """Return figures of the rows as they are, with intervals from resampling each kind of group with replacement.

    Args:
        figures: From a list of row weights, one matrix (n, n_rows) for each kind of group, to figures (n_figures, n).
        groups: For each kind, the group of every row.
        random: Source of the resampling.
        n_replicates: How often.
    """
    value = figures([np.ones((1, len(group))) for group in groups])[:, 0]
    members = [np.unique(group, return_inverse=True) for group in groups]
    parts = []
    for start in range(0, n_replicates, REPLICATES_AT_ONCE):
        n = min(REPLICATES_AT_ONCE, n_replicates - start)
        weights = []
        for names, member in members:
            k = len(names)
            weights.append(random.multinomial(k, np.full(k, 1 / k), size=n)[:, member].astype(np.float64))
        parts.append(figures(weights))
    # A replicate without any phishing or any normal account has no figure.
    low, high = np.nanpercentile(np.concatenate(parts, axis=1), (2.5, 97.5), axis=1)
    return [Estimate(float(v), float(a), float(b)) for v, a, b in zip(value, low, high, strict=True)]


class _Sides(NamedTuple):
    """The rows that the second table compares."""

    new: NDArray[np.bool_]
    a: NDArray[np.bool_]
    b: NDArray[np.bool_]
    background: NDArray[np.bool_]


def _sides(sample: Sample) -> _Sides:
    test = (sample.account != BACKGROUND) & (sample.time >= TEST_START)
    normal = test & ~sample.is_phishing
    return _Sides(
        test & sample.is_phishing & sample.is_new,
        normal & (sample.source == "A"),
        normal & (sample.source == "B"),
        (sample.account == BACKGROUND) & (sample.time >= VALIDATION_START),
    )


def _operations(
    sample: Sample, probabilities: Probabilities, random: np.random.Generator, n_replicates: int
) -> list[Operation]:
    sides = _sides(sample)
    scores = [probabilities[side] for side in sides]
    groups = [sample.account[side] for side in sides[:3]] + [sample.time[sides.background]]
    # New phishing from the highest score down: where the weight reaches the wished recall stands the threshold.
    order = np.argsort(-scores[0], kind="stable")
    ranked = scores[0][order]

    def figures(weights: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        reached = np.cumsum(weights[0][:, order], axis=1)
        rates = []
        for recall in RECALLS:
            at = (reached < recall * reached[:, -1:] - 1e-9).sum(axis=1)
            thresholds = ranked[at][:, None]
            for part, weight in zip(scores[1:], weights[1:], strict=True):
                rates.append((weight * (part >= thresholds)).sum(axis=1) / weight.sum(axis=1))
        return np.array(rates)

    estimates = _resampled(figures, groups, random, n_replicates)
    return [
        Operation(recall, threshold_at(scores[0], recall), *estimates[3 * i : 3 * i + 3])
        for i, recall in enumerate(RECALLS)
    ]


def decide(sample: Sample, probabilities: Probabilities, thresholds: dict[str, float]) -> list[Decision]:
    """Return what a model's own thresholds do in the test period."""
    sides = _sides(sample)
    return [
        Decision(name, threshold, *(float((probabilities[side] >= threshold).mean()) for side in sides))
        for name, threshold in thresholds.items()
    ]


def n_background(sample: Sample) -> int:
    """Return the number of background rows the alert rate is taken over."""
    return int(_sides(sample).background.sum())
