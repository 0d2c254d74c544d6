"""`falconet model`: what each command shows, and how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from features.errors import ArtifactError, UsageError
from models import registry
from service import cli
from tests import registries


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of three versions, the third worse; the first is champion."""
    root = tmp_path_factory.mktemp("registry")
    registries.add_version(root, "1", evaluation={})
    registries.add_version(root, "2", evaluation={"gain": 0.91}, seed=2)
    registries.add_version(root, "3", evaluation={"gain": 0.5}, seed=3)
    (root / "champion").write_text("drawn/1\n")
    return root


@pytest.fixture
def root(versions: Path, tmp_path: Path) -> Path:
    """A registry of the test's own."""
    return registries.copy(versions, tmp_path / "registry")


def run(root: Path, *arguments: str) -> Result:
    # Promotion measures, and this machine may be busy.
    slow = ["--latency-budget", "100"] if arguments[0] == "promote" else []
    return CliRunner().invoke(cli.app, ["model", *arguments, *slow, "--registry-dir", str(root)])


def as_json(result: Result) -> Any:
    return json.loads(result.stdout)


def test_list_shows_every_version(root: Path) -> None:
    """One line each, the champion marked, a damaged one with what is wrong, numbers to choose by."""
    (root / "drawn" / "3" / "teacher.json").unlink()

    result = run(root, "list")
    listed = as_json(run(root, "list", "--json"))

    assert result.exit_code == 0
    place, header, *lines = result.stdout.splitlines()
    assert place == f"registry {root}"
    assert [line.split()[:2] for line in lines[:1]] == [["*", "drawn/1"]]
    assert "2026-01-02" in lines[1]
    assert "0.910" in lines[1]
    assert lines[1].endswith("sealed")
    assert lines[2].endswith("teacher.json: is missing, manifest.json lists it")
    assert header.index("made") == lines[0].index("2026")
    assert listed["champion"] == "drawn/1"
    assert [entry["state"] for entry in listed["versions"]][:2] == ["sealed", "sealed"]
    assert listed["versions"][1]["bytes"] == (root / "drawn" / "2" / registry.MODEL_FILE).stat().st_size
    assert listed["versions"][1]["trees"] == 3


def test_show_tells_where_a_version_comes_from(root: Path) -> None:
    """Provenance, calibration, thresholds with how they were chosen, files with checksums, figures with intervals."""
    text = run(root, "show", "drawn/2").stdout
    facts = as_json(run(root, "show", "2", "--json"))

    manifest = registry.verify(root / "drawn" / "2")
    for expected in (manifest.digest, "d" * 64, "c" * 40, "n_trees=3", "lightgbm 4.7.0", "by hand", "prior 0.001"):
        assert expected in text
    for name, file in manifest.files.items():
        assert f"{file.sha256}" in text
        assert facts["files"][name] == {"sha256": file.sha256, "n_bytes": file.n_bytes}
    assert "0.910 [0.890, 0.930]" in text
    assert facts["figures"]["ROC AUC, all"]["value"] == 0.91
    assert facts["is_servable"]


def test_show_without_a_version_is_of_the_champion(root: Path) -> None:
    """The first line says so."""
    assert run(root, "show").stdout.splitlines()[0] == "drawn/1, champion"


def test_show_refuses_what_is_damaged(root: Path) -> None:
    """Nothing is shown of a version whose files are not as sealed."""
    with (root / "drawn" / "2" / "teacher.json").open("a") as file:
        file.write(" ")

    result = run(root, "show", "2")

    assert isinstance(result.exception, ArtifactError)
    assert result.stdout == ""


def test_promotion_and_rollback(root: Path) -> None:
    """Promoted, champion already, rolled back."""
    promoted = run(root, "promote", "2")
    again = run(root, "promote", "2")
    back = run(root, "rollback")

    assert [result.exit_code for result in (promoted, again, back)] == [0, 0, 0]
    assert promoted.stdout.startswith("champion is drawn/2, before: drawn/1\n")
    assert again.stdout.startswith("drawn/2 is champion already\n")
    assert back.stdout == "champion is drawn/1 again, before: drawn/2\n"


def test_refusal_ends_with_1_and_every_reason(root: Path) -> None:
    """As text and as JSON."""
    text = run(root, "promote", "3")
    told = run(root, "promote", "3", "--json")

    assert (text.exit_code, told.exit_code) == (1, 1)
    assert text.stdout.startswith("drawn/3 is refused, champion is still drawn/1\n")
    assert all(f"  {reason}\n" in text.stdout for reason in as_json(told)["refusals"])
    assert len(as_json(told)["refusals"]) == 8
    assert not as_json(told)["promoted"]


def test_force_needs_a_reason(root: Path) -> None:
    """Without one it is wrong usage."""
    assert isinstance(run(root, "promote", "3", "--force").exception, UsageError)

    forced = run(root, "promote", "3", "--force", "--reason", "a drill", "--json")

    assert forced.exit_code == 0
    assert as_json(forced)["promoted"]
    assert as_json(run(root, "rollback", "--json"))["to"] == "drawn/1"


def test_setting_names_the_registry(root: Path, tmp_path: Path) -> None:
    """`registry_dir` counts where no option is given, and must be a folder."""
    config = tmp_path / "settings.toml"
    config.write_text(f'registry_dir = "{root}"\n')

    shown = CliRunner().invoke(cli.app, ["model", "list", "--config", str(config)])

    assert shown.stdout.startswith(f"registry {root}\n")
    assert isinstance(run(tmp_path / "none", "list").exception, UsageError)


def test_evaluation_is_not_written_into_a_sealed_version(root: Path, tmp_path: Path) -> None:
    """`falconet evaluate` refuses such a folder before it reads anything."""
    arguments = ["evaluate", "--data", str(tmp_path / "none"), "--output", str(root / "drawn" / "1")]

    result = CliRunner().invoke(cli.app, arguments)

    assert isinstance(result.exception, UsageError)
    assert registry.verify(root / "drawn" / "1").version == "1"
