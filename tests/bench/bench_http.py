"""Time checks before signing beside the stream: `python -m tests.bench.bench_http [kafka-python|confluent-kafka]`.

`falconet serve` scores 2,000 transactions a second from an Apache Kafka of its own while a process of its own asks
`/v1/score` 500 times a second over 8 connections, open-loop: each request has a due time, and its time counts from
there, so a stall counts against all that were due in it. Every answer must be 200 with a decision.
"""

import asyncio
import json
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np

from models import report
from service import bench_kafka, simulator
from service.settings import Settings
from tests import servers

STREAM_RATE = 2_000
CHECK_RATE = 500
CONNECTIONS = 8
SECONDS, WARM_SECONDS = 15.0, 3.0
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


async def ask(host: str, port: int, due_s: list[float], wanted: list[bytes], took_s: list[float]) -> None:
    """Send one connection's requests, each when it is due or as soon as the one before is answered."""
    reader, writer = await asyncio.open_connection(host, port)
    for due, body in zip(due_s, wanted, strict=True):
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        head = f"POST /v1/score HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r")[0])
        assert b'"decision"' in await reader.readexactly(length)
        took_s.append(time.perf_counter() - due)
    writer.close()


async def load(url: str, seconds: float) -> list[float]:
    """Return the seconds that each check took from its due time."""
    host, _, port = url.partition(":")
    wanted = bodies(2_000)
    start, n = time.perf_counter() + 0.2, int(seconds * CHECK_RATE)
    took_s: list[float] = []
    await asyncio.gather(
        *(
            ask(
                host,
                int(port),
                [start + i / CHECK_RATE for i in range(first, n, CONNECTIONS)],
                [wanted[i % len(wanted)] for i in range(first, n, CONNECTIONS)],
                took_s,
            )
            for first in range(CONNECTIONS)
        )
    )
    return took_s


def run(address: str, client: str) -> None:
    """Run one stream with checks beside it and print what they took."""
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
    took_ms = np.array(json.loads(found)) * 1e3
    p50, p99, p999 = np.percentile(took_ms, [50, 99, 99.9])
    print(
        f"{client}: {len(took_ms):,} checks at {CHECK_RATE} a second beside {STREAM_RATE:,} tx/s: "
        f"p50 {p50:.2f}  p99 {p99:.2f}  p99.9 {p999:.2f}  longest {took_ms.max():.2f} ms",
        flush=True,
    )


def main() -> int:
    """Run both clients, or the one that is named."""
    if sys.argv[1:2] == ["--load"]:
        print(json.dumps(asyncio.run(load(sys.argv[2], SECONDS))))
        return 0
    print(f"{report.machine()}, commit {report.commit()[:12]}")
    with servers.kafka() as address:
        for client in sys.argv[1:] or ("kafka-python", "confluent-kafka"):
            run(address, client)
    return 0


if __name__ == "__main__":
    sys.exit(main())
