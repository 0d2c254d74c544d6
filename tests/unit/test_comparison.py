"""The pieces of the comparison that can be wrong without anybody seeing it in a table."""

import re
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from features import schema
from models import measured
from models.evaluate import Operation, Ranking
from models.intervals import Estimate
from tests.bench import learning_curve
from tests.bench.comparison import OWN, Comparison, Contestant, Quality, Spread, figure, markdown, write
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


def contestant(model: str, runtime: str, batch_us: float) -> Contestant:
    """Return a contestant of which only the time of a batch is of interest."""
    one = Spread(3.0, 2.0, 4.0)
    batch = Spread(batch_us, batch_us / 2, batch_us * 2)
    return Contestant(model, runtime, 12_345, 3.0, 9.0, batch_us, 0.5, 2.5, "estimate", None, None, one, one, 9, batch)


def comparison_of(*contestants: Contestant) -> Comparison:
    """Return a comparison with one judged model."""
    estimate = Estimate(0.9, 0.8, 0.95)
    rankings = [Ranking(name, 7_000, 900, 0.4, *[estimate] * 4) for name in ("all", "new accounts")]
    quality = [Quality("falconet", "all", rankings, [Operation(0.5, 0.1, estimate, None, estimate)])]
    versions, figures = {"lightgbm": "4.7.0"}, [figure("a row", [0.1, 0.12, 0.2], "µs", "≤ 0.15")]
    return Comparison(
        "a machine",
        "c" * 40,
        "2026-01-02",
        data="d" * 64,
        period="validation",
        model="falconet 1",
        digest="e" * 64,
        versions=versions,
        rounds=7,
        watts_per_core=5.0,
        figures=figures,
        contestants=contestants,
        quality=quality,
        missing=["lleaves: not to be had"],
        encoder_rows=8_000,
    )


def test_page_shows_what_was_measured_and_what_was_not() -> None:
    """Times stand with their spread, estimates say so, and what is missing is named with its reason."""
    page = markdown(comparison_of(contestant("falconet", OWN, 0.125), contestant("teacher", "C API", 40.0)))

    assert "| a row | 0.12 µs | 0.1 to 0.2 | ≤ 0.15 |" in page
    assert "| falconet | own runtime | 12,345 | 3 [2, 4] | 9 [2, 4] | 0.125 [0.0625, 0.25] |" in page
    assert "2.5 (estimate)" in page
    assert "Not measured: lleaves: not to be had" in page
    assert "which choices were made on" in page


def test_files_are_what_the_model_card_reads(tmp_path: Path) -> None:
    """The JSON has the form the card asks for, and the plots stand beside it, told in words too."""
    write(comparison_of(contestant("falconet", OWN, 0.125)), tmp_path / measured.COMPARISON_FILE)

    read = measured.read(tmp_path / measured.COMPARISON_FILE, measured.Comparison)

    page = (tmp_path / "bench-models.md").read_text()
    assert [(one.model, one.batch_us) for one in read.contestants] == [("falconet", 0.125)]
    for alt, name in re.findall(r"!\[(.*?)\]\((.*?)\)", page):
        assert "falconet" in alt
        assert (tmp_path / name).read_bytes().startswith(b"<?xml")


def test_learning_curve_keeps_every_draw(tmp_path: Path) -> None:
    """The page shows the median with the least and the largest draw, and in how many a way is better than scratch."""
    auc = {"as it was": (0.7, 0.7, 0.7), "fine-tuned": (0.9, 0.8, 0.85), "from scratch": (0.8, 0.81, 0.7)}
    points = [
        learning_curve.Point("real", 50, 25, seed, way, 900, value, value, 0.1)
        for way, values in auc.items()
        for seed, value in enumerate(values)
    ]
    curve = learning_curve.Curve("a machine", "c" * 40, "2026-01-02", {}, points)
    path = tmp_path / "bench-tune.json"

    learning_curve.write(curve, path)

    page = path.with_suffix(".md").read_text()
    assert learning_curve.read(path) == curve
    assert "| real | 50 (25 phishing) | fine-tuned | 0.850 [0.800, 0.900] |" in page
    assert "in 2 of 3 draws" in page
    assert (tmp_path / learning_curve.PLOT).read_bytes().startswith(b"<?xml")
