"""The files that settings come from: TOML, and a secret each in a file of its own."""

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from features.errors import UsageError

FILE_BYTES_MAX = 65_536
"""A file that names every setting has 6 KB."""

SECRET_BYTES_MAX = 4096


def read_toml(path: Path, place: str) -> dict[str, Any]:
    """Return the tables of a TOML file, named as the user named it.

    Raises:
        UsageError: It cannot be read, is too long or is not TOML.
    """
    try:
        content = _read_plain(path, FILE_BYTES_MAX + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the settings file {place}: {error}") from error
    if len(content) > FILE_BYTES_MAX:
        raise UsageError(f"the settings file {place} has more than {FILE_BYTES_MAX} bytes")
    try:
        return tomllib.loads(text)
    # A number of thousands of digits is a plain ValueError; brackets without end are a RecursionError.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the settings file {place} is not TOML: {error}") from error


def _read_plain(path: Path, n_bytes: int) -> bytes:
    """Return the first bytes of a plain file; of a pipe, which might never bring any, an OSError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no plain file")
        return file.read(n_bytes)


def read_secret(name: str, path: str) -> str:
    """Return the secret that a file holds, for the setting of a name.

    Raises:
        UsageError: It cannot be read, is empty or too long; what it holds is never quoted.
    """
    try:
        text = _read_plain(Path(path), SECRET_BYTES_MAX + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        # The decoder's own message would quote a byte of the secret.
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UsageError(f"cannot read {name} {path}: {reason}") from None
    if len(text.encode()) > SECRET_BYTES_MAX:
        raise UsageError(f"{name} {path} holds more than {SECRET_BYTES_MAX} bytes: it is no password")
    # Editors and `echo` end a file with a newline that is no part of the password; more of them may be.
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise UsageError(f"{name} {path} is empty")
    return secret
