"""Train the large model and the small one that it teaches, and write both with their evaluation.

Both learn from the rows before the validation period; features, calibration and thresholds are chosen on it; the test
period is looked at once, by the report. The dates are the data folder's protocol's unless the source says otherwise.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from features import schema
from features.errors import InputError, UsageError
from models import (
    ablation,
    calibration,
    card,
    compact,
    dataset,
    distil,
    drift,
    energy,
    evaluate,
    learning,
    registry,
    report,
    selection,
    teacher,
    thresholds,
)
from models.dataset import Cuts, Records, Sample, Source
from models.learning import FIXED, Parts, Settings, SimulatedRows, trained_columns
from models.progress import Progress
from models.scorer import Scorer

if TYPE_CHECKING:
    from lightgbm import Booster

NAME = "falconet"


class Plan(NamedTuple):
    """How much work a training is."""

    teacher: Settings = teacher.TEACHER
    student: Settings = distil.STUDENT
    effort: selection.Effort = selection.THOROUGH
    n_students: int = distil.N_STUDENTS
    n_unlabelled: int = distil.N_UNLABELLED
    n_replicates: int = evaluate.N_REPLICATES
    is_quick: bool = False
    """Judge by the validation period, and leave the ablation out: ideas are not tried on the test period."""


FULL = Plan()
QUICK = Plan(
    teacher=teacher.QUICK_TEACHER,
    student=distil.STUDENT | {"n_trees": 100, "learning_rate": 0.3},
    effort=selection.QUICK,
    n_students=1,
    n_unlabelled=50_000,
    n_replicates=100,
    is_quick=True,
)


class Learnt(NamedTuple):
    """A booster with its calibration."""

    booster: "Booster"
    slope: float
    intercept: float


class Rows(NamedTuple):
    """Everything that is learnt from, tuned on or judged by."""

    sample: Sample
    rows: NDArray[np.float32]
    """All features of the sample."""
    parts: Parts
    simulated: SimulatedRows | None
    unlabelled: NDArray[np.float32]
    """Trained columns of payments without a label."""
    tuned: NDArray[np.bool_]
    """Which rows of the sample are of the validation period."""


def train(
    data: Path | Source,
    output: Path,
    *,
    seed: int = 1,
    progress: Progress,
    plan: Plan = FULL,
    budget: thresholds.Budget = thresholds.BUDGET,
    simulated: SimulatedRows | None = None,
) -> report.Report:
    """Train both models, write them into a folder, evaluate them and write the report beside them.

    Training twice with one seed gives the same model file.

    Args:
        data: Folder with the files of `models.dataset`, or an archive with its labels and dates.
        output: Folder to write to, made if need be; its name becomes the version.
        seed: Of everything drawn.
        progress: Told of the progress.
        plan: How much work to do.
        budget: How many alerts the thresholds may give.
        simulated: Payments with kinds of fraud that the labels lack; None for none.

    Raises:
        InputError: The data cannot be read or holds too little to train, tune or judge.
        UsageError: The output folder cannot be made, or holds a sealed version.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output}: cannot be made a folder: {error.strerror}") from error
    registry.refuse_sealed(output)
    meter = energy.Meter()
    records = dataset.read(data)
    place = data.folder if isinstance(data, Source) else data
    held = gather(records, place, plan, simulated, seed=seed, progress=progress)
    large, kept = prepare(held, records.cuts, plan, seed=seed, progress=progress)
    registry.write_teacher(output, large.booster, slope=large.slope, intercept=large.intercept)
    taught = teach(held, large.booster, kept, progress)
    student = _student(taught, held, plan, seed=seed, progress=progress)
    _write(output, student, held, records, plan, budget, seed=seed)
    scorer = Scorer.load(output / registry.MODEL_FILE)
    drift.write(output, _reference(scorer, held.sample.take(held.tuned), held.rows[held.tuned]))
    if not plan.is_quick:
        _ablate(output, taught, large.booster, student, held, records.cuts, plan, seed=seed, progress=progress)
    result = _judge(output, held, records, plan, seed=seed, progress=progress)
    result = msgspec.structs.replace(result, training=meter.read())
    report.write(output, result)
    card.of_version(output)
    made = registry.Provenance(
        data=records.digest,
        commit=result.commit,
        seed=seed,
        settings=FIXED | plan.student,
        libraries=result.libraries,
        made_at=result.made_at,
    )
    registry.seal(output, made)
    return result


def gather(
    records: Records, place: Path, plan: Plan, simulated: SimulatedRows | None, *, seed: int, progress: Progress
) -> Rows:
    """Return what a training learns from, tunes on and judges by; `place` is what errors name."""
    sample = dataset.sample(records)
    _check(sample, records.cuts, place)
    more = learning.unlabelled(records, sample, plan.n_unlabelled, seed=seed)
    position = np.sort(np.concatenate([sample.position, more]))
    everything = dataset.matrix(records, position, report=progress)
    is_more = np.isin(position, more)
    rows = everything[~is_more]
    parts = learning.learning_parts(records, sample, rows, seed=seed, report=progress)
    tuned = (sample.time >= records.cuts.validation_start) & (sample.time < records.cuts.test_start)
    return Rows(sample, rows, parts, simulated, everything[is_more][:, trained_columns()], tuned)


def _check(sample: Sample, cuts: Cuts, place: Path) -> None:
    first, last = thresholds.period(cuts).split(" to ")
    periods = {
        f"before {first}": sample.time < cuts.validation_start,
        f"from {first} to {last}": (sample.time >= cuts.validation_start) & (sample.time < cuts.test_start),
        f"after {last}": sample.time >= cuts.test_start,
    }
    is_normal = ~sample.is_phishing & (sample.account != dataset.BACKGROUND)
    kinds = {"phishing": sample.is_phishing}
    for source in np.unique(sample.source[is_normal]).tolist() or [""]:
        kinds[f"normal rows of {source}" if source else "normal rows"] = is_normal & (sample.source == source)
    for period, in_period in periods.items():
        for kind, of_kind in kinds.items():
            if not (in_period & of_kind).any():
                raise InputError(f"{place}: no {kind} {period}, training needs some in each period")


def prepare(held: Rows, cuts: Cuts, plan: Plan, *, seed: int, progress: Progress) -> tuple[Learnt, NDArray[np.int64]]:
    """Return the teacher, and the places of the student's features among the trained columns.

    The choice needs labels only, so both are made at once, on a core each: LightGBM leaves the interpreter to others
    while it grows a tree.
    """
    early = held.sample.time < cuts.test_start
    # Simulated rows are the student's alone: over three origins they made the teacher no better.
    weight, cells = teacher.weights(held.parts), compact.quantise(held.parts.rows)
    judged = compact.quantise(held.rows[early][:, trained_columns()])
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(teacher.fit, held.parts, plan.teacher, seed=seed, say=partial(progress, "teacher"))
        kept = selection.choose(
            held.parts._replace(rows=cells, weight=weight),
            held.sample.take(early),
            judged,
            cuts=cuts,
            # What the teacher does not read it cannot teach.
            among=np.flatnonzero(teacher.read_columns()),
            n_features=compact.FEATURES_MAX,
            seed=seed,
            say=partial(progress, "choice of features"),
            effort=plan.effort,
        )
        booster = asked.result()
    margins = _margins(booster, held.rows[held.tuned][:, trained_columns()])
    return Learnt(booster, *thresholds.calibrate(margins, held.sample.take(held.tuned))), kept


def _margins(booster: "Booster", rows: NDArray[np.float32]) -> NDArray[np.float64]:
    # Rows are scored apart from one another: threads change nothing but the time.
    return np.asarray(booster.predict(rows, raw_score=True, num_threads=2), dtype=np.float64)


def teach(
    held: Rows,
    large: "Booster",
    kept: NDArray[np.int64],
    progress: Progress,
    simulated_share: float = learning.SIMULATED_SHARE,
) -> ablation.Taught:
    """Return what the student starts from: rows with the scores of the large model, and the features to read."""
    progress("teacher's scores", 0, 2)
    parts = held.parts._replace(weight=teacher.weights(held.parts, cold_weight=distil.COLD_WEIGHT))
    parts = parts if held.simulated is None else learning.with_simulated(parts, held.simulated, simulated_share)
    margins = _margins(large, parts.rows)
    progress("teacher's scores", 1, 2)
    more = _margins(large, held.unlabelled) if len(held.unlabelled) else np.zeros(0)
    progress("teacher's scores", 2, 2)
    return ablation.Taught(parts, compact.quantise(parts.rows), margins, compact.quantise(held.unlabelled), more, kept)


def _student(taught: ablation.Taught, held: Rows, plan: Plan, *, seed: int, progress: Progress) -> "Booster":
    chosen = held.tuned & (held.sample.account != dataset.BACKGROUND)
    return distil.best(
        taught.lessons(),
        taught.kept,
        plan.student,
        n_students=plan.n_students,
        cells=compact.quantise(held.rows[chosen][:, trained_columns()]),
        is_phishing=held.sample.is_phishing[chosen],
        seed=seed,
        say=partial(progress, "students"),
    )


def _reference(scorer: Scorer, sample: Sample, rows: NDArray[np.float32]) -> drift.Reference:
    """Return what traffic is compared with: the rows that the model's calibration was fitted to."""
    told = scorer.header.calibration
    probabilities = scorer.probabilities(scorer.margins(rows))
    weight = calibration.traffic_weights(sample, told.prior)
    return drift.reference(rows, probabilities, scorer.header.features, weight=weight, source=told.chosen)


def _write(
    folder: Path,
    student: "Booster",
    held: Rows,
    records: Records,
    plan: Plan,
    budget: thresholds.Budget,
    *,
    seed: int,
) -> None:
    trees, names, leaf_scale = compact.from_booster(student, student.feature_name())
    tuned, rows = held.sample.take(held.tuned), held.rows[held.tuned]
    learnt = ~held.parts.is_cold
    told = f"labelled and background payments of {thresholds.period(records.cuts)}"
    header = compact.Header(
        name=NAME,
        version=folder.resolve().name,
        schema=schema.FINGERPRINT,
        features=names,
        calibration=compact.Calibration(1.0, 0.0, thresholds.PRIOR, told),
        thresholds={name: compact.Threshold(0.5, "not chosen yet") for name in ("review", "block")},
        training=compact.Training(
            records.digest,
            registry.Teacher.load(folder).digest,
            seed,
            int(learnt.sum()),
            int(held.parts.is_phishing[learnt].sum()),
            FIXED | plan.student,
            report.libraries(),
            _method(held, plan),
        ),
        leaf_scale=leaf_scale,
        n_trees=len(trees.n_splits),
        n_splits=len(trees.feature),
    )
    # The file's own leaves and arithmetic say what reaches a threshold.
    margins = Scorer(compact.Artifact(header, trees, "", 0)).margins(rows)
    calibration = compact.Calibration(*thresholds.calibrate(margins, tuned), thresholds.PRIOR, told)
    header = msgspec.structs.replace(header, calibration=calibration)
    probabilities = Scorer(compact.Artifact(header, trees, "", 0)).probabilities(margins)
    chosen = thresholds.thresholds(probabilities, tuned, budget, records.cuts)
    compact.write(folder / registry.MODEL_FILE, msgspec.structs.replace(header, thresholds=chosen), trees)


def _method(held: Rows, plan: Plan) -> dict[str, bool | int | float | str]:
    method: dict[str, bool | int | float | str] = {
        "target": "half the label, half the teacher's probability; without a label the teacher's; simulated: the truth",
        "n_unlabelled": len(held.unlabelled),
        "unlabelled_weight": distil.UNLABELLED_WEIGHT,
        "n_simulated": 0 if held.simulated is None else len(held.simulated.rows),
        "simulated_share": learning.SIMULATED_SHARE,
        "cold_copy": learning.COLD_COPY,
        "features": "elimination by shuffling, judged on the three quarters before the test period",
        "thresholds": "trained on the 16-bit grid",
        "leaves": "estimated together, 16 bits",
        "ridge": distil.RIDGE,
        "n_students": plan.n_students,
        "is_quick": plan.is_quick,
    }
    return method | {f"share_{kind}": share for kind, share in learning.SHARES.items()}


def _ablate(
    folder: Path,
    taught: ablation.Taught,
    large: "Booster",
    student: "Booster",
    held: Rows,
    cuts: Cuts,
    plan: Plan,
    *,
    seed: int,
    progress: Progress,
) -> None:
    judged = held.sample.time >= cuts.validation_start
    sample, rows = held.sample.take(judged), held.rows[judged][:, trained_columns()]
    served = (f"best of {plan.n_students}: the student", student)
    made = ablation.variants(taught, served, rows, plan.student, seed=seed, say=partial(progress, "ablation"))
    n_bytes = len(large.model_to_string(num_iteration=-1).encode())
    scored = [("teacher", n_bytes, large.num_trees(), rows.shape[1], _margins(large, rows))]
    scored += [(v.step, v.n_bytes, v.booster.num_trees(), v.n_features, v.margins) for v in made]
    tuned = held.tuned[judged]
    early = [(*facts, margins[tuned]) for *facts, margins in scored]
    ablation.write(
        folder,
        ablation.Ablation(
            f"{thresholds.period(cuts).split(' to ')[1]} and later",
            ablation.steps(scored, sample, cuts, seed=seed),
            ablation.steps(early, sample.take(tuned), on_validation(cuts), seed=seed),
        ),
    )


def on_validation(cuts: Cuts) -> Cuts:
    """Return dates by which the validation period is judged."""
    return Cuts(2 * cuts.validation_start - cuts.test_start, cuts.validation_start)


def _judge(folder: Path, held: Rows, records: Records, plan: Plan, *, seed: int, progress: Progress) -> report.Report:
    cuts = records.cuts
    judged = held.tuned if plan.is_quick else held.sample.time >= cuts.validation_start
    return report.judge(
        folder,
        held.sample.take(judged),
        held.rows[judged],
        data=records.digest,
        seed=seed,
        n_replicates=plan.n_replicates,
        progress=progress,
        labels=records.labels,
        cuts=on_validation(cuts) if plan.is_quick else cuts,
    )
