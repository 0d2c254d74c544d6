"""Read a metrics page as a dashboard would: counters, and quantiles of histograms between two readings."""

import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

from features.errors import BrokerError

TIMEOUT_SECONDS = 2.0


class Latency(NamedTuple):
    """A histogram's buckets: upper bounds in seconds, the last infinite, and the number of values up to each."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of values."""
        return int(self.counts[-1]) if self.counts else 0

    def quantile(self, share: float) -> float | None:
        """Return the value below which that share lies, linear within a bucket as PromQL does it; None without values.

        >>> Latency((1.0, 2.0, float("inf")), (0.0, 10.0, 10.0)).quantile(0.5)
        1.5
        """
        if not self.n:
            return None
        rank = share * self.counts[-1]
        below = lower = 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count >= rank and count > below:
                # Above the last finite bound nothing more is known than the bound.
                return lower if bound == float("inf") else lower + (bound - lower) * (rank - below) / (count - below)
            below, lower = count, bound
        return lower

    def since(self, earlier: "Latency | None") -> "Latency":
        """Return the values that came after an earlier reading."""
        if earlier is None:
            return self
        return Latency(self.bounds, tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True)))


class Page(NamedTuple):
    """One reading of the page; keys are a metric's name and the value of its only label, empty where it has none."""

    latencies: Mapping[tuple[str, str], Latency]
    values: Mapping[tuple[str, str], float]

    def since(self, earlier: "Page | None") -> "Page":
        """Return the histograms as they filled after an earlier reading; the values stay."""
        if earlier is None:
            return self
        return Page({key: one.since(earlier.latencies.get(key)) for key, one in self.latencies.items()}, self.values)


def read(url: str) -> Page:
    """Read a page.

    Raises:
        BrokerError: Nobody answers there.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            text = response.read().decode()
    except (urllib.error.URLError, OSError) as error:
        raise BrokerError(f"the metrics page {url} does not answer: {error}") from error
    return parse(text)


def parse(text: str) -> Page:
    """Parse a page in Prometheus's text format."""
    from prometheus_client.parser import text_string_to_metric_families

    buckets: dict[tuple[str, str], list[tuple[float, float]]] = {}
    values: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [value for name, value in sample.labels.items() if name != "le"]
            key = (sample.name.removesuffix("_bucket"), labels[0] if len(labels) == 1 else "")
            if sample.name.endswith("_bucket"):
                buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
            else:
                values[key] = sample.value
    latencies = {
        key: Latency(tuple(bound for bound, _ in pairs), tuple(count for _, count in pairs))
        for key, pairs in buckets.items()
    }
    return Page(latencies, values)
