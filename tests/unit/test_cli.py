"""The command line: exit codes, one clear line on stderr, and a quick answer."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FALCONET = Path(sys.executable).parent / "falconet"


def falconet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command with no setting but those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FALCONET_")}
    command = [str(FALCONET), *arguments]
    return subprocess.run(
        command, env={**kept, **environment}, capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (["check", "--no-such-option"], {}, "No such option: --no-such-option"),
        (["no-such-command"], {}, "No such command 'no-such-command'"),
        (["check", "--offline"], {"FALCONET_ACCOUNTS_MAXX": "1"}, "FALCONET_ACCOUNTS_MAXX"),
        (["check", "--offline"], {"FALCONET_CHAIN_ID": "-1"}, "FALCONET_CHAIN_ID is -1"),
        (["check", "--offline", "--config", "/nowhere.toml"], {}, "/nowhere.toml"),
        (["check", "--offline", "--rpc", "https://node.example/v3/hunter2"], {}, "'node.example' holds more than"),
        (["ingest", "--rpc", "http://node:8545", "--rpc", "wss://me:hunter2@node:8546"], {}, "'node:8546' holds more"),
        (["ingest", "--rpc", "https://node.example?key=hunter2"], {}, "set FALCONET_RPC_URLS"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], environment: dict[str, str], told: str) -> None:
    """A wrong option, command, setting or settings file is named on stderr and exits with 2."""
    done = falconet(*arguments, **environment)

    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr
    assert done.stdout == ""


def test_damaged_model_ends_with_1(tmp_path: Path) -> None:
    """A model that cannot be used is one line on stderr that names the file, and exits with 1."""
    damaged = tmp_path / "model.falconet"
    damaged.write_bytes(b"not a model")

    done = falconet("check", "--offline", FALCONET_MODEL=str(damaged))

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"falconet: {damaged}: ")


def test_check_offline_runs_the_kernels() -> None:
    """The shipped model passes, with one line for each thing that was tried."""
    done = falconet("check", "--offline")

    assert done.returncode == 0, done.stderr
    lines = [line.split()[0] for line in done.stdout.splitlines()]
    assert lines == ["settings", "model", "registry", "lists", "kernels"]


def test_absent_broker_ends_with_1() -> None:
    """A broker that is not there is one line on stderr that names its address, and exits with 1."""
    # Port 9 is the discard service, which nobody runs; a connection to it is refused at once.
    done = falconet("check", "--bootstrap-servers", "127.0.0.1:9")

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "127.0.0.1:9" in done.stderr


def test_version_is_the_projects() -> None:
    """`--version`, the installed distribution and pyproject.toml agree."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

    assert falconet("--version").stdout == f"falconet {version}\n"
    assert importlib.metadata.version("falconet") == version


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("service.cli", {"numba", "numpy", "lightgbm", "kafka", "pyarrow", "rich", "sklearn"}),
        ("service.serve", {"lightgbm", "pyarrow", "rich", "sklearn"}),
    ],
)
def test_what_only_some_commands_need_is_not_loaded(module: str, unwanted: set[str]) -> None:
    """The command line is there before any heavy library, and serving has nothing in memory that only training uses."""
    script = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()

    assert unwanted & set(loaded) == set()
