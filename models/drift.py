"""Drift: how far traffic has moved from what a model was calibrated on, feature by feature and for the score.

The measure is credit scoring's population stability index (N. Siddiqi, Credit Risk Scorecards, 2006): over bins with
shares q_i in the reference and p_i in traffic, PSI = sum of (p_i - q_i) ln(p_i / q_i). Below 0.1 counts as stable,
above 0.25 as shifted. A bin without rows would make it infinite, so both shares get half a row: for B bins,
p_i = (n_i + 1/2) / (n + B/2). Traffic drawn from the reference itself has a PSI near (B - 1) (1/n + 1/m) with m rows of
reference: 0.002 for 10,000 of each.

The reference is the rows the calibration was fitted to, with the weights under which its probabilities hold: fraud as
rare as the prior, each source of normal rows alike. Their bare mix would call every real stream shifted, because a
third of them is phishing. Traffic of another chain or exchange will differ from the first hour; that is what it says.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features import schema
from features.compiled import compiled
from features.errors import ArtifactError, UsageError

FILE = "reference.json"
SCORE = "score"
"""Stands beside the features' names for the calibrated probability."""

STABLE_MAX, SHIFTED_MIN = 0.1, 0.25

EDGES_MAX = 9
"""Deciles of the reference; ties leave fewer."""
UNKNOWN = EDGES_MAX + 1
"""Place of the bin of NaN, whatever the number of edges."""
N_BINS = UNKNOWN + 1

ROWS_MIN = 500
"""Rows below which there is no figure: with 500, the noise of 11 bins is 0.02."""

SAMPLE_EVERY = 11
"""One transaction in 11 is counted. A counted row costs 0.07 us, a call that counts 0.36 us and one that counts nothing
0.05 us, so that single transactions pay 0.08 us and those of batches of 500 0.008 us (AMD EPYC, 24 features,
tests/bench/bench_drift.py, 2026-11-22). A prime never keeps step with batches of round sizes."""


class Column(Struct, frozen=True, forbid_unknown_fields=True):
    """How the reference spreads over one feature, or over the score."""

    name: str
    edges: list[float]
    """Ascending; a value belongs to the first edge that is not below it, or lies above the last."""
    shares: list[float]
    """Of the bins up to each edge, of the one above the last, and of the unknown values; they add to 1."""


class Reference(Struct, frozen=True, forbid_unknown_fields=True):
    """What traffic is compared with."""

    schema: str
    source: str
    """Which rows these are."""
    n_rows: float
    """Effective number of rows: (sum of weights)^2 / sum of squared weights, after Kish."""
    columns: list[Column]
    """The model's features in its order, then the score."""


class Shift(Struct, frozen=True):
    """One line of a drift report."""

    name: str
    psi: float
    edges: list[float]
    reference: list[float]
    """Shares of the bins."""
    traffic: list[float]

    @property
    def verdict(self) -> str:
        """Say it in a word."""
        if self.psi < STABLE_MAX:
            return "stable"
        return "shifted" if self.psi > SHIFTED_MIN else "moving"


def reference(
    rows: NDArray[np.float32],
    probabilities: NDArray[np.float64],
    names: Sequence[str],
    *,
    weight: NDArray[np.float64],
    source: str,
) -> Reference:
    """Return the reference of a model's features and its score.

    Args:
        rows: What the calibration was fitted to, shape (n, N_FEATURES).
        probabilities: Its calibrated scores, shape (n,).
        names: The model's features.
        weight: Of each row, from `calibration.traffic_weights`.
        source: Which rows these are, in words.
    """
    columns = [_column(name, rows[:, schema.index(name)], weight) for name in names]
    columns.append(_column(SCORE, probabilities.astype(np.float32), weight))
    n_rows = float(weight.sum() ** 2 / (weight**2).sum())
    return Reference(schema.FINGERPRINT, source, n_rows, columns)


def _column(name: str, values: NDArray[np.float32], weight: NDArray[np.float64]) -> Column:
    known = ~np.isnan(values)
    order = np.argsort(values[known], kind="stable")
    ranked, reached = values[known][order], np.cumsum(weight[known][order])
    edges = np.zeros(0, dtype=np.float32)
    if len(ranked):
        wanted = np.arange(1, EDGES_MAX + 1) / (EDGES_MAX + 1) * reached[-1]
        edges = np.unique(ranked[np.minimum(np.searchsorted(reached, wanted - 1e-12), len(ranked) - 1)])
    bins = np.where(known, np.searchsorted(edges, values), len(edges) + 1)
    counts = np.bincount(bins, weights=weight, minlength=len(edges) + 2)
    return Column(name, edges.astype(np.float64).tolist(), (counts / counts.sum()).tolist())


def write(folder: Path, made: Reference) -> None:
    """Write the reference beside its model."""
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")


def read(path: Path, names: Sequence[str]) -> Reference:
    """Read the reference of a model.

    Args:
        path: The file.
        names: The model's features, which it must be about.

    Raises:
        ArtifactError: It is missing, damaged, or about other features.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Reference)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from error
    if found.schema != schema.FINGERPRINT:
        raise ArtifactError(f"{path}: feature schema {found.schema}, this program has {schema.FINGERPRINT}")
    about = [column.name for column in found.columns]
    if about != [*names, SCORE]:
        raise ArtifactError(f"{path}: is about {', '.join(about)}; the model reads {', '.join(names)}")
    for column in found.columns:
        n, edges = len(column.edges), np.array(column.edges)
        if n > EDGES_MAX or len(column.shares) != n + 2 or (np.diff(edges) <= 0).any() or np.isnan(edges).any():
            raise ArtifactError(f"{path}: {column.name} has no sound bins: {n} edges, {len(column.shares)} shares")
        if min(column.shares) < 0 or abs(sum(column.shares) - 1) > 1e-6:
            raise ArtifactError(f"{path}: the shares of {column.name} are no shares: they add to {sum(column.shares)}")
    if not found.n_rows >= 1:
        raise ArtifactError(f"{path}: {found.n_rows} rows of reference, expected at least 1")
    return found


def psi(shares: NDArray[np.float64], n_rows: float, counts: NDArray[np.int64]) -> float:
    """Return the population stability index of some counts against a reference's shares.

    >>> psi(np.array([0.5, 0.5]), 1e9, np.array([500, 500]))
    0.0
    >>> round(psi(np.array([0.5, 0.5]), 1e9, np.array([9000, 1000])), 3)
    0.879
    """
    expected = (shares * n_rows + 0.5) / (n_rows + len(shares) / 2)
    seen = (counts + 0.5) / (counts.sum() + len(shares) / 2)
    return abs(float(((seen - expected) * np.log(seen / expected)).sum()))


@compiled
def _count(
    rows: Any, probabilities: Any, first: Any, every: Any, place: Any, feature: Any, edges: Any, ring: Any, counts: Any
) -> Any:
    """Put every so many rows into their bins, the oldest of the window out of theirs; return the next place.

    A ring without places is no window: nothing is taken out.
    """
    n_columns = feature.shape[0]
    n_ring = ring.shape[0]
    for r in range(first, rows.shape[0], every):
        at = place % n_ring if n_ring > 0 else 0
        is_full = place >= n_ring
        for c in range(n_columns):
            value = np.float32(probabilities[r]) if feature[c] < 0 else rows[r, feature[c]]
            # Comparisons with NaN are false: what pads the edges adds nothing.
            found = 0
            for k in range(EDGES_MAX):
                found += value > edges[c, k]
            if np.isnan(value):
                found = UNKNOWN
            if n_ring > 0:
                if is_full:
                    counts[c, ring[at, c]] -= 1
                ring[at, c] = found
            counts[c, found] += 1
        place += 1
    return place


class Drift:
    """Counts sampled rows in a sliding window. One thread observes, another may ask for the figures."""

    def __init__(self, compared: Reference, *, n_rows: int | None, every: int = SAMPLE_EVERY) -> None:
        """Make an empty window.

        Args:
            compared: What the traffic is compared with.
            n_rows: Sampled rows in the window, the newest; a byte each for every feature. None keeps all.
            every: One row in so many is sampled.

        Raises:
            UsageError: The window holds fewer rows than a figure needs.
        """
        if n_rows is not None and n_rows < ROWS_MIN:
            raise UsageError(f"a drift window of {n_rows} rows, a figure needs at least {ROWS_MIN}")
        self.reference = compared
        self._every = every
        self._skip = 0
        self._place = 0
        columns = compared.columns
        self._feature = np.array(
            [-1 if column.name == SCORE else schema.index(column.name) for column in columns], dtype=np.int64
        )
        self._edges = np.full((len(columns), EDGES_MAX), np.nan, dtype=np.float32)
        for i, column in enumerate(columns):
            self._edges[i, : len(column.edges)] = column.edges
        self._ring = np.zeros((n_rows or 0, len(columns)), dtype=np.uint8)
        self._counts = np.zeros((len(columns), N_BINS), dtype=np.int64)

    @property
    def n_rows(self) -> int:
        """Rows in the window."""
        return min(self._place, len(self._ring)) if len(self._ring) else self._place

    def observe(self, rows: NDArray[np.float32], probabilities: NDArray[np.float64]) -> None:
        """Sample a batch's feature rows, shape (n, N_FEATURES), and its scores."""
        n = len(rows)
        if n <= self._skip:
            self._skip -= n
            return
        self._place = _count(
            rows,
            probabilities,
            self._skip,
            self._every,
            self._place,
            self._feature,
            self._edges,
            self._ring,
            self._counts,
        )
        self._skip = (self._skip - n) % self._every

    def psi(self) -> dict[str, float]:
        """Return each feature's and the score's index; NaN while the window holds fewer than ROWS_MIN rows."""
        return {shift.name: shift.psi for shift in self.shifts()}

    def shifts(self) -> list[Shift]:
        """Return the whole comparison, in the reference's order."""
        counts = self._counts.copy()
        return [_shift(column, self.reference.n_rows, counts[i]) for i, column in enumerate(self.reference.columns)]


def _shift(column: Column, n_reference: float, counts: NDArray[np.int64]) -> Shift:
    n = len(column.edges) + 1
    seen = np.append(counts[:n], counts[UNKNOWN])
    total = int(seen.sum())
    index = psi(np.array(column.shares), n_reference, seen) if total >= ROWS_MIN else float("nan")
    return Shift(column.name, index, column.edges, column.shares, (seen / max(1, total)).tolist())
