"""The pieces of the comparison that can be wrong without anybody seeing it in a table."""

import lightgbm as lgb
import numpy as np
import pytest

from features import schema
from tests.bench.encoder import text
from tests.bench.lightgbm_fast import FastCall
from tests.bench.turns import BATCH, Calls


def test_fast_call_is_lightgbms_margin() -> None:
    """The C single-row-fast call gives what Booster.predict gives, to the last bit, NaN and infinities included."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(300, 6))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    rows[0, 0], rows[1, 1] = np.inf, -np.inf
    settings = {"objective": "binary", "num_leaves": 7, "num_threads": 1, "verbose": -1, "min_data_in_leaf": 5}
    booster = lgb.train(settings, lgb.Dataset(rows, np.nan_to_num(rows).sum(axis=1) > 0, params=settings), 10)
    fast = FastCall(booster)

    found = fast.rows(rows)
    fast.close()

    assert found == booster.predict(rows, raw_score=True, num_threads=1).tolist()


def test_text_says_what_is_known_and_nothing_else() -> None:
    """A row of unknowns tells of no last payment; known ages and amounts become their words."""
    row = np.full(schema.N_FEATURES, np.nan, dtype=np.float32)
    silent = text(row)
    row[[schema.index("amount"), schema.index("from_seconds_since_in")]] = 50.0, 90_000.0

    told = text(row)

    assert "ago" not in silent
    assert silent.startswith("unknown payment")
    assert told.startswith("huge payment; sender:")
    assert told.count("last got days ago") == 1
    assert "last got days ago" in told.split("; recipient:")[0]


def test_text_reads_no_column_that_gives_the_source_away() -> None:
    """Whatever the columns hold that no model may read, the text stays the same."""
    rng = np.random.default_rng(2)
    row = rng.lognormal(size=schema.N_FEATURES).astype(np.float32)
    other = row.copy()
    other[[i for i, feature in enumerate(schema.FEATURES) if not feature.trained]] = 7.0

    assert text(row) == text(other)


def test_round_calls_as_often_as_asked() -> None:
    """A round of n rows and m batches calls so often; without batches their figures are NaN, not zero."""
    seen: list[int] = []
    rows = np.zeros((BATCH, 2))
    calls = Calls(lambda batch: seen.append(len(batch)), [rows[i : i + 1] for i in range(9)], rows)

    result = calls.round(4, 2)
    alone = calls.round(3, 0)

    assert seen == [1] * 4 + [BATCH] * 2 + [1] * 3
    assert len(result.single_us) == 4
    assert result.batch_us > 0
    assert np.isnan([alone.batch_us, alone.batch_cpu_us]).all()


@pytest.mark.parametrize(("amount", "word"), [(0.0001, "dust"), (0.5, "medium"), (5.0, "large")])
def test_amounts_have_words(amount: float, word: str) -> None:
    """Amounts in ether become one word by their magnitude."""
    row = np.full(schema.N_FEATURES, np.nan, dtype=np.float32)
    row[schema.index("amount")] = amount

    assert text(row).startswith(f"{word} payment")
