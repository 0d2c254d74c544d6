"""Files made to harm: settings, lists, artefacts and saved states are refused with a clear error, and quickly.

Each is handed to the same reader as the real ones. A refusal is one of the product's own errors that names the file:
whatever else comes out would be a traceback at start, a hang, or a process that runs out of memory.
"""

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from features import screening, table, transaction
from features.accounts import Accounts
from features.errors import ArtifactError, FalconetError, ScreeningError, StateError, UsageError
from models import compact, registry
from models.registry import Teacher
from service import settings, simulator, snapshot
from service.codec import Decoder
from service.snapshot import Arrays
from tests import registries


class Exploit:
    """Unpickled, it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mknod, (str(self.mark),)


def pickled(folder: Path) -> bytes:
    return pickle.dumps(Exploit(folder / "exploited"))


READERS: dict[str, tuple[str, Callable[[Path], object], type[FalconetError]]] = {
    "settings": ("falconet.toml", lambda path: settings.load(config=path, environment={}), UsageError),
    "secret": (
        "password",
        lambda path: settings.load(environment={"FALCONET_SASL_PASSWORD_FILE": str(path)}),
        UsageError,
    ),
    "list": ("list.csv", lambda path: screening.read([path]), ScreeningError),
    "model": ("model.falconet", compact.read, ArtifactError),
    "manifest": ("manifest.json", lambda path: registry.read_manifest(path.parent), ArtifactError),
    "champion": ("champion", lambda path: registry.champion_id(path.parent), ArtifactError),
    "state": (snapshot.name(1), lambda path: load_state(path.parent), StateError),
}
STREAM = snapshot.Stream(cluster="c", topic="t", n_partitions=1)


def load_state(folder: Path, accounts: Accounts | None = None) -> object:
    return snapshot.load(folder, STREAM, [accounts or Accounts(accounts_max=64, pairs_max=64)])


CONTENTS: dict[str, Callable[[Path], bytes]] = {
    "a pickle": pickled,
    "zeros": lambda folder: bytes(10_000),
    "not UTF-8": lambda folder: b"\xff\xfe" * 500,
    "brackets": lambda folder: b"a = " + b"[" * 60_000,
    "digits": lambda folder: b"partitions = " + b"9" * 10_000,
    "a zip": lambda folder: zipped({"other": b"x"}),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("kind", READERS)
def test_foreign_content_is_refused(kind: str, content: str, tmp_path: Path) -> None:
    """Whatever stands in the file, it is told as what it should have been; a pickle is never loaded."""
    name, read, error = READERS[kind]
    (tmp_path / name).write_bytes(CONTENTS[content](tmp_path))

    with pytest.raises(error):
        read(tmp_path / name)
    assert not (tmp_path / "exploited").exists()


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_plain_file_is_refused_without_waiting(kind: str, tmp_path: Path) -> None:
    """A folder, and a pipe that nobody writes to, in the place of a file."""
    name, read, error = READERS[kind]
    (tmp_path / "folder" / name).mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / name)

    for place in ("folder", "pipe"):
        with pytest.raises(error):
            read(tmp_path / place / name)


@pytest.mark.parametrize("kind", READERS)
def test_oversized_file_is_refused(kind: str, tmp_path: Path) -> None:
    """A file of 3 GiB, which takes no room on the disk, is refused before it is read into memory."""
    name, read, error = READERS[kind]
    with (tmp_path / name).open("wb") as file:
        file.truncate(3 << 30)

    with pytest.raises(error):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "[[a]]\nb = 1",
        'group_id = "a"\ngroup_id = "b"',
        "group_id = 1979-05-27T07:32:00Z",
        "metrics_port = 9223372036854775808",
        "poll_seconds = nan",
        'state_dir = "a\\u0000b"',
        "screening_lists = [[[1]]]",
        'screening_lists = "' + "a" * 60_000 + '"',
        "__class__ = 1",
    ],
)
def test_hostile_settings_are_refused(text: str, tmp_path: Path) -> None:
    """Well-formed TOML that means none of our settings is refused by its name or its range."""
    (tmp_path / "falconet.toml").write_text(text)

    with pytest.raises(UsageError):
        settings.load(config=tmp_path / "falconet.toml", environment={})


@pytest.mark.parametrize(
    "lines",
    [
        "0x" + "a" * 40 + ",sanctioned," + "9" * 5_000,
        "0x" + "a" * 40 + "," + "x" * 200_000 + ",1",
        "0x" + "a" * 40 + "," + "x" * 65 + ",1",
        "0x" + "a" * 40 + ",sanc\x1b[31m,1",
        "0x" + "a" * 40 + ",sanctioned,-1",
        "0x" + "а" * 40 + ",sanctioned,1",
        "0x" + "a" * 39 + "\x00,sanctioned,1",
        '"0x' + "a" * 300_000,
        "\n".join(f"0x{i:040x},list {i},1" for i in range(17)),
    ],
    ids=["digits", "field", "name", "escape", "negative", "cyrillic", "nul", "unclosed", "lists"],
)
def test_hostile_list_is_refused(lines: str, tmp_path: Path) -> None:
    """Numbers, names and fields without end, letters that only look right, control characters, too many lists."""
    (tmp_path / "list.csv").write_text("address,list,known_from\n" + lines + "\n", encoding="utf-8")

    with pytest.raises(ScreeningError):
        screening.read([tmp_path / "list.csv"])


@pytest.mark.parametrize(
    "champion", ["../drawn/1", "/etc/passwd", "drawn/../drawn/1", "drawn/1/..", "drawn\\1", "drawn/.1", ""]
)
def test_champion_is_no_path(champion: str, tmp_path: Path) -> None:
    """Only `<name>/<version>` of plain names is followed."""
    registries.add_version(tmp_path, "1", has_teacher=False)
    (tmp_path / "champion").write_text(champion)

    with pytest.raises(ArtifactError, match="expected <name>/<version>"):
        registry.champion(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", ".hidden", "-rf", "a\x00b", "x" * 121])
def test_manifest_names_plain_files_only(name: str, tmp_path: Path) -> None:
    """A manifest that lists a path elsewhere is refused before any of its files is opened."""
    registries.add_version(tmp_path, "1", has_teacher=False)
    folder = tmp_path / "drawn" / "1"
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    manifest["files"][name] = {"sha256": "0" * 64, "n_bytes": 1}
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))

    with pytest.raises(ArtifactError, match="is none that a version may hold"):
        registry.verify(folder)


def test_large_model_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    """80 KB of gzip that hold 80 MB are read to the limit, not to the end; LightGBM never sees them."""
    import gzip

    registries.add_version(tmp_path, "1")
    folder = tmp_path / "drawn" / "1"
    (folder / registry.TEACHER_FILE).write_bytes(gzip.compress(bytes(registry.TEACHER_BYTES_MAX + 1), 1))

    with pytest.raises(ArtifactError, match="over the limit"):
        Teacher.load(folder)


def zipped(members: dict[str, bytes]) -> bytes:
    """Return a zip file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


class Forged:
    """A part of the past that saves what it is told to."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def arrays(self) -> Arrays:
        return self._arrays

    def restore(self, arrays: Arrays) -> None:
        raise AssertionError(arrays)


@pytest.fixture(scope="module")
def sound() -> Arrays:
    """Return the arrays of a sound past of some accounts."""
    accounts = Accounts(accounts_max=64, pairs_max=64)
    decode = Decoder(chain_id=1, message_bytes_max=100_000).decode
    accounts.score_rows(transaction.records([transaction.pack(decode(value)) for value in simulator.messages(7, 40)]))
    return {name: array.copy() for name, array in accounts.arrays().items()}


def as_state(folder: Path, arrays: Arrays) -> Path:
    header = snapshot.header_of(STREAM, offsets={0: 40}, unsettled=[])
    snapshot.save(folder / snapshot.name(1), header, [Forged(arrays)])
    return folder


def test_sound_state_is_read(sound: Arrays, tmp_path: Path) -> None:
    """What the tests below spoil is sound before."""
    assert load_state(as_state(tmp_path, sound)) is not None


SPOILT: dict[str, Callable[[Arrays], Arrays]] = {
    "an array missing": lambda sound: {name: array for name, array in sound.items() if name != "slots"},
    "an array of other numbers": lambda sound: sound | {"accounts": sound["accounts"].view(np.uint32)},
    "an array of another shape": lambda sound: sound | {"accounts": sound["accounts"][:, :-1]},
    "no counters": lambda sound: sound | {"meta": sound["meta"][:0]},
    "an index beyond the accounts": lambda sound: (
        sound | {"slots": np.where(sound["slots"] > 0, sound["slots"] | np.uint64(0xFFFFFFF), np.uint64(0))}
    ),
    "an index of one account for all": lambda sound: sound | {"slots": sound["slots"] & np.uint64(0xFFFFFFFF00000001)},
    "an index moved by one": lambda sound: sound | {"slots": np.roll(sound["slots"], 1)},
    "other accounts": lambda sound: sound | {"accounts": np.roll(sound["accounts"], 1, axis=0)},
    "counters beyond the table": lambda sound: (
        sound | {"meta": np.where(np.arange(len(sound["meta"])) == table.HAND, 1 << 62, sound["meta"])}
    ),
    "counters below zero": lambda sound: (
        sound | {"meta": np.where(np.arange(len(sound["meta"])) == table.HORIZON, -1, sound["meta"])}
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_hostile_state_is_refused_and_leaves_the_past_alone(kind: str, sound: Arrays, tmp_path: Path) -> None:
    """The kernel follows the saved index without looking, so what it could not follow is refused before."""
    accounts = Accounts(accounts_max=64, pairs_max=64)
    folder = as_state(tmp_path, SPOILT[kind](sound))

    with pytest.raises(StateError, match=re.escape(snapshot.name(1))):
        load_state(folder, accounts)
    assert accounts.n_accounts == 0
