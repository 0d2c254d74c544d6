"""The lleaves contestant, in an environment of its own: it needs llvmlite below 0.44, and numba needs a later one.

The environment is made for the run and thrown away. Its process answers one request a round, so that it takes its
turn among the others, by the same code (`turns.py`).
"""

import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
REQUIREMENTS = ("lleaves==1.3.0", "llvmlite==0.43.*", "numpy")


class Apart:
    """A process that scores rows by lleaves.

    Raises:
        RuntimeError: lleaves cannot be installed, compiled or run here; the message says why.
    """

    def __init__(self, folder: Path, model_text: str, rows: NDArray[np.float64]) -> None:
        (folder / "student.txt").write_text(model_text)
        np.save(folder / "rows.npy", rows)
        python = folder / "lleaves" / "bin" / "python"
        venv.create(folder / "lleaves", with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        if installed.returncode:
            raise RuntimeError((installed.stderr.strip().splitlines() or ["pip failed"])[-1])
        self._process = subprocess.Popen(
            [python, __file__, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        ready = self._read()
        self.versions: dict[str, str] = ready["versions"]
        self.n_bytes: int = ready["n_bytes"]
        self.margins = np.array(ready["margins"])
        self._size = ready["size"]

    def _read(self) -> dict:  # type: ignore[type-arg]
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"its process ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "failure" in answer:
            raise RuntimeError(answer["failure"])
        return answer

    def size(self) -> tuple[int, int]:
        """Return how many single calls and how many batches a round holds."""
        return self._size[0], self._size[1]

    def round(self, n_singles: int, n_batches: int):  # type: ignore[no-untyped-def]
        """Run a round over there."""
        from tests.bench.turns import Round

        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([n_singles, n_batches]) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        return Round(np.array(answer["single_us"]), answer["single_cpu_us"], answer["batch_us"], answer["batch_cpu_us"])

    def close(self) -> None:
        """End the process by closing what it reads."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def _answer(folder: Path) -> None:
    """Be the other process."""
    sys.path.insert(0, str(HERE))
    import importlib.metadata

    import turns

    try:
        import lleaves

        model = lleaves.Model(model_file=str(folder / "student.txt"))
        model.compile(cache=str(folder / "student.o"), raw_score=True)
    except Exception as error:
        print(json.dumps({"failure": f"{type(error).__name__}: {error}"}), flush=True)
        return
    rows = np.load(folder / "rows.npy")
    calls = turns.Calls(
        lambda batch: model.predict(batch, n_jobs=1),
        [rows[i : i + 1] for i in range(len(rows))],
        rows[: turns.BATCH],
    )
    ready = {
        "versions": {name: importlib.metadata.version(name) for name in ("lleaves", "llvmlite")},
        "n_bytes": (folder / "student.o").stat().st_size,
        "margins": model.predict(rows, n_jobs=1).tolist(),
        "size": calls.size(),
    }
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        with turns.one_core():
            answer = calls.round(*json.loads(line))
        print(json.dumps(answer._replace(single_us=answer.single_us.tolist())._asdict()), flush=True)


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
