"""Correlations; that of ranks is what most figures of this package are in."""

import numpy as np
from numpy.typing import NDArray


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
