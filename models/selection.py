"""Which features a small model reads: a few at a time are thrown out, the least useful first.

A feature's use is what a model loses when the feature's values are shuffled among the rows it is judged on (L. Breiman,
Random Forests, 2001). Those are the rows of a fold of accounts that the model did not learn, of the year up to the test
period; each of N_FOLDS folds is judged so. After each round the models are trained afresh on what is left, so that of
two features that tell the same one stays (I. Guyon et al., Gene Selection for Cancer Classification using Support
Vector Machines, 2002). Choosing by the gain in training instead lost 0.004 of ROC AUC on validation: it prefers what
tells accounts apart that are known already.

Judging by the quarters after three origins, as an earlier recipe did, hangs on few accounts and chose by their chance:
learnt before 2017-10 and judged from 2018-01 to the end of the validation period, students of features chosen so kept
0.9901 to 0.9954 of their teacher's average precision, those of folds 0.9950 to 0.9983.

What is thrown out early is a matter of luck all the same. So several eliminations are made, each with folds of its own,
and the set is kept whose models do best on further folds; the set so chosen kept 0.9982.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled_without_gil
from features.table import DAY_S
from models import compact
from models.dataset import BACKGROUND, Cuts, Sample
from models.learning import FIXED, Parts, Say, Settings

if TYPE_CHECKING:
    from lightgbm import Booster

PROBE: Settings = {
    "objective": "binary",
    "learning_rate": 0.2,
    "num_leaves": compact.LEAVES_MAX,
    "max_depth": compact.DEPTH_MAX,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.5,
    "lambda_l2": 5.0,
}
N_FOLDS = 4
JUDGED_DAYS = 365
"""Before the test period: the rows of left-out accounts that decide."""
N_JUDGING = 2
"""Divisions into folds by which eliminations are compared, beside those that they were made with."""
JUDGING_SEEDS = (11, 12, 13)
"""Of the models by which eliminations are compared."""
FEW = 40
"""Features from which on fewer go at once: the fewer are left, the more each choice decides."""


class Effort(NamedTuple):
    """How thoroughly is chosen: 87 to 24 features take 19 rounds and 180 s of one core, or 4 and 8 s, each time."""

    n_draws: int = 4
    """Eliminations, of which the best is kept."""
    n_trees: int = 100
    every: int = 3
    """One of so many rows is learnt from."""
    many: int = 10
    """One of so many features goes in a round."""
    few: int = 16
    """The same from FEW features on."""


THOROUGH = Effort()
QUICK = Effort(n_draws=1, n_trees=40, every=9, many=3, few=3)

RATES = np.geomspace(0.005, 0.05, 8)
"""False-positive rates whose recalls are averaged: at 1 % alone, recall hangs on one account of the validation rows."""
AP_FACTOR, RECALL_FACTOR = 0.5, 0.15
"""Beside ROC AUC's 1: recall varies most from one choice to the next and says least."""


class _Fold(NamedTuple):
    learnt: Parts
    """Rows of the other accounts, and of none."""
    rows: NDArray[np.float32]
    """To judge on, quantised, shape (n, n_trained_columns)."""
    is_phishing: NDArray[np.bool_]
    weight: NDArray[np.float64]
    member: NDArray[np.bool_]
    """Which rows each test set has, shape (n_sets, n)."""


def choose(
    parts: Parts,
    sample: Sample,
    rows: NDArray[np.float32],
    *,
    cuts: Cuts,
    among: NDArray[np.int64],
    n_features: int,
    seed: int,
    say: Say,
    effort: Effort = THOROUGH,
) -> NDArray[np.int64]:
    """Return the places of the features to read among the trained columns, ascending.

    Args:
        parts: What is learnt from, quantised.
        sample: Rows up to the test period, those that are learnt from included.
        rows: Their trained columns, quantised.
        cuts: Where the validation and the test period start.
        among: Places to choose from, ascending.
        n_features: How many to keep.
        seed: Of the first elimination's models and shuffles; the others' are the next ones. Folds do not hang on it.
        say: Told of the progress.
        effort: How thoroughly.
    """
    n_out = len(among) - n_features
    done = [0] * effort.n_draws

    def divide(number: int) -> list[_Fold]:
        return _folds(parts, sample, rows, cuts, every=effort.every, seed=number)

    def draw(number: int) -> NDArray[np.int64]:
        def tell(n: int) -> None:
            done[number] = n
            say(sum(done), n_out * effort.n_draws)

        return _eliminate(divide(number), among, n_features, seed=seed + number, effort=effort, tell=tell)

    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(draw, range(effort.n_draws)))
        if len(drawn) == 1:
            return drawn[0]
        further = [fold for i in range(N_JUDGING) for fold in divide(effort.n_draws + i)]
        quality = list(pool.map(lambda kept: _compare(further, kept, effort.n_trees), drawn))
    return drawn[int(np.argmax(quality))]


def _eliminate(
    folds: list[_Fold],
    kept: NDArray[np.int64],
    n_features: int,
    *,
    seed: int,
    effort: Effort,
    tell: Callable[[int], None],
) -> NDArray[np.int64]:
    random = np.random.default_rng(seed)
    n_start = len(kept)
    while len(kept) > n_features:
        use = np.zeros(len(kept))
        for fold in folds:
            booster = _fit(fold.learnt, kept, effort.n_trees, seed + len(kept))
            use += _use(booster, fold, np.ascontiguousarray(fold.rows[:, kept].T), random)
        n_out = max(1, len(kept) // (effort.many if len(kept) > FEW else effort.few))
        n_out = min(n_out, len(kept) - n_features)
        kept = np.delete(kept, np.argsort(use, kind="stable")[:n_out])
        tell(n_start - len(kept))
    return kept


def _compare(folds: list[_Fold], kept: NDArray[np.int64], n_trees: int) -> float:
    """Return the mean quality of several models of these features over the folds."""
    found = []
    for fold in folds:
        rows = np.ascontiguousarray(fold.rows[:, kept])
        for seed in JUDGING_SEEDS:
            booster = _fit(fold.learnt, kept, n_trees, seed)
            margins = np.asarray(booster.predict(rows, raw_score=True, num_threads=1), dtype=np.float64)
            found.append(_quality(margins, fold))
    return float(np.mean(found))


def _folds(
    parts: Parts, sample: Sample, rows: NDArray[np.float32], cuts: Cuts, *, every: int, seed: int
) -> list[_Fold]:
    """Return the folds: each account's rows of the judged year, and one of `every` rows that are not its fold's."""
    labelled = sample.account != BACKGROUND
    n_accounts = 1 + max(int(sample.account.max()), int(parts.account.max()))
    first_seen = np.full(n_accounts, np.iinfo(np.int64).max)
    np.minimum.at(first_seen, sample.account[labelled], sample.time[labelled])
    member = np.random.default_rng(seed).integers(N_FOLDS, size=n_accounts)
    start = cuts.test_start - JUDGED_DAYS * DAY_S
    folds = []
    for i in range(N_FOLDS):
        judged = labelled & (sample.time >= start) & (sample.time < cuts.test_start) & (member[sample.account] == i)
        # Background rows are nobody's and are learnt from always.
        learnt = np.flatnonzero((parts.account < 0) | (member[parts.account] != i))[::every]
        part = sample.take(judged)
        sets = _test_sets(part, first_seen[part.account] >= start)
        # Where a fold has too little to learn or judge by, the others decide.
        if len(sets) and len(np.unique(parts.is_phishing[learnt])) == 2:
            _, who, count = np.unique(part.account, return_inverse=True, return_counts=True)
            folds.append(_Fold(parts.take(learnt), rows[judged], part.is_phishing, 1 / np.sqrt(count[who]), sets))
    return folds


def _test_sets(part: Sample, is_new: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return all rows, those against each source of normal ones, and new accounts, where a set has both kinds."""
    everything = np.ones(len(part.time), dtype=np.bool_)
    sources = np.unique(part.source[~part.is_phishing]).tolist()
    sets = [everything, is_new] + [part.is_phishing | (part.source == name) for name in sources]
    sets = [chosen for chosen in sets if len(np.unique(part.is_phishing[chosen])) == 2]
    return np.array(sets, dtype=np.bool_).reshape(len(sets), len(everything))


def _fit(parts: Parts, kept: NDArray[np.int64], n_trees: int, seed: int) -> "Booster":
    import lightgbm

    data = lightgbm.Dataset(parts.rows[:, kept], parts.is_phishing, weight=parts.weight)
    return lightgbm.train(FIXED | PROBE | {"seed": seed}, data, n_trees)


def _use(
    booster: "Booster", fold: _Fold, columns: NDArray[np.float32], random: np.random.Generator
) -> NDArray[np.float64]:
    """Return what shuffling each column costs; only trees that ask for it are walked again."""
    trees = _Trees.of(booster)
    everything = np.arange(len(trees.first_split))
    n = columns.shape[1]
    margins = np.zeros(n)
    _walk(columns, *trees[:-1], everything, margins)
    whole = _quality(margins, fold)
    use = np.zeros(len(columns))
    for feature in range(len(columns)):
        asking = np.flatnonzero(trees.asks[:, feature])
        if not len(asking):
            continue
        before, after = np.zeros(n), np.zeros(n)
        _walk(columns, *trees[:-1], asking, before)
        held = columns[feature].copy()
        columns[feature] = random.permutation(held)
        _walk(columns, *trees[:-1], asking, after)
        columns[feature] = held
        use[feature] = whole - _quality(margins - before + after, fold)
    return use


def _quality(margins: NDArray[np.float64], fold: _Fold) -> float:
    order = np.argsort(-margins, kind="stable")
    figures = np.zeros((len(fold.member), 3))
    _figures(fold.is_phishing[order], fold.weight[order], np.ascontiguousarray(fold.member[:, order]), RATES, figures)
    return float((figures @ (1.0, AP_FACTOR, RECALL_FACTOR)).mean())


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


@compiled_without_gil
def _figures(is_phishing: Any, weight: Any, member: Any, rates: Any, figures: Any) -> None:
    """Fill in ROC AUC, average precision and mean recall of each set, rows in order of falling score."""
    for s in range(member.shape[0]):
        n_caught, n_false = 0.0, 0.0
        for i in range(len(weight)):
            if member[s, i]:
                if is_phishing[i]:
                    n_caught += weight[i]
                else:
                    n_false += weight[i]
        caught, false, area, precision, recalls, rate = 0.0, 0.0, 0.0, 0.0, 0.0, 0
        for i in range(len(weight)):
            if not member[s, i]:
                continue
            if is_phishing[i]:
                caught += weight[i]
                precision += weight[i] * caught / (caught + false)
            else:
                false += weight[i]
                area += weight[i] * caught
                while rate < len(rates) and false > rates[rate] * n_false:
                    recalls += caught
                    rate += 1
        figures[s, 0] = area / (n_caught * n_false)
        figures[s, 1] = precision / n_caught
        figures[s, 2] = (recalls + (len(rates) - rate) * caught) / (len(rates) * n_caught)
