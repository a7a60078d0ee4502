"""What a sample's gradients look like, by one forward pass.

The gradient of a layer's weights is a sum over tokens of outer products: what comes back to the
layer, times what went in. Residual connections carry a prediction's error e back to every depth,
so the sum of e times h, for the states h of a depth that tokens were predicted from, is much like
the gradients of the layers there. It is divided by its norm, as labels under `tensor` are. A label
is linear in it, but for what this leaves out, and the target's gradient is what a regression on it
finds.

It has H x H numbers. Projected at random on both sides it has fewer, whose inner products are
about the same (Johnson and Lindenstrauss 1984; for gradients: Park et al. 2023, arXiv 2303.14186).

In: errors and states. Out: projected gradients. Knows nothing of models.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Numbers on either side; with half of them up to a hundredth of rank correlation is lost.
_SIDE = 64
_LEAST_NORM = 1e-6


class Sketch(NamedTuple):
    """B samples' gradients, and what each of T positions has of them.

    Attributes:
        gradients: [B, D R R], each depth's of norm 1.
        errors: [B, T, D R], projected for each depth.
        states: [B, T, D R], likewise.
        norms: [B, D], of each depth's gradient before it is divided by them.
    """

    gradients: Tensor
    errors: Tensor
    states: Tensor
    norms: Tensor


class GradientSketch(nn.Module):
    """Projects gradients, the same way whenever it is made.

    Args:
        size: H, of errors and states.
        depths: D.

    Attributes:
        width: D R R, of a sample's gradients.
        projected: D R, of a position's errors or states.
    """

    def __init__(self, size: int, depths: int) -> None:
        super().__init__()
        side = min(_SIDE, size)
        self.width = depths * side * side
        self.projected = depths * side
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(2, depths, size, size, generator=generator)
        errors, states = torch.linalg.qr(square).Q[..., :side]
        self.errors = nn.Buffer(errors.contiguous())
        self.states = nn.Buffer(states.contiguous())

    def forward(self, errors: Tensor, states: Sequence[Tensor]) -> Sketch:
        """Return the sketch of a batch.

        Args:
            errors: [B, T, H], 0 where none counts.
            states: D times [B, T, H], that they are the errors of.
        """
        gradients: list[Tensor] = []
        norms: list[Tensor] = []
        lefts = [errors @ projection for projection in self.errors]
        rights = [state @ projection for state, projection in zip(states, self.states, strict=True)]
        for left, right in zip(lefts, rights, strict=True):
            gradient = (left.mT @ right).flatten(1)
            norm = gradient.square().sum(dim=1, keepdim=True).sqrt().clamp(min=_LEAST_NORM)
            gradients.append(gradient / norm)
            norms.append(norm)
        return Sketch(
            gradients=torch.cat(gradients, dim=-1),
            errors=torch.cat(lefts, dim=-1),
            states=torch.cat(rights, dim=-1),
            norms=torch.cat(norms, dim=-1),
        )
