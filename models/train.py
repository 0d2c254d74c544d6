"""Train the served model and its teacher by the data folder's protocol, and write them with their evaluation.

Both learn from the rows before 2018-07-01; calibration and thresholds come from the three months after; the test period
is looked at once, by the report. The figures behind the settings below were taken on those three months.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from features import schema
from features.errors import InputError, UsageError
from models import card, compact, dataset, drift, energy, evaluate, registry, report
from models.dataset import BACKGROUND, TEST_START, VALIDATION_START, Records, Report, Sample, Source
from models.scorer import Scorer

if TYPE_CHECKING:
    from lightgbm import Booster

NAME = "falconet"
PRIOR = 0.001
"""Share of fraud at which probabilities hold: near what payment processors see."""

Settings = dict[str, bool | int | float | str | None]

FIXED: Settings = {
    "objective": "binary",
    "bagging_freq": 1,
    "bagging_fraction": 0.7,
    "max_bin": 63,
    "force_row_wise": True,
    "deterministic": True,
    # One thread: two were four times slower on two cores that others use as well, and one is the same bits everywhere.
    "num_threads": 1,
    "verbose": -1,
}
SERVED: Settings = {
    "n_trees": 90,
    "learning_rate": 0.15,
    "num_leaves": compact.LEAVES_MAX,
    "max_depth": compact.DEPTH_MAX,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.5,
    "lambda_l2": 5.0,
}
"""As many features as the format holds, those of the largest gain in a first model of all of them."""
TEACHER: Settings = {
    "n_trees": 800,
    "learning_rate": 0.04,
    "num_leaves": 63,
    "max_depth": -1,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.15,
    "lambda_l2": 5.0,
}
"""0.959 / 0.942 / 0.963 / 0.938 / 0.816 on the same rows."""

SHARES = {"phishing": 0.4, "A": 0.3, "B": 0.3, "background": 0.09}
"""Weight of each kind of row in training, whatever its number: A's normal accounts are of another time and B's are
large holders, so neither may stand for normal alone. Background is 599 rows; three times its weight gained nothing."""

COLD_COPY = 0.2
"""Weight of a row's copy from a table that started days to months before it: a cold start must not look like fraud."""
COLD_DAYS = (20.0, 200.0)
"""Between the restarts of that table."""

REVIEW_RECALL = 0.5
BLOCK_FALSE_POSITIVES = 0.001


class Learnt(NamedTuple):
    """A booster with its calibration."""

    booster: "Booster"
    slope: float
    intercept: float


def train(
    data: Path | Source,
    output: Path,
    *,
    seed: int = 1,
    n_replicates: int = evaluate.N_REPLICATES,
    progress: Report,
    served_settings: Settings = SERVED,
    teacher_settings: Settings = TEACHER,
) -> report.Report:
    """Train both models on a data folder, write them into a folder, evaluate them and write the report beside them.

    Training twice with one seed, at one commit, gives the same model file.

    Args:
        data: Folder with the files of `models.dataset`, or an archive with its labels and dates.
        output: Folder to write to, made if need be; its name becomes the version.
        seed: Of everything drawn.
        n_replicates: Resamplings for the report's intervals.
        progress: Told of the progress.
        served_settings: LightGBM's settings of the served model, and `n_trees`.
        teacher_settings: Those of the teacher.

    Raises:
        InputError: The data cannot be read or holds too little to train, tune or judge.
        UsageError: The output folder cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output}: cannot be made a folder: {error.strerror}") from error
    meter = energy.Meter()
    records = dataset.read(data)
    sample = dataset.sample(records)
    _check(sample, data.folder if isinstance(data, Source) else data)
    rows = dataset.matrix(records, sample.position, report=progress)
    parts = learning_parts(records, sample, rows, seed=seed, report=progress)
    columns = trained_columns()

    def learn(
        stage: str, settings: Settings, parts: Parts, rows: NDArray[np.float32], chosen: NDArray[np.int64]
    ) -> Learnt:
        say = partial(progress, stage)
        return _learn(settings, parts, sample, rows, columns=chosen, seed=seed, say=say)

    teacher = learn("teacher", teacher_settings, parts, rows, columns)
    registry.write_teacher(output, teacher.booster, slope=teacher.slope, intercept=teacher.intercept)
    # Thresholds between the cells of the grid: what the served model compares, it was trained on.
    cells, row_cells = parts._replace(rows=compact.quantise(parts.rows)), compact.quantise(rows)
    first = learn("choice of features", served_settings, cells, row_cells, columns)
    gain = first.booster.feature_importance("gain")
    chosen = columns[np.sort(np.argsort(-gain, kind="stable")[: compact.FEATURES_MAX])]
    served = learn("served model", served_settings, cells, row_cells, chosen)
    _write(output, served, sample, row_cells, served_settings, data=records.digest, seed=seed)
    _write_reference(output, sample, rows)
    judged = sample.time >= VALIDATION_START
    result = report.judge(
        output,
        sample.take(judged),
        rows[judged],
        data=records.digest,
        seed=seed,
        n_replicates=n_replicates,
        progress=progress,
        labels=records.labels,
        cuts=records.cuts,
    )
    return _write_report(output, msgspec.structs.replace(result, training=meter.read()))


def _write_report(folder: Path, result: report.Report) -> report.Report:
    report.write(folder, result)
    card.of_version(folder)
    return result


def _write_reference(folder: Path, sample: Sample, rows: NDArray[np.float32]) -> None:
    tuned = (sample.time >= VALIDATION_START) & (sample.time < TEST_START)
    scorer = Scorer.load(folder / registry.MODEL_FILE)
    drift.write(folder, drift.of_model(scorer, sample.take(tuned), rows[tuned]))


def trained_columns() -> NDArray[np.int64]:
    """Return the columns a model may read: those whose bias does not give the source of a row away."""
    return np.array([i for i, feature in enumerate(schema.FEATURES) if feature.trained])


def _check(sample: Sample, data: Path) -> None:
    periods = {
        "before 2018-07-01": sample.time < VALIDATION_START,
        "from 2018-07-01 to 2018-09-30": (sample.time >= VALIDATION_START) & (sample.time < TEST_START),
        "from 2018-10-01": sample.time >= TEST_START,
    }
    kinds = {
        "phishing": sample.is_phishing,
        "normal rows of A": ~sample.is_phishing & (sample.source == "A"),
        "normal rows of B": ~sample.is_phishing & (sample.source == "B"),
    }
    for period, in_period in periods.items():
        for kind, of_kind in kinds.items():
            if not (in_period & of_kind).any():
                raise InputError(f"{data}: no {kind} {period}, training needs some in each period")


class Parts(NamedTuple):
    """What models are fitted to."""

    rows: NDArray[np.float32]
    is_phishing: NDArray[np.bool_]
    weight: NDArray[np.float64]


def learning_parts(records: Records, sample: Sample, rows: NDArray[np.float32], *, seed: int, report: Report) -> Parts:
    """Return the rows before the validation period, and their copies from a table that starts cold again and again."""
    learnt = np.flatnonzero(sample.time < VALIDATION_START)
    part = sample.take(learnt)
    weight = weights(part)
    first, last = int(part.time[0]), int(part.time[-1])
    days = np.random.default_rng(seed).uniform(*COLD_DAYS, size=1 + int((last - first) / 86_400 / COLD_DAYS[0]))
    restarts = first + np.cumsum(days * 86_400).astype(np.int64)
    cold = dataset.matrix(records, part.position, restarts=restarts, report=report)
    return Parts(
        np.concatenate([rows[learnt], cold])[:, trained_columns()],
        np.tile(part.is_phishing, 2),
        np.concatenate([weight, COLD_COPY * weight]),
    )


def weights(sample: Sample) -> NDArray[np.float64]:
    """Return a weight for each row: accounts of a kind weigh alike however many rows they have, kinds as in SHARES."""
    _, member, count = np.unique(sample.account, return_inverse=True, return_counts=True)
    weight: NDArray[np.float64] = 1.0 / count[member]
    kind = np.where(sample.is_phishing, "phishing", sample.source)
    kind = np.where(sample.account == BACKGROUND, "background", kind)
    for name, share in SHARES.items():
        of_kind = kind == name
        if of_kind.any():
            weight[of_kind] *= share / weight[of_kind].sum()
    weight *= len(weight) / weight.sum()
    return weight


def _learn(
    settings: Settings,
    parts: Parts,
    sample: Sample,
    rows: NDArray[np.float32],
    *,
    columns: NDArray[np.int64],
    seed: int,
    say: Callable[[int, int], None],
) -> Learnt:
    import lightgbm

    names = [schema.FEATURES[i].name for i in columns.tolist()]
    asked_rows = parts.rows[:, np.searchsorted(trained_columns(), columns)]
    data = lightgbm.Dataset(asked_rows, parts.is_phishing, weight=parts.weight, feature_name=names)
    n_trees = int(settings["n_trees"] or 0)
    asked = FIXED | {name: value for name, value in settings.items() if name != "n_trees"} | {"seed": seed}

    def tell(environment: Any) -> None:
        say(environment.iteration + 1, n_trees)

    booster = lightgbm.train(asked, data, n_trees, callbacks=[tell])
    tuned = (sample.time >= VALIDATION_START) & (sample.time < TEST_START)
    margins = np.asarray(booster.predict(rows[tuned][:, columns], raw_score=True, num_threads=1))
    return Learnt(booster, *calibrate(margins, sample.take(tuned)))


def calibrate(margins: NDArray[np.float64], sample: Sample) -> tuple[float, float]:
    """Return slope and intercept that turn margins into probabilities at the prior.

    Phishing and normal rows weigh alike, and among the normal ones each source; Newton's method on the logistic loss,
    then the intercept moves by the log-odds of the prior.
    """
    kind = np.where(sample.account == BACKGROUND, "background", sample.source)
    weight = np.zeros(len(margins))
    normal_kinds = [~sample.is_phishing & (kind == name) for name in ("A", "B", "background")]
    normal_kinds = [chosen for chosen in normal_kinds if chosen.any()]
    weight[sample.is_phishing] = 0.5 / sample.is_phishing.sum()
    for chosen in normal_kinds:
        weight[chosen] = 0.5 / len(normal_kinds) / chosen.sum()
    design = np.stack([margins, np.ones(len(margins))], axis=1)
    # A ridge of 1e-6 keeps separable rows from an infinite slope; on the real rows it moves nothing.
    ridge = 1e-6
    beta = np.array([1.0, 0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        gradient = design.T @ (weight * (p - sample.is_phishing)) + ridge * (beta - (1.0, 0.0))
        curvature = design.T @ (design * (weight * p * (1 - p))[:, None]) + ridge * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # Halving a long step keeps Newton's method from leaving the region where the curvature says something.
        beta -= step * min(1.0, 2.0 / float(np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    slope = max(float(beta[0]), 1e-3)
    return slope, float(beta[1]) + float(np.log(PRIOR / (1 - PRIOR)))


def thresholds(probabilities: NDArray[np.float64], sample: Sample) -> dict[str, compact.Threshold]:
    """Return the decisions' thresholds from the validation rows' probabilities."""
    new = sample.is_phishing & sample.is_new
    review = evaluate.threshold_at(probabilities[new if new.any() else sample.is_phishing], REVIEW_RECALL)
    normal = np.sort(probabilities[~sample.is_phishing])
    n_allowed = int(BLOCK_FALSE_POSITIVES * len(normal))
    block = float(np.nextafter(normal[len(normal) - 1 - n_allowed], 1.0))
    return {
        "review": compact.Threshold(review, f"{REVIEW_RECALL:.0%} of new phishing rows of 2018-07 to 2018-09 reach it"),
        "block": compact.Threshold(
            max(review, block), f"{BLOCK_FALSE_POSITIVES:.1%} of the normal rows of 2018-07 to 2018-09 reach it"
        ),
    }


def _write(
    folder: Path,
    served: Learnt,
    sample: Sample,
    rows: NDArray[np.float32],
    settings: Settings,
    *,
    data: str,
    seed: int,
) -> None:
    read = served.booster.feature_name()
    columns = np.array([schema.index(name) for name in read], dtype=np.int64)
    trees, names, leaf_scale = compact.from_booster(served.booster, read)
    tuned = (sample.time >= VALIDATION_START) & (sample.time < TEST_START)
    margins = np.asarray(served.booster.predict(rows[tuned][:, columns], raw_score=True, num_threads=1))
    probabilities = 1 / (1 + np.exp(-(served.slope * margins + served.intercept)))
    learnt = sample.take(sample.time < VALIDATION_START)
    shares = {f"share_{kind}": share for kind, share in SHARES.items()}
    header = compact.Header(
        name=NAME,
        version=folder.resolve().name,
        schema=schema.FINGERPRINT,
        features=names,
        calibration=compact.Calibration(
            served.slope, served.intercept, PRIOR, "labelled and background rows of 2018-07 to 2018-09"
        ),
        thresholds=thresholds(probabilities, sample.take(tuned)),
        training=compact.Training(
            data,
            registry.Teacher.load(folder).digest,
            seed,
            len(learnt.time),
            int(learnt.is_phishing.sum()),
            FIXED | settings | shares | {"cold_copy": COLD_COPY},
            report.libraries(),
            {},
        ),
        leaf_scale=leaf_scale,
        n_trees=len(trees.n_splits),
        n_splits=len(trees.feature),
    )
    compact.write(folder / registry.MODEL_FILE, header, trees)
