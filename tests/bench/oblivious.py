"""Boosted oblivious trees: all splits of one level ask the same question, so a leaf's number is a row of bits.

(R. Kohavi and C.-H. Li, Oblivious Decision Trees, IJCAI 1995; they are CatBoost's.) Fitted by histograms of quantiles.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

N_BINS = 64
"""One for unknown values, which go left at every split, and 63 quantiles."""
RIDGE = 5.0
ROWS_SHARE, FEATURES_SHARE = 0.7, 0.5


class Oblivious(NamedTuple):
    """Trees of one depth."""

    feature: NDArray[np.int64]
    """Shape (n_trees, depth)."""
    threshold: NDArray[np.float32]
    """A value above it sets the level's bit; NaN does not."""
    leaf: NDArray[np.float64]
    """Shape (n_trees, 2 ** depth)."""

    def n_bytes(self) -> int:
        """Return the bytes with 1 a feature, 2 a threshold, 2 a leaf."""
        return 3 * self.feature.size + 2 * self.leaf.size

    def margins(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the sums of leaves."""
        sums = np.zeros(len(rows))
        _walk(rows, self.feature, self.threshold, self.leaf, sums)
        return sums


def fit(
    rows: NDArray[np.float32],
    target: NDArray[np.float64],
    weight: NDArray[np.float64],
    *,
    n_trees: int,
    depth: int,
    learning_rate: float,
    seed: int,
) -> Oblivious:
    """Boost the weighted cross-entropy by Newton's steps."""
    random = np.random.default_rng(seed)
    n_features = rows.shape[1]
    edges = [_edges(rows[:, i]) for i in range(n_features)]
    bins = np.empty((n_features, len(rows)), dtype=np.uint8)
    for i, of_feature in enumerate(edges):
        column = rows[:, i]
        bins[i] = np.where(np.isnan(column), 0, 1 + np.searchsorted(of_feature, column))
    features = np.zeros((n_trees, depth), dtype=np.int64)
    thresholds = np.zeros((n_trees, depth), dtype=np.float32)
    leaves = np.zeros((n_trees, 1 << depth))
    margins = np.zeros(len(rows))
    for tree in range(n_trees):
        p = 1 / (1 + np.exp(-margins))
        drawn = random.random(len(rows)) < ROWS_SHARE
        gradient, curvature = weight * (p - target) * drawn, weight * p * (1 - p) * drawn
        node = np.zeros(len(rows), dtype=np.int64)
        for level in range(depth):
            asked = np.sort(random.permutation(n_features)[: max(1, int(FEATURES_SHARE * n_features))])
            sums = np.zeros((len(asked), 1 << level, N_BINS, 2))
            for place, feature in enumerate(asked):
                _count(bins[feature], node, gradient, curvature, sums[place])
            feature, bound = _best(sums, asked, edges)
            features[tree, level], thresholds[tree, level] = feature, edges[feature][bound - 1]
            node |= (bins[feature] > bound).astype(np.int64) << level
        totals = [np.bincount(node, values, 1 << depth) for values in (gradient, curvature)]
        leaves[tree] = -learning_rate * totals[0] / (totals[1] + RIDGE)
        margins += leaves[tree][node]
    return Oblivious(features, thresholds, leaves)


def _edges(column: NDArray[np.float32]) -> NDArray[np.float32]:
    known = column[~np.isnan(column)]
    wanted = np.quantile(known, np.arange(1, N_BINS - 1) / (N_BINS - 1), method="lower") if len(known) else [0.0]
    return np.unique(np.asarray(wanted, dtype=np.float32))


def _best(sums: NDArray[np.float64], asked: NDArray[np.int64], edges: list[NDArray[np.float32]]) -> tuple[int, int]:
    """Return the feature and the last bin that goes left, of the greatest gain summed over the level's nodes."""
    left = np.cumsum(sums, axis=2)
    right = left[:, :, -1:, :] - left
    gains = sum(side[..., 0] ** 2 / (side[..., 1] + RIDGE) for side in (left, right)).sum(axis=1)
    for place, feature in enumerate(asked):
        # A bound is an edge of the feature: bin b ends at edge b - 1.
        gains[place, [0, *range(len(edges[feature]) + 1, N_BINS)]] = -np.inf
    place, bound = np.unravel_index(int(np.argmax(gains)), gains.shape)
    return int(asked[place]), int(bound)


@njit(cache=True)
def _count(bins: Any, node: Any, gradient: Any, curvature: Any, sums: Any) -> None:
    for i in range(len(bins)):
        sums[node[i], bins[i], 0] += gradient[i]
        sums[node[i], bins[i], 1] += curvature[i]


@njit(cache=True)
def _walk(rows: Any, feature: Any, threshold: Any, leaf: Any, sums: Any) -> None:
    for tree in range(feature.shape[0]):
        for i in range(rows.shape[0]):
            place = 0
            for level in range(feature.shape[1]):
                place |= (rows[i, feature[tree, level]] > threshold[tree, level]) << level
            sums[i] += leaf[tree, place]
