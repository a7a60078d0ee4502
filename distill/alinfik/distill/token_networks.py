"""What each position adds to a label, by small networks of its error and its state.

A sample has one label and some ninety token values, which add up to it: so much more is there to
learn from, and a position's own share of the gradients follows from less than a whole text's. In:
what a backbone says of positions, and token values. Out: networks that estimate these, each fitted
without one fold. Knows nothing of backbones and scales.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, huber_loss

from alinfik.command import progress
from alinfik.distill.training_data import Training
from alinfik.distill.values import Sums

_HIDDEN = 256
_DROPOUT = 0.2
_EPOCHS = 20
# Samples of one step.
_TOGETHER = 32
_RATE = 1e-3
_WARM_UP_SHARE = 0.1
_DECAY = 0.05
# What samples' labels count beside their tokens' values: these add up to it, but tails of theirs
# that a robust loss has no ear for do so too.
_LABEL_WEIGHT = 0.2
_LEAST_DEVIATION = 1e-3
# That inputs are standardised by.
_STANDARD_SAMPLES = 500
# Where all values of a target are zero.
_LEAST_UNIT = 1e-30


class TokenNetworks(nn.Module):
    """F networks side by side that estimate token values, in their own unit, by the mean of all.

    Args:
        inputs: I, of a position.
        targets: K.
        folds: F; each network is for a fold that it is not fitted to.
        sums: how token values make a label.
    """

    def __init__(self, inputs: int, targets: int, folds: int, sums: Sums) -> None:
        super().__init__()
        self.sums = sums
        self.centre = nn.Buffer(torch.zeros(inputs))
        self.deviation = nn.Buffer(torch.ones(inputs))
        self.unit = nn.Buffer(torch.ones(targets))
        self.first = _Layers(folds, inputs, 2 * _HIDDEN)
        self.second = _Layers(folds, _HIDDEN, _HIDDEN)
        self.last = _Layers(folds, _HIDDEN, targets)
        self.straight = _Layers(folds, inputs, targets)
        for layers in (self.last, self.straight):
            nn.init.zeros_(layers.weight)

    def forward(self, positions: Tensor) -> Tensor:
        """Return the tokens' values [B, T, K], by a backbone's positions [B, T, I]."""
        told = self.sums.told(positions)
        return self.apart(told.flatten(0, 1)).mean(dim=0).unflatten(0, told.shape[:2])

    def apart(self, positions: Tensor) -> Tensor:
        """Return what each network says, [F, N, K], of positions [N, I]."""
        standard = ((positions - self.centre) / self.deviation).unsqueeze(0)
        if self.training:
            # Every network is kept from other inputs.
            standard = dropout(standard.expand(len(self.first.weight), -1, -1), _DROPOUT)
        value, gate = self.first(standard).chunk(2, dim=-1)
        hidden = value * gate.sigmoid()
        hidden = hidden + gelu(self.second(dropout(hidden, _DROPOUT, self.training)))
        return (self.last(hidden) + self.straight(standard)) * self.unit


class _Layers(nn.Module):
    """A linear layer of each network."""

    def __init__(self, networks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        weight = torch.empty(networks, inputs, outputs)
        self.weight = nn.Parameter(weight.normal_(std=(3 * inputs) ** -0.5))
        self.bias = nn.Parameter(torch.zeros(networks, 1, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Take [F, N, inputs] to [F, N, outputs]."""
        return inputs @ self.weight + self.bias


def fit_token_networks(
    positions: Sequence[NDArray[np.float16]],
    data: Training,
    sums: Sums,
    folds: Sequence[int],
    device: torch.device,
) -> tuple[TokenNetworks, Tensor]:
    """Fit a network a fold to all others.

    Args:
        positions: N arrays [tokens, I], of the tokens that have values.
        data: N samples, with token values.
        sums: how these make labels.
        folds: N, the number of each sample's fold, from 0.
        device: where to.

    Returns:
        the networks, ready for use; and for each sample the label [N, K] that the network says
        that was not fitted to it.
    """
    fitting = _Fitting(positions, data, sums, folds, device)
    networks = fitting.networks.train()
    optimiser = torch.optim.AdamW(networks.parameters(), lr=_RATE, weight_decay=_DECAY)
    steps = _EPOCHS * fitting.steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _RATE, steps, pct_start=_WARM_UP_SHARE
    )
    with progress("fit token values", _EPOCHS * len(positions)) as advance:
        for epoch in range(_EPOCHS):
            for indices in fitting.shuffled(epoch):
                loss = fitting.loss(indices)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                advance(len(indices))
    return networks.eval(), fitting.unfitted()


class _Fitting:
    """What a step of fitting needs."""

    def __init__(
        self,
        positions: Sequence[NDArray[np.float16]],
        data: Training,
        sums: Sums,
        folds: Sequence[int],
        device: torch.device,
    ) -> None:
        self._positions = [torch.from_numpy(one) for one in positions]
        self._values = [torch.tensor(one, dtype=torch.float32) for one in data.token_values]
        self._labels = torch.tensor(data.labels, dtype=torch.float32)
        self._sums = sums
        self._folds = torch.tensor(folds)
        self._device = device
        self._spread = self._labels.std(dim=0)
        counts = self._positions[0].shape[1], self._labels.shape[1], int(self._folds.max()) + 1
        torch.manual_seed(0)
        self.networks = TokenNetworks(*counts, sums)
        some = self._positions[:: max(1, len(positions) // _STANDARD_SAMPLES)]
        seen = torch.cat(some).float()
        self.networks.centre.copy_(seen.mean(dim=0))
        self.networks.deviation.copy_(seen.std(dim=0).clamp(min=_LEAST_DEVIATION))
        self.networks.unit.copy_(torch.cat(self._values).abs().mean(dim=0).clamp(min=_LEAST_UNIT))
        self.networks.to(device)
        self.steps = -(-len(positions) // _TOGETHER)

    def shuffled(self, epoch: int) -> Iterator[list[int]]:
        """Yield all samples in steps."""
        order = np.random.default_rng(epoch).permutation(len(self._positions)).tolist()
        for begin in range(0, len(order), _TOGETHER):
            yield order[begin : begin + _TOGETHER]

    def loss(self, indices: list[int]) -> Tensor:
        """Huber's loss on token values and on labels, of each network's samples."""
        found, labels = self._found(indices)
        values = torch.cat([self._values[index] for index in indices]).to(self._device)
        theirs = self._folds[indices]
        networks = torch.arange(len(found)).unsqueeze(1)
        of_samples = (theirs != networks).to(self._device, torch.float32)
        sizes = torch.tensor([len(self._values[index]) for index in indices])
        of_tokens = of_samples.repeat_interleave(sizes.to(self._device), dim=1)
        unit, spread = self.networks.unit, self._spread.to(self._device).clamp(min=_LEAST_UNIT)
        tokens = huber_loss(found / unit, (values / unit).expand_as(found), reduction="none")
        wanted = (self._labels[indices].to(self._device) / spread).expand_as(labels)
        samples = huber_loss(labels / spread, wanted, reduction="none")
        mean = (tokens.mean(dim=-1) * of_tokens).sum() / of_tokens.sum()
        of_labels = (samples.mean(dim=-1) * of_samples).sum() / of_samples.sum()
        # The mean is one network's, and every network has its own weights.
        return (mean + _LABEL_WEIGHT * of_labels) * len(found)

    @torch.no_grad()
    def unfitted(self) -> Tensor:
        """Return each sample's label by the network that was not fitted to it, [N, K]."""
        found: list[Tensor] = []
        everything = list(range(len(self._positions)))
        for begin in range(0, len(everything), _TOGETHER):
            indices = everything[begin : begin + _TOGETHER]
            labels = self._found(indices)[1].cpu()
            found.append(labels[self._folds[indices], torch.arange(len(indices))])
        return torch.cat(found)

    def _found(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return every network's values [F, tokens, K], and labels [F, samples, K]."""
        here = torch.cat([self._positions[index] for index in indices]).to(self._device).float()
        found = self.networks.apart(here)
        of_samples = found.split([len(self._values[index]) for index in indices], dim=1)
        reduced = [self._sums.reduced(one, torch.ones_like(one[..., 0])) for one in of_samples]
        return found, torch.stack(reduced, dim=1)
