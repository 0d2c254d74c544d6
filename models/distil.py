"""The student: at most 24 features and 32 KiB of small trees, taught by a teacher's scores.

It learns the teacher's probabilities, not the labels alone (C. Bucilă, R. Caruana and A. Niculescu-Mizil, Model
Compression, KDD 2006), so that rows without a label teach as well. Rows are rounded to the file's 16-bit grid before
training: the thresholds that are found fall between its cells, and rounding costs nothing afterwards. When the trees
stand, all leaves are estimated anew together (S. Ren et al., Global Refinement of Random Forest, CVPR 2015): boosting
fixed each tree's before it knew the later ones.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import schema
from features.compiled import compiled
from models import compact
from models.learning import FIXED, SIMULATED, Parts, Say, Settings, trained_columns

if TYPE_CHECKING:
    from lightgbm import Booster

STUDENT: Settings = {
    "objective": "cross_entropy",
    "n_trees": 180,
    "learning_rate": 0.2,
    "num_leaves": compact.LEAVES_MAX,
    "max_depth": compact.DEPTH_MAX,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.5,
    "lambda_l2": 50.0,
}
"""180 trees of 16 leaves take 141 bytes each, 25 KB, which leaves room for the header and for fine-tuning's.

The ridge of 50, in the place of 5, gained 0.0005 of ROC AUC and 0.0008 of average precision on validation with either
of two choices of features; what else was tried stands in docs/student-search.md."""

N_STUDENTS = 16
"""Of which the best on validation is kept: two differ by what LightGBM draws. docs/student-search.md has what that
gains on later rows."""
_SEEDS_APART = 1000
"""Students of two trainings whose seeds follow each other share none."""

LABEL_SHARE = 0.5
"""Of a labelled row's target; the rest is the teacher's probability. Validation ROC AUC, mean of four seeds, by this
share: 0.9588 at 0, 0.9605 at 0.5, 0.9585 at 1; two seeds differ by 0.001. Out-of-fold scores taught no better."""

N_UNLABELLED = 150_000
"""Payments drawn, of which some 100,000 are not labelled rows already."""
UNLABELLED_WEIGHT = 0.25
"""Of all of them, against 1 of the labelled rows with their past; at 1 against 1 ROC AUC was 0.9588, not 0.9605."""

COLD_WEIGHT = 1.0
"""Of cold copies, twice what the teacher gives them: simulated rows all begin cold, and would stand for it alone."""

RIDGE = 1000.0
"""Pulls each leaf towards its value from boosting, as 4,000 rows of weight 1 and probability 0.5 would. Over three
origins and seeds it kept ROC AUC 0.0003 and recall at 1 % of false positives 0.02 above leaves left as they were; 100
gained more recall on the last origin and lost ROC AUC on the first."""
NEWTON_STEPS = 3
GRADIENT_STEPS = 10
"""Of conjugate gradients in each of Newton's steps: the sum of squares falls by a thousand."""


class Lessons(NamedTuple):
    """What the student learns."""

    rows: NDArray[np.float32]
    """Rounded to the grid, shape (n, n_trained_columns)."""
    target: NDArray[np.float64]
    """Probability of phishing."""
    weight: NDArray[np.float64]


def lessons(
    parts: Parts,
    margins: NDArray[np.float64] | None,
    unlabelled: NDArray[np.float32] | None = None,
    unlabelled_margins: NDArray[np.float64] | None = None,
) -> Lessons:
    """Return labelled rows with labels and the teacher's scores, and unlabelled ones with its scores.

    Args:
        parts: The labelled rows, rounded to the grid.
        margins: The teacher's, of these rows before they were rounded; None for the labels alone.
        unlabelled: More rows, rounded to the grid; None for none.
        unlabelled_margins: The teacher's.
    """
    target = parts.is_phishing.astype(np.float64)
    if margins is not None:
        # What a simulated row is, no teacher has to guess.
        share = np.where(parts.account == SIMULATED, 1.0, LABEL_SHARE)
        target = share * target + (1 - share) * probability(margins)
    if unlabelled is None or unlabelled_margins is None or not len(unlabelled):
        return Lessons(parts.rows, target, parts.weight)
    each = UNLABELLED_WEIGHT * parts.weight[parts.is_plain].sum() / len(unlabelled)
    return Lessons(
        np.concatenate([parts.rows, unlabelled]),
        np.concatenate([target, probability(unlabelled_margins)]),
        np.concatenate([parts.weight, np.full(len(unlabelled), each)]),
    )


def probability(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logistic function of margins.

    >>> probability(np.array([0.0])).tolist()
    [0.5]
    """
    return np.asarray(1 / (1 + np.exp(-margins)))


def fit(
    lessons: Lessons, kept: NDArray[np.int64], settings: Settings, *, seed: int, say: Say, is_refined: bool = True
) -> "Booster":
    """Return the student as a LightGBM model of the kept columns, by their names.

    Args:
        lessons: What to learn.
        kept: Places of its features among the trained columns.
        settings: LightGBM's, and `n_trees`.
        seed: Of LightGBM.
        say: Told of the trees.
        is_refined: Estimate the leaves together when the trees stand.
    """
    import lightgbm

    names = [schema.FEATURES[i].name for i in trained_columns()[kept].tolist()]
    rows = np.ascontiguousarray(lessons.rows[:, kept])
    data = lightgbm.Dataset(rows, lessons.target, weight=lessons.weight, feature_name=names)
    n_trees = int(settings["n_trees"] or 0)
    asked = FIXED | {name: value for name, value in settings.items() if name != "n_trees"} | {"seed": seed}

    def tell(environment: Any) -> None:
        say(environment.iteration + 1, n_trees)

    booster = lightgbm.train(asked, data, n_trees, callbacks=[tell])
    if is_refined:
        refine(booster, rows, lessons.target, lessons.weight)
    return booster


def best(
    lessons: Lessons,
    kept: NDArray[np.int64],
    settings: Settings,
    *,
    n_students: int,
    cells: NDArray[np.float32],
    is_phishing: NDArray[np.bool_],
    seed: int,
    say: Say,
) -> "Booster":
    """Return, of students that differ by LightGBM's seed alone, the one with the highest average precision.

    Args:
        lessons: What to learn.
        kept: Places of their features among the trained columns.
        settings: LightGBM's, and `n_trees`.
        n_students: How many there are.
        cells: Trained columns of the rows to judge by, rounded to the grid; none of them teaches.
        is_phishing: Of these rows.
        seed: From which theirs are counted.
        say: Told of the students.
    """
    from sklearn.metrics import average_precision_score

    judged = np.ascontiguousarray(cells[:, kept])

    def make(student: int) -> tuple[float, "Booster"]:
        booster = fit(lessons, kept, settings, seed=seed * _SEEDS_APART + student, say=lambda _n, _of: None)
        margins = booster.predict(judged, raw_score=True, num_threads=1)
        return float(average_precision_score(is_phishing, margins)), booster

    made = []
    # Two at a time: LightGBM leaves the interpreter to others while it grows a tree.
    with ThreadPoolExecutor(2) as pool:
        for student in pool.map(make, range(n_students)):
            made.append(student)
            say(len(made), n_students)
    return max(made, key=lambda student: student[0])[1]


def refine(
    booster: "Booster", rows: NDArray[np.float32], target: NDArray[np.float64], weight: NDArray[np.float64]
) -> None:
    """Set all leaves to those of least weighted cross-entropy and ridge together, by Newton's method."""
    n_leaves = [tree["num_leaves"] for tree in booster.dump_model()["tree_info"]]
    first = np.cumsum([0, *n_leaves[:-1]])
    reached = (np.asarray(booster.predict(rows, pred_leaf=True, num_threads=1)) + first).astype(np.int32)
    start = np.array([booster.get_leaf_output(k, i) for k, n in enumerate(n_leaves) for i in range(n)])
    leaves = start.copy()
    margins = np.zeros(len(rows))
    for _ in range(NEWTON_STEPS):
        _gather(reached, leaves, margins)
        p = probability(margins)
        gradient = RIDGE * (leaves - start)
        _scatter(reached, weight * (p - target), gradient)
        leaves -= _solve(reached, weight * p * (1 - p), gradient)
    for k, n in enumerate(n_leaves):
        for i in range(n):
            booster.set_leaf_output(k, i, float(leaves[first[k] + i]))


def _solve(
    reached: NDArray[np.int32], curvature: NDArray[np.float64], gradient: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the solution of (L' C L + ridge) x = gradient by conjugate gradients, L the rows' leaves as 0 and 1."""
    solution, residual, direction = np.zeros_like(gradient), gradient.copy(), gradient.copy()
    along = np.zeros(len(reached))
    size = residual @ residual
    for _ in range(GRADIENT_STEPS):
        if size == 0:
            break
        _gather(reached, direction, along)
        image = RIDGE * direction
        _scatter(reached, curvature * along, image)
        length = size / (direction @ image)
        solution += length * direction
        residual -= length * image
        size, before = residual @ residual, size
        direction = residual + size / before * direction
    return solution


@compiled
def _gather(reached: Any, values: Any, sums: Any) -> None:
    """Set each row's sum to that of the values of its leaves."""
    for i in range(reached.shape[0]):
        total = 0.0
        for k in range(reached.shape[1]):
            total += values[reached[i, k]]
        sums[i] = total


@compiled
def _scatter(reached: Any, values: Any, sums: Any) -> None:
    """Add each row's value to the sums of its leaves."""
    for i in range(reached.shape[0]):
        for k in range(reached.shape[1]):
            sums[reached[i, k]] += values[i]
