"""Where models live: `artifacts/<name>/<version>/` holds a model, its teacher, and the evaluation of both.

`artifacts/champion` names the model that is served unless the settings say otherwise, as `<name>/<version>`.
"""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features import schema
from features.errors import ArtifactError

if TYPE_CHECKING:
    from lightgbm import Booster

ARTIFACTS = Path(__file__).parent / "artifacts"
MODEL_FILE = "model.falconet"
TEACHER_FILE = "teacher.txt.gz"
TEACHER_FACTS_FILE = "teacher.json"
TEACHER_BYTES_MAX = 1 << 26
"""64 MiB of text: 1,500 trees of 63 leaves take 10 MB."""


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


def champion(artifacts: Path = ARTIFACTS) -> Path:
    """Return the folder of the model that is served by default.

    Raises:
        ArtifactError: No champion is named, or its folder lacks the model.
    """
    place = artifacts / "champion"
    try:
        name = place.read_text().strip()
    except OSError as error:
        raise ArtifactError(f"{place}: cannot be read: {error.strerror}") from error
    parts = name.split("/")
    if len(parts) != 2 or not all(part and part[0] != "." for part in parts):
        raise ArtifactError(f"{place}: holds {name!r}, expected <name>/<version>")
    folder = artifacts.joinpath(*parts)
    if not (folder / MODEL_FILE).is_file():
        raise ArtifactError(f"{place}: names {name}, but {folder / MODEL_FILE} is not a file")
    return folder


def model_path(setting: str) -> Path:
    """Return the model's file for the setting `model`: empty for the champion, else a file or a model's folder."""
    if not setting:
        return champion() / MODEL_FILE
    path = Path(setting)
    return path / MODEL_FILE if path.is_dir() else path


def packaged(artifacts: Path = ARTIFACTS) -> list[Path]:
    """Return the folders of all models at hand, in order of name and version."""
    return sorted(path.parent for path in artifacts.glob(f"*/*/{MODEL_FILE}"))
