"""The exported forms are the runtime's function: C by gcc, ONNX by onnxruntime, LightGBM's text by LightGBM."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lightgbm as lgb
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from features import schema
from features.errors import UsageError
from models import compact, export, registry
from models.compact import Artifact
from models.scorer import Scorer
from service import cli
from tests.boosters import drawn_rows, header, trained, write_model

ENDS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38], dtype=np.float32)


@pytest.fixture(scope="module", params=["served", "no NaN seen", "stumps"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model of the size that is served, one whose NaN follow 0, and one whose trees are mostly leaves."""
    booster = {
        "served": lambda: trained(n_trees=100),
        "no NaN seen": lambda: trained(n_trees=20, use_missing=False),
        "stumps": lambda: trained(n_trees=8, min_gain_to_split=120.0),
    }[request.param]()
    path = tmp_path_factory.mktemp("model") / "model.falconet"
    write_model(path, booster)
    return compact.read(path)


@pytest.fixture(scope="module")
def rows(artifact: Artifact) -> NDArray[np.float32]:
    """Rows of drawn values, and rows of thresholds, their neighbours and the ends of the floats."""
    rng = np.random.default_rng(2)
    rows = drawn_rows(1_500, seed=21)
    for i, name in enumerate(artifact.header.features):
        at = compact.edge(artifact.trees.threshold[artifact.trees.feature == i])
        with np.errstate(over="ignore"):
            beside = [np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(-np.inf))]
        rows[500:, schema.index(name)] = rng.choice(np.concatenate([at, *beside, ENDS]), size=1_000)
    return rows


def read_columns(artifact: Artifact, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the columns that the model reads, in the header's order."""
    return np.ascontiguousarray(rows[:, [schema.index(name) for name in artifact.header.features]])


def compiled(text: str, folder: Path, *flags: str) -> ctypes.CDLL:
    """Compile a C file with every warning an error, and load it."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    (folder / "model.c").write_text(text)
    checks = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    subprocess.run([gcc, *checks, *flags, "-fPIC", "-c", "model.c"], cwd=folder, check=True)
    # Apart: linked with -Ofast, a library makes the whole process flush subnormal numbers.
    subprocess.run([gcc, "-shared", "-o", "model.so", "model.o", "-lm"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "model.so"))
    for name in ("falconet_margin", "falconet_probability"):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_double, [ctypes.POINTER(ctypes.c_float)]
    return library


def called(function: Callable[[object], float], columns: NDArray[np.float32]) -> NDArray[np.float64]:
    pointer = ctypes.POINTER(ctypes.c_float)
    return np.array([function(row.ctypes.data_as(pointer)) for row in columns])


@pytest.mark.parametrize("flag", ["-O0", "-O3", "-Ofast"])
def test_c_file_is_the_runtime_to_the_last_bit(
    artifact: Artifact, rows: NDArray[np.float32], tmp_path: Path, flag: str
) -> None:
    """gcc's margins are ours bit by bit, also where it may reorder floats; probabilities by at most an ulp of exp."""
    scorer, columns = Scorer(artifact), read_columns(artifact, rows)

    library = compiled(export.to_c(artifact), tmp_path, flag)

    margins = scorer.margins(rows)
    assert called(library.falconet_margin, columns).tolist() == margins.tolist()
    probabilities = called(library.falconet_probability, columns)
    np.testing.assert_allclose(probabilities, scorer.probabilities(margins), rtol=1e-15, atol=0)


def test_c_file_names_what_it_holds(artifact: Artifact) -> None:
    """A reader of the file finds the digest, the schema and each feature with its place; no text ends the comment."""
    hostile = artifact._replace(header=_named(artifact, "a*/ int main(){} /*\n#include <x>"))

    text = export.to_c(hostile)

    assert artifact.digest in text
    assert schema.FINGERPRINT in text
    for i, name in enumerate(artifact.header.features):
        assert f" * {i:2d} {name}\n" in text
    assert text.index("*/") == text.index(" */\n#include <math.h>") + 1


def _named(artifact: Artifact, name: str) -> compact.Header:
    import msgspec

    return msgspec.structs.replace(artifact.header, name=name)


def test_onnx_is_the_runtime(artifact: Artifact, rows: NDArray[np.float32]) -> None:
    """onnxruntime's margins are ours bit by bit; its probabilities differ by at most one float32 ulp."""
    scorer, columns = Scorer(artifact), read_columns(artifact, rows)
    content = export.to_onnx(artifact)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    for n in (1, 7, len(rows)):
        margin, probability = session.run(["margin", "probability"], {"features": columns[:n]})

        expected = scorer.margins(rows[:n])
        assert margin[:, 0].tolist() == expected.tolist()
        np.testing.assert_array_max_ulp(probability[:, 0], scorer.probabilities(expected).astype(np.float32), 1)


def test_onnx_names_its_model(artifact: Artifact) -> None:
    """Digest, schema and the order of the features travel with the file."""
    model = onnx.load_from_string(export.to_onnx(artifact))

    facts = {fact.key: fact.value for fact in model.metadata_props}
    assert facts["digest"] == artifact.digest
    assert facts["schema"] == artifact.header.schema
    assert facts["features"].split() == artifact.header.features


def test_lightgbm_text_is_the_runtime(artifact: Artifact, rows: NDArray[np.float32]) -> None:
    """LightGBM's margins are the same multiples of the scale; its own sum is off by rounding alone.

    LightGBM reads values of magnitude 1e-35 and below as 0, so those stand as 0 here.
    """
    scorer, scale = Scorer(artifact), artifact.header.leaf_scale
    rows = np.where(np.abs(rows) <= 1e-35, np.float32(0), rows)

    booster = lgb.Booster(model_str=export.to_lightgbm_text(artifact))
    margins = np.asarray(booster.predict(read_columns(artifact, rows)))

    assert booster.feature_name() == artifact.header.features
    ours = scorer.margins(rows)
    assert np.rint(margins / scale).tolist() == np.rint(ours / scale).tolist()
    np.testing.assert_allclose(margins, ours, rtol=0, atol=1e-9)


def test_lightgbm_text_comes_back_as_the_same_model(artifact: Artifact) -> None:
    """Read back, trees and covers are what they were."""
    booster = lgb.Booster(model_str=export.to_lightgbm_text(artifact))

    trees, names, scale = compact.from_booster(booster, artifact.header.features)

    assert names == artifact.header.features
    ratio = artifact.header.leaf_scale / scale
    for field, array in trees._asdict().items():
        expected = np.rint(artifact.trees.leaf * ratio) if field == "leaf" else getattr(artifact.trees, field)
        np.testing.assert_array_equal(array, expected)


def test_contributions_are_lightgbms(artifact: Artifact, rows: NDArray[np.float32]) -> None:
    """Shapley values of the integer model equal `pred_contrib` of the float model, thresholds and NaN included."""
    scorer = Scorer(artifact)
    rows = np.where(np.abs(rows) <= 1e-35, np.float32(0), rows)[450:650]
    booster = lgb.Booster(model_str=export.to_lightgbm_text(artifact))
    expected = np.asarray(booster.predict(read_columns(artifact, rows), pred_contrib=True))
    columns = [schema.index(name) for name in artifact.header.features]

    contributions = np.array([scorer.contributions(row) for row in rows])

    np.testing.assert_allclose(contributions[:, columns], expected[:, :-1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(contributions.sum(axis=1) + expected[:, -1], scorer.margins(rows), rtol=0, atol=1e-6)
    assert not np.delete(contributions, columns, axis=1).any()


def test_thresholds_at_the_ends_of_the_floats_are_kept(tmp_path: Path) -> None:
    """Splits at both infinities, the largest floats and around 0 say the same in all forms, -0.0 and NaN included."""
    keys = np.array([0x007F, 0x0080, 0x7FFE, 0x7FFF, 0x8000, 0xFF7F, 0xFF80], dtype=np.uint16)
    n = len(keys)
    trees = compact.Trees(
        n_splits=np.ones(2 * n, dtype=np.uint8),
        feature=np.zeros(2 * n, dtype=np.uint8),
        threshold=np.tile(keys, 2),
        left=np.full(2 * n, -1, dtype=np.int8),
        right=np.full(2 * n, -2, dtype=np.int8),
        unknown_left=np.repeat(np.array([0, 1], dtype=np.uint8), n),
        # Each split a bit of the sum: it says which way every one of them went.
        leaf=np.stack([np.zeros(2 * n), 2.0 ** np.arange(2 * n)], axis=1).ravel().astype(np.int16),
        cover=np.ones(4 * n, dtype=np.uint16),
    )
    compact.write(tmp_path / "model", header(trees, [schema.FEATURES[0].name], 1.0), trees)
    artifact = compact.read(tmp_path / "model")
    edges = compact.edge(keys)
    with np.errstate(over="ignore"):
        beside = [np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges, np.float32(-np.inf))]
    values = np.concatenate([edges, *beside, ENDS])[:, None]
    rows = np.zeros((len(values), schema.N_FEATURES), dtype=np.float32)
    rows[:, :1] = values
    expected = [
        sum(
            (0 if (np.isnan(x) and way) or x <= edge else 1 << (i + way * n))
            for way in (0, 1)
            for i, edge in enumerate(edges)
        )
        for x in values[:, 0]
    ]

    assert Scorer(artifact).margins(rows).tolist() == expected
    assert [Scorer(artifact).margins(row[None])[0] for row in rows] == expected
    library = compiled(export.to_c(artifact), tmp_path, "-O2")
    assert called(library.falconet_margin, values).tolist() == expected
    session = onnxruntime.InferenceSession(export.to_onnx(artifact), providers=["CPUExecutionProvider"])
    assert session.run(["margin"], {"features": values})[0][:, 0].tolist() == expected
    booster = lgb.Booster(model_str=export.to_lightgbm_text(artifact))
    is_tiny = (np.abs(values[:, 0]) <= 1e-35) & (values[:, 0] != 0)
    assert np.asarray(booster.predict(values))[~is_tiny].tolist() == np.array(expected)[~is_tiny].tolist()


@pytest.mark.parametrize("form", ["c", "onnx", "lightgbm"])
def test_command_writes_the_champion(form: str, tmp_path: Path) -> None:
    """`falconet model export` writes each form of the champion, or of the model asked for, and says what it wrote."""
    artifact = compact.read(registry.champion() / registry.MODEL_FILE)
    write = {"c": export.to_c, "onnx": export.to_onnx, "lightgbm": export.to_lightgbm_text}[form]
    content = write(artifact)
    asked = ["model", "export", "--format", form, "--output", str(tmp_path / "out")]

    done = CliRunner().invoke(cli.app, asked)

    assert done.exit_code == 0, done.output
    assert (tmp_path / "out").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert f"wrote {artifact.header.name}/{artifact.header.version} as {form}, " in done.output
    again = CliRunner().invoke(cli.app, [*asked, "--model", str(registry.champion())])
    assert again.exit_code == 0


def test_command_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    """An unknown form is wrong usage, and so is a folder that does not exist."""
    assert CliRunner().invoke(cli.app, ["model", "export", "--format", "java", "--output", "x"]).exit_code == 2

    done = CliRunner().invoke(cli.app, ["model", "export", "--format", "c", "--output", str(tmp_path / "no" / "x")])

    assert isinstance(done.exception, UsageError)
    assert "cannot be written" in str(done.exception)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    """Without onnx the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(UsageError, match=r"install falconet\[portable\]"):
        export.to_onnx(artifact)
