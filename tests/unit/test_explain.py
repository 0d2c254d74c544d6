"""Reasons are Shapley values by their definition, and do what they say when a feature is taken away."""

from itertools import combinations
from math import factorial

import numpy as np
import pytest
from numpy.typing import NDArray

from features import schema
from models import compact
from models.compact import Artifact
from models.explain import plain
from models.scorer import Scorer
from tests.boosters import drawn_rows, trained, write_model


def expectation(artifact: Artifact, row: NDArray[np.float32], known: set[int]) -> float:
    """Return the margin expected where only the features `known`, places in the header, are known.

    At a split on an unknown feature both ways are taken, each weighing as the training rows that went there.
    """
    trees, edges = artifact.trees, compact.edge(artifact.trees.threshold)
    columns = [schema.index(name) for name in artifact.header.features]
    total, first = 0.0, 0
    for tree, n_splits in enumerate(trees.n_splits.tolist()):
        leaf = first + tree

        def covered(place: int, first: int = first, leaf: int = leaf) -> int:
            if place < 0:
                return int(trees.cover[leaf + ~place])
            return covered(int(trees.left[first + place])) + covered(int(trees.right[first + place]))

        def value(place: int, first: int = first, leaf: int = leaf, covered=covered) -> float:  # type: ignore[no-untyped-def]
            if place < 0:
                return float(trees.leaf[leaf + ~place])
            split = first + place
            left, right = int(trees.left[split]), int(trees.right[split])
            feature = int(trees.feature[split])
            if feature not in known:
                below, above = covered(left), covered(right)
                return (below * value(left) + above * value(right)) / (below + above)
            x = row[columns[feature]]
            is_left = trees.unknown_left[split] if np.isnan(x) else x <= edges[split]
            return value(left if is_left else right)

        total += value(0 if n_splits else ~0)
        first += n_splits
    return total * artifact.header.leaf_scale


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model of few features, so that all their subsets can be tried."""
    path = tmp_path_factory.mktemp("model") / "model.falconet"
    write_model(path, trained(n_trees=4, feature_fraction=0.1, seed=5))
    return compact.read(path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model of the size that is served."""
    path = tmp_path_factory.mktemp("model") / "model.falconet"
    write_model(path, trained(n_trees=60))
    return compact.read(path)


def test_contributions_are_shapley_values_by_definition(small: Artifact) -> None:
    """Each is the mean, over all orders in which features become known, of what its own becoming known adds."""
    n = len(small.header.features)
    assert 4 <= n <= 9
    scorer = Scorer(small)
    columns = [schema.index(name) for name in small.header.features]
    for row in drawn_rows(8, seed=31):
        worth = {
            subset: expectation(small, row, set(subset)) for k in range(n + 1) for subset in combinations(range(n), k)
        }
        expected = [
            sum(
                factorial(len(subset)) * factorial(n - 1 - len(subset)) / factorial(n)
                * (worth[tuple(sorted((*subset, i)))] - worth[subset])
                for subset in worth
                if i not in subset
            )
            for i in range(n)
        ]  # fmt: skip

        np.testing.assert_allclose(scorer.contributions(row)[columns], expected, rtol=0, atol=1e-12)


def test_removing_the_top_reason_lowers_the_score(served: Artifact) -> None:
    """Where the top reason is made unknown, the margin falls, and by more than for any other reason on most rows.

    The fall for one row is what the feature adds as the last to become known; its contribution is the mean over all
    orders. So they differ row by row, for one row in a hundred even in sign, and agree over rows: in the mean within
    a fifth.
    """
    scorer = Scorer(served)
    rows = drawn_rows(120, seed=32)
    names = served.header.features
    everything = set(range(len(names)))
    falls, claims, is_largest = [], [], []
    for row, margin in zip(rows, scorer.margins(rows).tolist(), strict=True):
        reasons = scorer.reasons(row, 3)
        fall = [margin - expectation(served, row, everything - {names.index(reason.feature)}) for reason in reasons]
        falls.append(fall[0])
        claims.append(reasons[0].contribution / served.header.calibration.slope)
        is_largest.append(fall[0] == max(fall))

    assert np.mean(np.array(falls) > 0) >= 0.98
    assert np.mean(is_largest) >= 0.8
    assert np.corrcoef(falls, claims)[0, 1] > 0.9
    assert np.mean(falls) == pytest.approx(np.mean(claims), rel=0.2)


def test_contributions_and_mean_add_up_to_the_margin(served: Artifact) -> None:
    """Nothing of a score is left unexplained: with nothing known it is the mean, the rest are contributions."""
    scorer = Scorer(served)
    rows = drawn_rows(30, seed=33)

    sums = [scorer.contributions(row).sum() + expectation(served, row, set()) for row in rows]

    np.testing.assert_allclose(sums, scorer.margins(rows), rtol=0, atol=1e-9)


def test_sentences_show_the_value(served: Artifact) -> None:
    """A reason is its feature's sentence, filled in with the row's own value."""
    scorer = Scorer(served)
    for row in drawn_rows(20, seed=34):
        for reason in scorer.reasons(row, 3):
            feature = schema.FEATURES[schema.index(reason.feature)]
            if reason.value is not None and feature.unit != "0 or 1" and "{value}" in feature.sentence:
                assert reason.value == row[schema.index(reason.feature)]
                assert plain(reason.value) in reason.sentence
