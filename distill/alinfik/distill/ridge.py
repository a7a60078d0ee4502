"""Ridge regressions, however many samples there are.

In: inputs [N, D], sparse or dense, and labels [N, K]. Out: scikit-learn's regression. Knows nothing
of what the inputs are.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PENALTIES = np.logspace(0, 6, 13)
# An input that hardly varies, as the prompt's states where all prompts are alike, varies by
# rounding; made as large as the others it would decide. Below this share of a middling deviation
# inputs stay small.
_LEAST_DEVIATION = 1e-2
_LEAST = 1e-6

# Samples that penalties are chosen by: that takes memory for each pair of them.
_TRIED = 5000


class StandardisedRidge:
    """A ridge regression of labels [N, K] on inputs [N, P], each that varies of variance 1.

    Args:
        inputs: [N, P].
        labels: [N, K].
        families: of each sample, the name of what it is one with; the penalties are chosen by
            leaving one sample out, of families one each.
        penalty: [K], given in place of that.

    Attributes:
        penalty: [K].
        weight: [K, P].
        bias: [K].
    """

    def __init__(
        self,
        inputs: NDArray[np.float32],
        labels: Floats,
        *,
        families: Sequence[str] | None = None,
        penalty: Floats | None = None,
    ) -> None:
        centre: Floats = inputs.mean(axis=0, dtype=np.float64)
        standard: Floats = inputs - centre
        deviation = np.sqrt(np.einsum("np,np->p", standard, standard) / len(standard))
        least = max(_LEAST_DEVIATION * float(np.median(deviation)), _LEAST)
        scale: Floats = 1 / deviation.clip(least)
        standard *= scale
        if penalty is None:
            penalty = best_penalties(standard, labels, _PENALTIES, families)
        self.penalty = penalty
        ridge = fit_ridge(standard, labels, self.penalty)
        self.weight: Floats = np.atleast_2d(ridge.coef_) * scale
        self.bias: Floats = np.atleast_1d(ridge.intercept_) - self.weight @ centre

    def predict(self, inputs: NDArray[np.float32]) -> Floats:
        """Estimates [N, K]."""
        return inputs @ self.weight.T + self.bias

    def unfitted(self, inputs: NDArray[np.float32], labels: Floats, folds: Sequence[int]) -> Floats:
        """Return what it says of each sample when it is fitted without its fold, [N, K]."""
        estimates = np.empty_like(labels)
        number = np.array(folds)
        for fold in set(folds):
            left_out = number == fold
            rest = StandardisedRidge(inputs[~left_out], labels[~left_out], penalty=self.penalty)
            estimates[left_out] = rest.predict(inputs[left_out])
        return estimates


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
