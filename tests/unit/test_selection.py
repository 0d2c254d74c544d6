"""Which features are kept."""

import numpy as np
import pytest

from features import schema
from models import selection
from models.dataset import BACKGROUND, Sample
from models.distil import Lessons, probability
from models.selection import Judged
from tests.boosters import drawn_rows, trained

EFFORT = selection.Effort(n_models=2, n_trees=20, every=1, many=4, few=4)


def silent(_n_done: int, _n: int) -> None:
    """Take no notice."""


def drawn(*, seed: int = 1) -> tuple[Lessons, Judged]:
    """Return rows whose teacher reads columns 2 and 5, and 7 is 2 once more with a little noise."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(6_000, 12)).astype(np.float32)
    rows[:, 7] = rows[:, 2] + rng.normal(size=len(rows)) / 10
    margins = 2.0 * (rows[:, 2] + rows[:, 5]).astype(np.float64)
    learnt, judged = slice(4_000), slice(4_000, None)
    lessons = Lessons(rows[learnt], probability(margins[learnt]), np.ones(4_000))
    return lessons, Judged(rows[judged], margins[judged], np.full(2_000, 1 / 2_000))


def choose(lessons: Lessons, judged: Judged, *, n_features: int, seed: int = 1) -> list[int]:
    """Return the kept places."""
    kept = selection.choose(
        lessons, judged, among=np.arange(12), n_features=n_features, seed=seed, say=silent, effort=EFFORT
    )
    return kept.tolist()


def labelled(account: list[int]) -> Sample:
    """Return rows of these accounts."""
    n = len(account)
    no, zeros = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.int64)
    return Sample(np.arange(n), zeros, np.array(account), zeros, no, np.full(n, "A"), no)


def test_what_tells_is_kept() -> None:
    """Noise goes first, then the copy of what is kept already."""
    assert 5 in choose(*drawn(), n_features=2)
    assert len({2, 7} & set(choose(*drawn(), n_features=2))) == 1
    assert {2, 5, 7} <= set(choose(*drawn(), n_features=4))


def test_choice_is_the_same_for_a_seed() -> None:
    """Models and shuffles are drawn from the seed alone."""
    assert choose(*drawn(), n_features=4) == choose(*drawn(), n_features=4)


def test_walked_trees_give_what_lightgbm_gives() -> None:
    """Unknown values included: a feature's use must be about the model that was trained."""
    booster = trained(n_trees=15)
    rows = drawn_rows(500, seed=3)[:, [schema.index(name) for name in booster.feature_name()]]
    trees = selection._Trees.of(booster)
    margins = np.zeros(len(rows))

    selection._walk(np.ascontiguousarray(rows.T), *trees[:-1], np.arange(15), margins)

    np.testing.assert_allclose(margins, booster.predict(rows, raw_score=True), rtol=1e-12)
    assert trees.asks.shape == (15, rows.shape[1])


def test_rows_of_one_account_weigh_less() -> None:
    """By the root of their number; and all of the background has a tenth of the labelled rows' weight."""
    weight = Judged.of(labelled([1, 1, 1, 1, 2, BACKGROUND, BACKGROUND]), np.zeros((7, 1)), np.zeros(7)).weight

    assert weight.sum() == pytest.approx(1)
    assert weight[:5] / weight[4] == pytest.approx([0.5, 0.5, 0.5, 0.5, 1])
    assert weight[5:].sum() / weight[:5].sum() == pytest.approx(selection.BACKGROUND_WEIGHT)


def test_distance_is_bounded() -> None:
    """Margins beyond the bound are alike, on either side."""
    judged = Judged(np.zeros((3, 1)), np.array([0.0, 9.0, -100.0]), np.array([0.5, 0.25, 0.25]))

    assert judged.distance(np.array([2.0, 50.0, -7.0])) == pytest.approx(0.5 * 2.0**2)
    assert judged.distance(np.array([0.0, -7.0, -6.0])) == pytest.approx(0.25 * 12.0**2)
