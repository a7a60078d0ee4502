"""Counts what the engine does.

Comes in: batches and outcomes. Goes out: metrics. Knows which metric each fact belongs to, so that
the engine does not.
"""

from collections.abc import Sequence
from typing import Literal

from alinfik.server.admission import Limit
from alinfik.server.batching import Priority
from alinfik.server.bundle import Bundle
from alinfik.server.call import Job, Outcome
from alinfik.server.metrics import Metrics
from alinfik.server.valuation import Estimate

Source = Literal["grpc", "kafka", "shadow"]
Unvalued = Literal["refused", "dropped", "failed"]
"""Why samples have no outcome: no room, a caller that waits no longer, or a fault of ours."""


class Tally:
    """The engine's metrics, with every label looked up once: a look-up costs more than counting."""

    def __init__(self, metrics: Metrics, bundle: Bundle) -> None:
        self._metrics = metrics
        self._waited = [
            metrics.queue_wait_seconds.labels(priority.name.lower()) for priority in Priority
        ]
        self._values = [
            (metrics.value.labels(name), metrics.value_percentile.labels(name))
            for name in bundle.targets
        ]

    def batch(self, jobs: Sequence[Job], begun: float, ended: float) -> None:
        """Count a batch that ran from ``begun`` to ``ended``, on the monotonic clock."""
        lengths = [job.length for job in jobs]
        padded = len(lengths) * max(lengths)
        metrics = self._metrics
        metrics.inference_seconds.observe(ended - begun)
        metrics.batch_samples.observe(len(lengths))
        metrics.batch_tokens.observe(padded)
        metrics.padding_tokens.inc(padded - sum(lengths))
        for priority, waited in zip(Priority, self._waited, strict=True):
            waited.observe([begun - job.pushed_at for job in jobs if job.priority == priority])

    def refused(self, source: Source, limit: Limit) -> None:
        """Count a call that found no room."""
        if source != "shadow":
            self._metrics.refused.labels(limit).inc()

    def outcomes(
        self, source: Source, outcomes: Sequence[Outcome | None], shared: int, unvalued: Unvalued
    ) -> None:
        """Count what a call came to.

        Args:
            source: its door.
            outcomes: None is a sample that had no outcome when its call ended.
            shared: how many of them cost the model nothing.
            unvalued: why it ended then.
        """
        if source == "shadow":
            # Nobody was given these.
            return
        metrics = self._metrics
        metrics.shared.inc(shared)
        estimates = [outcome for outcome in outcomes if isinstance(outcome, Estimate)]
        without = sum(outcome is None for outcome in outcomes)
        for outcome, count in (
            ("valued", len(estimates)),
            (unvalued, without),
            ("rejected", len(outcomes) - without - len(estimates)),
        ):
            if count:
                metrics.samples.labels(source, outcome).inc(count)
        numbers = [estimate.numbers for estimate in estimates]
        for place, (value, percentile) in enumerate(self._values):
            value.observe([one[place] for one in numbers])
            # Percentiles come last.
            percentile.observe([one[place - len(self._values)] for one in numbers])
        metrics.truncated.inc(sum([estimate.truncated for estimate in estimates]))
        strange = sum([estimate.out_of_distribution for estimate in estimates])
        metrics.out_of_distribution.inc(strange)
