"""Where models live: `<root>/<name>/<version>/` holds a model, its teacher, the evaluation of both and a manifest.

A version is written once: `seal` lists each of its files with size and SHA-256 in `manifest.json`, beside where the
model comes from, and from then on the folder is what the manifest says or is refused. `<root>/champion` names the model
that is served unless the settings say otherwise, as `<name>/<version>`.
"""

import gzip
import hashlib
import os
import re
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features import durable, schema
from features.errors import ArtifactError, UsageError
from models import compact, signing
from models.signing import SIGNATURE_FILE, Keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from lightgbm import Booster

ARTIFACTS = Path(__file__).parent / "artifacts"
MODEL_FILE = "model.falconet"
TEACHER_FILE = "teacher.txt.gz"
TEACHER_FACTS_FILE = "teacher.json"
TEACHER_BYTES_MAX = 1 << 26
"""64 MiB of text: 1,500 trees of 63 leaves take 10 MB."""

CHAMPION_FILE = "champion"
ID_MAX = 241
"""Characters of `<name>/<version>`."""

MANIFEST_FILE = "manifest.json"
_UNFINISHED = f"{MANIFEST_FILE}{durable.SUFFIX}"
"""What a kill in the middle of sealing leaves behind."""
MANIFEST_VERSION = 1
MANIFEST_BYTES_MAX = 1 << 20
"""FILES_MAX names of 120 characters with their checksums are 14 KB; the rest is for the settings."""
FILES_MAX = 64
FILE_BYTES_MAX = 1 << 26
"""64 MiB for any one file of a version: the teacher, packed, is the largest with some 2 MB."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")
"""Of a model, a version and a file: no separator, no leading dot, nothing that a shell or a path reads as its own."""


class TeacherFacts(Struct, frozen=True, forbid_unknown_fields=True):
    """What must hold before a teacher's text is handed to LightGBM."""

    sha256: str
    """Of the text, unpacked."""

    schema: str
    slope: float
    """Of its calibration, at the same prior as the served model's."""

    intercept: float


class Teacher:
    """The large LightGBM model: never on the hot path, run in shadow and for comparison."""

    def __init__(self, booster: "Booster", facts: TeacherFacts, n_bytes: int) -> None:
        self.booster = booster
        self.n_bytes = n_bytes
        self.digest = facts.sha256
        self._facts = facts
        self._columns = np.array([schema.index(name) for name in booster.feature_name()], dtype=np.int64)

    @classmethod
    def load(cls, folder: Path) -> "Teacher":
        """Read the teacher of a model's folder.

        Raises:
            ArtifactError: A file is missing, damaged, too large, or of another feature schema.
        """
        from lightgbm import Booster  # A second of start-up that serving without a shadow never pays.

        path = folder / TEACHER_FILE
        try:
            facts = msgspec.json.decode((folder / TEACHER_FACTS_FILE).read_bytes(), type=TeacherFacts)
            with gzip.open(path) as file:
                text = file.read(TEACHER_BYTES_MAX + 1)
        except (OSError, EOFError, zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: cannot be read: {error}") from error
        if len(text) > TEACHER_BYTES_MAX:
            raise ArtifactError(f"{path}: over the limit of {TEACHER_BYTES_MAX} bytes unpacked")
        if hashlib.sha256(text).hexdigest() != facts.sha256:
            raise ArtifactError(f"{path}: checksum differs from {TEACHER_FACTS_FILE}, the file is damaged")
        if facts.schema != schema.FINGERPRINT:
            raise ArtifactError(f"{path}: feature schema {facts.schema}, this program has {schema.FINGERPRINT}")
        return cls(Booster(model_str=text.decode()), facts, len(text))

    def margins(self, rows: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.float64]:
        """Return each row's log-odds before calibration; by one thread, to leave the scorer the others."""
        margins: Any = self.booster.predict(rows[:, self._columns], raw_score=True, num_threads=threads)
        return np.asarray(margins, dtype=np.float64)

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return calibrated probabilities at the served model's prior."""
        return np.asarray(1.0 / (1.0 + np.exp(-(self._facts.slope * margins + self._facts.intercept))))


def write_teacher(folder: Path, booster: "Booster", *, slope: float, intercept: float) -> None:
    """Write a booster and what its reader checks; the same booster gives the same bytes."""
    text = booster.model_to_string(num_iteration=-1).encode()
    facts = TeacherFacts(hashlib.sha256(text).hexdigest(), schema.FINGERPRINT, slope, intercept)
    (folder / TEACHER_FILE).write_bytes(gzip.compress(text, mtime=0))
    (folder / TEACHER_FACTS_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(facts)) + b"\n")


class Provenance(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a model comes from: with the same of each, training gives the same model file."""

    data: str
    """SHA-256 over the training data."""

    commit: str
    seed: int
    settings: dict[str, bool | int | float | str | None]
    libraries: dict[str, str]
    made_at: str
    """ISO 8601 in UTC."""


class Sealed(Struct, frozen=True, forbid_unknown_fields=True):
    """A file as it was when its version was sealed."""

    sha256: str
    n_bytes: int


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a version holds."""

    format_version: int
    name: str
    version: str
    digest: str
    """Of the model's file, as it stands in each score."""

    files: dict[str, Sealed]
    """Every file of the folder but the manifest, by name."""

    provenance: Provenance

    @property
    def id(self) -> str:
        """`<name>/<version>`."""
        return f"{self.name}/{self.version}"


def seal(folder: Path, provenance: Provenance) -> Manifest:
    """Make a folder an immutable version: write the manifest of all the files it holds.

    Args:
        folder: Holds the model and whatever belongs to it, in plain files.
        provenance: Where the model comes from.

    Raises:
        UsageError: The folder is sealed already.
        ArtifactError: The model is unsound, or a file is none that a version may hold.
    """
    refuse_sealed(folder)
    artifact = compact.read(folder / MODEL_FILE)
    manifest = Manifest(
        format_version=MANIFEST_VERSION,
        name=artifact.header.name,
        version=artifact.header.version,
        digest=artifact.digest,
        files={name: _sealed(folder / name) for name in _names(folder) if name != _UNFINISHED},
        provenance=provenance,
    )
    durable.replace(folder / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    return manifest


def refuse_sealed(folder: Path) -> None:
    """Raise where writing into a folder would change a sealed version.

    Raises:
        UsageError: The folder is sealed.
    """
    if os.path.lexists(folder / MANIFEST_FILE):
        raise UsageError(f"{folder}: is sealed by its {MANIFEST_FILE}, a version never changes; write another one")


def sign(root: Path, folder: Path, key: "Ed25519PrivateKey") -> Manifest:
    """Write the signature of a version that is sound, in place of any other it has.

    Raises:
        ArtifactError: See `verify_version`.
        UsageError: The folder cannot be written.
    """
    manifest = verify_version(root, folder)
    try:
        durable.replace(folder / SIGNATURE_FILE, signing.sign(_content(folder / MANIFEST_FILE), key))
    except OSError as error:
        raise UsageError(f"{folder / SIGNATURE_FILE}: cannot be written: {error.strerror}") from error
    return manifest


def verify(folder: Path, keys: Keys | None = None) -> Manifest:
    """Return the manifest of a version whose files are all there, unchanged, and no other beside them.

    Args:
        folder: The version's.
        keys: One of them must have signed the manifest; None wants no signature.

    Raises:
        ArtifactError: A file is missing, damaged, not listed, too large or no plain file, the manifest is unsound, or
            not signed as it must be.
    """
    manifest = read_manifest(folder, keys)
    there = set(_names(folder)) - {MANIFEST_FILE, SIGNATURE_FILE}
    if missing := sorted(set(manifest.files) - there):
        raise ArtifactError(f"{folder / missing[0]}: is missing, {MANIFEST_FILE} lists it")
    if extra := sorted(there - set(manifest.files)):
        raise ArtifactError(f"{folder / extra[0]}: is not listed in {MANIFEST_FILE}")
    for name, sealed in manifest.files.items():
        found = _sealed(folder / name)
        if found.n_bytes != sealed.n_bytes:
            raise ArtifactError(f"{folder / name}: {found.n_bytes} bytes, {MANIFEST_FILE} says {sealed.n_bytes}")
        if found.sha256 != sealed.sha256:
            raise ArtifactError(f"{folder / name}: checksum differs from {MANIFEST_FILE}, the file is damaged")
    artifact = compact.read(folder / MODEL_FILE)
    said = f"{manifest.id} {manifest.digest}"
    held = f"{artifact.header.name}/{artifact.header.version} {artifact.digest}"
    if held != said:
        raise ArtifactError(f"{folder / MANIFEST_FILE}: says {said}, {MODEL_FILE} is {held}")
    return manifest


def read_manifest(folder: Path, keys: Keys | None = None) -> Manifest:
    """Return a version's manifest without looking at the files it lists.

    Raises:
        ArtifactError: It is missing, unsound, names what no version may hold, or none of the keys signed it.
    """
    path = folder / MANIFEST_FILE
    content = _content(path)
    if keys is not None:
        # Before anything is read out of it.
        keys.check(content, _signature(folder), path)
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from error
    if manifest.format_version != MANIFEST_VERSION:
        raise ArtifactError(f"{path}: format version {manifest.format_version}, this program reads {MANIFEST_VERSION}")
    for name in (manifest.name, manifest.version, *manifest.files):
        if not NAME.fullmatch(name):
            raise ArtifactError(f"{path}: the name {name!r} is none that a version may hold")
    if MODEL_FILE not in manifest.files or {MANIFEST_FILE, SIGNATURE_FILE} & set(manifest.files):
        raise ArtifactError(f"{path}: must list {MODEL_FILE}, and neither itself nor {SIGNATURE_FILE}")
    return manifest


def _content(path: Path) -> bytes:
    """Return a manifest's bytes."""
    try:
        with _opened(path) as file:
            content: bytes = file.read(MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: is missing, the folder is no sealed version") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from error
    if len(content) > MANIFEST_BYTES_MAX:
        raise ArtifactError(f"{path}: over the limit of {MANIFEST_BYTES_MAX} bytes")
    return content


def _signature(folder: Path) -> bytes | None:
    """Return what a version's signature file holds, None where there is none."""
    path = folder / SIGNATURE_FILE
    try:
        with _opened(path) as file:
            content: bytes = file.read(signing.SIGNATURE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from error
    return content


def _names(folder: Path) -> list[str]:
    """Return the files of a folder in order, refusing what is no plain file of a plain name."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be read: {error.strerror}") from error
    if len(entries) > FILES_MAX + 2:
        raise ArtifactError(
            f"{folder}: {len(entries)} files, the limit is {FILES_MAX}, {MANIFEST_FILE} and {SIGNATURE_FILE}"
        )
    for entry in entries:
        if not entry.is_file(follow_symlinks=False) or not NAME.fullmatch(entry.name):
            raise ArtifactError(f"{folder / entry.name}: a version holds plain files of plain names only")
    return [entry.name for entry in entries]


def _sealed(path: Path) -> Sealed:
    try:
        with _opened(path) as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes > FILE_BYTES_MAX:
                raise ArtifactError(f"{path}: {n_bytes} bytes, over the limit of {FILE_BYTES_MAX}")
            return Sealed(hashlib.file_digest(file, "sha256").hexdigest(), n_bytes)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error


def _opened(path: Path) -> Any:
    """Open a plain file, never what a link points to; without waiting, should it be a pipe."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ArtifactError(f"{path}: is no plain file")
    return os.fdopen(file, "rb")


def champion_id(root: Path) -> str | None:
    """Return what `champion` names, as `<name>/<version>`; None where no champion was ever named.

    Raises:
        ArtifactError: The file cannot be read or names no version.
    """
    place = root / CHAMPION_FILE
    try:
        with _opened(place) as file:
            name = str(file.read(2 * ID_MAX), "utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{place}: cannot be read: {error}") from error
    if not is_id(name):
        raise ArtifactError(f"{place}: holds {name!r}, expected <name>/<version>")
    return name


def is_id(text: str) -> bool:
    """Say whether a text is spelt as `<name>/<version>`."""
    parts = text.split("/")
    return len(parts) == 2 and all(NAME.fullmatch(part) for part in parts)


def champion(root: Path = ARTIFACTS) -> Path:
    """Return the folder of the model that is served by default.

    Raises:
        ArtifactError: No champion is named, or its folder lacks the model.
    """
    name = champion_id(root)
    if name is None:
        raise ArtifactError(f"{root / CHAMPION_FILE}: is missing, no model was promoted in this registry")
    folder = root / name
    if not (folder / MODEL_FILE).is_file():
        raise ArtifactError(f"{root / CHAMPION_FILE}: names {name}, but {folder / MODEL_FILE} is not a file")
    return folder


def root_folder(setting: str) -> Path:
    """Return the registry's folder for the setting `registry_dir`: empty for the packaged one."""
    return Path(setting) if setting else ARTIFACTS


def model_path(setting: str, registry_dir: str = "", keys: Keys | None = None) -> Path:
    """Return the model's file for a setting: empty for the champion, else a version of the registry or a path.

    A version, and a path to a sealed folder, is verified whole; a path to anything else has its model's own checksum,
    and is refused where a signature is wanted.

    Args:
        setting: `<name>/<version>` where the registry has it, else a model's folder or file.
        registry_dir: The setting of this name.
        keys: One of them must have signed the version; None wants no signature.

    Raises:
        ArtifactError: The champion is asked for, and there is none; or the version is not as it was sealed or signed.
    """
    root = root_folder(registry_dir)
    if not setting or (is_id(setting) and (root / setting / MODEL_FILE).is_file()):
        folder = root / setting if setting else champion(root)
        verify_version(root, folder, keys)
        return folder / MODEL_FILE
    path = Path(setting)
    if not path.is_dir():
        if keys is not None:
            raise ArtifactError(f"{path}: is no sealed version, and model_keys wants a signed one: name its folder")
        return path
    if keys is not None or os.path.lexists(path / MANIFEST_FILE):
        verify(path, keys)
    return path / MODEL_FILE


def packaged(root: Path = ARTIFACTS) -> list[Path]:
    """Return the folders of all models of a registry, in order of name and version, numbers by their value."""
    return sorted((path.parent for path in root.glob(f"*/*/{MODEL_FILE}")), key=_in_order)


def find(root: Path, wanted: str) -> Path:
    """Return the folder of a version, named in full or by a version that only one name has.

    Raises:
        UsageError: The registry has none, or several.
    """
    at_hand = {f"{folder.parent.name}/{folder.name}": folder for folder in packaged(root)}
    found = [name for name, folder in at_hand.items() if wanted in (name, folder.name)]
    if len(found) == 1:
        return at_hand[found[0]]
    if found:
        raise UsageError(f"version {wanted!r} is not unique in {root}: {', '.join(found)}")
    raise UsageError(f"{root} has no version {wanted!r}; it has {', '.join(at_hand) or 'none'}")


def verify_version(root: Path, folder: Path, keys: Keys | None = None) -> Manifest:
    """Return the manifest of a version that is sound and lies in the registry under its own name.

    Raises:
        ArtifactError: See `verify`; or the folder is linked from elsewhere, or has another name than its model.
    """
    manifest = verify(folder, keys)
    if folder.resolve() != root.resolve() / manifest.name / manifest.version:
        raise ArtifactError(f"{folder}: is {manifest.id} by its {MANIFEST_FILE}, and must lie at that place in {root}")
    return manifest


def _in_order(folder: Path) -> tuple[object, ...]:
    parts = re.split(r"(\d+)", folder.name)
    return folder.parent.name, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
