"""What `check` says of the models, without a broker."""

from pathlib import Path

import pytest

from features.errors import ArtifactError
from service import check
from service.settings import Settings
from tests import registries


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of two versions, the first is champion."""
    root = tmp_path_factory.mktemp("registry")
    registries.add_version(root, "1")
    registries.add_version(root, "2", seed=2)
    (root / "champion").write_text("drawn/1\n")
    return root


def lines(**settings: object) -> dict[str, str]:
    found = check.run(Settings(**settings), is_offline=True)  # type: ignore[arg-type]
    return {line.split()[0]: line for line in found}


def test_served_version_is_vouched_for(versions: Path) -> None:
    """Its manifest says what it holds and where it comes from."""
    said = lines(registry_dir=str(versions))

    assert said["model"].startswith("model     drawn 1, ")
    assert said["registry"] == "registry  drawn/1, 3 files as sealed, made 2026-01-02 at commit cccccccccccc"
    assert "candidate" not in said


def test_candidate_is_checked_too(versions: Path, tmp_path: Path) -> None:
    """A candidate that cannot be used fails the check, as it would keep `serve` from starting."""
    said = lines(registry_dir=str(versions), candidate_model="drawn/2")
    assert said["candidate"].startswith("candidate drawn 2, ")

    root = registries.copy(versions, tmp_path / "registry")
    (root / "drawn" / "2" / "teacher.json").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        lines(registry_dir=str(root), candidate_model="drawn/2")


def test_model_outside_of_a_registry_is_named(small_model: Path) -> None:
    """Only its own checksum can be verified."""
    said = lines(model=str(small_model))

    assert said["registry"] == f"registry  not used: {small_model / 'model.falconet'} belongs to no sealed version"


def test_champion_that_is_not_as_sealed_fails(versions: Path, tmp_path: Path) -> None:
    """Another file beside the model is enough."""
    root = registries.copy(versions, tmp_path / "registry")
    (root / "drawn" / "1" / "notes").write_text("x")

    with pytest.raises(ArtifactError, match="notes: is not listed"):
        lines(registry_dir=str(root))


def test_offline_leaves_nodes_out(small_model: Path) -> None:
    """So that an installation can be tried anywhere."""
    assert "node" not in lines(model=str(small_model), rpc_urls=("http://127.0.0.1:1",))
