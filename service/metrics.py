"""Every metric of the process in one object, and the page that Prometheus scrapes.

`service/catalogue.py` alone names them.
Counting is done once a batch, never once a transaction: prometheus_client's own histogram costs about 1 µs an
observation, a tenth of a core at 100,000 transactions a second.
"""

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from types import MappingProxyType
from typing import Literal, Protocol, get_args
from wsgiref.simple_server import WSGIServer

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from features import schema
from features.errors import Reason, UsageError
from models import energy
from service.catalogue import CATALOGUE, PREFIX, Spec

Stage = Literal["decode", "features", "score", "candidate", "encode", "produce"]
Role = Literal["student", "teacher", "candidate"]
Outcome = Literal["scored", "rejected", "skipped", "orphaned", "announced"]
Reload = Literal["loaded", "refused"]
Taken = Literal["saved", "failed"]

LISTED = "listed"
ALERT_REASONS = (LISTED, "none", *(feature.name for feature in schema.FEATURES))
"""`none` where nothing raised the risk above the model's average and yet it lies above the threshold."""

SECONDS_BUCKETS = (*(float(f"{step}e{power}") for power in range(-6, 1) for step in (1, 2, 5)), 10.0)
"""1 µs to 10 s in steps of 1, 2 and 5: written as decimals, because 1e-6 * 5 is not 5e-06."""

SCORE_BUCKETS = (
    0.0001,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.99,
    1.0,
)
"""Fine near 0, where nearly all traffic lies at a real prevalence below 1 in 1,000, and near 1, where it is blocked."""


_SPECS: Mapping[str, Spec] = MappingProxyType({spec.name: spec for spec in CATALOGUE})


EXEMPLAR_CHARACTERS_MAX = 128
"""Of all names and values of an exemplar's labels, by OpenMetrics; Prometheus drops a longer one."""


def position(topic: str, partition: int, offset: int) -> dict[str, str]:
    """Return a transaction's position as an exemplar's labels, without a topic whose name is too long for them.

    >>> position("transactions", 0, 17)
    {'topic': 'transactions', 'partition': '0', 'offset': '17'}
    """
    labels = {"topic": topic, "partition": str(partition), "offset": str(offset)}
    if sum(len(name) + len(value) for name, value in labels.items()) > EXEMPLAR_CHARACTERS_MAX:
        del labels["topic"]
    return labels


class Distribution:
    """Counts of one histogram series; one thread writes, the scraping thread may read at any time."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._edges = np.array(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)

    def observe(self, value: float, n: int = 1) -> None:
        """Count a value n times, as where every transaction of a batch took the same time; 0.15 µs.

        A negative duration, seen when the clocks of two machines disagree, counts as zero: a sum that falls would read
        as a restart.

        Raises:
            ValueError: The value is NaN.
        """
        if not value >= 0.0:
            if math.isnan(value):
                raise ValueError("a metric cannot observe NaN")
            value = 0.0
        self._counts[bisect_left(self._bounds, value)] += n
        self._sum += value * n

    def observe_all(self, values: NDArray[np.float64]) -> None:
        """Count each value of an array, as `observe` would; 8 µs for 500.

        Raises:
            ValueError: A value is NaN.
        """
        if np.isnan(values).any():
            raise ValueError("a metric cannot observe NaN")
        values = np.maximum(values, 0.0)
        buckets = np.bincount(np.searchsorted(self._edges, values), minlength=len(self._counts)).tolist()
        self._counts[:] = [count + more for count, more in zip(self._counts, buckets, strict=True)]
        self._sum += float(values.sum())

    def exemplify(self, value: float, position: Mapping[str, str], *, at_s: float) -> None:
        """Let one transaction stand for its bucket, in place of an earlier one; 0.5 µs.

        Args:
            value: What it took; it is counted elsewhere.
            position: As `position` makes it.
            at_s: When, in Unix seconds.
        """
        self._exemplars[bisect_left(self._bounds, max(value, 0.0))] = Exemplar(dict(position), max(value, 0.0), at_s)

    def with_exemplars(self) -> tuple[list[tuple[str, float] | tuple[str, float, Exemplar]], float]:
        """Return what `cumulative` does, a bucket's exemplar as a third item where it has one."""
        buckets, total = self.cumulative()
        pairs = zip(buckets, self._exemplars, strict=True)
        return [bucket if exemplar is None else (*bucket, exemplar) for bucket, exemplar in pairs], total

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """Return (upper bound, number of values up to it) for each bucket, and the sum of all values."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts.copy())), strict=True)), self._sum


class Histogram(Collector):
    """A histogram whose label values are known from the start: another one is a KeyError, never a new series."""

    def __init__(self, spec: Spec, bounds: tuple[float, ...], values: Iterable[str] = ("",)) -> None:
        self._spec = spec
        self._series = {value: Distribution(bounds) for value in values}

    def __getitem__(self, value: str) -> Distribution:
        return self._series[value]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the family as prometheus_client's own histogram would."""
        labels = self._spec.labels
        family = HistogramMetricFamily(PREFIX + self._spec.name, self._spec.sentence, labels=labels)
        for value, series in self._series.items():
            buckets, total = series.with_exemplars()
            family.add_metric([value] if labels else [], buckets, total)
        yield family


class Drift(Collector):
    """Indices that are computed when the page is asked for, which takes 1 ms, and nothing between."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self.source: Callable[[], Mapping[str, float]] | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the family; it has no series while nothing is watched."""
        family = GaugeMetricFamily(PREFIX + self._spec.name, self._spec.sentence, labels=self._spec.labels)
        for feature, index in (self.source() if self.source is not None else {}).items():
            family.add_metric([feature], index)
        yield family


class Metrics:
    """All metrics of one process, on a registry of their own so that tests can make as many as they need.

    Every series with a closed label set exists from the start at zero: a rate over a series that appears with its first
    event would miss that event.
    """

    def __init__(self, *, decisions: Sequence[str] = ("allow", "review", "block")) -> None:
        # Each counter would otherwise bring a second series with its time of creation, which nothing reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        self.stage_seconds = self._histogram("stage_seconds", SECONDS_BUCKETS, get_args(Stage))
        self.decision_seconds = self._histogram("decision_seconds", SECONDS_BUCKETS)[""]
        self.end_to_end_seconds = self._histogram("end_to_end_seconds", SECONDS_BUCKETS)[""]
        self.inference_seconds = self._histogram("inference_seconds", SECONDS_BUCKETS, get_args(Role))
        self.score = self._histogram("score", SCORE_BUCKETS)[""]
        self._model = Info(
            PREFIX + "model", _SPECS["model_info"].sentence, labelnames=("model",), registry=self.registry
        )
        self._model_bytes = self._gauge("model_bytes")
        self.transactions_total = self._counters("transactions_total", get_args(Outcome))
        self.decisions_total = self._counters("decisions_total", decisions)
        self.alert_reasons_total = self._counters("alert_reasons_total", ALERT_REASONS)
        self._list_hits = self._counter("list_hits_total")
        self._hits: list[Counter] = []
        self.model_reloads_total = self._counters("model_reloads_total", get_args(Reload))
        self.candidate_score = self._histogram("candidate_score", SCORE_BUCKETS)[""]
        agreement = self._counter("candidate_decisions_total")
        self.candidate_decisions_total = {
            (champion, candidate): agreement.labels(champion, candidate)
            for champion in decisions
            for candidate in decisions
        }
        self._drift = Drift(_SPECS["drift_psi"])
        self.registry.register(self._drift)
        self._lag = self._gauge("consumer_lag_records")
        self._lag_partitions: set[int] = set()
        self._next_offset = self._gauge("next_offset")
        self._accounts = self._gauge("state_accounts")
        self._accounts_max = self._gauge("state_accounts_max")
        self._pairs = self._gauge("state_pairs")
        self._pairs_max = self._gauge("state_pairs_max")
        self._evictions = self._counter("state_evictions_total")
        self._n_evicted = 0
        age = self._gauge("snapshot_age_seconds")
        self._snapshot_at_s = math.nan
        age.set_function(lambda: time.time() - self._snapshot_at_s)
        self.snapshots_total = self._counters("snapshots_total", get_args(Taken))
        self.snapshot_pause_seconds = self._gauge("snapshot_pause_seconds")
        self.retractions_total = self._counter("retractions_total")
        self.undo_blocks = self._gauge("undo_blocks")
        self._meter = energy.Meter()
        self._energy = self._counters("energy_joules_total", get_args(energy.Source))
        self.reorgs_refused_total = self._counter("reorgs_refused_total")
        self.restore_seconds = self._gauge("restore_seconds")
        self._breaker_open = self._gauge("breaker_open")
        self._breaker_share = self._gauge("breaker_share")
        self._breaker_trips = self._counter("breaker_trips_total")
        self._n_trips = 0
        self.breaker_held_total = self._counter("breaker_held_total")
        self.restore_replayed = self._gauge("restore_replayed")
        self.standby = self._gauge("standby")
        self.dlq_total = self._counters("dlq_total", get_args(Reason))
        self.shadow_dropped_total = self._counter("shadow_dropped_total")

    def set_model(self, role: Role, *, name: str, version: str, digest: str, n_bytes: int) -> None:
        """Say which model plays a role; the one that played it before disappears."""
        self._model.labels(role).info({"name": name, "version": version, "digest": digest})
        self._model_bytes.labels(role).set(n_bytes)

    def set_drift(self, source: Callable[[], Mapping[str, float]] | None) -> None:
        """Set what tells the drift of each feature of the model in use; those of the model before disappear."""
        self._drift.source = source

    def drop_model(self, role: Role) -> None:
        """Say that no model plays a role any more."""
        with suppress(KeyError):
            self._model.remove(role)
            self._model_bytes.remove(role)

    def set_lag(self, lag: Mapping[int, int]) -> None:
        """Set the lag of the partitions held; those that went to another consumer disappear."""
        for partition in self._lag_partitions - set(lag):
            self._lag.remove(str(partition))
        self._lag_partitions = set(lag)
        for partition, n_records in lag.items():
            self._lag.labels(str(partition)).set(n_records)

    def take_energy(self) -> None:
        """Count the energy since the last call; the counter of the processor wraps after minutes at the earliest."""
        spent, self._meter = self._meter.read(), energy.Meter()
        self._energy[spent.source].inc(spent.joules)

    def set_offsets(self, offsets: Mapping[int, int]) -> None:
        """Set the next message's offset in each partition."""
        for partition, offset in offsets.items():
            self._next_offset.labels(str(partition)).set(offset)

    def set_lists(self, names: Sequence[str]) -> None:
        """Say which screening lists are in use, in the order of their bits."""
        self._hits = [self._list_hits.labels(name) for name in names]

    def count_hits(self, hits: NDArray[np.uint32]) -> None:
        """Count the listed sides of a batch: the sender's lists in the low half of each word, the recipient's above."""
        if not hits.any():
            return
        for i, counter in enumerate(self._hits):
            counter.inc(int(np.count_nonzero(hits & (1 << i)) + np.count_nonzero(hits & (1 << (16 + i)))))

    def set_limits(self, *, accounts_max: int, pairs_max: int) -> None:
        """Set what fits into the account state."""
        self._accounts_max.set(accounts_max)
        self._pairs_max.set(pairs_max)

    def set_snapshot(self, at_s: float) -> None:
        """Say of which time, in Unix seconds, the past is that a restart would begin with."""
        self._snapshot_at_s = at_s

    def resume_evictions(self, n_evicted: int) -> None:
        """Count the evictions of this process alone, where a loaded table brings a running count with it."""
        self._n_evicted = n_evicted

    def set_state(self, *, n_accounts: int, n_pairs: int, n_evicted: int) -> None:
        """Set how full the account state is; `n_evicted` is the table's running count.

        A loaded table goes on counting where it stopped: see `resume_evictions`. Where blocks are taken back the
        running count falls, and what is evicted after that counts again.
        """
        self._accounts.set(n_accounts)
        self._pairs.set(n_pairs)
        self._evictions.inc(max(0, n_evicted - self._n_evicted))
        self._n_evicted = n_evicted

    def set_breaker(self, *, is_open: bool, share: float, n_trips: int) -> None:
        """Set where the circuit breaker stands; `n_trips` is its running count, see `set_state`."""
        self._breaker_open.set(is_open)
        self._breaker_share.set(share)
        self._breaker_trips.inc(n_trips - self._n_trips)
        self._n_trips = n_trips

    def _histogram(self, name: str, bounds: tuple[float, ...], values: Iterable[str] = ("",)) -> Histogram:
        histogram = Histogram(_SPECS[name], bounds, values)
        self.registry.register(histogram)
        return histogram

    def _gauge(self, name: str) -> Gauge:
        spec = _SPECS[name]
        return Gauge(PREFIX + name, spec.sentence, labelnames=spec.labels, registry=self.registry)

    def _counter(self, name: str) -> Counter:
        spec = _SPECS[name]
        return Counter(PREFIX + name, spec.sentence, labelnames=spec.labels, registry=self.registry)

    def _counters(self, name: str, values: Iterable[str]) -> Mapping[str, Counter]:
        """Make a counter for each label value, so that counting costs no label lookup."""
        counter = self._counter(name)
        return {value: counter.labels(value) for value in values}


class Endpoint:
    """The page being served, until closed."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.host, self.port = str(server.server_address[0]), int(server.server_address[1])

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Exposed(Protocol):
    """What a page can be served of: this service's metrics, or another process's own."""

    registry: CollectorRegistry


def serve(metrics: Exposed, *, host: str, port: int) -> Endpoint:
    """Serve the metrics on `http://host:port/metrics` from a thread of its own; port 0 takes any free one.

    Raises:
        UsageError: The address cannot be listened on: the port is taken, or the host is not ours.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=metrics.registry)
    except OSError as error:
        raise UsageError(
            f"cannot serve metrics on {host}:{port}: {error.strerror or error}; set metrics_host and metrics_port"
        ) from error
    return Endpoint(server, thread)
