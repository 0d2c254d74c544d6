"""Where a model is good and where it errs: by time after training, on whole blocks by year, by kind of account.

Kinds are of accounts in aggregate. A label is a third party's opinion and an alert a reason to look: no line names an
account, and none says what a person is.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from models import evaluate, intervals
from models.dataset import CUTS, Cuts, Sample
from models.evaluate import Probabilities
from models.intervals import Estimate
from models.labels import Labels

WEEKS = 4
WEEK_S = 7 * 86_400
CLASS_ROWS_MIN = 10
"""Rows of either class below which a period has no figures."""

TOP = 100
"""So many of the highest scored normal rows are called the largest false positives."""

PER_DAY = (10_000, 100_000, 1_000_000)
"""Transactions a day: a small exchange, a large one, the whole of Ethereum (1.0 to 1.2 million)."""


class Period(Struct, frozen=True):
    """Some weeks of the test period."""

    start: str
    """First day."""
    weeks_after: int
    """Between the start of the test period and this day."""
    n_rows: int
    n_accounts: int
    n_phishing: int
    roc_auc: Estimate | None
    """None where a class has fewer than CLASS_ROWS_MIN rows, as below."""
    average_precision: Estimate | None
    recall_at_1_percent: Estimate | None


class Year(Struct, frozen=True):
    """Whole blocks of one year, which nobody selected."""

    year: int
    n_blocks: int
    n_rows: int
    alerts: dict[str, Estimate]
    """Share of rows that reach each threshold."""


class Block(Struct, frozen=True):
    """One whole block."""

    time: int
    n_rows: int
    alerts: dict[str, int]
    """Rows that reach each threshold."""


class Kind(Struct, frozen=True):
    """Test rows of one kind of account."""

    kind: str
    is_phishing: bool
    n_rows: int
    n_accounts: int
    alerts: dict[str, Estimate]
    """Share of rows that reach each threshold: recall where phishing, false-positive rate where normal."""
    share_of_rows: float
    """Among all rows of its class."""
    share_of_top: float | None
    """Among the TOP highest scored normal rows; None for phishing."""


class Budget(Struct, frozen=True):
    """Alerts to look at, from the alert rate on background."""

    name: str
    """Of the threshold."""
    per_day: int
    """Transactions."""
    alerts: Estimate
    """A day."""
    is_most: bool
    """No background row was alerted: not more than this, by the rule of three."""


def decay(
    sample: Sample, probabilities: Probabilities, *, seed: int, n_replicates: int, weeks: int = WEEKS, cuts: Cuts = CUTS
) -> list[Period]:
    """Return the ranking figures of the test period's labelled rows, some weeks at a time."""
    test = evaluate.test_sets(sample, cuts)["all"]
    if not test.any():
        return []
    step = weeks * WEEK_S
    number = (sample.time - cuts.test_start) // step
    found = []
    for i in range(int(number[test].max()) + 1):
        chosen = test & (number == i)
        part = sample.take(chosen)
        n_phishing = int(part.is_phishing.sum())
        estimates: list[Estimate | None] = [None] * 3
        if min(n_phishing, len(part.time) - n_phishing) >= CLASS_ROWS_MIN:
            draws = intervals.draw(part.account, seed=(seed, 100 + i), n_replicates=n_replicates)
            figures = intervals.ranking(part.is_phishing, probabilities[chosen], draws)
            estimates = [intervals.estimate(figure) for figure in figures.T[:3]]
        start = datetime.fromtimestamp(cuts.test_start + i * step, UTC).strftime("%Y-%m-%d")
        n_accounts = len(np.unique(part.account))
        found.append(Period(start, i * weeks, len(part.time), n_accounts, n_phishing, *estimates))
    return found


def background(
    sample: Sample,
    probabilities: Probabilities,
    thresholds: Mapping[str, float],
    *,
    seed: int,
    n_replicates: int,
    cuts: Cuts = CUTS,
) -> tuple[list[Year], list[Block]]:
    """Return the alert rates on whole blocks since the validation period, by year and by block."""
    chosen = evaluate.sides(sample, cuts).background
    time, scores = sample.time[chosen], probabilities[chosen]
    year = time.astype("datetime64[s]").astype("datetime64[Y]").astype(np.int64) + 1970
    years = []
    for each in np.unique(year).tolist():
        of_year = year == each
        draws = intervals.draw(time[of_year], seed=(seed, 200 + each), n_replicates=n_replicates)
        rates = intervals.shares(scores[of_year], intervals.constant(list(thresholds.values()), draws), draws)
        alerts = {name: intervals.estimate(rates[:, i]) for i, name in enumerate(thresholds)}
        years.append(Year(each, len(np.unique(time[of_year])), int(of_year.sum()), alerts))
    blocks = []
    for moment in np.unique(time).tolist():
        reached = scores[time == moment]
        alerts_of = {name: int((reached >= threshold).sum()) for name, threshold in thresholds.items()}
        blocks.append(Block(moment, len(reached), alerts_of))
    return years, blocks


def account_kinds(sample: Sample, labels: Labels | None) -> dict[str, NDArray[np.bool_]]:
    """Return which rows are of each kind; kinds overlap."""
    kinds = {
        "all": np.ones(len(sample.time), dtype=np.bool_),
        "source A": sample.source == "A",
        "source B": sample.source == "B",
        "first seen after training": sample.is_new,
        "seen before the end of training": ~sample.is_new,
        "first transaction": sample.rank == 0,
        "second to tenth transaction": (sample.rank >= 1) & (sample.rank < 10),
        "eleventh to fiftieth transaction": sample.rank >= 10,
    }
    if labels is not None and labels.is_service is not None and labels.is_capped is not None:
        account = np.maximum(sample.account, 0)
        kinds["exchange or service"] = labels.is_service[account]
        kinds["no exchange or service"] = ~labels.is_service[account]
        kinds["over 10,000 transactions"] = labels.is_capped[account]
    return kinds


def by_kind(
    sample: Sample,
    probabilities: Probabilities,
    thresholds: Mapping[str, float],
    *,
    labels: Labels | None,
    seed: int,
    n_replicates: int,
    cuts: Cuts = CUTS,
) -> list[Kind]:
    """Return what the thresholds do to each kind of account in the test period, phishing and normal apart."""
    test = evaluate.test_sets(sample, cuts)["all"]
    part, scores = sample.take(test), probabilities[test]
    kinds = account_kinds(part, labels)
    found = []
    for is_phishing in (True, False):
        of_class = part.is_phishing == is_phishing
        top = np.zeros(len(scores), dtype=np.bool_)
        top[np.flatnonzero(of_class)[np.argsort(-scores[of_class], kind="stable")[:TOP]]] = True
        for place, (kind, is_kind) in enumerate(kinds.items()):
            chosen = of_class & is_kind
            if not chosen.any():
                continue
            seeds = (seed, 300 + 100 * is_phishing + place)
            draws = intervals.draw(part.account[chosen], seed=seeds, n_replicates=n_replicates)
            rates = intervals.shares(scores[chosen], intervals.constant(list(thresholds.values()), draws), draws)
            found.append(
                Kind(
                    kind,
                    is_phishing,
                    int(chosen.sum()),
                    len(np.unique(part.account[chosen])),
                    {name: intervals.estimate(rates[:, i]) for i, name in enumerate(thresholds)},
                    float(chosen.sum() / of_class.sum()),
                    None if is_phishing else float((top & is_kind).sum() / top.sum()),
                )
            )
    return found


def budgets(
    sample: Sample,
    probabilities: Probabilities,
    thresholds: Mapping[str, float],
    *,
    seed: int,
    n_replicates: int,
    cuts: Cuts = CUTS,
) -> list[Budget]:
    """Return the alerts a day that each threshold would bring at several volumes of traffic."""
    chosen = evaluate.sides(sample, cuts).background
    n = int(chosen.sum())
    if not n:
        return []
    draws = intervals.draw(sample.time[chosen], seed=(seed, 13), n_replicates=n_replicates)
    rates = intervals.shares(probabilities[chosen], intervals.constant(list(thresholds.values()), draws), draws)
    found = []
    for i, name in enumerate(thresholds):
        rate = intervals.estimate(rates[:, i])
        is_most = rate.value == 0
        most = 3.0 / n
        for per_day in PER_DAY:
            alerts = Estimate(0, 0, most * per_day) if is_most else _times(rate, per_day)
            found.append(Budget(name, per_day, alerts, is_most))
    return found


def _times(figure: Estimate, factor: float) -> Estimate:
    return Estimate(figure.value * factor, figure.low * factor, figure.high * factor)
