"""Which features a small model reads: a few at a time are thrown out, those it needs least to follow its teacher.

A feature's use is how much further a student's margins are from the teacher's when the feature's values are shuffled
among the rows it is judged on (L. Breiman, Random Forests, 2001), which are of the validation period: neither has seen
them. After each round students are trained afresh on what is left, so that of two features that tell the same one stays
(I. Guyon et al., Gene Selection for Cancer Classification using Support Vector Machines, 2002).

Judging by the teacher and not by the labels, and by margins and not by probabilities (J. Ba and R. Caruana, Do Deep
Nets Really Need to be Deep?, NIPS 2014), chooses features that last: every row tells of the whole order, where a label
tells one bit of an account. `python -m tests.bench.bench_selection` shows what the students keep later.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled_without_gil
from models import compact
from models.dataset import BACKGROUND, Sample
from models.distil import Lessons
from models.learning import FIXED, Say, Settings

if TYPE_CHECKING:
    from lightgbm import Booster

PROBE: Settings = {
    "objective": "cross_entropy",
    "learning_rate": 0.2,
    "num_leaves": compact.LEAVES_MAX,
    "max_depth": compact.DEPTH_MAX,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.5,
    "lambda_l2": 5.0,
}
FEW = 40
"""Features from which on fewer go at once: the fewer are left, the more each choice decides."""

N_SHUFFLES = 2
MARGIN_MAX = 6.0
"""Margins are compared up to here, 0.9975 as a probability: further out they no longer order anything."""
BACKGROUND_WEIGHT = 0.1
"""Of all background rows, against 1 of all labelled ones."""


class Effort(NamedTuple):
    """How thoroughly is chosen."""

    n_models: int = 6
    """Students a round, each of other rows and another seed."""
    n_trees: int = 100
    every: int = 3
    """One of so many rows is learnt from."""
    many: int = 10
    """One of so many features goes in a round."""
    few: int = 16
    """The same from FEW features on."""


THOROUGH = Effort()
QUICK = Effort(n_models=2, n_trees=40, every=9, many=3, few=3)


class Judged(NamedTuple):
    """Rows that neither the teacher nor the students learnt from."""

    rows: NDArray[np.float32]
    """Rounded to the grid, shape (n, n_trained_columns)."""
    margins: NDArray[np.float64]
    """The teacher's."""
    weight: NDArray[np.float64]
    """Adds up to 1."""

    @classmethod
    def of(cls, sample: Sample, rows: NDArray[np.float32], margins: NDArray[np.float64]) -> "Judged":
        """Return rows with their weights: an account's grows with the root of its number of rows."""
        _, who, count = np.unique(sample.account, return_inverse=True, return_counts=True)
        weight: NDArray[np.float64] = 1 / np.sqrt(count[who])
        is_background = sample.account == BACKGROUND
        if is_background.any() and not is_background.all():
            weight[is_background] *= BACKGROUND_WEIGHT * weight[~is_background].sum() / weight[is_background].sum()
        return cls(rows, margins, weight / weight.sum())

    def distance(self, margins: NDArray[np.float64]) -> float:
        """Return the mean squared difference from the teacher's margins."""
        theirs, own = (np.clip(each, -MARGIN_MAX, MARGIN_MAX) for each in (self.margins, margins))
        return float(self.weight @ np.square(own - theirs))


def choose(
    lessons: Lessons,
    judged: Judged,
    *,
    among: NDArray[np.int64],
    n_features: int,
    seed: int,
    say: Say,
    effort: Effort = THOROUGH,
) -> NDArray[np.int64]:
    """Return the places of the features to read among the trained columns, ascending.

    Args:
        lessons: What the student will learn.
        judged: Rows to compare it with its teacher on.
        among: Places to choose from, ascending.
        n_features: How many to keep.
        seed: Of models and shuffles.
        say: Told of the progress.
        effort: How thoroughly.
    """
    kept = among
    # Two at a time: LightGBM and the walk leave the interpreter to others.
    with ThreadPoolExecutor(2) as pool:
        while len(kept) > n_features:

            def use_of(number: int, kept: NDArray[np.int64] = kept) -> NDArray[np.float64]:
                booster = _fit(lessons, kept, effort, number, seed=seed + 1_000 * number + len(kept))
                columns = np.ascontiguousarray(judged.rows[:, kept].T)
                return _use(booster, judged, columns, np.random.default_rng((seed, number, len(kept))))

            use = sum(pool.map(use_of, range(effort.n_models)), np.zeros(len(kept)))
            n_out = max(1, len(kept) // (effort.many if len(kept) > FEW else effort.few))
            n_out = min(n_out, len(kept) - n_features)
            kept = np.delete(kept, np.argsort(use, kind="stable")[:n_out])
            say(len(among) - len(kept), len(among) - n_features)
    return kept


def _fit(lessons: Lessons, kept: NDArray[np.int64], effort: Effort, number: int, *, seed: int) -> "Booster":
    import lightgbm

    rows = slice(number % effort.every, None, effort.every)
    data = lightgbm.Dataset(
        np.ascontiguousarray(lessons.rows[rows][:, kept]), lessons.target[rows], weight=lessons.weight[rows]
    )
    return lightgbm.train(FIXED | PROBE | {"seed": seed}, data, effort.n_trees)


def _use(
    booster: "Booster", judged: Judged, columns: NDArray[np.float32], random: np.random.Generator
) -> NDArray[np.float64]:
    """Return what shuffling each column costs; only trees that ask for it are walked again."""
    trees = _Trees.of(booster)
    everything = np.arange(len(trees.first_split))
    n = columns.shape[1]
    margins = np.zeros(n)
    _walk(columns, *trees[:-1], everything, margins)
    whole = judged.distance(margins)
    use = np.zeros(len(columns))
    for feature in range(len(columns)):
        asking = np.flatnonzero(trees.asks[:, feature])
        if not len(asking):
            continue
        before = np.zeros(n)
        _walk(columns, *trees[:-1], asking, before)
        held = columns[feature].copy()
        for _ in range(N_SHUFFLES):
            after = np.zeros(n)
            columns[feature] = random.permutation(held)
            _walk(columns, *trees[:-1], asking, after)
            use[feature] += judged.distance(margins - before + after) - whole
        columns[feature] = held
    return use


class _Trees(NamedTuple):
    """A model's trees one after the other, as LightGBM's text has them."""

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    unknown_left: NDArray[np.bool_]
    leaf: NDArray[np.float64]
    first_split: NDArray[np.int64]
    first_leaf: NDArray[np.int64]
    is_leaf: NDArray[np.bool_]
    """The tree is nothing but one leaf."""
    asks: NDArray[np.bool_]
    """Which features each tree asks for, shape (n_trees, n_features)."""

    @classmethod
    def of(cls, booster: "Booster") -> "_Trees":
        sections = booster.model_to_string(num_iteration=-1).split("\nTree=")[1:]
        facts = [dict(line.split("=", 1) for line in section.splitlines() if "=" in line) for section in sections]

        def numbers(name: str, dtype: type) -> list[NDArray[Any]]:
            return [np.array(tree.get(name, "").split(), dtype=dtype) for tree in facts]

        feature, leaf = numbers("split_feature", np.int64), numbers("leaf_value", np.float64)
        threshold, decision = (
            np.concatenate(numbers("threshold", np.float64)),
            np.concatenate(numbers("decision_type", np.int64)),
        )
        # Bits 2 and 3 say what is missing: 2 is NaN, which goes as bit 1 says; 0 is nothing, and a NaN is read as 0.
        unknown_left = np.where((decision >> 2) & 3 == 2, (decision & 2) != 0, threshold >= 0)
        asks = np.zeros((len(facts), booster.num_feature()), dtype=np.bool_)
        for tree, asked in zip(asks, feature, strict=True):
            tree[asked] = True
        n_splits, n_leaves = [len(tree) for tree in feature], [len(tree) for tree in leaf]
        return cls(
            np.concatenate(feature),
            threshold,
            np.concatenate(numbers("left_child", np.int64)),
            np.concatenate(numbers("right_child", np.int64)),
            unknown_left,
            np.concatenate(leaf),
            np.cumsum([0, *n_splits[:-1]]),
            np.cumsum([0, *n_leaves[:-1]]),
            np.array(n_splits) == 0,
            asks,
        )


@compiled_without_gil
def _walk(
    columns: Any,
    feature: Any,
    threshold: Any,
    left: Any,
    right: Any,
    unknown_left: Any,
    leaf: Any,
    first_split: Any,
    first_leaf: Any,
    is_leaf: Any,
    chosen: Any,
    margins: Any,
) -> None:
    for tree in chosen:
        split_0, leaf_0 = first_split[tree], first_leaf[tree]
        for row in range(columns.shape[1]):
            node = -1 if is_leaf[tree] else 0
            while node >= 0:
                split = split_0 + node
                value = columns[feature[split], row]
                goes_left = unknown_left[split] if np.isnan(value) else value <= threshold[split]
                node = left[split] if goes_left else right[split]
            margins[row] += leaf[leaf_0 + ~node]
