"""A histogram that takes a batch of observations at once.

Comes in: numbers, many at a time. Goes out: what a Prometheus histogram or summary shows.
prometheus-client's own take one number at a time and a lock or two for each, which altogether costs
as much as a cheap proxy's sample. Knows nothing of what the numbers are.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from threading import Lock

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector


class Series:
    """The observations of one combination of labels. Thread-safe."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = Lock()

    def observe(self, values: Sequence[float]) -> None:
        """Count ``values``; a bucket holds those up to its bound and the bound itself."""
        buckets = [bisect_left(self._bounds, value) for value in values]
        with self._lock:
            for bucket in buckets:
                self._counts[bucket] += 1
            self._sum += sum(values)

    def snapshot(self) -> tuple[list[int], float]:
        """How many are up to each bound and in all, cumulative, and their sum."""
        with self._lock:
            return list(accumulate(self._counts)), self._sum


class Distribution(Collector):
    """A histogram, or a summary of count and sum where it has no ``buckets``.

    Args:
        name: the metric's.
        documentation: its help.
        labels: names of its labels.
        buckets: upper bounds, ascending, without infinity.
        registry: where it is registered.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = (),
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels: Sequence[str] = labels
        self._bounds: Sequence[float] = buckets
        self._series: dict[tuple[str, ...], Series] = {}
        if not labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> Series:
        """The series of these labels' values, in the order of the labels' names."""
        if (series := self._series.get(values)) is None:
            series = self._series.setdefault(values, Series(self._bounds))
        return series

    def describe(self) -> Iterable[HistogramMetricFamily | SummaryMetricFamily]:
        """The metric without its series, for the registry to know its name."""
        return [self._family()]

    def collect(self) -> Iterable[HistogramMetricFamily | SummaryMetricFamily]:
        """The metric as it is now."""
        family = self._family()
        for values, series in list(self._series.items()):
            counts, total = series.snapshot()
            if isinstance(family, SummaryMetricFamily):
                family.add_metric(values, counts[-1], total)
            else:
                bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
                family.add_metric(values, list(zip(bounds, counts, strict=True)), total)
        return [family]

    def _family(self) -> HistogramMetricFamily | SummaryMetricFamily:
        kind = HistogramMetricFamily if self._bounds else SummaryMetricFamily
        return kind(self._name, self._documentation, labels=self._labels)
