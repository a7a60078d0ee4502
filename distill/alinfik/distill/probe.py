"""Fits the proxy's linear parts in closed form, on the backbone as it was loaded.

Heads that start at random pull a trained backbone out of shape before they are of use (Kumar et
al. 2022, arXiv 2202.10054): so they start where ridge regression puts them. With a few thousand
labels that is most of what there is to learn. In: an untrained proxy and its training data. Out:
the same proxy, which estimates as the regressions do.
"""

import numpy as np
import torch
from torch import Tensor

from alinfik.distill.batches import batched_by_length
from alinfik.distill.calibrate import Scales
from alinfik.distill.proxy import Proxy
from alinfik.distill.training_data import Training, token_targets

_PENALTIES = np.logspace(0, 6, 13)
# Of tokens there are plenty: as a share of the mean square of their states.
_TOKEN_PENALTY = 1e-3
_BATCH_TOKENS = 2048


@torch.no_grad()
def fit_probes(proxy: Proxy, data: Training, scales: Scales, pad_id: int) -> None:
    """Set the proxy's probe and its token head by ridge regression.

    Args:
        proxy: untrained, on any device.
        data: N samples.
        scales: the scales to estimate on.
        pad_id: fills batches up.
    """
    from sklearn.linear_model import RidgeCV  # takes a second to load

    device = next(proxy.parameters()).device
    pooled = torch.zeros(len(data.samples), proxy.probe.in_features)
    width = proxy.token_head.in_features
    tokens = _Moments(width + 1, len(data.labels[0]), device)
    for batch in batched_by_length(data.samples, _BATCH_TOKENS, pad_id):
        here = batch.to(device)
        states = proxy.states(here.input_ids, here.attention_mask, here.completion_mask)
        found = proxy.pooled(states, here.attention_mask, here.completion_mask)
        pooled[batch.indices] = found.probed.float().cpu()
        if scales.tokens is not None:
            mask, values = token_targets(data, batch)
            of_tokens = states[mask.to(device)].float()
            tokens.add(of_tokens, scales.tokens.fit(values.to(device)))
    labels = scales.samples.fit(torch.tensor(data.labels, dtype=torch.float32, device=device))
    centre, deviation = pooled.mean(dim=0), pooled.std(dim=0).clamp(min=1e-6)
    standard = ((pooled - centre) / deviation).double().numpy()
    for target, label in enumerate(labels.T.cpu().numpy()):
        ridge = RidgeCV(_PENALTIES).fit(standard, label)
        weight = torch.tensor(ridge.coef_).float() / deviation
        proxy.probe.weight[target] = weight
        proxy.probe.bias[target] = float(ridge.intercept_) - float(weight @ centre)
    if scales.tokens is not None:
        solution = tokens.solve()
        proxy.token_head.weight.copy_(solution[:-1].T)
        proxy.token_head.bias.copy_(solution[-1])


class _Moments:
    """What least squares needs of any number of tokens."""

    def __init__(self, width: int, targets: int, device: torch.device) -> None:
        self._squares = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._products = torch.zeros(width, targets, dtype=torch.float64, device=device)

    def add(self, states: Tensor, values: Tensor) -> None:
        inputs = torch.cat([states, torch.ones_like(states[:, :1])], dim=1)
        self._squares += (inputs.T @ inputs).double()
        self._products += (inputs.T @ values).double()

    def solve(self) -> Tensor:
        """Return weights and, last, the offset, [D + 1, K]."""
        penalty = _TOKEN_PENALTY * self._squares.diagonal().mean()
        ridge = torch.eye(len(self._squares), device=self._squares.device) * penalty
        return torch.linalg.solve(self._squares + ridge, self._products).float()
