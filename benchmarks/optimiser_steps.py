"""Takes optimiser steps and takes them back, with losses before and after.

In: a language model in float32, and batches of samples. Out: gradients as vectors of all P
parameters, what AdamW makes of them, and losses after a step. Knows nothing of labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alinfik.distill.batches import Batch
from alinfik.distill.llm import LLM
from alinfik.distill.losses import reduce_tokens, token_losses
from alinfik.distill.selection import select_parameters
from alinfik.distill.target import target_gradient

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
# Of a step's length; float32 rounds the weights after it, by about 1e-3 of that.
_SAME_STEP = 1e-2


class Weights:
    """A model's parameters as one vector [P], which steps start from and return to."""

    def __init__(self, llm: LLM) -> None:
        self._model = llm.model
        self._names = select_parameters(llm.model, "all")
        parameters = [llm.model.get_parameter(name) for name in self._names]
        self.sizes = [parameter.numel() for parameter in parameters]
        self.current = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self._start = self.current.clone()
        for parameter, part in zip(parameters, self.current.split(self.sizes), strict=True):
            parameter.data = part.view_as(parameter)

    def start_here(self) -> None:
        """Make the present weights those that steps start from."""
        self._start.copy_(self.current)

    def gradient(self, batches: Sequence[Batch]) -> Tensor:
        """Gradient [P] of the mean loss of all samples of the batches."""
        found = target_gradient(self._model, batches, "mean", self._names)
        return torch.cat([found[name].flatten() for name in self._names])

    @torch.no_grad()
    def loss(self, batches: Sequence[Batch]) -> float:
        """Mean loss of all samples of the batches, nats."""
        losses = [
            reduce_tokens(
                token_losses(self._model, {}, batch).double(), batch.completion_mask, "mean"
            )
            for batch in batches
        ]
        return float(torch.cat(losses).mean())

    def step(self, direction: Tensor, learning_rate: float) -> None:
        """Go to the start minus ``learning_rate`` times the direction."""
        torch.add(self._start, direction, alpha=-learning_rate, out=self.current)

    def back(self) -> None:
        """Return to the start, to the bit."""
        self.current.copy_(self._start)


@dataclass(frozen=True)
class Moments:
    """AdamW's state before a step: means of gradients and of their squares [P], and steps taken."""

    first: Tensor
    second: Tensor
    steps: int

    def direction(self, gradient: Tensor) -> Tensor:
        """What the next step subtracts from the weights, over its learning rate [P]."""
        steps = self.steps + 1
        first = self.first.lerp(gradient, 1 - _BETAS[0])
        second = (self.second * _BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        second.div_(1 - _BETAS[1] ** steps).sqrt_().add_(_EPSILON)
        return first.div_(1 - _BETAS[0] ** steps).div_(second)


def warm_up(weights: Weights, batches: Sequence[Batch], learning_rate: float) -> Moments:
    """Train by PyTorch's AdamW, a step a batch; later steps start where this ends.

    Raises:
        RuntimeError: the last step was not what `Moments` says of it.
    """
    vector = torch.nn.Parameter(weights.current)
    optimiser = torch.optim.AdamW(
        [vector], lr=learning_rate, betas=_BETAS, eps=_EPSILON, weight_decay=0.0
    )
    for batch in batches[:-1]:
        vector.grad = weights.gradient([batch])
        optimiser.step()
    before = weights.current.clone()
    vector.grad = weights.gradient([batches[-1]])
    expected = _moments(optimiser, vector).direction(vector.grad) * learning_rate
    optimiser.step()
    change = before - weights.current
    if (change - expected).norm() > _SAME_STEP * change.norm():
        raise RuntimeError("AdamW took another step than its equations say")
    weights.start_here()
    return _moments(optimiser, vector)


def _moments(optimiser: torch.optim.AdamW, vector: torch.nn.Parameter) -> Moments:
    state = optimiser.state[vector]
    return Moments(state["exp_avg"], state["exp_avg_sq"], int(state["step"]))
