"""Prometheus's configuration, the same for an operator and for the tests: only addresses and pace differ."""

from collections.abc import Sequence
from typing import Any

from deploy.prometheus import ingestion

JOB = "falconet"

SCRAPE_SECONDS = 15
"""Prometheus's usual pace: an alert of two minutes rests on eight readings."""


def configuration(
    *,
    targets: Sequence[str] = ("falconet:9464",),
    ingesters: Sequence[str] = (),
    chain: str = "ethereum",
    scrape_seconds: int = SCRAPE_SECONDS,
    alertmanagers: Sequence[str] = ("alertmanager:9093",),
    rules: str = "rules/*.yml",
) -> dict[str, Any]:
    """Return the configuration as a mapping.

    Args:
        targets: Metrics pages of the replicas; one that waits as a standby answers only when it serves.
        ingesters: Metrics pages of the processes that read a chain from its nodes, where there are any.
        chain: Told by every series, for one service stands for one chain.
        scrape_seconds: Between two readings, and between two looks at the rules.
        alertmanagers: Where alerts go; none keeps them in Prometheus.
        rules: Pattern of the rule files.
    """
    pace = f"{scrape_seconds}s"
    config: dict[str, Any] = {
        "global": {"scrape_interval": pace, "evaluation_interval": pace},
        "rule_files": [rules],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(pages), "labels": {"chain": chain}}]}
            for job, pages in ((JOB, targets), (ingestion.JOB, ingesters))
            if pages
        ],
    }
    if alertmanagers:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]}
    return config
