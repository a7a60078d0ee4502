"""Fits the proxy's linear parts in closed form, on the backbone as it was loaded.

Heads that start at random pull a trained backbone out of shape before they are of use (Kumar et
al. 2022, arXiv 2202.10054): so they start where ridge regression puts them. With a few thousand
labels that is most of what there is to learn, and often all of it: then every label that is not
held out can be used, since a regression says by leaving folds out how it does on what it has not
seen. In: an untrained proxy and its training data. Out: the same proxy, which estimates as the
regressions do. Knows nothing of splits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alinfik.command import progress
from alinfik.distill.backbone import Read
from alinfik.distill.batches import Batch, batched_by_length, halve_to_fit
from alinfik.distill.calibrate import Scales
from alinfik.distill.llm import choose_dtype
from alinfik.distill.products import fit_products
from alinfik.distill.proxy import Estimate, Pooled, Proxy
from alinfik.distill.ridge import StandardisedRidge
from alinfik.distill.training_data import Training, token_targets
from alinfik.distill.values import Sums

# Of tokens there are plenty: as a share of the mean square of their states.
_TOKEN_PENALTY = 1e-3


def fit_probes(
    proxy: Proxy, data: Training, scales: Scales, batch_tokens: int, pad_id: int
) -> None:
    """Set the proxy's probe and its token head by ridge regression.

    Args:
        proxy: untrained, on any device.
        data: N samples.
        scales: the scales to estimate on.
        batch_tokens: tokens a batch, padding included.
        pad_id: fills batches up.
    """
    read = _read(proxy, data, scales, batch_tokens, pad_id)
    labels = scales.samples.fit_labels(data.labels)
    _set(proxy, StandardisedRidge(read.probed, labels, families=data.families), read.tokens)


def cross_fit(
    proxy: Proxy,
    data: Training,
    scales: Scales,
    folds: Sequence[int],
    sums: Sums,
    batch_tokens: int,
    pad_id: int,
) -> Estimate:
    """Set both by all samples; return what the probe says of each when fitted without its fold.

    Where the backbone tells products of gradients, a regression on these says what labels are in
    their unit, and positions' shares of it take the token head's place.

    Args:
        proxy: untrained but for its probes, on any device.
        data: N samples.
        scales: the scales to estimate on.
        folds: N, the number of each sample's fold.
        sums: how token values make labels.
        batch_tokens: tokens a batch, padding included.
        pad_id: fills batches up.
    """
    if proxy.backbone.product_width and sums.split == "position":
        scales = replace(scales, tokens=None)
    read = _read(proxy, data, scales, batch_tokens, pad_id)
    labels = scales.samples.fit_labels(data.labels)
    ridge = StandardisedRidge(read.probed, labels, families=data.families)
    _set(proxy, ridge, read.tokens)
    samples = torch.tensor(ridge.unfitted(read.probed, labels, folds)).float()
    said = None
    if read.products is not None:
        device = next(proxy.parameters()).device
        proxy.products, said = fit_products(read.products, data.labels, data.families, folds, sums)
        proxy.products.to(device)
    return Estimate(samples, torch.empty(0), read.features, read.lengths, said)


@dataclass(frozen=True)
class _Reading:
    """What N samples come to."""

    probed: NDArray[np.float32]
    """[N, P], what the probe is linear in: by far the most of what fitting holds in memory."""
    features: Tensor
    """[N, D]"""
    lengths: Tensor
    """[N, 2]"""
    tokens: "_Moments | None"
    products: NDArray[np.float32] | None
    """[N, K, P], summed over positions; None where the backbone tells none."""


@torch.no_grad()
def _read(proxy: Proxy, data: Training, scales: Scales, batch_tokens: int, pad_id: int) -> _Reading:
    """Read all samples once; their tokens' values too, where ``scales`` has a scale for them."""
    device = next(proxy.parameters()).device
    count, targets = data.labels.shape
    probed = torch.zeros(count, proxy.probe.in_features)
    features = torch.zeros(count, proxy.backbone.width)
    lengths = torch.zeros(count, 2)
    width = proxy.backbone.product_width
    products = torch.zeros(count, targets, width) if width else None
    tokens = None
    if scales.tokens:
        tokens = _Moments(proxy.token_head.in_features + 1, targets, device)
    # What is served reads in float32. Beside what errors remain with products, rounding counts:
    # intervals that were found with it would hold too much.
    half = products is None and choose_dtype("auto", device) == torch.bfloat16

    def read(batch: Batch) -> tuple[Read, Pooled]:
        here = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            found: Read = proxy.backbone(here.input_ids, here.attention_mask, here.completion_mask)
        told = None if found.products is None else found.products.float()
        exact = Read(found.states.float(), told)
        return exact, proxy.pooled(exact, here.attention_mask, here.completion_mask)

    with progress("read samples", count) as advance:
        for whole in batched_by_length(data.samples, batch_tokens, pad_id):
            for batch, (exact, found) in halve_to_fit(whole, read):
                probed[batch.indices] = found.probed.cpu()
                features[batch.indices] = found.mean.cpu()
                lengths[batch.indices] = found.lengths.cpu()
                if products is not None and exact.products is not None:
                    products[batch.indices] = exact.products.sum(dim=1).cpu()
                if tokens and scales.tokens:
                    mask, values = token_targets(data, batch)
                    tokens.add(exact.states[mask.to(device)], scales.tokens.fit(values.to(device)))
                advance(len(batch.indices))
    of_samples = None if products is None else products.numpy()
    return _Reading(probed.numpy(), features, lengths, tokens, of_samples)


@torch.no_grad()
def _set(proxy: Proxy, ridge: StandardisedRidge, tokens: "_Moments | None") -> None:
    proxy.probe.weight.copy_(torch.tensor(ridge.weight))
    proxy.probe.bias.copy_(torch.tensor(ridge.bias))
    if tokens is not None:
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
