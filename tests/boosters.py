"""Small LightGBM models and their artefacts, trained in a fraction of a second on drawn rows."""

from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from features import schema
from models import compact

NAMES = [feature.name for feature in schema.FEATURES]
READ = np.sort(np.random.default_rng(3).permutation(schema.N_FEATURES)[: compact.FEATURES_MAX])
"""Columns of the feature row that the models read."""
READ_NAMES = [NAMES[i] for i in READ]


def drawn_rows(n: int, *, seed: int, unknown: float = 0.1) -> NDArray[np.float32]:
    """Return rows of every magnitude, a share of them NaN in every second column."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, schema.N_FEATURES)) * 10.0 ** rng.integers(-1, 6, size=schema.N_FEATURES)
    rows[:, ::4] = np.round(10 * rows[:, ::4])
    hidden = rows[:, ::2]
    hidden[rng.random(hidden.shape) < unknown] = np.nan
    return rows.astype(np.float32)


def trained(*, seed: int = 1, n_trees: int = 20, **settings: Any) -> lgb.Booster:
    """Return a model of the columns READ of drawn rows, trained on quantised ones; settings are LightGBM's."""
    rows = compact.quantise(drawn_rows(2_000, seed=seed)[:, READ])
    signal = np.nan_to_num(rows / np.nanstd(rows, axis=0)) @ np.random.default_rng(seed).normal(size=len(READ))
    defaults = {"objective": "binary", "num_leaves": 16, "max_depth": 6, "min_data_in_leaf": 5, "seed": seed}
    fixed = {"num_threads": 1, "verbose": -1, "deterministic": True, "force_row_wise": True, "feature_fraction": 0.5}
    data = lgb.Dataset(rows, signal > 0, feature_name=READ_NAMES)
    return lgb.train(defaults | fixed | settings, data, n_trees)


def header(trees: compact.Trees, names: list[str], leaf_scale: float, **changes: Any) -> compact.Header:
    """Return a header that fits the trees."""
    fields: dict[str, Any] = {
        "name": "drawn",
        "version": "1",
        "schema": schema.FINGERPRINT,
        "features": names,
        "calibration": compact.Calibration(0.8, -4.0, 0.001, "by hand"),
        "thresholds": {"review": compact.Threshold(0.1, "by hand"), "block": compact.Threshold(0.5, "by hand")},
        "training": compact.Training("0" * 64, "0" * 64, 1, 2_000, 1_000, {"num_leaves": 16}, {}, {}),
        "leaf_scale": leaf_scale,
        "n_trees": len(trees.n_splits),
        "n_splits": len(trees.feature),
    }
    return compact.Header(**(fields | changes))


def write_model(path: Path, booster: lgb.Booster, **changes: Any) -> str:
    """Write a booster as an artefact and return its digest."""
    trees, names, leaf_scale = compact.from_booster(booster, booster.feature_name())
    return compact.write(path, header(trees, names, leaf_scale, **changes), trees)


def leaf_sums(booster: lgb.Booster, trees: compact.Trees, rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return each row's sum of the format's leaves, the leaves found by LightGBM on the quantised row."""
    places = np.asarray(booster.predict(compact.quantise(rows[:, READ]), pred_leaf=True), dtype=np.int64)
    first_leaf = np.concatenate(([0], np.cumsum(trees.n_splits.astype(np.int64) + 1)))[:-1]
    return trees.leaf[places.reshape(len(rows), -1) + first_leaf].sum(axis=1, dtype=np.int64)
