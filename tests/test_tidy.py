"""The house rules that no linter knows."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("features", "models", "service")
"""In the order of the data flow: each may import those before it."""

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
VAGUE = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}
PURE = (
    "features/*.py",
    "models/scorer.py",
    "models/compact.py",
    "service/codec.py",
    "service/policy.py",
    "service/chain.py",
    "service/evm.py",
)
WORLD = {"asyncio", "datetime", "http", "random", "requests", "secrets", "socket", "threading", "time", "urllib"}

TOP_LEVEL = {
    *PACKAGES,
    ".ci",
    ".dockerignore",
    ".gitattributes",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "deploy",
    "docs",
    "pyproject.toml",
    "requirements.lock",
    "tests",
}


def tracked() -> list[Path]:
    """Return the files that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return sorted(ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


def modules(*folders: str) -> list[Path]:
    """Return the Python files under some top-level folders, or all of them."""
    chosen = folders or (*PACKAGES, "deploy", "docs", "tests")
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in chosen]


def name_of(path: Path) -> str:
    """Return a path as it reads from the root of the repository."""
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Yield the full names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_back_to_front_only(package: str) -> None:
    """A package imports none that comes after it on a transaction's path, and nothing imports the tests."""
    later = {*PACKAGES[PACKAGES.index(package) + 1 :], "tests", "docs", "deploy"}

    wrong = [
        (name_of(path), name) for path in modules(package) for name in imports(path) if name.split(".")[0] in later
    ]

    assert wrong == []


def test_pure_modules_touch_no_clock_and_no_network() -> None:
    """What decides a score imports nothing that waits, tells the time, draws at random or speaks to a network."""
    pure = {path for pattern in PURE for path in ROOT.glob(pattern)}

    wrong = [(name_of(path), name) for path in pure for name in imports(path) if name.split(".")[0] in WORLD]

    assert wrong == []


def test_modules_fit_in_one_room() -> None:
    """No module is longer than 500 lines."""
    lengths = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in modules()}

    assert {name: n for name, n in lengths.items() if n > MODULE_LINES_MAX} == {}


def test_functions_fit_on_a_screen() -> None:
    """No function is longer than 70 lines."""
    long = {
        f"{name_of(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        if node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    }

    assert long == {}


def test_names_say_something() -> None:
    """No module or folder has a name that anything could hide behind."""
    vague = [name_of(path) for path in modules() if VAGUE & {path.stem, *path.relative_to(ROOT).parts[:-1]}]

    assert vague == []


def test_package_names_are_ours_alone() -> None:
    """No other installed distribution owns `features`, `models` or `service`, and ours are what is imported."""
    owners = importlib.metadata.packages_distributions()

    assert [name for name in PACKAGES if set(owners.get(name, ())) - {"falconet"}] == []
    for package in PACKAGES:
        __import__(package)
        assert Path(sys.modules[package].__file__ or "").parent == ROOT / package


def test_product_does_not_print() -> None:
    """Commands write through typer or rich, the service logs; nobody prints."""
    prints = [
        f"{name_of(path)}:{node.lineno}"
        for path in modules(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]

    assert prints == []


def test_nothing_is_left_to_do() -> None:
    """No file carries a note to do something later, or a commented-out conflict."""
    # Put together, so that this file does not carry one itself.
    note = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b|^(<{7}|>{7}) ", re.MULTILINE)
    texts = [path for path in tracked() if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".xml", ".json", ""}]

    assert [name_of(path) for path in texts if note.search(path.read_text(encoding="utf-8", errors="replace"))] == []


def test_tests_say_what_is_true() -> None:
    """Each test has a sentence."""
    silent = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in modules("tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert silent == []


LOCKS = (
    "requirements.lock",
    "deploy/build.lock",
    "deploy/image.lock",
    "tests/fuzz/requirements.lock",
    "tests/validators/requirements.lock",
)


def test_every_lock_is_looked_at() -> None:
    """A new lock comes under the test below."""
    found = [path for pattern in ("*.lock", "*/*.lock", "tests/*/*.lock") for path in ROOT.glob(pattern)]

    assert {str(path.relative_to(ROOT)) for path in found} == set(LOCKS)


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_host(lock: str) -> None:
    """The lock pins every requirement with hashes and names no index, no host and no folder of a machine."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    pins = re.findall(r"^(\S+)==(\S+)(?: ; [^\\\n]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M)

    assert re.findall(r"://|--(?:extra-)?index-url|--find-links|--trusted-host|(?m:^/|@ )", text) == []
    assert len(pins) == len(re.findall(r"^[A-Za-z0-9]", text, re.MULTILINE))


def test_lock_holds_what_the_project_asks_for() -> None:
    """Every requirement of pyproject.toml is in the lock."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(line for lines in project["project"]["optional-dependencies"].values() for line in lines),
        *project["dependency-groups"]["dev"],
    ]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    versions: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;]+)", lock, re.MULTILINE):
        versions.setdefault(name, []).append(version)

    missing = [
        line
        for line in asked
        if not any(version in Requirement(line).specifier for version in versions.get(Requirement(line).name, []))
    ]

    assert missing == []


def test_top_level_holds_what_the_design_names() -> None:
    """The root of the repository has the product owner's folders and a known few files besides."""
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} - TOP_LEVEL == set()


def test_no_tracked_file_is_large() -> None:
    """No file is over a mebibyte but a model's."""
    large = [name_of(path) for path in tracked() if path.stat().st_size > 1 << 20]

    assert [name for name in large if not name.startswith("models/artifacts/")] == []
