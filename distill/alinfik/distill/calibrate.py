"""Brings the proxy's estimates back to the label's unit, with intervals and a strangeness score.

All of it is arithmetic inside the exported graph: the server only runs it.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alinfik.distill.intervals import Intervals
from alinfik.distill.proxy import Estimate
from alinfik.distill.strangeness import Strangeness
from alinfik.distill.values import Sums

Floats = NDArray[np.float64]

# Quantiles that the scale is known at, and how far past the outermost it goes on, in standard
# deviations of it: a wild estimate should stay a number that somebody may have seen.
_KNOTS = 65
_BEYOND = 1.0
_LEAST_STEP = 1e-30


class FittedScale(nn.Module):
    """The scale that the proxy is trained on: what the label's rank would be in a normal law.

    Labels are heavy-tailed and of several kinds at once; ranks are what a proxy is judged by, and
    normal scores are ranks that regression is at home with. Between quantiles of the training
    labels the scale is linear, past the outermost it goes on as it did before them.

    Args:
        labels: [N, K], of the training samples.
    """

    def __init__(self, labels: Floats) -> None:
        super().__init__()
        from scipy.stats import norm  # takes a second to load

        tail = 0.5 / len(labels)
        shares = np.linspace(norm.ppf(tail), norm.ppf(1 - tail), _KNOTS)
        values = np.quantile(labels, norm.cdf(shares), axis=0).T
        # A step that labels share takes in all of its ranks: the scale must still go up there.
        least = 1e-6 * np.maximum(np.ptp(values, axis=1, keepdims=True), 1e-12)
        values = np.maximum.accumulate(values, axis=1) + least * np.arange(_KNOTS)
        self.knots = nn.Buffer(torch.tensor(shares, dtype=torch.float32))
        self.values = nn.Buffer(torch.tensor(values, dtype=torch.float32))

    def fit(self, labels: Tensor) -> Tensor:
        """Labels [..., K] to the fitted scale."""
        by_target = [
            self._along(self.values[target], self.knots.expand_as(self.values[target]), column)
            for target, column in enumerate(labels.unbind(dim=-1))
        ]
        return self._held(torch.stack(by_target, dim=-1))

    def fit_labels(self, labels: Floats) -> Floats:
        """Labels [N, K] to the fitted scale, for regressions."""
        wanted = torch.tensor(labels, dtype=torch.float32, device=self.knots.device)
        return self.fit(wanted).double().cpu().numpy()

    def restore(self, fitted: Tensor) -> Tensor:
        """Fitted estimates [..., K] to the label's unit."""
        by_target = [
            self._along(self.knots, self.values[target], column)
            for target, column in enumerate(self._held(fitted).unbind(dim=-1))
        ]
        return torch.stack(by_target, dim=-1)

    def _held(self, fitted: Tensor) -> Tensor:
        return fitted.clamp(self.knots[0] - _BEYOND, self.knots[-1] + _BEYOND)

    @staticmethod
    def _along(knots: Tensor, values: Tensor, places: Tensor) -> Tensor:
        """Interpolate linearly through (knots, values) [Q], and on past both ends."""
        # What torch.searchsorted says, in operators that ONNX has.
        segment = (places.unsqueeze(-1) > knots).sum(dim=-1).clamp(1, len(knots) - 1)
        start, end = knots[segment - 1], knots[segment]
        share = (places - start) / (end - start).clamp(min=_LEAST_STEP)
        return values[segment - 1] + share * (values[segment] - values[segment - 1])


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
        """Return copies of both on a device; these stay where they are."""
        samples, tokens = copy.deepcopy((self.samples, self.tokens))
        return Scales(samples.to(device), tokens and tokens.to(device))


class ServedModel(nn.Module):
    """What is exported: the trained proxy, its scale, its intervals, its strangeness score.

    Args:
        proxy: trained: a `Blend` or a `Bag`.
        scale: the scale that it was trained on.
        intervals: how wide they are, from `described` and the values.
        strangeness: gives the out-of-distribution score.
    """

    def __init__(
        self,
        proxy: nn.Module,
        scale: FittedScale,
        intervals: Intervals,
        strangeness: Strangeness,
    ) -> None:
        super().__init__()
        self.proxy = proxy
        self.scale = scale
        self.intervals = intervals
        self.strangeness = strangeness

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return value, lower, upper [B, K] in the label's unit, and ood [B]."""
        estimate: Estimate = self.proxy(input_ids, attention_mask, completion_mask)
        return self.told(estimate, input_ids, attention_mask)

    def told(
        self, estimate: Estimate, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the same by the proxy's estimate."""
        value = self.scale.restore(estimate.samples)
        half_width = self.intervals(described(estimate), value)
        return (
            value,
            value - half_width,
            value + half_width,
            self.strangeness(input_ids, attention_mask),
        )


class TokenModel(nn.Module):
    """What explains a value: every token's share of it.

    Args:
        proxy: trained, on token values too.
        scale: of labels.
        token_scale: of the proxy's token values; None where it says them in their unit.
        sums: how token values make a label.
    """

    def __init__(
        self, proxy: nn.Module, scale: FittedScale, token_scale: FittedScale | None, sums: Sums
    ) -> None:
        super().__init__()
        self.proxy = proxy
        self.scale = scale
        self.token_scale = token_scale
        self._sums = sums

    def forward(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
        """Return token values [B, T, K] that reduce to the value, 0 off the tokens that have one.

        What the estimates of tokens lack to the sample's own is shared out evenly among them.
        """
        estimate: Estimate = self.proxy(input_ids, attention_mask, completion_mask)
        return self.told(estimate, attention_mask, completion_mask)

    def told(self, estimate: Estimate, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
        """Return the same by the proxy's estimate."""
        counted = self._sums.counted(attention_mask, completion_mask)
        tokens = estimate.tokens
        if self.token_scale is not None:
            tokens = self.token_scale.restore(tokens)
        lacking = self.scale.restore(estimate.samples) - self._sums.reduced(tokens, counted)
        if self._sums.reduction == "sum":
            lacking = lacking / counted.sum(dim=1, keepdim=True)
        return (tokens + lacking.unsqueeze(1)) * counted.unsqueeze(-1)


def described(estimate: Estimate) -> Tensor:
    """What the size of a sample's residual is told by, [B, F + K + 2]."""
    return torch.cat([estimate.features, estimate.samples, estimate.lengths], dim=-1)
