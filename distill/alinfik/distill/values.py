"""What an engine says of a batch, what it is asked for, and how token values make a label."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from alinfik.distill.batches import Batch
from alinfik.distill.settings import Reduction

# How a label is split over tokens: by whose loss it is (what stands before it decides), or by
# position, each position's share of every parameter's gradient (what follows decides too).
TokenSplit = Literal["loss", "position"]


@dataclass(frozen=True)
class Sums:
    """How token values make a label.

    Attributes:
        split: over which tokens.
        reduction: of their values.
    """

    split: TokenSplit
    reduction: Reduction

    def counted(self, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
        """Return the mask [B, T] of the tokens that have values."""
        return completion_mask if self.split == "loss" else attention_mask

    def reduced(self, values: Tensor, counted: Tensor) -> Tensor:
        """Return labels [B, K] of token values [B, T, K], of those that are counted [B, T]."""
        mask = counted.to(values.dtype).unsqueeze(-1)
        total = (values * mask).sum(dim=1)
        return total / mask.sum(dim=1) if self.reduction == "mean" else total


@dataclass(frozen=True, slots=True)
class Values:
    """Values of B samples of T tokens for K targets, on the CPU.

    Attributes:
        losses: [B], nats, reduced as the label is.
        labels: [K, B].
        tokens: [K, B, T], or None if not asked for. By loss they are 0 off the completion and
            reduce over it to the label as token losses reduce to the loss. By position they are 0
            off the sample's tokens and reduce over all of those.
    """

    losses: Tensor
    labels: Tensor
    tokens: Tensor | None


class ValueEngine(Protocol):
    """Values batches against targets: forward mode and reverse mode alike."""

    split: TokenSplit

    def value(self, batch: Batch) -> Values:
        """Value one batch."""
        ...
