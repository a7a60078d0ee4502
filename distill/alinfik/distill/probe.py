"""Fits the proxy's linear parts in closed form, on the backbone as it was loaded.

Heads that start at random pull a trained backbone out of shape before they are of use (Kumar et
al. 2022, arXiv 2202.10054): so they start where ridge regression puts them. With a few thousand
labels that is most of what there is to learn, and often all of it: then every label that is not
held out can be used, since a regression says by leaving folds out how it does on what it has not
seen. In: an untrained proxy and its training data. Out: the same proxy, which estimates as the
regressions do. Knows nothing of splits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alinfik.command import progress
from alinfik.distill.backbones import Read
from alinfik.distill.batches import Batch, batched_by_length, halve_to_fit
from alinfik.distill.calibrate import Scales
from alinfik.distill.llm import choose_dtype
from alinfik.distill.proxy import Estimate, Pooled, Proxy
from alinfik.distill.ridge import best_penalties, fit_ridge
from alinfik.distill.token_networks import fit_token_networks
from alinfik.distill.training_data import Training, token_targets
from alinfik.distill.values import Sums

_PENALTIES = np.logspace(0, 6, 13)
# An input that hardly varies, as the prompt's states where all prompts are alike, varies by
# rounding; made as large as the others it would decide. Below this share of a middling deviation
# inputs stay small.
_LEAST_DEVIATION = 1e-2
# Of tokens there are plenty: as a share of the mean square of their states.
_TOKEN_PENALTY = 1e-3

Floats = NDArray[np.float64]


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
    ridge = _Ridge(read.probed, labels, proxy.importance, families=data.families)
    _set(proxy, ridge, read.tokens)


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

    Where the backbone tells of positions, networks take the token head's place, and what they say
    is returned likewise.

    Args:
        proxy: untrained but for its probes, on any device.
        data: N samples.
        scales: the scales to estimate on.
        folds: N, the number of each sample's fold.
        sums: how token values make labels.
        batch_tokens: tokens a batch, padding included.
        pad_id: fills batches up.
    """
    networks = sums if scales.tokens and proxy.backbone.position_width else None
    read = _read(proxy, data, scales, batch_tokens, pad_id, networks)
    labels = scales.samples.fit_labels(data.labels)
    whole = _Ridge(read.probed, labels, proxy.importance, families=data.families)
    _set(proxy, whole, read.tokens)
    estimates = np.empty_like(labels)
    number = np.array(folds)
    for fold in set(folds):
        left_out = number == fold
        kept = read.probed[~left_out], labels[~left_out]
        rest = _Ridge(*kept, proxy.importance, penalty=whole.penalty)
        estimates[left_out] = rest.predict(read.probed[left_out])
    said = None
    if networks:
        device = next(proxy.parameters()).device
        proxy.token_networks, said = fit_token_networks(
            read.positions, data, networks, folds, device
        )
    samples = torch.tensor(estimates).float()
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
    positions: "list[NDArray[np.float16]]"
    """N of [tokens, I], of the tokens that have values: a kB a token; none unless asked for."""


@torch.no_grad()
def _read(
    proxy: Proxy,
    data: Training,
    scales: Scales,
    batch_tokens: int,
    pad_id: int,
    networks: Sums | None = None,
) -> _Reading:
    """Read all samples once; their tokens' values too, where ``scales`` has a scale for them.

    Positions are kept for ``networks``, in place of what the token head takes.
    """
    device = next(proxy.parameters()).device
    count = len(data.samples)
    probed = torch.zeros(count, proxy.probe.in_features)
    features = torch.zeros(count, proxy.backbone.width)
    lengths = torch.zeros(count, 2)
    tokens = None
    positions = [np.empty((0, 0), np.float16)] * (count if networks else 0)
    if scales.tokens and not networks:
        tokens = _Moments(proxy.token_head.in_features + 1, len(data.labels[0]), device)
    half = choose_dtype("auto", device) == torch.bfloat16

    def read(batch: Batch) -> tuple[Read, Pooled]:
        here = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            found: Read = proxy.backbone(here.input_ids, here.attention_mask, here.completion_mask)
        added = (None if one is None else one.float() for one in (found.gradients, found.positions))
        exact = Read(found.states.float(), *added)
        return exact, proxy.pooled(exact, here.attention_mask, here.completion_mask)

    with progress("read samples", count) as advance:
        for whole in batched_by_length(data.samples, batch_tokens, pad_id):
            for batch, (exact, found) in halve_to_fit(whole, read):
                probed[batch.indices] = found.probed.cpu()
                features[batch.indices] = found.mean.cpu()
                lengths[batch.indices] = found.lengths.cpu()
                if tokens and scales.tokens:
                    mask, values = token_targets(data, batch)
                    tokens.add(exact.states[mask.to(device)], scales.tokens.fit(values.to(device)))
                if networks and exact.positions is not None:
                    told = networks.told(exact.positions).half().cpu()
                    counted = networks.counted(batch.attention_mask, batch.completion_mask).bool()
                    for row, index in enumerate(batch.indices):
                        positions[index] = told[row, counted[row]].numpy()
                advance(len(batch.indices))
    return _Reading(probed.numpy(), features, lengths, tokens, positions)


class _Ridge:
    """A ridge regression of labels [N, K] on inputs [N, P], each that varies of variance 1.

    An input of ``importance`` [P] more than 1 is penalised less, as if there were so many of it.
    ``penalty`` [K] is chosen by leaving one sample out, of ``families`` one each, unless it is
    given.
    """

    def __init__(
        self,
        inputs: NDArray[np.float32],
        labels: Floats,
        importance: Tensor,
        *,
        families: Sequence[str] | None = None,
        penalty: Floats | None = None,
    ) -> None:
        centre: Floats = inputs.mean(axis=0, dtype=np.float64)
        standard: Floats = inputs - centre
        deviation = np.sqrt(np.einsum("np,np->p", standard, standard) / len(standard))
        least = max(_LEAST_DEVIATION * float(np.median(deviation)), 1e-6)
        scale: Floats = importance.double().sqrt().numpy() / deviation.clip(least)
        standard *= scale
        if penalty is None:
            penalty = best_penalties(standard, labels, _PENALTIES, families)
        self.penalty = penalty
        ridge = fit_ridge(standard, labels, self.penalty)
        self.weight: Floats = np.atleast_2d(ridge.coef_) * scale
        """[K, P]"""
        self.bias: Floats = ridge.intercept_ - self.weight @ centre
        """[K]"""

    def predict(self, inputs: NDArray[np.float32]) -> Floats:
        """Estimates [N, K]."""
        return inputs @ self.weight.T + self.bias


@torch.no_grad()
def _set(proxy: Proxy, ridge: _Ridge, tokens: "_Moments | None") -> None:
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
