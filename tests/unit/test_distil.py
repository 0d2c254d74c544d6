"""The student's lessons, the choice of the best, and leaves estimated together."""

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from models import compact, distil, learning
from models.learning import SIMULATED, Parts

SETTINGS = distil.STUDENT | {"n_trees": 12, "min_data_in_leaf": 20}


def silent(_n_done: int, _n: int) -> None:
    """Take no notice."""


def drawn(n: int = 3_000, *, seed: int = 1) -> Parts:
    """Return rows whose first two columns tell, half of them cold."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, len(learning.trained_columns()))).astype(np.float32)
    is_phishing = rows[:, 0] + rows[:, 1] + rng.normal(size=n) > 0
    index = np.arange(n)
    return Parts(compact.quantise(rows), is_phishing, np.ones(n), index, index, index % 2 == 1)


def loss(margins: NDArray[np.float64], lessons: distil.Lessons) -> float:
    """Return the mean cross-entropy."""
    p = distil.probability(margins)
    return float(-np.mean(lessons.target * np.log(p) + (1 - lessons.target) * np.log(1 - p)))


def test_target_is_half_label_and_half_teacher() -> None:
    """A labelled row's target lies between its label and the teacher's probability, another's is the latter."""
    parts = drawn(100)
    margins = np.linspace(-3, 3, 100)

    lessons = distil.lessons(parts, margins, parts.rows[:10], margins[:10])

    np.testing.assert_allclose(lessons.target[:100], (parts.is_phishing + distil.probability(margins)) / 2)
    np.testing.assert_allclose(lessons.target[100:], distil.probability(margins[:10]))
    warm = parts.weight[~parts.is_cold].sum()
    assert lessons.weight[100:].sum() == pytest.approx(distil.UNLABELLED_WEIGHT * warm)


def test_target_of_a_simulated_row_is_its_truth() -> None:
    """The teacher has not seen such kinds of fraud, and its guess teaches nothing about them."""
    parts = drawn(100)
    parts = parts._replace(account=np.where(np.arange(100) < 50, SIMULATED, parts.account))

    lessons = distil.lessons(parts, np.full(100, 1.5))

    np.testing.assert_array_equal(lessons.target[:50], parts.is_phishing[:50])
    assert 0 < lessons.target[50:].min() < lessons.target[50:].max() < 1


def test_without_a_teacher_the_target_is_the_label() -> None:
    """The labels alone can be learnt from."""
    parts = drawn(100)

    np.testing.assert_array_equal(distil.lessons(parts, None).target, parts.is_phishing)


def test_student_of_rounded_rows_loses_nothing_in_the_file() -> None:
    """Its trees in the file's form send every row to the leaf it had in training: only leaves are rounded."""
    parts = drawn()
    lessons = distil.lessons(parts, None)
    kept = np.array([0, 1, 5])

    booster = distil.fit(lessons, kept, SETTINGS, seed=1, say=silent)

    trees, names, scale = compact.from_booster(booster, booster.feature_name())
    margins = np.asarray(booster.predict(parts.rows[:, kept], raw_score=True))
    keys = compact.key16(parts.rows[:, kept])[:, [booster.feature_name().index(name) for name in names]]
    np.testing.assert_allclose(walk(trees, keys, scale), margins, atol=scale * len(trees.n_splits))


def walk(trees: compact.Trees, keys: NDArray[np.uint16], scale: float) -> NDArray[np.float64]:
    """Return margins by the plain meaning of the arrays."""
    sums = np.zeros(len(keys), dtype=np.int64)
    split, leaf = 0, 0
    for n_splits in trees.n_splits.astype(int).tolist():
        for i, row in enumerate(keys):
            node = 0 if n_splits else -1
            while node >= 0:
                at = split + node
                node = int((trees.left if row[trees.feature[at]] <= trees.threshold[at] else trees.right)[at])
            sums[i] += trees.leaf[leaf + ~node]
        split, leaf = split + n_splits, leaf + n_splits + 1
    return sums * scale


def test_best_student_is_the_one_of_highest_average_precision() -> None:
    """On the rows to judge by, which are others than it learnt; the same seed gives the same one again."""
    lessons, judged = distil.lessons(drawn(), None), drawn(400, seed=2)
    kept = np.arange(3)

    def best() -> lightgbm.Booster:
        return distil.best(
            lessons, kept, SETTINGS, n_students=4, cells=judged.rows, is_phishing=judged.is_phishing, seed=1, say=silent
        )

    def precision(booster: lightgbm.Booster) -> float:
        return float(average_precision_score(judged.is_phishing, booster.predict(judged.rows[:, kept])))

    everyone = [distil.fit(lessons, kept, SETTINGS, seed=1000 + i, say=silent) for i in range(4)]
    found = [precision(booster) for booster in everyone]
    assert len(set(found)) == 4
    assert precision(best()) == max(found)
    assert best().model_to_string() == everyone[int(np.argmax(found))].model_to_string()


def test_leaves_estimated_together_fit_better_and_ask_the_same() -> None:
    """The loss falls, no split changes, and a second estimate from there changes next to nothing."""
    lessons = distil.lessons(drawn(), None)
    kept = np.arange(5)
    plain = distil.fit(lessons, kept, SETTINGS, seed=1, say=silent, is_refined=False)
    refined = distil.fit(lessons, kept, SETTINGS, seed=1, say=silent)
    rows = lessons.rows[:, kept]

    before, after = (np.asarray(model.predict(rows, raw_score=True)) for model in (plain, refined))

    assert loss(after, lessons) < loss(before, lessons)
    np.testing.assert_array_equal(plain.predict(rows, pred_leaf=True), refined.predict(rows, pred_leaf=True))


def test_leaf_estimate_is_that_of_plain_newton() -> None:
    """On a tree or two the sums over leaves give what dense matrices give."""
    lessons = distil.lessons(drawn(400), None)
    rows = np.ascontiguousarray(lessons.rows[:, :2])
    settings = learning.FIXED | {"objective": "cross_entropy", "num_leaves": 4, "min_data_in_leaf": 20}
    booster = lightgbm.train(settings, lightgbm.Dataset(rows, lessons.target), 2)
    reached = np.asarray(booster.predict(rows, pred_leaf=True))
    n_leaves = [tree["num_leaves"] for tree in booster.dump_model()["tree_info"]]
    design = np.concatenate([np.eye(n)[reached[:, k]] for k, n in enumerate(n_leaves)], axis=1)
    start = np.array([booster.get_leaf_output(k, i) for k, n in enumerate(n_leaves) for i in range(n)])
    leaves = start.copy()
    for _ in range(30):
        p = distil.probability(design @ leaves)
        gradient = design.T @ (p - lessons.target) + distil.RIDGE * (leaves - start)
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + distil.RIDGE * np.eye(len(leaves))
        leaves -= np.linalg.solve(curvature, gradient)

    distil.refine(booster, rows, lessons.target, np.ones(len(rows)))

    found = [booster.get_leaf_output(k, i) for k, n in enumerate(n_leaves) for i in range(n)]
    np.testing.assert_allclose(found, leaves, atol=1e-4)
