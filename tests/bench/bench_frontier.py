"""Size, speed and quality of small models of several families: `python -m tests.bench.bench_frontier --model DIR`.

All learn the same lessons, those of a trained version: its teacher's scores on its features. Quality is on the
validation period, which the served size and family were chosen by; no row of the test period is scored. Time is of a
row in batches of 500 on one core, from feature rows at hand: trees by the scorer, other families by their own code.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from features import schema
from models import compact, dataset, distil, evaluate, intervals, measured, registry, report, thresholds, train
from models.ablation import Taught
from models.dataset import CUTS, Sample
from models.learning import trained_columns
from models.progress import progress
from models.scorer import Scorer
from service.augmentation import simulated_rows
from tests.bench import command, networks, oblivious

SEED = 1
TREES = ((10, 8), (20, 8), (40, 8), (80, 8), (160, 8), (10, 16), (20, 16), (40, 16), (80, 16), (120, 16), (180, 16))
"""How many of how many leaves."""
OBLIVIOUS = ((50, 4), (100, 4), (200, 4), (50, 6), (100, 6))
"""How many of which depth."""
NETWORKS = ((16,), (32,), (64, 32))
BATCH = 500
CALLS = 300

Rows = NDArray[np.float32]
Score = Callable[[Rows], NDArray[np.float64]]


class Point(measured.Point, frozen=True, kw_only=True):
    """A point of the frontier, with more of its quality than the card draws."""

    average_precision: float
    recall_at_1_percent: float
    recall_at_1_percent_new: float


class Frontier(measured.Frontier, frozen=True, kw_only=True):
    """The file."""

    model: str
    """Digest of the version whose lessons were learnt."""
    seed: int
    points: list[Point]


class Bench:
    """The lessons, and the rows that points are judged by."""

    def __init__(self, taught: Taught, sample: Sample, rows: Rows, version: compact.Artifact) -> None:
        self.version = version
        self.kept = taught.kept
        self.lessons = taught.lessons()
        self.read = np.ascontiguousarray(self.lessons.rows[:, self.kept])
        self.margins = np.concatenate([taught.margins, taught.unlabelled_margins])
        self._sample, self._rows = sample, rows
        self._sets = evaluate.judged_sets(sample, train.on_validation(CUTS))

    def trees(self, n_trees: int, n_leaves: int) -> Point:
        """Measure the student's recipe at a size."""
        settings = distil.STUDENT | {"n_trees": n_trees, "num_leaves": n_leaves}
        booster = distil.fit(self.lessons, self.kept, settings, seed=SEED, say=lambda _n, _of: None)
        trees, names, scale = compact.from_booster(booster, booster.feature_name())
        header = msgspec.structs.replace(
            self.version.header,
            features=names,
            leaf_scale=scale,
            n_trees=len(trees.n_splits),
            n_splits=len(trees.feature),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / registry.MODEL_FILE
            compact.write(path, header, trees)
            scorer, n_bytes = Scorer.load(path), path.stat().st_size
        name = f"{n_trees} trees of {n_leaves} leaves"
        chosen = (n_trees, n_leaves) == (distil.STUDENT["n_trees"], distil.STUDENT["num_leaves"])
        return self._point("boosted trees", name, n_bytes, scorer.margins, self._rows, chosen)

    def oblivious(self, n_trees: int, depth: int) -> Point:
        """Measure oblivious trees."""
        model = oblivious.fit(
            self.read,
            self.lessons.target,
            self.lessons.weight,
            n_trees=n_trees,
            depth=depth,
            learning_rate=0.2,
            seed=SEED,
        )
        rows = compact.quantise(self._rows[:, trained_columns()[self.kept]])
        name = f"{n_trees} trees of depth {depth}"
        return self._point("oblivious trees", name, self._with_header(model.n_bytes()), model.margins, rows)

    def network(self, layers: tuple[int, ...]) -> Point:
        """Measure a network."""
        model = networks.network(self.read, self.margins, self.lessons.weight, layers=layers, seed=SEED)
        rows = self._rows[:, trained_columns()[self.kept]]
        name = " and ".join(map(str, layers)) + " units, 8 bits"
        return self._point("network", name, self._with_header(model.n_bytes()), model.margins, rows)

    def regression(self) -> Point:
        """Measure the logistic regression."""
        model = networks.regression(self.read, self.lessons.target, self.lessons.weight)
        rows = self._rows[:, trained_columns()[self.kept]]
        n_bytes = self._with_header(model.n_bytes())
        return self._point("logistic regression", "quantiles as inputs", n_bytes, model.margins, rows)

    def _with_header(self, n_bytes: int) -> int:
        """Return the bytes with a header as long as the served model's, which every family would need."""
        return n_bytes + len(msgspec.json.encode(self.version.header))

    def _point(self, family: str, name: str, n_bytes: int, score: Score, rows: Rows, is_chosen: bool = False) -> Point:
        rows = np.ascontiguousarray(rows)
        scores = score(rows)
        found = {}
        for which, chosen in self._sets.items():
            draws = intervals.draw(self._sample.account[chosen], seed=(SEED,), n_replicates=0)
            found[which] = intervals.ranking(self._sample.is_phishing[chosen], scores[chosen], draws)[0]
        every, new = found["all"], found.get("new accounts", found["all"])
        return Point(
            family,
            name,
            n_bytes,
            _us_per_row(score, rows[:BATCH]),
            float(every[0]),
            float(new[0]),
            is_chosen,
            average_precision=float(every[1]),
            recall_at_1_percent=float(every[2]),
            recall_at_1_percent_new=float(new[2]),
        )


def _us_per_row(score: Score, batch: Rows) -> float:
    """Return the median over calls: whatever else runs disturbs less than half of them."""
    spent = []
    for _ in range(CALLS):
        started_s = time.perf_counter()
        score(batch)
        spent.append(time.perf_counter() - started_s)
    return float(np.median(spent)) * 1e6 / len(batch)


def measure(data: Path, folder: Path) -> Frontier:
    """Return the frontier of a version's lessons."""
    version = compact.read(folder / registry.MODEL_FILE)
    names = [schema.FEATURES[i].name for i in trained_columns().tolist()]
    kept = np.array(sorted(names.index(name) for name in version.header.features), dtype=np.int64)
    with progress() as say:
        records = dataset.read(data)
        held = train.gather(records, data, train.FULL, simulated_rows(SEED), seed=SEED, progress=say)
        taught = train.teach(held, registry.Teacher.load(folder).booster, kept, say)
        bench = Bench(taught, held.sample.take(held.tuned), held.rows[held.tuned], version)
        makers: list[Callable[[], Point]] = [lambda size=size: bench.trees(*size) for size in TREES]
        makers += [lambda size=size: bench.oblivious(*size) for size in OBLIVIOUS]
        makers += [lambda layers=layers: bench.network(layers) for layers in NETWORKS]
        makers.append(bench.regression)
        points = []
        for make in makers:
            points.append(make())
            say("frontier", len(points), len(makers))
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    period = thresholds.period(records.cuts)
    return Frontier(report.machine(), report.commit(), made_at, period, model=version.digest, seed=SEED, points=points)


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = command.parser(__doc__)
    command.add_model(parser)
    parser.add_argument("--output", type=Path, default=Path("docs/frontier.json"), metavar="FILE")
    return command.run(parser, _run)


def _run(options: command.Options) -> None:
    found = measure(options.data, options.model or registry.champion())
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    for point in found.points:
        print(
            f"{point.family:20s} {point.name:26s} {point.bytes:>7,} B {point.us_per_row:7.3f} us  "
            f"ROC AUC {point.roc_auc:.4f} new {point.roc_auc_new:.4f} AP {point.average_precision:.4f}"
        )


if __name__ == "__main__":
    sys.exit(main())
