"""Nodes that say what a test wants, a chain in memory or behind a JSON-RPC server, and ingestion from any node."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from features.errors import NodeOutageError
from service.chain import Header
from service.evm import Block
from service.ingest import Ingest
from service.node import Tag
from service.settings import Settings

GENESIS_TIME = 1_700_000_000
LIMIT_S = 30.0
"""Longest wait for ingestion to begin or to end."""


class FakeChain:
    """A chain of small blocks whose newest can be replaced; a `Chain` in every way. A block's hash tells its branch."""

    def __init__(self, n_blocks: int = 1) -> None:
        self.blocks: list[Block] = []
        self.n_branches = 0
        self.final = 0
        self.left: list[NodeOutageError] = []
        self.on_ask: Callable[[], None] = lambda: None
        """Called before each answer: what a chain does while it is being read."""

        for _ in range(n_blocks):
            self.grow()

    def grow(self) -> None:
        number = len(self.blocks)
        parent = self.blocks[-1].header.hash if self.blocks else "0x" + "0" * 64
        header = Header(number, f"0x{self.n_branches:032x}{number:032x}", parent, GENESIS_TIME + 12 * number)
        records = [(f"{header.hash}:{i}".encode(), f"{number} {header.hash}".encode()) for i in range(number % 3)]
        self.blocks.append(Block(header, records, len(records), 0))

    def reorganise(self, depth: int, *, growth: int) -> None:
        """Replace the newest blocks by others, more or fewer of them."""
        del self.blocks[len(self.blocks) - min(depth, len(self.blocks) - 1) :]
        self.n_branches += 1
        for _ in range(growth):
            self.grow()

    def head(self, tag: Tag = "latest") -> Header:
        self.on_ask()
        return self.blocks[-1 if tag == "latest" else self.final].header

    def block(self, number: int) -> Block:
        self.on_ask()
        try:
            return self.blocks[number]
        except IndexError:
            # The chain has become shorter, and the node goes on with it as soon as it is asked again.
            while len(self.blocks) <= number:
                self.grow()
            return self.blocks[number]

    def hash_at(self, number: int) -> str | None:
        self.on_ask()
        return self.blocks[number].header.hash if number < len(self.blocks) else None

    def leave(self, error: NodeOutageError) -> None:
        self.left.append(error)


class RpcError(Exception):
    """What a scripted method answers as a JSON-RPC error: code and message."""


class RpcServer:
    """A JSON-RPC server whose methods a test gives: a function of the parameters each, or a plain result."""

    def __init__(self, **methods: Any) -> None:
        self.methods = methods
        self.status = 200
        self.takes_batches = True
        self.asked: list[str] = []
        """The methods called, in order; `batch` stands for a request of several."""

        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = server.answer(body)
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.label = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.label}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.01), daemon=True)
        self._thread.start()

    def __enter__(self) -> "RpcServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, body: bytes) -> bytes:
        asked = json.loads(body)
        if not isinstance(asked, list):
            return json.dumps(self._result(asked)).encode()
        self.asked.append("batch")
        if not self.takes_batches:
            refused = {"code": -32600, "message": "batches are not supported"}
            return json.dumps({"jsonrpc": "2.0", "id": None, "error": refused}).encode()
        return json.dumps([self._result(each) for each in reversed(asked)]).encode()

    def _result(self, asked: dict[str, Any]) -> dict[str, Any]:
        method, params = asked["method"], asked["params"]
        self.asked.append(method)
        told: dict[str, Any] = {"jsonrpc": "2.0", "id": asked["id"]}
        found = self.methods.get(method, RpcError(-32601, "the method does not exist"))
        try:
            if isinstance(found, RpcError):
                raise found
            return told | {"result": found(*params) if callable(found) else found}
        except RpcError as error:
            code, message = error.args
            return told | {"error": {"code": code, "message": message}}


def wire_header(number: int, branch: int = 0) -> dict[str, Any]:
    """Return a block's header as a node writes it."""
    return {
        "number": hex(number),
        "hash": f"0x{branch:032x}{number:032x}",
        "parentHash": f"0x{branch:032x}{max(0, number - 1):032x}",
        "timestamp": hex(GENESIS_TIME + 12 * number),
    }


def wire_transaction(number: int, index: int) -> dict[str, Any]:
    """Return a plain transaction as a node writes it inside a block."""
    return {
        "hash": f"0x{number:032x}{index:032x}",
        "transactionIndex": hex(index),
        "from": "0x" + "3f" * 20,
        "to": f"0x{index:040x}",
        "value": hex(10**18 + index),
        "gas": "0x5208",
        "gasPrice": "0x3b9aca00",
        "nonce": hex(number),
        "input": "0x",
        "type": "0x0",
    }


def wire_receipt(number: int, index: int, branch: int = 0) -> dict[str, Any]:
    """Return its receipt, with one ERC-20 transfer."""
    topics = (
        "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef",
        "0x" + "00" * 12 + "3f" * 20,
        f"0x{index:064x}",
    )
    return {
        "transactionHash": f"0x{number:032x}{index:032x}",
        "blockHash": f"0x{branch:032x}{number:032x}",
        "gasUsed": "0x5208",
        "cumulativeGasUsed": hex(21_000 * (index + 1)),
        "effectiveGasPrice": "0x3b9aca00",
        "contractAddress": None,
        "status": "0x1",
        "logs": [{"address": "0x" + "da" * 20, "topics": topics, "data": f"0x{index:064x}", "logIndex": hex(index)}],
    }


def scripted(*, chain_id: int = 1, head: int = 9, n_transactions: int = 2, **methods: Any) -> RpcServer:
    """Return a server of an unchanging chain, some methods replaced."""

    def block(at: str, is_whole: bool) -> dict[str, Any] | None:
        number = head if not at.startswith("0x") else int(at, 16)
        if number > head:
            return None
        count = range(n_transactions)
        return wire_header(number) | {"transactions": [wire_transaction(number, i) for i in count] if is_whole else []}

    def receipts(at: str) -> list[dict[str, Any]] | None:
        return [wire_receipt(int(at, 16), i) for i in range(n_transactions)] if int(at, 16) <= head else None

    def receipt(tx_hash: str) -> dict[str, Any]:
        return wire_receipt(int(tx_hash[2:34], 16), int(tx_hash[34:], 16))

    plain = {
        "eth_chainId": hex(chain_id),
        "web3_clientVersion": "scripted/v1",
        "eth_getBlockByNumber": block,
        "eth_getBlockReceipts": receipts,
        "eth_getTransactionReceipt": receipt,
    }
    return RpcServer(**(plain | methods))


@contextlib.contextmanager
def ingesting(settings: Settings) -> Iterator[Ingest]:
    """Ingest in a thread while the block runs, from when it is ready, then stop; what it raised is raised here."""
    ingest = Ingest(settings)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            ingest.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    deadline = time.monotonic() + LIMIT_S
    try:
        while not ingest.ready.wait(0.02) and not raised:
            assert time.monotonic() < deadline, "ingestion did not become ready"
        if not raised:
            yield ingest
    finally:
        ingest.stop()
        thread.join(LIMIT_S)
        assert not thread.is_alive(), "ingestion did not end"
    if raised:
        raise raised[0]
