"""Panels of *Falconet: the small model is fast*."""

from typing import Any

from grafana_foundation_sdk.models.common import StackingMode

from deploy.grafana.health import HERE, RATE, Runbook
from deploy.grafana.panels import Levels, Query, heat, lines, number

STAGES = f"rate(falconet_stage_seconds_sum{{{HERE}}}[{RATE}])"


SCORED = f"sum(rate(falconet_transactions_total{{{HERE}}}[{RATE}]))"


def _quantile(share: float, model: str) -> str:
    selected = f'model="{model}",{HERE}'
    return f"histogram_quantile({share}, sum by (le) (rate(falconet_inference_seconds_bucket{{{selected}}}[{RATE}])))"


def rows(runbook: Runbook) -> list[tuple[str, list[Any]]]:
    """Return the titles of the rows with their panels."""
    return [("At a glance", _glance()), ("Latency", _latency(runbook)), ("Cost", _cost(runbook))]


def _glance() -> list[Any]:
    cpu = f'sum(rate(process_cpu_seconds_total{{job="falconet",{HERE}}}[5m]))'
    return [
        number(
            "Small model, p50",
            "Time the served model takes for one transaction: its batch's share.",
            _quantile(0.5, "student"),
            unit="s",
            levels=Levels(warning=1e-5, bad=1e-4),
        ),
        number(
            "Large model, p50",
            "Time one call of the large model takes for one transaction, in shadow on a sample.",
            _quantile(0.5, "teacher"),
            unit="s",
        ),
        number(
            "Times faster",
            "One call of the large model against the small model's share of a batch, both p50.",
            f"{_quantile(0.5, 'teacher')} / {_quantile(0.5, 'student')}",
            unit="none",
            levels=Levels(warning=1, bad=10, is_better_high=True),
            decimals=0,
        ),
        number(
            "Small model's file",
            "Size of the served model; 32 KiB at most.",
            f'max(falconet_model_bytes{{model="student",{HERE}}})',
            unit="bytes",
            levels=Levels(bad=32 * 1024 + 1),
        ),
        number(
            "Large model's file",
            "Size of the large model that taught the small one.",
            f'max(falconet_model_bytes{{model="teacher",{HERE}}})',
            unit="bytes",
        ),
        number(
            "CPU a million transactions",
            "Seconds of CPU that a million transactions take, the whole process with Kafka client and shadow, "
            "over 5 minutes. Joules follow from the watts of a core.",
            f"{cpu} / sum(rate(falconet_transactions_total{{{HERE}}}[5m])) * 1e6",
            unit="s",
        ),
        lines(
            "Joules a million transactions",
            "Energy by its source: the processor's counter holds whatever runs beside; an estimate is CPU times 5 W.",
            [
                Query(
                    f"sum by (source) (rate(falconet_energy_joules_total{{{HERE}}}[{RATE}]) > 0) / on() group_left() "
                    f"({SCORED}) * 1e6",
                    "{{source}}",
                )
            ],
            unit="joule",
        ),
    ]


def _latency(runbook: Runbook) -> list[Any]:
    models = [
        Query(_quantile(share, model), f"{name} model, {quantile}")
        for model, name in (("student", "small"), ("teacher", "large"))
        for share, quantile in ((0.5, "p50"), (0.99, "p99"))
    ]
    return [
        lines(
            "Where a transaction's time goes",
            "Mean time of each stage a transaction, stacked: a stage's seconds over the transactions scored.",
            [
                Query(
                    f"sum by (stage) ({STAGES}) / on () group_left () {SCORED}",
                    "{{stage}}",
                )
            ],
            unit="s",
            width=12,
            stacking=StackingMode.NORMAL,
            runbook=runbook("FalconetLatencyBudget"),
        ),
        lines(
            "Small beside large",
            "Both models on one logarithmic axis, p50 and p99 of one transaction.",
            models,
            unit="s",
            width=12,
            is_logarithmic=True,
        ),
        lines(
            "Stages, p99",
            "99 of 100 transactions spend at most this in each stage.",
            [
                Query(
                    "histogram_quantile(0.99, sum by (le, stage) "
                    f"(rate(falconet_stage_seconds_bucket{{{HERE}}}[{RATE}]))) > 0",
                    "{{stage}}",
                )
            ],
            unit="s",
            width=12,
            is_logarithmic=True,
        ),
        heat(
            "Decision",
            "Transactions a second by the time from poll to the score handed to the producer.",
            f"sum by (le) (rate(falconet_decision_seconds_bucket{{{HERE}}}[{RATE}]))",
            unit="s",
        ),
    ]


def _cost(runbook: Runbook) -> list[Any]:
    return [
        lines(
            "Throughput and headroom",
            "Transactions a second, and what one thread could do if all its time went to batches like these.",
            [Query(SCORED, "measured"), Query(f"{SCORED} / sum({STAGES})", "possible")],
            unit="cps",
            is_logarithmic=True,
            runbook=runbook("FalconetLag"),
        ),
        lines(
            "Busy share of the thread that decides",
            "Seconds a second spent in the stages. At 1 the lag grows.",
            [Query(f"sum({STAGES})", "busy")],
            unit="percentunit",
            levels=Levels(warning=0.7, bad=0.9),
            runbook=runbook("FalconetLag"),
        ),
        lines(
            "CPU a million transactions",
            "Seconds of CPU of the whole process a million transactions.",
            [Query(f'sum(rate(process_cpu_seconds_total{{job="falconet",{HERE}}}[{RATE}])) / {SCORED} * 1e6', "CPU")],
            unit="s",
        ),
    ]
