"""Half the capacity for two hours: `python -m tests.bench.bench_soak`; the short form has 20 minutes.

The service and the sender are processes, on an Apache Kafka of their own that shares the machine with them. Capacity
is measured first, on a backlog and beside a sender, which takes its part of the machine then too; half of it is offered
at a steady rate, and every five seconds the service is looked at: resident memory, file handles, threads, and the
latency of what was committed since. Flat means that the last quarter is like the second one; the first fills tables and
buffers. The topic that is read keeps a gigabyte, so that the logs do not outgrow the machine's memory.

    --minutes M      instead of 120
    --client NAME    kafka-python (default) or confluent-kafka
    --backlog N      messages that capacity is measured on, instead of some 10 s of them
    --json FILE      where the figures go, and the picture into `figures/` beside it
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from features.errors import FalconetError
from models import plots, report
from service import bench
from service.bench import Figure
from service.settings import KAFKA_CLIENTS
from tests import servers
from tests.bench import command
from tests.bench.bench_overload import ORDINARY, backlog
from tests.bench.load import Sample, Service, capacity, capacity_beside, offsets, rate, watched

EVERY_SECONDS = 5.0
PICTURE = "soak.svg"
KEPT = {"retention.bytes": str(2**30), "segment.bytes": str(2**28)}


def soak(
    address: str, folder: Path, client: str, *, minutes: float, n_backlog: int
) -> tuple[list[Sample], list[Figure]]:
    """Return what was seen, and the figures of it."""

    def serving(name: str) -> Service:
        return Service(address, client, folder, name)

    alone = capacity(serving, ORDINARY, n_backlog)
    most = capacity_beside(serving, ORDINARY, n_backlog, alone=alone, share=0.5)
    service = serving("soak")
    n = int(most / 2 * minutes * 60)
    seen, n_under, offered = watched(service, ORDINARY, n, most / 2, EVERY_SECONDS, configuration=KEPT)
    found = offsets(service, n)
    samples = [each for each in seen[:n_under] if each.scored]
    figures = [
        bench.figure("capacity, from a backlog, nobody sending", [alone], "tx/s"),
        bench.figure("capacity, from a backlog, beside a sender of half as much to another topic", [most], "tx/s"),
        bench.figure(f"offered for {offered.seconds / 60:.1f} minutes", [offered.n / offered.seconds], "tx/s"),
        bench.figure("scored", [rate(samples)], "tx/s"),
        bench.figure("lost, doubled or out of order", [_wrong(found, n)], "records", "= 0"),
        *flat(samples),
    ]
    return samples, figures


def _wrong(found: Sequence[int], n: int) -> int:
    """Return how many places hold another score than that of the message at this place."""
    return sum(offset != i for i, offset in enumerate(found)) + abs(n - len(found))


def flat(samples: Sequence[Sample]) -> Iterator[Figure]:
    """Yield every measure over the last three quarters, and its last quarter against the second."""
    quarter = len(samples) // 4
    rest = samples[quarter:]
    measures: tuple[tuple[str, str, str, Callable[[Sample], float | None]], ...] = (
        ("resident memory", "MiB", "≤ 1.02", lambda each: each.resident_mib),
        ("open files", "files", "≤ 1", lambda each: each.files),
        ("threads", "threads", "≤ 1", lambda each: each.threads),
        ("end to end, p50", "ms", "≤ 1.1", lambda each: None if each.p50_s is None else each.p50_s * 1e3),
        ("end to end, p99", "ms", "≤ 1.25", lambda each: None if each.p99_s is None else each.p99_s * 1e3),
    )
    for name, unit, must, measure in measures:
        values = [value for each in rest if (value := measure(each)) is not None]
        second, last = values[: len(values) // 3], values[-(len(values) // 3) :]
        yield bench.figure(f"{name}, looked at {len(values)} times", values, unit)
        yield bench.figure(f"{name}, last quarter / second quarter", [median(last) / median(second)], "times", must)


def picture(samples: Sequence[Sample], *, capacity_share: str) -> plots.Figure:
    """Return memory, handles, threads and latency over time."""
    at_minutes = [each.at_s / 60 for each in samples]

    def draw(canvas: Any) -> None:
        memory, handles, latency = canvas.subplots(3, 1, sharex=True)
        memory.plot(at_minutes, [each.resident_mib for each in samples], color=plots.GREEN)
        memory.set_ylabel("resident, MiB")
        for name, values, colour, line in (
            ("open files", [each.files for each in samples], plots.BLUE, "-"),
            ("threads", [each.threads for each in samples], plots.VERMILLION, "--"),
        ):
            handles.plot(at_minutes, values, line, color=colour)
            handles.annotate(name, (at_minutes[0], values[-1]), (4, 4), textcoords="offset points", color=colour)
        handles.set_ylabel("number")
        for name, measured, colour, line in (
            ("p99", [each.p99_s for each in samples], plots.PURPLE, "-"),
            ("p50", [each.p50_s for each in samples], plots.BLACK, "-"),
        ):
            values_ms = [float("nan") if each is None else each * 1e3 for each in measured]
            latency.plot(at_minutes, values_ms, line, color=colour, linewidth=1.2)
            latency.annotate(name, (at_minutes[-1], values_ms[-1]), (4, -4), textcoords="offset points", color=colour)
        latency.set_ylabel("end to end, ms")
        latency.set_yscale("log")
        latency.set_xlabel("minutes")
        for axes in (memory, handles):
            axes.set_ylim(bottom=0)

    last = samples[-1]
    alt = (
        f"Over {at_minutes[-1]:.0f} minutes at {capacity_share}, resident memory ends at {last.resident_mib:.0f} MiB "
        f"after {median(each.resident_mib for each in samples):.0f} MiB in the median, with {last.files} open files "
        f"and {last.threads} threads."
    )
    return plots.Figure("soak", f"{at_minutes[-1]:.0f} minutes at {capacity_share}", alt, (10, 8), draw)


def main() -> int:
    """Soak one client, print the figures, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--client", choices=KAFKA_CLIENTS, default=KAFKA_CLIENTS[0])
    parser.add_argument("--backlog", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # Broker, service and sender end with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"{report.machine()}, commit {report.commit()[:12]}, {options.client}")
    with tempfile.TemporaryDirectory() as folder, servers.kafka() as address:
        try:
            samples, figures = soak(
                address, Path(folder), options.client, minutes=options.minutes, n_backlog=backlog(options)
            )
        except FalconetError as error:
            print(f"bench_soak: {error}", file=sys.stderr)
            return 1
    command.tell(figures, options.json)
    if options.json is not None:
        share = f"half the capacity, {options.client}"
        (options.json.parent / "figures" / PICTURE).write_bytes(plots.svg(picture(samples, capacity_share=share)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
