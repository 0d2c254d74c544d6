"""Rows of the simulator among what is learnt."""

import numpy as np
import pytest

from models import learning
from models.learning import SIMULATED, Parts, SimulatedRows
from service import augmentation

N_COLUMNS = len(learning.trained_columns())


def parts(n: int = 10) -> Parts:
    """Return rows of weight 1, every other a cold copy."""
    index = np.arange(n)
    rows = np.zeros((n, N_COLUMNS), dtype=np.float32)
    return Parts(rows, index % 3 == 0, np.ones(n), index, index, index % 2 == 1)


def test_simulated_frauds_and_payments_share_the_weight() -> None:
    """Whatever their numbers, frauds have one half of it and ordinary payments the other."""
    simulated = SimulatedRows(np.ones((5, N_COLUMNS), dtype=np.float32), np.array(["", "", "", "sweep", "phishing"]))

    mixed = learning.with_simulated(parts(), simulated, 0.2)

    assert mixed.is_phishing[10:].tolist() == [False, False, False, True, True]
    assert mixed.weight[10:13].sum() == pytest.approx(0.5)
    assert mixed.weight[13:].sum() == pytest.approx(0.5)
    assert mixed.weight[:10].tolist() == [1.0] * 10


def test_simulated_rows_are_nobodys_and_of_the_last_day() -> None:
    """They count to no account, as happened last, and neither as plain nor as cold rows."""
    simulated = SimulatedRows(np.ones((2, N_COLUMNS), dtype=np.float32), np.array(["", "phishing"]))

    mixed = learning.with_simulated(parts(), simulated)

    assert mixed.account[10:].tolist() == [SIMULATED] * 2
    assert mixed.time[10:].tolist() == [9, 9]
    assert mixed.is_plain.tolist() == [True, False] * 5 + [False, False]
    assert mixed.is_cold[10:].tolist() == [False, False]


def test_simulated_payments_come_with_their_truth() -> None:
    """A stream's payments after the warm-up have features and kinds, of frauds and of ordinary life."""
    simulated = augmentation.simulated_rows(1, n_messages=6_000, n_warm_up=1_000)

    assert simulated.rows.shape == (len(simulated.kind), N_COLUMNS)
    assert {"", "phishing"} <= set(simulated.kind.tolist())
    assert 0 < np.isnan(simulated.rows).mean() < 0.9


def test_seeds_draw_other_streams_than_the_demo_shows() -> None:
    """The same training seed gives the same rows, another one others."""
    drawn = [augmentation.simulated_rows(seed, n_messages=2_000, n_warm_up=100).rows.tobytes() for seed in (1, 1, 2)]

    assert drawn[0] == drawn[1] != drawn[2]
