"""Panels of *Falconet: are the decisions sane?*"""

from typing import Any

from grafana_foundation_sdk.models.common import StackingMode

from deploy.grafana.health import CHAIN, HERE, RATE, Runbook
from deploy.grafana.panels import Levels, Query, heat, lines, number
from deploy.grafana.panels import rows as table
from deploy.prometheus.objectives import ALERT_SHARE

DECIDED = f"sum(rate(falconet_decisions_total{{{HERE}}}[{RATE}]))"


def rows(runbook: Runbook) -> list[tuple[str, list[Any]]]:
    """Return the titles of the rows with their panels."""
    return [
        ("At a glance", _glance(runbook)),
        ("Decisions", _decisions(runbook)),
        ("Against what the model knows", _drift(runbook)),
        ("Against another model", _candidate()),
    ]


def _glance(runbook: Runbook) -> list[Any]:
    return [
        number(
            "Not allowed",
            "Share of the transactions that were reviewed or blocked, over half an hour.",
            f"max({ALERT_SHARE}{{{CHAIN}}})",
            unit="percentunit",
            width=6,
            levels=Levels(warning=0.01, bad=0.05),
            runbook=runbook("FalconetAlertShareHigh"),
        ),
        number(
            "Blocked",
            "Share of the transactions that were blocked, over half an hour.",
            f'sum(rate(falconet_decisions_total{{decision="block",{HERE}}}[30m])) '
            f"/ sum(rate(falconet_decisions_total{{{HERE}}}[30m]))",
            unit="percentunit",
            width=6,
            levels=Levels(warning=0.005, bad=0.02),
            runbook=runbook("FalconetAlertShareHigh"),
        ),
        number(
            "Drift of the score",
            "Population stability index of the scores: below 0.1 stable, above 0.25 shifted.",
            f'max(falconet_drift_psi{{feature="score",{HERE}}})',
            unit="none",
            width=6,
            levels=Levels(warning=0.1, bad=0.25),
            decimals=2,
            runbook=runbook("FalconetDrift"),
        ),
        number(
            "Models that decide",
            "Different models among the replicas; more than one for long is a mistake.",
            f'count(count by (digest) (falconet_model_info{{model="student",{HERE}}}))',
            unit="short",
            width=6,
            levels=Levels(bad=2),
            runbook=runbook("FalconetModelMismatch"),
        ),
    ]


def _decisions(runbook: Runbook) -> list[Any]:
    return [
        lines(
            "Decisions",
            "Shares of allow, review and block.",
            [Query(f"sum by (decision) (rate(falconet_decisions_total{{{HERE}}}[{RATE}]))", "{{decision}}")],
            unit="cps",
            stacking=StackingMode.PERCENT,
            runbook=runbook("FalconetAlertShareHigh"),
        ),
        heat(
            "Scores",
            "Transactions a second by calibrated probability. A band that appears is other traffic or another model.",
            f"sum by (le) (rate(falconet_score_bucket{{{HERE}}}[{RATE}]))",
            unit="percentunit",
            width=16,
            runbook=runbook("FalconetAlertShareZero"),
        ),
        lines(
            "Alerts by reason",
            "What says most of each transaction that was not allowed: a list, a rule's feature or the model's.",
            [Query(f"topk(8, sum by (reason) (rate(falconet_alert_reasons_total{{{HERE}}}[5m])) > 0)", "{{reason}}")],
            unit="cps",
            width=12,
            stacking=StackingMode.NORMAL,
            runbook=runbook("FalconetAlertShareHigh"),
        ),
        lines(
            "List hits",
            "Listed senders and recipients a second, by screening list.",
            [Query(f"sum by (list) (rate(falconet_list_hits_total{{{HERE}}}[5m]))", "{{list}}")],
            unit="cps",
            width=12,
            runbook=runbook("FalconetAlertShareHigh"),
        ),
        lines(
            "Circuit breaker",
            "Share of the breaker's window that was meant not to be allowed, and whether it is open.",
            [
                Query(f"max by (instance) (falconet_breaker_share{{{HERE}}})", "share, {{instance}}"),
                Query(f"max by (instance) (falconet_breaker_open{{{HERE}}})", "open, {{instance}}"),
            ],
            unit="percentunit",
            width=12,
            runbook=runbook("FalconetBreakerOpen"),
        ),
        lines(
            "Held by the breaker",
            "Transactions a second at which the breaker was open, and how often it opened in five minutes.",
            [
                Query(f"sum(rate(falconet_breaker_held_total{{{HERE}}}[5m]))", "held"),
                Query(f"sum(increase(falconet_breaker_trips_total{{{HERE}}}[5m]))", "openings"),
            ],
            unit="cps",
            width=12,
            runbook=runbook("FalconetBreakerOpen"),
        ),
    ]


def _drift(runbook: Runbook) -> list[Any]:
    return [
        lines(
            "Drift by feature",
            "The eight features that moved most from what the model was calibrated on: population stability index, "
            "below 0.1 stable, above 0.25 shifted. Traffic of another exchange differs from the first hour.",
            [Query(f"topk(8, max by (feature) (falconet_drift_psi{{{HERE}}}))", "{{feature}}")],
            unit="none",
            width=12,
            levels=Levels(warning=0.1, bad=0.25),
            runbook=runbook("FalconetDrift"),
        ),
        table(
            "Models in use",
            "Which model plays which role in each replica: the student decides, the teacher runs in shadow, "
            "the candidate scores beside.",
            f"falconet_model_info{{{HERE}}}",
        ),
    ]


def _candidate() -> list[Any]:
    both = f"falconet_candidate_decisions_total{{{HERE}}}"
    return [
        lines(
            "Champion against candidate",
            "Transactions a second on which both decide alike or not, by champion and candidate. "
            "Zero while there is no candidate.",
            [
                Query(
                    f"sum by (champion, candidate) (rate({both}[5m]))", "champion {{champion}}, candidate {{candidate}}"
                )
            ],
            unit="cps",
            width=12,
            is_logarithmic=True,
        ),
        lines(
            "Scores of both",
            "p50 and p99 of the champion's and the candidate's scores.",
            [
                Query(
                    f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{HERE}}}[{RATE}])))",
                    f"{name}, {quantile}",
                )
                for metric, name in (
                    ("falconet_score", "champion"),
                    ("falconet_candidate_score", "candidate"),
                )
                for share, quantile in ((0.5, "p50"), (0.99, "p99"))
            ],
            unit="percentunit",
            width=12,
            is_logarithmic=True,
        ),
    ]
