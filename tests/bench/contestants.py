"""Every way of scoring a row that `bench_models` compares, each given its rows in the form it likes best.

Choosing the columns and converting them to the type a runtime takes happens before the clock starts, except for our own
runtime, which takes the whole feature row as the service has it.
"""

import ctypes
import importlib.metadata
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import numpy as np
import onnxruntime
import tl2cgen
import treelite
from numpy.typing import NDArray

from features import schema
from models import compact, export, registry
from models.learning import trained_columns
from models.scorer import Scorer
from tests.bench import encoder, families
from tests.bench.comparison import OWN
from tests.bench.lightgbm_fast import FastCall
from tests.bench.lleaves_apart import Apart
from tests.bench.turns import BATCH, Calls

STUDENT, TEACHER = "falconet", "teacher"
FOREST, REGRESSION, ENCODER = "random forest", "logistic regression", "MiniLM + linear head"


class Contestant(NamedTuple):
    """A model in a runtime."""

    model: str
    runtime: str
    n_bytes: int
    """Of what must be kept to score: the model's file, text or library."""
    timed: Any
    """`Calls`, or what answers to the same `size` and `round`."""
    difference: float | None
    """Largest difference of a margin from the model's reference on the timed rows; None where it is the reference."""
    is_alone: bool = True
    """Bound to one core; False where the point is what threads do."""


class Rivals(NamedTuple):
    """Models of other families, trained for the comparison."""

    forest: Any
    regression: Any
    encoder: encoder.Classifier


class Loaded(NamedTuple):
    """What all contestants are made from."""

    folder: Path
    artifact: compact.Artifact
    scorer: Scorer
    teacher: registry.Teacher
    rows: NDArray[np.float32]
    """Shape (n, N_FEATURES): the rows that everybody scores."""

    @classmethod
    def of(cls, folder: Path, rows: NDArray[np.float32]) -> "Loaded":
        """Read a version's folder."""
        artifact = compact.read(folder / registry.MODEL_FILE)
        return cls(folder, artifact, Scorer(artifact), registry.Teacher.load(folder), rows)

    def columns(self) -> NDArray[np.int64]:
        """Return the columns that the student reads."""
        return np.array([schema.index(name) for name in self.artifact.header.features], dtype=np.int64)


def _calls(call: Callable[[Any], Any], inputs: NDArray[Any]) -> Calls:
    return Calls(call, [inputs[i : i + 1] for i in range(len(inputs))], inputs[:BATCH])


def _off(found: Any, reference: NDArray[np.float64]) -> float:
    return float(np.abs(np.asarray(found, dtype=np.float64).ravel() - reference).max())


def all_contestants(
    loaded: Loaded, rivals: Rivals, folder: Path, say: Callable[[str], None]
) -> tuple[list[Contestant], dict[str, str], list[str]]:
    """Return the contestants, versions of what runs them, and why any is missing."""
    found = [*teachers(loaded), *students(loaded, folder), *others(loaded, rivals)]
    versions = {
        name: importlib.metadata.version(name)
        for name in ("lightgbm", "numba", "numpy", "onnxruntime", "scikit-learn", "tl2cgen", "tokenizers", "treelite")
    }
    missing = []
    try:
        apart, lleaves_versions = lleaves(loaded, folder)
        found.insert(len(found) - 3, apart)
        versions |= lleaves_versions
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        missing.append(f"lleaves: {error}")
        say(f"not measured: {missing[-1]}")
    return found, dict(sorted(versions.items())), missing


def teachers(loaded: Loaded) -> list[Contestant]:
    """Return the large model by LightGBM's ways of calling it."""
    teacher, booster = loaded.teacher, loaded.teacher.booster
    columns = [schema.index(name) for name in booster.feature_name()]
    inputs = np.ascontiguousarray(loaded.rows[:, columns], dtype=np.float64)
    reference, fast = booster.predict(inputs, raw_score=True, num_threads=1), FastCall(booster)
    calls = {
        "Booster.predict, default threads": lambda rows: booster.predict(rows, raw_score=True),
        "Booster.predict, one thread": lambda rows: booster.predict(rows, raw_score=True, num_threads=1),
        "C API, single row fast": fast.rows,
    }
    return [
        Contestant(
            TEACHER,
            runtime,
            teacher.n_bytes,
            _calls(call, inputs),
            _off(call(inputs), reference) if call is fast.rows else None,
            is_alone="default" not in runtime,
        )
        for runtime, call in calls.items()
    ]


def students(loaded: Loaded, folder: Path) -> list[Contestant]:
    """Return the small model by our runtime and by others', compiled into a folder where they compile."""
    artifact, scorer = loaded.artifact, loaded.scorer
    reference = scorer.margins(loaded.rows)
    single = np.ascontiguousarray(loaded.rows[:, loaded.columns()])
    double = single.astype(np.float64)
    text = export.to_lightgbm_text(artifact)
    booster = lightgbm.Booster(model_str=text)
    fast = FastCall(booster)
    model = treelite.frontend.from_lightgbm(booster)

    def made(runtime: str, n_bytes: int, call: Callable[[Any], Any], inputs: NDArray[Any]) -> Contestant:
        return Contestant(STUDENT, runtime, n_bytes, _calls(call, inputs), _off(call(inputs), reference))

    def predict(rows: Any) -> Any:
        return booster.predict(rows, raw_score=True, num_threads=1)

    return [
        Contestant(STUDENT, OWN, artifact.n_bytes, _calls(scorer.margins, loaded.rows), None),
        made("LightGBM, one thread", len(text), predict, double),
        made("LightGBM's C API, single row fast", len(text), fast.rows, double),
        _onnx(loaded, single, reference),
        made("treelite GTIL", len(model.serialize_bytes()), _gtil(model), double),
        _tl2cgen(model, folder, double, reference),
        _generated_c(artifact, folder, single, reference),
    ]


def _gtil(model: Any) -> Callable[[Any], Any]:
    return lambda rows: treelite.gtil.predict(model, rows, nthread=1, pred_margin=True)


def _onnx(loaded: Loaded, inputs: NDArray[np.float32], reference: NDArray[np.float64]) -> Contestant:
    content = export.to_onnx(loaded.artifact)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def call(rows: Any) -> Any:
        return session.run(["margin"], {"features": rows})[0]

    off = _off(call(inputs), reference)
    return Contestant(STUDENT, "onnxruntime, one thread", len(content), _calls(call, inputs), off)


def _tl2cgen(model: Any, folder: Path, inputs: NDArray[np.float64], reference: NDArray[np.float64]) -> Contestant:
    library = folder / "tl2cgen.so"
    tl2cgen.export_lib(model, toolchain="gcc", libpath=library, params={"quantize": 1})
    predictor = tl2cgen.Predictor(library, nthread=1)

    def call(rows: Any) -> Any:
        return predictor.predict(tl2cgen.DMatrix(rows, dtype="float64"), pred_margin=True)

    off = _off(call(inputs), reference)
    return Contestant(STUDENT, "tl2cgen, gcc", library.stat().st_size, _calls(call, inputs), off)


def _generated_c(
    artifact: compact.Artifact, folder: Path, inputs: NDArray[np.float32], reference: NDArray[np.float64]
) -> Contestant:
    """Compile the exported file; a loop over a batch's rows is added, as a caller would write it."""
    source, library = folder / "falconet.c", folder / "falconet.so"
    loop = """
void margins(const float *rows, long n, double *out) {
    for (long i = 0; i < n; i++) out[i] = falconet_margin(rows + i * FALCONET_FEATURES);
}
"""
    source.write_text(export.to_c(artifact) + loop)
    subprocess.run(["gcc", "-O3", "-shared", "-fPIC", "-o", library, source, "-lm"], check=True)
    function = ctypes.CDLL(str(library)).margins
    function.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p]
    function.restype = None
    out = np.empty(len(inputs))
    address = out.ctypes.data

    def call(rows: Any) -> Any:
        function(rows.ctypes.data, len(rows), address)
        return out[: len(rows)]

    off = _off(call(inputs), reference)
    return Contestant(STUDENT, "generated C, gcc, by ctypes", library.stat().st_size, _calls(call, inputs), off)


def lleaves(loaded: Loaded, folder: Path) -> tuple[Contestant, dict[str, str]]:
    """Return the small model compiled by lleaves in a process of its own, with versions.

    Raises:
        RuntimeError: It cannot be had here.
    """
    inputs = np.ascontiguousarray(loaded.rows[:, loaded.columns()], dtype=np.float64)
    # It asks for the objective, which plays no part in a margin.
    text = export.to_lightgbm_text(loaded.artifact).replace("feature_names=", "objective=binary\nfeature_names=", 1)
    apart = Apart(folder, text, inputs)
    off = _off(apart.margins, loaded.scorer.margins(loaded.rows))
    return Contestant(STUDENT, "lleaves, one thread", apart.n_bytes, apart, off), apart.versions


def others(loaded: Loaded, rivals: Rivals) -> list[Contestant]:
    """Return the other families' models; whatever they do to a row is timed, the text of it included."""
    trained = np.ascontiguousarray(loaded.rows[:, trained_columns()])
    forest, regression, classifier = rivals
    return [
        Contestant(
            FOREST,
            "scikit-learn, one thread",
            len(pickle.dumps(forest)),
            _calls(lambda rows: families.margins(forest, rows), trained),
            None,
        ),
        Contestant(
            REGRESSION,
            "scikit-learn, one thread",
            len(pickle.dumps(regression)),
            _calls(lambda rows: families.margins(regression, rows), trained),
            None,
        ),
        Contestant(
            ENCODER, "onnxruntime, one thread", classifier.n_bytes, _calls(classifier.margins, loaded.rows), None
        ),
    ]
