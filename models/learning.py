"""What models are fitted to: the rows before the validation period, their weights, and copies with a forgotten past."""

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import schema
from features.transaction import IS_TOKEN
from models import dataset
from models.dataset import BACKGROUND, Records, Sample
from models.progress import Progress

Settings = dict[str, bool | int | float | str | None]
"""LightGBM's, and `n_trees`."""

Say = Callable[[int, int], None]
"""Told how many of how many steps are done."""

FIXED: Settings = {
    "bagging_freq": 1,
    "bagging_fraction": 0.7,
    "max_bin": 63,
    "force_row_wise": True,
    "deterministic": True,
    # One thread: two were four times slower on two cores that others use as well, and one is the same bits everywhere.
    "num_threads": 1,
    "verbose": -1,
}

SHARES = {"phishing": 0.4, "normal": 0.6, "background": 0.09}
"""Weight of each kind of row in training, whatever its number; each source of normal accounts has the same part of
theirs: A's are of another time and B's are large holders, so neither may stand for normal alone. Background is 599
rows; three times its weight gained nothing."""

COLD_COPY = 0.2
"""Weight of a row's copy from a table that started days to months before it: a cold start must not look like fraud."""
COLD_DAYS = (20.0, 200.0)
"""Between the restarts of that table."""

SIMULATED = -2
"""In the place of a row's account: the row is a simulator's."""
SIMULATED_SHARE = 0.03
"""Weight of all simulated rows, against 1 of the labelled ones with their past; half of it is the frauds'."""


class SimulatedRows(NamedTuple):
    """Payments of simulated accounts: kinds of fraud for which there are no labels, and ordinary life around them."""

    rows: NDArray[np.float32]
    """Trained columns, shape (n, n_trained_columns)."""
    kind: NDArray[np.str_]
    """Of fraud, empty for an ordinary payment."""


class Parts(NamedTuple):
    """Rows to learn from, shape (n, n_trained_columns), each once with its whole past and once with a part of it."""

    rows: NDArray[np.float32]
    is_phishing: NDArray[np.bool_]
    weight: NDArray[np.float64]
    account: NDArray[np.int64]
    """To whom the row counts: rows of one account resemble each other."""
    time: NDArray[np.int64]
    is_cold: NDArray[np.bool_]
    """The row's past is that since a restart."""

    @property
    def is_plain(self) -> NDArray[np.bool_]:
        """Labelled rows with their whole past: neither cold copies nor simulated."""
        is_plain: NDArray[np.bool_] = ~self.is_cold & (self.account != SIMULATED)
        return is_plain

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64] | slice) -> "Parts":
        """Return the chosen rows."""
        return Parts._make(array[chosen] for array in self)


def trained_columns() -> NDArray[np.int64]:
    """Return the columns a model may read: those whose bias does not give the source of a row away."""
    return np.array([i for i, feature in enumerate(schema.FEATURES) if feature.trained])


def learning_parts(
    records: Records, sample: Sample, rows: NDArray[np.float32], *, seed: int, report: Progress
) -> Parts:
    """Return the rows before the validation period, and their copies from a table that starts cold again and again."""
    learnt = np.flatnonzero(sample.time < records.cuts.validation_start)
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
        np.tile(part.account, 2),
        np.tile(part.time, 2),
        np.repeat([False, True], len(learnt)),
    )


def with_simulated(parts: Parts, simulated: SimulatedRows, share: float = SIMULATED_SHARE) -> Parts:
    """Return the parts with simulated rows behind them, as if they had happened last."""
    n, is_fraud = len(simulated.rows), simulated.kind != ""
    half = 0.5 * share * parts.weight[parts.is_plain].sum()
    return Parts(
        np.concatenate([parts.rows, simulated.rows]),
        np.concatenate([parts.is_phishing, is_fraud]),
        np.concatenate([parts.weight, np.where(is_fraud, half / is_fraud.sum(), half / (~is_fraud).sum())]),
        np.concatenate([parts.account, np.full(n, SIMULATED)]),
        np.concatenate([parts.time, np.full(n, parts.time.max())]),
        np.concatenate([parts.is_cold, np.zeros(n, dtype=np.bool_)]),
    )


def weights(sample: Sample) -> NDArray[np.float64]:
    """Return a weight for each row: accounts of a kind weigh alike however many rows they have, kinds as in SHARES."""
    _, member, count = np.unique(sample.account, return_inverse=True, return_counts=True)
    weight: NDArray[np.float64] = 1.0 / count[member]
    is_background = sample.account == BACKGROUND
    is_normal = ~sample.is_phishing & ~is_background
    sources = [is_normal & (sample.source == name) for name in np.unique(sample.source[is_normal]).tolist()]
    kinds = [(of_source, SHARES["normal"] / len(sources)) for of_source in sources]
    kinds += [(sample.is_phishing, SHARES["phishing"]), (is_background, SHARES["background"])]
    for of_kind, share in kinds:
        if of_kind.any():
            weight[of_kind] *= share / weight[of_kind].sum()
    weight *= len(weight) / weight.sum()
    return weight


def unlabelled(records: Records, sample: Sample, n: int, *, seed: int) -> NDArray[np.int64]:
    """Return at most n ascending positions of payments before the validation period that the sample does not hold.

    They are payments of nobody's account, and of labelled ones beyond their first 50: whatever a teacher can score.
    """
    n_before = bisect_left(records.packed[:, 7], records.cuts.validation_start)
    drawn = np.unique(np.random.default_rng(seed).integers(n_before, size=min(n, n_before)))
    packed = records.packed[drawn]
    is_paying = (packed.view(np.float64)[:, 6] > 0) & (packed[:, 8] & np.uint64(IS_TOKEN) == 0)
    chosen: NDArray[np.int64] = drawn[is_paying & ~np.isin(drawn, sample.position)]
    return chosen
