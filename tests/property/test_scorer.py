"""The integer model is the float model: one function, wherever a split could be read differently."""

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import compact
from models.scorer import BLOCK_ROWS, Scorer
from tests.boosters import READ, READ_NAMES, drawn_rows, trained, write_model

LEAVES = (7, 16, 16, 7, 16, 16, 2)
SEEDS = st.integers(0, len(LEAVES) - 1)
DRAW = st.integers(0, 2**32 - 1)
BITS = st.integers(0, 2**32 - 1)

ENDS = np.array(
    [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-35, -1e-35, 1e-45, -1e-45, 1e-40, -1e-40, 3.4e38, -3.4e38],
    dtype=np.float32,
)


@lru_cache
def model(seed: int) -> tuple[compact.Artifact, Scorer]:
    """A model of drawn rows and its runtime; odd seeds never saw a NaN, so there NaN reads as 0."""
    booster = trained(seed=seed, n_trees=30, use_missing=seed % 2 == 0, num_leaves=LEAVES[seed])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        write_model(path, booster)
        return compact.read(path), Scorer.load(path)


def float_margins(artifact: compact.Artifact, rows: NDArray[np.float32]) -> list[float]:
    """Walk the float model: float32 edges as thresholds, float64 leaves.

    A float64 sum of 30 leaves is off by less than 1e-11 of a scale, so the nearest multiple of it is the sum.
    """
    trees, scale = artifact.trees, artifact.header.leaf_scale
    edges = compact.edge(trees.threshold)
    columns = [READ[column] for column in _columns(artifact)]
    margins = []
    for row in rows:
        total, first = 0.0, 0
        for tree, n_splits in enumerate(trees.n_splits.tolist()):
            place = 0 if n_splits else ~0
            while place >= 0:
                split = first + place
                value = row[columns[trees.feature[split]]]
                is_left = trees.unknown_left[split] if np.isnan(value) else value <= edges[split]
                place = int((trees.left if is_left else trees.right)[split])
            total += float(trees.leaf[first + tree + ~place]) * scale
            first += n_splits
        margins.append(round(total / scale) * scale)
    return margins


def _columns(artifact: compact.Artifact) -> list[int]:
    return [READ_NAMES.index(name) for name in artifact.header.features]


def rows_on_thresholds(artifact: compact.Artifact, draw: int, n: int) -> NDArray[np.float32]:
    """Return rows whose every value is a threshold of its feature, one ulp beside one, or an end of the floats."""
    rng = np.random.default_rng(draw)
    rows = drawn_rows(n, seed=draw % 1000)
    for i, column in enumerate(_columns(artifact)):
        at = compact.edge(artifact.trees.threshold[artifact.trees.feature == i])
        with np.errstate(over="ignore"):
            above, below = np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(-np.inf))
        choices = np.concatenate([np.tile([at, above, below], 3).ravel(), ENDS])
        rows[:, READ[column]] = rng.choice(choices, size=n)
    return rows


@settings(max_examples=60, deadline=None)
@given(SEEDS, DRAW, st.integers(1, 40))
def test_integer_model_equals_float_model_on_every_threshold(seed: int, draw: int, n: int) -> None:
    """On thresholds, one ulp beside them, NaN, infinities, zeros of both signs and subnormals: not a bit differs."""
    artifact, scorer = model(seed)
    rows = rows_on_thresholds(artifact, draw, n)

    assert scorer.margins(rows).tolist() == float_margins(artifact, rows)


@settings(max_examples=30, deadline=None)
@given(SEEDS, DRAW)
def test_block_equals_walk(seed: int, draw: int) -> None:
    """Rows scored alone and in blocks of every filling have the same bits."""
    artifact, scorer = model(seed)
    rows = rows_on_thresholds(artifact, draw, BLOCK_ROWS + draw % 99)

    alone = np.concatenate([scorer.margins(rows[i : i + 1]) for i in range(len(rows))])

    assert scorer.margins(rows).tolist() == alone.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(BITS, min_size=1, max_size=200), DRAW)
def test_key_comparison_is_the_floats_comparison(bits: list[int], draw: int) -> None:
    """For any float32 and any key that a number has, `key16(x) <= key` says what `x <= edge(key)` says."""
    values = np.array(bits, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values, ENDS])
    values = values[~np.isnan(values)]
    keys = np.random.default_rng(draw).permutation(compact.key16(values))
    with np.errstate(over="ignore"):
        neighbours = [compact.edge(keys), np.nextafter(compact.edge(keys), np.float32(np.inf))]

    for tried in (values, *neighbours):
        np.testing.assert_array_equal(compact.key16(tried) <= keys, tried <= compact.edge(keys))


@settings(max_examples=60, deadline=None)
@given(st.lists(BITS, min_size=1, max_size=200))
def test_quantised_value_is_the_least_of_its_key(bits: list[int]) -> None:
    """It has the value's key, the float below it has not, and NaN stays NaN."""
    values = np.concatenate([np.array(bits, dtype=np.uint32).view(np.float32), ENDS])

    quantised = compact.quantise(values)

    known = ~np.isnan(values)
    np.testing.assert_array_equal(np.isnan(quantised), ~known)
    np.testing.assert_array_equal(compact.key16(quantised[known]), compact.key16(values[known]))
    with np.errstate(over="ignore"):
        below = np.nextafter(quantised[known], np.float32(-np.inf))
    is_lowest = quantised[known] == -np.inf
    assert (is_lowest | (compact.key16(below) < compact.key16(values[known]))).all()
