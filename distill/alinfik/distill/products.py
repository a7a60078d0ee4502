"""What products of gradients say of a label.

Under `tensor` a label is a sum over parameters of products of gradients, and a backbone that tells
those of some parameters has that share of it: a regression finds what each stands for, itself and
others that are not told. In: products, labels. Out: estimates in the label's unit, and positions'
shares of them. Knows nothing of models.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alinfik.distill.ridge import StandardisedRidge
from alinfik.distill.values import Sums

Floats = NDArray[np.float64]


class Products(nn.Module):
    """A linear function of products.

    Args:
        weight: [K, P].
        bias: [K].
        sums: how token values make a label.
    """

    def __init__(self, weight: Floats, bias: Floats, sums: Sums) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.tensor(weight, dtype=torch.float32))
        self.bias = nn.Buffer(torch.tensor(bias, dtype=torch.float32))
        self.sums = sums

    def forward(self, products: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return token values [B, T, K] and labels [B, K], by positions' products [B, T, K, P]."""
        shares = (products * self.weight).sum(dim=-1)
        labels = shares.sum(dim=1) + self.bias
        if self.sums.reduction == "mean":
            # So that the mean over all tokens is the label, but for the bias.
            shares = shares * attention_mask.sum(dim=1).unsqueeze(-1).unsqueeze(-1)
        return shares, labels


def fit_products(
    products: NDArray[np.float32],
    labels: Floats,
    families: Sequence[str],
    folds: Sequence[int],
    sums: Sums,
) -> tuple[Products, Tensor]:
    """Fit each target's labels to its own products.

    Args:
        products: [N, K, P].
        labels: [N, K].
        families: of each sample, the name of what it is one with.
        folds: N, the number of each sample's fold.
        sums: how token values make a label.

    Returns:
        the function, and what it says of each sample when fitted without its fold, [N, K].
    """
    found: list[StandardisedRidge] = []
    unfitted: list[Floats] = []
    for target in range(labels.shape[1]):
        own, wanted = products[:, target], labels[:, target : target + 1]
        ridge = StandardisedRidge(own, wanted, families=families)
        found.append(ridge)
        unfitted.append(ridge.unfitted(own, wanted, folds))
    weight = np.concatenate([ridge.weight for ridge in found])
    bias = np.concatenate([ridge.bias for ridge in found])
    said = torch.tensor(np.concatenate(unfitted, axis=1)).float()
    return Products(weight, bias, sums), said
