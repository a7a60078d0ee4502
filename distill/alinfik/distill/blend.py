"""A network and a bag of words that estimate together: each knows what the other does not.

States tell kinds of text apart, words tell texts of one kind apart. In: a network, a bag, and what
either says of samples that it was not fitted to (stacking: Wolpert 1992). Out: a module that
estimates labels by a weighted sum of both. Knows nothing of how they were fitted.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alinfik.distill.bag import Bag
from alinfik.distill.proxy import Estimate, Proxy

Floats = NDArray[np.float64]


class Blend(nn.Module):
    """The sum of what a network and a bag say of samples; tokens have the network's values.

    Args:
        network: for K targets.
        words: for the same, in the same tokens.
        shares: [2, K], the network's and the bag's.
    """

    def __init__(self, network: Proxy, words: Bag, shares: Floats) -> None:
        super().__init__()
        self.network = network
        self.words = words
        self.shares = nn.Buffer(torch.tensor(shares, dtype=torch.float32))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> Estimate:
        """Estimate labels and token values; see `Proxy.forward`."""
        found: Estimate = self.network(input_ids, attention_mask, completion_mask)
        words: Estimate = self.words(input_ids, attention_mask, completion_mask)
        return replace(found, samples=_sum(found.samples, words.samples, self.shares))


def blend(
    network: Proxy, found: Estimate, words: Bag, heard: Tensor, labels: Floats
) -> tuple[Blend, Estimate]:
    """Give network and bag the shares that fit labels best; none is below zero.

    Args:
        network: for K targets.
        found: what it says of N samples that it was not fitted to.
        words: the bag.
        heard: what it says of the same, not fitted to them either, [N, K].
        labels: of the same, on the fitted scale, [N, K].

    Returns:
        both as one module, and what it says of the N samples.
    """
    from scipy.optimize import nnls  # takes a second to load

    said = torch.stack([found.samples, heard], dim=1).double().numpy()
    # On the fitted scale labels are about zero, and so are estimates: no offset is wanted.
    columns = [nnls(said[:, :, k], labels[:, k])[0] for k in range(labels.shape[1])]
    both = Blend(network, words, np.stack(columns, axis=1)).cpu().eval()
    return both, replace(found, samples=_sum(found.samples, heard, both.shares))


def _sum(network: Tensor, words: Tensor, shares: Tensor) -> Tensor:
    return network * shares[0] + words * shares[1]
