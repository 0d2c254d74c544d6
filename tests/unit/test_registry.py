"""A version is written once, and anything that is not what its manifest says is refused."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from features.errors import ArtifactError, UsageError
from models import registry
from models.registry import MANIFEST_FILE, MODEL_FILE
from tests.registries import PROVENANCE


@pytest.fixture(scope="module")
def sealed(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed version, not to be changed."""
    folder = tmp_path_factory.mktemp("registry") / "drawn" / "1"
    shutil.copytree(small_model, folder)
    registry.seal(folder, PROVENANCE)
    return folder


@pytest.fixture
def folder(sealed: Path, tmp_path: Path) -> Path:
    """A sealed version of the test's own."""
    return Path(shutil.copytree(sealed, tmp_path / "drawn" / "1"))


def change_manifest(folder: Path, **changes: object) -> None:
    manifest = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes())
    (folder / MANIFEST_FILE).write_bytes(msgspec.json.encode(manifest | changes))


def test_sealed_version_is_what_it_says(sealed: Path) -> None:
    """The manifest lists every file but itself, and carries the provenance and the model's digest."""
    manifest = registry.verify(sealed)

    assert set(manifest.files) == {path.name for path in sealed.iterdir()} - {MANIFEST_FILE}
    assert manifest.files[MODEL_FILE].n_bytes == (sealed / MODEL_FILE).stat().st_size
    assert manifest.provenance == PROVENANCE
    assert manifest.id == "drawn/1"


def test_version_is_sealed_once(folder: Path) -> None:
    """A second seal is refused and changes nothing."""
    before = (folder / MANIFEST_FILE).read_bytes()

    with pytest.raises(UsageError, match="never changes"):
        registry.seal(folder, msgspec.structs.replace(PROVENANCE, seed=8))

    assert (folder / MANIFEST_FILE).read_bytes() == before


def test_interrupted_seal_can_be_repeated(folder: Path) -> None:
    """What a crash left of a manifest neither counts as one nor is listed."""
    (folder / MANIFEST_FILE).rename(folder / "manifest.json.tmp")
    with pytest.raises(ArtifactError, match="no sealed version"):
        registry.verify(folder)

    registry.seal(folder, PROVENANCE)

    assert registry.verify(folder).provenance == PROVENANCE


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "teacher.json").rename(outside)
    (folder / "teacher.json").symlink_to(outside)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda f: flip(f / "teacher.txt.gz"), "teacher.txt.gz: checksum differs"),
    "a cut": (lambda f: os.truncate(f / "teacher.json", 10), "teacher.json: 10 bytes, manifest.json says"),
    "a missing file": (lambda f: (f / "teacher.json").unlink(), "teacher.json: is missing"),
    "an extra file": (lambda f: (f / "notes").write_text("x"), "notes: is not listed"),
    "a hidden file": (lambda f: (f / ".notes").write_text("x"), "plain files of plain names"),
    "a folder": (lambda f: (f / "plots").mkdir(), "plots: a version holds plain files"),
    "a link": (link_out, "teacher.json: a version holds plain files"),
    "a pipe": (lambda f: os.mkfifo(f / "pipe"), "pipe: a version holds plain files"),
    "an oversized file": (lambda f: os.truncate(f / "teacher.json", registry.FILE_BYTES_MAX + 1), "over the limit"),
    "too many files": (lambda f: [(f / f"f{i}").touch() for i in range(registry.FILES_MAX)], "the limit is 64"),
    "no manifest": (lambda f: (f / MANIFEST_FILE).unlink(), "no sealed version"),
    "a cut manifest": (lambda f: os.truncate(f / MANIFEST_FILE, 100), "manifest.json: cannot be read"),
    "a huge manifest": (lambda f: os.truncate(f / MANIFEST_FILE, registry.MANIFEST_BYTES_MAX + 1), "over the limit"),
    "a manifest elsewhere": (
        lambda f: (f / MANIFEST_FILE).rename(f.parent / "m") and (f / MANIFEST_FILE).symlink_to(f.parent / "m"),
        "manifest.json: cannot be read",
    ),
    "a later manifest": (lambda f: change_manifest(f, format_version=2), "format version 2, this program reads 1"),
    "a path as a name": (
        lambda f: change_manifest(f, files={name: {"sha256": "", "n_bytes": 1} for name in (MODEL_FILE, "../x")}),
        "the name '../x'",
    ),
    "a path as a version": (lambda f: change_manifest(f, version="../1"), "the name '../1'"),
    "an unknown field": (lambda f: change_manifest(f, trusted=True), "unknown field `trusted`"),
    "no model listed": (lambda f: change_manifest(f, files={}), "must list model.falconet"),
    "another version": (lambda f: change_manifest(f, version="2"), "says drawn/2"),
    "another digest": (lambda f: change_manifest(f, digest="0" * 64), "says drawn/1 000"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(damage: str, folder: Path) -> None:
    """Whatever is not as sealed is refused by its name."""
    hurt, told = DAMAGE[damage]
    hurt(folder)

    with pytest.raises(ArtifactError, match=told):
        registry.verify(folder)


def test_unsound_model_is_not_sealed(folder: Path) -> None:
    """A folder whose model cannot be read becomes no version."""
    (folder / MANIFEST_FILE).unlink()
    flip(folder / MODEL_FILE)

    with pytest.raises(ArtifactError, match="checksum differs"):
        registry.seal(folder, PROVENANCE)

    assert not (folder / MANIFEST_FILE).exists()
