"""From margins to decisions: probabilities at a stated prior, and thresholds by a false-positive rate or alert budget.

Both are fitted on the validation rows, weighted like traffic: each source of normal rows (A, B, background) to the same
part, so that neither what was collected most nor the largest holders stand for normal alone.
"""

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.errors import UsageError
from models import compact
from models.calibration import traffic_weights
from models.dataset import Cuts, Sample

PRIOR = 0.001
"""Share of fraud at which probabilities hold: near what payment processors see."""

REVIEW_RATE = 0.01
BLOCK_RATE = 0.001

_STEPS_MAX = 50
_RIDGE = 1e-6
"""Keeps separable rows from an infinite slope; on the data folder's rows it moves nothing."""


class Budget(NamedTuple):
    """Which share of normal traffic each decision may meet."""

    review_rate: float = REVIEW_RATE
    block_rate: float = BLOCK_RATE
    alerts_per_day: float | None = None
    """What the review rate comes from, where it is not given as such."""
    transactions_per_day: float | None = None


BUDGET = Budget()


def budget(
    *,
    review_rate: float | None = None,
    block_rate: float = BLOCK_RATE,
    alerts_per_day: float | None = None,
    transactions_per_day: float | None = None,
) -> Budget:
    """Return the budget of a review rate, or of so many alerts among so many transactions a day.

    Raises:
        UsageError: Both are given or half of the second, or a rate is not between 0 and 1.

    >>> budget(alerts_per_day=50, transactions_per_day=100_000).review_rate
    0.0005
    """
    asked = (alerts_per_day, transactions_per_day)
    if (alerts_per_day is None) != (transactions_per_day is None):
        raise UsageError("alerts a day say nothing without transactions a day: give both or neither")
    if alerts_per_day is not None and transactions_per_day is not None:
        if review_rate is not None:
            raise UsageError("review is chosen by a false-positive rate or by alerts a day, not by both")
        if not transactions_per_day > 0:
            raise UsageError(f"{transactions_per_day:g} transactions a day, expected more than 0")
        review_rate = alerts_per_day / transactions_per_day
    review_rate = REVIEW_RATE if review_rate is None else review_rate
    for name, rate in (("review", review_rate), ("block", block_rate)):
        if not 0 < rate < 1:
            raise UsageError(f"{name} at {rate:g} of normal transactions, expected a share between 0 and 1")
    return Budget(review_rate, min(block_rate, review_rate), *asked)


def period(cuts: Cuts) -> str:
    """Return the validation period's first and last day.

    >>> period(Cuts())
    '2018-07-01 to 2018-09-30'
    """
    days = (
        datetime.fromtimestamp(time, UTC).date().isoformat() for time in (cuts.validation_start, cuts.test_start - 1)
    )
    return " to ".join(days)


def calibrate(margins: NDArray[np.float64], sample: Sample) -> tuple[float, float]:
    """Return slope and intercept that turn margins into probabilities at the prior.

    Phishing and normal rows weigh alike, and among the normal ones each source; Newton's method on the logistic loss,
    then the intercept moves by the log-odds of the prior.
    """
    weight = traffic_weights(sample, 0.5)
    design = np.stack([margins, np.ones(len(margins))], axis=1)
    beta = np.array([1.0, 0.0])
    for _ in range(_STEPS_MAX):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        gradient = design.T @ (weight * (p - sample.is_phishing)) + _RIDGE * (beta - (1.0, 0.0))
        curvature = design.T @ (design * (weight * p * (1 - p))[:, None]) + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # Halving a long step keeps Newton's method from leaving the region where the curvature says something.
        beta -= step * min(1.0, 2.0 / float(np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    slope = max(float(beta[0]), 1e-3)
    return slope, float(beta[1]) + float(np.log(PRIOR / (1 - PRIOR)))


def thresholds(
    probabilities: NDArray[np.float64], sample: Sample, allowed: Budget, cuts: Cuts
) -> dict[str, compact.Threshold]:
    """Return the decisions' thresholds from the validation rows' probabilities: the lowest that keep to the budget."""
    normal = ~sample.is_phishing
    weight = traffic_weights(sample, 0.0)[normal]
    review = _lowest(probabilities[normal], weight, allowed.review_rate)
    block = max(review, _lowest(probabilities[normal], weight, allowed.block_rate))
    rows = f"of the normal and background payments of {period(cuts)} reach it, each source weighing alike"
    if allowed.alerts_per_day is None:
        load = f"false-positive rate: at most {allowed.review_rate:.3%} {rows}: 1,000 reviews in "
        load += f"{round(1000 / allowed.review_rate):,} transactions"
    else:
        load = f"alert budget: {allowed.alerts_per_day:,g} a day of {allowed.transactions_per_day:,g} transactions, so "
        load += f"at most {allowed.review_rate:.4%} {rows}"
    return {
        "review": compact.Threshold(review, load),
        "block": compact.Threshold(block, f"false-positive rate: at most {allowed.block_rate:.3%} {rows}"),
    }


def _lowest(probabilities: NDArray[np.float64], weight: NDArray[np.float64], rate: float) -> float:
    """Return the lowest threshold that at most this share of the weight reaches."""
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    reached = np.cumsum(weight[order]) / weight.sum()
    # Equals are reached together: the last of each run says how many.
    is_last = np.append(ordered[1:] != ordered[:-1], True)
    too_many = np.flatnonzero(is_last & (reached > rate * (1 + 1e-9)))
    return float(np.nextafter(ordered[too_many[0]], 1.0)) if len(too_many) else float(ordered[-1])
