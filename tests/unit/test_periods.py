"""Judging a model by any period of any data, and saying which, and what the data did not allow."""

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from features.errors import InputError, UsageError
from models import report
from models.dataset import ACCOUNTS_MAX, TEST_START, VALIDATION_START, Source
from models.labels import unix_time
from models.report import Report
from service import cli
from tests.archives import append_label, write_archive, write_labels
from tests.datafolder import END, START, address, write_folder

DAY = 86_400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data folder."""
    return write_folder(tmp_path_factory.mktemp("data"), n_accounts=90)


@pytest.fixture(scope="module")
def days(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an archive."""
    return write_archive(folder, tmp_path_factory.mktemp("archive"))


def judged(model: Path, data: Path | Source, *, start: int | None = None, until: int | None = None) -> Report:
    """Judge a small model."""
    return report.evaluate_folder(model, data, n_replicates=10, progress=lambda *_: None, start=start, until=until)


def test_period_is_what_was_asked_for(small_model: Path, folder: Path) -> None:
    """Rows of the period count and no others, and the page says that it is not the protocol's."""
    start, until = TEST_START + 20 * DAY, TEST_START + 80 * DAY
    whole, part = judged(small_model, folder), judged(small_model, folder, start=start, until=until)

    assert (part.start, whole.start) == ("2018-10-21", "2018-10-01")
    assert part.start <= part.end < "2018-12-20"
    assert 0 < part.models[0].rankings[0].n_rows < whole.models[0].rankings[0].n_rows
    page = report.markdown(part)
    assert f"Labelled rows of 2018-10-21 to {part.end}, each" in page
    assert "This is not the protocol's test period, 2018-10-01 to 2019-10-08" in page
    assert "may have learnt" not in page


def test_period_of_training_is_told_as_such(small_model: Path, folder: Path) -> None:
    """Where a period begins before the end of training, the page says that its figures flatter."""
    early = judged(small_model, folder, start=VALIDATION_START - 30 * DAY, until=TEST_START)

    assert (early.start, early.learnt_until) == ("2018-06-01", "2018-07-01")
    assert "Models may have learnt from rows before 2018-07-01" in report.markdown(early)
    validation = judged(small_model, folder, start=VALIDATION_START, until=TEST_START)
    assert "may have learnt" not in report.markdown(validation)


def test_protocols_period_needs_no_excuse(small_model: Path, folder: Path) -> None:
    """The protocol's own days are called the test period, without a caveat."""
    found = msgspec.structs.replace(judged(small_model, folder), end="2019-10-08")
    page = report.markdown(found)

    assert "Labelled rows of the test period, 2018-10-01 to 2019-10-08, each scored" in page
    assert "This is not the protocol's" not in page
    assert "Left out" not in page


def test_archive_without_sources_leaves_tables_out_and_says_so(
    small_model: Path, folder: Path, days: Path, tmp_path: Path
) -> None:
    """Without A and B their test sets and rates are missing from the tables, and sentences name them."""
    known = write_labels(folder, tmp_path / "labels.csv", known_from=START, source=False)
    found = judged(small_model, Source(days, known))
    page = report.markdown(found)

    names = [ranking.test_set for ranking in found.models[0].rankings]
    assert names == ["all", "new accounts", "new accounts, first transaction"]
    assert "Left out, as the period has no phishing or no normal rows of them: against A's normals, against B's" in page
    assert "A dash stands for false positives of a source, A or B" in page
    assert found.models[0].operations[0].false_positives_a is None
    assert "against A's normals |" not in page


def test_archive_with_sources_is_judged_like_the_folder(
    small_model: Path, folder: Path, days: Path, tmp_path: Path
) -> None:
    """The same rows with the same labels get the same figures, whichever form they come in."""
    known = write_labels(folder, tmp_path / "labels.csv", known_from=START)
    archived, plain = judged(small_model, Source(days, known)), judged(small_model, folder)

    for one, other in zip(archived.models, plain.models, strict=True):
        assert [r.n_rows for r in one.rankings] == [r.n_rows for r in other.rankings]
        assert [r.share_phishing for r in one.rankings] == [r.share_phishing for r in other.rankings]


def test_late_label_does_not_judge(small_model: Path, folder: Path, days: Path, tmp_path: Path) -> None:
    """A label that became known after `as_of` changes no figure."""
    known = write_labels(folder, tmp_path / "labels.csv", known_from=START)
    first = judged(small_model, Source(days, known, END))
    append_label(known, address(3), "normal", END + 1, "A")
    second = judged(small_model, Source(days, known, END))

    assert [model.rankings for model in second.models] == [model.rankings for model in first.models]
    assert second.data == first.data


def test_period_without_anything_is_refused(small_model: Path, folder: Path) -> None:
    """A period that ends before it starts, and one without rows, are errors that name it."""
    with pytest.raises(UsageError, match="ends on 2018-10-01 and starts on 2018-10-02"):
        judged(small_model, folder, start=TEST_START + DAY, until=TEST_START)
    with pytest.raises(InputError, match="from 2019-12-27 on the test set 'all' lacks phishing or normal rows"):
        judged(small_model, folder, start=END + 270 * DAY)


def test_commands_start_from_the_protocol() -> None:
    """The commands' defaults, written out there for the sake of `--help`, are the dataset's."""
    assert unix_time(cli.VALIDATION_START) == VALIDATION_START
    assert unix_time(cli.TEST_START) == TEST_START
    assert cli.ACCOUNTS_MAX == ACCOUNTS_MAX


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--as-of", "soon", "--as-of is 'soon'; allowed: an ISO date or Unix seconds"),
        ("--validation-start", "2019-13-01", "--validation-start is '2019-13-01'"),
        ("--test-start", "2018-06-30", "the validation period must start before the test period"),
        ("--labels", "x.csv", "labels with times are for an archive"),
    ],
)
def test_unsound_dates_are_wrong_usage(folder: Path, command: str, option: str, value: str, complaint: str) -> None:
    """A date that is none, periods in the wrong order and labels for a data folder are refused before anything runs."""
    arguments = [command, "--data", str(folder), "--output", str(folder / "out"), option, value]
    done = CliRunner().invoke(cli.app, arguments)

    assert isinstance(done.exception, UsageError)
    assert complaint in str(done.exception)
