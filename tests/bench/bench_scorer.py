"""Time the scorer against LightGBM on the same model and rows, taking turns: `python -m tests.bench.bench_scorer`.

Prints the machine, the commit, the model, and for each way of calling the least, median and 99th percentile of the time
a row. Rows are drawn around the model's own thresholds, so that both ways through every split are taken.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from features import schema
from models import compact, registry, report
from models.scorer import Scorer
from tests.boosters import trained, write_model

ROUNDS = 400
BATCHES = (1, 10, 500, 2_000)


def drawn_rows(artifact: compact.Artifact, n: int) -> NDArray[np.float32]:
    """Return rows whose values lie among the thresholds of their features, one in twenty unknown."""
    rng = np.random.default_rng(1)
    rows = np.full((n, schema.N_FEATURES), np.nan, dtype=np.float32)
    for i, name in enumerate(artifact.header.features):
        thresholds = artifact.trees.threshold[artifact.trees.feature == i]
        jitter = 1 + rng.normal(size=n) / 10
        rows[:, schema.index(name)] = rng.choice(thresholds, size=n) * jitter
    rows[rng.random(rows.shape) < 0.05] = np.nan
    return rows


def take_turns(calls: dict[str, Callable[[], object]]) -> dict[str, NDArray[np.float64]]:
    """Return each call's seconds, the calls alternating so that all meet the same disturbances."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            started_s = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - started_s)
    return {name: np.array(seconds) for name, seconds in spent.items()}


def show(title: str, booster: lgb.Booster | None, scorer: Scorer, rows: NDArray[np.float32]) -> None:
    """Print a table for one model."""
    print(
        f"\n{title}: {scorer.header.n_trees} trees, {len(scorer.header.features)} features, "
        f"{scorer.model.n_bytes:,} bytes"
    )
    print(f"{'':34s}{'least':>10s}{'median':>10s}{'p99':>10s}   us a row")
    for n in BATCHES:
        batch = rows[:n]
        calls: dict[str, Callable[[], object]] = {
            "scorer": lambda batch=batch: scorer.probabilities(scorer.margins(batch))
        }
        if booster is not None:
            calls["Booster.predict, 1 thread"] = lambda batch=batch: booster.predict(batch, num_threads=1)
        for name, seconds in take_turns(calls).items():
            figures = [seconds.min(), *np.percentile(seconds, (50, 99))]
            print(f"{name + f', {n} rows':34s}" + "".join(f"{1e6 * figure / n:10.3f}" for figure in figures))
    explained = take_turns({"reasons": lambda: scorer.reasons(rows[0], 5)})["reasons"]
    figures = [explained.min(), *np.percentile(explained, (50, 99))]
    print(f"{'reasons, 1 row':34s}" + "".join(f"{1e6 * figure:10.3f}" for figure in figures))


def main(folder: Path) -> None:
    """Time a drawn model of 150 trees, where LightGBM has the same one, and the packaged champion."""
    print(f"machine {report.machine()}\ncommit  {report.commit()}\nrounds  {ROUNDS}, {report.libraries()}")
    path = folder / "drawn.falconet"
    booster = trained(n_trees=150, min_data_in_leaf=5)
    write_model(path, booster)
    artifact = compact.read(path)
    show("drawn model", booster, Scorer(artifact), drawn_rows(artifact, max(BATCHES)))
    artifact = compact.read(registry.champion() / registry.MODEL_FILE)
    teacher = registry.Teacher.load(registry.champion())
    rows = drawn_rows(artifact, max(BATCHES))
    show("champion", None, Scorer(artifact), rows)
    seconds = take_turns({"teacher": lambda: teacher.margins(rows[:1])})["teacher"]
    print(f"teacher, {teacher.booster.num_trees()} trees, 1 row: median {1e6 * np.median(seconds):.1f} us, ", end="")
    print(f"p99 {1e6 * np.percentile(seconds, 99):.1f} us")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
    sys.exit(0)
