"""The gate before a model may become champion: not worse by the protocol, small enough, fast enough.

A figure of the candidate is worse when it lies beyond the champion's own 95 % interval, on the bad side: both intervals
come from the same resamplings of the same accounts, so they may only be compared on the same data with the same seed.
A recall at a rate of false positives that is less than one normal row of its test set hangs on that set's one highest
normal row, whatever the model; it is reported and decides nothing.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from features import schema
from features.errors import ArtifactError
from models.evaluate import Estimate
from models.report import PROTOCOL
from models.scorer import Scorer

EVALUATION_FILE = "evaluation.json"
EVALUATION_BYTES_MAX = 1 << 24
"""16 MiB: the two tables take 15 KB, the rest is for curves."""

MODEL_BYTES_MAX = 32 * 1024
MODEL_FEATURES_MAX = 24

BATCH_ROWS = 500
BATCH_MICROSECONDS_MAX = 0.3
"""Of a row in a batch. The runtime has to walk a full 32 KiB model in 0.15 µs a row on one idle core; a machine that
does other work at the time of the promotion was seen to take up to twice that."""
SINGLE_MICROSECONDS_MAX = 5.0
"""Of one row alone: at most 1 µs for the walk and some 1.5 for the call from Python and its array, twice that on a busy
machine; 150 trees in 108 KB took 2.7 (2 cores, 2026-11). A transaction alone takes 14 from bytes to bytes."""

_ROUNDS = 60
"""The fastest of so many rounds counts, as a disturbance only ever adds: 60 x 500 rows of 0.3 µs are 9 ms."""
_SINGLES = 200


class Row(Struct, frozen=True):
    """How one test set was ranked: the part of an evaluation that is compared."""

    test_set: str
    n_rows: int
    roc_auc: Estimate
    average_precision: Estimate
    recall_at_1_percent: Estimate
    recall_at_01_percent: Estimate
    share_phishing: float = 0.0


class Operating(Struct, frozen=True):
    """What one share of caught new phishing costs in false alerts."""

    recall: float
    false_positives_a: Estimate | None
    """None, here and below, where there are no such rows."""
    false_positives_b: Estimate | None
    background: Estimate | None


class Judged(Struct, frozen=True):
    """One model of an evaluation."""

    name: str
    version: str
    digest: str
    rankings: list[Row]
    operations: list[Operating]


class Judgement(Struct, frozen=True):
    """An evaluation as far as the gate reads it, so that a figure added to it leaves older ones readable."""

    data: str
    seed: int
    n_replicates: int
    models: list[Judged]
    start: str = PROTOCOL[0]
    """First day of the judged period."""
    end: str = PROTOCOL[1]


class Evaluated(NamedTuple):
    """A model with the conditions its figures were taken under."""

    judged: Judged
    data: str
    period: tuple[str, str]
    seed: int
    n_replicates: int


class Cost(NamedTuple):
    """What a model takes on this machine."""

    n_bytes: int
    n_features: int
    batch_us: float
    """Microseconds a row, in batches of BATCH_ROWS."""
    single_us: float
    """Microseconds for one row alone."""


class Figure(NamedTuple):
    """One figure of an evaluation, by the name it has in every model's."""

    estimate: Estimate
    is_gain: bool
    """Whether more of it is better."""


def read(path: Path) -> Judgement:
    """Read an evaluation.

    Raises:
        ArtifactError: It is missing, too large, or not of this form.
    """
    try:
        with path.open("rb") as file:
            content = file.read(EVALUATION_BYTES_MAX + 1)
        if len(content) > EVALUATION_BYTES_MAX:
            raise ArtifactError(f"{path}: over the limit of {EVALUATION_BYTES_MAX} bytes")
        return msgspec.json.decode(content, type=Judgement)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: is no evaluation: {error}") from error


def of_model(judgement: Judgement, digest: str) -> Evaluated | None:
    """Return what an evaluation says of a model, None when it judges others."""
    for judged in judgement.models:
        if judged.digest == digest:
            period = (judgement.start, judgement.end)
            return Evaluated(judged, judgement.data, period, judgement.seed, judgement.n_replicates)
    return None


def figures(judged: Judged) -> dict[str, Figure]:
    """Return every figure of both tables by its name."""
    found = {}
    for row in judged.rankings:
        found[f"ROC AUC, {row.test_set}"] = Figure(row.roc_auc, True)
        found[f"average precision, {row.test_set}"] = Figure(row.average_precision, True)
        found[f"recall at 1 % FPR, {row.test_set}"] = Figure(row.recall_at_1_percent, True)
        found[f"recall at 0.1 % FPR, {row.test_set}"] = Figure(row.recall_at_01_percent, True)
    for operation in judged.operations:
        at = f"at {operation.recall:.0%} recall on new phishing"
        rates = {
            "false positives among A's normals": operation.false_positives_a,
            "false positives among B's normals": operation.false_positives_b,
            "alerts on background": operation.background,
        }
        found |= {f"{name} {at}": Figure(rate, False) for name, rate in rates.items() if rate is not None}
    return found


def quality(candidate: Evaluated, champion: Evaluated) -> list[str]:
    """Return why a candidate counts as worse than the champion, nothing when it does not."""
    conditions = {
        "the data": (candidate.data, champion.data),
        "the period": (candidate.period, champion.period),
        "the bootstrap's seed": (candidate.seed, champion.seed),
        "the number of resamplings": (candidate.n_replicates, champion.n_replicates),
        "the rows of the test sets": (_n_rows(candidate), _n_rows(champion)),
    }
    different = [name for name, (one, other) in conditions.items() if one != other]
    if different:
        return [
            f"the evaluations differ in {', '.join(different)} and cannot be compared: evaluate both on the same"
            " (falconet evaluate) and hand the result in (--evaluation)"
        ]
    ours, theirs = figures(candidate.judged), figures(champion.judged)
    reasons = [f"{name}: the candidate's evaluation lacks it" for name in theirs if name not in ours]
    too_fine = _too_fine(champion.judged)
    for name, (limit, is_gain) in theirs.items():
        if name not in ours or name in too_fine:
            continue
        value = ours[name].estimate.value
        interval = f"the champion's interval [{limit.low:.4f}, {limit.high:.4f}] around {limit.value:.4f}"
        # Written so that NaN, which compares as false with everything, does not pass.
        if is_gain and not value >= limit.low:
            reasons.append(f"{name}: {value:.4f}, below {interval}")
        if not is_gain and not value <= limit.high:
            reasons.append(f"{name}: {value:.4f}, above {interval}")
    return reasons


def _too_fine(judged: Judged) -> set[str]:
    """Return the recalls at rates that are less than one of their test set's normal rows."""
    rates = {"recall at 1 % FPR": 0.01, "recall at 0.1 % FPR": 0.001}
    return {
        f"{name}, {row.test_set}"
        for row in judged.rankings
        for name, rate in rates.items()
        if row.n_rows * (1 - row.share_phishing) * rate < 1
    }


def budget(cost: Cost, *, latency_budget: float = 1.0) -> list[str]:
    """Return which budgets a model exceeds.

    Args:
        cost: Of the model.
        latency_budget: Times the latency budgets, for a machine slower than they were set for.
    """
    batch, single = BATCH_MICROSECONDS_MAX * latency_budget, SINGLE_MICROSECONDS_MAX * latency_budget
    allowed = {
        f"size: {cost.n_bytes:,} bytes, the limit is {MODEL_BYTES_MAX:,}": cost.n_bytes <= MODEL_BYTES_MAX,
        f"features: {cost.n_features}, the limit is {MODEL_FEATURES_MAX}": cost.n_features <= MODEL_FEATURES_MAX,
        f"latency: {cost.batch_us:.3f} µs a row in batches of {BATCH_ROWS}, the budget is {batch:.3f}": (
            cost.batch_us <= batch
        ),
        f"latency: {cost.single_us:.2f} µs for one row alone, the budget is {single:.2f}": cost.single_us <= single,
    }
    return [reason for reason, is_met in allowed.items() if not is_met]


def measure(scorer: Scorer) -> Cost:
    """Measure a model on this machine; takes some 20 ms once the kernels are compiled."""
    # Magnitudes from 1e-3 to 1e9 and one value in ten unknown, so that the rows part at every split as real ones do.
    random = np.random.default_rng(1)
    rows = (10.0 ** random.uniform(-3, 9, size=(BATCH_ROWS, schema.N_FEATURES))).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    batches = [_seconds(scorer, [rows]) for _ in range(_ROUNDS)]
    singles = [rows[i : i + 1] for i in range(_SINGLES)]
    alone = [_seconds(scorer, singles) for _ in range(_ROUNDS // 6)]
    return Cost(
        n_bytes=scorer.model.n_bytes,
        n_features=len(scorer.header.features),
        batch_us=min(batches) / BATCH_ROWS * 1e6,
        single_us=min(alone) / _SINGLES * 1e6,
    )


def _seconds(scorer: Scorer, batches: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> float:
    started_s = time.perf_counter()
    for rows in batches:
        scorer.margins(rows)
    return time.perf_counter() - started_s


def _n_rows(evaluated: Evaluated) -> dict[str, int]:
    return {row.test_set: row.n_rows for row in evaluated.judged.rankings}
