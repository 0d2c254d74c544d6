"""The evaluation report: a model and its large one on the same rows, as a page and as JSON, and how to repeat it.

`evaluation.json` holds every figure; the page shows the protocol's tables, and the model card shows the rest.
"""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features.errors import InputError, UsageError
from models import breakdown, calibration, dataset, evaluate, registry, tables
from models.dataset import BACKGROUND, CUTS, Cuts, Sample, Source
from models.energy import Energy, Meter
from models.labels import Labels
from models.progress import Progress
from models.scorer import Scorer

LIBRARIES = ("lightgbm", "numba", "numpy", "pyarrow")

MILLION = 1_000_000
PROTOCOL = ("2018-10-01", "2019-10-08")
"""First and last day of the test period of the data folder's protocol."""

METERED_S = 0.3
"""Processor seconds a model is metered for: a thousand times the clock's step of 0.1 ms."""


class Evaluation(Struct, frozen=True):
    """One model by the protocol, and beyond it."""

    name: str
    version: str
    digest: str
    n_bytes: int
    n_trees: int
    rankings: list[evaluate.Ranking]
    operations: list[evaluate.Operation]
    decisions: list[evaluate.Decision]
    n_background: int
    reliability: list[calibration.Reliability] = []
    """On the validation period, where calibration was fitted, and on the test period."""
    precisions: list[calibration.Precision] = []
    curves: list[calibration.Curve] = []
    decay: list[breakdown.Period] = []
    years: list[breakdown.Year] = []
    """Whole blocks by year."""
    blocks: list[breakdown.Block] = []
    kinds: list[breakdown.Kind] = []
    budgets: list[breakdown.Budget] = []
    scoring: Energy | None = None
    """What a million scores take, in batches, from feature rows at hand."""


class Report(Struct, frozen=True):
    """Everything the report says."""

    made_at: str
    machine: str
    commit: str
    data: str
    """SHA-256 over the data folder's files."""
    seed: int
    n_replicates: int
    libraries: dict[str, str]
    models: list[Evaluation]
    """The served model, then its large one."""
    retentions: list[evaluate.Retention] = []
    """The first model's figures over the second's."""
    start: str = PROTOCOL[0]
    """First day of the judged period, and below its last one with a labelled row."""
    end: str = PROTOCOL[1]
    learnt_until: str = "2018-07-01"
    """Day from which on a model of these dates has learnt nothing."""
    training: Energy | None = None
    """What making both models took, from the data to this report; None where only an evaluation was asked for."""


class Bootstrap(NamedTuple):
    """How intervals are taken."""

    seed: int
    n_replicates: int


def machine() -> str:
    """Return the processor and its number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def commit() -> str:
    """Return the commit of this checkout, `unknown` outside of one."""
    here = Path(__file__).parent
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return asked.stdout.strip()


def libraries() -> dict[str, str]:
    """Return the versions of what trains and scores."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def judge(
    folder: Path,
    sample: Sample,
    rows: NDArray[np.float32],
    *,
    data: str,
    seed: int,
    n_replicates: int = evaluate.N_REPLICATES,
    progress: Progress,
    labels: Labels | None = None,
    cuts: Cuts = CUTS,
) -> Report:
    """Evaluate the model of a folder, by its own runtime, and its teacher.

    Args:
        folder: Holds the model's file and its teacher.
        sample: Rows of the validation and the test period with their background; earlier ones are left out.
        rows: Their features.
        data: Digest of the data folder.
        seed: Of the bootstrap.
        n_replicates: Resamplings for the intervals.
        progress: Told what is done.
        labels: What is known of the accounts, for the analysis of errors by kind.
        cuts: Where the periods start.
    """
    scorer, teacher = Scorer.load(folder / registry.MODEL_FILE), registry.Teacher.load(folder)
    bootstrap = Bootstrap(seed, n_replicates)
    prior = scorer.header.calibration.prior
    judgements, scores = [], []
    parts = [
        (
            lambda: scorer.probabilities(scorer.margins(rows)),
            scorer.thresholds,
            (scorer.model.name, scorer.model.version, scorer.model.digest, scorer.model.n_bytes, scorer.header.n_trees),
        ),
        (
            lambda: teacher.probabilities(teacher.margins(rows)),
            {},
            ("teacher", scorer.model.version, teacher.digest, teacher.n_bytes, teacher.booster.num_trees()),
        ),
    ]
    for n_done, (score, thresholds, model) in enumerate(parts):
        progress("evaluation", n_done, len(parts))
        probabilities, scoring = _metered(score, len(rows))
        found = _evaluation(sample, probabilities, thresholds, bootstrap, model, prior, labels, cuts)
        judgements.append(msgspec.structs.replace(found, scoring=scoring))
        scores.append(probabilities)
    progress("evaluation", len(parts), len(parts))
    retentions = evaluate.retained(sample, *scores, seed=seed, n_replicates=n_replicates, cuts=cuts)
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(
        made_at,
        machine(),
        commit(),
        data,
        seed,
        n_replicates,
        libraries(),
        judgements,
        retentions,
        _day(cuts.test_start),
        _day(int(sample.time[sample.account != BACKGROUND].max())),
        _day(cuts.validation_start),
    )


def _day(time: int) -> str:
    return datetime.fromtimestamp(time, UTC).date().isoformat()


def _metered(score: Callable[[], NDArray[np.float64]], n_rows: int) -> tuple[NDArray[np.float64], Energy]:
    """Return the scores, and what a million of them take by this thread."""
    probabilities = score()
    meter, n_scored = Meter(), 0
    while meter.read().cpu_s < METERED_S:
        score()
        n_scored += n_rows
    return probabilities, meter.read().times(MILLION / n_scored)


def evaluate_folder(
    folder: Path,
    data: Path | Source,
    *,
    seed: int = 1,
    n_replicates: int = evaluate.N_REPLICATES,
    progress: Progress,
    start: int | None = None,
    until: int | None = None,
) -> Report:
    """Evaluate the models of a folder on a data folder or an archive, each row at its own time.

    Args:
        folder: Holds the model's file and its teacher.
        data: Folder with the files of `models.dataset`, or an archive with its labels and dates.
        seed: Of the bootstrap.
        n_replicates: Resamplings for the intervals.
        progress: Told of the progress.
        start: First second of the period to judge by, None for the start of the test period.
        until: First second after it, None for the end of the data.

    Raises:
        InputError: The data or a model cannot be read, or the period holds nothing to judge by.
        UsageError: The period ends before it starts.
    """
    start = (data.cuts if isinstance(data, Source) else CUTS).test_start if start is None else start
    if until is not None and until <= start:
        raise UsageError(f"the period to judge by ends on {_day(until)} and starts on {_day(start)}")
    records = dataset.read(data, report=progress)
    learnt_until = records.cuts.validation_start
    # Rows from the validation period on show calibration and background; they are part of the period if it is earlier.
    cuts = Cuts(min(learnt_until, start), start)
    sample = dataset.sample(records)
    sample = sample.take((sample.time >= cuts.validation_start) & (sample.time < (until or np.iinfo(np.int64).max)))
    place = str(data.folder if isinstance(data, Source) else data)
    check(sample, place, cuts, is_protocol=cuts == CUTS and until is None)
    rows = dataset.matrix(records, sample.position, report=progress)
    result = judge(
        folder,
        sample,
        rows,
        data=records.digest,
        seed=seed,
        n_replicates=n_replicates,
        progress=progress,
        labels=records.labels,
        cuts=cuts,
    )
    return msgspec.structs.replace(result, learnt_until=_day(learnt_until))


def check(sample: Sample, place: str, cuts: Cuts = CUTS, *, is_protocol: bool = True) -> None:
    """Make sure that there is something to judge by.

    Args:
        sample: Rows of the test period, among others.
        place: Where they come from, for errors.
        cuts: Where the periods start.
        is_protocol: Every test set must be there whose source is named; otherwise phishing and normal rows will do.

    Raises:
        InputError: The test period lacks phishing or normal rows, or a test set does that must be there.
    """
    start = _day(cuts.test_start)
    sets, judged = evaluate.test_sets(sample, cuts), evaluate.judged_sets(sample, cuts)
    wanted = set(sets) if is_protocol and set(np.unique(sample.source)) & {"A", "B"} else {"all"}
    lacking = [name for name in sets if name in wanted - set(judged)]
    if lacking:
        raise InputError(
            f"{place}: from {start} on the test set {lacking[0]!r} lacks phishing or normal rows, nothing to judge by"
        )


def _evaluation(
    sample: Sample,
    probabilities: NDArray[np.float64],
    thresholds: Mapping[str, float],
    bootstrap: Bootstrap,
    model: tuple[str, str, str, int, int],
    prior: float,
    labels: Labels | None,
    cuts: Cuts,
) -> Evaluation:
    seed, n_replicates = bootstrap
    drawn: dict[str, Any] = {"seed": seed, "n_replicates": n_replicates}
    rankings, operations = evaluate.evaluate(sample, probabilities, cuts=cuts, **drawn)
    at = {**thresholds, **{f"{operation.recall:.0%} recall": operation.threshold for operation in operations}}
    reliabilities = [
        calibration.reliability(sample.take(chosen), probabilities[chosen], period=period, prior=prior, **drawn)
        for period, chosen in (
            ("validation", (sample.time >= cuts.validation_start) & (sample.time < cuts.test_start)),
            ("test", sample.time >= cuts.test_start),
        )
    ]
    years, blocks = breakdown.background(sample, probabilities, at, cuts=cuts, **drawn)
    return Evaluation(
        *model,
        rankings,
        operations,
        evaluate.decide(sample, probabilities, thresholds, cuts),
        evaluate.n_background(sample, cuts),
        [found for found in reliabilities if found is not None],
        calibration.precisions(sample, probabilities, at, cuts=cuts, **drawn),
        calibration.curves(sample, probabilities, cuts=cuts),
        breakdown.decay(sample, probabilities, cuts=cuts, **drawn),
        years,
        blocks,
        breakdown.by_kind(sample, probabilities, at, labels=labels, cuts=cuts, **drawn),
        breakdown.budgets(sample, probabilities, at, cuts=cuts, **drawn),
    )


def write(folder: Path, report: Report) -> None:
    """Write `evaluation.md` and `evaluation.json`."""
    (folder / "evaluation.md").write_text(markdown(report), encoding="utf-8")
    (folder / "evaluation.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def _period(report: Report) -> list[str]:
    """Say by which rows is judged, and what that means."""
    is_protocol = (report.start, report.end) == PROTOCOL
    lines = [
        f"Labelled rows of {'the test period, ' if is_protocol else ''}{report.start} to {report.end}, "
        "each scored at its own time from earlier",
        "transactions only; at most the first 50 of an account.",
    ]
    if not is_protocol:
        lines.append(
            f"This is not the protocol's test period, {PROTOCOL[0]} to {PROTOCOL[1]}: no published figure compares."
        )
    if report.start < report.learnt_until:
        lines.append(
            f"Models may have learnt from rows before {report.learnt_until}: figures that hold such rows flatter."
        )
    judged = {ranking.test_set for model in report.models for ranking in model.rankings}
    lacking = [name for name in tables.REFERENCE_RANKINGS if name not in judged]
    if lacking:
        lines.append(f"Left out, as the period has no phishing or no normal rows of them: {', '.join(lacking)}.")
    if not any(model.operations for model in report.models):
        lines.append("Left out, as the period has no rows of new phishing accounts: what recall costs in false alerts.")
    elif any(row.false_positives_a is None or row.false_positives_b is None for row in report.models[0].operations):
        lines.append("A dash stands for false positives of a source, A or B, of which the period has no normal rows.")
    return lines


def markdown(report: Report) -> str:
    """Return the report as a page."""
    lines = [
        "# Evaluation",
        "",
        "Written by `falconet evaluate`, not by hand.",
        *_period(report),
        f"In brackets: 95 % intervals from {report.n_replicates:,} resamplings of accounts; of blocks for background.",
        "The reference is the plain model that the data's protocol states.",
        "The share of phishing here comes from how the data was collected; in traffic it is near 1 in 1,000 or below.",
        "",
    ]
    for model in report.models:
        lines += [
            f"## {model.name} {model.version}",
            "",
            f"{model.n_trees} trees, {model.n_bytes:,} bytes, digest `{model.digest}`.",
            "",
            *tables.rankings(model.rankings),
            "",
            *tables.operations(model.operations, model.n_background),
            "",
        ]
        if model.decisions:
            lines += [*tables.decisions(model.decisions), ""]
    if report.retentions:
        lines += ["## What the small model keeps of the large one", "", *tables.retentions(report.retentions), ""]
    lines += [
        "## How to repeat it",
        "",
        "| what | value |",
        "| --- | --- |",
        f"| made at | {report.made_at} |",
        f"| machine | {report.machine} |",
        f"| commit | `{report.commit}` |",
        f"| data, SHA-256 | `{report.data}` |",
        f"| seed of the bootstrap | {report.seed} |",
        *(f"| {name} | {version} |" for name, version in report.libraries.items()),
    ]
    return "\n".join(lines) + "\n"
