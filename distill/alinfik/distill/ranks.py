"""Correlations; that of ranks is what most figures of this package are in."""

import math

import numpy as np
from numpy.typing import NDArray

# Standard deviations of a normal law to either side.
_NINE_IN_TEN = 1.645


def spearman(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Spearman's correlation of two arrays [N]; 0 where one of them is constant."""
    # Here, since it takes seconds to load and labelling seldom needs it.
    from scipy.stats import rankdata

    return pearson(rankdata(first), rankdata(second))


def pearson(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Pearson's correlation of two arrays [N]; 0 where one of them is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def spearman_interval(correlation: float, count: int) -> tuple[float, float]:
    """Where Spearman's correlation of all such samples is, nine times in ten, by ``count`` of them.

    Fisher's transformation, with the variance of Bonett and Wright (2000) for ranks.
    """
    centre = math.atanh(min(max(correlation, -0.999999), 0.999999))
    away = _NINE_IN_TEN * math.sqrt((1 + correlation**2 / 2) / max(count - 3, 1))
    return math.tanh(centre - away), math.tanh(centre + away)
