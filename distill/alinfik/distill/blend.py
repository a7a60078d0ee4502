"""What estimates together: a network, a bag of words, and products of gradients.

States tell kinds of text apart; words, and products of gradients, tell texts of one kind apart. In:
a network, a bag, and what each says of samples that it was not fitted to (stacking: Wolpert 1992).
Out: a module that estimates labels by a weighted sum of all. Knows nothing of how they were fitted.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alinfik.distill.bag import Bag
from alinfik.distill.calibrate import FittedScale
from alinfik.distill.proxy import Estimate, Proxy

Floats = NDArray[np.float64]


class Blend(nn.Module):
    """The sum of all that is said of samples, by shares; tokens have the network's values.

    Args:
        network: for K targets.
        words: for the same, in the same tokens.
        scale: of the labels.
        shares: [2 or 3, K], the network's, the bag's, and that of products of gradients.
    """

    def __init__(self, network: Proxy, words: Bag, scale: FittedScale, shares: Floats) -> None:
        super().__init__()
        self.network = network
        self.words = words
        self.scale = scale
        self.shares = nn.Buffer(torch.tensor(shares, dtype=torch.float32))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> Estimate:
        """Estimate labels and token values; see `Proxy.forward`."""
        found: Estimate = self.network(input_ids, attention_mask, completion_mask)
        words: Estimate = self.words(input_ids, attention_mask, completion_mask)
        said = _said(found, words.samples, self.scale)
        return replace(found, samples=(said * self.shares).sum(dim=1))


def blend(
    network: Proxy, found: Estimate, words: Bag, heard: Tensor, scale: FittedScale, labels: Floats
) -> tuple[Blend, Estimate]:
    """Give all that estimate the shares that fit labels best; none is below zero.

    Args:
        network: for K targets.
        found: what it says of N samples that it was not fitted to.
        words: the bag.
        heard: what it says of the same, not fitted to them either, [N, K].
        scale: of the labels.
        labels: of the same, on the fitted scale, [N, K].

    Returns:
        both as one module, and what it says of the N samples.
    """
    from scipy.optimize import nnls  # takes a second to load

    said = _said(found, heard, scale)
    numbers = said.double().numpy()
    # On the fitted scale labels are about zero, and so are estimates: no offset is wanted.
    columns = [nnls(numbers[:, :, k], labels[:, k])[0] for k in range(labels.shape[1])]
    both = Blend(network, words, scale, np.stack(columns, axis=1)).cpu().eval()
    return both, replace(found, samples=(said * both.shares).sum(dim=1))


def _said(found: Estimate, heard: Tensor, scale: FittedScale) -> Tensor:
    """Return all estimates of a label on the fitted scale, [N, 2 or 3, K]."""
    said = [found.samples, heard]
    if found.labels is not None:
        said.append(scale.fit(found.labels))
    return torch.stack(said, dim=1)
