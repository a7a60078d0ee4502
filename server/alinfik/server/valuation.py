"""What a bundle says of a text, and the valuation of a sample that has this text.

Comes in: an estimate and a sample. Goes out: ``alinfik.v1.Valuation``. Knows nothing of models and
queues.
"""

from array import array
from collections.abc import Collection
from typing import NamedTuple

from alinfik.server.bundle import Bundle
from alinfik.v1 import Sample, TargetValue, Valuation


class Estimate(NamedTuple):
    """What a bundle says of a text, for K targets in the manifest's order; all of it finite.

    Nobody changes it, so all who wait for one text share it. On its way to a door it is no message,
    which takes far longer to make and to read; and its numbers are no Python floats, which would
    take three times the memory.
    """

    bundle: Bundle
    numbers: "array[float]"
    """[4 * K]: the values of all targets, their lower and upper bounds, their percentiles."""
    token_count: int
    truncated: bool
    out_of_distribution_score: float
    out_of_distribution: bool

    @property
    def columns(self) -> "list[array[float]]":
        """Values, lower bounds, upper bounds and percentiles, [K] each."""
        count = len(self.numbers) // 4
        return [self.numbers[begin : begin + count] for begin in range(0, 4 * count, count)]


def valuation(sample: Sample, estimate: Estimate, targets: Collection[str] = ()) -> Valuation:
    """A sample's valuation.

    Args:
        sample: whose text it is.
        estimate: of its text.
        targets: those that are wanted; all where there are none.
    """
    names = estimate.bundle.targets
    return Valuation(
        sample_id=sample.id,
        provider=sample.provider,
        bundle_id=estimate.bundle.id,
        values=[
            TargetValue(target=name, value=value, lower=lower, upper=upper, percentile=percentile)
            for name, value, lower, upper, percentile in zip(names, *estimate.columns, strict=True)
            if not targets or name in targets
        ],
        token_count=estimate.token_count,
        truncated=estimate.truncated,
        out_of_distribution_score=estimate.out_of_distribution_score,
        out_of_distribution=estimate.out_of_distribution,
    )
