"""The scorer equals LightGBM wherever a split could be read differently."""

import tempfile
from functools import lru_cache
from pathlib import Path

import lightgbm as lgb
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features import schema
from models import compact
from models.scorer import Scorer
from tests.boosters import NAMES, drawn_rows, trained, write_model

SEEDS = st.integers(0, 5)
DRAW = st.integers(0, 2**32 - 1)


@lru_cache
def model(seed: int) -> tuple[lgb.Booster, Scorer]:
    """A model of drawn rows, as LightGBM has it and as we do; odd seeds never saw a NaN, so there NaN reads as 0."""
    booster = trained(seed=seed, n_trees=30, use_missing=seed % 2 == 0, num_leaves=(31, 7)[seed % 3 == 0])
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", booster)
        return booster, Scorer.load(Path(folder) / "model")


def rows_on_thresholds(booster: lgb.Booster, draw: int, n: int) -> NDArray[np.float32]:
    """Return rows whose every value is a threshold of its feature, one step beside one, NaN, an infinity or a zero."""
    rng = np.random.default_rng(draw)
    trees, names = compact.from_booster(booster, NAMES)
    rows = drawn_rows(n, seed=draw % 1000)
    for i, name in enumerate(names):
        at = trees.threshold[trees.feature == i]
        above, below = np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(-np.inf))
        ends = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-35, -1e-35, 1e-45, 3.4e38, -3.4e38], dtype=np.float32)
        rows[:, schema.index(name)] = rng.choice(np.concatenate([np.tile([at, above, below], 3).ravel(), ends]), size=n)
    return rows


@settings(max_examples=60, deadline=None)
@given(SEEDS, DRAW, st.integers(1, 150))
def test_margins_equal_lightgbm_on_every_threshold(seed: int, draw: int, n: int) -> None:
    """On thresholds, one ulp beside them, NaN, infinities and zeros of both signs the margins are the same bits."""
    booster, scorer = model(seed)
    rows = rows_on_thresholds(booster, draw, n)

    expected = booster.predict(rows, raw_score=True)

    np.testing.assert_array_equal(scorer.margins(rows), expected)
    assert scorer.margins(rows[:1])[0] == expected[0]


@settings(max_examples=30, deadline=None)
@given(SEEDS, DRAW)
def test_contributions_equal_lightgbm_on_every_threshold(seed: int, draw: int) -> None:
    """Shapley values follow the same directions as the margins."""
    booster, scorer = model(seed)
    rows = rows_on_thresholds(booster, draw, 4)

    expected = np.asarray(booster.predict(rows, pred_contrib=True))[:, :-1]

    np.testing.assert_allclose([scorer.contributions(row) for row in rows], expected, atol=1e-6)
