"""Nodes of one chain over JSON-RPC: their heads and their whole blocks, by web3's HTTP provider.

Several nodes may be named; one is asked at a time. One that does not answer, refuses, or answers what cannot be is left
for the next, and all are asked again with growing pauses until one answers or the budget is spent. Nothing that a node
says is passed on unchecked: a block has the number that was asked for, and its receipts are its own.

web3's own methods turn every field into an object of its own, 60 µs a transaction; here the answers' bytes are decoded
straight into records, 4 µs a transaction, and the provider keeps connections, headers and batches.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw, Struct

from features.errors import Fault, NodeError, NodeOutageError, UsageError
from service import evm
from service.chain import Header
from service.evm import Block, WireBlock, WireHeader, WireReceipt
from service.ingest_metrics import IngestMetrics, Method

try:
    import requests
    from web3.providers.rpc import HTTPProvider
except ImportError as error:
    raise UsageError("a chain's node is spoken to by web3, which is not installed: install falconet[ingest]") from error

REQUEST_SECONDS = 10.0
"""Longest wait for an answer: a full block with its receipts took a provider 2 s."""

PAUSE_SECONDS = 0.1
PAUSE_SECONDS_MAX = 5.0
"""Between two rounds over all nodes; it doubles up to the larger."""

STALL_SECONDS = 30.0
"""A head that stands still for so long has the other nodes asked for theirs: two and a half of Ethereum's slots."""

RECEIPTS_MAX = 100
"""Most single receipts asked for in one batch; providers refuse batches of more than 100 to 1,000."""

Tag = Literal["latest", "safe", "finalized"]
T = TypeVar("T")

log = logging.getLogger("falconet.node")

_METHOD_NOT_FOUND = -32601
_PRUNED = ("prun", "missing trie node", "history", "not available")
"""Parts of what nodes say about blocks that they have deleted."""


class _Failure(Struct):
    code: int = 0
    message: str = ""


class _Answer(Struct):
    id: int | None = None
    result: Raw = Raw(b"null")
    error: _Failure | None = None


_decode_answers = msgspec.json.Decoder(list[_Answer] | _Answer).decode


class _Provider(HTTPProvider):
    """web3's provider, with answers left undecoded but for their envelope."""

    @staticmethod
    def decode_rpc_response(raw_response: bytes) -> Any:
        """Return the answer, or the answers of a batch, as web3 sorts them."""
        found = _decode_answers(raw_response)
        return [msgspec.structs.asdict(each) for each in found] if isinstance(found, list) else found


class Endpoint:
    """One node."""

    def __init__(self, url: str, label: str, metrics: IngestMetrics) -> None:
        self.label = label
        self.is_known = False
        """Whether its chain was found to be the right one."""

        self.has_batches = True
        self.has_block_receipts = True
        self._metrics = metrics
        # The retries are ours: web3's would be neither counted nor bounded by the budget.
        self._provider = _Provider(url, request_kwargs={"timeout": REQUEST_SECONDS}, exception_retry_configuration=None)

    def ask(self, method: Method, params: Sequence[object]) -> Raw:
        """Return the result of one call.

        Raises:
            NodeOutageError: There is none, for the fault given.
        """
        answer = self._timed(method, lambda: self._provider.make_request(method, params))
        return self._result(method, answer)

    def ask_all(self, calls: Sequence[tuple[Method, Sequence[object]]]) -> list[Raw]:
        """Return the results of several calls, in one request where the node takes batches."""
        if not self.has_batches:
            return [self.ask(method, params) for method, params in calls]
        answers = self._timed("batch", lambda: self._provider.make_batch_request(calls))  # type: ignore[arg-type]
        if not isinstance(answers, list):
            if len(calls) > 1:
                self.has_batches = False
                log.warning("no batches endpoint=%s: calls are made one by one", self.label)
                return self.ask_all(calls)
            answers = [msgspec.structs.asdict(answers)]
        if len(answers) != len(calls):
            self._raise("malformed", f"{len(answers)} answers to {len(calls)} calls")
        return [
            self._result(method, msgspec.convert(answer, _Answer))
            for (method, _), answer in zip(calls, answers, strict=True)
        ]

    def _timed(self, method: Method, call: Callable[[], Any]) -> Any:
        started_s = time.perf_counter()
        try:
            return call()
        # What requests says holds the URL, which may hold a key: only the kind of failure is told.
        except requests.Timeout:
            self._raise("timeout", f"no answer to {method} within {REQUEST_SECONDS:g} s")
        except requests.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            self._raise("rate_limited" if status == 429 else "refused", f"HTTP status {status} for {method}")
        except requests.RequestException as error:
            self._raise("unreachable", f"{type(error).__name__} at {method}")
        except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            self._raise("malformed", f"the answer to {method} is no JSON-RPC: {error}")
        finally:
            self._metrics.rpc_seconds.labels(method, self.label).observe(time.perf_counter() - started_s)

    def _result(self, method: Method, answer: _Answer) -> Raw:
        failure = answer.error
        if failure is not None:
            self._refused(method, failure)
        return answer.result

    def _refused(self, method: Method, failure: _Failure) -> NoReturn:
        if failure.code == _METHOD_NOT_FOUND:
            raise _UnknownMethodError("refused", f"{self.label} has no {method}")
        message = failure.message[:200]
        is_pruned = any(part in message.lower() for part in _PRUNED)
        self._raise("pruned" if is_pruned else "refused", f"{method}: {message} (code {failure.code})")

    def _raise(self, fault: Fault, detail: str) -> NoReturn:
        raise NodeOutageError(fault, f"{self.label}: {detail}")


class _UnknownMethodError(NodeOutageError):
    """The node does not have the method."""


class Found(NamedTuple):
    """What `describe` finds out about a node."""

    label: str
    client: str
    chain_id: int
    head: Header
    finalized: int | None
    has_block_receipts: bool


class Node:
    """The nodes of a chain as one that answers; may be asked by several threads."""

    def __init__(
        self, urls: Sequence[str], *, chain_id: int, retry_seconds: float, metrics: IngestMetrics, stop: threading.Event
    ) -> None:
        self._chain_id = chain_id
        self._retry_s = retry_seconds
        self._metrics = metrics
        self._stop = stop
        self.endpoints = [Endpoint(url, label, metrics) for url, label in zip(urls, labels(urls), strict=True)]
        for endpoint in self.endpoints:
            metrics.know(endpoint.label)
        self._current = 0
        self._highest = -1
        self._risen_s = time.monotonic()

    def check(self) -> None:
        """Ask each node for its chain; one that does not answer is left for later.

        Raises:
            NodeError: A node is of another chain, or none answers within the budget.
        """
        for endpoint in self.endpoints:
            try:
                self._check_chain(endpoint)
            except NodeOutageError as error:
                self._failed(endpoint, "eth_chainId", error)
        self.head()

    def head(self, tag: Tag = "latest") -> Header:
        """Return the head, of the node whose head is highest where the one at hand is behind or stands still.

        Raises:
            NodeError: No node answered within the budget.
        """
        found = self._insist("eth_getBlockByNumber", lambda endpoint: _header(endpoint, tag))
        if tag != "latest":
            return found
        now_s = time.monotonic()
        if found.number > self._highest:
            self._highest, self._risen_s = found.number, now_s
            return found
        if found.number < self._highest or now_s - self._risen_s >= STALL_SECONDS:
            found = self._highest_head(found)
            self._risen_s = now_s
            self._highest = found.number
        return found

    def block(self, number: int) -> Block:
        """Return a block that the chain has, whole and checked within itself.

        Raises:
            NodeError: No node gave it within the budget, for the fault given.
        """
        return self._insist("eth_getBlockByNumber", lambda endpoint: _block(endpoint, number, self._chain_id))

    def hash_at(self, number: int) -> str | None:
        """Return the hash of the block of a number, None where the chain is not that high."""

        def ask(endpoint: Endpoint) -> str | None:
            raw = endpoint.ask("eth_getBlockByNumber", (hex(number), False))
            return None if bytes(raw) == b"null" else _decoded(endpoint, raw, WireHeader).header().hash

        return self._insist("eth_getBlockByNumber", ask)

    def leave(self, error: NodeOutageError) -> None:
        """Count what was found wrong with the node at hand and go on with the next one."""
        self._failed(self.endpoints[self._current % len(self.endpoints)], "eth_getBlockByNumber", error)

    def describe(self) -> list[Found]:
        """Ask each node who it is.

        Raises:
            NodeError: A node does not answer, or is of another chain.
        """
        return [self._described(endpoint) for endpoint in self.endpoints]

    def _described(self, endpoint: Endpoint) -> Found:
        self._check_chain(endpoint)
        client = _decoded(endpoint, endpoint.ask("web3_clientVersion", ()), str)
        head = _header(endpoint, "latest")
        try:
            finalized = _header(endpoint, "finalized").number
        except NodeOutageError:
            finalized = None
        _block(endpoint, head.number, self._chain_id)
        return Found(endpoint.label, client, self._chain_id, head, finalized, endpoint.has_block_receipts)

    def _highest_head(self, found: Header) -> Header:
        """Return the highest head of all nodes and go on with its node."""
        here = self._current
        for i, endpoint in enumerate(self.endpoints):
            if i == here:
                continue
            try:
                self._check_chain(endpoint)
                other = _header(endpoint, "latest")
            except NodeOutageError as error:
                self._metrics.rpc_errors.labels("eth_getBlockByNumber", endpoint.label, error.fault).inc()
                continue
            if other.number > found.number:
                behind = self.endpoints[here]
                self._metrics.rpc_errors.labels("eth_getBlockByNumber", behind.label, "head_behind").inc()
                log.warning("head_behind endpoint=%s head=%d ahead=%s", behind.label, found.number, endpoint.label)
                found, self._current = other, i
        return found

    def _check_chain(self, endpoint: Endpoint) -> None:
        if endpoint.is_known:
            return
        found = int(_decoded(endpoint, endpoint.ask("eth_chainId", ()), evm.Number), 16)
        if found != self._chain_id:
            raise NodeError(
                "wrong_chain", f"{endpoint.label} is of chain {found}, the setting chain_id {self._chain_id}"
            )
        endpoint.is_known = True

    def _insist(self, method: Method, ask: Callable[[Endpoint], T]) -> T:
        """Return what a node answers, asking the others and all again within the budget."""
        until_s = time.monotonic() + self._retry_s
        pause_s = PAUSE_SECONDS
        n_tries = 0
        while True:
            endpoint = self.endpoints[self._current]
            try:
                self._check_chain(endpoint)
                return ask(endpoint)
            except NodeOutageError as error:
                self._failed(endpoint, method, error)
                if time.monotonic() >= until_s:
                    raise NodeError(
                        error.fault, f"{error.detail}; gave up after {self._retry_s:g} s (rpc_retry_seconds)"
                    ) from error
                n_tries += 1
                self._metrics.rpc_retries.labels(endpoint.label).inc()
                # A pause only once every node had its turn.
                if n_tries % len(self.endpoints) == 0:
                    if self._stop.wait(pause_s):
                        raise
                    pause_s = min(2 * pause_s, PAUSE_SECONDS_MAX)

    def _failed(self, endpoint: Endpoint, method: Method, error: NodeOutageError) -> None:
        self._metrics.rpc_errors.labels(method, endpoint.label, error.fault).inc()
        log.warning("node %s", error)
        here = self.endpoints.index(endpoint)
        # Another thread may have gone on already.
        if self._current == here:
            self._current = (here + 1) % len(self.endpoints)


def labels(urls: Sequence[str]) -> list[str]:
    """Return a name for each URL that gives no key away: host and port, numbered where several are alike.

    >>> labels(["https://user:secret@eth.example/v2/KEY", "http://127.0.0.1:8545", "https://eth.example/other"])
    ['eth.example', '127.0.0.1:8545', 'eth.example#2']
    """
    found: list[str] = []
    seen: dict[str, int] = {}
    for url in urls:
        name = urlsplit(url).netloc.rpartition("@")[2]
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def _header(endpoint: Endpoint, tag: Tag) -> Header:
    raw = endpoint.ask("eth_getBlockByNumber", (tag, False))
    if bytes(raw) == b"null":
        raise NodeOutageError("missing_block", f"{endpoint.label} has no {tag} block")
    return _decoded(endpoint, raw, WireHeader).header()


def _block(endpoint: Endpoint, number: int, chain_id: int) -> Block:
    """Return a block by one request where the node takes batches and knows the receipts of a block."""
    at = hex(number)
    asked: tuple[Method, Sequence[object]] = ("eth_getBlockByNumber", (at, True))
    receipts = None
    if endpoint.has_block_receipts:
        try:
            raw, receipts = endpoint.ask_all([asked, ("eth_getBlockReceipts", (at,))])
        except _UnknownMethodError:
            endpoint.has_block_receipts = False
            log.warning("no eth_getBlockReceipts endpoint=%s: receipts are asked for one by one", endpoint.label)
    if receipts is None:
        raw = endpoint.ask(*asked)
    if bytes(raw) == b"null":
        raise NodeOutageError("missing_block", f"{endpoint.label} has no block {number}, though its head is higher")
    wire = _decoded(endpoint, raw, WireBlock)
    if int(wire.number, 16) != number:
        raise NodeOutageError("wrong_block", f"{endpoint.label} gave block {int(wire.number, 16)} for block {number}")
    if receipts is None:
        found = _single_receipts(endpoint, wire)
    elif bytes(receipts) == b"null":
        raise NodeOutageError("pruned", f"{endpoint.label} has block {number} without its receipts")
    else:
        found = _decoded(endpoint, receipts, list[WireReceipt])
    return evm.block(wire, found, chain_id=chain_id)


def _single_receipts(endpoint: Endpoint, wire: WireBlock) -> list[WireReceipt]:
    found: list[WireReceipt] = []
    hashes = [tx.hash for tx in wire.transactions]
    for first in range(0, len(hashes), RECEIPTS_MAX):
        part = hashes[first : first + RECEIPTS_MAX]
        for tx_hash, raw in zip(
            part, endpoint.ask_all([("eth_getTransactionReceipt", (tx_hash,)) for tx_hash in part]), strict=True
        ):
            if bytes(raw) == b"null":
                raise NodeOutageError("pruned", f"{endpoint.label} has no receipt of transaction {tx_hash}")
            found.append(_decoded(endpoint, raw, WireReceipt))
    return found


def _decoded(endpoint: Endpoint, raw: Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise NodeOutageError("malformed", f"{endpoint.label}: {error}") from error
