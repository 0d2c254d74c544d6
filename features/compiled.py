"""How the kernels are compiled, and where the machine code is kept between runs."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numba
from numba import njit

from features.errors import UsageError


def _sources_digest() -> str:
    """Digest the sources whose functions call each other.

    Numba renews a cached function when its own file changed, not when a function it calls did: without this a
    change in `observe.py` would leave the old machine code inside `kernel.run`.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted([*here.glob("*.py"), *here.parent.glob("models/*.py")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def cache_dir() -> Path:
    """Return where machine code is kept, made sure of: below NUMBA_CACHE_DIR, or the user's cache folder.

    Raises:
        UsageError: The folder cannot be written, as in a container with neither a home nor the variable.
    """
    root = os.environ.get("NUMBA_CACHE_DIR")
    base = Path(root or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "falconet")
    try:
        folder = base.expanduser() / _sources_digest()
        folder.mkdir(parents=True, exist_ok=True)
        # Numba tries the same, and goes on without a word or ends with a RuntimeError.
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"no folder for the compiled kernels: {error}; set NUMBA_CACHE_DIR to a writable folder"
        ) from error
    return folder


setattr(numba.config, "CACHE_DIR", str(cache_dir()))  # noqa: B010 - numba.config has no static attributes

# Without reference counts: the kernels allocate nothing, and counting the array views of every call cost two thirds of
# the time (1.84 against 0.67 µs a transaction, batches of 500). Scratch memory comes from the caller.
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
compiled: Any = njit(**_OPTIONS)
inlined: Any = njit(forceinline=True, **_OPTIONS)
compiled_without_gil: Any = njit(nogil=True, **_OPTIONS)
"""For long work that threads share; releasing the interpreter costs more than a short call takes."""
