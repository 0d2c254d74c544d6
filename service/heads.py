"""Told of heads by a node's WebSocket, in a thread of its own: only a reason to look early.

Nothing is taken from what the subscription says. Nodes leave heads out after a reconnect and in a reorganisation, so
the chain is always read anew, and looked at every `rpc_poll_seconds` besides; without a subscription heads come later,
and nothing else changes.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from features.errors import NodeError, UsageError
from service.ingest_metrics import IngestMetrics

try:
    from web3 import AsyncWeb3
    from web3.providers import WebSocketProvider
except ImportError as error:
    raise UsageError("a chain's node is spoken to by web3, which is not installed: install falconet[ingest]") from error

SILENCE_SECONDS = 90.0
"""A subscription without a head for so long is made anew; Ethereum's longest gaps are 5 slots of 12 s."""

PAUSE_SECONDS = 0.5
PAUSE_SECONDS_MAX = 30.0
"""Before another try; it doubles up to the larger."""

PROBE_SECONDS = 10.0

log = logging.getLogger("falconet.heads")


def probe(url: str, label: str) -> None:
    """Subscribe to a node's heads and end the subscription.

    Raises:
        NodeError: It cannot be subscribed to.
    """

    async def subscribe() -> None:
        async with AsyncWeb3(WebSocketProvider(url)) as w3:
            await w3.eth.subscribe("newHeads")

    try:
        asyncio.run(asyncio.wait_for(subscribe(), PROBE_SECONDS))
    # Libraries raise what they like here, with the URL, and that may hold a key.
    except Exception as error:
        raise NodeError("unreachable", f"{label}: {type(error).__name__} at eth_subscribe") from error


class Heads:
    """A subscription to new heads over the first of several URLs that answers, until closed."""

    def __init__(self, urls: list[str], labels: list[str], wake: Callable[[], None], metrics: IngestMetrics) -> None:
        self._urls = urls
        self._labels = labels
        self._wake = wake
        self._metrics = metrics
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self.is_subscribed = threading.Event()
        """Whether heads are being pushed."""

        self._thread = threading.Thread(target=self._run, name="heads", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the subscription and its thread."""
        with contextlib.suppress(RuntimeError):  # the thread may have ended by itself
            self._loop.call_soon_threadsafe(self._cancel)
        self._thread.join(5)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        self._task = self._loop.create_task(self._follow())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _follow(self) -> None:
        pause_s, turn = PAUSE_SECONDS, 0
        while True:
            url, label = self._urls[turn], self._labels[turn]
            try:
                await self._listen(url, label)
            # Whatever goes wrong with the hint, reading goes on by polling.
            except Exception as error:
                # Its text may hold the URL, and that a key.
                log.warning("heads lost endpoint=%s error=%s: polling meanwhile", label, type(error).__name__)
            if self.is_subscribed.is_set():
                self._metrics.subscriptions["lost"].inc()
                self.is_subscribed.clear()
                pause_s = PAUSE_SECONDS
            turn = (turn + 1) % len(self._urls)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_SECONDS_MAX)

    async def _listen(self, url: str, label: str) -> None:
        """Wake for each head until the connection ends or falls silent."""
        async with AsyncWeb3(WebSocketProvider(url)) as w3:
            await w3.eth.subscribe("newHeads")
            log.info("heads pushed endpoint=%s", label)
            self._metrics.subscriptions["begun"].inc()
            self.is_subscribed.set()
            # What was pushed before the subscription began.
            self._wake()
            messages: Any = aiter(w3.socket.process_subscriptions())
            while True:
                try:
                    await asyncio.wait_for(anext(messages), SILENCE_SECONDS)
                except StopAsyncIteration:
                    return
                self._wake()
