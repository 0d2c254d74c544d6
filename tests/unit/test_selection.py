"""Which features are kept."""

import numpy as np
import pytest

from features import schema
from models import selection
from models.dataset import BACKGROUND, CUTS, Sample
from models.learning import Parts
from tests.boosters import drawn_rows, trained

EFFORT = selection.Effort(n_draws=2, n_trees=20, every=1, many=4, few=4)


def silent(_n_done: int, _n: int) -> None:
    """Take no notice."""


def drawn(*, seed: int = 1) -> tuple[Parts, Sample, np.ndarray]:
    """Return rows over a year and a half of which columns 2 and 5 tell, and 7 is 2 once more with a little noise."""
    rng = np.random.default_rng(seed)
    n = 4_000
    rows = rng.normal(size=(n, 12)).astype(np.float32)
    is_phishing = rows[:, 2] + rows[:, 5] + rng.normal(size=n) / 2 > 0
    rows[:, 7] = rows[:, 2] + rng.normal(size=n) / 10
    time = np.sort(rng.integers(CUTS.test_start - 540 * 86_400, CUTS.test_start, size=n))
    account = rng.integers(300, size=n)
    no = np.zeros(n, dtype=np.bool_)
    sample = Sample(np.arange(n), time, account, np.zeros(n, np.int64), is_phishing, np.full(n, "A"), no)
    learnt = time < CUTS.validation_start
    parts = Parts(rows[learnt], is_phishing[learnt], np.ones(learnt.sum()), account[learnt], time[learnt], no[learnt])
    return parts, sample, rows


def choose(parts: Parts, sample: Sample, rows: np.ndarray, *, n_features: int, seed: int = 1) -> list[int]:
    """Return the kept places."""
    kept = selection.choose(
        parts, sample, rows, cuts=CUTS, among=np.arange(12), n_features=n_features, seed=seed, say=silent, effort=EFFORT
    )
    return kept.tolist()


def test_what_tells_is_kept() -> None:
    """Noise goes first, then the copy of what is kept already."""
    assert 5 in choose(*drawn(), n_features=2)
    assert len({2, 7} & set(choose(*drawn(), n_features=2))) == 1
    assert {2, 5, 7} <= set(choose(*drawn(), n_features=4))


def test_choice_is_the_same_for_a_seed() -> None:
    """Models and shuffles are drawn from the seed alone."""
    assert choose(*drawn(), n_features=4) == choose(*drawn(), n_features=4)


def test_no_fold_learns_from_the_accounts_it_is_judged_by() -> None:
    """Each row of the judged year is judged once, by models that never saw its account; background is always learnt."""
    parts, sample, rows = drawn()
    parts.account[:40] = BACKGROUND
    start = CUTS.test_start - selection.JUDGED_DAYS * 86_400

    folds = selection._folds(parts, sample, rows, CUTS, every=1, seed=1)

    judged = [set(sample.account[np.isin(rows[:, 0], fold.rows[:, 0])]) for fold in folds]
    assert len(folds) == selection.N_FOLDS
    assert sum(len(fold.rows) for fold in folds) == (sample.time >= start).sum()
    for fold, accounts in zip(folds, judged, strict=True):
        assert accounts
        assert not accounts & set(fold.learnt.account.tolist())
        assert (fold.learnt.account == BACKGROUND).sum() == 40


def test_walked_trees_give_what_lightgbm_gives() -> None:
    """Unknown values included: a feature's use must be about the model that was trained."""
    booster = trained(n_trees=15)
    rows = drawn_rows(500, seed=3)[:, [schema.index(name) for name in booster.feature_name()]]
    trees = selection._Trees.of(booster)
    margins = np.zeros(len(rows))

    selection._walk(np.ascontiguousarray(rows.T), *trees[:-1], np.arange(15), margins)

    np.testing.assert_allclose(margins, booster.predict(rows, raw_score=True), rtol=1e-12)
    assert trees.asks.shape == (15, rows.shape[1])


def test_figures_are_those_of_the_definitions() -> None:
    """ROC AUC is the share of pairs in order, average precision the mean precision at each caught row."""
    is_phishing = np.array([True, False, True, True, False, False])
    weight = np.array([1.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    figures = np.zeros((1, 3))

    selection._figures(is_phishing, weight, np.ones((1, 6), dtype=np.bool_), np.array([0.1, 0.5]), figures)

    assert figures[0] == pytest.approx([(1 * 2 + 3 + 3) / 12, np.mean([1, 2 / 4, 3 / 5]), np.mean([1 / 3, 3 / 3])])
