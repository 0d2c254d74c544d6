"""Whether probabilities hold: reliability at the stated prior, and precision where fraud is as rare as in traffic.

The share of phishing in the data comes from how it was collected, so rows are weighted: phishing to the prior, each
source of normal rows (A, B, background) to the same part of the rest. That is also what calibration was fitted to.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from models import evaluate, intervals
from models.dataset import BACKGROUND, CUTS, Cuts, Sample
from models.evaluate import Probabilities, Sides
from models.intervals import Draws, Estimate

N_BINS = 10
PRIORS = (0.001, 0.01)
CURVE_RECALLS = tuple(i / 50 for i in range(1, 51))

ALERTLESS = 3.0
"""Where none of n rows was alerted, 3 / n bounds the rate with 95 % confidence (the rule of three)."""


class Bin(Struct, frozen=True):
    """Rows of similar probability."""

    low: float
    high: float
    """Least and greatest probability in it."""
    predicted: float
    """Weighted mean of the probabilities."""
    observed: Estimate
    """Weighted share of phishing."""
    n_rows: int
    n_phishing: int


class Reliability(Struct, frozen=True):
    """How predicted and observed shares of phishing agree in one period, at a prior."""

    period: str
    prior: float
    n_rows: int
    mean_predicted: float
    """Over all rows, weighted; calibration in the large would have it equal the prior."""
    error: float
    """Expected calibration error: the bins' |predicted - observed|, weighted by what lies in them."""
    bins: list[Bin]


class Precision(Struct, frozen=True):
    """What share of alerts would be true, were fraud as rare as a prior says."""

    name: str
    """Of the threshold."""
    threshold: float
    prior: float
    recall: Estimate
    """On new phishing accounts."""
    background: Estimate | None
    """With the alert rate on background for false-positive rate."""
    is_background_least: bool
    """No background row was alerted: the precision is the least that the number of rows supports."""
    normals: Estimate | None
    """With the mean of the false-positive rates against A's and B's normals."""
    is_normals_least: bool


class Point(Struct, frozen=True):
    """A point of the precision-recall curve of one test set."""

    recall: float
    threshold: float
    precision: float
    """With the set's own share of phishing."""
    false_positive_rate: float


class Curve(Struct, frozen=True):
    """A precision-recall curve."""

    test_set: str
    share_phishing: float
    points: list[Point]


def traffic_weights(sample: Sample, prior: float) -> NDArray[np.float64]:
    """Return each row's weight where fraud is as rare as the prior and each source of normal rows counts alike.

    They add to 1 where there is both fraud and normal.

    Args:
        sample: Labelled and background rows.
        prior: Share of fraud.
    """
    weight = np.zeros(len(sample.time))
    normal = np.where(sample.account == BACKGROUND, "background", sample.source)
    kinds = [chosen for name in np.unique(normal).tolist() if (chosen := ~sample.is_phishing & (normal == name)).any()]
    for chosen in kinds:
        weight[chosen] = (1 - prior) / len(kinds) / chosen.sum()
    if sample.is_phishing.any():
        weight[sample.is_phishing] = prior / sample.is_phishing.sum()
    return weight


def reliability(
    sample: Sample, probabilities: Probabilities, *, period: str, prior: float, seed: int, n_replicates: int
) -> Reliability | None:
    """Return the reliability of the given rows, all of them; None without phishing or without normal rows.

    Args:
        sample: Labelled and background rows of one period.
        probabilities: Of each row.
        period: Its name.
        prior: At which the probabilities were calibrated.
        seed: Of the bootstrap over accounts, of background its blocks.
        n_replicates: Of the bootstrap.
    """
    if len(np.unique(sample.is_phishing)) < 2:
        return None
    weight = traffic_weights(sample, prior)
    place = _bins(probabilities, traffic_weights(sample, 0.5))
    n = int(place.max()) + 1
    # Accounts count from 0 up; a block takes the negative of its time.
    groups = np.where(sample.account == BACKGROUND, -1 - sample.time, sample.account)
    draws = intervals.draw(groups, seed=(seed, 20), n_replicates=n_replicates)
    caught, allowed = _bin_weights(sample, place, prior, draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = caught / (caught + allowed)
    bins = []
    for i in range(n):
        chosen = place == i
        mean = float(np.average(probabilities[chosen], weights=weight[chosen]))
        share = intervals.estimate(observed[:, i])
        low, high = float(probabilities[chosen].min()), float(probabilities[chosen].max())
        bins.append(Bin(low, high, mean, share, int(chosen.sum()), int(sample.is_phishing[chosen].sum())))
    held = np.bincount(place, weights=weight) / weight.sum()
    error = float(sum(h * abs(b.predicted - b.observed.value) for h, b in zip(held, bins, strict=True)))
    return Reliability(period, prior, len(place), float(np.average(probabilities, weights=weight)), error, bins)


def _bins(probabilities: Probabilities, weight: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each row's bin; a tenth of the weight in each, so that both classes are spread over the bins."""
    order = np.argsort(probabilities, kind="stable")
    reached = np.cumsum(weight[order])
    wanted = np.arange(1, N_BINS) / N_BINS * reached[-1]
    edges = np.unique(probabilities[order][np.searchsorted(reached, wanted)])
    _, place = np.unique(np.searchsorted(edges, probabilities), return_inverse=True)
    return place


def _bin_weights(
    sample: Sample, place: NDArray[np.int64], prior: float, draws: Draws
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weight of phishing and of normal rows in each bin and resampling, each kind's total held constant."""
    n_bins = int(place.max()) + 1
    source = np.where(sample.account == BACKGROUND, "background", sample.source)
    normal = [~sample.is_phishing & (source == name) for name in np.unique(source).tolist()]
    normal = [chosen for chosen in normal if chosen.any()]

    def held(chosen: NDArray[np.bool_], total: float) -> NDArray[np.float64]:
        cells = np.zeros((draws.counts.shape[1], n_bins))
        np.add.at(cells, (draws.member[chosen], place[chosen]), 1.0)
        weight = draws.counts.astype(np.float64) @ cells
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(total * weight / weight.sum(axis=1, keepdims=True))

    allowed = sum(held(chosen, (1 - prior) / len(normal)) for chosen in normal)
    return held(sample.is_phishing, prior), np.asarray(allowed)


def precisions(
    sample: Sample,
    probabilities: Probabilities,
    thresholds: Mapping[str, float],
    *,
    seed: int,
    n_replicates: int,
    priors: Sequence[float] = PRIORS,
    cuts: Cuts = CUTS,
) -> list[Precision]:
    """Return the precision that each threshold would have at each prior, by Bayes' rule.

    Args:
        sample: Holds the test period's rows and later background.
        probabilities: Of each row.
        thresholds: Least probability that is alerted on, by name.
        seed: Of the bootstrap.
        n_replicates: Of the bootstrap.
        priors: Shares of fraud.
        cuts: Where the periods start.
    """
    chosen = evaluate.sides(sample, cuts)
    if not chosen.new.any() or not thresholds:
        return []
    draws = evaluate.side_draws(sample, chosen, seed, n_replicates)
    limits = intervals.constant(list(thresholds.values()), draws[0])
    recall, a, b, background = (
        intervals.shares(probabilities[side], limits, drawn) if side.any() else None
        for side, drawn in zip(chosen, draws, strict=True)
    )
    assert recall is not None
    normals = [rate for rate in (a, b) if rate is not None]
    normal = np.mean(normals, axis=0) if normals else None
    found = []
    for i, (name, threshold) in enumerate(thresholds.items()):
        for prior in priors:
            of_background = _precision(prior, recall[:, i], background, i, _n_rows(chosen, "background"))
            of_normals = _precision(prior, recall[:, i], normal, i, _n_rows(chosen, "normals"))
            caught = intervals.estimate(recall[:, i])
            found.append(Precision(name, threshold, prior, caught, *of_background, *of_normals))
    return found


def _n_rows(chosen: Sides, which: str) -> int:
    return int(chosen.background.sum()) if which == "background" else int(chosen.a.sum() + chosen.b.sum())


def _precision(
    prior: float, recall: NDArray[np.float64], rates: NDArray[np.float64] | None, i: int, n_rows: int
) -> tuple[Estimate | None, bool]:
    if rates is None:
        return None, False
    rate = rates[:, i]
    is_least = bool(rate[0] == 0)
    with np.errstate(invalid="ignore"):
        true = prior * recall
        found = intervals.estimate(true / (true + (1 - prior) * rate))
    if not is_least:
        return found, False
    least = float(true[0] / (true[0] + (1 - prior) * ALERTLESS / n_rows))
    return Estimate(least, least, 1.0), True


def curves(
    sample: Sample,
    probabilities: Probabilities,
    *,
    names: Sequence[str] = ("all", "new accounts"),
    cuts: Cuts = CUTS,
) -> list[Curve]:
    """Return the precision-recall curves of some test sets, at every fiftieth of recall."""
    found = []
    for name, chosen in evaluate.judged_sets(sample, cuts).items():
        if name not in names:
            continue
        is_phishing, scores = sample.is_phishing[chosen], probabilities[chosen]
        caught, normal = np.sort(scores[is_phishing]), np.sort(scores[~is_phishing])
        points = []
        for recall in CURVE_RECALLS:
            threshold = evaluate.threshold_at(caught, recall)
            n_true = len(caught) - int(np.searchsorted(caught, threshold))
            n_false = len(normal) - int(np.searchsorted(normal, threshold))
            points.append(Point(n_true / len(caught), threshold, n_true / (n_true + n_false), n_false / len(normal)))
        found.append(Curve(name, float(is_phishing.mean()), points))
    return found


def at_prior(point: Point, prior: float) -> float:
    """Return a point's precision were phishing as rare as the prior.

    >>> at_prior(Point(0.5, 0.1, 0.9, 0.01), 0.01) > 0.33
    True
    """
    true = prior * point.recall
    return true / (true + (1 - prior) * point.false_positive_rate)
