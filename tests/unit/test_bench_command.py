"""How the benchmarks on the labelled transactions are called, and how they end."""

from pathlib import Path

import msgspec
import pytest

from features.errors import InputError
from service import bench
from service.settings import DATA_VARIABLE
from tests.bench import command


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["bench_some.py", *arguments])


def refuse(options: command.Options) -> None:
    raise InputError(f"{options.data}: is no folder")


def test_options_reach_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder is named by the option or else by the variable, the model by the option or not at all."""
    seen: list[tuple[Path, Path | None]] = []
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    for arguments in ((), ("--data", "elsewhere", "--model", "mine")):
        parser = command.parser("Some benchmark.")
        command.add_model(parser)
        call(monkeypatch, *arguments)
        assert command.run(parser, lambda options: seen.append((options.data, options.model))) == 0

    assert seen == [(tmp_path, None), (Path("elsewhere"), Path("mine"))]


def test_unnamed_folder_is_a_wrong_call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a folder nothing is measured, unless the work reads none."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    call(monkeypatch)

    with pytest.raises(SystemExit) as stopped:
        command.run(command.parser(None), refuse)

    assert stopped.value.code == 2
    assert f"--data or {DATA_VARIABLE} must name the data folder" in capsys.readouterr().err
    assert command.run(command.parser(None), lambda _options: None, reads_data=lambda _options: False) == 0


def test_error_is_one_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong with the data is told under the benchmark's name, without a traceback."""
    call(monkeypatch, "--data", "here")

    assert command.run(command.parser(None), refuse) == 1
    assert capsys.readouterr().err == "bench_some: here: is no folder\n"


def test_a_figure_that_is_kept_says_where_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of several runs names one commit; what was not measured again is not claimed for it."""
    path = tmp_path / "report.json"

    def measured(commit: str, **values: float) -> dict[str, tuple[float, str]]:
        monkeypatch.setattr(bench, "commit", lambda: commit)
        bench.update([bench.figure(name, [value], "s") for name, value in values.items()], path)
        report = msgspec.json.decode(path.read_bytes(), type=bench.Report)
        assert report.commit == commit
        return {figure.name: (figure.value, figure.commit) for figure in report.figures}

    assert measured("one", a=1.0, b=2.0) == {"a": (1.0, ""), "b": (2.0, "")}
    assert measured("two", b=3.0) == {"a": (1.0, "one"), "b": (3.0, "")}
    assert measured("three", c=4.0) == {"a": (1.0, "one"), "b": (3.0, "two"), "c": (4.0, "")}
    assert measured("two", a=5.0) == {"a": (5.0, ""), "b": (3.0, ""), "c": (4.0, "three")}
