"""Write what Prometheus and Grafana read from the code beside this file; `make dashboards` runs it, a test compares.

python -m deploy.generate
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from deploy.grafana import boards
from deploy.prometheus.alerts import ALERTS
from deploy.prometheus.conditions import Alert
from deploy.prometheus.configuration import configuration
from deploy.prometheus.objectives import records
from deploy.prometheus.proofs import proofs

DEPLOY = Path(__file__).resolve().parent
GRAFANA = DEPLOY / "grafana" / "dashboards"
PROMETHEUS = DEPLOY / "prometheus"
KUBERNETES = DEPLOY / "kubernetes"


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes texts of several lines as blocks."""


def _text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def as_yaml(content: Any, *, source: str) -> str:
    """Return a mapping as YAML that says where it is written from."""
    head = f"# Written by `make dashboards` from {source}.\n"
    return head + str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1_000, allow_unicode=True))


def recording() -> dict[str, Any]:
    """Return the file of recording rules."""
    rules = [{"record": each.name, "expr": each.expr, "labels": each.labels} for each in records()]
    return {"groups": [{"name": "falconet-recording", "rules": rules}]}


def annotations(alert: Alert) -> dict[str, str]:
    """Return what an alert tells beside its labels.

    The external label `grafana`, where Prometheus has one, makes the link whole.
    """
    return {
        "summary": alert.summary,
        "runbook": alert.runbook,
        "runbook_url": "{{ $externalLabels.grafana }}" + boards.runbook_link(alert.name),
    }


def alerting() -> dict[str, Any]:
    """Return the file of alerting rules."""
    rules = [
        {
            "alert": each.name,
            "expr": each.expr,
            "for": each.lasting,
            "labels": {"severity": each.severity},
            "annotations": annotations(each),
        }
        for each in ALERTS
    ]
    return {"groups": [{"name": "falconet-alerts", "rules": rules}]}


def operated() -> dict[str, Any]:
    """Return both files of rules as the one object that the Prometheus Operator reads."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "falconet"},
        "spec": {"groups": [*recording()["groups"], *alerting()["groups"]]},
    }


def files() -> dict[Path, str]:
    """Return every written file with its text."""
    prometheus = {
        PROMETHEUS / "prometheus.yml": as_yaml(configuration(), source="deploy/prometheus/configuration.py"),
        PROMETHEUS / "rules" / "recording.yml": as_yaml(recording(), source="deploy/prometheus/objectives.py"),
        PROMETHEUS / "rules" / "alerts.yml": as_yaml(alerting(), source="deploy/prometheus/alerts.py"),
        KUBERNETES / "monitoring" / "rules.yaml": as_yaml(operated(), source="deploy/prometheus/"),
    }
    for name, interval in (("minutes", "1m"), ("hours", "2m"), ("days", "10m")):
        text = as_yaml(proofs(annotations, interval=interval), source="deploy/prometheus/alerts.py")
        prometheus[PROMETHEUS / "tests" / f"{name}.yml"] = text
    return prometheus | {GRAFANA / f"{name}.json": text for name, text in boards.texts().items()}


def main() -> int:
    """Write the files that differ and name them."""
    for path, text in files().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(DEPLOY.parent)} written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
