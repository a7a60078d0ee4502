"""Brings the proxy's estimates back to the label's unit, with intervals and a strangeness score.

All of it is arithmetic inside the exported graph: the server only runs it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alinfik.distill.intervals import Spread
from alinfik.distill.losses import Reduction
from alinfik.distill.proxy import Estimate, Proxy
from alinfik.distill.strangeness import Strangeness
from alinfik.distill.values import TokenSplit

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


@dataclass(frozen=True)
class Scales:
    """The scales that a proxy was trained on.

    Attributes:
        samples: of the labels.
        tokens: of the token values; None where labels are not split over tokens.
    """

    samples: FittedScale
    tokens: FittedScale | None

    def to(self, device: torch.device) -> "Scales":
        """Return both on a device."""
        return Scales(self.samples.to(device), self.tokens and self.tokens.to(device))


class ServedModel(nn.Module):
    """What is exported: the trained proxy, its scale, its intervals, its strangeness score.

    Args:
        proxy: trained.
        scale: the scale that it was trained on.
        spread: how large a residual to expect, from `described`.
        half_width: [K], on the fitted scale, of a sample of middling spread.
        strangeness: gives the out-of-distribution score.
    """

    def __init__(
        self,
        proxy: Proxy,
        scale: FittedScale,
        spread: Spread,
        half_width: Floats,
        strangeness: Strangeness,
    ) -> None:
        super().__init__()
        self.proxy = proxy
        self.scale = scale
        self.spread = spread
        self.half_width = nn.Buffer(torch.tensor(half_width, dtype=torch.float32))
        self.strangeness = strangeness

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return value, lower, upper [B, K] in the label's unit, and ood [B]."""
        estimate = self.proxy(input_ids, attention_mask, completion_mask)
        half_width = self.half_width * self.spread(described(estimate))
        return (
            self.scale.restore(estimate.samples),
            self.scale.restore(estimate.samples - half_width),
            self.scale.restore(estimate.samples + half_width),
            self.strangeness(input_ids, attention_mask),
        )


class TokenModel(nn.Module):
    """What explains a value: every token's share of it.

    Args:
        proxy: trained, on token values too.
        scale: of labels.
        token_scale: of token values.
        split: over which tokens labels are split.
        reduction: how token values make a label.
    """

    def __init__(
        self,
        proxy: Proxy,
        scale: FittedScale,
        token_scale: FittedScale,
        *,
        split: TokenSplit,
        reduction: Reduction,
    ) -> None:
        super().__init__()
        self.proxy = proxy
        self.scale = scale
        self.token_scale = token_scale
        self._split = split
        self._reduction = reduction

    def forward(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
        """Return token values [B, T, K] that reduce to the value, 0 off the tokens that have one.

        What the estimates of tokens lack to the sample's own is shared out evenly among them.
        """
        estimate = self.proxy(input_ids, attention_mask, completion_mask)
        mask = completion_mask if self._split == "loss" else attention_mask
        counted = mask.to(torch.float32).unsqueeze(-1)
        count = counted.sum(dim=1)
        tokens = self.token_scale.restore(estimate.tokens) * counted
        mean = self.scale.restore(estimate.samples)
        if self._reduction == "sum":
            mean = mean / count
        lacking = mean - tokens.sum(dim=1) / count
        return tokens + lacking.unsqueeze(1) * counted


def described(estimate: Estimate) -> Tensor:
    """What the size of a sample's residual is told by, [B, F + K + 2]."""
    return torch.cat([estimate.features, estimate.samples, estimate.lengths], dim=-1)
