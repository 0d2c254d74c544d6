"""More than the service can do: `python -m tests.bench.bench_overload`, or some of its parts by name.

    overload    twice the capacity is offered for ten minutes, then the backlog is worked off
    bad         10,000 bad messages a second among good ones
    hot         one address in every transaction
    distinct    ten times as many addresses as the budget of accounts

Everything runs on an Apache Kafka of its own, with the service and the sender as processes; where the machine has two
cores, the three share them. Capacity is measured twice in the same run, on a backlog: with nobody sending, once it no
longer rises from one backlog to the next, and while the sender sends what it will offer to another topic. Twice the
first is offered, and throughput under it is held against the second, which the sender has slowed as much.

    --minutes M      of the overload, instead of 10
    --client NAME    kafka-python (default) or confluent-kafka
    --addresses N    distinct ones, instead of 10,000,000; the budget is a tenth of them
    --backlog N      messages that capacity is measured on, instead of some 10 s of them
    --rounds N       of `bad` and `hot`, with and without in turn, instead of 3
    --json FILE      where the figures go; those of parts that this run leaves out stay
"""

import argparse
import itertools
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec

from features.errors import FalconetError
from models import plots, report
from service import bench
from service.bench import Figure
from service.settings import KAFKA_CLIENTS
from tests import servers
from tests.bench import command
from tests.bench.load import (
    Sample,
    Sender,
    Service,
    Stream,
    Watch,
    backlog_rate,
    capacity,
    capacity_beside,
    offsets,
    rate,
    watched,
)

ORDINARY = Stream("ordinary")
BAD_A_SECOND = 10_000
CAPACITY_SECONDS = 10.0
WINDOW_SECONDS = 10
GUESS = {"kafka-python": 40_000, "confluent-kafka": 60_000}
"""Transactions a second, for how long a backlog must be; the capacity is measured."""

PICTURE = "overload.svg"


class Ground(NamedTuple):
    """Where a part runs."""

    address: str
    folder: Path
    options: argparse.Namespace

    def service(self, name: str, **changes: Any) -> Service:
        """Return a service that is not started, of the client in question."""
        return Service(self.address, self.options.client, self.folder, name, **changes)

    @property
    def n(self) -> int:
        """Messages in a backlog."""
        return backlog(self.options)


def backlog(options: argparse.Namespace) -> int:
    """Return how many messages a backlog has: what takes the client in question some 10 s, where nothing is given."""
    return int(options.backlog or GUESS[options.client] * CAPACITY_SECONDS)


def overload(ground: Ground) -> Iterator[Figure]:
    """Offer twice the capacity, then let the backlog drain, and look at the order of all scores."""
    alone = capacity(ground.service, ORDINARY, ground.n)
    yield _one("capacity, from a backlog, nobody sending", alone, "tx/s")
    beside = capacity_beside(ground.service, ORDINARY, ground.n, alone=alone, share=2)
    yield _one("capacity, from a backlog, beside a sender of twice as much to another topic", beside, "tx/s")
    n = int(2 * alone * ground.options.minutes * 60)
    service = ground.service("overload")
    samples, n_under, offered = watched(service, ORDINARY, n, 2 * alone, 1.0)
    begun = next(i for i, each in enumerate(samples) if each.scored)
    rate_offered = offered.n / offered.seconds
    yield from _under(samples[begun:n_under], rate_offered, alone, beside)
    yield _one("latest that a message left the sender, against its schedule", offered.behind_s_max, "s")
    yield _one("backlog worked off after the last message", samples[-1].at_s - samples[n_under].at_s, "s")
    yield from _order(offsets(service, n), n)
    service.remove()
    if ground.options.json is not None:
        figure = picture(samples, offered=rate_offered, until_s=samples[n_under].at_s)
        (ground.options.json.parent / "figures" / PICTURE).write_bytes(plots.svg(figure))


def _under(samples: Sequence[Sample], offered: float, alone: float, beside: float) -> Iterator[Figure]:
    """Yield what was seen while more came than could be done."""
    size = max(1, min(WINDOW_SECONDS, len(samples) // 4))
    parts = [samples[i : i + size + 1] for i in range(0, len(samples) - size, size)]
    rates = [rate(part) for part in parts]
    minutes = (samples[-1].at_s - samples[0].at_s) / 60
    yield _one(f"offered for {minutes:.1f} minutes", offered, "tx/s")
    yield _one("offered / capacity with nobody sending", offered / alone, "times")
    yield bench.figure(f"throughput under it, over {size} s", rates, "tx/s")
    share = rate(samples) / beside
    yield _one("throughput under it / capacity beside a sender", share, "times", "≥ 0.9")
    quarter = max(1, len(parts) // 4)
    yield _one("its last quarter / its first", median(rates[-quarter:]) / median(rates[:quarter]), "times")
    # The first third fills tables and buffers: 50,000 accounts.
    resident = [each.resident_mib for each in samples[len(samples) // 3 :]]
    yield bench.figure("resident memory after the first third", resident, "MiB")
    yield _one("its growth from the second third to the last", _growth(resident), "%", "≤ 2")
    yield _one("lag at the end, as the metric shows it", samples[-1].lag, "records")


def _growth(values: Sequence[float]) -> float:
    half = len(values) // 2
    return 100 * (median(values[half:]) / median(values[:half]) - 1)


def _order(found: Sequence[int], n: int) -> Iterator[Figure]:
    """Yield what the scores' offsets in the input topic say, in the order in which they were written."""
    yield _one("scores", len(found), "records", f"= {n:,}")
    yield _one("lost or doubled", len(found) + n - 2 * len(set(found)), "records", "= 0")
    backwards = sum(after <= before for before, after in itertools.pairwise(found))
    yield _one("out of order", backwards, "records", "= 0")


def bad(ground: Ground) -> Iterator[Figure]:
    """Compare a backlog of good messages with one in which so many are bad that half the speed makes 10,000 a second.

    With good ones at half their rate or more, the bad ones between them come at 10,000 a second or more.
    """
    capacity(ground.service, ORDINARY, ground.n)
    plain, mixed, rejected = [], [], []
    share = 0.5
    for i in range(ground.options.rounds):
        plain.append(backlog_rate(ground.service(f"good-{i}"), ORDINARY, ground.n)[0])
        share = share if i else BAD_A_SECOND / (BAD_A_SECOND + plain[0] / 2)
        both = backlog_rate(ground.service(f"bad-{i}"), Stream("ordinary", share), ground.n)
        mixed.append(both[0])
        rejected.append(both[1])
    yield bench.figure("good messages, no bad ones between them", plain, "tx/s")
    yield _one("bad messages among all", 100 * share, "%")
    yield bench.figure("good messages with bad ones between them", mixed, "tx/s")
    yield bench.figure("bad messages meanwhile", rejected, "messages/s", "≥ 10,000")
    yield bench.figure("good messages with bad ones / without", _ratios(mixed, plain), "times", "≥ 0.5")


def hot(ground: Ground) -> Iterator[Figure]:
    """Compare ordinary traffic with traffic of which every transaction is sent by one address."""
    capacity(ground.service, ORDINARY, ground.n)
    plain, busy = [], []
    for i in range(ground.options.rounds):
        plain.append(backlog_rate(ground.service(f"ordinary-{i}"), ORDINARY, ground.n)[0])
        busy.append(backlog_rate(ground.service(f"hot-{i}"), Stream("hot"), ground.n)[0])
    yield bench.figure("one address in every transaction", busy, "tx/s")
    yield bench.figure("one address in every transaction / ordinary traffic", _ratios(busy, plain), "times")


def distinct(ground: Ground) -> Iterator[Figure]:
    """Send ten times as many addresses as the budget of accounts holds."""
    n = ground.options.addresses // 2
    budget = ground.options.addresses // 10
    service = ground.service("distinct", accounts_max=budget, pairs_max=2 * budget)
    service.create()
    sender = Sender(ground.address, service.transactions, Stream("distinct"), n)
    try:
        sender.wait()
    finally:
        sender.stop()
    with service.running(), Watch(service, 0.5) as watch:
        service.until_done(n)
    service.remove()
    last = watch.samples[-1]
    # Full is a table at the first eviction; until then its pages are touched one by one.
    full = [each for each in watch.samples if each.evicted > 0 and each.scored < n]
    begun = [each for each in watch.samples if each.scored and not each.evicted]
    yield _one("distinct addresses", 2 * n, "addresses")
    yield _one("accounts held", last.accounts, "accounts", f"≤ {budget:,}")
    yield _one("accounts forgotten, as the metric counts them", last.evicted, "accounts")
    yield _one("held and forgotten", last.accounts + last.evicted, "accounts", f"= {2 * n:,}")
    yield bench.figure("resident memory with a full table", [each.resident_mib for each in full], "MiB")
    yield _one("its growth", _growth([each.resident_mib for each in full]), "%", "≤ 2")
    yield _one("throughput with a full table", rate(full), "tx/s")
    if len(begun) > 1:
        yield _one("throughput with a full table / while it fills", rate(full) / rate(begun), "times")


def picture(samples: Sequence[Sample], *, offered: float, until_s: float) -> plots.Figure:
    """Return throughput, lag and memory over time.

    Args:
        samples: From before the first message until the last was scored.
        offered: Transactions a second.
        until_s: When the last was sent.
    """
    at_s = [each.at_s for each in samples]
    size = max(1, min(WINDOW_SECONDS, len(samples) // 20))
    rates = [rate(samples[i - size : i + 1]) for i in range(size, len(samples))]

    def draw(canvas: Any) -> None:
        top, middle, bottom = canvas.subplots(3, 1, sharex=True)
        top.plot(at_s[size:], rates, color=plots.BLUE)
        top.plot([0, until_s], [offered, offered], color=plots.VERMILLION, linestyle="--")
        top.annotate("offered", (until_s / 2, offered), (0, -16), textcoords="offset points", color=plots.VERMILLION)
        top.annotate("scored", (at_s[-1], rates[-1]), (-50, 6), textcoords="offset points", color=plots.BLUE)
        top.set_ylabel("tx/s")
        middle.plot(at_s, [each.lag for each in samples], color=plots.PURPLE)
        middle.set_ylabel("lag, records")
        bottom.plot(at_s, [each.resident_mib for each in samples], color=plots.GREEN)
        bottom.set_ylabel("resident, MiB")
        bottom.set_xlabel("seconds")
        for axes in (top, middle, bottom):
            axes.set_ylim(bottom=0)
            axes.axvline(until_s, color=plots.BLACK, linestyle=":", linewidth=1)

    alt = (
        f"{offered:,.0f} transactions a second are offered for {until_s:.0f} s. Scored are {median(rates):,.0f}, the "
        f"lag grows to {max(each.lag for each in samples):,.0f} records and is gone after {at_s[-1]:.0f} s, and "
        f"resident memory is at most {max(each.resident_mib for each in samples):,.0f} MiB."
    )
    return plots.Figure(
        "overload", "Twice the capacity: the lag grows, memory and throughput do not", alt, (10, 8), draw
    )


def _ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, others, strict=True)]


def _one(name: str, value: float, unit: str, must: str = "") -> Figure:
    return bench.figure(name, [value], unit, must)


def _named(figures: Iterator[Figure], client: str) -> Iterator[Figure]:
    return (msgspec.structs.replace(figure, name=f"{figure.name}, {client}") for figure in figures)


PARTS: dict[str, Callable[[Ground], Iterator[Figure]]] = {
    "overload": overload,
    "bad": bad,
    "hot": hot,
    "distinct": distinct,
}


def main() -> int:
    """Measure what is named, print it, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="|".join(PARTS))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--client", choices=KAFKA_CLIENTS, default=KAFKA_CLIENTS[0])
    parser.add_argument("--backlog", type=int)
    parser.add_argument("--addresses", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.names) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    # Broker, service and sender end with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"{report.machine()}, commit {report.commit()[:12]}, {options.client}")
    for name in options.names or PARTS:
        # A broker of its own for each: what one leaves on the disk is gone before the next.
        with tempfile.TemporaryDirectory() as folder, servers.kafka() as address:
            try:
                found = PARTS[name](Ground(address, Path(folder), options))
                command.tell(_named(found, options.client), options.json)
            except FalconetError as error:
                print(f"bench_overload: {name}: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
