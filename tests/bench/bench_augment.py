"""Whether simulated frauds help the student: `python -m tests.bench.bench_augment --model DIR`.

The lessons of a trained version (its teacher's scores on its features) get rows of the simulator with their truth, at
several weights. What counts is the validation period of real transactions; what a student makes of the simulator's own
frauds, of another seed, shows what the rows taught. Each student is trained with several seeds.
"""

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features import schema
from features.accounts import Accounts
from features.errors import FalconetError
from features.transaction import IS_TOKEN, pack, records
from models import compact, dataset, distil, evaluate, intervals, registry, report, thresholds, train
from models.dataset import CUTS
from models.distil import Lessons
from models.learning import trained_columns
from models.progress import progress
from service import simulator
from service.codec import Decoder
from service.settings import DATA_VARIABLE

WEIGHTS = (0.0, 0.02, 0.1, 0.3)
"""Of the simulated rows, against 1 of the labelled ones with their past."""
SEEDS = (1, 2, 3)
N_MESSAGES = 60_000
WARM_UP = 10_000
"""Messages whose rows are left out: the simulator's people begin without a past."""
TAUGHT_SEED, JUDGED_SEED = 101, 202


class Simulated(NamedTuple):
    """Payments of a simulated stream."""

    rows: NDArray[np.float32]
    """Trained columns, rounded to the grid."""
    kind: NDArray[np.str_]
    """Of fraud, empty for an ordinary payment."""


class Line(Struct, frozen=True):
    """Students of one weight: mean and standard deviation over the seeds."""

    weight: float
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


def simulate(seed: int) -> Simulated:
    """Return the payments of value above 0 of a stream, each scored at its own time."""
    decoder = Decoder(chain_id=1, message_bytes_max=1 << 20)
    drawn = list(itertools.islice(simulator.stream(seed), N_MESSAGES))
    packed = records([pack(decoder.decode(message.value)) for message in drawn])
    rows, _ = Accounts(accounts_max=N_MESSAGES * 2, pairs_max=N_MESSAGES * 4).score_rows(packed)
    is_paying = (packed.view(np.float64)[:, 6] > 0) & (packed[:, 8] & np.uint64(IS_TOKEN) == 0)
    is_paying[:WARM_UP] = False
    kind = np.array([message.kind or "" for message in drawn])
    return Simulated(compact.quantise(rows[is_paying][:, trained_columns()]), kind[is_paying])


def with_simulated(lessons: Lessons, simulated: Simulated, weight: float, warm: float) -> Lessons:
    """Return lessons with simulated rows; fraud and ordinary payments weigh alike among them."""
    if not weight:
        return lessons
    is_fraud = simulated.kind != ""
    each = np.where(is_fraud, 0.5 / is_fraud.sum(), 0.5 / (~is_fraud).sum()) * weight * warm
    return Lessons(
        np.concatenate([lessons.rows, simulated.rows]),
        np.concatenate([lessons.target, is_fraud.astype(np.float64)]),
        np.concatenate([lessons.weight, each]),
    )


def ranking(is_fraud: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ROC AUC, average precision and recall at 1 % false positives."""
    draws = intervals.draw(np.arange(len(scores)), seed=(1,), n_replicates=0)
    return np.asarray(intervals.ranking(is_fraud, scores, draws)[0, :3])


def measure(data: Path, folder: Path) -> Found:
    """Return the figures of every weight."""
    version = compact.read(folder / registry.MODEL_FILE)
    names = [schema.FEATURES[i].name for i in trained_columns().tolist()]
    kept = np.array(sorted(names.index(name) for name in version.header.features), dtype=np.int64)
    with progress() as say:
        held = train.gather(dataset.read(data), data, train.FULL, seed=1, progress=say)
        taught = train.teach(held, registry.Teacher.load(folder).booster, kept, say)
        lessons, warm = taught.lessons(), float(taught.parts.weight[~taught.parts.is_cold].sum())
        sample = held.sample.take(held.tuned)
        rows = compact.quantise(held.rows[held.tuned][:, trained_columns()[kept]])
        sets = evaluate.judged_sets(sample, train.on_validation(CUTS))
        teaching, judging = simulate(TAUGHT_SEED), simulate(JUDGED_SEED)
        lines = []
        for weight in WEIGHTS:
            found: dict[str, list[float]] = {}
            for seed in SEEDS:
                mixed = with_simulated(lessons, teaching, weight, warm)
                student = distil.fit(mixed, kept, distil.STUDENT, seed=seed, say=lambda _n, _of: None)
                scores = np.asarray(student.predict(rows, raw_score=True, num_threads=1))
                for which in ("all", "new accounts", "new accounts, first transaction"):
                    figures = ranking(sample.is_phishing[sets[which]], scores[sets[which]])
                    for name, figure in zip(("ROC AUC", "AP", "recall"), figures.tolist(), strict=True):
                        found.setdefault(f"{which}: {name}", []).append(figure)
                simulated = np.asarray(student.predict(judging.rows[:, kept], raw_score=True, num_threads=1))
                for kind in np.unique(judging.kind[judging.kind != ""]).tolist():
                    chosen = (judging.kind == kind) | (judging.kind == "")
                    figure = ranking(judging.kind[chosen] == kind, simulated[chosen])[0]
                    found.setdefault(f"simulated {kind}: ROC AUC", []).append(float(figure))
            spread = {name: (float(np.mean(values)), float(np.std(values))) for name, values in found.items()}
            lines.append(Line(weight, spread))
            say("augmentation", len(lines), len(WEIGHTS))
    kinds, counts = np.unique(teaching.kind, return_counts=True)
    n_simulated = {kind or "ordinary": int(n) for kind, n in zip(kinds.tolist(), counts.tolist(), strict=True)}
    return Found(report.machine(), report.commit(), thresholds.period(CUTS), version.digest, n_simulated, lines)


def main() -> int:
    """Run the experiment and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get(DATA_VARIABLE), metavar="DIR", help="data folder")
    parser.add_argument("--model", type=Path, default=None, metavar="DIR", help="trained version; default the champion")
    parser.add_argument("--output", type=Path, default=Path("docs/augmentation.json"), metavar="FILE")
    asked = parser.parse_args()
    if asked.data is None:
        parser.error(f"--data or {DATA_VARIABLE} must name the data folder")
    try:
        found = measure(Path(asked.data), asked.model or registry.champion())
    except FalconetError as error:
        print(error, file=sys.stderr)
        return 1
    asked.output.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    print(found.n_simulated)
    for name in found.lines[0].figures:
        cells = "  ".join(f"{line.figures[name][0]:.4f} +- {line.figures[name][1]:.4f}" for line in found.lines)
        print(f"{name:44s} {cells}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
