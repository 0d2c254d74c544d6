"""What holds for every test: one that cannot run is named at the end as not run, and in CI it is a failure."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI", "").lower() == "true"

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a skipped test."""
    return judge((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge a skipped module."""
    return judge((yield))


def judge(report: Report) -> Report:
    """Turn a skip into a failure where everything must run: a green run then means that everything was run."""
    if IN_CI and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} did not run, and in CI everything must: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what did not run and why, just above the closing line."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section("not run")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.line(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small model with its teacher, as the setting `model` takes it."""
    # Here, because most tests need no LightGBM, and importing it takes a second.
    from models import compact, registry
    from tests.boosters import trained, write_model

    folder = tmp_path_factory.mktemp("small-model")
    booster = trained()
    # Low enough for some simulated transactions not to be allowed.
    thresholds = {"review": compact.Threshold(0.02, "by hand"), "block": compact.Threshold(0.1, "by hand")}
    write_model(folder / registry.MODEL_FILE, booster, thresholds=thresholds)
    registry.write_teacher(folder, booster, slope=1.0, intercept=0.0)
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of the labelled transactions."""
    folder = Path(os.environ.get("FALCONET_DATA") or ROOT.parent / "shared" / "data" / "ethereum")
    if not folder.is_dir():
        pytest.skip(f"the labelled transactions are not at {folder}; FALCONET_DATA names another folder")
    return folder
