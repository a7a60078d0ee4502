"""How far a value may be from its label: intervals that are wide where the proxy errs.

In: residuals of samples that were not trained on. Out: a module that says how wide every sample's
interval is to be. Split conformal prediction with a normalised score (Lei et al. 2018, section 5.2,
arXiv 1604.04173): a small regression says how large a residual to expect, and the multiple of it
that covers is found on samples that a regression fitted to the others judged (cross-conformal
prediction, Vovk 2015), for low values and high ones apart (Mondrian conformal prediction, Vovk et
al. 2005, section 4.5). Knows nothing of the proxy.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]

COVERAGE = 0.9

# Of a middling root: no regression on a few hundred samples can promise less.
_FLOOR = 0.2
_PENALTIES = np.logspace(0, 6, 13)

# Levels of value that have multiples of their own, and of how many samples each at least.
_LEVELS = 10
_FEWEST = 100


class Spread(nn.Module):
    """Expected size of a sample's residual; its root is linear in what describes the sample.

    Roots of absolute residuals have a spread of their own that hardly depends on their size, as
    least squares would have it.

    Args:
        features: [N, F], of samples that were not trained on.
        residuals: [N, K], value minus label, of the same samples.
    """

    def __init__(self, features: Floats, residuals: Floats) -> None:
        super().__init__()
        from sklearn.linear_model import RidgeCV  # takes a second to load

        roots = np.sqrt(np.abs(residuals))
        roots /= np.maximum(roots.mean(axis=0), np.finfo(np.float64).tiny)
        centre, deviation = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
        standard = (features - centre) / deviation
        # Its penalty is chosen by leaving one sample out, so that noise gives a constant width.
        ridges = [RidgeCV(_PENALTIES).fit(standard, root) for root in roots.T]
        weights = np.stack([np.asarray(ridge.coef_) for ridge in ridges])
        self.centre = nn.Buffer(torch.tensor(centre, dtype=torch.float32))
        self.deviation = nn.Buffer(torch.tensor(deviation, dtype=torch.float32))
        self.weights = nn.Buffer(torch.tensor(weights, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Return sizes [B, K] for features [B, F], over that of a middling sample."""
        roots = 1 + ((features - self.centre) / self.deviation) @ self.weights.T
        return roots.clamp(min=_FLOOR).square()


class Intervals(nn.Module):
    """Half-widths of intervals that hold the label nine times in ten, whatever the value.

    Args:
        features: [N, F], of samples that the proxy was not trained on.
        values: [N, K], what it says of them, in the label's unit.
        residuals: [N, K], value minus label.
        folds: N, the number of each sample's fold; what is alike is in one.
    """

    def __init__(
        self, features: Floats, values: Floats, residuals: Floats, folds: Sequence[int]
    ) -> None:
        super().__init__()
        scores = _scores(features, residuals, folds)
        count = max(1, min(_LEVELS, len(values) // _FEWEST))
        edges = np.quantile(values, np.arange(1, count) / count, axis=0)
        level = (values > edges[:, np.newaxis]).sum(axis=0)
        # Where many values are one, there are levels that nothing is of.
        multiples = np.tile(conformal_width(scores), (count, 1))
        for number, target in np.ndindex(multiples.shape):
            here = level[:, target] == number
            if here.any():
                multiples[number, target] = conformal_width(scores[here, target])
        self.spread = Spread(features, residuals)
        self.edges = nn.Buffer(torch.tensor(edges, dtype=torch.float32))
        self.multiples = nn.Buffer(torch.tensor(multiples, dtype=torch.float32))

    def forward(self, features: Tensor, values: Tensor) -> Tensor:
        """Return half-widths [B, K] for features [B, F] and values [B, K]."""
        level = (values > self.edges.unsqueeze(1)).sum(dim=0)
        return self.multiples.gather(0, level) * self.spread(features)


def _scores(features: Floats, residuals: Floats, folds: Sequence[int]) -> Floats:
    """Absolute residuals over the size that a regression fitted to the other folds expects."""
    scores = np.empty_like(residuals)
    number = np.array(folds)
    for fold in set(folds):
        judged = number == fold
        spread = Spread(features[~judged], residuals[~judged])
        sizes = spread(torch.tensor(features[judged], dtype=torch.float32)).double().numpy()
        scores[judged] = np.abs(residuals[judged]) / sizes
    return scores


def conformal_width(scores: Floats, coverage: float = COVERAGE) -> Floats:
    """Return the score that a new sample stays under with the given probability, a target each.

    Split conformal prediction (Vovk et al. 2005): the ceil((n + 1) * coverage)-th smallest of n.

    Args:
        scores: [N, K], absolute residuals over their expected size, of samples that neither the
            proxy nor its `Spread` was fitted to.
        coverage: the wanted probability.
    """
    count = len(scores)
    rank = min(math.ceil((count + 1) * coverage), count)
    return np.sort(scores, axis=0)[rank - 1]
