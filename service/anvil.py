"""Anvil, a local node of an EVM chain that mines and reorganises when told to: for the demo on a live chain, and tests.

It comes with Foundry, and on npm as `@foundry-rs/anvil`.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from features.errors import FalconetError, UsageError
from service.embedded import free_port

START_SECONDS = 60.0
"""Longest wait for it to listen; it takes 0.1 s."""

ANSWER_SECONDS = 30.0


class Call(NamedTuple):
    """One call of a node."""

    method: str
    params: Sequence[object]


class Anvil:
    """One node with funded, unlocked accounts; it runs while the `with` block does.

    Args:
        program: Where it is.
        options: Of its command line.
        chain_id: Of its chain.
        port: Where it listens on 127.0.0.1; None takes a free one.

    Raises:
        FalconetError: It did not start.
    """

    def __init__(self, program: Path, *options: str, chain_id: int = 1, port: int | None = None) -> None:
        self._port = port or free_port()
        self._command = [str(program), "--quiet", "--chain-id", str(chain_id), "--port", str(self._port), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.url, self.ws_url = f"http://127.0.0.1:{self._port}", f"ws://127.0.0.1:{self._port}"

    def __enter__(self) -> "Anvil":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and return when it answers; what an earlier process held is gone unless an option keeps it."""
        # A session of its own: Ctrl-C must not end the chain before those who read it.
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise FalconetError(f"anvil did not start on port {self._port}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, method: str, *params: object) -> Any:
        """Return the result of a call; see `ask`."""
        return ask(self.url, Call(method, params))[0]

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


def ask(url: str, *calls: Call) -> list[Any]:
    """Return the results of calls, made in one request.

    Raises:
        FalconetError: The node refuses one of them.
    """
    if not calls:
        return []
    body = [{"jsonrpc": "2.0", "id": i, "method": call.method, "params": call.params} for i, call in enumerate(calls)]
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
        answers = sorted(json.load(response), key=lambda answer: int(answer["id"]))
    for call, answer in zip(calls, answers, strict=True):
        if "error" in answer:
            raise FalconetError(f"{call.method}: {answer['error']}")
    return [answer["result"] for answer in answers]


def program() -> Path:
    """Return where anvil is.

    Raises:
        UsageError: It is not on the PATH.
    """
    found = shutil.which("anvil")
    if found is None:
        raise UsageError(
            "a live chain needs anvil on the PATH: Foundry brings it, or `npm install --global @foundry-rs/anvil`"
        )
    return Path(found)
