"""Figures beside the protocol's tables, each against a plain computation on drawn rows."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from models import breakdown, calibration, evaluate, intervals
from models import labels as known_labels
from models.dataset import BACKGROUND, TEST_START, VALIDATION_START, Cuts, Sample
from models.labels import Labels
from tests.unit.test_evaluate import drawn

AT = {"review": 0.4, "block": 0.9, "never": 1.1}
DRAWN = {"seed": 1, "n_replicates": 50}


def test_draws_are_of_whole_groups() -> None:
    """A group counts alike for all its rows, a resampling has as many groups as there are, and one seed repeats it."""
    group = np.array([7, 3, 7, -1, 3, 3])

    draws = intervals.draw(group, seed=(1, 2), n_replicates=30)

    assert draws.counts.shape == (31, 3)
    assert (draws.counts[0] == 1).all()
    assert (draws.counts.sum(axis=1) == 3).all()
    assert [draws.member[group == name].tolist() for name in (-1, 3, 7)] == [[0], [1, 1, 1], [2, 2]]
    assert (draws.counts == intervals.draw(group, seed=(1, 2), n_replicates=30).counts).all()
    assert (draws.counts != intervals.draw(group, seed=(1, 3), n_replicates=30).counts).any()


def test_resampled_thresholds_and_shares_are_those_of_repeated_rows() -> None:
    """In each resampling, thresholds and shares are what rows repeated as often give."""
    rng = np.random.default_rng(5)
    scores, group = np.round(rng.random(60), 1), rng.integers(0, 9, size=60)
    draws = intervals.draw(group, seed=(4,), n_replicates=20)

    limits = intervals.thresholds(scores, (0.25, 0.8), draws)
    rates = intervals.shares(scores, limits, draws)

    for counts, limit, rate in zip(draws.counts, limits, rates, strict=True):
        repeated = np.repeat(scores, counts[draws.member])
        expected = [evaluate.threshold_at(repeated, recall) for recall in (0.25, 0.8)]
        assert limit.tolist() == expected
        assert rate.tolist() == pytest.approx([(repeated >= each).mean() for each in expected])


def test_an_estimate_leaves_out_what_has_no_figure() -> None:
    """Resamplings without a class do not widen the interval."""
    found = intervals.estimate(np.array([0.5, 0.4, np.nan, 0.6, np.inf]))

    assert found.value == 0.5
    assert 0.4 <= found.low < found.high <= 0.6


def test_retention_is_a_paired_ratio() -> None:
    """A model keeps all of itself with no spread, and a worse one's ratio spreads less than its figure."""
    sample, scores = drawn()
    worse = scores + np.random.default_rng(1).normal(size=len(scores)) / 20

    same = evaluate.retained(sample, scores, scores, **DRAWN)
    kept = evaluate.retained(sample, worse, scores, **DRAWN)

    assert all((row.roc_auc.low, row.roc_auc.value, row.roc_auc.high) == (1, 1, 1) for row in same)
    ours, theirs = (evaluate.evaluate(sample, each, **DRAWN)[0] for each in (worse, scores))
    for row, small, large in zip(kept, ours, theirs, strict=True):
        assert row.test_set == small.test_set
        assert row.roc_auc.value == pytest.approx(small.roc_auc.value / large.roc_auc.value)
        assert row.average_precision.value == pytest.approx(
            small.average_precision.value / large.average_precision.value
        )
    assert _width(kept[0].roc_auc) < _width(ours[0].roc_auc)
    assert _width(kept[0].average_precision) < _width(ours[0].average_precision)


def _width(figure: intervals.Estimate) -> float:
    return figure.high - figure.low


def test_without_sources_the_tables_hold_what_there_is() -> None:
    """Labels that name neither A nor B leave the sets that need no source, and no rate against A or B."""
    sample, scores = drawn()
    sample = sample._replace(source=np.full(len(sample.time), ""))

    rankings, operations = evaluate.evaluate(sample, scores, **DRAWN)

    names = [ranking.test_set for ranking in rankings]
    assert names == ["all", "new accounts", "new accounts, first transaction"]
    assert [operation.false_positives_a for operation in operations] == [None] * 3
    assert operations[0].background is not None


def test_periods_may_be_others() -> None:
    """The test set begins where the cuts say."""
    sample, scores = drawn()
    cuts = Cuts(VALIDATION_START, TEST_START + 10_000_000)

    rankings, _ = evaluate.evaluate(sample, scores, cuts=cuts, **DRAWN)

    assert rankings[0].n_rows == ((sample.account >= 0) & (sample.time >= cuts.test_start)).sum()


def test_calibrated_probabilities_are_reliable() -> None:
    """Scores that are probabilities at the prior have observed shares near the predicted ones, others have not."""
    rng = np.random.default_rng(2)
    n, prior = 40_000, 0.01
    # With margins drawn from N(-1, 2) and N(1, 2), the log-odds at even shares are the margin itself.
    is_phishing = rng.random(n) < 0.3
    margin = rng.normal(size=n) * np.sqrt(2) + np.where(is_phishing, 1, -1)
    probabilities = 1 / (1 + np.exp(-(margin + np.log(prior / (1 - prior)))))
    account = np.where(rng.random(n) < 0.1, BACKGROUND, rng.integers(0, 2_000, size=n) * 2 + is_phishing)
    is_phishing &= account != BACKGROUND
    source = np.where(account == BACKGROUND, "", "A")
    margin_is_background = account == BACKGROUND
    probabilities[margin_is_background] = 1 / (
        1 + np.exp(-(rng.normal(size=margin_is_background.sum()) * np.sqrt(2) - 1 + np.log(prior / (1 - prior))))
    )
    sample = Sample(
        np.arange(n), np.arange(n), account, np.zeros(n, np.int64), is_phishing, source, np.zeros(n, dtype=np.bool_)
    )

    found = calibration.reliability(sample, probabilities, period="drawn", prior=prior, **DRAWN)
    off = calibration.reliability(sample, probabilities / 5, period="drawn", prior=prior, **DRAWN)

    assert found is not None
    assert off is not None
    assert found.mean_predicted == pytest.approx(prior, rel=0.15)
    assert found.error < 0.15 * prior < 0.5 * prior < off.error
    assert sum(each.n_rows for each in found.bins) == n
    assert sum(each.low * 0.7 <= each.observed.value <= each.high * 1.4 for each in found.bins) >= 9
    assert all(each.observed.low <= each.observed.value <= each.observed.high for each in found.bins)


def test_observed_shares_are_weighted_to_the_prior() -> None:
    """The weight of phishing over all bins is the prior, whatever its share of the rows."""
    sample, scores = drawn()

    found = calibration.reliability(sample, scores, period="drawn", prior=0.001, **DRAWN)

    assert found is not None
    weight = calibration.traffic_weights(sample, 0.001)
    for each in found.bins:
        chosen = (scores >= each.low) & (scores <= each.high)
        assert each.observed.value == pytest.approx(weight[chosen & sample.is_phishing].sum() / weight[chosen].sum())
    assert calibration.reliability(sample.take(sample.is_phishing), scores, period="", prior=0.1, **DRAWN) is None


def test_precision_is_bayes_rule() -> None:
    """At a prior, precision comes from recall and false-alert rate; without any false alert it is a least one."""
    sample, scores = drawn()
    chosen = evaluate.sides(sample)

    found = calibration.precisions(sample, scores, AT, **DRAWN)

    assert [(row.name, row.prior) for row in found] == [(name, prior) for name in AT for prior in (0.001, 0.01)]
    recall, rate = (scores[chosen.new] >= 0.4).mean(), (scores[chosen.background] >= 0.4).mean()
    assert found[1].background is not None
    assert found[1].background.value == pytest.approx(0.01 * recall / (0.01 * recall + 0.99 * rate))
    assert not found[1].is_background_least
    normal = np.mean([(scores[side] >= 0.4).mean() for side in (chosen.a, chosen.b)])
    assert found[1].normals is not None
    assert found[1].normals.value == pytest.approx(0.01 * recall / (0.01 * recall + 0.99 * normal))
    assert found[-1].is_background_least
    assert found[-1].background is not None
    assert found[-1].background.value == 0


def test_curve_points_are_counted() -> None:
    """Each point of the curve is what its threshold does, and recall rises to 1."""
    sample, scores = drawn()

    curves = calibration.curves(sample, scores)

    assert [curve.test_set for curve in curves] == ["all", "new accounts"]
    chosen = evaluate.test_sets(sample)["all"]
    is_phishing, part = sample.is_phishing[chosen], scores[chosen]
    for point in curves[0].points:
        alerted = part >= point.threshold
        assert point.recall == pytest.approx(alerted[is_phishing].mean())
        assert point.precision == pytest.approx(is_phishing[alerted].mean())
        assert point.false_positive_rate == pytest.approx(alerted[~is_phishing].mean())
        assert calibration.at_prior(point, float(is_phishing.mean())) == pytest.approx(point.precision)
    assert curves[0].points[-1].recall == 1


def test_decay_goes_by_weeks() -> None:
    """Each period holds the test rows of its weeks; a period short of a class has no figures."""
    sample, scores = drawn(4_000)

    periods = breakdown.decay(sample, scores, **DRAWN)

    test = (sample.account != BACKGROUND) & (sample.time >= TEST_START)
    assert sum(period.n_rows for period in periods) == test.sum()
    assert [period.weeks_after for period in periods] == list(range(0, 4 * len(periods), 4))
    assert periods[0].start == "2018-10-01"
    assert periods[1].start == "2018-10-29"
    chosen = test & (sample.time < TEST_START + 28 * 86_400)
    assert periods[0].roc_auc is not None
    assert periods[0].roc_auc.value == pytest.approx(roc_auc_score(sample.is_phishing[chosen], scores[chosen]))
    few = breakdown.decay(sample.take(sample.is_phishing), scores[sample.is_phishing], **DRAWN)
    assert {period.roc_auc for period in few} == {None}


def test_background_is_told_by_year_and_block() -> None:
    """Rates by year are shares of rows, blocks are told apart by their time."""
    sample, scores = drawn()
    time = np.where(sample.account == BACKGROUND, sample.time // 3_000_000 * 3_000_000 + 86_400, sample.time)
    sample = sample._replace(time=time)

    years, blocks = breakdown.background(sample, scores, AT, **DRAWN)

    chosen = (sample.account == BACKGROUND) & (sample.time >= VALIDATION_START)
    assert sum(block.n_rows for block in blocks) == sum(year.n_rows for year in years) == chosen.sum()
    assert [year.year for year in years] == [2018, 2019]
    assert sum(year.n_blocks for year in years) == len(blocks) == len(np.unique(sample.time[chosen]))
    n_alerts = sum(block.alerts["review"] for block in blocks)
    assert n_alerts == (scores[chosen] >= 0.4).sum()
    assert n_alerts == pytest.approx(sum(year.n_rows * year.alerts["review"].value for year in years))


def labels_of(n: int) -> Labels:
    """Return labels in which every fourth account is a service and every fifth is capped."""
    place = np.arange(n)
    key = np.zeros(n, dtype=[("a", "u8"), ("b", "u8"), ("c", "u8")])
    return Labels(key, place % 3 == 0, np.full(n, "A"), 0, 0, place % 4 == 0, place % 5 == 0)


def test_kinds_are_told_apart() -> None:
    """Each kind's rate is the share of its rows, phishing and normal apart, and the top is of normal rows alone."""
    sample, scores = drawn()
    test = (sample.account != BACKGROUND) & (sample.time >= TEST_START)

    found = breakdown.by_kind(sample, scores, AT, labels=labels_of(120), **DRAWN)

    by_name = {(row.kind, row.is_phishing): row for row in found}
    service = test & ~sample.is_phishing & (sample.account % 4 == 0)
    row = by_name["exchange or service", False]
    assert row.n_rows == service.sum()
    assert row.n_accounts == len(np.unique(sample.account[service]))
    assert row.alerts["review"].value == pytest.approx((scores[service] >= 0.4).mean())
    assert by_name["all", False].share_of_top == 1
    assert row.share_of_top == pytest.approx(1 - (by_name["no exchange or service", False].share_of_top or 0))
    assert by_name["all", True].alerts["review"].value == pytest.approx(
        (scores[test & sample.is_phishing] >= 0.4).mean()
    )
    assert by_name["all", True].share_of_top is None


def test_kinds_without_flags_are_left_out() -> None:
    """Labels that do not say which account is a service give no line of services."""
    sample, scores = drawn()

    found = breakdown.by_kind(sample, scores, AT, labels=None, **DRAWN)

    assert "exchange or service" not in {row.kind for row in found}


def test_alert_budgets_scale_the_background_rate() -> None:
    """Alerts a day are rate times volume; a threshold that no row reaches has an upper bound."""
    sample, scores = drawn()
    background: NDArray[np.bool_] = evaluate.sides(sample).background

    found = {(row.name, row.per_day): row for row in breakdown.budgets(sample, scores, AT, **DRAWN)}

    rate = (scores[background] >= 0.4).mean()
    assert found["review", 100_000].alerts.value == pytest.approx(100_000 * rate)
    assert found["never", 1_000_000].is_most
    assert found["never", 1_000_000].alerts.high == pytest.approx(3 / background.sum() * 1_000_000)


def test_flags_of_accounts_follow_their_addresses(tmp_path: Path) -> None:
    """Which account is a service and which history is capped is read beside its label, whatever the order of lines."""
    lines = ["address,label,source,history_capped,exchange_or_service"]
    for number in (5, 1, 9, 3):
        kind = "phishing" if number == 9 else "normal"
        lines.append(f"0x{number:040x},{kind},A,{int(number == 3)},{int(number == 5)}")
    (tmp_path / "accounts.csv").write_text("\n".join(lines) + "\n")

    found = known_labels.read_accounts(tmp_path / "accounts.csv")

    assert found.is_service is not None
    assert found.is_capped is not None
    flags = list(zip(found.is_phishing.tolist(), found.is_service.tolist(), found.is_capped.tolist(), strict=True))
    assert sorted(flags) == [(False, False, False), (False, False, True), (False, True, False), (True, False, False)]
    services = [hex(int.from_bytes(key.tobytes()[:20], "big")) for key in found.key[found.is_service]]
    assert services == ["0x5"]


def test_files_without_flags_have_none(tmp_path: Path) -> None:
    """A file of addresses, labels and sources alone says nothing of services."""
    (tmp_path / "accounts.csv").write_text(f"address,label,source\n0x{1:040x},normal,A\n")

    found = known_labels.read_accounts(tmp_path / "accounts.csv")

    assert (found.is_service, found.is_capped) == (None, None)
