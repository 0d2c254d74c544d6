"""The protocol: which rows count, and what the figures mean, against plain computations."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from models import evaluate, intervals
from models.dataset import BACKGROUND, TEST_START, VALIDATION_START, Sample

NOISE = 0.8


def drawn(n: int = 1_200, *, seed: int = 3) -> tuple[Sample, NDArray[np.float64]]:
    """Return test rows of 120 accounts with background among them, and scores that rank phishing mostly higher."""
    rng = np.random.default_rng(seed)
    account = rng.integers(0, 120, size=n)
    account[rng.random(n) < 0.2] = BACKGROUND
    is_phishing = (account >= 0) & (account % 3 == 0)
    source = np.where(account == BACKGROUND, "", np.where(account % 3 == 1, "A", "B"))
    time = np.sort(rng.integers(VALIDATION_START, TEST_START + 30_000_000, size=n))
    is_new = (account >= 0) & (account % 2 == 0)
    sample = Sample(np.arange(n), time, account, rng.integers(0, 50, size=n), is_phishing, source, is_new)
    scores = np.round(1 / (1 + np.exp(NOISE * rng.normal(size=n) - is_phishing)), 2)
    return sample, scores


def recall_at(labels: NDArray[np.bool_], scores: NDArray[np.float64], rate: float) -> float:
    """Return the largest recall of any threshold with at most this false-positive rate."""
    false, recall, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(recall[false <= rate].max())


def test_rankings_are_the_textbooks() -> None:
    """ROC AUC and average precision are scikit-learn's, ties included, and recalls are the best allowed ones."""
    sample, scores = drawn()

    rankings, _ = evaluate.evaluate(sample, scores, seed=1, n_replicates=10)

    for ranking, chosen in zip(rankings, evaluate.test_sets(sample).values(), strict=True):
        labels, part = sample.is_phishing[chosen], scores[chosen]
        assert ranking.n_rows == chosen.sum()
        assert ranking.roc_auc.value == pytest.approx(roc_auc_score(labels, part))
        assert ranking.average_precision.value == pytest.approx(average_precision_score(labels, part))
        assert ranking.recall_at_1_percent.value == pytest.approx(recall_at(labels, part, 0.01))
        assert ranking.recall_at_01_percent.value == pytest.approx(recall_at(labels, part, 0.001))


def test_weights_are_repetitions() -> None:
    """A weight of two is the row twice, a weight of zero is no row: what resampling accounts relies on."""
    sample, scores = drawn(400)
    weight = np.random.default_rng(4).integers(0, 4, size=400)
    labels, repeated = np.repeat(sample.is_phishing, weight), np.repeat(scores, weight)

    draws = intervals.Draws(np.arange(400), weight[None, :].astype(np.int32))
    figures = intervals.ranking(sample.is_phishing, scores, draws)[0]

    expected = [roc_auc_score(labels, repeated), average_precision_score(labels, repeated)]
    assert figures.tolist() == pytest.approx([*expected, *(recall_at(labels, repeated, r) for r in (0.01, 0.001))])


def test_sets_hold_what_the_protocol_says() -> None:
    """A's and B's sets share the phishing rows, new accounts stand against B's, background stays out."""
    sample, _ = drawn()
    sets = evaluate.test_sets(sample)
    everything = sets["all"]

    assert not (sample.account[everything] == BACKGROUND).any()
    assert (sample.time[everything] >= TEST_START).all()
    a, b = sets["against A's normals"], sets["against B's normals"]
    assert set(sample.source[a & ~sample.is_phishing]) == {"A"}
    assert set(sample.source[b & ~sample.is_phishing]) == {"B"}
    assert ((a & b) == (everything & sample.is_phishing)).all()
    assert sample.is_new[sets["new accounts"]].all()
    assert "A" not in set(sample.source[sets["new accounts"] & ~sample.is_phishing])
    assert (sample.rank[sets["new accounts, first transaction"]] == 0).all()


def test_operations_count_alerts_at_the_recall() -> None:
    """At each threshold the wished share of new phishing is caught, and the rates are plain shares."""
    sample, scores = drawn()
    test = (sample.account >= 0) & (sample.time >= TEST_START)
    new = test & sample.is_phishing & sample.is_new
    background = (sample.account == BACKGROUND) & (sample.time >= VALIDATION_START)

    _, operations = evaluate.evaluate(sample, scores, seed=1, n_replicates=10)

    assert [operation.recall for operation in operations] == [0.3, 0.5, 0.7]
    for operation in operations:
        alerted = scores >= operation.threshold
        assert alerted[new].mean() >= operation.recall
        assert (scores > operation.threshold)[new].mean() < operation.recall
        assert operation.false_positives_a.value == alerted[test & ~sample.is_phishing & (sample.source == "A")].mean()
        assert operation.false_positives_b.value == alerted[test & ~sample.is_phishing & (sample.source == "B")].mean()
        assert operation.background.value == alerted[background].mean()


def test_intervals_are_over_accounts() -> None:
    """Fifty copies of every row tell nothing more: the interval stays as wide, where one over rows would shrink."""
    sample, scores = drawn(300)
    chosen = (sample.account >= 0) & (sample.time >= TEST_START)
    part, part_scores = sample.take(chosen), scores[chosen]
    again = np.repeat(np.arange(len(part.time)), 50)

    once, _ = evaluate.evaluate(_with_background(part), _padded(part_scores), seed=5, n_replicates=300)
    often, _ = evaluate.evaluate(
        _with_background(part.take(again)), _padded(part_scores[again]), seed=5, n_replicates=300
    )

    width = once[0].roc_auc.high - once[0].roc_auc.low
    assert often[0].roc_auc.value == pytest.approx(once[0].roc_auc.value)
    assert often[0].roc_auc.high - often[0].roc_auc.low == pytest.approx(width)
    assert once[0].roc_auc.low < once[0].roc_auc.value < once[0].roc_auc.high


def _with_background(sample: Sample) -> Sample:
    one = sample.take(np.array([0]))
    no = np.array([False])
    row = one._replace(account=np.array([BACKGROUND]), is_phishing=no, source=np.array([""]), is_new=no)
    return Sample._make(np.concatenate(parts) for parts in zip(sample, row, strict=True))


def _padded(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([scores, [0.0]])


def test_same_seed_gives_the_same_intervals() -> None:
    """The bootstrap is drawn from its seed alone."""
    sample, scores = drawn()

    first = evaluate.evaluate(sample, scores, seed=8, n_replicates=20)

    assert evaluate.evaluate(sample, scores, seed=8, n_replicates=20) == first
    assert evaluate.evaluate(sample, scores, seed=9, n_replicates=20) != first


def test_decisions_are_plain_shares() -> None:
    """What a model's own thresholds do is counted on the same rows."""
    sample, scores = drawn()

    review, block = evaluate.decide(sample, scores, {"review": 0.5, "block": 0.9})

    assert (review.name, block.name) == ("review", "block")
    background = (sample.account == BACKGROUND) & (sample.time >= VALIDATION_START)
    assert review.background == (scores[background] >= 0.5).mean()
    assert block.recall_new <= review.recall_new
