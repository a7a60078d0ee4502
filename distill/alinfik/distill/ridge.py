"""Ridge regressions, however many samples there are.

In: inputs [N, D], sparse or dense, and labels [N, K]. Out: scikit-learn's regression. Knows nothing
of what the inputs are.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Samples that penalties are chosen by: that takes memory for each pair of them.
_TRIED = 5000


def best_penalties(
    inputs: Any, labels: Floats, among: Floats, families: Sequence[str] | None = None
) -> Floats:
    """Return the penalties [K] that do best on samples left out one by one.

    Of each family one: a sample whose copy is not left out says nothing of others.
    """
    from sklearn.linear_model import RidgeCV  # takes a second to load

    order = np.random.default_rng(0).permutation(len(labels))
    if families is not None:
        first = {families[index]: index for index in reversed(order.tolist())}
        order = np.array(list(first.values()))
    tried = order[:_TRIED]
    ridge: Any = cast("Any", RidgeCV(among, alpha_per_target=True))
    return np.atleast_1d(ridge.fit(inputs[tried], labels[tried]).alpha_)


def fit_ridge(inputs: Any, labels: Floats, penalties: Floats | float) -> Any:
    """Fit a regression in no more memory than the inputs take; dense ones are centred in place."""
    from scipy.sparse import issparse
    from sklearn.linear_model import Ridge

    sparse = issparse(inputs)
    solver = "sparse_cg" if sparse else "auto"
    # scikit-learn's types know one penalty for all.
    return Ridge(cast("Any", penalties), solver=solver, copy_X=sparse).fit(inputs, labels)
