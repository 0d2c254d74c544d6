"""The model's runtime: margins, probabilities and reasons from feature rows, without LightGBM and without threads.

Every tree is laid out as a perfect tree of DEPTH_MAX levels, so that walking it needs no branch: from split i (root 1)
to 2 i when the value is at most the threshold, to 2 i + 1 otherwise. A branch of less depth is filled with splits that
always go left to copies of its leaf. 63 splits of 6 bytes and 64 leaves of 8 are 0.9 KiB a tree.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import schema
from features.compiled import compiled
from features.errors import ArtifactError
from models.compact import DEPTH_MAX, LEAVES_MAX, Artifact, Trees, read
from models.explain import Reason, Shapley, sentence

BLOCK_ROWS = 48
"""Rows walked together: 48 rows of 200 columns are 38 KB, which fit a 48 KiB cache beside one tree. On an AMD EPYC, 16
rows took 0.70 µs a row, 32 to 64 took 0.59, 128 took 0.61 (150 trees, 2026-11-22)."""


class Model(NamedTuple):
    """Which model scored, as written to every score."""

    name: str
    version: str
    digest: str
    n_bytes: int


class _Layout(NamedTuple):
    """What the kernels read. A column is a feature with the value that stands in for its NaN."""

    feature: NDArray[np.uint32]
    """Of each column, in the feature row."""
    unknown: NDArray[np.float32]
    """Of each column: what stands in for NaN."""
    column: NDArray[np.uint16]
    """Of each split, shape (n_trees * LEAVES_MAX,); entry 0 of each tree is unused."""
    threshold: NDArray[np.float32]
    leaf: NDArray[np.float64]


@compiled
def _score_block(
    rows: Any, feature: Any, unknown: Any, column: Any, threshold: Any, leaf: Any, values: Any, split: Any, margins: Any
) -> None:
    """Walk tree after tree, each with a block of rows abreast: their walks are independent and overlap.

    Unsigned indices keep numba from testing for negative ones, 32 bits of them let it use vector gathers.
    """
    n_columns = np.uint32(feature.shape[0])
    for start in range(0, rows.shape[0], BLOCK_ROWS):
        n = np.uint32(min(BLOCK_ROWS, rows.shape[0] - start))
        first = np.uint32(start)
        for r in range(n):
            margins[first + r] = 0.0
            for c in range(n_columns):
                value = rows[first + r, feature[c]]
                values[r * n_columns + c] = unknown[c] if np.isnan(value) else value
        for tree in range(leaf.shape[0] // LEAVES_MAX):
            base = np.uint32(tree * LEAVES_MAX)
            # All rows ask the root the same: outside of the loop it costs no gather.
            root_column, root_threshold = np.uint32(column[base + np.uint32(1)]), threshold[base + np.uint32(1)]
            for r in range(n):
                split[r] = np.uint32(2) + np.uint32(values[np.uint32(r) * n_columns + root_column] > root_threshold)
            for _ in range(DEPTH_MAX - 1):
                for r in range(n):
                    i = split[r]
                    is_right = values[np.uint32(r) * n_columns + np.uint32(column[base + i])] > threshold[base + i]
                    split[r] = i + i + np.uint32(is_right)
            for r in range(n):
                margins[first + r] += leaf[base + split[r] - np.uint32(LEAVES_MAX)]


@compiled
def _score_row(
    row: Any, feature: Any, unknown: Any, column: Any, threshold: Any, leaf: Any, values: Any, split: Any
) -> Any:
    """Walk one row through all trees abreast; the leaves are summed in the same order as in `_score_block`."""
    n_trees = np.uint32(leaf.shape[0] // LEAVES_MAX)
    for c in range(np.uint32(feature.shape[0])):
        value = row[feature[c]]
        values[c] = unknown[c] if np.isnan(value) else value
    for tree in range(n_trees):
        split[tree] = np.uint32(1)
    for _ in range(DEPTH_MAX):
        for tree in range(n_trees):
            i = split[tree]
            place = np.uint32(tree) * np.uint32(LEAVES_MAX) + i
            split[tree] = i + i + np.uint32(values[np.uint32(column[place])] > threshold[place])
    total = 0.0
    for tree in range(n_trees):
        total += leaf[np.uint32(tree) * np.uint32(LEAVES_MAX) + split[tree] - np.uint32(LEAVES_MAX)]
    return total


@compiled
def _sigmoid(margins: Any, slope: Any, intercept: Any, probabilities: Any) -> None:
    """Take one scalar `exp` a row: with vector code, the result could depend on the row's place in the batch."""
    for i in range(margins.shape[0]):
        z = slope * margins[i] + intercept
        if z >= 0:
            probabilities[i] = 1.0 / (1.0 + np.exp(-z))
        else:
            e = np.exp(z)
            probabilities[i] = e / (1.0 + e)


class Scorer:
    """A loaded model. It holds the kernels' scratch memory, so one thread at a time may use it."""

    def __init__(self, artifact: Artifact, *, place: str = "model") -> None:
        header = artifact.header
        if header.schema != schema.FINGERPRINT:
            raise ArtifactError(
                f"{place}: trained on feature schema {header.schema}, this program has {schema.FINGERPRINT}"
            )
        names = {feature.name for feature in schema.FEATURES}
        if unknown := [name for name in header.features if name not in names]:
            raise ArtifactError(f"{place}: reads the feature {unknown[0]!r}, which the schema lacks")
        self.model = Model(header.name, header.version, artifact.digest, artifact.n_bytes)
        self.header = header
        self.thresholds = {name: threshold.probability for name, threshold in header.thresholds.items()}
        feature = np.array([schema.index(name) for name in header.features], dtype=np.int64)
        self._layout = _lay_out(artifact.trees, feature)
        self._slope = header.calibration.slope
        self._intercept = header.calibration.intercept
        self._shapley = Shapley(artifact.trees, feature)
        self._values = np.empty(BLOCK_ROWS * len(self._layout.feature), dtype=np.float32)
        self._split = np.empty(max(BLOCK_ROWS, header.n_trees), dtype=np.uint32)

    @classmethod
    def load(cls, path: Path) -> "Scorer":
        """Read a model's file.

        Raises:
            ArtifactError: The file is no sound model, or its feature schema is not this program's.
        """
        return cls(read(path), place=str(path))

    def margins(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return each row's sum of leaves (log-odds before calibration); rows have shape (n, N_FEATURES).

        A row's margin does not depend on the batch it is in.
        """
        if rows.shape[0] == 1:
            return np.array([_score_row(rows[0], *self._layout, self._values, self._split)])
        margins = np.empty(rows.shape[0])
        _score_block(rows, *self._layout, self._values, self._split, margins)
        return margins

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return calibrated probabilities at the artefact's prior."""
        probabilities = np.empty(margins.shape[0])
        _sigmoid(margins, self._slope, self._intercept, probabilities)
        return probabilities

    def contributions(self, row: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return each feature's exact Shapley value of the margin, shape (N_FEATURES,)."""
        return self._shapley.values(row, schema.N_FEATURES)

    def reasons(self, row: NDArray[np.float32], n: int) -> list[Reason]:
        """Return the at most n features that raised the row's risk most, the largest first.

        Contributions are in calibrated log-odds, so they add to what the probability is made from.
        """
        contributions = self.contributions(row)
        reasons = []
        for i in np.argsort(-contributions, kind="stable")[:n].tolist():
            if contributions[i] > 0:
                value = float(row[i])
                known = None if np.isnan(value) else value
                shift = float(contributions[i]) * self._slope
                reasons.append(Reason(schema.FEATURES[i].name, known, shift, sentence(schema.FEATURES[i], known)))
        return reasons


def _lay_out(trees: Trees, feature: NDArray[np.int64]) -> _Layout:
    """Unfold the trees into perfect ones, and split each feature by where its NaN goes into at most two columns."""
    n_trees = len(trees.n_splits)
    # NaN as minus infinity goes left at every threshold, as plus infinity right: a split that wants the other
    # direction reads the other column.
    keys = trees.feature.astype(np.int64) * 2 + (trees.unknown_left == 0)
    used = np.unique(keys)
    columns = np.searchsorted(used, keys).astype(np.uint16)
    column = np.zeros((n_trees, LEAVES_MAX), dtype=np.uint16)
    threshold = np.full((n_trees, LEAVES_MAX), np.inf, dtype=np.float32)
    leaf = np.empty((n_trees, LEAVES_MAX), dtype=np.float64)
    first_split = 0
    for tree, n_splits in enumerate(trees.n_splits.tolist()):
        splits = slice(first_split, first_split + n_splits)
        leaves = trees.leaf[first_split + tree : first_split + tree + n_splits + 1]
        left, right = trees.left[splits].tolist(), trees.right[splits].tolist()
        # (child as in `Trees`, its place in the perfect tree, its depth)
        pending = [(0 if n_splits else ~0, 1, 0)]
        while pending:
            child, place, depth = pending.pop()
            if child < 0:
                width = LEAVES_MAX >> depth
                start = place * width - LEAVES_MAX
                leaf[tree, start : start + width] = leaves[~child]
                continue
            column[tree, place] = columns[first_split + child]
            threshold[tree, place] = trees.threshold[first_split + child]
            pending += [(left[child], 2 * place, depth + 1), (right[child], 2 * place + 1, depth + 1)]
        first_split += n_splits
    unknown = np.where(used % 2 == 0, -np.inf, np.inf).astype(np.float32)
    # At least one column: the filling splits read column 0.
    if not len(used):
        return _Layout(np.zeros(1, np.uint32), np.zeros(1, np.float32), column.ravel(), threshold.ravel(), leaf.ravel())
    return _Layout(feature[used // 2].astype(np.uint32), unknown, column.ravel(), threshold.ravel(), leaf.ravel())
