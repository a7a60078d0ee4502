"""What each kind of layer contributes to per-sample inner products, without keeping a gradient.

A layer maps activations to outputs; backward gives the gradient of a batch's summed loss with
respect to those outputs. From the two alone follow, for each of the layer's parameters,

* its *position values*: at each position, the product of that position's share of the parameter's
  gradient with a direction; summed over positions they are the inner product;
* the squared norm of each sample's gradient, by the Gram matrices of activations and output
  gradients (for y = A Wᵀ: |dW|² = sum((A Aᵀ) * (G Gᵀ)), Goodfellow 2015, arXiv 1510.01799).

Shapes: B samples, T positions, K directions. Knows nothing of models and targets.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from transformers.pytorch_utils import Conv1D


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 at least: what is summed over many numbers."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Grams:
    """Gram matrices of layers' inputs; those of one input, read by several layers, made once.

    Layers that read the same input, as the projections of attention do, come one after the other in
    backward, so that the last one is all that needs to be kept.
    """

    def __init__(self) -> None:
        self._inputs: Tensor | None = None
        self._gram = torch.empty(0)

    def of(self, inputs: Tensor) -> Tensor:
        """Return A Aᵀ of every sample, [B, T, T], for A [B, T, D]."""
        if self._inputs is None or not _same(self._inputs, inputs):
            self._inputs = inputs
            self._gram = wide(torch.bmm(inputs, inputs.transpose(1, 2)))
        return self._gram


def _same(kept: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one; what is kept shares its memory with no later one."""
    return (kept.data_ptr(), kept.shape, kept.stride()) == (
        other.data_ptr(),
        other.shape,
        other.stride(),
    )


class Use(Protocol):
    """One use of one parameter in a forward pass, with what backward said of its output."""

    def position_values(self, direction: Tensor) -> Tensor:
        """Products with one direction (the parameter's shape), [B, T]."""
        ...

    def products(self, directions: Tensor) -> Tensor:
        """Products with K directions [K, *shape] summed over positions, [K, B]."""
        ...

    def squared_norms(self) -> Tensor:
        """Squared norm of each sample's gradient, [B]."""
        ...


@dataclass(frozen=True)
class MatrixUse:
    """A matrix that multiplies activations: y = A Wᵀ.

    Attributes:
        inputs: A, [B, T, in].
        gradients: G, [B, T, out].
        transposed: the parameter is stored as Wᵀ, [in, out].
        grams: shared by all uses in one pass.
    """

    inputs: Tensor
    gradients: Tensor
    transposed: bool
    grams: Grams

    def position_values(self, direction: Tensor) -> Tensor:
        """Cost: one forward pass of the layer, from whichever side makes the smaller product."""
        matrix = direction if self.transposed else direction.T
        if self.gradients.shape[-1] > self.inputs.shape[-1]:
            product = (self.gradients @ matrix.T).mul_(self.inputs)
        else:
            product = (self.inputs @ matrix).mul_(self.gradients)
        return product.sum(dim=-1, dtype=torch.promote_types(product.dtype, torch.float32))

    def products(self, directions: Tensor) -> Tensor:
        """Form each sample's gradient once for all directions; one direction does not need it."""
        if len(directions) == 1:
            return self.position_values(directions[0]).sum(dim=1)[None]
        left, right = self.gradients, self.inputs
        if self.transposed:
            left, right = right, left
        formed = torch.bmm(left.transpose(1, 2), right).flatten(start_dim=1)
        return wide(directions.flatten(start_dim=1) @ formed.T)

    def squared_norms(self) -> Tensor:
        of_gradients = wide(torch.bmm(self.gradients, self.gradients.transpose(1, 2)))
        return (self.grams.of(self.inputs) * of_gradients).sum(dim=(1, 2))


@dataclass(frozen=True)
class OffsetUse:
    """A bias: y = x + b. `gradients`: G, [B, T, out]."""

    gradients: Tensor

    def position_values(self, direction: Tensor) -> Tensor:
        return wide(self.gradients @ direction)

    def products(self, directions: Tensor) -> Tensor:
        return wide(directions) @ wide(self.gradients).sum(dim=1).T

    def squared_norms(self) -> Tensor:
        return wide(self.gradients).sum(dim=1).square().sum(dim=1)


@dataclass(frozen=True)
class LookupUse:
    """A table of embeddings: y = W[ids].

    Attributes:
        ids: [B, T].
        gradients: G, [B, T, D].
    """

    ids: Tensor
    gradients: Tensor

    def position_values(self, direction: Tensor) -> Tensor:
        return wide(torch.einsum("btd,btd->bt", direction[self.ids], self.gradients))

    def products(self, directions: Tensor) -> Tensor:
        return torch.stack([self.position_values(one).sum(dim=1) for one in directions])

    def squared_norms(self) -> Tensor:
        same = self.ids[:, :, None] == self.ids[:, None, :]
        gram = wide(torch.bmm(self.gradients, self.gradients.transpose(1, 2)))
        return (gram * same).sum(dim=(1, 2))


@dataclass(frozen=True)
class SmallUse:
    """A parameter small enough to form its gradient: a norm's weight, or any layer without a rule.

    Attributes:
        module: the layer.
        name: the parameter's name within it.
        inputs: [B, T, …].
        gradients: [B, T, …].
    """

    module: nn.Module
    name: str
    inputs: Tensor
    gradients: Tensor

    def _output(self, parameter: Tensor, inputs: Tensor) -> Tensor:
        return functional_call(self.module, {self.name: parameter}, (inputs,))

    def _parameter(self) -> Tensor:
        return self.module.get_parameter(self.name).detach()

    @cached_property
    def _formed(self) -> Tensor:
        def of_sample(inputs: Tensor, gradients: Tensor) -> Tensor:
            def output(parameter: Tensor) -> Tensor:
                return self._output(parameter, inputs)

            return vjp(output, self._parameter())[1](gradients)[0]

        return wide(vmap(of_sample)(self.inputs, self.gradients)).flatten(start_dim=1)

    def position_values(self, direction: Tensor) -> Tensor:
        def output(parameter: Tensor) -> Tensor:
            return self._output(parameter, self.inputs)

        tangent = jvp(output, (self._parameter(),), (direction,))[1]
        return wide(tangent * self.gradients).flatten(start_dim=2).sum(dim=2)

    def products(self, directions: Tensor) -> Tensor:
        return wide(directions).flatten(start_dim=1) @ self._formed.T

    def squared_norms(self) -> Tensor:
        return self._formed.square().sum(dim=1)


def use_of(module: nn.Module, name: str, inputs: Tensor, gradients: Tensor, grams: Grams) -> Use:
    """Return the use of the parameter ``name`` of a layer that has run forward and backward."""
    # Exact types: a subclass may compute something else.
    if type(module) in (nn.Linear, Conv1D):
        if name == "weight":
            return MatrixUse(inputs, gradients, type(module) is Conv1D, grams)
        return OffsetUse(gradients)
    if type(module) is nn.Embedding:
        return LookupUse(inputs, gradients)
    scale = getattr(module, "embed_scale", None)
    if isinstance(module, nn.Embedding) and isinstance(scale, Tensor):
        # Gemma's: y = c W[ids].
        return LookupUse(inputs, gradients * scale)
    return SmallUse(module, name, inputs, gradients)


def squared_norms_of_sum(uses: list[Use]) -> Tensor | None:
    """Squared norms [B] of the sum of one parameter's uses, or None where there is no rule for it.

    A matrix that is both embedding and head is used twice: |a + b|² = |a|² + |b|² + 2⟨a, b⟩.
    """
    if len(uses) == 1:
        return uses[0].squared_norms()
    if len(uses) != 2:
        return None
    lookup, matrix = sorted(uses, key=lambda use: isinstance(use, MatrixUse))
    if not isinstance(lookup, LookupUse) or not isinstance(matrix, MatrixUse):
        return None
    # <dW_head, dW_lookup> = sum over t, u of G_head[t, id_u] * (A_head[t] . G_lookup[u])
    at_ids = matrix.gradients.gather(
        2, lookup.ids[:, None, :].expand(-1, matrix.gradients.shape[1], -1)
    )
    inner = torch.bmm(matrix.inputs, lookup.gradients.transpose(1, 2))
    both = (wide(at_ids) * wide(inner)).sum(dim=(1, 2))
    return lookup.squared_norms() + matrix.squared_norms() + 2 * both
