"""The unit tests of the alerting rules in promtool's form, from the proof that stands beside each alert."""

import re
from collections.abc import Callable
from typing import Any

from deploy.prometheus.alerts import ALERTS
from deploy.prometheus.conditions import Alert

RULES = ("../rules/recording.yml", "../rules/alerts.yml")
GRAFANA = "https://grafana.example"
"""What the external label `grafana` says in the proofs."""

_LABEL = re.compile(r"{{ \$labels\.(\w+) }}")
_VALUE = re.compile(r"{{ \$value[^}]*}}")


def proofs(annotations: Callable[[Alert], dict[str, str]], *, interval: str) -> dict[str, Any]:
    """Return promtool's test file: each alert fires when it must, tells what it should, and is over when it must be.

    One file for each interval of the histories: days in steps of a minute take promtool ten minutes.
    """
    chosen = [alert for alert in ALERTS if alert.proof.interval == interval]
    return {
        "rule_files": list(RULES),
        "evaluation_interval": interval,
        # What is recorded is read in the same evaluation: in steps of ten minutes an older value has gone stale.
        "group_eval_order": ["falconet-recording", "falconet-alerts"],
        "tests": [_test(alert, annotations) for alert in chosen],
    }


def _test(alert: Alert, annotations: Callable[[Alert], dict[str, str]]) -> dict[str, Any]:
    proof = alert.proof
    severities = proof.severities or (alert.severity,)
    firing = [each for each in ALERTS if each.name == alert.name and each.severity in severities]
    return {
        "name": f"{alert.name}, {alert.severity}",
        "interval": proof.interval,
        "external_labels": {"grafana": GRAFANA},
        "input_series": [{"series": series, "values": values} for series, values in proof.series.items()],
        "alert_rule_test": [
            {"eval_time": "0m", "alertname": alert.name, "exp_alerts": []},
            {
                "eval_time": proof.fires,
                "alertname": alert.name,
                "exp_alerts": [
                    {
                        "exp_labels": {"severity": each.severity} | proof.labels,
                        "exp_annotations": {name: _told(text, alert, i) for name, text in annotations(each).items()},
                    }
                    for i, each in enumerate(firing)
                ],
            },
            {"eval_time": proof.resolves, "alertname": alert.name, "exp_alerts": []},
        ],
    }


def _told(text: str, alert: Alert, i: int) -> str:
    """Return an annotation as Prometheus must render it."""
    text = text.replace("{{ $externalLabels.grafana }}", GRAFANA)
    text = _LABEL.sub(lambda match: alert.proof.labels[match[1]], text)
    return _VALUE.sub(lambda _: alert.proof.shown[i], text)
