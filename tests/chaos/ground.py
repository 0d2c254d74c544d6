"""Where streams are put under fire: a broker with a proxy for each client library, and how one fault is tried."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from models import report
from tests import servers
from tests.chaos import faults
from tests.chaos.faults import Fault
from tests.chaos.proxy import Proxy
from tests.chaos.report import Row
from tests.chaos.stage import Stage
from tests.chaos.verdict import Verdict
from tests.servers import KafkaBroker, Listener


class Ground(NamedTuple):
    """A running broker, and the only ways to it that services know."""

    broker: KafkaBroker
    proxies: list[Proxy]


@contextlib.contextmanager
def ground(folder: Path, n_proxies: int) -> Iterator[Ground]:
    """Run a broker with some proxies before it.

    Raises:
        MissingServerError: No Java, or no jars and no Maven to fetch them.
    """
    libs = servers.kafka_libs()
    with contextlib.ExitStack() as stack:
        proxies = [Proxy() for _ in range(n_proxies)]
        for proxy in proxies:
            stack.callback(proxy.close)
        doors = [Listener(f"PROXY{i}", "PLAINTEXT", {}, proxy.port) for i, proxy in enumerate(proxies)]
        folder.mkdir(parents=True, exist_ok=True)
        broker = KafkaBroker(folder, libs, listeners=doors)
        for door, proxy in zip(doors, proxies, strict=True):
            proxy.target_port = int(broker.address_of(door.name).rpartition(":")[2])
        broker.start()
        stack.callback(broker.stop)
        yield Ground(broker, proxies)


def strike(there: Ground, fault: Fault, client: str, folder: Path, *, n: int, seed: int) -> Row:
    """Do a fault n times to streams of their own and judge them.

    Args:
        there: With as many proxies as the fault has lanes.
        fault: Which.
        client: The service's Kafka library.
        folder: For state and logs.
        n: How often.
        seed: Of traffic and instants.

    Raises:
        ChaosError: Something hung, or ended as nothing may.
        PermissionError: The fault needs a small disk, and none can be mounted.
    """
    shares = [len(range(lane, n, fault.n_lanes)) for lane in range(fault.n_lanes)]

    def run(lane: int) -> tuple[Stage, Verdict]:
        with contextlib.ExitStack() as stack:
            name = f"{fault.name}-{client}-{lane}"
            place = folder / name
            if fault.has_disk:
                stack.enter_context(faults.disk(place / "state"))
            stage = Stage(
                there.broker,
                there.proxies[lane],
                client,
                name,
                place,
                seed=seed + lane,
                n_partitions=fault.n_partitions,
            )
            stack.callback(stage.close)
            stage.begin()
            fault.strike(stage, shares[lane])
            return stage, stage.finish()

    with ThreadPoolExecutor(fault.n_lanes) as pool:
        done = list(pool.map(run, [lane for lane, share in enumerate(shares) if share]))
    verdicts = [verdict for _, verdict in done]
    return Row(
        fault=fault.name,
        does=fault.does,
        client=client,
        n_faults=sum(stage.n_faults for stage, _ in done),
        n_messages=sum(each.n_messages for each in verdicts),
        n_scores=sum(each.n_scores for each in verdicts),
        n_lost=sum(each.n_lost for each in verdicts),
        n_doubled=sum(each.n_doubled for each in verdicts),
        n_wrong=sum(each.n_wrong for each in verdicts),
        n_different=sum(each.n_different for each in verdicts) if fault.is_ordered else None,
        n_exits=sum(end.code == 1 for stage, _ in done for end in stage.ends),
        since=fault.since,
        recoveries_s=[round(each, 2) for stage, _ in done for each in stage.recoveries_s],
        commit=report.commit()[:12],
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
