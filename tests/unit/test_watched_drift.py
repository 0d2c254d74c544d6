"""Drift in the service: traffic goes through the real pipeline, and the report and the metrics page tell its shift."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from features import schema
from features.accounts import Accounts
from features.errors import ArtifactError, InputError, UsageError
from models import drift as measure
from models.scorer import Scorer
from service import cli, drift, settings, simulator
from service.codec import Decoder
from service.loop import Loop
from service.metrics import Metrics
from service.pipeline import Message, Pipeline
from service.policy import policy
from service.reload import Replacement
from service.settings import Settings
from tests.boosters import trained, write_model
from tests.fakes import FakeKafka
from tests.unit.test_metrics import scrape

N = 3_000
FACTOR = 1_000
UNMOVED = {"accounts", "transactions", "days", "s", "log10 s"}
"""Units of features that no amount is in."""
SEEDS = (3, 4, 5, 6)


def make_pipeline(scorer: Scorer) -> Pipeline:
    return Pipeline(
        accounts=Accounts(accounts_max=16_384, pairs_max=32_768),
        scorer=scorer,
        policy=policy(scorer.thresholds, None),
        decoder=Decoder(chain_id=1, message_bytes_max=1_000_000),
    )


def traffic(scorer: Scorer, values: list[bytes]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the feature rows and scores of messages after an empty past."""
    messages = [Message(value, None, "transactions", 0, i, 0) for i, value in enumerate(values)]
    verdicts = make_pipeline(scorer).process(messages, now_ms=0).verdicts
    return verdicts.rows, verdicts.probabilities


def shifted(values: list[bytes]) -> list[bytes]:
    """Return messages that move a thousand times the amount."""
    found = []
    for value in values:
        message = json.loads(value)
        message["value"] = int(message["value"]) * FACTOR
        found.append(json.dumps(message).encode())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, the reference of simulated traffic, and more of it, as it is and shifted."""
    folder = tmp_path_factory.mktemp("drift")
    write_model(folder / "model.falconet", trained())
    scorer = Scorer.load(folder / "model.falconet")
    # Of several worlds: one has so few people that the sums of a month are its own.
    parts = [traffic(scorer, simulator.messages(seed, N)) for seed in SEEDS]
    rows, probabilities = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    names = scorer.header.features
    reference = measure.reference(rows, probabilities, names, weight=np.ones(len(rows)), source="simulated traffic")
    measure.write(folder, reference)
    values = simulator.messages(2, N)
    (folder / "same.jsonl").write_bytes(b"\n".join(values) + b"\n")
    (folder / "other.jsonl").write_bytes(b"\n".join(shifted(values)) + b"\n")
    return folder


def units() -> dict[str, str]:
    """Return the unit of each feature, and of the score."""
    return {feature.name: feature.unit for feature in schema.FEATURES} | {"score": "probability"}


def of_amounts(folder: Path) -> list[str]:
    """Return the model's features that are amounts."""
    names = Scorer.load(folder / "model.falconet").header.features
    return [name for name in names if units()[name] in ("ether", "log10 ether")]


def report(folder: Path, name: str, output: Path) -> dict[str, float]:
    """Run the command and return the indices that it wrote."""
    result = CliRunner().invoke(
        cli.app, ["drift", "--model", str(folder), "--input", str(folder / name), "--output", str(output)]
    )
    assert result.exit_code == 0, result.output
    found = msgspec.json.decode(output.read_bytes(), type=drift.Report)
    assert found.n_rows == N
    for shift in found.shifts:
        assert f"{shift.psi:.4f}  {shift.verdict}" in result.output
    return {shift.name: shift.psi for shift in found.shifts}


def test_report_tells_shifted_traffic(folder: Path, tmp_path: Path) -> None:
    """More of the same traffic shifts no feature; a thousand times the amounts shift what follows amounts."""
    same = report(folder, "same.jsonl", tmp_path / "same.json")
    other = report(folder, "other.jsonl", tmp_path / "other.json")

    amounts = of_amounts(folder)
    assert max(same.values()) < measure.SHIFTED_MIN
    assert sum(other[name] > 0.25 for name in amounts) >= 2
    assert all(other[name] == same[name] for name in other if units()[name] in UNMOVED)
    assert list(other.values()) == sorted(other.values(), reverse=True)


def test_report_needs_rows_and_a_reference(folder: Path, tmp_path: Path) -> None:
    """A short file and a model without a reference are told."""
    short = tmp_path / "short.jsonl"
    short.write_bytes(b"\n".join(simulator.messages(2, 20)) + b"\n")
    chosen = {"form": None, "state": None, "output": None}

    with pytest.raises(InputError, match="20 transactions, a drift report needs at least 500"):
        drift.command(Settings(), source=str(short), model=folder, **chosen)
    write_model(tmp_path / "model.falconet", trained())
    with pytest.raises(ArtifactError, match=r"reference\.json: cannot be read"):
        drift.command(Settings(), source=str(short), model=tmp_path, **chosen)


@pytest.mark.parametrize(("name", "is_shifted"), [("same.jsonl", False), ("other.jsonl", True)])
def test_metrics_show_the_drift_of_served_traffic(folder: Path, name: str, is_shifted: bool) -> None:
    """The loop counts what it scores; the page has a series for each feature of the model and one for the score."""
    scorer = Scorer.load(folder / "model.falconet")
    kafka, metrics = FakeKafka((folder / name).read_bytes().splitlines()), Metrics()
    loop = Loop(kafka, make_pipeline(scorer), metrics, Settings(batch_records_max=100), offsets=kafka.committed())
    kafka.on_empty = loop.stop
    window = measure.Drift(measure.read(folder / measure.FILE, scorer.header.features), n_rows=2_000, every=1)
    loop.watch_drift(window)

    before = scrape(metrics)
    loop.run()

    after = scrape(metrics)
    names = [*scorer.header.features, "score"]
    series = {name: after["drift_psi", ("feature", name)] for name in names}
    assert window.n_rows == 2_000
    assert sum(key[0] == "drift_psi" for key in after) == len(names)
    assert all(np.isnan(value) for key, value in before.items() if key[0] == "drift_psi")
    assert (max(series[f] for f in of_amounts(folder)) > 0.25) is is_shifted
    assert (max(series.values()) < 0.25) is not is_shifted


def test_without_a_reference_nothing_is_watched(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model without a reference serves all the same, and the log says that drift is off; so does a damaged one."""
    scorer = Scorer.load(folder / "model.falconet")

    assert drift.start(tmp_path / "model.falconet", scorer, n_rows=1_000) is None
    (tmp_path / measure.FILE).write_bytes(b"{}")
    assert drift.start(tmp_path / "model.falconet", scorer, n_rows=1_000) is None
    assert drift.start(folder / "model.falconet", scorer, n_rows=0) is None
    assert [record.message.split(":")[0] for record in caplog.records] == ["drift off", "drift off"]
    assert drift.start(folder / "model.falconet", scorer, n_rows=1_000) is not None


def test_a_window_too_small_is_refused() -> None:
    """The setting is refused before anything starts."""
    assert settings.DRIFT_ROWS_MIN == measure.ROWS_MIN
    assert settings.load(overrides={"drift_rows": 0}, environment={}).drift_rows == 0
    with pytest.raises(UsageError, match="drift_rows is 499"):
        settings.load(overrides={"drift_rows": 499}, environment={})


def test_a_reloaded_model_brings_its_own_window(folder: Path) -> None:
    """With another model the page tells the drift from that model's reference, over traffic since it took over."""
    scorer = Scorer.load(folder / "model.falconet")
    kafka, metrics = FakeKafka(simulator.messages(2, 600)), Metrics()
    loop = Loop(kafka, make_pipeline(scorer), metrics, Settings(batch_records_max=100), offsets=kafka.committed())
    kafka.on_empty = loop.stop
    compared = measure.read(folder / measure.FILE, scorer.header.features)
    before, after = (measure.Drift(compared, n_rows=1_000, every=1) for _ in range(2))
    loop.watch_drift(before)

    loop.replace(Replacement(scorer, policy(scorer.thresholds, None), None, after))
    loop.run()

    assert (before.n_rows, after.n_rows) == (0, 600)
    assert scrape(metrics)["drift_psi", ("feature", "score")] == after.psi()["score"]
