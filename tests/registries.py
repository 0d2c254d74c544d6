"""Small registries of drawn models, with evaluations made by hand."""

import shutil
from pathlib import Path
from typing import Any

import msgspec

from models import gate, registry
from models.evaluate import Estimate
from models.gate import Judged, Judgement, Operating, Row
from models.registry import Manifest, Provenance
from tests import boosters

PROVENANCE = Provenance(
    data="d" * 64,
    commit="c" * 40,
    seed=7,
    settings={"n_trees": 3, "learning_rate": 0.1, "note": None},
    libraries={"lightgbm": "4.7.0"},
    made_at="2026-01-02T03:04:05+00:00",
)

TEST_SETS = ("all", "new accounts")


def estimate(value: float) -> Estimate:
    """Return a figure with an interval of 0.02 to both sides."""
    return Estimate(value, value - 0.02, value + 0.02)


def judged(digest: str, *, gain: float = 0.9, alarms: float = 0.1) -> Judged:
    """Return a model's figures: all that should be large alike, all that should be small alike."""
    rankings = [Row(name, 1_000, *[estimate(gain)] * 4) for name in TEST_SETS]
    return Judged("drawn", "1", digest, rankings, [Operating(0.5, *[estimate(alarms)] * 3)])


def judgement(*models: Judged, **changes: Any) -> Judgement:
    """Return an evaluation of some models."""
    return Judgement(**{"data": "d" * 64, "seed": 1, "n_replicates": 1_000, "models": list(models)} | changes)


def write_evaluation(path: Path, judgement: Judgement) -> Path:
    """Write an evaluation, with a field that the gate does not know."""
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(judgement) | {"made_at": "by hand"}))
    return path


def add_version(
    root: Path,
    version: str,
    *,
    name: str = "drawn",
    evaluation: Any = None,
    seed: int = 1,
    has_teacher: bool = True,
    **changes: Any,
) -> Manifest:
    """Add a sealed version of a small drawn model to a registry.

    Args:
        root: The registry.
        version: Of the model.
        name: Of the model.
        evaluation: Of `judged`, as a dictionary; None leaves the evaluation out.
        seed: Of what the model was drawn from.
        has_teacher: Whether a large model lies beside it.
        changes: Of the model's header.
    """
    folder = root / name / version
    folder.mkdir(parents=True)
    booster = boosters.trained(seed=seed, n_trees=3, num_leaves=4)
    digest = boosters.write_model(folder / registry.MODEL_FILE, booster, name=name, version=version, **changes)
    if has_teacher:
        registry.write_teacher(folder, booster, slope=1.0, intercept=0.0)
    if evaluation is not None:
        write_evaluation(folder / gate.EVALUATION_FILE, judgement(judged(digest, **evaluation)))
    return registry.seal(folder, PROVENANCE)


def copy(root: Path, target: Path) -> Path:
    """Return a copy of a registry."""
    return Path(shutil.copytree(root, target))
