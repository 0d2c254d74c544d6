"""The wheel alone: what a container installs, in an environment that holds nothing but the runtime requirements."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, **environment: str) -> str:
    """Run a command to its end outside the checkout and return what it wrote to stdout."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_")) or name == "HOME"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env={**kept, "PATH": "/usr/bin:/bin", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("falconet-*.whl")
    return built


def test_wheel_holds_the_packages_and_the_artefact(wheel: Path) -> None:
    """The wheel holds the three packages with the model, and neither tests nor docs nor caches."""
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"features", "models", "service"}
    assert [name for name in names if re.fullmatch(r"models/artifacts/[^/]+/[^/]+/model\.falconet", name)] != []
    assert [name for name in names if "__pycache__" in name or name.endswith((".nbi", ".nbc"))] == []


@pytest.mark.timeout(240)
def test_wheel_alone_is_enough(wheel: Path, tmp_path: Path) -> None:
    """Installed with its own requirements only, `falconet check --offline` passes and site-packages stays untouched."""
    environment, cache = tmp_path / "environment", tmp_path / "cache"
    venv.create(environment)
    # The lock's versions as constraints: what is installed is what the wheel itself asks for, and nothing unpinned.
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("".join(f"{pin}\n" for pin in re.findall(r"^(\S+==[^\\\n]+?) \\$", lock, re.MULTILINE)))
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet")
    run(*pip, "--no-compile", "--only-binary=:all:", "--constraint", constraints, wheel)
    falconet = environment / "bin" / "falconet"

    version = run(falconet, "--version")
    checked = run(falconet, "check", "--offline", NUMBA_CACHE_DIR=str(cache))

    assert re.fullmatch(r"falconet \d+\.\d+\.\d+\n", version)
    assert "model" in checked
    assert list(cache.rglob("*.nbi")) != []
    assert list((environment / "lib").glob("python*/site-packages/[fms]*/**/*.nbi")) == []
    assert not any((environment / "lib").glob("python*/site-packages/pytest"))
