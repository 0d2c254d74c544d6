"""Rows of the simulator among the student's lessons."""

import numpy as np
import pytest

from models import learning
from models.distil import Lessons
from tests.bench import bench_augment
from tests.bench.bench_augment import Simulated

N_COLUMNS = len(learning.trained_columns())


def lessons(n: int = 10) -> Lessons:
    """Return rows of weight 1."""
    return Lessons(np.zeros((n, N_COLUMNS), dtype=np.float32), np.full(n, 0.5), np.ones(n))


def test_simulated_frauds_and_payments_share_the_weight() -> None:
    """Whatever their numbers, frauds have one half of it and ordinary payments the other."""
    simulated = Simulated(np.ones((5, N_COLUMNS), dtype=np.float32), np.array(["", "", "", "sweep", "phishing"]))

    mixed = bench_augment.with_simulated(lessons(), simulated, 0.1, 10.0)

    assert mixed.target[10:].tolist() == [0, 0, 0, 1, 1]
    assert mixed.weight[10:13].sum() == pytest.approx(0.5)
    assert mixed.weight[13:].sum() == pytest.approx(0.5)


def test_no_weight_is_no_change() -> None:
    """The line without simulated rows is the recipe as it is."""
    plain = lessons()

    assert bench_augment.with_simulated(plain, Simulated(plain.rows, np.full(10, "")), 0.0, 10.0) is plain


def test_simulated_payments_come_with_their_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's payments after the warm-up have features and kinds, of frauds and of ordinary life."""
    monkeypatch.setattr(bench_augment, "N_MESSAGES", 6_000)
    monkeypatch.setattr(bench_augment, "WARM_UP", 1_000)

    simulated = bench_augment.simulate(1)

    assert simulated.rows.shape == (len(simulated.kind), N_COLUMNS)
    assert {"", "phishing"} <= set(simulated.kind.tolist())
    assert 0 < np.isnan(simulated.rows).mean() < 0.9
