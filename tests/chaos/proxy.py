"""A TCP proxy before a Kafka broker that cuts, hangs, slows, swallows answers, and answers with errors of its own.

The broker advertises the proxy's port, so that clients find nothing but the proxy. It reads Kafka's frames (a length of
four bytes before each) and keeps the order of answers, which clients rely on.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

ADD_OFFSETS, END_TRANSACTION = 25, 26
"""Requests of a committing producer, as Kafka's protocol numbers them."""

_LENGTH = struct.Struct(">i")
_REQUEST = struct.Struct(">hhi")
_FLEXIBLE_SINCE = 3
"""Version of both requests from which a body and the answer's header end with tagged fields."""

_LIMIT_S = 10.0


class _Answer(NamedTuple):
    """What comes in the place of one request's answer; None as content cuts the connection instead."""

    content: bytes | None


class Proxy:
    """Passes everything on until told otherwise; made listening, on a thread of its own."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.target_port = 0
        """Where the broker listens; set before anybody connects."""

        self.delay_s = 0.0
        """How much later every frame arrives."""

        self.bytes_per_s = 0.0
        """How fast a connection is in either direction, 0 for unlimited."""

        self.errors: dict[int, int] = {}
        """Error code that answers each request of a kind, which the broker then never sees."""

        self.swallowing: set[int] = set()
        """Kinds of request whose next answer is lost with its connection, after the broker did what was asked."""

        self.n_answered = 0
        self.n_swallowed = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.heal()

    @property
    def address(self) -> str:
        """What stands in `bootstrap_servers`."""
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection and refuse the next."""
        self._do(self._cut)

    def hang(self) -> None:
        """Pass nothing on and close nothing: what a network does that lost its way."""
        self._do(self._stop_flowing)

    def heal(self) -> None:
        """Pass everything on again."""
        self.delay_s = self.bytes_per_s = 0.0
        self.errors.clear()
        self.swallowing.clear()
        self._do(self._heal)

    def close(self) -> None:
        """Break every connection and end the thread."""
        self.cut()
        self._do(self._settle)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LIMIT_S)
        self._loop.close()

    def _do(self, make: Callable[[], object]) -> None:
        async def call() -> None:
            made = make()
            if asyncio.iscoroutine(made):
                await made

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(_LIMIT_S)

    def _stop_flowing(self) -> None:
        self._flowing.clear()

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        self._writers.clear()

    async def _settle(self) -> None:
        """Have what served the connections end."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _heal(self) -> None:
        self._flowing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            there, back = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers |= {writer, back}
            # In the order of the requests: None is the broker's own answer.
            waiting: deque[_Answer | None] = deque()
            tasks = [
                asyncio.ensure_future(self._requests(reader, back, writer, waiting)),
                asyncio.ensure_future(self._responses(there, writer, waiting)),
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._writers -= {writer, back}
                back.transport.abort()
        writer.transport.abort()

    async def _frame(self, reader: asyncio.StreamReader) -> bytes:
        """Return the next frame once the network has brought it."""
        size = await reader.readexactly(_LENGTH.size)
        frame = await reader.readexactly(_LENGTH.unpack(size)[0])
        await self._flowing.wait()
        if self.delay_s or self.bytes_per_s:
            await asyncio.sleep(self.delay_s + (len(frame) / self.bytes_per_s if self.bytes_per_s else 0.0))
        return size + frame

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        there: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        waiting: "deque[_Answer | None]",
    ) -> None:
        while True:
            frame = await self._frame(reader)
            kind, version, correlation = _REQUEST.unpack_from(frame, _LENGTH.size)
            if kind in self.errors:
                self.n_answered += 1
                waiting.append(_Answer(_refusal(kind, version, correlation, self.errors[kind])))
                _flush(back, waiting)
                continue
            if kind in self.swallowing:
                self.swallowing.discard(kind)
                waiting.append(_Answer(None))
            else:
                waiting.append(None)
            there.write(frame)
            await there.drain()

    async def _responses(
        self, there: asyncio.StreamReader, back: asyncio.StreamWriter, waiting: "deque[_Answer | None]"
    ) -> None:
        while True:
            frame = await self._frame(there)
            if waiting.popleft() is not None:
                self.n_swallowed += 1
                return
            back.write(frame)
            _flush(back, waiting)
            await back.drain()


def _flush(back: asyncio.StreamWriter, waiting: "deque[_Answer | None]") -> None:
    """Write the answers of our own whose turn it is."""
    while waiting and waiting[0] is not None and waiting[0].content is not None:
        answer = waiting.popleft()
        assert answer is not None
        assert answer.content is not None
        back.write(answer.content)


def _refusal(kind: int, version: int, correlation: int, error: int) -> bytes:
    """Return the answer to one of the two requests that holds an error."""
    tags = b"\0" if version >= _FLEXIBLE_SINCE else b""
    body = struct.pack(">ih", 0, error)
    if kind == END_TRANSACTION and version >= 5:
        body += struct.pack(">qh", -1, -1)
    answer = struct.pack(">i", correlation) + tags + body + tags
    return _LENGTH.pack(len(answer)) + answer


@contextlib.contextmanager
def proxy() -> Iterator[Proxy]:
    """Run a proxy while the block runs."""
    made = Proxy()
    try:
        yield made
    finally:
        made.close()
