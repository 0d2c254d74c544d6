"""The evaluation report: both tables of the protocol as Markdown and JSON, with what is needed to repeat them."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features.errors import InputError
from models import dataset, evaluate, registry
from models.dataset import Report as Progress
from models.dataset import Sample
from models.scorer import Scorer

LIBRARIES = ("lightgbm", "numba", "numpy", "pyarrow")

REFERENCE_RANKINGS = {
    "all": (0.926, 0.883, 0.132, 0.034),
    "against A's normals": (0.869, 0.964, 0.268, 0.119),
    "against B's normals": (0.939, 0.910, 0.093, 0.033),
    "new accounts": (0.909, 0.911, 0.067, 0.032),
    "new accounts, first transaction": (0.766, 0.851, 0.111, 0.056),
}
"""What the data folder's README reports for LightGBM with 300 trees of 31 leaves on 26 running totals and counts."""

REFERENCE_OPERATIONS = {0.3: (0.011, 0.021, 0.012), 0.5: (0.045, 0.035, 0.046), 0.7: (0.136, 0.056, 0.393)}


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
    models: list[evaluate.Evaluation]


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
) -> Report:
    """Evaluate the model of a folder, by its own runtime, and its teacher.

    Args:
        folder: Holds the model's file and its teacher.
        sample: Rows of the test period and later background; others are left out.
        rows: Their features.
        data: Digest of the data folder.
        seed: Of the bootstrap.
        n_replicates: Resamplings for the intervals.
        progress: Told what is done.
    """
    scorer, teacher = Scorer.load(folder / registry.MODEL_FILE), registry.Teacher.load(folder)
    progress("evaluation", 0, 2)
    served = _evaluation(
        sample,
        scorer.probabilities(scorer.margins(rows)),
        scorer.thresholds,
        (seed, n_replicates),
        (scorer.model.name, scorer.model.version, scorer.model.digest, scorer.model.n_bytes, scorer.header.n_trees),
    )
    progress("evaluation", 1, 2)
    large = _evaluation(
        sample,
        teacher.probabilities(teacher.margins(rows)),
        {},
        (seed, n_replicates),
        ("teacher", scorer.model.version, teacher.digest, teacher.n_bytes, teacher.booster.num_trees()),
    )
    progress("evaluation", 2, 2)
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(made_at, machine(), commit(), data, seed, n_replicates, libraries(), [served, large])


def evaluate_folder(
    folder: Path, data: Path, *, seed: int = 1, n_replicates: int = evaluate.N_REPLICATES, progress: Progress
) -> Report:
    """Evaluate the models of a folder on a data folder, each row at its own time.

    Args:
        folder: Holds the model's file and its teacher.
        data: Folder with the files of `models.dataset`.
        seed: Of the bootstrap.
        n_replicates: Resamplings for the intervals.
        progress: Told of the progress.

    Raises:
        InputError: The data or a model cannot be read.
    """
    records = dataset.read(data)
    sample = dataset.sample(records)
    sample = sample.take(sample.time >= dataset.VALIDATION_START)
    if any(not chosen.any() for chosen in evaluate.test_sets(sample).values()):
        raise InputError(f"{data}: a test set from 2018-10-01 on is empty, there is nothing to judge by")
    rows = dataset.matrix(records, sample.position, report=progress)
    return judge(folder, sample, rows, data=records.digest, seed=seed, n_replicates=n_replicates, progress=progress)


def _evaluation(
    sample: Sample,
    probabilities: NDArray[np.float64],
    thresholds: dict[str, float],
    bootstrap: tuple[int, int],
    model: tuple[str, str, str, int, int],
) -> evaluate.Evaluation:
    seed, n_replicates = bootstrap
    rankings, operations = evaluate.evaluate(sample, probabilities, seed=seed, n_replicates=n_replicates)
    decisions = evaluate.decide(sample, probabilities, thresholds)
    return evaluate.Evaluation(*model, rankings, operations, decisions, evaluate.n_background(sample))


def write(folder: Path, report: Report) -> None:
    """Write `evaluation.md` and `evaluation.json`."""
    (folder / "evaluation.md").write_text(markdown(report), encoding="utf-8")
    (folder / "evaluation.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def markdown(report: Report) -> str:
    """Return the report as a page."""
    lines = [
        "# Evaluation",
        "",
        "Written by `falconet evaluate`, not by hand.",
        "Labelled rows of the test period, 2018-10-01 to 2019-10-08, each scored at its own time from earlier",
        "transactions only; at most the first 50 of an account.",
        f"In brackets: 95 % intervals from {report.n_replicates:,} resamplings of accounts; of blocks for background.",
        "The reference is the plain model that the data's protocol states.",
        "The share of phishing here comes from how the data was collected; in traffic it is near 1 in 1,000 or below.",
        "",
    ]
    for model in report.models:
        lines += _model(model)
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


def _model(model: evaluate.Evaluation) -> list[str]:
    lines = [
        f"## {model.name} {model.version}",
        "",
        f"{model.n_trees} trees, {model.n_bytes:,} bytes, digest `{model.digest}`.",
        "",
        "| test set | rows | accounts | share phishing | ROC AUC | average precision | recall @ 1 % FPR "
        "| recall @ 0.1 % FPR | reference: ROC AUC, AP, recalls |",
        "| --- | ---: | ---: | ---: | --- | --- | --- | --- | --- |",
    ]
    for ranking in model.rankings:
        figures = (
            ranking.roc_auc,
            ranking.average_precision,
            ranking.recall_at_1_percent,
            ranking.recall_at_01_percent,
        )
        reference = ", ".join(f"{value:.3f}" for value in REFERENCE_RANKINGS[ranking.test_set])
        cells = " | ".join(_estimate(figure) for figure in figures)
        counts = f"{ranking.n_rows:,} | {ranking.n_accounts:,} | {ranking.share_phishing:.3f}"
        lines.append(f"| {ranking.test_set} | {counts} | {cells} | {reference} |")
    lines += [
        "",
        f"| recall on new phishing | threshold | FPR, A | FPR, B | alerts on background ({model.n_background:,} rows) "
        "| reference: A, B, background |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in model.operations:
        cells = " | ".join(_estimate(e) for e in (row.false_positives_a, row.false_positives_b, row.background))
        reference = ", ".join(f"{value:.3f}" for value in REFERENCE_OPERATIONS[row.recall])
        lines.append(f"| {row.recall} | {row.threshold:.3g} | {cells} | {reference} |")
    return [*lines, "", *_decisions(model.decisions)]


def _decisions(decisions: list[evaluate.Decision]) -> list[str]:
    if not decisions:
        return []
    lines = [
        "| decision | threshold | recall on new phishing | FPR, A | FPR, B | background |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in decisions:
        rates = (row.recall_new, row.false_positives_a, row.false_positives_b, row.background)
        lines.append(f"| {row.name} | {row.threshold:.3g} | " + " | ".join(f"{rate:.4f}" for rate in rates) + " |")
    return [*lines, ""]


def _estimate(estimate: evaluate.Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
