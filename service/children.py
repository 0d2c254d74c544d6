"""The processes that the demo runs beside itself, and the signals that end them all in order."""

import contextlib
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from features.errors import BrokerError, FalconetError
from service.chain_sender import Reorganised
from service.publisher import Sent
from service.tally import Tally


class Interruption:
    """Notes signals that ask to stop, so that the demo ends in its own order; a second one ends it at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interruption":
        self._before = {each: signal.signal(each, self._note) for each in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Service:
    """`falconet serve`, or another command that runs until stopped, as a process."""

    def __init__(self, environment: dict[str, str], folder: Path, command: str = "serve") -> None:
        self._name = f"falconet {command}"
        self._log = folder / f"{command}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from service.cli import main; main()", command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise if it has ended.

        Raises:
            FalconetError: It has; with the end of its log.
        """
        if self._process.poll() is not None:
            raise FalconetError(f"{self._name} ended with code {self._process.returncode}:\n{self._said()}")

    def has_said(self, text: str) -> bool:
        """Say whether its log holds a text."""
        return text in self._log.read_text(errors="replace")

    def stop(self, within_s: float) -> None:
        """Ask it to drain and end.

        Raises:
            FalconetError: It did not, or its exit code says that it failed.
        """
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise FalconetError(f"{self._name} did not end within {within_s:g} s of SIGTERM") from None
        if self._process.returncode:
            self.check()

    def kill(self) -> None:
        """End it at once if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _said(self) -> str:
        """Return what it said last, without the settings and other notes of a good start."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if '"level":"info"' not in line][-30:])


class Sender:
    """The publishing process and what it reports."""

    def __init__(self, publish: Callable[[Any, Connection], None], plan: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=publish, args=(plan, theirs), name="sender", daemon=True)
        # Ctrl-C reaches every process of the terminal; one that is started with it ignored goes on ignoring it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        self.is_done = False
        self.is_ready_to_reorganise = False
        """Whether it waits for everything to be answered and for another `go`."""

    @property
    def waits(self) -> bool:
        """Whether it sends nothing until something comes back."""
        return self.is_done or self.is_ready_to_reorganise

    def tell(self, word: str) -> None:
        """Say `go` or `stop`; a sender that has gone needs neither."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(word)

    def collect(self, tally: Tally) -> list[Reorganised]:
        """Count what it has reported since, and return the reorganisations among it.

        Raises:
            BrokerError: It ended without saying so.
        """
        reorganised: list[Reorganised] = []
        try:
            while not self.is_done and self._pipe.poll():
                report = self._pipe.recv()
                if report is None:
                    self.is_done = True
                elif isinstance(report, Sent):
                    tally.sent(report.transactions)
                    tally.damaged(report.n_damaged)
                elif isinstance(report, Reorganised):
                    tally.reorganised(report.orphaned, report.standing)
                    reorganised.append(report)
                else:
                    self.is_ready_to_reorganise = True
        except (EOFError, ConnectionResetError) as error:
            raise BrokerError("the sending process ended early; its error is above") from error
        return reorganised

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.join(2.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
