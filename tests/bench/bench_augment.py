"""Whether simulated frauds help the student: `python -m tests.bench.bench_augment --model DIR`.

The lessons of a trained version (its teacher's scores on its features) get rows of the simulator with their truth, at
several shares of the weight. What counts is the validation period of real transactions; what a student makes of the
simulator's own frauds, of another seed, shows what the rows taught. Each student is trained with several seeds.
`tests/bench/bench_teacher.py` asks the same of the teacher.
"""

import sys
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features import schema
from models import compact, dataset, distil, evaluate, intervals, registry, report, thresholds, train
from models.dataset import CUTS
from models.learning import trained_columns
from models.progress import progress
from service.augmentation import simulated_rows
from tests.bench import command

SHARES = (0.0, 0.02, 0.1, 0.3)
"""Of the simulated rows' weight, against 1 of the labelled ones with their past."""
SEEDS = (1, 2, 3)
TAUGHT_SEED, JUDGED_SEED = 101, 202


class Line(Struct, frozen=True):
    """Students of one share: mean and standard deviation over the seeds."""

    share: float
    figures: dict[str, tuple[float, float]]


class Found(Struct, frozen=True):
    """The file."""

    machine: str
    commit: str
    period: str
    model: str
    n_simulated: dict[str, int]
    """Rows that were learnt from, of each kind."""
    lines: list[Line]


def ranking(is_fraud: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ROC AUC, average precision and recall at 1 % false positives."""
    draws = intervals.draw(np.arange(len(scores)), seed=(1,), n_replicates=0)
    return np.asarray(intervals.ranking(is_fraud, scores, draws)[0, :3])


def measure(data: Path, folder: Path) -> Found:
    """Return the figures of every share."""
    version = compact.read(folder / registry.MODEL_FILE)
    names = [schema.FEATURES[i].name for i in trained_columns().tolist()]
    kept = np.array(sorted(names.index(name) for name in version.header.features), dtype=np.int64)
    with progress() as say:
        held = train.gather(dataset.read(data), data, train.FULL, None, seed=1, progress=say)
        large = registry.Teacher.load(folder).booster
        sample = held.sample.take(held.tuned)
        rows = compact.quantise(held.rows[held.tuned][:, trained_columns()[kept]])
        sets = evaluate.judged_sets(sample, train.on_validation(CUTS))
        teaching, judging = simulated_rows(TAUGHT_SEED), simulated_rows(JUDGED_SEED)
        seen = compact.quantise(judging.rows[:, kept])
        lines = []
        for share in SHARES:
            simulated = teaching if share else None
            lessons = train.teach(held._replace(simulated=simulated), large, kept, say, share).lessons()
            found: dict[str, list[float]] = {}
            for seed in SEEDS:
                student = distil.fit(lessons, kept, distil.STUDENT, seed=seed, say=lambda _n, _of: None)
                scores = np.asarray(student.predict(rows, raw_score=True, num_threads=1))
                for which in ("all", "new accounts", "new accounts, first transaction"):
                    figures = ranking(sample.is_phishing[sets[which]], scores[sets[which]])
                    for name, figure in zip(("ROC AUC", "AP", "recall"), figures.tolist(), strict=True):
                        found.setdefault(f"{which}: {name}", []).append(figure)
                shown = np.asarray(student.predict(seen, raw_score=True, num_threads=1))
                for kind in np.unique(judging.kind[judging.kind != ""]).tolist():
                    chosen = (judging.kind == kind) | (judging.kind == "")
                    figure = ranking(judging.kind[chosen] == kind, shown[chosen])[0]
                    found.setdefault(f"simulated {kind}: ROC AUC", []).append(float(figure))
            spread = {name: (float(np.mean(values)), float(np.std(values))) for name, values in found.items()}
            lines.append(Line(share, spread))
            say("augmentation", len(lines), len(SHARES))
    kinds, counts = np.unique(teaching.kind, return_counts=True)
    n_simulated = {kind or "ordinary": int(n) for kind, n in zip(kinds.tolist(), counts.tolist(), strict=True)}
    return Found(report.machine(), report.commit(), thresholds.period(CUTS), version.digest, n_simulated, lines)


def main() -> int:
    """Run the experiment and return its exit code."""
    parser = command.parser(__doc__)
    command.add_model(parser)
    parser.add_argument("--output", type=Path, default=Path("docs/augmentation.json"), metavar="FILE")
    return command.run(parser, _run)


def _run(options: command.Options) -> None:
    found = measure(options.data, options.model or registry.champion())
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    print(found.n_simulated)
    for name in found.lines[0].figures:
        cells = "  ".join(f"{line.figures[name][0]:.4f} +- {line.figures[name][1]:.4f}" for line in found.lines)
        print(f"{name:44s} {cells}")


if __name__ == "__main__":
    sys.exit(main())
