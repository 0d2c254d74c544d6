"""Files that are replaced as a whole or not at all."""

import os
from pathlib import Path

import pytest

from features import durable


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replace_makes_and_replaces(tmp_path: Path) -> None:
    """A file that was not there is made, one that was is replaced, and nothing lies beside it."""
    path = tmp_path / "facts.json"
    for content in (b"first, and longer", b"second"):
        durable.replace(path, content)

        assert path.read_bytes() == content
        assert names(tmp_path) == ["facts.json"]


def test_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    """Until the block ends, a reader finds the old file."""
    path = tmp_path / "state"
    path.write_bytes(b"old")

    with durable.replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    """An error in the middle, or a stop, leaves the file as it was and nothing beside it."""
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def write() -> None:
        with durable.replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write()

    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state"]


def test_failed_sync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk does not confirm never gets the name."""
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        durable.replace(path, b"new")

    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state"]


def test_failed_rename_leaves_what_is_there(tmp_path: Path) -> None:
    """A folder of the name is refused, and the unfinished file goes."""
    (tmp_path / "state").mkdir()

    with pytest.raises(IsADirectoryError):
        durable.replace(tmp_path / "state", b"new")

    assert names(tmp_path) == ["state"]


def test_name_lasts_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is synced under the unfinished name, and the folder after the rename."""
    seen: list[tuple[bool, list[str]]] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        is_folder = Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path.resolve()
        seen.append((is_folder, names(tmp_path)))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    durable.replace(tmp_path / "state", b"new")

    assert seen == [(False, ["state.tmp"]), (True, ["state"])]


def test_left_behind_is_taken_over(tmp_path: Path) -> None:
    """What a kill left of an earlier, longer write does not show in the next."""
    (tmp_path / f"state{durable.SUFFIX}").write_bytes(b"longer than what follows")

    durable.replace(tmp_path / "state", b"new")

    assert (tmp_path / "state").read_bytes() == b"new"
    assert names(tmp_path) == ["state"]


def test_writers_of_one_file_keep_apart(tmp_path: Path) -> None:
    """Two that write at once under suffixes of their own both end whole, and the last one stays."""
    path = tmp_path / "state"

    with durable.replacing(path, suffix=".1.tmp") as first, durable.replacing(path, suffix=".2.tmp") as second:
        first.write(b"first")
        second.write(b"second, longer")

    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["state"]
