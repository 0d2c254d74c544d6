"""What each step to the student changes: the same recipe with steps left out, judged on the same rows."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from models import compact, distil, evaluate, intervals
from models.dataset import Cuts, Sample
from models.distil import Lessons
from models.intervals import Estimate
from models.learning import SIMULATED, Parts, Say, Settings
from models.measured import ABLATION_FILE, Step

if TYPE_CHECKING:
    from lightgbm import Booster

N_REPLICATES = 200
"""Resamplings for the intervals: nine models on two periods, and the report has the served one's with 1,000."""

ALL, NEW = "all", "new accounts"


class Ablation(Struct, frozen=True):
    """The file's form: the test period's steps, and those of the period that everything was chosen by."""

    period: str
    steps: list[Step]
    validation: list[Step]


class Taught(NamedTuple):
    """What the recipe starts from; rows and cells are the same rows, before and after they are rounded."""

    parts: Parts
    cells: NDArray[np.float32]
    margins: NDArray[np.float64]
    """The teacher's, of the parts."""
    unlabelled: NDArray[np.float32]
    """Rounded."""
    unlabelled_margins: NDArray[np.float64]
    kept: NDArray[np.int64]
    """Places of the chosen features among the trained columns."""

    def lessons(
        self,
        *,
        taught: bool = True,
        cold: bool = True,
        more: bool = True,
        simulated: bool = True,
        rounded: bool = True,
    ) -> Lessons:
        """Return what the student learns, less some of it."""
        chosen = (cold | ~self.parts.is_cold) & (simulated | (self.parts.account != SIMULATED))
        parts = self.parts._replace(rows=self.cells if rounded else self.parts.rows).take(chosen)
        # Unlabelled rows have no target without a teacher.
        extra = (self.unlabelled, self.unlabelled_margins) if more and taught else (None, None)
        return distil.lessons(parts, self.margins[chosen] if taught else None, *extra)


class Variant(NamedTuple):
    """A model and how it scores the judged rows' trained columns."""

    step: str
    booster: "Booster"
    n_bytes: int
    n_features: int
    margins: NDArray[np.float64]


def variants(
    taught: Taught,
    served: tuple[str, "Booster"],
    rows: NDArray[np.float32],
    settings: Settings,
    *,
    seed: int,
    say: Say,
) -> list[Variant]:
    """Return the recipe with and without its steps.

    Args:
        taught: What the recipe starts from.
        served: The student that was chosen among several, and what that step is called.
        rows: Trained columns of the rows to judge by, not rounded.
        settings: The student's.
        seed: Of LightGBM.
        say: Told of the models.
    """
    cells = compact.quantise(rows)
    everything = np.arange(rows.shape[1])

    def fit(lessons: Lessons, kept: NDArray[np.int64], *, is_refined: bool = True) -> "Booster":
        return distil.fit(lessons, kept, settings, seed=seed, say=lambda _n, _of: None, is_refined=is_refined)

    steps: list[tuple[str, Callable[[], Booster], NDArray[np.int64], NDArray[np.float32]]] = [
        (
            f"all {len(everything)} features, no rounding",
            lambda: fit(taught.lessons(rounded=False), everything, is_refined=False),
            everything,
            rows,
        ),
        (
            f"{len(taught.kept)} features",
            lambda: fit(taught.lessons(rounded=False), taught.kept, is_refined=False),
            taught.kept,
            rows,
        ),
        ("rounded to 16 bits", lambda: fit(taught.lessons(), taught.kept, is_refined=False), taught.kept, cells),
        ("leaves estimated together", lambda: fit(taught.lessons(), taught.kept), taught.kept, cells),
        (served[0], lambda: served[1], taught.kept, cells),
        ("without a teacher", lambda: fit(taught.lessons(taught=False), taught.kept), taught.kept, cells),
        ("without cold copies", lambda: fit(taught.lessons(cold=False), taught.kept), taught.kept, cells),
        ("without unlabelled rows", lambda: fit(taught.lessons(more=False), taught.kept), taught.kept, cells),
    ]
    if (taught.parts.account == SIMULATED).any():
        real = ("without simulated frauds", lambda: fit(taught.lessons(simulated=False), taught.kept))
        steps.append((*real, taught.kept, cells))

    def make(step: tuple[str, Callable[[], "Booster"], NDArray[np.int64], NDArray[np.float32]]) -> Variant:
        name, train, kept, judged = step
        booster = train()
        margins = np.asarray(booster.predict(judged[:, kept], raw_score=True, num_threads=1))
        return Variant(name, booster, _bytes(booster, is_rounded=judged is cells), len(kept), margins)

    # Two at a time: LightGBM leaves the interpreter to others while it grows a tree.
    with ThreadPoolExecutor(2) as pool:
        made = []
        for variant in pool.map(make, steps):
            made.append(variant)
            say(len(made), len(steps))
    return made


def _bytes(booster: "Booster", *, is_rounded: bool) -> int:
    """Return the bytes of the trees as this package stores them, of LightGBM's text where it does not."""
    if not is_rounded:
        return len(booster.model_to_string(num_iteration=-1).encode())
    trees, _, _ = compact.from_booster(booster, booster.feature_name())
    return sum(np.asarray(array).nbytes for array in trees._replace(unknown_left=np.packbits(trees.unknown_left)))


def steps(
    named: list[tuple[str, int, int, int, NDArray[np.float64]]], sample: Sample, cuts: Cuts, *, seed: int
) -> list[Step]:
    """Return each model's figures in the period from `cuts.test_start` on.

    Args:
        named: Name, bytes, trees, features and scores of each model.
        sample: The judged rows.
        cuts: Where the period starts.
        seed: Of the bootstrap.
    """
    sets = evaluate.judged_sets(sample, cuts)

    def judge(which: str, scores: NDArray[np.float64]) -> list[Estimate]:
        chosen = sets[which]
        draws = intervals.draw(sample.account[chosen], seed=(seed,), n_replicates=N_REPLICATES)
        return [
            intervals.estimate(figure)
            for figure in intervals.ranking(sample.is_phishing[chosen], scores[chosen], draws).T
        ]

    found = []
    for name, n_bytes, n_trees, n_features, scores in named:
        roc_auc, average_precision, recall, _ = judge(ALL, scores)
        # An archive whose labels name no source has no set of new accounts.
        new = judge(NEW, scores)[0] if NEW in sets else roc_auc
        found.append(Step(name, n_bytes, n_trees, n_features, roc_auc, average_precision, recall, new))
    return found


def write(folder: Path, made: Ablation) -> None:
    """Write `ablation.json`."""
    (folder / ABLATION_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
