"""Every metric of `falconet ingest`, on a registry of its own; `CATALOGUE` alone names them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from features.errors import Fault
from service.catalogue import PREFIX, Spec
from service.metrics import SECONDS_BUCKETS

Method = Literal[
    "web3_clientVersion",
    "eth_chainId",
    "eth_getBlockByNumber",
    "eth_getBlockReceipts",
    "eth_getTransactionReceipt",
    "batch",
]
"""What nodes are asked; `batch` is a block with its receipts, or several receipts, in one request."""

DEPTH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Ethereum's reorganisations take one block, rarely two; proof-of-work chains and sidechains were seen to take 100."""

_LATENCY_BUCKETS = tuple(bound for bound in SECONDS_BUCKETS if bound >= 1e-4)
"""A node's answer takes 0.3 ms at least."""

CATALOGUE = (
    Spec("ingest_head_block", "gauge", (), "blocks", "Number of the node's newest block."),
    Spec("ingest_block", "gauge", (), "blocks", "Number of the newest block that is published."),
    Spec("ingest_lag_blocks", "gauge", (), "blocks", "Blocks to be published, confirmations counted as published."),
    Spec("ingest_lag_seconds", "gauge", (), "seconds", "Age of the newest published block when it was published."),
    Spec("ingest_blocks_total", "counter", (), "blocks", "Blocks published."),
    Spec("ingest_records_total", "counter", ("type",), "records", "Messages published, by their type."),
    Spec(
        "ingest_transfers_skipped_total",
        "counter",
        (),
        "events",
        "Transfer events that are no ERC-20's: ERC-721's, and those whose words do not make a transfer.",
    ),
    Spec("reorg_depth_blocks", "histogram", (), "blocks", "Reorganisations announced, by the blocks taken back."),
    Spec("head_to_topic_seconds", "histogram", (), "seconds", "From the sight of a head to the commit of its block."),
    Spec("rpc_seconds", "histogram", ("method", "endpoint"), "seconds", "Time of a request to a node."),
    Spec("rpc_errors_total", "counter", ("method", "endpoint", "fault"), "requests", "Requests that failed, by fault."),
    Spec("rpc_retries_total", "counter", ("endpoint",), "requests", "Requests made again after a failure."),
    Spec(
        "rpc_subscriptions_total", "counter", ("outcome",), "subscriptions", "Subscriptions to heads, begun and lost."
    ),
)

_SPECS: Mapping[str, Spec] = MappingProxyType({spec.name: spec for spec in CATALOGUE})

RecordType = Literal["transaction", "token_transfer", "orphaned_block"]


class IngestMetrics:
    """All metrics of one ingesting process."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        self.head_block = self._gauge("ingest_head_block")
        self.block = self._gauge("ingest_block")
        self.lag_blocks = self._gauge("ingest_lag_blocks")
        self.lag_seconds = self._gauge("ingest_lag_seconds")
        self.blocks = self._counter("ingest_blocks_total")
        records = self._counter("ingest_records_total")
        self.records = {kind: records.labels(kind) for kind in get_args(RecordType)}
        self.transfers_skipped = self._counter("ingest_transfers_skipped_total")
        self.reorg_depth = self._histogram("reorg_depth_blocks", DEPTH_BUCKETS)
        self.head_to_topic = self._histogram("head_to_topic_seconds", _LATENCY_BUCKETS)
        self.rpc_seconds = self._histogram("rpc_seconds", _LATENCY_BUCKETS)
        self.rpc_errors = self._counter("rpc_errors_total")
        self.rpc_retries = self._counter("rpc_retries_total")
        subscriptions = self._counter("rpc_subscriptions_total")
        self.subscriptions = {outcome: subscriptions.labels(outcome) for outcome in ("begun", "lost")}

    def know(self, endpoint: str) -> None:
        """Begin a node's series at zero, so that a rate sees its first failure."""
        self.rpc_retries.labels(endpoint)
        for fault in get_args(Fault):
            self.rpc_errors.labels("eth_getBlockByNumber", endpoint, fault)

    def _gauge(self, name: str) -> Gauge:
        return Gauge(PREFIX + name, _SPECS[name].sentence, labelnames=_SPECS[name].labels, registry=self.registry)

    def _counter(self, name: str) -> Counter:
        return Counter(PREFIX + name, _SPECS[name].sentence, labelnames=_SPECS[name].labels, registry=self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        spec = _SPECS[name]
        return Histogram(PREFIX + name, spec.sentence, labelnames=spec.labels, buckets=buckets, registry=self.registry)
