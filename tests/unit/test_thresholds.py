"""Thresholds by false-positive rate and by alert budget."""

import numpy as np
import pytest

from features.errors import UsageError
from models import thresholds
from models.calibration import traffic_weights
from models.dataset import BACKGROUND, CUTS, Sample


def drawn(n: int = 3_000, *, seed: int = 1) -> tuple[np.ndarray, Sample]:
    """Return probabilities with equals among them, and rows of phishing, A, B and background."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["phishing", "A", "B", ""], p=[0.3, 0.5, 0.15, 0.05], size=n)
    probabilities = np.round(rng.beta(1, np.where(kind == "phishing", 2, 6)), 2)
    zeros = np.zeros(n, dtype=np.int64)
    account = np.where(kind == "", BACKGROUND, 1)
    sample = Sample(
        zeros, zeros, account, zeros, kind == "phishing", np.where(kind == "phishing", "A", kind), zeros > 0
    )
    return probabilities, sample


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.2])
def test_threshold_is_the_lowest_within_the_rate(rate: float) -> None:
    """The share of normal traffic that reaches it keeps to the rate, and at the next lower value it would not."""
    probabilities, sample = drawn()
    weight = traffic_weights(sample, 0.0)

    chosen = thresholds.thresholds(probabilities, sample, thresholds.Budget(rate, rate), CUTS)["review"].probability

    assert weight[probabilities >= chosen].sum() <= rate
    below = probabilities[probabilities < chosen].max()
    assert weight[probabilities >= below].sum() > rate


def test_words_say_how_each_was_chosen() -> None:
    """A rate tells the load it means, a budget tells itself, and both the rows they were measured on."""
    probabilities, sample = drawn()

    by_rate = thresholds.thresholds(probabilities, sample, thresholds.budget(review_rate=0.02), CUTS)
    by_alerts = thresholds.thresholds(
        probabilities, sample, thresholds.budget(alerts_per_day=300, transactions_per_day=10_000), CUTS
    )

    assert by_rate["review"].chosen.startswith("false-positive rate: at most 2.000%")
    assert "1,000 reviews in 50,000 transactions" in by_rate["review"].chosen
    assert by_alerts["review"].chosen.startswith("alert budget: 300 a day of 10,000 transactions")
    assert all("2018-07-01 to 2018-09-30" in t.chosen for t in (*by_rate.values(), *by_alerts.values()))
    assert by_alerts["review"].probability <= by_rate["review"].probability <= by_rate["block"].probability


@pytest.mark.parametrize(
    "asked",
    [
        {"alerts_per_day": 5},
        {"transactions_per_day": 5},
        {"alerts_per_day": 5, "transactions_per_day": 100, "review_rate": 0.1},
        {"alerts_per_day": 5, "transactions_per_day": 0},
        {"alerts_per_day": 50, "transactions_per_day": 5},
        {"review_rate": 0},
        {"block_rate": 1},
    ],
)
def test_contradictory_budgets_are_refused(asked: dict[str, float]) -> None:
    """Half a budget, two budgets, and rates that are no shares."""
    with pytest.raises(UsageError):
        thresholds.budget(**asked)


def test_block_never_comes_before_review() -> None:
    """A review rate below the block rate lowers the block rate with it."""
    assert thresholds.budget(review_rate=0.0001) == thresholds.Budget(0.0001, 0.0001)


def test_traffic_weights_make_fraud_rare() -> None:
    """Phishing weighs the prior, and each source of normal rows the same part of the rest."""
    account = np.array([0, 0, 0, 1, 2, 2, BACKGROUND, BACKGROUND])
    is_phishing = account == 0
    source = np.array(["A", "A", "A", "A", "B", "B", "", ""])
    time = np.full(8, CUTS.validation_start)
    sample = Sample(np.arange(8), time, account, np.zeros(8, np.int64), is_phishing, source, is_phishing)

    weight = traffic_weights(sample, 0.01)

    assert weight.tolist() == pytest.approx([0.01 / 3] * 3 + [0.33] + [0.165] * 4)
