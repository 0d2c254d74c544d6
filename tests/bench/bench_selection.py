"""What students of chosen features keep of their teacher later: `python -m tests.bench.bench_selection --data DIR`.

A teacher and its student's features are made as if a quarter before 2018 or before 2018-04 were the validation period,
and judged from there to the end of the real one; no row of the test period is looked at. Beside the chosen features
stand all that the teacher reads, and those of most gain. Prints a line for each; some ten minutes an origin.
"""

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from models import compact, dataset, distil, evaluate, intervals, teacher, train
from models.dataset import BACKGROUND, Cuts
from models.learning import trained_columns
from models.progress import Progress, progress
from service import bench
from service.augmentation import simulated_rows
from tests.bench import command

ORIGINS = {"2017-10-01": "2018-01-01", "2018-01-01": "2018-04-01"}
"""Before which is learnt, and before which is chosen."""
STUDENT_SEEDS = (1, 2, 3, 4)
SEED = 1


def main() -> int:
    """Run the comparisons and return the exit code."""
    parser = command.parser(__doc__)
    parser.add_argument("--origins", nargs="+", choices=ORIGINS, default=list(ORIGINS), metavar="DATE")
    return command.run(parser, _run)


def _run(options: command.Options) -> None:
    print(f"{bench.machine()}, commit {bench.commit()}")
    print("| learnt before | judged from | features | ROC AUC kept | AP kept | new accounts: ROC AUC kept | AP kept |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with progress() as tell:
        for day in options.origins:
            _compare(options, day, tell)


def _compare(options: command.Options, day: str, tell: Progress) -> None:
    """Print a line for each choice at one origin."""
    cuts = Cuts(_seconds(day), _seconds(ORIGINS[day]))
    records = dataset.read(options.data)
    end = records.cuts.test_start
    records = records._replace(cuts=cuts)
    held = train.gather(records, options.data, train.FULL, simulated_rows(SEED), seed=SEED, progress=tell)
    large, kept = train.prepare(held, cuts, train.FULL, seed=SEED, progress=tell)
    lessons = train.teach(held, large.booster, kept, tell).lessons()
    time = held.sample.time
    later = (time >= cuts.test_start) & (time < end) & (held.sample.account != BACKGROUND)
    sample, rows = held.sample.take(later), held.rows[later][:, trained_columns()]
    cells = compact.quantise(rows)
    judged = evaluate.judged_sets(sample, cuts)
    sets = [judged[name] for name in ("all", "new accounts")]
    draws = [intervals.draw(np.arange(one.sum()), seed=(1,), n_replicates=0) for one in sets]

    def figures(margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ROC AUC and average precision of both sets."""
        found = [
            intervals.ranking(sample.is_phishing[one], margins[one], draw)[0, :2]
            for one, draw in zip(sets, draws, strict=True)
        ]
        return np.concatenate(found)

    whole = figures(np.asarray(large.booster.predict(rows, raw_score=True, num_threads=2)))
    among = np.flatnonzero(teacher.read_columns())
    gain = distil.fit(lessons, among, distil.STUDENT, seed=SEED, say=_silent).feature_importance("gain")
    most = np.sort(among[np.argsort(-gain, kind="stable")[: compact.FEATURES_MAX]])
    for name, chosen in ((f"all {len(among)}", among), ("of most gain", most), ("chosen", kept)):
        found = []
        for seed in STUDENT_SEEDS:
            student = distil.fit(lessons, chosen, distil.STUDENT, seed=seed, say=_silent)
            found.append(figures(np.asarray(student.predict(cells[:, chosen], raw_score=True, num_threads=2))))
        told = " | ".join(f"{ratio:.4f}" for ratio in np.mean(found, axis=0) / whole)
        print(f"| {day} | {ORIGINS[day]} | {name} | {told} |", flush=True)


def _seconds(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())


def _silent(_n_done: int, _n: int) -> None:
    """Take no notice."""


if __name__ == "__main__":
    raise SystemExit(main())
