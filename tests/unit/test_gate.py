"""The gate's judgement, from figures made by hand."""

from pathlib import Path

import msgspec
import pytest

from features.errors import ArtifactError
from models import gate
from models.evaluate import Estimate
from models.gate import Cost, Evaluated
from tests.registries import TEST_SETS, estimate, judged, judgement, write_evaluation

CHAMPION = judged("a" * 64, gain=0.9, alarms=0.1)
WITHIN = Cost(n_bytes=32 * 1024, n_features=24, batch_us=0.3, single_us=5.0)


def evaluated(model: gate.Judged, **changes: object) -> Evaluated:
    found = gate.of_model(judgement(model, **changes), model.digest)
    assert found is not None
    return found


@pytest.mark.parametrize("changes", [{}, {"gain": 0.95}, {"gain": 0.88}, {"alarms": 0.12}, {"alarms": 0.0}])
def test_not_worse_beyond_the_interval_passes(changes: dict[str, float]) -> None:
    """Better, equal, and worse by no more than the champion's own interval."""
    assert gate.quality(evaluated(judged("b" * 64, **changes)), evaluated(CHAMPION)) == []


def test_every_figure_beyond_the_interval_is_a_reason() -> None:
    """Each of the four figures of both test sets, and each of the three rates, has its own reason with its numbers."""
    gains = gate.quality(evaluated(judged("b" * 64, gain=0.8799)), evaluated(CHAMPION))
    alarms = gate.quality(evaluated(judged("b" * 64, alarms=0.1201)), evaluated(CHAMPION))

    assert len(gains) == 4 * len(TEST_SETS)
    assert len(alarms) == 3
    assert gains[0] == "ROC AUC, all: 0.8799, below the champion's interval [0.8800, 0.9200] around 0.9000"
    assert "alerts on background at 50% recall on new phishing: 0.1201, above the champion's" in alarms[2]


def test_recall_at_less_than_one_normal_row_decides_nothing() -> None:
    """0.1 % of 999 normal rows cannot be told; 1 % of them can, and 0.1 % of 1,000 too."""
    rankings = [
        msgspec.structs.replace(row, n_rows=2_000, share_phishing=share)
        for row, share in zip(CHAMPION.rankings, (0.5, 0.5005), strict=True)
    ]
    low = estimate(0.5)
    worse = [msgspec.structs.replace(row, recall_at_1_percent=low, recall_at_01_percent=low) for row in rankings]
    champion = msgspec.structs.replace(CHAMPION, rankings=rankings)
    candidate = msgspec.structs.replace(CHAMPION, rankings=worse, digest="b" * 64)

    reasons = gate.quality(evaluated(candidate), evaluated(champion))

    assert [reason.split(":")[0] for reason in reasons] == [
        f"recall at 1 % FPR, {TEST_SETS[0]}",
        f"recall at 0.1 % FPR, {TEST_SETS[0]}",
        f"recall at 1 % FPR, {TEST_SETS[1]}",
    ]


def test_unknown_figure_does_not_pass() -> None:
    """NaN is no quality."""
    worst = judged("b" * 64, gain=float("nan"))

    assert len(gate.quality(evaluated(worst), evaluated(CHAMPION))) == 4 * len(TEST_SETS)


def test_missing_figure_is_a_reason() -> None:
    """A candidate that was not judged where the champion was does not pass for that."""
    partly = gate.Judged("drawn", "2", "b" * 64, CHAMPION.rankings, [])

    reasons = gate.quality(evaluated(partly), evaluated(CHAMPION))

    assert len(reasons) == 3
    assert all("lacks it" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": "e" * 64}, "the data"),
        ({"start": "2019-01-01"}, "the period"),
        ({"end": "2019-01-01"}, "the period"),
        ({"seed": 2}, "the bootstrap's seed"),
        ({"n_replicates": 50}, "resamplings"),
    ],
)
def test_figures_of_other_conditions_are_not_compared(changes: dict[str, object], named: str) -> None:
    """Other data or another bootstrap: the one reason says to evaluate again, however good the figures."""
    reasons = gate.quality(evaluated(judged("b" * 64, gain=0.99), **changes), evaluated(CHAMPION))

    assert len(reasons) == 1
    assert named in reasons[0]
    assert "falconet evaluate" in reasons[0]


def test_rows_that_a_data_set_lacks_are_not_compared() -> None:
    """An archive without background gives no rate there; where only the candidate lacks it, that is a reason."""
    without = gate.Judged(
        "drawn", "2", "b" * 64, CHAMPION.rankings, [msgspec.structs.replace(CHAMPION.operations[0], background=None)]
    )

    assert gate.quality(evaluated(CHAMPION), evaluated(without)) == []
    [reason] = gate.quality(evaluated(without), evaluated(CHAMPION))
    assert "alerts on background" in reason


def test_other_test_rows_are_not_compared() -> None:
    """The same data cut into other test sets is another protocol."""
    fewer = gate.Judged("drawn", "2", "b" * 64, CHAMPION.rankings[:1], CHAMPION.operations)

    [reason] = gate.quality(evaluated(fewer), evaluated(CHAMPION))

    assert "rows of the test sets" in reason


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_bytes": 32 * 1024 + 1}, "32,769 bytes, the limit is 32,768"),
        ({"n_features": 25}, "features: 25, the limit is 24"),
        ({"batch_us": 0.301}, "0.301 µs a row in batches of 500, the budget is 0.300"),
        ({"single_us": 5.01}, "5.01 µs for one row alone, the budget is 5.00"),
    ],
)
def test_each_budget_has_its_reason(change: dict[str, float], named: str) -> None:
    """At the limit passes, above it does not."""
    assert gate.budget(WITHIN) == []

    [reason] = gate.budget(WITHIN._replace(**change))

    assert named in reason


def test_latency_budget_can_be_raised() -> None:
    """A slower machine gets a multiple of both latency budgets, of nothing else."""
    slow = Cost(n_bytes=32 * 1024 + 1, n_features=24, batch_us=0.6, single_us=10.0)

    assert len(gate.budget(slow)) == 3
    assert len(gate.budget(slow, latency_budget=2.0)) == 1


def test_later_fields_leave_an_evaluation_readable(tmp_path: Path) -> None:
    """The gate reads what it compares and passes over the rest."""
    path = write_evaluation(tmp_path / "evaluation.json", judgement(CHAMPION))

    assert gate.read(path) == judgement(CHAMPION)
    assert gate.of_model(gate.read(path), "b" * 64) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"data": 1}'])
def test_what_is_no_evaluation_is_refused(content: bytes, tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)

    with pytest.raises(ArtifactError, match=r"evaluation\.json: is no evaluation"):
        gate.read(path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        gate.read(tmp_path / "none.json")


def test_packaged_evaluation_is_read() -> None:
    """What `falconet evaluate` writes has every figure: four for each of five test sets, three for each of three."""
    path = Path(__file__).parents[2] / "docs" / "evaluation.json"
    judgement = gate.read(path)

    for model in judgement.models:
        found = gate.figures(model)
        assert len(found) == 29
        assert all(isinstance(figure.estimate, Estimate) for figure in found.values())
