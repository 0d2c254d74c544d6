"""A node whose answers are written before it is asked: `python -m tests.bench.canned_node HEAD TRANSACTIONS`.

Every block is one template with its number put in, 1.2 KB a transaction and 1.6 KB a receipt with one transfer, as
mainnet's are. Prints its URL; ends with its standard input.
"""

import re
import socket
import socketserver
import sys
import threading

import msgspec

from tests.nodes import GENESIS_TIME, wire_header, wire_receipt, wire_transaction

NUMBER = int("5e" * 16, 16)
"""Stands for a block's number; in hex it has 32 digits, as all that is derived from it."""

HERE, PARENT, TIME = f"{NUMBER:x}".encode(), f"{NUMBER - 1:x}".encode(), hex(GENESIS_TIME + 12 * NUMBER).encode()
BLOOM = "0x" + "00" * 256
SIGNATURE = {"r": "0x" + "8b" * 32, "s": "0x" + "31" * 32, "yParity": "0x1", "v": "0x1", "accessList": []}
INPUT = "0xa9059cbb" + "00" * 64

_ID = re.compile(rb'"id": (\d+)')
_AT = re.compile(rb'"params": \["(0x[0-9a-f]+|\w+)"')


class Templates:
    """A block, its receipts and its header, whole but for the number."""

    def __init__(self, n_transactions: int) -> None:
        own = {"blockHash": wire_header(NUMBER)["hash"], "blockNumber": hex(NUMBER), "input": INPUT, "chainId": "0x1"}
        transactions = [wire_transaction(NUMBER, i) | own | SIGNATURE for i in range(n_transactions)]
        receipts = [wire_receipt(NUMBER, i) | {"logsBloom": BLOOM, "type": "0x2"} for i in range(n_transactions)]
        header = wire_header(NUMBER) | {"logsBloom": BLOOM, "stateRoot": "0x" + "1e" * 32, "extraData": "0x"}
        self.header = msgspec.json.encode(header | {"transactions": []})
        self.block = msgspec.json.encode(header | {"transactions": transactions})
        self.receipts = msgspec.json.encode(receipts)


def numbered(template: bytes, number: int) -> bytes:
    """Return a template as the block of a number."""
    filled = template.replace(TIME, hex(GENESIS_TIME + 12 * number).encode())
    return filled.replace(HERE, b"%032x" % number).replace(PARENT, b"%032x" % max(0, number - 1))


def main() -> int:
    """Serve until standard input ends."""
    head, n_transactions = int(sys.argv[1]), int(sys.argv[2])
    templates = Templates(n_transactions)

    def result(call: bytes) -> bytes:
        if b"eth_chainId" in call:
            return b'"0x1"'
        at = _AT.search(call)
        assert at is not None, call
        number = int(at[1], 16) if at[1].startswith(b"0x") else head
        if number > head:
            return b"null"
        if b"Receipts" in call:
            return numbered(templates.receipts, number)
        return numbered(templates.block if b"true" in call else templates.header, number)

    def answer(body: bytes) -> bytes:
        calls = body.split(b"}, {") if body.startswith(b"[") else [body]
        told = []
        for call in calls:
            call_id = _ID.search(call)
            assert call_id is not None, call
            told.append(b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (call_id[1], result(call)))
        return b"[" + b",".join(told) + b"]" if body.startswith(b"[") else told[0]

    class Handler(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self) -> None:
            while self.rfile.readline():
                n_bytes = 0
                while (line := self.rfile.readline().strip()) != b"":
                    name, _, value = line.partition(b":")
                    n_bytes = int(value) if name.lower() == b"content-length" else n_bytes
                told = answer(self.rfile.read(n_bytes))
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(told)
                self.connection.sendall(head + told)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 64
        address_family = socket.AF_INET

    with Server(("127.0.0.1", 0), Handler) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
