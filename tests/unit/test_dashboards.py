"""Dashboards, rules and runbooks as they are checked in: complete, current, and about metrics that exist."""

import json
import re
import subprocess
from pathlib import Path

import msgspec
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy import generate
from deploy.grafana import boards
from deploy.prometheus import objectives
from deploy.prometheus.alerts import ALERTS
from deploy.prometheus.conditions import RUNBOOKS
from service import ingest_metrics
from service.catalogue import CATALOGUE, PREFIX
from service.ingest_metrics import IngestMetrics
from service.metrics import Metrics
from tests import servers, watching

ROOT = generate.DEPLOY.parent
NAMES = sorted({alert.name for alert in ALERTS})
PAGES = {path.stem: path for path in (ROOT / RUNBOOKS).glob("*.md")}
PANELS = [
    (f"{name}: {panel['title']}", panel)
    for name, board in watching.dashboards().items()
    for panel in watching.panels(board)
]
DRAWN = [(place, panel) for place, panel in PANELS if panel["type"] != "text"]
EXPRESSIONS = [
    *(query.expr for query in watching.queries()),
    *(record.expr for record in objectives.records()),
    *(alert.expr for alert in ALERTS),
]
SECTIONS = ("## What it means", "## How to confirm", "## What to do")


def promtool(*arguments: str) -> str:
    """Run promtool in the folder of the rules and return what it said; it must be content."""
    try:
        program = servers.binary("promtool")
    except servers.MissingServerError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [program, *arguments], cwd=generate.PROMETHEUS, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def named(expressions: list[str]) -> set[str]:
    """Return the names of series that expressions read, without what stands in braces and strings."""
    text = " ".join(re.sub(r"\{[^}]*\}|\"[^\"]*\"", " ", expr) for expr in expressions)
    return set(re.findall(r"\b(?:falconet[\w:]+|process_\w+|up|ALERTS)\b", text))


def exposed() -> set[str]:
    """Return every name of a sample that the pages of the service and of the ingesting process can show."""
    metrics = Metrics()
    metrics.set_model("student", name="kestrel", version="1", digest="aa", n_bytes=10)
    metrics.set_lag({0: 0})
    metrics.set_offsets({0: 0})
    metrics.set_lists(("sanctioned",))
    metrics.set_drift(lambda: {"score": 0.1})
    ingest = IngestMetrics()
    ingest.know("node")
    ingest.rpc_seconds.labels("batch", "node").observe(0.1)
    pages = [generate_latest(each.registry).decode() for each in (metrics, ingest)]
    return {
        sample.name for page in pages for family in text_string_to_metric_families(page) for sample in family.samples
    }


@pytest.mark.parametrize("path", generate.files(), ids=lambda path: path.name)
def test_written_files_are_current(path: Path) -> None:
    """Each file is, byte for byte, what the code makes; `make dashboards` writes them."""
    assert path.read_text(encoding="utf-8") == generate.files()[path]


def test_no_written_file_is_left_over() -> None:
    """What the code makes no more is not there either."""
    folders = (generate.GRAFANA, generate.PROMETHEUS / "rules", generate.PROMETHEUS / "tests")
    there = {path for folder in folders for path in folder.iterdir()}

    assert there - set(generate.files()) == set()


def test_queries_name_only_what_exists() -> None:
    """Every series that a panel, a rule or an alert reads is on one of our pages, recorded, or Prometheus's own."""
    recorded = {record.name for record in objectives.records()}

    assert named(EXPRESSIONS) - exposed() - recorded - {"up", "ALERTS"} == set()


def test_every_metric_is_watched() -> None:
    """Every metric of the catalogues stands in a panel or an alert."""
    read = {re.sub(r"_(bucket|sum|count)$", "", name).removeprefix(PREFIX) for name in named(EXPRESSIONS)}

    assert {spec.name for spec in (*CATALOGUE, *ingest_metrics.CATALOGUE)} - read == set()


@pytest.mark.parametrize(("place", "panel"), DRAWN, ids=[place for place, _ in DRAWN])
def test_every_panel_explains_itself(place: str, panel: dict) -> None:
    """A panel has a title, a description of whole sentences, a unit, thresholds, a query and the chosen data source."""
    defaults = panel["fieldConfig"]["defaults"]

    assert panel["title"]
    assert panel["description"].endswith(".")
    assert defaults["unit"]
    assert defaults["thresholds"]["steps"]
    assert panel["targets"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_do_not_overlap() -> None:
    """On each dashboard every cell of the grid belongs to one panel at most, none is too wide, and ids differ."""
    for name, board in watching.dashboards().items():
        cells: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            taken = {(at.get("x", 0) + x, at.get("y", 0) + y) for x in range(at["w"]) for y in range(at["h"])}
            assert cells & taken == set(), f"{name}: {panel['title']}"
            assert max(x for x, _ in taken) < 24, f"{name}: {panel['title']}"
            cells |= taken
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))


def test_every_dashboard_has_its_variables_and_annotations() -> None:
    """Each can be narrowed to a chain and an instance, and shows promotions, restarts and reorganisations."""
    for name, board in watching.dashboards().items():
        if name == "runbooks":
            continue
        assert [each["name"] for each in board["templating"]["list"]] == ["datasource", "chain", "instance"]
        assert {each["name"] for each in board["annotations"]["list"]} >= {"Model promoted", "Restarted", "Reorganised"}


def test_links_lead_to_the_runbook_they_name() -> None:
    """Every link of a panel opens a runbook that is there."""
    [shown] = [board for name, board in watching.dashboards().items() if name == "runbooks"]
    ids = {f"/d/{boards.RUNBOOKS_UID}?viewPanel={panel['id']}" for panel in shown["panels"]}
    links = {link["url"] for _, panel in DRAWN for link in panel.get("links", ())}

    assert links
    assert links - ids == set()
    assert {boards.runbook_link(name) for name in NAMES} == ids


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    """One page an alert, none besides."""
    assert sorted(PAGES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_runbook_says_what_it_means_how_to_confirm_and_what_to_do(name: str) -> None:
    """A page is titled as its alert, has its three sections with something in each, and names metrics that exist."""
    text = PAGES[name].read_text(encoding="utf-8")
    title, *parts = re.split(r"^(## .*)$", text, flags=re.MULTILINE)
    severities = {alert.severity for alert in ALERTS if alert.name == name}

    assert title.startswith(f"# {name}\n")
    assert tuple(parts[0::2]) == SECTIONS
    assert all(len(body.split()) >= 15 for body in parts[1::2])
    assert all(f"`{severity}`" in title for severity in severities)
    assert named([text]) - exposed() - {record.name for record in objectives.records()} - {"up", "ALERTS"} <= {
        PREFIX + spec.name for spec in (*CATALOGUE, *ingest_metrics.CATALOGUE)
    }


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert.name}-{alert.severity}")
def test_every_alert_is_described(alert: object) -> None:
    """An alert has a severity that somebody routes, a summary of one sentence, and a proof."""
    assert alert.severity in {"page", "ticket"}  # type: ignore[attr-defined]
    assert alert.summary.endswith(".")  # type: ignore[attr-defined]
    assert alert.proof.series  # type: ignore[attr-defined]


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    """`promtool check config` reads the configuration with the rule files it names, and finds every rule."""
    said = promtool("check", "config", "prometheus.yml") + promtool("check", "rules", *RULE_FILES)

    assert f"{len(ALERTS)} rules found" in said
    assert f"{len(objectives.records())} rules found" in said


RULE_FILES = ("rules/recording.yml", "rules/alerts.yml")


@pytest.mark.parametrize("history", ["minutes", "hours", "days"])
def test_every_alert_fires_and_resolves(history: str) -> None:
    """`promtool test rules` plays each alert's history: silent before, firing with its text, over afterwards."""
    assert "SUCCESS" in promtool("test", "rules", f"tests/{history}.yml")


def test_every_alert_is_proven() -> None:
    """No alert's history is left out of promtool's files."""
    files = [yaml.safe_load(path.read_text()) for path in (generate.PROMETHEUS / "tests").iterdir()]

    proven = sorted(test["name"] for file in files for test in file["tests"])
    assert proven == sorted(f"{alert.name}, {alert.severity}" for alert in ALERTS)


def test_provisioning_finds_the_data_source_and_the_dashboards() -> None:
    """Grafana's provisioning names Prometheus and the folder that the dashboards are mounted to."""
    folder = generate.DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((folder / "dashboards" / "falconet.yml").read_text())["providers"]

    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == f"{generate.configuration()['global']['scrape_interval']}"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_objectives_agree_with_the_buckets_they_read() -> None:
    """The latency that is promised is a bucket's bound, so that its share is counted and not estimated."""
    from service.metrics import SECONDS_BUCKETS

    assert objectives.LATENCY_SECONDS_MAX in SECONDS_BUCKETS
    assert all(0.9 < each.share < 1.0 for each in objectives.OBJECTIVES)


def test_json_is_sorted_and_ends_in_a_newline() -> None:
    """A dashboard's file changes only where its content does."""
    for text in boards.texts().values():
        assert text == json.dumps(json.loads(text), sort_keys=True, indent=1) + "\n"
        assert msgspec.json.decode(text)
