"""The demo's sender: a process of its own that writes transactions to Kafka at a fixed rate, whatever becomes of them.

The rate is open-loop: what is due is sent even while the service stalls, so that a stall shows in the latencies.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from service import ethereum_etl, simulator
from service.settings import Settings

TICK_SECONDS = 0.005
CHUNK_MAX = 1_000
"""Most messages between two looks at the pipe: 40 ms of sending."""

GRACE = 1.5
"""At a rate that it cannot keep up, the sender stops after so many times the time asked for, not when all is sent."""

DAMAGED_EVERY = 2_500
"""One message in so many is cut in half, to show the dead-letter topic."""


class Plan(NamedTuple):
    """What to send and how fast."""

    settings: Settings
    input: Path | None
    """A parquet file of real transactions; None simulates."""

    seed: int
    rate: float
    n: int


class Sent(NamedTuple):
    """One report to the demo."""

    transactions: list[tuple[str, str | None]]
    """Id and kind of fraud of each transaction sent."""

    n_damaged: int


def publish(plan: Plan, pipe: Connection) -> None:
    """Send the first transaction, wait for `go` on the pipe, send the rest, report each chunk, end with None.

    Anything else on the pipe stops it early, and so does the end of the demo. Runs in a process of its own.
    """
    from kafka import KafkaProducer
    from kafka.errors import KafkaTimeoutError

    from service.kafka_python import connection

    producer = KafkaProducer(**connection(plan.settings), linger_ms=5, batch_size=256 * 1024, metrics_enabled=False)
    try:
        _publish(plan, pipe, producer)
    except (EOFError, ConnectionError):
        # The demo ended: nobody is left to report to, or to mind what is not sent yet.
        with contextlib.suppress(KafkaTimeoutError):
            producer.close(timeout=0.2)
    else:
        producer.close()


def _publish(plan: Plan, pipe: Connection, producer: Any) -> None:
    topic = plan.settings.transactions_topic

    def send(n: int) -> int:
        transactions: list[tuple[str, str | None]] = []
        n_damaged = 0
        for transaction_id, kind, value in itertools.islice(source, n):
            if transaction_id is None:
                n_damaged += 1
                producer.send(topic, value)
            else:
                producer.send(topic, value, transaction_id.encode())
                transactions.append((transaction_id, kind))
        pipe.send(Sent(transactions, n_damaged))
        return len(transactions) + n_damaged

    source = itertools.islice(_source(plan), plan.n)
    n_sent = send(1)
    producer.flush()
    if told(pipe, wait=True) == "go":
        started_s = time.perf_counter()
        longest_s = GRACE * plan.n / plan.rate + 1.0
        while n_sent < plan.n and told(pipe, wait=False) is None:
            elapsed_s = time.perf_counter() - started_s
            if elapsed_s > longest_s:
                break
            due = min(plan.n, 1 + int(elapsed_s * plan.rate))
            if due == n_sent:
                time.sleep(TICK_SECONDS)
                continue
            wanted = min(due - n_sent, CHUNK_MAX)
            n = send(wanted)
            n_sent += n
            if n < wanted:
                # The file is at its end.
                break
    producer.flush()
    pipe.send(None)


def _source(plan: Plan) -> Iterator[tuple[str | None, str | None, bytes]]:
    """Yield id, kind of fraud and message; a message without an id is damaged."""
    if plan.input is not None:
        yield from ((transaction_id, None, value) for transaction_id, value in ethereum_etl.from_parquet(plan.input))
        return
    for index, one in enumerate(simulator.stream(plan.seed), start=1):
        yield one.id, one.kind, one.value
        if index % DAMAGED_EVERY == 0:
            yield None, None, one.value[: len(one.value) // 2]


def told(pipe: Connection, *, wait: bool) -> str | None:
    """Return what the demo says on a sender's pipe, None while it is silent."""
    return str(pipe.recv()) if wait or pipe.poll() else None
