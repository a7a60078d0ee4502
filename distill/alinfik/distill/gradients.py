"""`gradients:N`: the language model, and backward through its last N layers.

LinFiK is an inner product of gradients. Backward through activations alone gives, at every layer,
what a sample's gradient is made of: the layer's inputs, and the gradients of its outputs. A
target's gradient has a few directions that hold most of it (`alinfik.distill.directions`), so
that its products with a sample's take a fraction of a forward pass; norms follow from Gram
matrices, as in `alinfik.distill.rules`. With all layers this is what a label is, but for the table
of tokens; with fewer it is their share of one, and what they do not tell is left to regressions.

In: a language model and targets' directions. Out: a backbone. It differentiates when it is
called, so that an exporter has to trace it first: see `alinfik.distill.export`.
"""

from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alinfik.distill.backbone import Backbone, Read
from alinfik.distill.directions import Direction, Directions, Kernel
from alinfik.distill.llm import ModelError
from alinfik.distill.selection import find_layers

# A gradient of zeros has no direction and no product.
_LEAST_SQUARE = 1e-30

# What a layer was given, and the gradient of what it made of it.
_Passed = tuple[Tensor, Tensor]


class Gradients(Backbone):
    """A causal language model that tells positions' products of gradients with K targets'.

    Args:
        model: gives hidden states; `eager` attention, which can be traced backward.
        head: [V, H], makes predictions of the last of them.
        names: of the whole language model's parameters, by their identity.
        depth: N, of its last layers.
        kernel: what labels are made with.

    Raises:
        ModelError: none of these layers' parameters has a direction.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head: nn.Parameter,
        names: dict[int, str],
        depth: int,
        kernel: Kernel,
    ) -> None:
        super().__init__(model)
        model.config.use_cache = False
        model.requires_grad_(False)
        self.head = head.requires_grad_(False)
        self._kernel = kernel
        self._layers = _layers(model, depth, names, kernel.directions)
        self.parts = nn.ModuleList(part for parts in self._layers.values() for part in parts)
        if not self.parts:
            raise ModelError(
                f"the labels hold no directions of the last {depth} layers of the model: they are "
                "of an adapter's or of other parameters, or were made before there were directions "
                "(run `alinfik-distill label` with the same settings again); or give layers:N"
            )
        self.product_width = len(self.parts)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Read:
        """Read a batch."""
        with torch.enable_grad(), _passing(list(self._layers)) as passed:
            states, last = self.read(input_ids=input_ids, attention_mask=attention_mask)
            loss = self._loss(last, input_ids, completion_mask)
            outputs = [output for _, output in passed.values()]
            gradients = torch.autograd.grad(loss, outputs)
        tokens = input_ids.shape[1]
        gram = _Grams()
        told: list[tuple[Tensor, Tensor]] = []
        for (layer, (inputs, _)), gradient in zip(passed.items(), gradients, strict=True):
            known = inputs.detach()
            for part in self._layers[layer]:
                if isinstance(part, _Matrix):
                    told.append(part(known, gradient, gram.of(inputs)))
                else:
                    told.append(part(part.share(layer, known, gradient, tokens)))
        products, squares = (torch.stack(one, dim=-1) for one in zip(*told, strict=True))
        kept = torch.cat([state.detach() for state in states], dim=-1)
        return Read(kept, self._normalised(products, squares))

    def _loss(self, last: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
        """Return the sum of the samples' losses."""
        # A state predicts the token after it; padded, so that no tensor is one token shorter.
        following = nn.functional.pad(input_ids, (0, 1))[:, 1:]
        counted = nn.functional.pad(completion_mask, (0, 1))[:, 1:]
        own = (last * nn.functional.embedding(following, self.head)).sum(dim=-1)
        losses = ((last @ self.head.T).float().logsumexp(dim=-1) - own) * counted
        if self._kernel.reduction == "mean":
            losses = losses / completion_mask.sum(dim=1, keepdim=True)
        return losses.sum()

    def _normalised(self, products: Tensor, squares: Tensor) -> Tensor:
        """Divide products [B, T, K, P] by norms, of squares [B, P]."""
        if self._kernel.normalisation == "none":
            return products
        if self._kernel.normalisation == "global":
            squares = squares.sum(dim=1, keepdim=True)
        return products * squares.clamp(min=_LEAST_SQUARE).rsqrt()[:, None, None]


class _Grams:
    """Gram matrices of layers' inputs in one pass, each made once: projections share theirs."""

    def __init__(self) -> None:
        self._made: dict[int, Tensor] = {}

    def of(self, inputs: Tensor) -> Tensor:
        """Return A Aᵀ [B, T, T] of inputs A [B, T, D], which outlive the pass."""
        key = id(inputs)
        if key not in self._made:
            known = inputs.detach()
            self._made[key] = known @ known.mT
        return self._made[key]


class _Matrix(nn.Module):
    """A matrix that multiplies activations: y = A Wᵀ."""

    def __init__(self, direction: Direction, *, transposed: bool) -> None:
        super().__init__()
        left, right = direction.left, direction.right
        if transposed:
            left, right = right, left
        self._shape = left.shape[0], left.shape[2]
        # [out, K R] and [in, K R]
        self.left = nn.Buffer(left.transpose(0, 1).flatten(1).contiguous())
        self.right = nn.Buffer(right.transpose(0, 1).flatten(1).contiguous())

    def forward(self, inputs: Tensor, gradients: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions' products [B, T, K], and samples' squared norms [B].

        Args:
            inputs: A, [B, T, in].
            gradients: G, of y, [B, T, out].
            gram: A Aᵀ, [B, T, T].
        """
        products = ((gradients @ self.left) * (inputs @ self.right)).unflatten(-1, self._shape)
        squares = (gram * (gradients @ gradients.mT)).sum(dim=(1, 2))
        return products.sum(dim=-1), squares


class _Vector(nn.Module):
    """A vector that a layer's output is affine in, entry by entry: a bias, or a norm's weight."""

    def __init__(self, direction: Direction, name: str) -> None:
        super().__init__()
        self._name = name
        # [D, K]
        self.left = nn.Buffer(direction.left.squeeze(-1).T.contiguous())

    def share(self, layer: nn.Module, inputs: Tensor, gradients: Tensor, tokens: int) -> Tensor:
        """Return each position's gradient of the vector, [B, T, D]."""
        if self._name == "weight":
            value = layer.get_parameter(self._name)
            with torch.no_grad():
                one, none = (
                    functional_call(layer, {self._name: filled}, (inputs,))
                    for filled in (torch.ones_like(value), torch.zeros_like(value))
                )
            gradients = gradients * (one - none)
        if gradients.dim() == 4:
            # A norm of heads, which some models have before tokens and some after them.
            gradients = gradients.sum(dim=2 if gradients.shape[1] == tokens else 1)
        return gradients

    def forward(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions' products [B, T, K], and samples' squared norms [B]."""
        return share @ self.left, share.sum(dim=1).square().sum(dim=-1)


def _layers(
    model: PreTrainedModel, depth: int, names: dict[int, str], directions: Directions
) -> dict[nn.Module, list[_Matrix | _Vector]]:
    """Return what is told of each layer that has directions, of the last ``depth``."""
    found: dict[nn.Module, list[_Matrix | _Vector]] = defaultdict(list)
    for block in find_layers(model, model.config.num_hidden_layers)[-depth:]:
        for layer in block.modules():
            for local, value in layer.named_parameters(recurse=False):
                direction = directions.get(names.get(id(value), ""))
                if direction is None:
                    continue
                if type(layer) in (nn.Linear, Conv1D) and local == "weight":
                    transposed = type(layer) is Conv1D
                    found[layer].append(_Matrix(direction, transposed=transposed))
                elif direction.is_vector and local in ("weight", "bias"):
                    found[layer].append(_Vector(direction, local))
    return dict(found)


@contextmanager
def _passing(layers: Sequence[nn.Module]) -> Generator[dict[nn.Module, _Passed]]:
    """Watch a forward pass; yield what it fills with each layer's input and output, in order."""
    passed: dict[nn.Module, _Passed] = {}

    def watch(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Tensor:
        inputs: Tensor = arguments[0]
        if inputs.dim() < 3:
            raise ModelError(
                f"a {type(layer).__name__} is given the tokens of all samples in one row, as a "
                "mixture's experts are, and cannot tell samples apart; give layers:N"
            )
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        passed[layer] = inputs, output
        return output

    handles = [layer.register_forward_hook(watch) for layer in layers]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()
