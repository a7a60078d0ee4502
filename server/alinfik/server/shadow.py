"""A bundle that values the active one's samples too, and is only compared with it.

Comes in: samples and what the active bundle said of them. Goes out: metrics of how far the two are
apart. Never in the way: it takes its turn after all others, and drops what it has no room for.
"""

import asyncio
from collections.abc import Sequence

from alinfik.server.admission import OversizedError, QueueFull
from alinfik.server.batching import Priority
from alinfik.server.call import Outcome
from alinfik.server.engine import Engine, NotRunningError
from alinfik.server.fault import ModelError
from alinfik.server.metrics import Metrics
from alinfik.server.valuation import Estimate
from alinfik.v1 import Sample


class Shadow:
    """Compares ``engine`` with what others say.

    Args:
        engine: a started one.
        metrics: where to count.
    """

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.bundle_id = engine.bundle.id
        self._engine = engine
        self._metrics = metrics
        # The event loop keeps weak references to its tasks.
        self._comparing: set[asyncio.Task[None]] = set()

    def compare(self, samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> None:
        """Value the samples that have an estimate, some time, and compare; returns at once."""
        valued = [
            (sample, _percentiles(outcome))
            for sample, outcome in zip(samples, outcomes, strict=True)
            if isinstance(outcome, Estimate)
        ]
        if valued:
            task = asyncio.create_task(self._compare(*zip(*valued, strict=True)))
            self._comparing.add(task)
            task.add_done_callback(self._comparing.discard)

    async def _compare(self, samples: Sequence[Sample], theirs: Sequence[dict[str, float]]) -> None:
        try:
            scored = await self._engine.score(
                samples, priority=Priority.STREAM, source="shadow", wait=False
            )
        except (QueueFull, OversizedError, NotRunningError):
            self._metrics.shadow_samples.labels("dropped").inc(len(samples))
            return
        except ModelError:
            self._metrics.shadow_samples.labels("failed").inc(len(samples))
            return
        self._metrics.shadow_samples.labels("compared").inc(len(samples))
        for outcome, percentiles in zip(scored.outcomes, theirs, strict=True):
            if isinstance(outcome, Estimate):
                for target, ours in _percentiles(outcome).items():
                    if target in percentiles:
                        apart = abs(ours - percentiles[target])
                        self._metrics.shadow_difference.labels(target).observe(apart)


def _percentiles(estimate: Estimate) -> dict[str, float]:
    return dict(zip(estimate.bundle.targets, estimate.columns[3], strict=True))
