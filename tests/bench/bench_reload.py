"""Show what a promotion costs a running stream: `python -m tests.bench.bench_reload [kafka-python|confluent-kafka]`.

`falconet serve` scores 2,000 transactions a second from an Apache Kafka of its own while the registry's champion
changes every three seconds between two versions of the shipped model, each with its large model in shadow. Printed are,
for the second before each promotion, for the time until the promoted model's first score (it is read, verified, laid
out and tried meanwhile), for the second from there on and for the rest, the delay of a transaction (from its due time
to its score being readable) and the longest pause between two scores; and that each was scored once, in order.
"""

import json
import shutil
import sys
import tempfile
import threading
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from features import durable
from models import compact, registry, report
from service import bench_kafka, simulator
from service.settings import KAFKA_CLIENTS, Settings
from tests import servers
from tests.registries import PROVENANCE

RATE = 2_000
SECONDS = 40
EVERY_SECONDS = 3.0
WARM_SECONDS = 10.0


def make_registry(root: Path) -> None:
    """Lay the shipped model out as two versions."""
    shipped = registry.champion()
    artifact = compact.read(shipped / registry.MODEL_FILE)
    for version in ("1", "2"):
        folder = root / artifact.header.name / version
        folder.mkdir(parents=True)
        for path in shipped.iterdir():
            if path.name not in (registry.MODEL_FILE, registry.MANIFEST_FILE):
                shutil.copy(path, folder)
        header = msgspec.structs.replace(artifact.header, version=version)
        compact.write(folder / registry.MODEL_FILE, header, artifact.trees)
        registry.seal(folder, PROVENANCE)
    name(root, artifact.header.name, "1")


def name(root: Path, model: str, version: str) -> None:
    """Make a version champion, whatever the gate would say."""
    durable.replace(root / registry.CHAMPION_FILE, f"{model}/{version}\n".encode())


def read(reader: Any, n: int) -> tuple[list[float], list[bytes]]:
    """Return when each of n scores became readable, and the scores."""
    arrived: list[float] = []
    values: list[bytes] = []
    while len(values) < n:
        # `consume` waits until it has all that was asked for or the time is over: it must not be asked to wait.
        first = reader.poll(0.05)
        now = time.time()
        for message in [] if first is None else [first, *reader.consume(5_000, 0)]:
            arrived.append(now)
            values.append(message.value())
    return arrived, values


def run(address: str, client: str, root: Path) -> None:
    """Run one stream and print what it showed."""
    settings = Settings(bootstrap_servers=address)
    names = bench_kafka._topics(settings)
    values = simulator.messages(1, 20_000)
    n = int(RATE * SECONDS)
    model = next(path.name for path in root.iterdir() if path.is_dir())
    promoted: list[float] = []
    limits = {"FALCONET_REGISTRY_DIR": str(root), "FALCONET_MODEL_POLL_SECONDS": "0.05"}
    with (
        bench_kafka._reader(settings, names["scores_topic"]) as reader,
        bench_kafka._serve(settings, client, names, **limits),
    ):
        schedule: list[float] = []
        sending = (settings, names["transactions_topic"], values, RATE, n, schedule)
        sender = threading.Thread(target=bench_kafka._send_at, args=sending, daemon=True)
        sender.start()

        def promote() -> None:
            pause = threading.Event()
            for i in range(int((SECONDS - WARM_SECONDS) / EVERY_SECONDS)):
                pause.wait(WARM_SECONDS if i == 0 else EVERY_SECONDS)
                promoted.append(time.time())
                name(root, model, "21"[i % 2])

        promoter = threading.Thread(target=promote, daemon=True)
        promoter.start()
        arrived, scores = read(reader, n)
        promoter.join()
        sender.join()
    show(client, np.array(arrived), [json.loads(score) for score in scores], schedule[0], promoted)


def show(client: str, arrived: Any, scores: list[dict[str, Any]], started: float, promoted: list[float]) -> None:
    """Print delays and pauses, near a promotion and between."""
    due = started + np.arange(len(arrived)) / RATE
    delay_ms, pause_ms = (arrived - due) * 1e3, np.diff(arrived, prepend=arrived[0]) * 1e3
    versions = [version for version, _ in groupby(score["model"]["version"] for score in scores)]
    offsets = [score["source"]["offset"] for score in scores]
    # The first score of each version that took over, in the same order as the promotions.
    names = np.array([score["model"]["version"] for score in scores])
    swapped = due[1:][names[1:] != names[:-1]]
    phase = np.full(len(due), "rest", dtype="<U8")
    for at, swap in zip(promoted, swapped, strict=True):
        phase[(due >= at - 1.0) & (due < at)] = "before"
        phase[(due >= at) & (due < swap)] = "read"
        phase[(due >= swap) & (due < swap + 1.0)] = "after"
    phase[due < started + WARM_SECONDS - 1.5] = "warm-up"
    print(f"{client}: {len(scores):,} scores, each offset once and in order: {offsets == list(range(len(scores)))}")
    print(f"  versions in order: {' '.join(versions)} for {len(promoted)} promotions")
    for label, which in (
        ("second before a promotion", "before"),
        ("until the swap", "read"),
        ("second after the swap", "after"),
        ("rest", "rest"),
    ):
        chosen = phase == which
        p50, p99, worst = np.percentile(delay_ms[chosen], [50, 99, 100])
        print(
            f"  {label:<25} {chosen.sum():6,} scores, delay p50 {p50:5.1f}  p99 {p99:5.1f}  longest {worst:5.1f} ms, "
            f"longest pause between scores {pause_ms[chosen].max():5.1f} ms"
        )
    worst_of_each = [delay_ms[(due >= at - 0.05) & (due < at + 1.0)].max(initial=0) for at in promoted]
    print("  longest delay after each: " + " ".join(f"{each:.0f}" for each in worst_of_each) + " ms")


def main() -> int:
    """Run both clients, or the one that is named."""
    print(f"{report.machine()}, commit {report.commit()[:12]}, {RATE:,} tx/s for {SECONDS} s")
    with tempfile.TemporaryDirectory() as folder, servers.kafka() as address:
        root = Path(folder) / "registry"
        make_registry(root)
        for client in sys.argv[1:] or KAFKA_CLIENTS:
            run(address, client, root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
