"""The leaves of a model estimated anew from few labelled accounts, shrunk towards what they were.

The shipped trees stay: what they ask is what the large training set taught. Their leaves are estimated anew, shrunk
towards the shipped values, together with those of some more trees, which are grown on what the shipped ones get wrong
and shrunk towards 0. How far leaves may move and how many trees are added is chosen by cross-validation over accounts;
to move nothing but slope and intercept is among the choices, and so is to start anew, with trees on features chosen by
the labels alone, which wins where they are many. Calibration and thresholds come from the left-out folds.

The estimate is a ridge-penalised logistic regression on the reached leaves: the posterior mode under independent normal
priors around the shipped leaves, as in T. Evgeniou and M. Pontil, Regularized Multi-Task Learning (KDD 2004), which
shrinks a task's weights towards those of the tasks before it.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import schema
from features.errors import InputError
from models import compact
from models.compact import Artifact, Trees

if TYPE_CHECKING:
    from lightgbm import Booster
    from scipy.sparse import csr_matrix

ACCOUNTS_MIN = 20
"""Of each kind: with fewer, a left-out fold of five holds less than four accounts, and the choice is a coin's."""

FOLDS = 5

SPREADS = (1.0, 2.0, 4.0)
"""Standard deviations that the leaves' changes may give a margin, before any label is seen."""


class Sizes(NamedTuple):
    """Numbers of trees to try."""

    extra: Sequence[int] = (0, 48, 96)
    """To add. Where the file's limit leaves no room for them, the shipped trees that say least make it."""
    anew: int = 150
    """Of a model that starts anew: 21 KB."""


SIZES = Sizes()
SHIPPED_TREES_MIN = 0.4
"""Share of the shipped trees that stays."""
HEADER_BYTES_SPARE = 1_024
"""What the longer header of a fine-tuned model may take."""

EXTRA_SETTINGS: dict[str, bool | int | float | str] = {
    "objective": "binary",
    "num_leaves": compact.LEAVES_MAX,
    "max_depth": compact.DEPTH_MAX,
    "learning_rate": 0.1,
    "min_data_in_leaf": 10,
    "lambda_l2": 5.0,
    "feature_fraction": 0.5,
    "max_bin": 63,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
    "boost_from_average": False,
}

SLOPE_SPREAD = 1.0
"""Prior standard deviation of the factor on the shipped margin, around 1."""
SLOPE_MIN = 1e-3

ITERATIONS_MAX = 60


class Labelled(NamedTuple):
    """Payments with the labels of their accounts."""

    rows: NDArray[np.float32]
    """Shape (n, N_FEATURES)."""
    is_phishing: NDArray[np.bool_]
    account: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> "Labelled":
        """Return the chosen rows."""
        return Labelled._make(array[chosen] for array in self)

    def weights(self) -> NDArray[np.float64]:
        """Return a weight for each row: the kinds alike, within a kind each account alike, one an account in all.

        What the labels say grows with the accounts, not with the rows: those of one account resemble each other.
        """
        _, member, count = np.unique(self.account, return_inverse=True, return_counts=True)
        weight: NDArray[np.float64] = 1.0 / count[member]
        for kind in (self.is_phishing, ~self.is_phishing):
            weight[kind] *= len(count) / 2 / weight[kind].sum()
        return weight


class Forest(NamedTuple):
    """Trees whose leaves are plain numbers, to be estimated."""

    trees: Trees
    """Their own `leaf` is not read."""
    columns: NDArray[np.int64]
    """Of the feature row, for each of the trees' features."""
    leaf: NDArray[np.float64]

    @classmethod
    def of(cls, artifact: Artifact) -> "Forest":
        """Return a model's trees."""
        columns = np.array([schema.index(name) for name in artifact.header.features], dtype=np.int64)
        return cls(artifact.trees, columns, artifact.trees.leaf.astype(np.float64) * artifact.header.leaf_scale)

    def reached(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the leaf that each row reaches in each tree, counted over all trees: shape (n, n_trees)."""
        values = rows[:, self.columns]
        keys, unknown = compact.key16(values), np.isnan(values)
        trees, each = self.trees, np.arange(len(rows))
        reached = np.empty((len(rows), len(trees.n_splits)), dtype=np.int64)
        start = 0
        for tree, n_splits in enumerate(trees.n_splits.tolist()):
            place = np.full(len(rows), 0 if n_splits else -1)
            for _ in range(compact.DEPTH_MAX if n_splits else 0):
                split = start + np.maximum(place, 0)
                feature = trees.feature[split]
                is_left = np.where(
                    unknown[each, feature],
                    trees.unknown_left[split] != 0,
                    keys[each, feature] <= trees.threshold[split],
                )
                place = np.where(place < 0, place, np.where(is_left, trees.left[split], trees.right[split]))
            reached[:, tree] = start + tree + ~place
            start += n_splits
        return reached

    def margins(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return each row's sum of leaves."""
        return np.asarray(self.leaf[self.reached(rows)].sum(axis=1))

    def n_bytes(self) -> NDArray[np.int64]:
        """Return what each tree takes of the file: splits with their bits, leaves with their cover, and a count."""
        return np.asarray(tree_bytes(self.trees.n_splits.astype(np.int64)), dtype=np.int64)

    def spread(self) -> NDArray[np.float64]:
        """Return the variance of each tree's leaves over the rows that it was trained on: how much it says."""
        tree = np.repeat(np.arange(len(self.trees.n_splits)), self.trees.n_splits.astype(np.int64) + 1)
        cover = self.trees.cover.astype(np.float64)
        total = np.bincount(tree, weights=cover)
        mean = np.bincount(tree, weights=cover * self.leaf) / total
        return np.asarray(np.bincount(tree, weights=cover * (self.leaf - mean[tree]) ** 2) / total)

    def only(self, chosen: NDArray[np.bool_]) -> "Forest":
        """Return some of the trees, in their order."""
        n_splits = self.trees.n_splits.astype(np.int64)
        of_split, of_leaf = np.repeat(chosen, n_splits), np.repeat(chosen, n_splits + 1)
        of = {"n_splits": chosen, "leaf": of_leaf, "cover": of_leaf}
        parts = (getattr(self.trees, name)[of.get(name, of_split)] for name in Trees._fields)
        return Forest(Trees(*parts), self.columns, self.leaf[of_leaf])

    def joined(self, other: "Forest") -> "Forest":
        """Return the trees of both, which read the same columns."""
        trees = Trees(*(np.concatenate([ours, theirs]) for ours, theirs in zip(self.trees, other.trees, strict=True)))
        return Forest(trees, self.columns, np.concatenate([self.leaf, other.leaf]))


class Choice(NamedTuple):
    """How far to go from the shipped model."""

    spread: float
    """0 leaves the leaves as they are."""
    n_extra: int
    """Trees added."""
    is_anew: bool = False
    """Nothing of the shipped model is kept."""


class Fitted(NamedTuple):
    """What least penalised loss gave: margins are slope x shipped + design @ change + intercept."""

    slope: float
    intercept: float
    change: NDArray[np.float64]


class Tuned(NamedTuple):
    """A fine-tuned forest."""

    forest: Forest
    slope: float
    intercept: float
    """Of its calibration to labels of either kind alike."""
    choice: Choice
    losses: dict[Choice, float]
    """Mean logistic loss of the left-out accounts, of each choice."""
    margins: NDArray[np.float64]
    """Of the labelled rows, each calibrated and from the fit that left its account out."""
    shipped: NDArray[np.float64]
    """Of the labelled rows, by the model as it was."""
    weight: NDArray[np.float64]
    """Of the labelled rows."""


def fine_tune(artifact: Artifact, labelled: Labelled, *, seed: int, sizes: Sizes = SIZES) -> Tuned:
    """Return a model's trees fitted to labelled accounts; the same input gives the same numbers.

    Args:
        artifact: The model to start from.
        labelled: Rows that it did not learn from.
        seed: Of the folds and of the extra trees.
        sizes: Numbers of trees to try.

    Raises:
        InputError: There are too few accounts of a kind.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-not-found, import-untyped, unused-ignore]

    _check(labelled)
    # The optimiser's small matrix products took 60 times as long on two threads that had to wait for one another.
    with threadpool_limits(limits=1):
        return _fine_tune(artifact, labelled, seed, sizes)


def _fine_tune(artifact: Artifact, labelled: Labelled, seed: int, sizes: Sizes) -> Tuned:
    forest, starts = Forest.of(artifact), bases(artifact, (0, *sizes.extra))
    left_out: dict[Choice, NDArray[np.float64]] = {}
    for fold in folds(labelled, seed):
        learnt, rows = labelled.take(~fold), labelled.rows[fold]
        for choice, tuned, intercept in (*_fits(starts, learnt, seed=seed), _anew(learnt, sizes.anew, seed=seed)):
            margins = left_out.setdefault(choice, np.zeros(len(fold)))
            margins[fold] = tuned.margins(rows) + intercept
    losses = {choice: _loss(margins, labelled) for choice, margins in left_out.items()}
    best = min(losses, key=lambda choice: losses[choice])
    if best.is_anew:
        _, tuned, intercept = _anew(labelled, sizes.anew, seed=seed)
    else:
        fits = _fits({best.n_extra: starts[best.n_extra]}, labelled, seed=seed)
        tuned, intercept = next((tuned, intercept) for choice, tuned, intercept in fits if choice == best)
    calibration = _calibrate(left_out[best], labelled)
    margins = calibration.slope * left_out[best] + calibration.intercept
    intercept = calibration.slope * intercept + calibration.intercept
    shipped, weight = forest.margins(labelled.rows), labelled.weights()
    return Tuned(tuned, calibration.slope, intercept, best, losses, margins, shipped, weight)


def tree_bytes(n_splits: NDArray[np.int64] | int) -> Any:
    """Return what trees of so many splits take of the file, the splits' bits as whole bytes.

    >>> tree_bytes(15)
    142
    """
    return 1 + 5 * n_splits + (n_splits + 7) // 8 + 4 * (n_splits + 1)


def bases(artifact: Artifact, extra_trees: Sequence[int] = SIZES.extra) -> dict[int, Forest]:
    """Return for each number of trees to add the shipped ones that stay beside them within the file's limit.

    A number that would leave too few of the shipped trees is left out.
    """
    forest = Forest.of(artifact)
    n_bytes, order = forest.n_bytes(), np.argsort(forest.spread(), kind="stable")
    spare = compact.FILE_BYTES_MAX - artifact.n_bytes - HEADER_BYTES_SPARE
    found = {}
    for n_extra in extra_trees:
        wanted = n_extra * tree_bytes(compact.LEAVES_MAX - 1) - max(0, spare)
        freed = np.concatenate([[0], np.cumsum(n_bytes[order])])
        n_dropped = int(np.searchsorted(freed, wanted)) if wanted > 0 else 0
        n_kept = len(order) - n_dropped
        if n_kept < SHIPPED_TREES_MIN * len(order) or n_kept + n_extra > compact.TREES_MAX:
            continue
        stays = np.ones(len(order), dtype=np.bool_)
        stays[order[:n_dropped]] = False
        found[n_extra] = forest.only(stays) if n_dropped else forest
    return found


def folds(labelled: Labelled, seed: int) -> list[NDArray[np.bool_]]:
    """Return which rows each fold leaves out: whole accounts, either kind's spread evenly."""
    random = np.random.default_rng(seed)
    fold = np.zeros(len(labelled.account), dtype=np.int64)
    for kind in (labelled.is_phishing, ~labelled.is_phishing):
        accounts, member = np.unique(labelled.account[kind], return_inverse=True)
        fold[kind] = (random.permutation(len(accounts)) % FOLDS)[member]
    return [fold == i for i in range(FOLDS)]


def fit_leaves(
    design: "csr_matrix",
    shipped: NDArray[np.float64],
    is_phishing: NDArray[np.bool_],
    weight: NDArray[np.float64],
    spread: float,
    near: Fitted | None = None,
) -> Fitted:
    """Return what has the least penalised logistic loss.

    A margin sums one leaf of each tree: with a standard deviation of spread / sqrt(n_trees) of each leaf's change, the
    margins' is the spread, however many trees there are.

    Args:
        design: 1 where a row reaches a leaf, shape (n, n_leaves).
        shipped: The shipped model's margins, shape (n,).
        is_phishing: Labels.
        weight: Of each row.
        spread: Prior standard deviation of a margin's change; 0 fits slope and intercept alone.
        near: Where to look first; the solution of another spread saves half of the steps.
    """
    from scipy.optimize import minimize

    sign = np.where(is_phishing, 1.0, -1.0)
    n_leaves = design.shape[1] if spread else 0
    precision = design.getnnz() / design.shape[0] / spread**2 if spread else 0.0
    transposed = design.T.tocsr()

    def loss(beta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slope, intercept, change = beta[0], beta[1], beta[2:]
        margin = slope * shipped + intercept + (design @ change if n_leaves else 0.0)
        off = (slope - 1) / SLOPE_SPREAD
        lost = weight @ np.logaddexp(0.0, -sign * margin) + 0.5 * precision * change @ change + 0.5 * off**2
        pull = -weight * sign / (1.0 + np.exp(np.clip(sign * margin, -500, 500)))
        of_leaves = transposed @ pull + precision * change if n_leaves else change
        return float(lost), np.concatenate([[pull @ shipped + off / SLOPE_SPREAD, pull.sum()], of_leaves])

    start = np.zeros(2 + n_leaves)
    start[0] = 1.0
    if near is not None:
        start = np.concatenate([[near.slope, near.intercept], near.change])
    bounds = [(SLOPE_MIN, None)] + [(None, None)] * (1 + n_leaves)
    found: Any = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": ITERATIONS_MAX})
    return Fitted(float(found.x[0]), float(found.x[1]), found.x[2:])


def _fits(starts: dict[int, Forest], labelled: Labelled, *, seed: int) -> Iterator[tuple[Choice, Forest, float]]:
    """Yield every choice with its forest and intercept; by number of trees to add, the shipped ones beside them."""
    from scipy.sparse import csr_matrix

    weight, is_phishing = labelled.weights(), labelled.is_phishing
    for n_extra, forest in starts.items():
        shipped = forest.margins(labelled.rows)
        plain = fit_leaves(csr_matrix((len(shipped), 0)), shipped, is_phishing, weight, 0.0)
        grown = forest
        if n_extra:
            margins = plain.slope * shipped + plain.intercept
            grown = forest.joined(_grow(forest.columns, labelled, weight, margins, n_extra, seed=seed))
        else:
            yield Choice(0.0, 0), forest._replace(leaf=plain.slope * forest.leaf), plain.intercept
        reached = grown.reached(labelled.rows)
        n, n_trees = reached.shape
        places = (np.ones(reached.size), reached.ravel(), np.arange(0, reached.size + 1, n_trees))
        design = csr_matrix(places, shape=(n, len(grown.leaf)))
        fitted = None
        for spread in SPREADS:
            fitted = fit_leaves(design, shipped, is_phishing, weight, spread, near=fitted)
            leaf = fitted.slope * grown.leaf + fitted.change
            yield Choice(spread, n_extra), grown._replace(leaf=leaf), fitted.intercept


def _anew(labelled: Labelled, n_trees: int, *, seed: int) -> tuple[Choice, Forest, float]:
    """Return trees of the labels alone, on the features of the largest gain in a first model of all of them."""
    columns = np.array([i for i, feature in enumerate(schema.FEATURES) if feature.trained])
    weight = labelled.weights()
    start = np.zeros(len(weight))
    first = _boost(columns, labelled, weight, start, n_trees, seed=seed)
    gain = first.feature_importance("gain")
    columns = columns[np.sort(np.argsort(-gain, kind="stable")[: compact.FEATURES_MAX])]
    booster = _boost(columns, labelled, weight, start, n_trees, seed=seed)
    trees, used, scale = compact.from_booster(booster, [str(column) for column in columns.tolist()])
    forest = Forest(trees, np.array([int(name) for name in used]), trees.leaf.astype(np.float64) * scale)
    return Choice(0.0, n_trees, True), forest, 0.0


def _grow(
    columns: NDArray[np.int64],
    labelled: Labelled,
    weight: NDArray[np.float64],
    start: NDArray[np.float64],
    n_trees: int,
    *,
    seed: int,
) -> Forest:
    """Return trees on the model's own features, grown on what the margins get wrong, all leaves 0."""
    booster = _boost(columns, labelled, weight, start, n_trees, seed=seed)
    trees, used, _ = compact.from_booster(booster, [str(i) for i in range(len(columns))])
    place = np.array([int(name) for name in used], dtype=np.uint8)
    return Forest(trees._replace(feature=place[trees.feature]), columns, np.zeros(len(trees.leaf)))


def _boost(
    columns: NDArray[np.int64],
    labelled: Labelled,
    weight: NDArray[np.float64],
    start: NDArray[np.float64],
    n_trees: int,
    *,
    seed: int,
) -> "Booster":
    import lightgbm

    rows = compact.quantise(labelled.rows[:, columns])
    settings = EXTRA_SETTINGS | {"seed": seed}
    data = lightgbm.Dataset(rows, labelled.is_phishing, weight=weight, init_score=start, params=settings)
    return lightgbm.train(settings, data, n_trees)


def _loss(margins: NDArray[np.float64], labelled: Labelled) -> float:
    sign = np.where(labelled.is_phishing, 1.0, -1.0)
    return float(np.average(np.logaddexp(0.0, -sign * margins), weights=labelled.weights()))


def _calibrate(margins: NDArray[np.float64], labelled: Labelled) -> Fitted:
    """Return slope and intercept of left-out margins: a fit that saw its rows is too sure of them, and is cooled."""
    from scipy.sparse import csr_matrix

    nothing = csr_matrix((len(margins), 0))
    return fit_leaves(nothing, margins, labelled.is_phishing, labelled.weights(), 0.0)


def _check(labelled: Labelled) -> None:
    for kind, chosen in (("phishing", labelled.is_phishing), ("normal", ~labelled.is_phishing)):
        n = len(np.unique(labelled.account[chosen]))
        if n < ACCOUNTS_MIN:
            raise InputError(f"{n} labelled {kind} accounts with payments, fine-tuning needs at least {ACCOUNTS_MIN}")
