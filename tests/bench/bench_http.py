"""Time checks before signing beside the stream: `python -m tests.bench.bench_http`.

`falconet serve` scores 2,000 transactions a second from an Apache Kafka of its own while a process of its own asks
`/v1/score` 500 times a second over 8 connections, open-loop: each request has a due time, and its time counts from
there, so a stall counts against all that were due in it. Every answer must be 200 with a decision.

    --client NAME    kafka-python or confluent-kafka, instead of both
    --rounds N       instead of 3
    --json FILE      where the figures go
"""

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from service import bench, bench_kafka, simulator
from service.bench import Figure
from service.settings import KAFKA_CLIENTS, Settings
from tests import servers
from tests.bench import command

STREAM_RATE = 2_000
CHECK_RATE = 500
CONNECTIONS = 8
SECONDS, WARM_SECONDS = 15.0, 3.0
ANSWER_BYTES_MAX = 65_536
TOKEN = "the benchmark's own token"


def bodies(n: int) -> list[bytes]:
    """Return withdrawals between the stream's own accounts."""
    found = []
    for value in simulator.messages(1, n):
        tx = msgspec.json.decode(value)
        if tx["type"] == "transaction":
            asked = {"from_address": tx["from_address"], "to_address": tx["to_address"], "value": str(tx["value"])}
            found.append(json.dumps(asked).encode())
    return found


def ask(host: str, port: int, due_s: list[float], wanted: list[bytes], took_s: list[float]) -> None:
    """Send one connection's requests, each when it is due or as soon as the one before is answered."""
    connection = socket.create_connection((host, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for due, body in zip(due_s, wanted, strict=True):
        head = f"POST /v1/score HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        if (wait := due - time.perf_counter()) > 0:
            time.sleep(wait)
        connection.sendall(request)
        answer = connection.recv(ANSWER_BYTES_MAX)
        while not _is_whole(answer):
            more = connection.recv(ANSWER_BYTES_MAX)
            assert more, answer
            answer += more
        took_s.append(time.perf_counter() - due)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert b'"decision"' in answer
    connection.close()


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    return bool(end) and len(body) == int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])


def load(url: str, seconds: float) -> list[float]:
    """Return the seconds that each check took from its due time.

    Each connection has a thread that sleeps until the next is due: asyncio sleeps in whole milliseconds.
    """
    host, _, port = url.partition(":")
    wanted = bodies(2_000)
    start, n = time.perf_counter() + 0.2, int(seconds * CHECK_RATE)
    took_s: list[float] = []
    threads = []
    for first in range(CONNECTIONS):
        ours = range(first, n, CONNECTIONS)
        due_s, asked = [start + i / CHECK_RATE for i in ours], [wanted[i % len(wanted)] for i in ours]
        threads.append(threading.Thread(target=ask, args=(host, int(port), due_s, asked, took_s)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took_s


def checks(address: str, client: str) -> NDArray[np.float64]:
    """Run one stream with checks beside it and return what each took, in milliseconds."""
    settings = Settings(bootstrap_servers=address)
    names = bench_kafka._topics(settings)
    values = simulator.messages(1, 20_000)
    n = int(STREAM_RATE * (SECONDS + 2 * WARM_SECONDS))
    with bench_kafka._serve(settings, client, names, FALCONET_HTTP_TOKEN=TOKEN) as service:
        sending = (settings, names["transactions_topic"], values, STREAM_RATE, n, [])
        sender = threading.Thread(target=bench_kafka._send_at, args=sending, daemon=True)
        sender.start()
        time.sleep(WARM_SECONDS)
        url = service.url.removeprefix("http://").partition("/")[0]
        # A process of its own: under one interpreter with the sender it would time the sender.
        command = [sys.executable, "-m", "tests.bench.bench_http", "--load", url]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        sender.join()
    return np.array(json.loads(found)) * 1e3


def figures(address: str, clients: Sequence[str], rounds: int) -> Iterator[Figure]:
    """Measure each client, in alternating rounds, once the broker's code is compiled."""
    bench_kafka.warm(Settings(bootstrap_servers=address))
    took_ms: dict[str, list[NDArray[np.float64]]] = {client: [] for client in clients}
    for _ in range(rounds):
        for client in clients:
            took_ms[client].append(checks(address, client))
    for client, found in took_ms.items():
        for q, target in ((50, ""), (99, "≤ 2"), (99.9, "")):
            name = f"check before signing, {CHECK_RATE} a second beside {STREAM_RATE:,} tx/s, {client}, p{q:g}"
            yield bench.figure(name, [float(np.percentile(each, q)) for each in found], "ms", target)


def main() -> int:
    """Measure, print, and write where asked."""
    if sys.argv[1:2] == ["--load"]:
        print(json.dumps(load(sys.argv[2], SECONDS)))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", choices=KAFKA_CLIENTS, help="else both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{bench.machine()}, commit {bench.commit()}")
    with servers.kafka() as address:
        clients = [options.client] if options.client else KAFKA_CLIENTS
        command.tell(figures(address, clients, options.rounds), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
