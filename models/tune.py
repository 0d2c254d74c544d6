"""Fine-tune a version to another chain or exchange from few labelled accounts, and seal what comes of it as a version.

How the leaves are estimated is in `models.shrinkage`; here are the rows, the thresholds and the folder.
"""

import hashlib
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features import schema
from features.errors import ArtifactError, InputError, UsageError
from models import calibration, compact, dataset, drift, registry, report
from models.compact import Artifact, Calibration, Header, Threshold, Training
from models.dataset import BACKGROUND, Records, Sample, Source
from models.progress import Progress
from models.shrinkage import EXTRA_SETTINGS, FOLDS, SIZES, Choice, Labelled, Sizes, Tuned, fine_tune

TUNING_FILE = "tuning.json"

REVIEW_RATE, BLOCK_RATE = 0.01, 0.001
"""Of the normal accounts' rows, each account alike, that reach the threshold for a review, and for a block."""


class Fit(Struct, frozen=True):
    """How well labelled accounts are told apart, each row weighing so that accounts of a kind weigh alike."""

    roc_auc: float
    average_precision: float
    """At as much phishing as normal."""


class Report(Struct, frozen=True):
    """What fine-tuning found: `tuning.json`."""

    made_at: str
    parent: str
    """Digest of the model it started from."""

    data: str
    labels: str
    """SHA-256 over the labels."""

    seed: int
    n_rows: int
    n_phishing_accounts: int
    n_normal_accounts: int
    before: Fit
    after: Fit
    """Of accounts that the fit left out. The choice was made by the same accounts, which flatters it a little."""

    spread: float
    """How far the leaves could move, as a standard deviation of the margin; 0: only the calibration changed."""

    n_extra_trees: int
    is_anew: bool
    """The labels alone told more than the parent: nothing of it is kept."""

    losses: dict[str, float]
    """Mean logistic loss of left-out accounts, by `spread / extra trees`."""


def tune(
    model: Path,
    source: Path | Source,
    output: Path,
    *,
    seed: int = 1,
    sizes: Sizes = SIZES,
    progress: Progress,
) -> Report:
    """Fine-tune a version and write the new one.

    A data folder's rows of the test period are left alone; an archive's are learnt from up to its `as_of`.

    Args:
        model: Folder of the version to start from.
        source: Labelled transactions of the new chain or exchange.
        output: Folder of the new version, its name is the version; must not be sealed.
        seed: Of the folds and of the added trees.
        sizes: Numbers of trees to try.
        progress: Told of the progress.

    Raises:
        ArtifactError: The model is damaged or of another feature schema.
        InputError: The data cannot be read, or has too few labelled accounts of a kind.
        UsageError: The output folder cannot be written, or is a version already.
    """
    artifact = compact.read(model / registry.MODEL_FILE)
    if artifact.header.schema != schema.FINGERPRINT:
        raise ArtifactError(
            f"{model}: trained on feature schema {artifact.header.schema}, this program has {schema.FINGERPRINT}"
        )
    if not registry.NAME.fullmatch(output.resolve().name):
        raise UsageError(f"{output}: its name is no version's")
    registry.refuse_sealed(output)
    source = Source(source) if isinstance(source, Path) else source
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output}: cannot be made a folder: {error.strerror}") from error
    records = dataset.read(source, report=progress)
    sample = _learnable(records, is_archive=source.labels is not None)
    if not len(sample.time):
        raise InputError(f"{source.folder}: no payment of a labelled account to learn from")
    rows = dataset.matrix(records, sample.position, report=progress)
    labelled = Labelled(rows, sample.is_phishing, sample.account)
    tuned = fine_tune(artifact, labelled, seed=seed, sizes=sizes)
    result = _report(artifact, tuned, records, sample, seed=seed)
    _write(output, artifact, tuned, sample, result)
    _accompany(model, output, tuned, sample, rows)
    (output / TUNING_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    settings: dict[str, bool | int | float | str | None] = {**EXTRA_SETTINGS, "folds": FOLDS}
    settings |= {"method": "tune", "parent": result.parent, "labels": result.labels}
    registry.seal(
        output,
        registry.Provenance(
            data=records.digest,
            commit=report.commit(),
            seed=seed,
            settings=settings,
            libraries=report.libraries(),
            made_at=result.made_at,
        ),
    )
    return result


def _learnable(records: Records, *, is_archive: bool) -> Sample:
    sample = dataset.sample(records)
    chosen = sample.account != BACKGROUND
    if not is_archive:
        chosen &= sample.time < records.cuts.test_start
    return sample.take(chosen)


def _report(artifact: Artifact, tuned: Tuned, records: Records, sample: Sample, *, seed: int) -> Report:
    labels = hashlib.sha256()
    for part in (records.labels.key, records.labels.is_phishing):
        labels.update(part.tobytes())
    return Report(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        parent=artifact.digest,
        data=records.digest,
        labels=labels.hexdigest(),
        seed=seed,
        n_rows=len(sample.time),
        n_phishing_accounts=len(np.unique(sample.account[sample.is_phishing])),
        n_normal_accounts=len(np.unique(sample.account[~sample.is_phishing])),
        before=_fit(tuned.shipped, tuned, sample),
        after=_fit(tuned.margins, tuned, sample),
        spread=tuned.choice.spread,
        n_extra_trees=tuned.choice.n_extra,
        is_anew=tuned.choice.is_anew,
        losses={_name(choice): loss for choice, loss in tuned.losses.items()},
    )


def _name(choice: Choice) -> str:
    return f"anew / {choice.n_extra}" if choice.is_anew else f"{choice.spread:g} / {choice.n_extra}"


def _fit(margins: NDArray[np.float64], tuned: Tuned, sample: Sample) -> Fit:
    from sklearn.metrics import average_precision_score, roc_auc_score

    return Fit(
        float(roc_auc_score(sample.is_phishing, margins, sample_weight=tuned.weight)),
        float(average_precision_score(sample.is_phishing, margins, sample_weight=tuned.weight)),
    )


def _write(output: Path, artifact: Artifact, tuned: Tuned, sample: Sample, result: Report) -> None:
    parent = artifact.header
    prior = parent.calibration.prior
    shift = float(np.log(prior / (1 - prior)))
    leaf, scale = compact.quantise_leaves(tuned.forest.leaf)
    trees = tuned.forest.trees._replace(leaf=leaf)
    method: dict[str, Any] = {
        "kind": "tune",
        "parent": artifact.digest,
        "labels": result.labels,
        "spread": result.spread,
        "extra_trees": result.n_extra_trees,
        "is_anew": result.is_anew,
    }
    header = Header(
        name=parent.name,
        version=output.resolve().name,
        schema=parent.schema,
        features=[schema.FEATURES[column].name for column in tuned.forest.columns.tolist()],
        calibration=Calibration(
            tuned.slope, tuned.intercept + shift, prior, f"left-out accounts of {FOLDS} folds of the labels tuned to"
        ),
        thresholds=_thresholds(tuned, sample, shift),
        training=Training(
            result.data,
            parent.training.teacher,
            result.seed,
            len(sample.time),
            int(sample.is_phishing.sum()),
            dict(EXTRA_SETTINGS),
            report.libraries(),
            method,
        ),
        leaf_scale=scale,
        n_trees=len(trees.n_splits),
        n_splits=len(trees.feature),
    )
    compact.write(output / registry.MODEL_FILE, header, trees)


def _thresholds(tuned: Tuned, sample: Sample, shift: float) -> dict[str, Threshold]:
    normal = ~sample.is_phishing
    probabilities, weight = _sigmoid(tuned.margins + shift)[normal], tuned.weight[normal]
    found = {}
    for name, rate in (("review", REVIEW_RATE), ("block", BLOCK_RATE)):
        chosen = f"false-positive rate: at most {rate:.1%} of the left-out normal accounts' rows reach it"
        found[name] = Threshold(_lowest(probabilities, weight, rate), chosen)
    return found


def _lowest(probabilities: NDArray[np.float64], weight: NDArray[np.float64], rate: float) -> float:
    """Return the lowest threshold that at most this share of the weight reaches.

    >>> _lowest(np.array([0.4, 0.1, 0.2, 0.3]), np.ones(4), 0.5) > 0.2
    True
    """
    order = np.argsort(-probabilities, kind="stable")
    reached = np.cumsum(weight[order]) / weight.sum()
    # The first row that is one too many stays below, and its equals with it.
    too_many = order[np.searchsorted(reached, rate + 1e-12, side="right")]
    return float(np.nextafter(probabilities[too_many], 1.0))


def _sigmoid(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-margins)))


def _accompany(model: Path, output: Path, tuned: Tuned, sample: Sample, rows: NDArray[np.float32]) -> None:
    """Write what else a version's folder holds: the parent's teacher, and the reference for drift."""
    for name in (registry.TEACHER_FILE, registry.TEACHER_FACTS_FILE):
        if (model / name).is_file():
            shutil.copyfile(model / name, output / name)
    header = compact.read(output / registry.MODEL_FILE).header
    prior = header.calibration.prior
    reference = drift.reference(
        rows,
        _sigmoid(tuned.margins + np.log(prior / (1 - prior))),
        header.features,
        weight=calibration.traffic_weights(sample, prior),
        source="the labelled rows tuned to, their scores from fits that left their accounts out",
    )
    drift.write(output, reference)
