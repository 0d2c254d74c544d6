"""Why a score is what it is: exact Shapley values of the trees, and sentences for the analyst.

What a contribution claims: were the features of a row to become known one after the other, this is how much the margin
rises when its feature does, in the mean over all orders. An unknown feature is averaged over: both ways of its splits
are taken, weighing as the training rows that went there (`Trees.cover`). The contributions and the margin with nothing
known add up to the margin. Taking one feature away from a fully known row is one of these orders: the margin falls by
what the feature adds as the last one, which is near its contribution and not equal to it.
"""

from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled, compiled_without_gil
from features.schema import Feature
from models.compact import DEPTH_MAX, Trees, edge


class Reason(NamedTuple):
    """How much a feature moved a score."""

    feature: str
    value: float | None
    """None where the feature is unknown."""
    contribution: float
    """In calibrated log-odds: positive raises the risk."""
    sentence: str


def sentence(feature: Feature, value: float | None) -> str:
    """Return the feature's sentence with its value filled in; a claim that does not hold is denied.

    >>> from features.schema import FEATURES, index
    >>> sentence(FEATURES[index("amount")], 2.5), sentence(FEATURES[index("is_self")], 0.0)
    ('it moves 2.5 ETH', 'it is not so that it pays its own sender')
    """
    text = feature.sentence.format(value="unknown" if value is None else plain(value))
    return f"it is not so that {text}" if feature.unit == "0 or 1" and value == 0 else text


def plain(value: float) -> str:
    """Return a number as people write it: three significant digits, no exponent between a millionth and a billion.

    >>> [plain(v) for v in (3.0, 0.012345, 1234.56, 86400.0, 2.5e12)]
    ['3', '0.0123', '1235', '86400', '2.5e+12']
    """
    if value == 0 or not 1e-6 <= abs(value) < 1e9:
        return f"{value:.3g}"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class _Paths(NamedTuple):
    """Of every leaf, in the trees' order: its slots, the distinct features asked on the way to it, first asked first.

    Leaves that share the upper part of their ways share the slots of that part, so a split has a slot of its own too.
    """

    slot: NDArray[np.uint8]
    """Slot of each split's feature, on the ways through the split."""
    left: NDArray[np.uint32]
    right: NDArray[np.uint32]
    """Child of each split: below n_splits a split of any tree, from there on a leaf of any tree."""
    slot_start: NDArray[np.uint64]
    """First slot of each leaf, and the number of slots: shape (n_leaves + 1,)."""
    slot_feature: NDArray[np.uint64]
    """Column of the feature row."""
    slot_share: NDArray[np.float64]
    """Share of training rows that pass all of the leaf's splits on the feature, given they pass those on others."""


_SET_WEIGHTS = np.array(
    [[1 / (d * comb(d - 1, size)) if size < d else 0.0 for size in range(DEPTH_MAX)] for d in range(1, DEPTH_MAX + 1)]
)
"""|S|! (d - 1 - |S|)! / d! of a set S of the d - 1 other features, by d - 1 and |S|."""


# Held for its 10 ms, the interpreter would keep a scoring loop waiting while the next model is made ready beside it.
@compiled_without_gil
def _tables(leaf: Any, slot_start: Any, slot_share: Any, table_start: Any, coefficient: Any, tables: Any) -> None:
    """Fill, for every leaf and every set of satisfied features, each feature's Shapley value.

    With o = 1 for a satisfied feature, else 0, and z the share of training rows that would pass it, the leaf adds
    to feature j: leaf (o_j - z_j) times the sum, over sets S of d - 1 others, of weight(d, |S|) prod_S o prod_rest z.
    The inner sum over sets of one size is a coefficient of the polynomial prod (z_k + o_k t).
    """
    for i in range(leaf.shape[0]):
        first = slot_start[i]
        d = slot_start[i + 1] - first
        for satisfied in range(1 << d):
            for j in range(d):
                for size in range(d):
                    coefficient[size] = 0.0
                coefficient[0] = 1.0
                for k in range(d):
                    if k == j:
                        continue
                    one = (satisfied >> k) & 1
                    for size in range(d - 1, -1, -1):
                        below = coefficient[size - 1] * one if size > 0 else 0.0
                        coefficient[size] = coefficient[size] * slot_share[first + k] + below
                weight = 0.0
                for size in range(d):
                    weight += coefficient[size] * _SET_WEIGHTS[d - 1, size]
                own = ((satisfied >> j) & 1) - slot_share[first + j]
                tables[table_start[i] + satisfied * d + j] = leaf[i] * own * weight


@compiled
def _explain(
    row: Any,
    feature: Any,
    threshold: Any,
    unknown_right: Any,
    slot: Any,
    left: Any,
    right: Any,
    slot_start: Any,
    slot_feature: Any,
    table_start: Any,
    tables: Any,
    by_size: Any,
    leaf_order: Any,
    violated: Any,
    out: Any,
) -> None:
    """Add every leaf's Shapley values, looked up by which of its features the row satisfies.

    Unsigned indices keep numba from testing for negative ones.
    """
    n_splits = np.uint64(feature.shape[0])
    for i in range(n_splits):
        value = row[feature[i]]
        is_right = np.uint32(value > threshold[i]) | (np.uint32(np.isnan(value)) & unknown_right[i])
        above = violated[i]
        violated[left[i]] = above | (is_right << np.uint32(slot[i]))
        violated[right[i]] = above | ((np.uint32(1) - is_right) << np.uint32(slot[i]))
    # By number of slots, so that the inner loop's length is no guess: a wrong guess a leaf took half of the time.
    for d in range(np.uint64(1), np.uint64(DEPTH_MAX + 1)):
        mask = (np.uint32(1) << np.uint32(d)) - np.uint32(1)
        for k in range(by_size[d], by_size[d + np.uint64(1)]):
            i = leaf_order[k]
            first = slot_start[i]
            entry = table_start[i] + (~violated[n_splits + i] & mask) * d
            for j in range(d):
                out[slot_feature[first + j]] += tables[entry + j]


class Shapley:
    """Exact path-dependent Shapley values, equal to LightGBM's `pred_contrib`, by table.

    A leaf's part depends only on which of its at most DEPTH_MAX features the row satisfies: at most 64 sets of 6 values
    of 8 bytes a leaf, 7 MiB for 150 trees of 16 leaves at worst.
    """

    def __init__(self, trees: Trees, feature: NDArray[np.int64], leaf_scale: float) -> None:
        asked = feature[trees.feature]
        paths = _paths(trees, asked)
        n_slots = np.diff(paths.slot_start)
        table_start = np.concatenate(([0], np.cumsum(n_slots << n_slots))).astype(np.uint64)
        self._tables = np.empty(int(table_start[-1]))
        starts = (paths.slot_start.astype(np.int64), paths.slot_share, table_start.astype(np.int64))
        _tables(trees.leaf * leaf_scale, *starts, np.empty(DEPTH_MAX), self._tables)
        unknown_right = (trees.unknown_left == 0).astype(np.uint32)
        by_size = np.concatenate(([0], np.cumsum(np.bincount(n_slots, minlength=DEPTH_MAX + 1)))).astype(np.uint64)
        leaf_order = np.argsort(n_slots, kind="stable").astype(np.uint64)
        self._splits = (
            asked.astype(np.uint64),
            edge(trees.threshold),
            unknown_right,
            paths.slot,
            paths.left,
            paths.right,
        )
        self._leaves = (paths.slot_start, paths.slot_feature, table_start, self._tables, by_size, leaf_order)
        self._n_nodes = len(asked) + len(trees.leaf)

    @property
    def n_bytes(self) -> int:
        """Memory of the tables."""
        return self._tables.nbytes

    def values(self, row: NDArray[np.float32], n_features: int) -> NDArray[np.float64]:
        """Return the Shapley value of each of a row's n_features columns."""
        values = np.zeros(n_features)
        # Only roots are read before they are written, and nothing is violated there.
        violated = np.zeros(self._n_nodes, dtype=np.uint32)
        _explain(row, *self._splits, *self._leaves, violated, values)
        return values


def _paths(trees: Trees, asked: NDArray[np.int64]) -> _Paths:
    slot: list[int] = []
    children: tuple[list[int], list[int]] = ([], [])
    slots_of_leaf: list[dict[int, float]] = []
    first_leaf = len(trees.feature)
    for n_splits in trees.n_splits.tolist():
        first = len(slot)
        splits = slice(first, first + n_splits)
        ways = (trees.left[splits].tolist(), trees.right[splits].tolist())
        start = len(slots_of_leaf)
        leaf_rows = trees.cover[start : start + n_splits + 1].tolist()
        # One dict for each split and leaf of the tree: the share of each feature asked above it, in slot order. A child
        # follows its parent, so the parent's dict is complete when the child asks for it.
        rows = _rows(*ways, leaf_rows)
        shares: list[dict[int, float]] = [{} for _ in range(n_splits)]
        leaves: list[dict[int, float]] = [{} for _ in range(n_splits + 1)]
        for i, column in enumerate(asked[splits].tolist()):
            above = shares[i]
            slot.append(list(above).index(column) if column in above else len(above))
            for child, side in ((ways[0][i], children[0]), (ways[1][i], children[1])):
                n_rows = rows[child] if child >= 0 else leaf_rows[~child]
                below = above | {column: above.get(column, 1.0) * n_rows / rows[i]}
                if child >= 0:
                    shares[child] = below
                else:
                    leaves[~child] = below
                side.append(first + child if child >= 0 else first_leaf + start + ~child)
        slots_of_leaf += leaves
    return _Paths(
        np.array(slot, dtype=np.uint8),
        np.array(children[0], dtype=np.uint32),
        np.array(children[1], dtype=np.uint32),
        np.concatenate(([0], np.cumsum([len(slots) for slots in slots_of_leaf]))).astype(np.uint64),
        np.array([column for slots in slots_of_leaf for column in slots], dtype=np.uint64),
        np.array([share for slots in slots_of_leaf for share in slots.values()], dtype=np.float64),
    )


def _rows(left: list[int], right: list[int], leaf_rows: list[int]) -> list[int]:
    """Return the training rows of each split: those of its two children, which come after it."""
    rows = [0] * len(left)
    for split in reversed(range(len(left))):
        children = (left[split], right[split])
        rows[split] = sum(rows[child] if child >= 0 else leaf_rows[~child] for child in children)
    return rows
