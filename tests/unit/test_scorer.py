"""The scorer is LightGBM's model, without LightGBM and in integers."""

from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest
from numpy.typing import NDArray

from features import schema
from features.accounts import Accounts
from features.errors import ArtifactError
from features.transaction import pack, records
from models import compact
from models.scorer import ALONE_MAX, BLOCK_ROWS, Scorer
from service import simulator
from service.codec import Decoder
from tests.boosters import READ, drawn_rows, leaf_sums, trained, write_model


@pytest.fixture(scope="module")
def booster() -> lgb.Booster:
    """A model of the size that is served."""
    return trained(n_trees=120)


@pytest.fixture(scope="module")
def path(booster: lgb.Booster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model's file."""
    path = tmp_path_factory.mktemp("model") / "model.falconet"
    write_model(path, booster)
    return path


@pytest.fixture(scope="module")
def scorer(path: Path) -> Scorer:
    """The same model, loaded from its file."""
    return Scorer.load(path)


def stream(n: int) -> NDArray[np.uint64]:
    """Return the simulator's first transactions, packed."""
    decoder = Decoder(chain_id=1, message_bytes_max=1 << 20)
    return records([pack(decoder.decode(message)) for message in simulator.messages(1, n)])


@pytest.mark.parametrize("n", [0, 1, 2, ALONE_MAX, ALONE_MAX + 1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 600])
def test_rows_reach_lightgbms_leaves(scorer: Scorer, booster: lgb.Booster, path: Path, n: int) -> None:
    """In every batch size a row reaches the leaves that LightGBM finds for the quantised row, and sums them."""
    artifact = compact.read(path)
    rows = drawn_rows(600, seed=9)[:n]

    expected = leaf_sums(booster, artifact.trees, rows) * artifact.header.leaf_scale if n else np.zeros(0)

    np.testing.assert_array_equal(scorer.margins(rows), expected)


def test_margins_are_lightgbms_within_the_rounding_of_leaves(scorer: Scorer, booster: lgb.Booster) -> None:
    """Each of the 120 leaves is off by half the scale at most."""
    rows = drawn_rows(600, seed=9)

    expected = booster.predict(compact.quantise(rows[:, READ]), raw_score=True)

    np.testing.assert_allclose(scorer.margins(rows), expected, rtol=0, atol=120 * scorer.header.leaf_scale / 2)


def test_one_call_does_what_two_did(scorer: Scorer) -> None:
    """Rows, hits and margins of the fused call are those of features and model apart, alone and in batches."""
    packed = stream(700)
    two, one, alone = (Accounts(accounts_max=5_000, pairs_max=10_000) for _ in range(3))
    rows, hits = two.score_rows(packed)

    scored = scorer.score(one, packed)
    singles = [scorer.score(alone, packed[i : i + 1]) for i in range(len(packed))]

    np.testing.assert_array_equal(scored.rows, rows)
    np.testing.assert_array_equal(scored.hits, hits)
    np.testing.assert_array_equal(scored.margins, scorer.margins(rows))
    np.testing.assert_array_equal(np.concatenate([single.rows for single in singles]), rows)
    np.testing.assert_array_equal(np.concatenate([single.margins for single in singles]), scored.margins)
    assert one.arrays()["accounts"].tobytes() == two.arrays()["accounts"].tobytes()
    assert scorer.model_seconds > 0


def test_scoring_without_observing_leaves_the_past_as_it_is(scorer: Scorer) -> None:
    """A question that is only asked gets the score that it would get, and changes nothing."""
    packed = stream(300)
    accounts = Accounts(accounts_max=5_000, pairs_max=10_000)
    accounts.score_rows(packed[:200])
    before = {name: array.tobytes() for name, array in accounts.arrays().items()}

    asked = scorer.score(accounts, packed[200:201], observing=False)

    assert {name: array.tobytes() for name, array in accounts.arrays().items()} == before
    assert asked.margins.tolist() == scorer.score(accounts, packed[200:201]).margins.tolist()


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
    """The Shapley tables of a served model stay below 8 MB."""
    assert scorer._shapley.n_bytes < 8_000_000


def test_stumps_and_empty_models_score(tmp_path: Path) -> None:
    """A tree without a split is its leaf, and a model of such trees explains nothing."""
    booster = trained(n_trees=3, min_data_in_leaf=10_000)
    write_model(tmp_path / "model", booster)
    rows = drawn_rows(70, seed=14)

    scorer = Scorer.load(tmp_path / "model")

    expected = leaf_sums(booster, compact.read(tmp_path / "model").trees, rows) * scorer.header.leaf_scale
    np.testing.assert_array_equal(scorer.margins(rows), expected)
    np.testing.assert_array_equal(scorer.margins(rows[:3]), expected[:3])
    assert scorer.reasons(rows[0], 3) == []


def test_other_schema_is_refused(tmp_path: Path, booster: lgb.Booster) -> None:
    """A model of another feature table is refused, with both fingerprints."""
    write_model(tmp_path / "model", booster, schema="0123456789abcdef")

    with pytest.raises(ArtifactError, match=f"schema 0123456789abcdef, this program has {schema.FINGERPRINT}"):
        Scorer.load(tmp_path / "model")


def test_unknown_feature_is_refused(tmp_path: Path, booster: lgb.Booster) -> None:
    """A model that reads a feature the schema lacks is refused."""
    _, names, _ = compact.from_booster(booster, [f"x{i}" for i in range(len(READ))])
    write_model(tmp_path / "model", booster, features=names)

    with pytest.raises(ArtifactError, match=f"reads the feature '{names[0]}'"):
        Scorer.load(tmp_path / "model")


def test_scorer_says_which_model_it_is(scorer: Scorer) -> None:
    """Name, version, digest and size are at hand for every score."""
    assert (scorer.model.name, scorer.model.version) == ("drawn", "1")
    assert len(scorer.model.digest) == 64
    assert scorer.thresholds == {"review": 0.1, "block": 0.5}
