"""What a model is worth, by the data folder's protocol: two tables, with bootstrap intervals over accounts.

Background rows are resampled by block.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from models import intervals
from models.dataset import BACKGROUND, CUTS, Cuts, Sample
from models.intervals import N_REPLICATES, Draws, Estimate

__all__ = ["N_REPLICATES", "Estimate"]

RECALLS = (0.3, 0.5, 0.7)

Probabilities = NDArray[np.float64]
"""Scores of a sample's rows; any increasing function of the risk does."""


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
    false_positives_a: Estimate | None
    """None without normal rows of this source, as in an archive whose labels name none."""
    false_positives_b: Estimate | None
    background: Estimate | None


class Decision(Struct, frozen=True):
    """What one of the model's own thresholds does."""

    name: str
    threshold: float
    recall_new: float | None
    """Share of new phishing accounts' rows that reach it; None, here and below, without such rows."""
    false_positives_a: float | None
    false_positives_b: float | None
    background: float | None


class Retention(Struct, frozen=True):
    """What the small model keeps of the large one's quality on one test set, as ratios with paired intervals."""

    test_set: str
    roc_auc: Estimate
    average_precision: Estimate
    recall_at_1_percent: Estimate | None
    """None where the large one's recall is 0."""


def evaluate(
    sample: Sample, probabilities: Probabilities, *, seed: int, n_replicates: int = N_REPLICATES, cuts: Cuts = CUTS
) -> tuple[list[Ranking], list[Operation]]:
    """Return both tables of a sample that holds the test period's labelled rows and later background.

    Args:
        sample: Other rows are left out.
        probabilities: Of each row.
        seed: Of the bootstrap.
        n_replicates: Resamplings of the accounts.
        cuts: Where the validation and the test period start.
    """
    rankings = []
    for place, (name, chosen) in enumerate(judged_sets(sample, cuts).items()):
        part = sample.take(chosen)
        figures = intervals.ranking(part.is_phishing, probabilities[chosen], _drawn(part, place, seed, n_replicates))
        accounts = len(np.unique(part.account))
        estimates = (intervals.estimate(figure) for figure in figures.T)
        rankings.append(Ranking(name, len(part.time), accounts, float(part.is_phishing.mean()), *estimates))
    return rankings, _operations(sample, probabilities, (seed, n_replicates), cuts)


def retained(
    sample: Sample,
    small: Probabilities,
    large: Probabilities,
    *,
    seed: int,
    n_replicates: int = N_REPLICATES,
    cuts: Cuts = CUTS,
) -> list[Retention]:
    """Return the small model's figures as shares of the large one's, both under the same resamplings of accounts.

    Args:
        sample: As for `evaluate`.
        small: Scores of the model whose loss is asked for.
        large: Scores of the one it is measured by.
        seed: Of the bootstrap.
        n_replicates: Resamplings of the accounts.
        cuts: Where the validation and the test period start.
    """
    found = []
    for place, (name, chosen) in enumerate(judged_sets(sample, cuts).items()):
        part = sample.take(chosen)
        draws = _drawn(part, place, seed, n_replicates)
        ours, theirs = (intervals.ranking(part.is_phishing, scores[chosen], draws) for scores in (small, large))
        # Where the large model's recall is 0 there is no ratio; such resamplings are left out.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = ours / theirs
        auc, precision, recall = (intervals.estimate(ratio) for ratio in ratios.T[:3])
        found.append(Retention(name, auc, precision, recall if np.isfinite(recall.value) else None))
    return found


def _drawn(part: Sample, place: int, seed: int, n_replicates: int) -> Draws:
    return intervals.draw(part.account, seed=(seed, place), n_replicates=n_replicates)


def test_sets(sample: Sample, cuts: Cuts = CUTS) -> dict[str, NDArray[np.bool_]]:  # noqa: PT028 - it is no test
    """Return the protocol's test sets, in its order."""
    test = (sample.account != BACKGROUND) & (sample.time >= cuts.test_start)
    phishing = sample.is_phishing
    # B's normal accounts are of the time of the phishing ones, A's are not; where no source is named, all count.
    new = test & sample.is_new & (phishing | (sample.source != "A"))
    return {
        "all": test,
        "against A's normals": test & (phishing | (sample.source == "A")),
        "against B's normals": test & (phishing | (sample.source == "B")),
        "new accounts": new,
        "new accounts, first transaction": new & (sample.rank == 0),
    }


def judged_sets(sample: Sample, cuts: Cuts = CUTS) -> dict[str, NDArray[np.bool_]]:
    """Return the test sets that hold both phishing and normal rows: an archive's labels may name neither A nor B."""
    sets = test_sets(sample, cuts)
    return {name: chosen for name, chosen in sets.items() if len(np.unique(sample.is_phishing[chosen])) == 2}


def threshold_at(scores: NDArray[np.float64], recall: float) -> float:
    """Return the highest threshold that at least this share of the scores reaches.

    >>> threshold_at(np.array([0.1, 0.2, 0.3, 0.4]), 0.5)
    0.3
    """
    n_reached = max(1, int(np.ceil(recall * len(scores) - 1e-9)))
    return float(np.sort(scores)[len(scores) - n_reached])


class Sides(NamedTuple):
    """The rows that the second table compares."""

    new: NDArray[np.bool_]
    """Of new phishing accounts."""
    a: NDArray[np.bool_]
    b: NDArray[np.bool_]
    background: NDArray[np.bool_]


def sides(sample: Sample, cuts: Cuts = CUTS) -> Sides:
    """Return the rows of the second table: the test period's, and background since the validation period."""
    test = (sample.account != BACKGROUND) & (sample.time >= cuts.test_start)
    normal = test & ~sample.is_phishing
    return Sides(
        test & sample.is_phishing & sample.is_new,
        normal & (sample.source == "A"),
        normal & (sample.source == "B"),
        (sample.account == BACKGROUND) & (sample.time >= cuts.validation_start),
    )


def _operations(
    sample: Sample, probabilities: Probabilities, bootstrap: tuple[int, int], cuts: Cuts
) -> list[Operation]:
    chosen = sides(sample, cuts)
    if not chosen.new.any():
        return []
    draws = side_draws(sample, chosen, *bootstrap)
    limits = intervals.thresholds(probabilities[chosen.new], RECALLS, draws[0])
    rates = [
        intervals.shares(probabilities[side], limits, drawn) if side.any() else None
        for side, drawn in zip(chosen[1:], draws[1:], strict=True)
    ]
    return [
        Operation(
            recall,
            float(limits[0, i]),
            *(None if rate is None else intervals.estimate(rate[:, i]) for rate in rates),
        )
        for i, recall in enumerate(RECALLS)
    ]


def side_draws(sample: Sample, chosen: Sides, seed: int, n_replicates: int) -> list[Draws]:
    """Return resamplings of each side's accounts, of background its blocks."""
    groups = [*(sample.account[side] for side in chosen[:3]), sample.time[chosen.background]]
    # After the places of the five test sets: no side is drawn like a test set.
    return [
        intervals.draw(group, seed=(seed, 10 + place), n_replicates=n_replicates) for place, group in enumerate(groups)
    ]


def decide(
    sample: Sample, probabilities: Probabilities, thresholds: Mapping[str, float], cuts: Cuts = CUTS
) -> list[Decision]:
    """Return what a model's own thresholds do in the test period."""
    chosen = sides(sample, cuts)
    return [
        Decision(
            name,
            threshold,
            *(float((probabilities[side] >= threshold).mean()) if side.any() else None for side in chosen),
        )
        for name, threshold in thresholds.items()
    ]


def n_background(sample: Sample, cuts: Cuts = CUTS) -> int:
    """Return the number of background rows the alert rate is taken over."""
    return int(sides(sample, cuts).background.sum())
