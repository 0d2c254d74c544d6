"""Drift of live traffic on the metrics page, and of a file as a report."""

import logging
from collections import Counter
from pathlib import Path

import msgspec
from msgspec import Struct

from features.errors import ArtifactError, InputError
from models import drift, registry
from models.drift import Drift, Shift
from models.scorer import Model, Scorer
from service import replay, trust
from service.settings import Settings

log = logging.getLogger("falconet.drift")


class Report(Struct, frozen=True):
    """What `falconet drift` writes as JSON."""

    model: str
    """Name and version."""
    digest: str
    reference: str
    """Which rows the traffic is compared with."""
    n_reference: float
    n_rows: int
    """Transactions of the input, without rejected ones."""
    shifts: list[Shift]
    """The most shifted first."""


def start(model_path: Path, scorer: Scorer, *, n_rows: int) -> Drift | None:
    """Return an empty window for a model's traffic, None where nothing can be compared.

    Args:
        model_path: The model's file, its reference beside it.
        scorer: The model.
        n_rows: Sampled transactions in the window; 0 turns it off.
    """
    if n_rows == 0:
        return None
    path = model_path.parent / drift.FILE
    if not path.exists():
        log.warning("drift off: %s has no %s", path.parent, drift.FILE)
        return None
    try:
        return Drift(drift.read(path, scorer.header.features), n_rows=n_rows)
    except ArtifactError as error:
        log.error("drift off: %s", error)
        return None


def command(
    settings: Settings,
    *,
    source: str,
    model: Path | None,
    form: replay.Format | None,
    state: Path | None,
    output: Path | None,
) -> list[str]:
    """Compare a file's transactions with a model's reference; return the report's lines.

    Args:
        settings: Model, lists and limits.
        source: Path, or `-` for standard input.
        model: Folder of the model; None takes the settings'.
        form: Of the source; None goes by its ending.
        state: Folder of an earlier replay's past to go on from, None for an empty past.
        output: Where to write the report as JSON, if anywhere.

    Raises:
        InputError: A file cannot be read or written, or the input is too short to tell.
    """
    path = model / registry.MODEL_FILE if model else trust.model_path(settings)
    scorer = Scorer.load(path)
    reference = drift.read(path.parent / drift.FILE, scorer.header.features)
    pipeline, decoder = replay.prepare(settings, scorer, state)
    found = Drift(reference, n_rows=None, every=1)
    with replay.shown_progress() as progress:
        for _, verdicts in replay.scored_chunks(pipeline, decoder, source, form, settings.message_bytes_max, Counter()):
            found.observe(verdicts.rows, verdicts.probabilities)
            progress(len(verdicts.rows))
    if found.n_rows < drift.ROWS_MIN:
        raise InputError(f"{source}: {found.n_rows} transactions, a drift report needs at least {drift.ROWS_MIN}")
    report = _report(scorer.model, found)
    if output is not None:
        _write(output, report)
    return lines(report)


def _report(model: Model, found: Drift) -> Report:
    shifts = sorted(found.shifts(), key=lambda shift: -shift.psi)
    return Report(
        f"{model.name} {model.version}",
        model.digest,
        found.reference.source,
        found.reference.n_rows,
        found.n_rows,
        shifts,
    )


def _write(path: Path, report: Report) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def lines(report: Report) -> list[str]:
    """Return the report as a table of plain text."""
    width = max(len(shift.name) for shift in report.shifts)
    table = [f"{shift.name:{width}}  {shift.psi:8.4f}  {shift.verdict}" for shift in report.shifts]
    return [
        f"{report.n_rows:,} transactions against {report.reference}, {report.model}",
        f"{'':{width}}  {'PSI':>8}  below {drift.STABLE_MAX} stable, above {drift.SHIFTED_MIN} shifted",
        *table,
    ]
