"""What other commands measure and the model card shows: the form of their files.

`frontier.json` and `bench-models.json` stand in docs/, `ablation.json` beside the model. Fields that a file has beyond
these are its own affair, and stand in a struct that extends one of these.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from features.errors import InputError
from models.intervals import Estimate

FRONTIER_FILE = "frontier.json"
COMPARISON_FILE = "bench-models.json"
ABLATION_FILE = "ablation.json"


class Point(Struct, frozen=True):
    """A small model that was tried."""

    family: str
    """Trees, oblivious trees, a network…"""
    name: str
    bytes: int
    us_per_row: float
    """In batches of 500, one core."""
    roc_auc: float
    roc_auc_new: float
    """New accounts."""
    is_chosen: bool = False
    """The one that is served."""


class Frontier(Struct, frozen=True):
    """Size, speed and quality of small models, on the period they were chosen by."""

    machine: str
    commit: str
    made_at: str
    period: str
    """Which rows the quality was measured on."""
    points: Sequence[Point]


class Step(Struct, frozen=True):
    """A model with so many of the steps to the served one done."""

    step: str
    bytes: int
    n_trees: int
    n_features: int
    roc_auc: Estimate
    average_precision: Estimate
    recall_at_1_percent: Estimate
    roc_auc_new: Estimate


class Ablation(Struct, frozen=True):
    """What each step on the way from the labels alone to the served model changed, in their order."""

    period: str
    steps: list[Step]


class Contestant(Struct, frozen=True):
    """A model in a runtime."""

    model: str
    runtime: str
    bytes: int
    single_us_p50: float
    """Of all calls of one row in all rounds."""
    single_us_p99: float
    batch_us: float
    """Of a row in batches of 500: the median round."""
    cpu_s_per_million: float
    """In batches of 500, all threads."""
    joules_per_million: float
    joules_source: str
    """`rapl`, or `estimate`: processor seconds times the watts of a busy core."""
    roc_auc: Estimate | None = None
    """All test rows; None where another line has the same model."""
    roc_auc_new: Estimate | None = None


class Comparison(Struct, frozen=True):
    """Models and runtimes on the same rows in the same run."""

    machine: str
    commit: str
    made_at: str
    contestants: Sequence[Contestant]


Form = TypeVar("Form", Frontier, Ablation, Comparison)


def read(path: Path, form: type[Form]) -> Form:
    """Read one of these files.

    Raises:
        InputError: It is missing or of another form.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=form)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
