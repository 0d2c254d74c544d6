"""Drift: the index against its formula, the window against recomputation, and shifted traffic that is seen."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features import schema
from features.errors import ArtifactError, UsageError
from models import drift
from models.drift import SCORE, Drift, Reference

NAMES = [schema.FEATURES[i].name for i in (0, 3, 10, 40)]


def drawn(n: int, *, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return rows whose first feature is continuous, second mostly zero, third often unknown, fourth constant."""
    rng = np.random.default_rng(seed)
    rows = np.full((n, schema.N_FEATURES), np.nan, dtype=np.float32)
    rows[:, schema.index(NAMES[0])] = rng.lognormal(3, 2, size=n)
    rows[:, schema.index(NAMES[1])] = np.where(rng.random(n) < 0.8, 0, rng.integers(1, 5, size=n))
    rows[:, schema.index(NAMES[2])] = np.where(rng.random(n) < 0.4, np.nan, rng.normal(size=n))
    rows[:, schema.index(NAMES[3])] = 7
    return rows, 1 / (1 + np.exp(7 - rng.normal(size=n)))


def compared(n: int = 20_000) -> Reference:
    """Return the reference of drawn rows that weigh alike."""
    rows, probabilities = drawn(n, seed=1)
    return drift.reference(rows, probabilities, NAMES, weight=np.ones(n), source="drawn")


def observed(
    rows: NDArray[np.float32], probabilities: NDArray[np.float64], *, against: Reference | None = None
) -> dict[str, float]:
    """Return the indices of rows that all count."""
    window = Drift(against or compared(), n_rows=len(rows), every=1)
    window.observe(rows, probabilities)
    return window.psi()


def test_unshifted_traffic_is_stable() -> None:
    """Other rows of the same distribution stay far below 0.1 for every feature and the score."""
    found = observed(*drawn(10_000, seed=2))

    assert list(found) == [*NAMES, SCORE]
    assert max(found.values()) < 0.01


@pytest.mark.parametrize("place", range(4))
def test_a_shifted_feature_is_seen_and_no_other(place: int) -> None:
    """Traffic with one feature shifted rises above 0.25 there, and stays below 0.1 elsewhere."""
    rows, probabilities = drawn(10_000, seed=2)
    rows[:, schema.index(NAMES[place])] = 3 * rows[:, schema.index(NAMES[place])] + 10

    found = observed(rows, probabilities)

    assert found.pop(NAMES[place]) > 0.25
    assert max(found.values()) < 0.1


def test_unknown_values_have_a_bin_of_their_own() -> None:
    """A feature that stops arriving is a shift, also where the reference always knew it."""
    rows, probabilities = drawn(10_000, seed=2)
    rows[:, schema.index(NAMES[0])] = np.nan
    rows[:, schema.index(NAMES[2])] = np.nan

    found = observed(rows, probabilities)

    assert found[NAMES[0]] > 5
    assert found[NAMES[2]] > 0.25
    assert found[NAMES[1]] < 0.1


def test_a_shifted_score_is_seen() -> None:
    """The score has its line like a feature."""
    rows, probabilities = drawn(10_000, seed=2)

    assert observed(rows, np.minimum(1.0, 4 * probabilities))[SCORE] > 0.25


def test_index_is_the_formula() -> None:
    """The index is the sum over bins of (p - q) ln(p / q), each share with half a row added."""
    rng = np.random.default_rng(3)
    counts, other = rng.integers(0, 50, size=8), rng.integers(0, 50, size=8)
    p = (counts + 0.5) / (counts.sum() + 4)
    q = (other + 0.5) / (other.sum() + 4)

    expected = sum((a - b) * np.log(a / b) for a, b in zip(p, q, strict=True))
    assert drift.psi(other / other.sum(), float(other.sum()), counts) == pytest.approx(expected)


def test_bins_are_deciles_and_shares_add_up() -> None:
    """A continuous feature has nine edges with a tenth of the weight between them, ties share an edge."""
    columns = {column.name: column for column in compared().columns}

    continuous, mostly_zero, _, constant = (columns[name] for name in NAMES)
    assert continuous.shares == pytest.approx([0.1] * 10 + [0.0], abs=1e-3)
    assert mostly_zero.edges[0] == 0
    assert mostly_zero.shares[0] == pytest.approx(0.8, abs=0.02)
    assert constant.edges == [7]
    assert constant.shares == [1, 0, 0]


def test_weights_decide_the_shares() -> None:
    """Rows of no weight are not in the reference, and the effective number of rows is Kish's."""
    rows, probabilities = drawn(2_000, seed=5)
    rows[1_000:] *= 100
    weight = np.repeat([1.0, 0.0], 1_000)

    alone = drift.reference(rows[:1_000], probabilities[:1_000], NAMES, weight=np.ones(1_000), source="")

    made = drift.reference(rows, probabilities, NAMES, weight=weight, source="")
    assert made == alone
    assert made.n_rows == 1_000


lengths = st.lists(st.integers(0, 400), min_size=1, max_size=12)


@settings(deadline=None, max_examples=50)
@given(lengths, st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_window_is_the_last_sampled_rows(batches: list[int], every: int, seed: int) -> None:
    """However traffic comes in batches, the window holds every so-manyth row, the newest of them."""
    n_window = drift.ROWS_MIN
    against = compared(1_000)
    rows, probabilities = drawn(sum(batches), seed=seed)
    window = Drift(against, n_rows=n_window, every=every)
    start = 0
    for n in batches:
        window.observe(rows[start : start + n], probabilities[start : start + n])
        start += n

    kept = np.arange(0, sum(batches), every)[-n_window:]
    assert window.n_rows == len(kept)
    values = np.column_stack([rows[:, [schema.index(name) for name in NAMES]], probabilities.astype(np.float32)])[kept]
    for i, (column, shift) in enumerate(zip(against.columns, window.shifts(), strict=True)):
        known = values[~np.isnan(values[:, i]), i]
        places = [sum(float(value) > edge for edge in column.edges) for value in known]
        counts = [*np.bincount(places, minlength=len(column.edges) + 1).tolist(), len(kept) - len(known)]
        assert shift.traffic == pytest.approx([n / max(1, len(kept)) for n in counts])


def test_too_few_rows_have_no_index() -> None:
    """Below 500 rows the index is unknown, not zero, and a window of fewer is refused."""
    window = Drift(compared(), n_rows=1_000, every=1)
    window.observe(*drawn(drift.ROWS_MIN - 1, seed=2))

    assert all(np.isnan(index) for index in window.psi().values())
    window.observe(*drawn(1, seed=3))
    assert not any(np.isnan(index) for index in window.psi().values())
    with pytest.raises(UsageError, match="499 rows"):
        Drift(compared(), n_rows=499)


def test_reference_is_read_as_written(tmp_path: Path) -> None:
    """The file gives the reference back."""
    drift.write(tmp_path, compared())

    assert drift.read(tmp_path / drift.FILE, NAMES) == compared()


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        (b'"n_rows": 20000.0', b'"n_rows": 0.0', "0.0 rows"),
        (schema.FINGERPRINT.encode(), b"another", "feature schema another"),
        (b'"shares"', b'"sharks"', "cannot be read"),
        (b'"score"', b'"scare"', "the model reads"),
        (b"7.0", b"7.0, 7.0", "no sound bins: 2 edges"),
    ],
)
def test_foreign_reference_is_refused(tmp_path: Path, wrong: bytes, right: bytes, message: str) -> None:
    """A reference of other features or another schema, or with damaged bins, is told as such."""
    drift.write(tmp_path, compared())
    path = tmp_path / drift.FILE
    text = path.read_bytes()
    assert wrong in text
    path.write_bytes(text.replace(wrong, right))

    with pytest.raises(ArtifactError, match=message):
        drift.read(path, NAMES)


def test_reference_of_another_model_is_refused(tmp_path: Path) -> None:
    """The reference must be about the model's own features in its order."""
    drift.write(tmp_path, compared())

    with pytest.raises(ArtifactError, match="the model reads"):
        drift.read(tmp_path / drift.FILE, NAMES[:3])
