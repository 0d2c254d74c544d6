"""The dashboards: whether Falconet is well, whether the small model is fast, whether the decisions are sane.

A fourth one shows the runbooks, so that every panel and alert can link to what to do on the operator's own Grafana.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from deploy.grafana import decisions, health, ingestion, speed
from deploy.grafana.panels import BAD, GOOD, SOURCE, WARNING, words
from deploy.prometheus.alerts import ALERTS

ROOT = Path(__file__).resolve().parents[2]
RUNBOOKS_UID = "falconet-runbooks"
RUNBOOK_NAMES = tuple(dict.fromkeys(alert.name for alert in ALERTS))

ANNOTATIONS = (
    (
        "Model promoted",
        GOOD,
        'increase(falconet_model_reloads_total{outcome="loaded",SELECTED}[1m]) > 0',
    ),
    ("Restarted", BAD, 'changes(process_start_time_seconds{job=~"falconet.*",SELECTED}[1m]) > 0'),
    # Told by the ingesting process, which no choice of an instance that scores would show.
    ("Reorganised", WARNING, 'increase(falconet_reorg_depth_blocks_count{chain=~"$chain"}[1m]) > 0'),
)
SELECTED = 'instance=~"$instance",chain=~"$chain"'


def runbook_link(alert: str) -> str:
    """Return where Grafana shows an alert's runbook, from the root of its address.

    Raises:
        ValueError: There is no such alert.
    """
    return f"/d/{RUNBOOKS_UID}?viewPanel={RUNBOOK_NAMES.index(alert) + 1}"


def texts() -> dict[str, str]:
    """Return the JSON of each dashboard by its file's name."""
    runbook: Callable[[str], str] = runbook_link
    made = {
        "health": _watching("falconet-health", "Falconet: is it well?", health.rows(runbook)),
        "speed": _watching("falconet-speed", "Falconet: the small model is fast", speed.rows(runbook)),
        "decisions": _watching("falconet-decisions", "Falconet: are the decisions sane?", decisions.rows(runbook)),
        "ingestion": _watching(
            "falconet-ingestion",
            "Falconet: ingestion",
            ingestion.rows(runbook),
            told_by="falconet_ingest_blocks_total",
        ),
        "runbooks": _runbooks(),
    }
    return {name: JSONEncoder(sort_keys=True, indent=1).encode(each) + "\n" for name, each in made.items()}


def _watching(
    uid: str, title: str, rows: list[tuple[str, list[Any]]], *, told_by: str = "falconet_transactions_total"
) -> Any:
    """Return a dashboard of rows of panels, with the variables, annotations and links that all share.

    Args:
        uid: Of the dashboard.
        title: Of the dashboard.
        rows: Titles of the rows with their panels.
        told_by: A metric of every process that the dashboard is about: its labels are what can be chosen.
    """
    built = _titled(uid, title).refresh("10s").time("now-1h", "now").tooltip(DashboardCursorSync.CROSSHAIR)
    built.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name, label in (("chain", "Chain"), ("instance", "Instance")):
        built.with_variable(_variable(name, label, told_by))
    for name, colour, expr in ANNOTATIONS:
        asked = dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(colour)
        built.annotation(asked.expr(expr.replace("SELECTED", SELECTED)))
    number = 0
    for row_title, panels in rows:
        number += 1
        built.with_row(dashboard.Row(row_title).id(number))
        for panel in panels:
            number += 1
            built.with_panel(panel.id(number))
    return built.build()


def _titled(uid: str, title: str) -> Any:
    others = dashboard.DashboardLink("Falconet").type(DashboardLinkType.DASHBOARDS).tags(["falconet"])
    built = dashboard.Dashboard(title).uid(uid).tags(["falconet"]).timezone("browser").readonly()
    return built.link(others.as_dropdown(True).include_vars(True).keep_time(True))


def _variable(name: str, label: str, told_by: str) -> Any:
    others = '{chain=~"$chain"}' if name == "instance" else ""
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE)
    variable.query(f"label_values({told_by}{others}, {name})")
    variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    variable.multi(True).include_all(True).all_value(".*")
    return variable.current(VariableOption(text="All", value="$__all"))


def _runbooks() -> Any:
    built = _titled(RUNBOOKS_UID, "Falconet: runbooks")
    for number, name in enumerate(RUNBOOK_NAMES, start=1):
        page = (ROOT / "docs" / "runbooks" / f"{name}.md").read_text(encoding="utf-8")
        built.with_panel(words(name, page).id(number))
    return built.build()
