"""Panels of *Falconet: is it well?*"""

from collections.abc import Callable
from typing import Any

from grafana_foundation_sdk.models.common import StackingMode

from deploy.grafana.panels import Levels, Query, lines, number
from deploy.prometheus.alerts import SNAPSHOT_SECONDS_MAX
from deploy.prometheus.objectives import BUDGET_BURN, LAG_SECONDS, LATENCY_SECONDS_MAX

HERE = 'instance=~"$instance",chain=~"$chain"'
CHAIN = 'chain=~"$chain"'
RATE = "$__rate_interval"

Runbook = Callable[[str], str]


def quantiles(metric: str) -> list[Query]:
    """Return the queries of a latency's p50, p99 and p99.9."""
    return [
        Query(f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{HERE}}}[{RATE}])))", name)
        for share, name in ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"))
    ]


def rows(runbook: Runbook) -> list[tuple[str, list[Any]]]:
    """Return the titles of the rows with their panels."""
    return [
        ("At a glance", _glance(runbook)),
        ("What it does", _work(runbook)),
        ("What goes wrong", _trouble(runbook)),
        ("What it uses", _use(runbook)),
    ]


def _glance(runbook: Runbook) -> list[Any]:
    return [
        number(
            "Replicas that answer",
            "Replicas whose metrics Prometheus can read. One is active; a standby answers when it takes over.",
            f'sum(up{{job="falconet",{HERE}}})',
            unit="short",
            levels=Levels(bad=1, is_better_high=True),
            runbook=runbook("FalconetDown"),
        ),
        number(
            "Alerts firing",
            "Falconet's alerts that fire at this moment. Each names its runbook.",
            'count(ALERTS{alertname=~"Falconet.+",alertstate="firing"}) or vector(0)',
            unit="short",
            levels=Levels(warning=1, bad=3),
        ),
        number(
            "Transactions",
            "Messages read and committed a second, whatever became of them.",
            f"sum(rate(falconet_transactions_total{{{HERE}}}[{RATE}]))",
            unit="cps",
            runbook=runbook("FalconetNoTransactions"),
        ),
        number(
            "End to end, p99",
            "99 of 100 transactions have their score committed within this time of their Kafka timestamp.",
            f"histogram_quantile(0.99, sum by (le) (rate(falconet_end_to_end_seconds_bucket{{{HERE}}}[{RATE}])))",
            unit="s",
            levels=Levels(warning=LATENCY_SECONDS_MAX / 2, bad=LATENCY_SECONDS_MAX),
            runbook=runbook("FalconetLatencyBudget"),
        ),
        number(
            "Lag",
            "How long reading what is unread would take at the present rate. "
            "On a topic written in transactions it never reads 0: the markers that end them are records too.",
            f"max({LAG_SECONDS}{{{CHAIN}}})",
            unit="s",
            levels=Levels(warning=10, bad=60),
            runbook=runbook("FalconetLag"),
        ),
        number(
            "Fastest budget burn",
            "Speed at which the error budget of the worst objective burnt in the last hour; "
            "1 uses it up in exactly 30 days.",
            f"max({BUDGET_BURN}{{{CHAIN}}})",
            unit="none",
            levels=Levels(warning=1, bad=6),
            decimals=2,
            runbook=runbook("FalconetLatencyBudget"),
        ),
    ]


def _work(runbook: Runbook) -> list[Any]:
    return [
        lines(
            "Transactions by outcome",
            "Scored; rejected to the dead-letter topic; skipped, which are tombstones.",
            [Query(f"sum by (outcome) (rate(falconet_transactions_total{{{HERE}}}[{RATE}]))", "{{outcome}}")],
            unit="cps",
            stacking=StackingMode.NORMAL,
        ),
        lines(
            "End to end",
            "From the Kafka timestamp of a transaction to the commit of its score. The objective is 100 ms for 99 %. "
            "The points are single transactions with their topic, partition and offset.",
            quantiles("falconet_end_to_end_seconds"),
            unit="s",
            is_logarithmic=True,
            has_exemplars=True,
            levels=Levels(bad=LATENCY_SECONDS_MAX),
            runbook=runbook("FalconetLatencyBudget"),
        ),
        lines(
            "Decision",
            "From the return of poll to the score handed to the producer, waiting in the batch included.",
            quantiles("falconet_decision_seconds"),
            unit="s",
            is_logarithmic=True,
            has_exemplars=True,
            levels=Levels(warning=LATENCY_SECONDS_MAX / 2, bad=LATENCY_SECONDS_MAX),
            runbook=runbook("FalconetLatencyBudget"),
        ),
        lines(
            "Lag by partition",
            "Records that are not read yet. On a topic written in transactions it never reads 0: the markers count.",
            [Query(f"sum by (partition) (falconet_consumer_lag_records{{{HERE}}})", "partition {{partition}}")],
            unit="short",
            levels=Levels(warning=10_000),
            runbook=runbook("FalconetLag"),
        ),
        lines(
            "Progress by partition",
            "Offsets passed a second. A partition at 0 while its lag grows is stuck.",
            [Query(f"sum by (partition) (rate(falconet_next_offset{{{HERE}}}[{RATE}]))", "partition {{partition}}")],
            unit="cps",
            runbook=runbook("FalconetPartitionStuck"),
        ),
        lines(
            "Error budget burn",
            "Times the speed that uses an objective's budget up in exactly 30 days, over the last hour. "
            "An hour at 14.4 wakes somebody.",
            [Query(f"{BUDGET_BURN}{{{CHAIN}}}", "{{slo}}")],
            unit="none",
            levels=Levels(warning=1, bad=14.4),
            runbook=runbook("FalconetCompletenessBudget"),
        ),
    ]


def _trouble(runbook: Runbook) -> list[Any]:
    return [
        lines(
            "Dead letters by reason",
            "Messages a second that went to the dead-letter topic; docs/topics.md explains each reason.",
            [Query(f"sum by (reason) (rate(falconet_dlq_total{{{HERE}}}[{RATE}])) > 0", "{{reason}}")],
            unit="cps",
            stacking=StackingMode.NORMAL,
            runbook=runbook("FalconetDeadLetters"),
        ),
        lines(
            "Share of dead letters",
            "Of all messages, over a quarter of an hour. More than 1 in 1,000 misses the objective of completeness.",
            [
                Query(
                    f'sum(rate(falconet_transactions_total{{outcome="rejected",{HERE}}}[15m])) '
                    f"/ sum(rate(falconet_transactions_total{{{HERE}}}[15m]))",
                    "dead letters",
                )
            ],
            unit="percentunit",
            levels=Levels(warning=0.001, bad=0.01),
            runbook=runbook("FalconetDeadLetters"),
        ),
        lines(
            "Restarts, refused models, dropped shadows",
            "Starts of the process, promoted models that were refused, and transactions that the large model never saw "
            "because its queue was full; each in the last 5 minutes.",
            [
                Query(f'sum(changes(process_start_time_seconds{{job="falconet",{HERE}}}[5m]))', "restarts"),
                Query(f'sum(increase(falconet_model_reloads_total{{outcome="refused",{HERE}}}[5m]))', "refused models"),
                Query(f"sum(increase(falconet_shadow_dropped_total{{{HERE}}}[5m]))", "dropped shadows"),
            ],
            unit="short",
            levels=Levels(warning=1),
            runbook=runbook("FalconetRestarting"),
        ),
        lines(
            "Reorganisations",
            "Scores retracted in the last 5 minutes because their block was orphaned, refused reorganisations, and the "
            "blocks by which the account state can go back.",
            [
                Query(f"sum(increase(falconet_retractions_total{{{HERE}}}[5m]))", "retracted scores"),
                Query(f"sum(falconet_reorgs_refused_total{{{HERE}}})", "refused"),
                Query(f"min(falconet_undo_blocks{{{HERE}}})", "blocks to go back by"),
            ],
            unit="short",
            runbook=runbook("FalconetReorgRefused"),
        ),
    ]


def _snapshots(runbook: Runbook) -> list[Any]:
    return [
        lines(
            "Age of the snapshot",
            "How old the past is that a restart would begin with; what came after it is replayed.",
            [Query(f"max by (instance) (falconet_snapshot_age_seconds{{{HERE}}})", "{{instance}}")],
            unit="s",
            levels=Levels(warning=180, bad=SNAPSHOT_SECONDS_MAX),
            runbook=runbook("FalconetSnapshotOld"),
        ),
        lines(
            "Snapshots and their pause",
            "Snapshots by what became of them in the last 5 minutes, and how long the last one held the stream up, in "
            "seconds.",
            [
                Query(f"sum by (outcome) (increase(falconet_snapshots_total{{{HERE}}}[5m]))", "{{outcome}}"),
                Query(f"max(falconet_snapshot_pause_seconds{{{HERE}}})", "pause, s"),
            ],
            unit="none",
            runbook=runbook("FalconetSnapshotOld"),
        ),
        lines(
            "Replayed at the last start, standby",
            "Messages that the last start replayed without scoring, and whether a replica waits as a standby (1).",
            [
                Query(f"max by (instance) (falconet_restore_replayed{{{HERE}}})", "replayed {{instance}}"),
                Query(f"max by (instance) (falconet_standby{{{HERE}}})", "standby {{instance}}"),
            ],
            unit="short",
        ),
    ]


def _use(runbook: Runbook) -> list[Any]:
    return [
        lines(
            "How full the state is",
            "Accounts and pairs against what fits. When the accounts are full, the stalest are forgotten.",
            [
                Query(f"max(falconet_state_accounts{{{HERE}}} / falconet_state_accounts_max{{{HERE}}})", "accounts"),
                Query(f"max(falconet_state_pairs{{{HERE}}} / falconet_state_pairs_max{{{HERE}}})", "pairs"),
            ],
            unit="percentunit",
            levels=Levels(warning=0.8, bad=0.9),
            runbook=runbook("FalconetStateNearlyFull"),
        ),
        lines(
            "Forgotten accounts",
            "Accounts a second that made room for others. Harmless while the table holds more than 30 days.",
            [Query(f"sum(rate(falconet_state_evictions_total{{{HERE}}}[{RATE}]))", "forgotten")],
            unit="cps",
            runbook=runbook("FalconetForgetsTooSoon"),
        ),
        lines(
            "Start with a saved state",
            "Time the last start spent on loading the account state and replaying to the committed offsets; part of an "
            "outage.",
            [Query(f"max by (instance) (falconet_restore_seconds{{{HERE}}})", "{{instance}}")],
            unit="s",
            levels=Levels(warning=10, bad=60),
        ),
        *_snapshots(runbook),
        lines(
            "Memory",
            "Resident memory of the process. It is taken at the start, by the settings accounts_max and pairs_max.",
            [Query(f'process_resident_memory_bytes{{job="falconet",{HERE}}}', "{{instance}}")],
            unit="bytes",
            width=12,
        ),
        lines(
            "CPU",
            "Cores in use. One thread decides; the large model's shadow and the Kafka client take the rest.",
            [Query(f'rate(process_cpu_seconds_total{{job="falconet",{HERE}}}[{RATE}])', "{{instance}}")],
            unit="none",
            width=12,
            levels=Levels(warning=1.5),
        ),
    ]
