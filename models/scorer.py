"""The model's runtime: margins, probabilities and reasons, without LightGBM and without threads.

Each row's features become 16-bit keys once; from there on all is integers. A block of rows takes every split of every
tree, leaves first: a split's value for a row is the right child's value where the key is above the threshold, else the
left child's. Nothing is looked up and nothing branches on the data, so the compiler makes vectors of 16 or 32 rows of
it: 15 comparisons and 15 blends a tree, where a walk from the root makes some five dependent loads a row. A split of
two leaves is taken together with its parent and never stored.

A row alone has no such company. It walks eight trees abreast, so that few loads wait for others.

Both sum the same integers, so a row's margin is the same bits alone, in any batch and on any machine.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import kernel, schema
from features.accounts import Accounts
from features.compiled import compiled, inlined
from features.errors import ArtifactError
from features.table import Table
from models.clock import monotonic_ns
from models.compact import DEPTH_MAX, LEAVES_MAX, Artifact, Trees, read
from models.explain import Reason, Shapley, sentence

BLOCK_ROWS = 512
"""Rows scored together: each split's loop starts anew for every block. On an Intel Xeon with 48 KiB of first cache, 180
trees of 16 leaves took 1.2 times as long in blocks of 128 as in 256, and 0.9 times in 512 (2026-11-23)."""
ALONE_MAX = 24
"""Up to so many rows walk one by one: a block of 32 rows costs as much as some 26 walks."""

_LANES = 32
"""A block is filled up to whole vectors of 16-bit numbers; the compiler's loop for the rest takes a row at a time."""
_NODES = 2 * LEAVES_MAX
_ABREAST = 8

# What a split's child is: a leaf, a split of two leaves, or a split whose values stand in `lanes`.
_LEAF, _PAIR, _VALUES = 0, 1, 2


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
    """Of each split that is no pair, children before parents, shape (n_steps, 12): where its keys start in `lanes`, its
    threshold, where its values go, which children it has (3 * left + right), then each child as four numbers. A leaf is
    0, 0, its value, 0; a pair is the start of its keys, its threshold, its lower and upper leaf; values are their start
    and zeros."""
    n_steps: NDArray[np.uint8]
    """Of each tree that has splits."""
    nodes: NDArray[np.uint32]
    """Of each tree _NODES of threshold, left child and column in 16, 8 and 8 bits. A right child follows its left
    sibling. A leaf holds its value, itself and the column after the last, whose key is 0 and above nothing. Trees that
    are a leaf of 0 fill the last _ABREAST up."""
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


@inlined
def _child(lanes: Any, kind: Any, start: Any, threshold: Any, low: Any, high: Any) -> Any:
    """Return one row's value of a child; `start` is already the row's."""
    if kind == _LEAF:
        return low
    if kind == _PAIR:
        return high if lanes[start] > threshold else low
    return lanes[start]


@inlined
def _take(lanes: Any, split: Any, left: Any, right: Any, left_kind: Any, right_kind: Any, n: Any) -> None:
    """Take one split for n rows. Both children come before the blend: a read inside of it would be a branch."""
    keys, threshold, out = split
    left_start, left_threshold, left_low, left_high = left
    right_start, right_threshold, right_low, right_high = right
    for r in range(n):
        below = _child(lanes, left_kind, left_start + r, left_threshold, left_low, left_high)
        above = _child(lanes, right_kind, right_start + r, right_threshold, right_low, right_high)
        lanes[out + r] = above if lanes[keys + r] > threshold else below


@compiled
def _split_block(program: Any, n_steps: Any, lanes: Any, sums: Any, n: Any) -> None:
    """Add to each of n rows' sums the leaves it reaches; `lanes` holds the keys, then the splits' values.

    Each combination of children has a loop of its own. Unsigned indices keep numba from testing for negative ones.
    """
    root = np.uint64(lanes.shape[0] - LEAVES_MAX * BLOCK_ROWS)
    i = np.uint64(0)
    for tree in range(np.uint64(n_steps.shape[0])):
        for _ in range(n_steps[tree]):
            split = np.uint64(program[i, 0]), program[i, 1], np.uint64(program[i, 2])
            kinds = program[i, 3]
            left = np.uint64(program[i, 4]), program[i, 5], program[i, 6], program[i, 7]
            right = np.uint64(program[i, 8]), program[i, 9], program[i, 10], program[i, 11]
            if kinds == 3 * _LEAF + _LEAF:
                _take(lanes, split, left, right, _LEAF, _LEAF, n)
            elif kinds == 3 * _LEAF + _PAIR:
                _take(lanes, split, left, right, _LEAF, _PAIR, n)
            elif kinds == 3 * _LEAF + _VALUES:
                _take(lanes, split, left, right, _LEAF, _VALUES, n)
            elif kinds == 3 * _PAIR + _LEAF:
                _take(lanes, split, left, right, _PAIR, _LEAF, n)
            elif kinds == 3 * _PAIR + _PAIR:
                _take(lanes, split, left, right, _PAIR, _PAIR, n)
            elif kinds == 3 * _PAIR + _VALUES:
                _take(lanes, split, left, right, _PAIR, _VALUES, n)
            elif kinds == 3 * _VALUES + _LEAF:
                _take(lanes, split, left, right, _VALUES, _LEAF, n)
            elif kinds == 3 * _VALUES + _PAIR:
                _take(lanes, split, left, right, _VALUES, _PAIR, n)
            else:
                _take(lanes, split, left, right, _VALUES, _VALUES, n)
            i += np.uint64(1)
        for r in range(n):
            sums[r] += np.uint32(np.int32(np.int16(lanes[root + r])))


@compiled
def _score_block(
    rows: Any, start: Any, n: Any, columns: Any, program: Any, n_steps: Any, lanes: Any, sums: Any
) -> None:
    n = np.uint64(n)
    last = np.uint64(0xFFFF)
    for c in range(np.uint64(columns.shape[0])):
        feature, unknown = np.uint64(columns[c] & np.uint32(0xFFFF)), columns[c] >> np.uint32(16)
        keys = c * np.uint64(BLOCK_ROWS)
        if feature == last:
            # No number has the key 0: it is a NaN that goes left everywhere, and here right.
            other = keys - np.uint64(BLOCK_ROWS)
            for r in range(n):
                key = lanes[other + r]
                lanes[keys + r] = np.uint16(0xFFFF) if key == np.uint16(0) else key
        else:
            for r in range(n):
                lanes[keys + r] = np.uint16(_key(rows[np.uint64(start) + r, feature], unknown))
        last = feature
    # The rows that fill the last vector up are whatever was there: keys of earlier rows.
    filled = (n + np.uint64(_LANES - 1)) & ~np.uint64(_LANES - 1)
    for r in range(filled):
        sums[r] = np.uint32(0)
    _split_block(program, n_steps, lanes, sums, filled)


@inlined
def _below(nodes: Any, tree: Any, place: Any, keys: Any) -> Any:
    """Return the place in its tree of the child that the row goes to; a leaf is its own."""
    node = nodes[tree * np.uint64(_NODES) + place]
    is_right = np.uint64(keys[node & np.uint32(0xFF)] > (node >> np.uint32(16)))
    return (np.uint64(node >> np.uint32(8)) & np.uint64(0xFF)) + is_right


@inlined
def _leaf(nodes: Any, tree: Any, place: Any) -> Any:
    return np.int64(np.int32(nodes[tree * np.uint64(_NODES) + place]) >> np.int32(16))


@compiled
def _score_row(row: Any, columns: Any, nodes: Any, keys: Any) -> Any:
    """Walk one row through the trees, eight of them level by level, and return the sum of its leaves.

    A walk's loads wait for each other, those of eight walks do not; as variables, their places stay in registers.
    """
    n_columns = np.uint64(columns.shape[0])
    n_trees = np.uint64(nodes.shape[0]) // np.uint64(_NODES)
    for column in range(n_columns):
        keys[column] = _key(row[columns[column] & np.uint32(0xFFFF)], columns[column] >> np.uint32(16))
    keys[n_columns] = np.uint32(0)
    total = np.int64(0)
    for first in range(np.uint64(0), n_trees, np.uint64(_ABREAST)):
        a = b = c = d = e = f = g = h = np.uint64(0)
        for _ in range(DEPTH_MAX):
            a = _below(nodes, first, a, keys)
            b = _below(nodes, first + np.uint64(1), b, keys)
            c = _below(nodes, first + np.uint64(2), c, keys)
            d = _below(nodes, first + np.uint64(3), d, keys)
            e = _below(nodes, first + np.uint64(4), e, keys)
            f = _below(nodes, first + np.uint64(5), f, keys)
            g = _below(nodes, first + np.uint64(6), g, keys)
            h = _below(nodes, first + np.uint64(7), h, keys)
        total += _leaf(nodes, first, a)
        total += _leaf(nodes, first + np.uint64(1), b)
        total += _leaf(nodes, first + np.uint64(2), c)
        total += _leaf(nodes, first + np.uint64(3), d)
        total += _leaf(nodes, first + np.uint64(4), e)
        total += _leaf(nodes, first + np.uint64(5), f)
        total += _leaf(nodes, first + np.uint64(6), g)
        total += _leaf(nodes, first + np.uint64(7), h)
    return total


@compiled
def _margins(rows: Any, layout: Any, lanes: Any, sums: Any, margins: Any) -> None:
    """Fill each row's margin; sums are uint32, whose wrapping is the two's complement of int32."""
    columns, program, n_steps, nodes, constant, scale = layout
    if rows.shape[0] <= ALONE_MAX:
        for i in range(rows.shape[0]):
            total = _score_row(rows[i], columns, nodes, sums)
            margins[i] = np.float64(total + constant) * scale
        return
    for start in range(0, rows.shape[0], BLOCK_ROWS):
        n = min(BLOCK_ROWS, rows.shape[0] - start)
        _score_block(rows, start, n, columns, program, n_steps, lanes, sums)
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
        self._sums = _cache_lines(4 * BLOCK_ROWS).view(np.uint32)

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
    values = len(used) * BLOCK_ROWS
    program: list[list[int]] = []
    n_steps: list[int] = []
    nodes: list[NDArray[np.uint32]] = []
    constant, first = 0, 0
    for tree, n_splits in enumerate(trees.n_splits.tolist()):
        splits = slice(first, first + n_splits)
        leaves = trees.leaf[first + tree : first + tree + n_splits + 1]
        if n_splits:
            threshold, left, right = (array[splits].tolist() for array in (trees.threshold, trees.left, trees.right))
            # As unsigned numbers, which fit next to thresholds.
            bits = leaves.view(np.uint16).tolist()
            steps = _program(column[splits], threshold, left, right, bits, values)
            program += steps
            n_steps.append(len(steps))
            nodes.append(_walk(column[splits], threshold, left, right, bits, len(used)))
        else:
            constant += int(leaves[0])
        first += n_splits
    nodes += [_walk([], [], [], [], [0], len(used))] * (-len(nodes) % _ABREAST)
    return _Layout(
        (feature[used // 2] | (used % 2 * 0xFFFF0000)).astype(np.uint32),
        np.array(program, dtype=np.uint16).reshape(-1, 12),
        np.array(n_steps, dtype=np.uint8),
        np.concatenate([*nodes, np.zeros(0, dtype=np.uint32)]),
        constant,
        scale,
    )


def _program(
    column: list[int], threshold: list[int], left: list[int], right: list[int], leaves: list[int], values: int
) -> list[list[int]]:
    """Return a tree's splits from the last to the root, pairs but the root left out: a child follows its parent."""

    def kind(child: int) -> int:
        if child < 0:
            return _LEAF
        return _PAIR if left[child] < 0 and right[child] < 0 else _VALUES

    def numbers(child: int) -> list[int]:
        if child < 0:
            return [0, 0, leaves[~child], 0]
        if kind(child) == _PAIR:
            return [column[child] * BLOCK_ROWS, threshold[child], leaves[~left[child]], leaves[~right[child]]]
        return [values + child * BLOCK_ROWS, 0, 0, 0]

    program = []
    for i in reversed(range(len(column))):
        if i == 0 or kind(i) != _PAIR:
            kinds = 3 * kind(left[i]) + kind(right[i])
            split = [column[i] * BLOCK_ROWS, threshold[i], values + i * BLOCK_ROWS, kinds]
            program.append(split + numbers(left[i]) + numbers(right[i]))
    return program


def _walk(
    column: list[int], threshold: list[int], left: list[int], right: list[int], leaves: list[int], nothing: int
) -> NDArray[np.uint32]:
    """Return a tree's nodes, siblings side by side; `nothing` is the column whose key is 0."""
    nodes = np.zeros(_NODES, dtype=np.uint32)
    pending = [(0 if column else ~0, 0)]
    n_nodes = 1
    while pending:
        child, place = pending.pop()
        if child < 0:
            nodes[place] = leaves[~child] << 16 | place << 8 | nothing
            continue
        nodes[place] = threshold[child] << 16 | n_nodes << 8 | column[child]
        pending += [(left[child], n_nodes), (right[child], n_nodes + 1)]
        n_nodes += 2
    return nodes
