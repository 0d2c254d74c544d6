"""A test that did not run: skipped on anyone's machine, failed where everything must run."""

import pytest

from tests import conftest


@pytest.mark.parametrize(("in_ci", "outcome"), [(True, "failed"), (False, "skipped")])
def test_skip_is_a_failure_in_ci(monkeypatch: pytest.MonkeyPatch, in_ci: bool, outcome: str) -> None:
    """A missing tool, such as gcc, cannot make a run of CI green; the reason is told in both."""
    skip = ("test_export.py", 64, "Skipped: gcc is not installed")
    report = pytest.TestReport("test_export.py::test_c", ("test_export.py", 82, "test_c"), {}, "skipped", skip, "call")
    monkeypatch.setattr(conftest, "IN_CI", in_ci)

    judged = conftest.judge(report)

    assert judged.outcome == outcome
    assert "gcc is not installed" in str(judged.longrepr)
