"""Programs that judge what is deployed: kustomize through Go, hadolint and the schemas of Kubernetes through pip.

`make tools` brings the latter two from `requirements.lock`; kustomize is built on first use, from what `go.mod` and
`go.sum` name.
"""

import shutil
import subprocess
from pathlib import Path

from tests.servers import MissingServerError

FOLDER = Path(__file__).parent
BUILT = FOLDER / "bin"
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5"


def kustomize() -> Path:
    """Return kustomize's program, built with Go on first use.

    Raises:
        MissingServerError: Go is missing or could not build it.
    """
    program, stamp, sums = BUILT / "kustomize", BUILT / "go.sum", FOLDER / "go.sum"
    if stamp.exists() and stamp.read_bytes() == sums.read_bytes():
        return program
    go = shutil.which("go")
    if go is None:
        raise MissingServerError("kustomize is not here and `go` (1.24 or later) is not installed to build it")
    command = [go, "build", "-mod=readonly", "-o", str(program), KUSTOMIZE]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise MissingServerError(f"Go could not build kustomize: {done.stderr[-1000:]}")
    shutil.copyfile(sums, stamp)
    return program
