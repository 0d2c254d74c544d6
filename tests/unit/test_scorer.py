"""The scorer is LightGBM's model, without LightGBM."""

from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from features import schema
from features.errors import ArtifactError
from models import compact
from models.scorer import BLOCK_ROWS, Scorer
from tests.boosters import drawn_rows, trained, write_model


@pytest.fixture(scope="module")
def booster() -> lgb.Booster:
    """A model of the size that is served."""
    return trained(n_trees=120)


@pytest.fixture(scope="module")
def scorer(booster: lgb.Booster, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """The same model, loaded from its file."""
    path = tmp_path_factory.mktemp("model") / "model.falconet"
    write_model(path, booster)
    return Scorer.load(path)


@pytest.mark.parametrize("n", [0, 1, 2, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 500])
def test_margins_are_lightgbms(scorer: Scorer, booster: lgb.Booster, n: int) -> None:
    """Every batch size gives LightGBM's margins to the last bit."""
    rows = drawn_rows(500, seed=9)[:n]

    expected = booster.predict(rows, raw_score=True) if n else np.zeros(0)

    np.testing.assert_array_equal(scorer.margins(rows), expected)


def test_score_does_not_depend_on_the_batch(scorer: Scorer) -> None:
    """A replayed transaction gets a bit-identical score, alone or in company."""
    rows = drawn_rows(300, seed=10)
    together = scorer.probabilities(scorer.margins(rows))

    alone = [scorer.probabilities(scorer.margins(rows[i : i + 1]))[0] for i in range(300)]

    assert alone == together.tolist()


def test_probability_is_the_calibrated_margin(scorer: Scorer) -> None:
    """The slope and intercept of the header turn margins into probabilities, without overflow at the ends."""
    margins = np.array([-1e4, -3.0, 0.0, 3.0, 1e4])

    probabilities = scorer.probabilities(margins)

    np.testing.assert_allclose(
        probabilities, [0.0, 1 / (1 + np.exp(6.4)), 1 / (1 + np.exp(4)), 1 / (1 + np.exp(1.6)), 1.0]
    )


def test_contributions_are_lightgbms(scorer: Scorer, booster: lgb.Booster) -> None:
    """Shapley values equal `pred_contrib`, and with the mean they add up to the margin."""
    rows = drawn_rows(60, seed=11)
    expected = np.asarray(booster.predict(rows, pred_contrib=True))

    contributions = np.array([scorer.contributions(row) for row in rows])

    np.testing.assert_allclose(contributions, expected[:, :-1], atol=1e-9)
    np.testing.assert_allclose(contributions.sum(axis=1) + expected[:, -1], scorer.margins(rows), atol=1e-9)


def test_reasons_are_the_largest_contributions(scorer: Scorer) -> None:
    """Reasons come largest first, raise the risk, carry the value, and read as sentences."""
    row = drawn_rows(1, seed=12)[0]
    contributions = scorer.contributions(row)

    reasons = scorer.reasons(row, 5)

    order = np.argsort(-contributions)[:5]
    assert [reason.feature for reason in reasons] == [schema.FEATURES[i].name for i in order]
    np.testing.assert_allclose([reason.contribution for reason in reasons], contributions[order] * 0.8)
    for i, reason in zip(order, reasons, strict=True):
        assert reason.contribution > 0
        assert reason.value is None if np.isnan(row[i]) else reason.value == row[i]
        assert reason.sentence
        assert "{" not in reason.sentence
        assert "nan" not in reason.sentence


def test_no_reason_lowers_the_risk(scorer: Scorer) -> None:
    """Asked for more reasons than features, the scorer stops at those that raise the risk."""
    row = drawn_rows(1, seed=13)[0]

    reasons = scorer.reasons(row, 10_000)

    assert len(reasons) == (scorer.contributions(row) > 0).sum()


def test_memory_of_the_explanations_is_bounded(scorer: Scorer) -> None:
    """The Shapley tables of a served model stay below 30 MB."""
    assert scorer._shapley.n_bytes < 30_000_000


def test_stumps_and_empty_models_score(tmp_path: Path) -> None:
    """A tree without a split is its leaf, and a model of such trees explains nothing."""
    booster = trained(n_trees=3, min_data_in_leaf=10_000)
    write_model(tmp_path / "model", booster)
    rows = drawn_rows(70, seed=14)

    scorer = Scorer.load(tmp_path / "model")

    np.testing.assert_array_equal(scorer.margins(rows), booster.predict(rows, raw_score=True))
    assert scorer.reasons(rows[0], 3) == []


def test_other_schema_is_refused(tmp_path: Path, booster: lgb.Booster) -> None:
    """A model of another feature table is refused, with both fingerprints."""
    write_model(tmp_path / "model", booster, schema="0123456789abcdef")

    with pytest.raises(ArtifactError, match=f"schema 0123456789abcdef, this program has {schema.FINGERPRINT}"):
        Scorer.load(tmp_path / "model")


def test_unknown_feature_is_refused(tmp_path: Path, booster: lgb.Booster) -> None:
    """A model that reads a feature the schema lacks is refused."""
    _trees, names = compact.from_booster(booster, [f"x{i}" for i in range(schema.N_FEATURES)])
    write_model(tmp_path / "model", booster, features=names)

    with pytest.raises(ArtifactError, match=f"reads the feature '{names[0]}'"):
        Scorer.load(tmp_path / "model")


def test_scorer_says_which_model_it_is(scorer: Scorer) -> None:
    """Name, version, digest and size are at hand for every score."""
    assert (scorer.model.name, scorer.model.version) == ("drawn", "1")
    assert len(scorer.model.digest) == 64
    assert scorer.thresholds == {"review": 0.1, "block": 0.5}
