"""`falconet serve` as a process of its own, for tests to start, kill and freeze."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from service.settings import PREFIX, Settings


def own_names(name: str) -> dict[str, Any]:
    """Return the settings that give a service a group, an identity and topics of its own on a shared broker."""
    topics = ("transactions", "scores", "alerts", "dlq")
    return {"group_id": name, "transactional_id": name} | {f"{each}_topic": f"{name}.{each}" for each in topics}


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment that gives a process these settings."""
    changed = {name: value for name, value in settings.effective().items() if value not in (None, [])}
    return os.environ | {PREFIX + name.upper(): _text(value) for name, value in changed.items()}


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


class Replica:
    """One process, with its log in a file."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.log = log
        self.started_s = time.monotonic()
        self.ended_s: float | None = None
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve"],
                env=environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        code = self._process.poll()
        if code is not None and self.ended_s is None:
            self.ended_s = time.monotonic()
        return code

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def said(self, text: str) -> bool:
        """Say whether its log holds a text."""
        return text in self.log.read_text(errors="replace")

    @property
    def is_serving(self) -> bool:
        """Whether it has begun to read transactions."""
        return self.code is None and self.said("serving offsets=")

    def last_line(self) -> str:
        """Return what it said last."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.code is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        self._process.wait()
