"""Repeat the comparisons behind the teacher's settings: `python -m tests.bench.bench_teacher --data DIR [--only NAME]`.

Learnt before 2018-01, 2018-04 and 2018-07, judged from there to the end of the validation period; no row of the test
period is ever looked at. Prints a line for each variant, origin and seed; a variant takes two minutes and more of a
core.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import schema
from models import dataset, evaluate, learning, teacher
from models.dataset import BACKGROUND, Cuts, Records
from models.learning import Parts, Settings
from models.progress import Progress, progress
from service.augmentation import simulated_rows
from tests.bench import command

ORIGINS = ("2018-01-01", "2018-04-01", "2018-07-01")
RHYTHM = ("gap", "pause", "round", "digits")
"""Parts of the names of the columns of rhythm and round amounts."""

Weigh = Callable[[Parts], NDArray[np.float64]]


class Variant(NamedTuple):
    """A teacher that differs from the shipped one in one respect."""

    settings: Settings = teacher.TEACHER
    weigh: Weigh = teacher.weights
    left_out: tuple[str, ...] = teacher.LEFT_OUT
    """Parts of the names of columns that are not read."""
    simulated_share: float = 0.0
    """Weight of simulated rows, as the student learns them."""


def _without_cold(parts: Parts) -> NDArray[np.float64]:
    return np.where(parts.is_cold, 0.0, teacher.weights(parts))


def _background_as_others(parts: Parts) -> NDArray[np.float64]:
    return teacher.weights(parts) / np.where(parts.account == BACKGROUND, teacher.BACKGROUND_WEIGHT, 1.0)


def _ageless(parts: Parts) -> NDArray[np.float64]:
    return teacher.weights(parts._replace(time=np.zeros_like(parts.time)))


ONE_RUN: Settings = {
    "objective": "binary",
    "n_members": 1,
    "n_trees": 800,
    "learning_rate": 0.04,
    "num_leaves": 63,
    "max_depth": -1,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.15,
    "lambda_l2": 5.0,
}

VARIANTS = {
    "teacher": Variant(),
    "without rhythm": Variant(left_out=(*teacher.LEFT_OUT, *RHYTHM)),
    "all columns": Variant(left_out=()),
    "one member": Variant(teacher.TEACHER | {"n_members": 1}),
    "weaker shrinkage": Variant(teacher.TEACHER | {"lambda_l2": 10.0}),
    "without cold copies": Variant(weigh=_without_cold),
    "background as others": Variant(weigh=_background_as_others),
    "ageless": Variant(weigh=_ageless),
    "with simulated frauds": Variant(simulated_share=learning.SIMULATED_SHARE),
    "one run of 800 trees": Variant(ONE_RUN, lambda parts: parts.weight, ()),
}


def main() -> int:
    """Run the comparisons and return the exit code."""
    parser = command.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--trees", type=int, help="of a member, instead of each variant's")
    parser.add_argument("--origins", nargs="+", default=ORIGINS, metavar="DATE", help="before which is learnt")
    return command.run(parser, _run)


def _run(options: command.Options) -> None:
    records = dataset.read(options.data)
    with progress() as tell:
        starts = [int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) for day in options.origins]
        origins = [(start, *_learnt(records, start, tell)) for start in starts]
    print("| variant | learnt before | seed | all | A | B | new | first | recall new @ 1 % | background @ 50 %, 70 % |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.only:
        for seed in options.seeds:
            for start, parts, judged, rows in origins:
                figures = _figures(VARIANTS[name], parts, judged, rows, start, seed, options.trees)
                day = datetime.fromtimestamp(start, UTC).date()
                print(f"| {name} | {day} | {seed} | {' | '.join(figures)} |", flush=True)


def _learnt(records: Records, start: int, tell: Progress) -> tuple[Parts, dataset.Sample, NDArray[np.float32]]:
    """Return what is learnt from before an origin, and the rows from there to the end of the validation period."""
    end = records.cuts.test_start
    records = records._replace(cuts=Cuts(start, end))
    sample = dataset.sample(records)
    sample = sample.take(sample.time < end)
    rows = dataset.matrix(records, sample.position, report=tell)
    parts = learning.learning_parts(records, sample, rows, seed=1, report=tell)
    judged = sample.time >= start
    return parts, sample.take(judged), rows[judged][:, learning.trained_columns()]


def _figures(
    variant: Variant,
    parts: Parts,
    judged: dataset.Sample,
    rows: NDArray[np.float32],
    start: int,
    seed: int,
    n_trees: int | None,
) -> list[str]:
    names = [schema.FEATURES[i].name for i in learning.trained_columns().tolist()]
    read = np.array([not any(part in name for part in variant.left_out) for name in names])
    settings = variant.settings if n_trees is None else variant.settings | {"n_trees": n_trees}
    parts = parts._replace(weight=variant.weigh(parts))
    if variant.simulated_share:
        parts = learning.with_simulated(parts, simulated_rows(seed), variant.simulated_share)
    booster = teacher.fit(parts, settings, seed=seed, say=lambda *_: None, weight=parts.weight, read=read)
    margins = np.asarray(booster.predict(rows, raw_score=True, num_threads=1))
    rankings, operations = evaluate.evaluate(judged, margins, seed=1, n_replicates=1, cuts=Cuts(start, start))
    by_set = {ranking.test_set: ranking for ranking in rankings}
    new = by_set.get("new accounts")
    alerts = [one.background.value for one in operations[1:] if one.background is not None]
    return [
        *(f"{ranking.roc_auc.value:.4f}" for ranking in rankings),
        "" if new is None else f"{new.recall_at_1_percent.value:.3f}",
        ", ".join(f"{alert:.4f}" for alert in alerts),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
