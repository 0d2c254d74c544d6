"""Every query of every panel and rule on a real Prometheus that reads the service under load."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy import generate
from deploy.prometheus.alerts import ALERTS
from tests import servers, watching
from tests.watching import Query, Watched

RECORDING = yaml.safe_load((generate.PROMETHEUS / "rules" / "recording.yml").read_text(encoding="utf-8"))
RULES = [
    Query(f"record {rule['record']} {rule['labels']}", rule["expr"], False)
    for group in RECORDING["groups"]
    for rule in group["rules"]
]
CONDITIONS = [
    Query(f"alert {alert.name} {alert.severity}", condition.vector, False)
    for alert in ALERTS
    for every in alert.any_of
    for condition in every
]
QUERIES = [*watching.queries(), *RULES, *CONDITIONS]

pytestmark = pytest.mark.timeout(400)
"""Half a minute alone on two cores; the first test's time holds the whole run."""


@pytest.fixture(scope="module")
def watched(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One run that all queries look back on."""
    folder: Path = tmp_path_factory.mktemp("watched")
    with contextlib.ExitStack() as stack:
        try:
            run = stack.enter_context(watching.watched(broker, folder, seconds=8.0))
        except servers.MissingServerError as error:
            pytest.skip(str(error))
        yield run


def test_every_query_finds_something(watched: Watched) -> None:
    """No query of a panel, an annotation, a recording rule or an alert's condition errs, and none finds nothing."""
    assert len(QUERIES) > 100

    empty = [query for query in QUERIES if not numbers(watched, query)]
    assert empty == []


def numbers(watched: Watched, query: Query) -> list[float]:
    """Return the finite values of an answer: NaN, as of 0 / 0, draws nothing."""
    values = [float(value) for series in watched.series(query) for _, value in series["values"]]
    return [value for value in values if math.isfinite(value)]


def test_a_query_of_nothing_is_seen(watched: Watched) -> None:
    """A metric that is not there, a share of nothing and a wrong expression do not pass for an answer."""
    assert numbers(watched, Query("", "falconet_of_nothing", False)) == []
    assert numbers(watched, Query("", "vector(0) / 0", False)) == []
    with pytest.raises(RuntimeError, match="parse error"):
        numbers(watched, Query("", "sum(", False))


def test_every_rule_is_healthy(watched: Watched) -> None:
    """Prometheus evaluates each rule that is checked in, and none fails."""
    rules = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]

    assert len(rules) == len(RULES) + len(ALERTS)
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []


def test_exemplar_leads_to_its_score(watched: Watched) -> None:
    """Prometheus keeps positions for slow buckets, and at the slowest one's position a score was written."""
    found = watched.get(
        "query_exemplars",
        query="falconet_end_to_end_seconds_bucket",
        start=watched.started_s,
        end=watched.ended_s,
    )
    exemplars = [each for series in found for each in series["exemplars"]]
    slowest = max(exemplars, key=lambda each: float(each["value"]))["labels"]

    assert len(exemplars) > 1
    assert slowest["topic"] == watched.settings.transactions_topic
    assert watching.score_of(watched.settings, slowest)["status"] == "scored"


def test_variables_offer_the_replica_and_its_chain(watched: Watched) -> None:
    """What the dashboards' variables ask for has values."""
    assert watched.get("label/chain/values", **{"match[]": "falconet_transactions_total"}) == [watching.CHAIN]
    assert len(watched.get("label/instance/values", **{"match[]": "falconet_transactions_total"})) == 1
    assert len(watched.get("label/instance/values", **{"match[]": "falconet_ingest_blocks_total"})) == 1
