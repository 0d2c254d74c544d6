"""The families that the student's was chosen among: each learns what is there, and tells its bytes."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from models import measured
from tests.bench import networks, oblivious
from tests.bench.bench_frontier import Frontier, Point

N = 20_000


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float32]:
    """Rows of four columns, some values unknown."""
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(N, 4)) * [1, 100, 1e4, 1]).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows


@pytest.fixture(scope="module")
def truth(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Margins that two columns and one's being unknown make."""
    known = np.nan_to_num(rows).astype(np.float64)
    return 2 * known[:, 0] - known[:, 1] / 50 + 2 * np.isnan(rows[:, 2])


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Pearson's."""
    return float(np.corrcoef(a, b)[0, 1])


def test_oblivious_trees_learn_and_count_their_bytes(rows: NDArray[np.float32], truth: NDArray[np.float64]) -> None:
    """They follow the margins, and a level takes three bytes, a leaf two."""
    target = 1 / (1 + np.exp(-truth))
    model = oblivious.fit(rows, target, np.ones(N), n_trees=40, depth=3, learning_rate=0.3, seed=1)

    assert correlation(model.margins(rows), truth) > 0.85
    assert model.n_bytes() == 40 * (3 * 3 + 2 * 8)


def test_oblivious_leaf_is_the_row_of_its_answers(rows: NDArray[np.float32]) -> None:
    """A row's leaf has the bit of each level whose threshold its value is above; an unknown value sets none."""
    model = oblivious.fit(
        rows, (rows[:, 0] > 0).astype(np.float64), np.ones(N), n_trees=2, depth=3, learning_rate=1, seed=1
    )

    expected = np.zeros(N)
    for feature, threshold, leaf in zip(model.feature, model.threshold, model.leaf, strict=True):
        bits = rows[:, feature] > threshold
        expected += leaf[bits @ (1 << np.arange(3))]
    np.testing.assert_allclose(model.margins(rows), expected)


def test_networks_learn_and_count_their_bytes(rows: NDArray[np.float32], truth: NDArray[np.float64]) -> None:
    """A hidden layer of eight: 64 quantiles of 2 bytes a column, weights of 1, biases and scales of 4 each."""
    model = networks.network(rows, truth, np.ones(N), layers=(8,), seed=1)

    assert correlation(model.margins(rows), truth) > 0.85
    assert model.n_bytes() == 4 * 64 * 2 + (8 * 8 + 8) + 8 * (8 + 1)


def test_regression_learns(rows: NDArray[np.float32], truth: NDArray[np.float64]) -> None:
    """The logistic regression follows margins that are nearly linear in its inputs."""
    model = networks.regression(rows, 1 / (1 + np.exp(-truth)), np.ones(N))

    assert correlation(model.margins(rows), truth) > 0.9
    assert model.n_bytes() == 4 * 64 * 2 + 4 * 8 + 8


def test_file_is_what_the_model_card_reads(tmp_path: Path) -> None:
    """The card reads its part of the file and passes the rest over."""
    more = {"average_precision": 0.4, "recall_at_1_percent": 0.3, "recall_at_1_percent_new": 0.2}
    point = Point("trees", "20 trees", 20_000, 0.1, 0.9, 0.91, is_chosen=True, **more)
    frontier = Frontier("a machine", "c" * 40, "2026-01-02", "validation", model="d" * 64, seed=1, points=[point])
    (tmp_path / measured.FRONTIER_FILE).write_bytes(msgspec.json.encode(frontier))

    read = measured.read(tmp_path / measured.FRONTIER_FILE, measured.Frontier)

    assert read.points == [measured.Point("trees", "20 trees", 20_000, 0.1, 0.9, 0.91, is_chosen=True)]
    assert msgspec.json.decode((tmp_path / measured.FRONTIER_FILE).read_bytes(), type=Frontier) == frontier
