"""The model's runtime: margins, probabilities and reasons, without LightGBM and without threads.

Each row's features become 16-bit keys once; from there on all is integers. A block of rows takes every split of every
tree, leaves first: a split's value for a row is the right child's value where the key is above the threshold, else the
left child's. Nothing is looked up and nothing branches on the data, so the compiler makes vectors of 32 rows of it:
15 comparisons and 15 blends a tree, where a walk from the root makes some five dependent loads a row.

A row alone has no such company. It walks all trees abreast, level after level, one gather for every 16 trees.

Both sum the same integers, so a row's margin is the same bits alone, in any batch and on any machine.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import kernel, schema
from features.accounts import Accounts
from features.compiled import compiled
from features.errors import ArtifactError
from features.table import Table
from models.clock import monotonic_ns
from models.compact import DEPTH_MAX, LEAVES_MAX, Artifact, Trees, read
from models.explain import Reason, Shapley, sentence

BLOCK_ROWS = 256
"""Rows scored together: 48 columns and 16 split values of 256 rows are 33 KB, which fit a 48 KiB cache. On an AMD EPYC,
100 trees of 16 leaves took 0.091 µs a row in blocks of 128, 0.076 in 256 and 0.072 in 512 (2026-11-22)."""
ALONE_MAX = 16
"""Up to so many rows walk one by one: a block of 32 rows costs as much as some 16 walks."""

_LANES = 32
"""A block is filled up to whole vectors of 16-bit numbers; the compiler's loop for the rest takes a row at a time."""
_NODES = 2 * LEAVES_MAX

# Which children of a split are splits: values are read, leaves are at hand.
_BOTH_LEAVES, _LEFT_LEAF, _RIGHT_LEAF, _NO_LEAF = 0, 1, 2, 3


class Model(NamedTuple):
    """Which model scored, as written to every score."""

    name: str
    version: str
    digest: str
    n_bytes: int


class Scored(NamedTuple):
    """What one call made of n records."""

    rows: NDArray[np.float32]
    """Feature rows, shape (n, N_FEATURES)."""
    hits: NDArray[np.uint32]
    """List bits: the sender's in the low half, the recipient's in the high half."""
    margins: NDArray[np.float64]
    """Log-odds before calibration."""


class _Layout(NamedTuple):
    """What the kernels read. A column is a feature with the key that stands in for its NaN."""

    columns: NDArray[np.uint32]
    """Of each column: place in the feature row, and the key of NaN in the upper half: 0 goes left everywhere, 0xFFFF
    right."""
    program: NDArray[np.uint16]
    """Of each split, children before parents, shape (n_splits, 6): column, threshold, left and right (a leaf's value or
    the split's place in the tree), its own place, and which children are leaves."""
    n_splits: NDArray[np.uint8]
    """Of each tree that has any."""
    nodes: NDArray[np.uint32]
    """Of each tree _NODES of threshold, left child and column in 16, 8 and 8 bits. A right child follows its left
    sibling; a leaf leads to itself. Then the leaves' values, as int32 bits, in the same places."""
    constant: int
    """Sum of the trees that are a leaf alone."""
    scale: float


@compiled
def _key(value: Any, unknown: Any) -> Any:
    """Return the upper half of a float's place in the order of floats, as `compact.key16`; NaN has the given key."""
    # By its bits alone: arithmetic would flush subnormal numbers where the processor was told to.
    bits = np.float32(value).view(np.uint32)
    bits = np.uint32(0) if bits == np.uint32(0x80000000) else bits
    is_unknown = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    ordered = bits ^ (np.uint32(0xFFFFFFFF) if bits >> np.uint32(31) else np.uint32(0x80000000))
    return unknown if is_unknown else ordered >> np.uint32(16)


@compiled
def _split_block(program: Any, n_splits: Any, lanes: Any, sums: Any, n: Any) -> None:
    """Add to each of n rows' sums the leaves it reaches; `lanes` holds the keys, then the splits' values.

    Unsigned indices keep numba from testing for negative ones. Both children are read before the blend: a read inside
    of it would be a branch.
    """
    values = np.uint64(lanes.shape[0] - LEAVES_MAX * BLOCK_ROWS)
    i = np.uint64(0)
    for tree in range(np.uint64(n_splits.shape[0])):
        for _ in range(n_splits[tree]):
            key = np.uint64(program[i, 0]) * np.uint64(BLOCK_ROWS)
            threshold, low, high = program[i, 1], program[i, 2], program[i, 3]
            left = values + np.uint64(low) * np.uint64(BLOCK_ROWS)
            right = values + np.uint64(high) * np.uint64(BLOCK_ROWS)
            out = values + np.uint64(program[i, 4]) * np.uint64(BLOCK_ROWS)
            kind = program[i, 5]
            if kind == _BOTH_LEAVES:
                for r in range(n):
                    lanes[out + r] = high if lanes[key + r] > threshold else low
            elif kind == _LEFT_LEAF:
                for r in range(n):
                    above = lanes[right + r]
                    lanes[out + r] = above if lanes[key + r] > threshold else low
            elif kind == _RIGHT_LEAF:
                for r in range(n):
                    below = lanes[left + r]
                    lanes[out + r] = high if lanes[key + r] > threshold else below
            else:
                for r in range(n):
                    above, below = lanes[right + r], lanes[left + r]
                    lanes[out + r] = above if lanes[key + r] > threshold else below
            i += np.uint64(1)
        for r in range(n):
            sums[r] += np.uint32(np.int32(np.int16(lanes[values + r])))


@compiled
def _score_block(
    rows: Any, start: Any, n: Any, columns: Any, program: Any, n_splits: Any, lanes: Any, sums: Any
) -> None:
    n = np.uint64(n)
    for c in range(np.uint64(columns.shape[0])):
        feature, unknown = np.uint64(columns[c] & np.uint32(0xFFFF)), columns[c] >> np.uint32(16)
        for r in range(n):
            lanes[c * np.uint64(BLOCK_ROWS) + r] = np.uint16(_key(rows[np.uint64(start) + r, feature], unknown))
    # The rows that fill the last vector up are whatever was there: keys of earlier rows.
    filled = (n + np.uint64(_LANES - 1)) & ~np.uint64(_LANES - 1)
    for r in range(filled):
        sums[r] = np.uint32(0)
    _split_block(program, n_splits, lanes, sums, filled)


@compiled
def _score_row(row: Any, columns: Any, nodes: Any, keys: Any) -> Any:
    """Walk one row through all trees abreast; `keys` also holds where each tree's walk is.

    32 bits wide throughout, so that the compiler gathers.
    """
    n_columns = np.uint32(columns.shape[0])
    n_trees = np.uint32(nodes.shape[0]) // np.uint32(2 * _NODES)
    for c in range(n_columns):
        keys[c] = _key(row[columns[c] & np.uint32(0xFFFF)], columns[c] >> np.uint32(16))
    for tree in range(n_trees):
        keys[n_columns + tree] = np.uint32(0)
    for _ in range(DEPTH_MAX):
        for tree in range(n_trees):
            node = nodes[tree * np.uint32(_NODES) + keys[n_columns + tree]]
            is_right = np.uint32(keys[node & np.uint32(0xFF)] > (node >> np.uint32(16)))
            keys[n_columns + tree] = ((node >> np.uint32(8)) & np.uint32(0xFF)) + is_right
    leaves = n_trees * np.uint32(_NODES)
    total = np.uint32(0)
    for tree in range(n_trees):
        total += nodes[leaves + tree * np.uint32(_NODES) + keys[n_columns + tree]]
    return total


@compiled
def _margins(rows: Any, layout: Any, lanes: Any, sums: Any, margins: Any) -> None:
    """Fill each row's margin; sums are uint32, whose wrapping is the two's complement of int32."""
    columns, program, n_splits, nodes, constant, scale = layout
    if rows.shape[0] <= ALONE_MAX:
        for i in range(rows.shape[0]):
            total = _score_row(rows[i], columns, nodes, sums)
            margins[i] = np.float64(np.int64(np.int32(total)) + constant) * scale
        return
    for start in range(0, rows.shape[0], BLOCK_ROWS):
        n = min(BLOCK_ROWS, rows.shape[0] - start)
        _score_block(rows, start, n, columns, program, n_splits, lanes, sums)
        for r in range(n):
            margins[start + r] = np.float64(np.int64(np.int32(sums[r])) + constant) * scale


@compiled
def _score(
    table: Any,
    records: Any,
    floats: Any,
    rows: Any,
    hits: Any,
    weights: Any,
    observing: Any,
    layout: Any,
    lanes: Any,
    sums: Any,
    margins: Any,
) -> Any:
    """Emit and observe as `features.kernel.run`, then score the rows; return the model's share in nanoseconds."""
    kernel.run(Table(*table), records, floats, rows, hits, weights, observing)
    started_ns = monotonic_ns()
    _margins(rows, layout, lanes, sums, margins)
    return monotonic_ns() - started_ns


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
        self.model_seconds = 0.0
        """What the model took of the last call of `score`."""
        feature = np.array([schema.index(name) for name in header.features], dtype=np.int64)
        layout = _lay_out(artifact.trees, feature, header.leaf_scale)
        # As a plain tuple: finding the type of a named one again takes numba 0.35 µs a call.
        self._layout = tuple(layout)
        self._slope = header.calibration.slope
        self._intercept = header.calibration.intercept
        self._shapley = Shapley(artifact.trees, feature, header.leaf_scale)
        n_columns = len(layout.columns)
        self._lanes = _cache_lines((n_columns + LEAVES_MAX) * BLOCK_ROWS * 2).view(np.uint16)
        self._sums = _cache_lines(4 * max(BLOCK_ROWS, n_columns + header.n_trees)).view(np.uint32)

    @classmethod
    def load(cls, path: Path) -> "Scorer":
        """Read a model's file.

        Raises:
            ArtifactError: The file is no sound model, or its feature schema is not this program's.
        """
        return cls(read(path), place=str(path))

    def score(self, accounts: Accounts, packed: NDArray[np.uint64], *, observing: bool = True) -> Scored:
        """Emit each record's row from the past and score it, in one compiled call.

        Args:
            accounts: The past.
            packed: Transactions in order, shape (n, RECORD_WORDS).
            observing: Make each record part of the past before the next; False leaves the past as it is.
        """
        n = len(packed)
        rows = np.empty((n, schema.N_FEATURES), dtype=np.float32)
        hits = np.empty(n, dtype=np.uint32)
        margins = np.empty(n)
        spent_ns = _score(
            tuple(accounts.table), packed, packed.view(np.float64), rows, hits, accounts.weights, observing,
            self._layout, self._lanes, self._sums, margins,
        )  # fmt: skip
        self.model_seconds = spent_ns * 1e-9
        return Scored(rows, hits, margins)

    def margins(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return each row's sum of leaves (log-odds before calibration); rows have shape (n, N_FEATURES).

        A row's margin does not depend on the batch it is in.
        """
        margins = np.empty(rows.shape[0])
        _margins(rows, self._layout, self._lanes, self._sums, margins)
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


def _cache_lines(n_bytes: int) -> NDArray[np.uint8]:
    """Return zeroed memory that starts with a cache line: a vector across two of them is read twice."""
    memory = np.zeros(n_bytes + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes]


def _lay_out(trees: Trees, feature: NDArray[np.int64], scale: float) -> _Layout:
    """Order the splits leaves first and, for the walk, roots first; give each feature a column for each way of NaN."""
    keys = trees.feature.astype(np.int64) * 2 + (trees.unknown_left == 0)
    used = np.unique(keys)
    column = np.searchsorted(used, keys).tolist()
    program: list[tuple[int, ...]] = []
    nodes: list[NDArray[np.uint32]] = []
    values: list[NDArray[np.int32]] = []
    constant, first = 0, 0
    for tree, n_splits in enumerate(trees.n_splits.tolist()):
        splits = slice(first, first + n_splits)
        leaves = trees.leaf[first + tree : first + tree + n_splits + 1]
        if n_splits:
            threshold, left, right = (array[splits].tolist() for array in (trees.threshold, trees.left, trees.right))
            program += _program(column[splits], threshold, left, right, leaves.view(np.uint16).tolist())
            node, value = _walk(column[splits], threshold, left, right, leaves.tolist())
            nodes.append(node)
            values.append(value)
        else:
            constant += int(leaves[0])
        first += n_splits
    return _Layout(
        (feature[used // 2] | (used % 2 * 0xFFFF0000)).astype(np.uint32),
        np.array(program, dtype=np.uint16).reshape(-1, 6),
        trees.n_splits[trees.n_splits > 0],
        np.concatenate([*nodes, *(value.view(np.uint32) for value in values), np.zeros(0, dtype=np.uint32)]),
        constant,
        scale,
    )


def _program(
    column: list[int], threshold: list[int], left: list[int], right: list[int], leaves: list[int]
) -> list[tuple[int, ...]]:
    """Return a tree's splits from the last to the root: a child follows its parent in `Trees`."""
    program = []
    for i in reversed(range(len(column))):
        low, high = left[i], right[i]
        kind = (low >= 0) * _RIGHT_LEAF + (high >= 0) * _LEFT_LEAF
        values = [leaves[~child] if child < 0 else child for child in (low, high)]
        program.append((column[i], threshold[i], *values, i, kind))
    return program


def _walk(
    column: list[int], threshold: list[int], left: list[int], right: list[int], leaves: list[int]
) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Return a tree's nodes, siblings side by side, and the leaves' values in the same places."""
    nodes = np.zeros(_NODES, dtype=np.uint32)
    values = np.zeros(_NODES, dtype=np.int32)
    pending = [(0, 0)]
    n_nodes = 1
    while pending:
        child, place = pending.pop()
        if child < 0:
            # No key is above 0xFFFF: the walk stays.
            nodes[place] = 0xFFFF0000 | place << 8
            values[place] = leaves[~child]
            continue
        nodes[place] = threshold[child] << 16 | n_nodes << 8 | column[child]
        pending += [(left[child], n_nodes), (right[child], n_nodes + 1)]
        n_nodes += 2
    return nodes, values
