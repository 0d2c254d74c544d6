"""A model small enough to train within a test: real trees over the real features, with its teacher beside it."""

from pathlib import Path

import lightgbm
import numpy as np

from features import schema
from models import compact, registry

_SEED = 7


def write_small_model(folder: Path) -> Path:
    """Train on random rows, write artefact and teacher into `folder`, and return the folder for the setting `model`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [feature.name for feature in schema.FEATURES]
    random = np.random.default_rng(_SEED)
    rows = random.lognormal(size=(2_000, len(names))).astype(np.float32)
    rows[random.random(rows.shape) < 0.2] = np.nan
    labels = np.nan_to_num(rows[:, 0]) + np.nan_to_num(rows[:, 1]) > 2.5
    parameters = {"objective": "binary", "num_leaves": 15, "max_depth": 5, "verbose": -1, "seed": _SEED}
    data = lightgbm.Dataset(rows, labels, feature_name=names, params={"verbose": -1})
    booster = lightgbm.train(parameters, data, num_boost_round=30)
    trees, used = compact.from_booster(booster, names)
    header = compact.Header(
        name="small",
        version="1",
        schema=schema.FINGERPRINT,
        features=used,
        calibration=compact.Calibration(slope=1.0, intercept=0.0, prior=0.5, chosen="not calibrated"),
        thresholds={
            "review": compact.Threshold(probability=0.7, chosen="some of the rows"),
            "block": compact.Threshold(probability=0.97, chosen="few of the rows"),
        },
        training=compact.Training(
            data="0" * 64,
            commit="none",
            seed=_SEED,
            n_rows=len(rows),
            n_positive=int(labels.sum()),
            settings={},
            libraries={},
        ),
        n_trees=len(trees.n_splits),
        n_splits=int(trees.n_splits.sum()),
    )
    compact.write(folder / registry.MODEL_FILE, header, trees)
    registry.write_teacher(folder, booster, slope=1.0, intercept=0.0)
    return folder
