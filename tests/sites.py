"""The HTTP site over a pipeline with a past, on a port of its own."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from features.accounts import Accounts
from models import registry
from models.scorer import Scorer
from service import http, simulator
from service.codec import Decoder
from service.metrics import Metrics
from service.pipeline import Message, Pipeline
from service.policy import policy
from service.settings import Settings

TOKEN = "a token of sixteen and more"

WITHDRAWAL: dict[str, Any] = {
    "from_address": "0x" + "1a" * 20,
    "to_address": "0x" + "2b" * 20,
    "value": 1_500_000_000_000_000_000,
    "block_timestamp": 1_600_000_000,
}


class Reply(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    url: str, body: Any = None, *, token: str | None = TOKEN, method: str | None = None, kind: str = "application/json"
) -> Reply:
    """Send one request; a body that is no bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if data is not None:
        headers["Content-Type"] = kind
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return Reply(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.headers, error.read())


def pipeline(model: Path, *, n: int = 500, **thresholds: float) -> Pipeline:
    """Return a pipeline whose past are n simulated transactions."""
    made = Pipeline(
        accounts=Accounts(accounts_max=4_096, pairs_max=8_192),
        scorer=Scorer.load(registry.model_path(str(model))),
        policy=policy({"review": 2.0, "block": 2.0, **thresholds}, None),
        decoder=Decoder(chain_id=1, message_bytes_max=1 << 20),
    )
    values = simulator.messages(3, n)
    made.process([Message(value, None, "transactions", 0, i, 0) for i, value in enumerate(values)], now_ms=0)
    return made


@contextmanager
def site(
    checking: Pipeline | None, *, unready: tuple[str, ...] = (), token: str | None = TOKEN, **changes: Any
) -> Iterator[str]:
    """Serve the site and yield its address."""
    settings = Settings(http_token=token, sasl_password="hunter22", **changes)
    made = http.Site(settings, Metrics(), unready=lambda: list(unready), pipeline=lambda: checking)
    server = http.serve(made, host="127.0.0.1", port=0)
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.close()
