"""Intervals for statistics of a sample, by the percentile bootstrap."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 1000
_LEVEL = 0.90


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 90 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(
    statistic: Callable[..., float],
    *columns: np.ndarray,
    strata: np.ndarray | None = None,
) -> Estimate:
    """Return ``statistic(*columns)`` and its interval, resampling the columns' rows together.

    Args:
        statistic: takes arrays of one length, gives a number.
        columns: arrays [N].
        strata: rows are resampled within equal values [N], so that each keeps its count.
    """
    random = np.random.default_rng(0)
    groups = [np.arange(len(columns[0]))]
    if strata is not None:
        groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    found: list[float] = []
    for _ in range(_RESAMPLES):
        chosen = np.concatenate([random.choice(group, len(group)) for group in groups])
        found.append(statistic(*(column[chosen] for column in columns)))
    # A resample of equal values has no rank correlation.
    low, high = np.nanquantile(found, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(float(statistic(*columns)), float(low), float(high))
