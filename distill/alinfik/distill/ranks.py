"""Rank correlation, which every figure of this package is in."""

import numpy as np
from numpy.typing import NDArray


def spearman(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Spearman's correlation of two arrays [N]; 0 where one of them is constant."""
    # Here, since it takes seconds to load and labelling seldom needs it.
    from scipy.stats import rankdata

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
