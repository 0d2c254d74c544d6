"""The HTTP server: probes, metrics, what runs here, and the check of a withdrawal before it is signed.

It runs in a thread of its own beside the loop. The loop owns the past; a check takes its turn at it between two batches
(`Pipeline.check`) and changes nothing. Nothing here is trusted: sizes, rates and waits have bounds, and each request
that is not answered as asked gets a problem document (RFC 9457).
"""

import asyncio
import hmac
import importlib.metadata
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from features import schema
from features.errors import RejectedError, UsageError
from service import openapi, withdrawal
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.settings import Settings

BODY_BYTES_MAX = 270_336
"""An `input` has at most 262,146 characters, two a byte of the 128 KiB that Ethereum's nodes relay; the rest is below
1 KiB, and 7 KiB are left for blanks."""

BODY_SECONDS_MAX = 5.0
"""For a body to arrive in whole."""

IDLE_SECONDS_MAX = 75.0
"""For the next request on a connection; load balancers close theirs after 60 s."""

START_SECONDS_MAX = 10.0
CLOSE_SECONDS_MAX = 1.0

log = logging.getLogger("falconet.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Bucket:
    """Admits a number of requests a second, and at most one second's at once."""

    def __init__(self, rate: float, *, at_s: float) -> None:
        self._rate = rate
        self._left = rate
        self._at_s = at_s

    def admit(self, at_s: float) -> bool:
        """Say whether a request may pass at a time of a clock that does not go back, and count it if so."""
        self._left = min(self._rate, self._left + (at_s - self._at_s) * self._rate)
        self._at_s = at_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Site:
    """What is answered, apart from where it listens."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        unready: Callable[[], list[str]],
        pipeline: Callable[[], Pipeline | None],
    ) -> None:
        """Make the site.

        Args:
            settings: Token, limits, chain, and what `/info` shows.
            metrics: What `/metrics` shows.
            unready: Returns why no transactions are being scored, empty where they are; from any thread.
            pipeline: Returns what checks, None before there is one; from any thread.
        """
        self._settings = settings
        self._metrics = metrics
        self._unready = unready
        self._pipeline = pipeline
        self._token = None if settings.http_token is None else settings.http_token.encode()
        self._bucket = Bucket(settings.http_requests_max, at_s=time.monotonic())
        self._document = msgspec.json.encode(openapi.document())

    def application(self) -> web.Application:
        """Return the routes."""
        app = web.Application(middlewares=[_problems], client_max_size=BODY_BYTES_MAX)
        for path, handler in (
            ("/live", self._live),
            ("/ready", self._ready),
            ("/metrics", self._show_metrics),
            ("/info", self._info),
            ("/openapi.json", self._describe),
        ):
            app.router.add_get(path, handler, allow_head=False)
        app.router.add_post("/v1/score", self._score)
        return app

    async def _live(self, _request: web.Request) -> web.Response:
        return _json(openapi.Live("live"))

    async def _ready(self, _request: web.Request) -> web.Response:
        reasons = self._unready()
        return _json(openapi.Ready(not reasons, reasons), status=503 if reasons else 200)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        # In a thread: the page takes 5 ms to write, in which checks go on.
        page = await asyncio.to_thread(encode, self._metrics.registry)
        return web.Response(body=page, headers={"Content-Type": kind})

    async def _describe(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type=openapi.JSON)

    async def _info(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        pipeline = self._pipeline()
        model = None if pipeline is None else openapi.ModelFacts(**pipeline.judge.scorer.model._asdict())
        version = importlib.metadata.version("falconet")
        return _json(openapi.Info(version, schema.FINGERPRINT, model, self._settings.effective()))

    async def _score(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        if not self._bucket.admit(time.monotonic()):
            limit = f"more than {self._settings.http_requests_max:g} checks a second (http_requests_max)"
            return problem(429, limit, {"Retry-After": "1"})
        if request.content_type != openapi.JSON:
            return problem(415, f"the request is {request.content_type}, allowed: {openapi.JSON}")
        try:
            async with asyncio.timeout(BODY_SECONDS_MAX):
                body = await request.read()
        except TimeoutError:
            return problem(408, f"the body did not arrive within {BODY_SECONDS_MAX:g} s", {"Connection": "close"})
        pipeline = self._pipeline()
        reasons = self._unready()
        if pipeline is None or reasons:
            return problem(503, "; ".join(reasons) or "starting", {"Retry-After": "1"})
        return self._checked(pipeline, body)

    def _checked(self, pipeline: Pipeline, body: bytes) -> web.Response:
        try:
            found = withdrawal.check(
                pipeline,
                body,
                chain_id=self._settings.chain_id,
                now_s=int(time.time()),
                schema=schema.FINGERPRINT,
            )
        except (msgspec.ValidationError, RejectedError) as error:
            return problem(422, str(error))
        except ValueError as error:
            return problem(400, f"the body is no JSON: {error}")
        return web.Response(body=found, content_type=openapi.JSON)

    def _refused(self, request: web.Request) -> web.Response | None:
        """Return why a request may not be answered, None where it may."""
        if self._token is None:
            return problem(403, "no token is configured; set http_token_file or http_token")
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # The header may hold bytes that are no text.
        is_right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)
        if scheme.lower() != "bearer" or not is_right:
            return problem(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        return None


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    """Return a problem document."""
    body = openapi.Problem("about:blank", HTTPStatus(status).phrase, status, detail)
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type=openapi.PROBLEM, headers=headers or {}
    )


def _json(record: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(record), status=status, content_type=openapi.JSON)


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what the library refuses into problem documents: unknown paths and methods, bodies that are too large."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        details = {
            404: f"nothing is at {request.path!r}; see /openapi.json",
            405: f"{request.method} is not allowed at {request.path!r}",
            413: f"the body has more than {BODY_BYTES_MAX} bytes",
        }
        return problem(error.status, details.get(error.status, error.reason), kept)


class Server:
    """The site being served from a thread of its own, until closed."""

    def __init__(self, site: Site, *, host: str, port: int) -> None:
        """Listen and serve; port 0 takes any free one.

        Raises:
            UsageError: The address cannot be listened on: the port is taken, or the host is not ours.
        """
        self._socket = _listen(host, port)
        self.port = int(self._socket.getsockname()[1])
        self._aio = asyncio.new_event_loop()
        self._runner = web.AppRunner(
            site.application(),
            access_log=None,
            handle_signals=False,
            keepalive_timeout=IDLE_SECONDS_MAX,
            shutdown_timeout=CLOSE_SECONDS_MAX,
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._aio).result(START_SECONDS_MAX)

    def close(self) -> None:
        """Stop serving and free the port."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._aio).result(START_SECONDS_MAX)
        self._aio.call_soon_threadsafe(self._aio.stop)
        self._thread.join(START_SECONDS_MAX)

    def _run(self) -> None:
        asyncio.set_event_loop(self._aio)
        try:
            self._aio.run_forever()
        finally:
            # Connections that were still open.
            waiting = asyncio.all_tasks(self._aio)
            for task in waiting:
                task.cancel()
            self._aio.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
            self._aio.run_until_complete(self._aio.shutdown_default_executor())
            self._aio.close()

    async def _open(self) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()


def serve(site: Site, *, host: str, port: int) -> Server:
    """Serve the site; where others than this machine may ask, say so.

    Raises:
        UsageError: The address cannot be listened on.
    """
    server = Server(site, host=host, port=port)
    if not _is_loopback(host):
        log.warning("http is not encrypted and not on loopback host=%s port=%d", host, server.port)
    return server


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        # The text of a failed bind names the address a second time.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise UsageError(
            f"cannot serve HTTP on {host}:{port}: {reason or error}; set metrics_host and metrics_port"
        ) from error
