"""Brings the proxy's estimates back to the label's unit, with intervals and a strangeness score.

All of it is arithmetic inside the exported graph: the server only runs it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alinfik.distill.intervals import Spread
from alinfik.distill.proxy import Estimate, Proxy

Floats = NDArray[np.float64]

# Standard deviations past which a fitted estimate is held: sinh turns a wild one into infinity.
_FITTED_LIMIT = 8.0


class FittedScale(nn.Module):
    """The scale that the proxy is trained on: asinh of the label, standardised, a target each.

    Labels are heavy-tailed on both sides of zero; asinh is linear near zero and logarithmic in the
    tails.

    Args:
        labels: [N, K], of the training samples.
    """

    def __init__(self, labels: Floats) -> None:
        super().__init__()
        unit = np.maximum(np.median(np.abs(labels), axis=0), 1e-12)
        transformed = np.arcsinh(labels / unit)
        deviation = np.maximum(transformed.std(axis=0), 1e-6)
        self.unit = nn.Buffer(torch.tensor(unit, dtype=torch.float32))
        self.centre = nn.Buffer(torch.tensor(transformed.mean(axis=0), dtype=torch.float32))
        self.deviation = nn.Buffer(torch.tensor(deviation, dtype=torch.float32))

    def fit(self, labels: Tensor) -> Tensor:
        """Labels [..., K] to the fitted scale."""
        return ((labels / self.unit).asinh() - self.centre) / self.deviation

    def restore(self, fitted: Tensor) -> Tensor:
        """Fitted estimates [..., K] to the label's unit."""
        held = fitted.clamp(-_FITTED_LIMIT, _FITTED_LIMIT)
        return (held * self.deviation + self.centre).sinh() * self.unit


class ServedModel(nn.Module):
    """What is exported: the trained proxy, its scale, its intervals, its strangeness score.

    Args:
        proxy: trained.
        scale: the scale that it was trained on.
        spread: how large a residual to expect, from `described`.
        half_width: [K], on the fitted scale, of a sample of middling spread.
        features: [N, F], pooled features of the training samples.
    """

    def __init__(
        self,
        proxy: Proxy,
        scale: FittedScale,
        spread: Spread,
        half_width: Floats,
        features: Floats,
    ) -> None:
        super().__init__()
        self.proxy = proxy
        self.scale = scale
        self.spread = spread
        self.half_width = nn.Buffer(torch.tensor(half_width, dtype=torch.float32))
        # Here, since it takes a second to load and labelling does not need it.
        from sklearn.covariance import LedoitWolf

        # Shrunk, since there can be fewer training samples than features.
        cloud = LedoitWolf().fit(features)
        self.feature_mean = nn.Buffer(torch.tensor(cloud.location_, dtype=torch.float32))
        self.feature_precision = nn.Buffer(torch.tensor(cloud.precision_, dtype=torch.float32))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return value, lower, upper [B, K] in the label's unit, and ood [B].

        `ood` is the Mahalanobis distance of the pooled features from the training samples', over
        the square root of their number: about 1 for a sample like those.
        """
        estimate = self.proxy(input_ids, attention_mask, completion_mask)
        away = estimate.features - self.feature_mean
        half_width = self.half_width * self.spread(described(estimate))
        squared = ((away @ self.feature_precision) * away).sum(dim=-1)
        return (
            self.scale.restore(estimate.samples),
            self.scale.restore(estimate.samples - half_width),
            self.scale.restore(estimate.samples + half_width),
            (squared.clamp(min=0) / away.shape[-1]).sqrt(),
        )


def described(estimate: Estimate) -> Tensor:
    """What the size of a sample's residual is told by, [B, F + K + 2]."""
    return torch.cat([estimate.features, estimate.samples, estimate.lengths], dim=-1)
