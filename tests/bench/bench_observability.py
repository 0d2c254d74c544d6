"""What watching costs: `python -m tests.bench.bench_observability [--json FILE] [--client NAME] [--rounds N]`.

The service works off a full topic on an Apache Kafka of its own, watched and unwatched in turn. Watched: all metrics
with exemplars, drift, energy, and `/metrics` read once a second. Unwatched: no metric is counted, drift is off, nobody
reads the page. Both log in JSON, some ten lines a run, of which one tells that the service serves. The shadow model
runs in neither: it is no watching of the service. Figures are ratios of a round's two rates.
"""

import argparse
import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from service import bench, bench_kafka, scrape, simulator
from service.bench import Figure
from service.settings import KAFKA_CLIENTS, Settings
from tests import servers
from tests.bench import command

TRANSACTIONS = 200_000
SCRAPE_SECONDS = 1.0

WATCHED: dict[str, str] = {}
UNWATCHED = {"FALCONET_DRIFT_ROWS": "0"}


@contextlib.contextmanager
def read_every_second(url: str) -> Iterator[None]:
    """Read the metrics page as Prometheus would while the block runs."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(SCRAPE_SECONDS):
            scrape.read(url)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def rate(settings: Settings, client: str, values: list[bytes], *, is_watched: bool) -> float:
    """Return the transactions a second of one run over the middle 80 % of a full topic."""
    names = bench_kafka._topics(settings)
    bench_kafka._send(settings, names["transactions_topic"], values)
    module, chosen = ("service.cli", WATCHED) if is_watched else ("tests.bench.unwatched", UNWATCHED)
    with bench_kafka._reader(settings, names["scores_topic"]) as reader:
        with (
            bench_kafka._serve(settings, client, names, module=module, FALCONET_SHADOW_SHARE="0", **chosen) as service,
            read_every_second(service.url) if is_watched else contextlib.nullcontext(),
        ):
            bench_kafka._await_end(reader, names["scores_topic"], len(values))
        _, scored_ms = bench_kafka._read(reader, len(values))
    first, last = len(values) // 10, len(values) * 9 // 10
    return float((last - first) / ((scored_ms[last] - scored_ms[first]) / 1e3))


def figures(settings: Settings, clients: list[str], rounds: int) -> Iterator[Figure]:
    """Yield, by client, both rates and the ratio of each round."""
    values = simulator.messages(bench.SEED, TRANSACTIONS)
    for client in clients:
        for is_watched in (True, False):
            rate(settings, client, values[: TRANSACTIONS // 4], is_watched=is_watched)
        rates: dict[bool, list[float]] = {True: [], False: []}
        for i in range(rounds):
            for is_watched in (True, False) if i % 2 else (False, True):
                rates[is_watched].append(rate(settings, client, values, is_watched=is_watched))
        ratios = [watched / unwatched for watched, unwatched in zip(rates[True], rates[False], strict=True)]
        yield bench.figure(f"watched, {client}", rates[True], "tx/s", "")
        yield bench.figure(f"unwatched, {client}", rates[False], "tx/s", "")
        yield bench.figure(f"watched / unwatched, {client}", ratios, "times", "≥ 0.95")


def main() -> int:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", choices=KAFKA_CLIENTS, help="else both")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with servers.kafka() as address:
        clients = [options.client] if options.client else list(KAFKA_CLIENTS)
        command.tell(figures(Settings(bootstrap_servers=address), clients, options.rounds), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
