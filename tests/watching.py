"""One run that gives every panel and rule something to show: the service under load on Kafka, read by Prometheus.

`tests/integration/test_watching.py` asks it every query, `tests/pictures.py` draws it.
"""

import contextlib
import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from deploy import generate
from deploy.prometheus.configuration import configuration
from models import registry
from service import simulator
from service.anvil import Anvil
from service.children import Service
from service.settings import PREFIX, Settings
from tests import registries, replica, servers

CHAIN = "simulated"
CHAIN_ID = 31337
SEED = 5
LIMIT_S = 120.0
"""Each step takes a second or two alone on two cores, and forty times that was seen among six other loads."""
RATE = 1_000
"""Messages a second: a third of what one core shared with the broker, Prometheus and the tests was seen to do."""

DAMAGED_EVERY = 300
VARIABLES = {"instance": ".*", "chain": ".*", "__rate_interval": "5s", "datasource": "prometheus"}


class Query(NamedTuple):
    """One query with the place it comes from."""

    place: str
    expr: str
    is_instant: bool


class Watched:
    """A Prometheus that reads a service."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self.settings = settings
        self.started_s = time.time()
        self.ended_s = self.started_s

    def get(self, path: str, **parameters: object) -> Any:
        """Return the data of an answer.

        Raises:
            RuntimeError: Prometheus refuses; its words are in the message.
        """
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{url}: {json.load(error)['error']}") from None

    def series(self, query: Query, *, rate_interval: str = "5s") -> list[dict[str, Any]]:
        """Return the series that a panel would draw over the whole run: `metric` and `values`."""
        expr = substituted(query.expr, __rate_interval=rate_interval)
        if query.is_instant:
            found = self.get("query", query=expr, time=self.ended_s)["result"]
            return [{"metric": each["metric"], "values": [each["value"]]} for each in found]
        found = self.get("query_range", query=expr, start=self.started_s, end=self.ended_s, step=1)
        return list(found["result"])


def substituted(expr: str, **changes: str) -> str:
    """Return an expression with Grafana's variables as All would set them.

    Raises:
        KeyError: It names a variable that no dashboard has.
    """
    values = VARIABLES | changes
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values[match[1]], expr)


def dashboards() -> dict[str, dict[str, Any]]:
    """Return the dashboards that are checked in, by the names of their files."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(generate.GRAFANA.glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a dashboard's panels, those inside rows included and the rows themselves not."""
    nested = [inner for each in dashboard["panels"] for inner in (each, *each.get("panels", ()))]
    return [each for each in nested if each["type"] != "row"]


def queries() -> list[Query]:
    """Return every query of every panel and annotation."""
    found = []
    for name, dashboard in dashboards().items():
        found += [
            Query(f"{name}: {panel['title']}: {target['refId']}", target["expr"], bool(target.get("instant")))
            for panel in panels(dashboard)
            for target in panel.get("targets", ())
        ]
        for each in dashboard["annotations"].get("list", ()):
            found.append(Query(f"{name}: annotation {each['name']}", each["expr"], False))
    return found


@contextlib.contextmanager
def watched(address: str, folder: Path, *, seconds: float, library: str = "confluent-kafka") -> Iterator[Watched]:
    """Serve, restart, promote, refuse a model and send damaged messages, while Prometheus reads once a second.

    Args:
        address: Of a Kafka broker; topics of the run's own are made on it.
        folder: Where everything goes.
        seconds: How long traffic flows after the restart; 10 give every panel something to show.
        library: The service's Kafka client.

    Raises:
        MissingServerError: No Prometheus, or no anvil.
    """
    servers.binary("prometheus")
    port, ingest_port = servers.free_ports(2)
    settings = _settings(address, folder, port, library)
    _create(address, settings)
    environment = replica.environment(settings)
    config = configuration(
        targets=[f"127.0.0.1:{port}"],
        ingesters=[f"127.0.0.1:{ingest_port}"],
        chain=CHAIN,
        scrape_seconds=1,
        alertmanagers=(),
        rules=str(generate.PROMETHEUS / "rules" / "*.yml"),
    )
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(servers.prometheus(folder / "prometheus", generate.as_yaml(config, source="a test")))
        watched = Watched(url, settings)
        service = Service(environment, folder)
        stack.callback(service.kill)
        node = stack.enter_context(servers.anvil("--block-time", "1", chain_id=CHAIN_ID))
        stack.enter_context(_ingesting(settings, node, ingest_port, folder))
        traffic = Traffic(settings)
        stack.callback(traffic.stop)
        traffic.start()
        until(lambda: scored(watched) > RATE, service.check)
        service.stop(20.0)
        service = Service(environment, folder)
        stack.callback(service.kill)
        until(lambda: bool(counted(watched, 'changes(process_start_time_seconds{job="falconet"}[1m])')), service.check)
        # A foreign one is refused; the shipped one, with its reference and its large model, takes over.
        champion = settings.registry_dir / "champion"  # type: ignore[operator]
        champion.write_text("drawn/2\n")
        until(lambda: counted(watched, 'falconet_model_reloads_total{outcome="refused"}') > 0, service.check)
        champion.write_text(f"{_shipped()}\n")
        until(lambda: counted(watched, 'falconet_model_reloads_total{outcome="loaded"}') > 0, service.check)
        until(lambda: counted(watched, "falconet_ingest_block") > 3, service.check)
        node.ask("anvil_reorg", 2, [])
        enough_at_s = time.monotonic() + seconds
        until(lambda: time.monotonic() > enough_at_s, service.check, limit_s=seconds + 1.0)
        until(lambda: counted(watched, 'count(falconet_drift_psi{feature="score"} >= 0)') > 0, service.check)
        until(lambda: counted(watched, "falconet_reorg_depth_blocks_count") > 0, service.check)
        watched.ended_s = time.time()
        yield watched
        traffic.stop()
        service.stop(20.0)


@contextlib.contextmanager
def _ingesting(settings: Settings, node: Anvil, port: int, folder: Path) -> Iterator[None]:
    """Run `falconet ingest` of a node as a process, onto a topic that nobody scores."""
    changed = {
        "bootstrap_servers": settings.bootstrap_servers,
        "transactions_topic": "watched.chain",
        "checkpoint_topic": "watched.checkpoint",
        "rpc_urls": f"{node.url},{node.ws_url}",
        "chain_id": CHAIN_ID,
        "start_block": 0,
        "metrics_port": port,
    }
    accounts = node.ask("eth_accounts")
    for sender, recipient in itertools.pairwise(accounts):
        node.ask("eth_sendTransaction", {"from": sender, "to": recipient, "value": "0x1", "gas": "0x5208"})
    with (folder / "ingest.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from service.cli import main; main()", "ingest"],
            env=os.environ | {PREFIX + name.upper(): str(value) for name, value in changed.items()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Traffic(threading.Thread):
    """Simulated messages at a steady rate until stopped, one in DAMAGED_EVERY cut in half."""

    def __init__(self, settings: Settings, *, rate: float = RATE, n: int = 30_000) -> None:
        super().__init__(daemon=True)
        self._rate = rate
        self._values = [one.value for one, _ in zip(simulator.stream(SEED), range(n), strict=False)]
        self._producer = Producer({"bootstrap.servers": settings.bootstrap_servers, "linger.ms": 5})
        self._topic = settings.transactions_topic
        self._stopping = threading.Event()

    def run(self) -> None:
        started_s, n_sent = time.perf_counter(), 0
        while not self._stopping.wait(0.002):
            due = int((time.perf_counter() - started_s) * self._rate)
            while n_sent < due:
                value = self._values[n_sent % len(self._values)]
                n_sent += 1
                self._producer.produce(self._topic, value[: len(value) // 2] if n_sent % DAMAGED_EVERY == 0 else value)
            self._producer.poll(0)
        self._producer.flush(10)

    def stop(self) -> None:
        """Stop sending and wait for the end of it."""
        self._stopping.set()
        if self.is_alive():
            self.join(LIMIT_S)


def score_of(settings: Settings, position: dict[str, str]) -> dict[str, Any]:
    """Return the committed score of the transaction at a position, reading the scores from their beginning."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": "reader",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    n_partitions = len(consumer.list_topics(settings.scores_topic).topics[settings.scores_topic].partitions)
    consumer.assign([TopicPartition(settings.scores_topic, i, 0) for i in range(n_partitions)])
    wanted = (position["topic"], int(position["partition"]), int(position["offset"]))
    deadline = time.monotonic() + LIMIT_S
    try:
        while time.monotonic() < deadline:
            for message in consumer.consume(5_000, 0.1):
                score: dict[str, Any] = json.loads(message.value() or b"{}")
                source = score.get("source", {})
                if (source.get("topic"), source.get("partition"), source.get("offset")) == wanted:
                    return score
    finally:
        consumer.close()
    raise AssertionError(f"no score of {wanted}")


def counted(watched: Watched, expr: str) -> float:
    """Return the sum of an instant answer, 0 where it is empty."""
    found = watched.get("query", query=f"sum({expr})")["result"]
    return float(found[0]["value"][1]) if found else 0.0


def scored(watched: Watched) -> float:
    """Return how many transactions Prometheus saw scored."""
    return counted(watched, 'falconet_transactions_total{outcome="scored"}')


def until(condition: Callable[[], bool], check: Callable[[], None], *, limit_s: float = LIMIT_S) -> None:
    """Wait until a condition holds, and raise at once what `check` raises."""
    pause = threading.Event()
    deadline = time.monotonic() + limit_s
    while not condition():
        check()
        assert time.monotonic() < deadline, "the condition did not come to hold"
        pause.wait(0.1)


def _settings(address: str, folder: Path, port: int, library: str) -> Settings:
    root = folder / "registry"
    shipped = registry.model_path("").parent
    shutil.copytree(shipped, root / shipped.parent.name / shipped.name)
    registries.add_version(root, "1", seed=1)
    registries.add_version(root, "2", seed=2, schema="0" * 16)
    (root / "champion").write_text("drawn/1\n")
    lists = folder / "lists.csv"
    with lists.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(simulator.Flagged._fields)
        writer.writerows(simulator.flagged(simulator.inhabited(SEED), 20_000))
    return Settings(
        bootstrap_servers=address,
        kafka_client=library,  # type: ignore[arg-type]
        **replica.own_names("watched"),
        registry_dir=root,
        model_poll_seconds=0.2,
        candidate_model="drawn/1",
        screening_lists=(lists,),
        state_dir=folder / "state",
        # Few, so that some are forgotten.
        accounts_max=2_000,
        pairs_max=10_000,
        metrics_port=port,
        shadow_share=0.01,
        drift_rows=1_000,
    )


def _shipped() -> str:
    folder = registry.model_path("").parent
    return f"{folder.parent.name}/{folder.name}"


def _create(address: str, settings: Settings) -> None:
    admin = AdminClient({"bootstrap.servers": address})
    for created in admin.create_topics([NewTopic(settings.transactions_topic, 2, 1)]).values():
        created.result(timeout=LIMIT_S)
