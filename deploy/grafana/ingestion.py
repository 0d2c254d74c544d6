"""Panels of *Falconet: ingestion*, for the process that reads a chain from its nodes."""

from typing import Any

from grafana_foundation_sdk.models.common import StackingMode

from deploy.grafana.health import HERE, RATE, Runbook, quantiles
from deploy.grafana.panels import Levels, Query, heat, lines, number
from deploy.prometheus.ingestion import INGEST_LAG_BLOCKS_MAX, REORG_BLOCKS_MAX


def rows(runbook: Runbook) -> list[tuple[str, list[Any]]]:
    """Return the titles of the rows with their panels."""
    return [("At a glance", _glance(runbook)), ("The chain", _chain(runbook)), ("Its nodes", _nodes(runbook))]


def _glance(runbook: Runbook) -> list[Any]:
    return [
        number(
            "Blocks behind",
            "Blocks that the node has and the topic has not, those that are not confirmed left out.",
            f"max(falconet_ingest_lag_blocks{{{HERE}}})",
            unit="short",
            width=6,
            levels=Levels(warning=5, bad=INGEST_LAG_BLOCKS_MAX),
            runbook=runbook("FalconetIngestBehind"),
        ),
        number(
            "Age of the newest block",
            "How old the newest published block was when it was published, by its own clock.",
            f"max(falconet_ingest_lag_seconds{{{HERE}}})",
            unit="s",
            width=6,
            runbook=runbook("FalconetIngestBehind"),
        ),
        number(
            "Newest published block",
            "Number of the newest block whose messages are on the topic.",
            f"max(falconet_ingest_block{{{HERE}}})",
            unit="none",
            width=6,
            runbook=runbook("FalconetIngestStopped"),
        ),
        number(
            "Reorganisations",
            "Times that the chain took published blocks back, in an hour.",
            f"sum(increase(falconet_reorg_depth_blocks_count{{{HERE}}}[1h]))",
            unit="short",
            width=6,
            levels=Levels(warning=10),
            runbook=runbook("FalconetReorgDeep"),
        ),
    ]


def _chain(runbook: Runbook) -> list[Any]:
    return [
        lines(
            "Head and topic",
            "The node's newest block and the newest published one.",
            [
                Query(f"max(falconet_ingest_head_block{{{HERE}}})", "head of the node"),
                Query(f"max(falconet_ingest_block{{{HERE}}})", "published"),
            ],
            unit="none",
            runbook=runbook("FalconetIngestBehind"),
        ),
        lines(
            "Published messages",
            "Messages a second by type; an orphaned block is an announcement on every partition.",
            [Query(f"sum by (type) (rate(falconet_ingest_records_total{{{HERE}}}[{RATE}]))", "{{type}}")],
            unit="cps",
            stacking=StackingMode.NORMAL,
            runbook=runbook("FalconetIngestStopped"),
        ),
        lines(
            "Blocks and skipped transfers",
            "Blocks published a second, and events that look like a transfer and are none.",
            [
                Query(f"sum(rate(falconet_ingest_blocks_total{{{HERE}}}[{RATE}]))", "blocks"),
                Query(f"sum(rate(falconet_ingest_transfers_skipped_total{{{HERE}}}[{RATE}]))", "skipped transfers"),
            ],
            unit="cps",
            runbook=runbook("FalconetIngestStopped"),
        ),
        lines(
            "From head to topic",
            "From the sight of a head to the commit of its block.",
            quantiles("falconet_head_to_topic_seconds"),
            unit="s",
            width=12,
            levels=Levels(warning=2),
            runbook=runbook("FalconetIngestBehind"),
        ),
        heat(
            "Depth of reorganisations",
            f"Reorganisations by the blocks they took back. More than {REORG_BLOCKS_MAX} at once wants a look.",
            f"sum by (le) (increase(falconet_reorg_depth_blocks_bucket{{{HERE}}}[5m]))",
            unit="short",
            runbook=runbook("FalconetReorgDeep"),
        ),
    ]


def _nodes(runbook: Runbook) -> list[Any]:
    return [
        lines(
            "Answers, p99",
            "99 of 100 requests to a node take at most this, by method.",
            [
                Query(
                    "histogram_quantile(0.99, sum by (le, method) "
                    f"(rate(falconet_rpc_seconds_bucket{{{HERE}}}[{RATE}]))) > 0",
                    "{{method}}",
                )
            ],
            unit="s",
            is_logarithmic=True,
            levels=Levels(warning=1),
            runbook=runbook("FalconetNodeErrors"),
        ),
        lines(
            "Failed requests",
            "Requests a second that failed, by node and fault.",
            [
                Query(
                    f"sum by (endpoint, fault) (rate(falconet_rpc_errors_total{{{HERE}}}[5m]))",
                    "{{endpoint}} {{fault}}",
                )
            ],
            unit="cps",
            stacking=StackingMode.NORMAL,
            runbook=runbook("FalconetNodeErrors"),
        ),
        lines(
            "Retries and lost subscriptions",
            "Requests made again, and subscriptions to heads that began or were lost, a second.",
            [
                Query(f"sum by (endpoint) (rate(falconet_rpc_retries_total{{{HERE}}}[5m]))", "retries {{endpoint}}"),
                Query(
                    f"sum by (outcome) (rate(falconet_rpc_subscriptions_total{{{HERE}}}[5m]))",
                    "subscriptions {{outcome}}",
                ),
            ],
            unit="cps",
            runbook=runbook("FalconetNodeErrors"),
        ),
    ]
