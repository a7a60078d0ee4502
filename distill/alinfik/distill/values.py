"""What an engine says of a batch, and what it is asked for."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from alinfik.distill.batches import Batch

# How a label is split over tokens: by whose loss it is (what stands before it decides), or by
# position, each position's share of every parameter's gradient (what follows decides too).
TokenSplit = Literal["loss", "position"]


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
