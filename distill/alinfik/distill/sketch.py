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

import torch
from torch import Tensor, nn

# Numbers on either side; with half of them up to a hundredth of rank correlation is lost.
_SIDE = 64
_LEAST_NORM = 1e-6


class GradientSketch(nn.Module):
    """Projects gradients, the same way whenever it is made.

    Args:
        size: H, of errors and states.
        depths: D.

    Attributes:
        width: D R R, of what it gives.
    """

    def __init__(self, size: int, depths: int) -> None:
        super().__init__()
        side = min(_SIDE, size)
        self.width = depths * side * side
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(2, depths, size, size, generator=generator)
        errors, states = torch.linalg.qr(square).Q[..., :side]
        self.errors = nn.Buffer(errors.contiguous())
        self.states = nn.Buffer(states.contiguous())

    def forward(self, errors: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Return the sketch [B, D R R], each depth's of norm 1.

        Args:
            errors: [B, T, H], 0 where none counts.
            states: D times [B, T, H], that they are the errors of.
        """
        sketches: list[Tensor] = []
        for depth, state in enumerate(states):
            left, right = errors @ self.errors[depth], state @ self.states[depth]
            gradient = (left.mT @ right).flatten(1)
            norm = gradient.square().sum(dim=1, keepdim=True).sqrt()
            sketches.append(gradient / norm.clamp(min=_LEAST_NORM))
        return torch.cat(sketches, dim=1)
