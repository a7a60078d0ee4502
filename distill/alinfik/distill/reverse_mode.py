"""LinFiK by reverse mode: one backward pass for any number of targets, with gradient norms.

Backward through the activations alone gives every layer's output gradients; from these and the
layer's inputs follow each sample's inner products with K targets and its norms
(`alinfik.distill.rules`). They are reduced while backward runs, and nothing is kept. Costs a
forward pass, a backward pass without parameter gradients, and about one further forward pass;
attention may be fused. Knows nothing of files and targets' names.
"""

from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from alinfik.distill.batches import Batch
from alinfik.distill.llm import ModelError
from alinfik.distill.losses import Parameters, reduce_tokens, token_losses
from alinfik.distill.rules import Grams, Use, squared_norms_of_sum, use_of, wide
from alinfik.distill.selection import unused as unused_parameters
from alinfik.distill.settings import Normalisation, Reduction
from alinfik.distill.values import TokenSplit, Values


class ReverseMode:
    """Values batches against K targets in one backward pass; token values are split by position.

    Args:
        model: a causal language model.
        gradients: the K targets' gradients; only the parameters that they name count.
        normalisation: what the inner products are divided by.
        reduction: how token losses make a sample's loss.
        token_values: whether to give them; they cost up to a forward pass a target.

    Raises:
        ModelError: a selected parameter belongs to no layer that runs, or is shared by layers in a
            way that there is no rule for.
    """

    split: TokenSplit = "position"

    def __init__(
        self,
        model: PreTrainedModel,
        gradients: list[Parameters],
        *,
        normalisation: Normalisation,
        reduction: Reduction,
        token_values: bool,
    ) -> None:
        self._model = model
        self._normalisation: Normalisation = normalisation
        self._reduction: Reduction = reduction
        self._token_values = token_values
        self._directions = _directions(model, gradients, normalisation)
        self._names = _parameter_names(model, set(self._directions))

    def value(self, batch: Batch) -> Values:
        """Return losses, labels and, if asked for, token values of a batch."""
        on_device = batch.to(self._model.device)
        sums = _Sums(self._directions, on_device, self._normalisation, self._token_values)
        losses = self._pass(on_device, sums)
        return self._values(sums, losses, on_device)

    def under_every_normalisation(self, batch: Batch) -> tuple[dict[Normalisation, Tensor], Tensor]:
        """Return labels [K, B] under each normalisation, and losses [B], from one pass.

        To compare them; the engine must have been made with the normalisation `none`.
        """
        on_device = batch.to(self._model.device)
        sums = _EverySum(self._directions, on_device)
        losses = self._pass(on_device, sums)
        return sums.labels(), losses.detach().cpu()

    def _pass(self, on_device: Batch, sums: "_Sums") -> Tensor:
        """Run a batch forward and backward, adding up all parameters; return the losses [B]."""
        shared: dict[str, list[Use]] = defaultdict(list)
        seen: set[str] = set()

        def use(name: str, found: Use) -> None:
            seen.add(name)
            if len(self._names[name]) > 1:
                shared[name].append(found)
            else:
                sums.add(name, [found])

        with _reporting(self._names, on_device.input_ids.shape, use) as leaves:
            losses = token_losses(self._model, {}, on_device)
        reduced = reduce_tokens(losses, on_device.completion_mask, self._reduction)
        if leaves:
            torch.autograd.grad(reduced.sum(), leaves, allow_unused=True)
        for name, found in shared.items():
            sums.add(name, found)
        if unseen := self._directions.keys() - seen:
            raise unused_parameters(unseen)
        return reduced

    def _values(self, sums: "_Sums", losses: Tensor, batch: Batch) -> Values:
        scale = torch.ones_like(sums.squares)
        if self._normalisation == "global":
            scale = _reciprocal_roots(sums.squares)
        tokens = None
        if self._token_values:
            tokens = sums.positions * scale[:, None]
            if self._reduction == "mean":
                # So that the mean over the sample's tokens is the label, as for token losses.
                tokens *= batch.attention_mask.sum(dim=1, keepdim=True)
            tokens = tokens.cpu()
        return Values(losses.detach().cpu(), (sums.products * scale).cpu(), tokens)


class _Sums:
    """What accumulates over parameters: products [K, B], positions [K, B, T], squares [B]."""

    def __init__(
        self,
        directions: Parameters,
        batch: Batch,
        normalisation: Normalisation,
        token_values: bool,
    ) -> None:
        self._directions = directions
        self._normalisation = normalisation
        self._token_values = token_values
        targets = len(next(iter(directions.values())))
        samples, tokens = batch.input_ids.shape
        zeros = wide(next(iter(directions.values())).new_zeros(()))
        self.products = zeros.new_zeros(targets, samples)
        self.positions = zeros.new_zeros(targets, samples, tokens if token_values else 0)
        self.squares = zeros.new_zeros(samples)

    def add(self, name: str, uses: list[Use]) -> None:
        """Add one parameter, all of whose uses are known."""
        directions = self._directions[name]
        scale = torch.ones_like(self.squares)
        if self._normalisation != "none":
            squares = _squared_norms(name, uses)
            self.squares += squares
            if self._normalisation == "tensor":
                scale = _reciprocal_roots(squares)
        for use in uses:
            if self._token_values:
                for target, direction in enumerate(directions):
                    values = use.position_values(direction) * scale[:, None]
                    # A head runs on the last columns alone, a table of positions on all.
                    self.positions[target, :, -values.shape[1] :] += values
                    self.products[target] += values.sum(dim=1)
            else:
                self.products += use.products(directions) * scale


class _EverySum(_Sums):
    """Products as they are, and tensor by tensor over both norms."""

    def __init__(self, directions: Parameters, batch: Batch) -> None:
        super().__init__(directions, batch, "none", token_values=False)
        self._by_tensor = torch.zeros_like(self.products)
        self._target_squares = self.products.new_zeros(len(self.products))

    def add(self, name: str, uses: list[Use]) -> None:
        before = self.products.clone()
        super().add(name, uses)
        squares = _squared_norms(name, uses)
        target_squares = _squares(wide(self._directions[name]))
        self.squares += squares
        self._target_squares += target_squares
        scale = _reciprocal_roots(target_squares)[:, None] * _reciprocal_roots(squares)
        self._by_tensor += (self.products - before) * scale

    def labels(self) -> dict[Normalisation, Tensor]:
        scale = _reciprocal_roots(self._target_squares)[:, None] * _reciprocal_roots(self.squares)
        return {
            "none": self.products.cpu(),
            "global": (self.products * scale).cpu(),
            "tensor": self._by_tensor.cpu(),
        }


def _directions(
    model: PreTrainedModel, gradients: list[Parameters], normalisation: Normalisation
) -> Parameters:
    """Stack the targets' gradients [K, *shape], each divided by its norm or its tensors' norms."""
    directions: Parameters = {}
    for name in gradients[0]:
        stacked = wide(torch.stack([gradient[name] for gradient in gradients]))
        if normalisation == "tensor":
            scale = _reciprocal_roots(_squares(stacked))
            stacked *= scale.reshape(-1, *[1] * (stacked.dim() - 1))
        directions[name] = stacked
    if normalisation == "global":
        squares = [_squares(value) for value in directions.values()]
        scale = _reciprocal_roots(torch.stack(squares).sum(dim=0))
        for name, value in directions.items():
            directions[name] = value * scale.reshape(-1, *[1] * (value.dim() - 1))
    return {name: value.to(model.device, model.dtype) for name, value in directions.items()}


def _squared_norms(name: str, uses: list[Use]) -> Tensor:
    squares = squared_norms_of_sum(uses)
    if squares is None:
        raise ModelError(
            f"the parameter {name} is shared by layers in a way that there is no rule for; "
            "leave it out with --parameters, or use --normalisation none"
        )
    return squares


def _squares(directions: Tensor) -> Tensor:
    """Squared norms [K] of K directions."""
    return directions.flatten(start_dim=1).square().sum(dim=1)


def _reciprocal_roots(squares: Tensor) -> Tensor:
    """1 / sqrt, and 0 of 0: a gradient that is zero has no direction and no product."""
    return squares.clamp(min=0).rsqrt().nan_to_num(posinf=0.0)


def _parameter_names(
    model: nn.Module, selected: set[str]
) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return for every selected parameter the layers that own it and its name in each."""
    names = {id(value): name for name, value in model.named_parameters()}
    owners: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in model.modules():
        for local, value in module.named_parameters(recurse=False):
            if names[id(value)] in selected:
                owners[names[id(value)]].append((module, local))
    return owners


@contextmanager
def _reporting(
    owners: dict[str, list[tuple[nn.Module, str]]],
    shape: torch.Size,
    report: Callable[[str, Use], None],
) -> Generator[list[Tensor]]:
    """Watch one forward pass; report every use of the parameters when backward reaches it.

    Yields:
        The tensors that backward has to reach: outputs of layers that no gradient would come to
        otherwise, since no parameter asks for one.
    """
    samples, tokens = shape
    leaves: list[Tensor] = []
    grams = Grams()
    layers: dict[nn.Module, dict[str, str]] = defaultdict(dict)
    for name, places in owners.items():
        for module, local in places:
            layers[module][local] = name

    def forward_hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Tensor:
        if not isinstance(output, torch.Tensor):
            raise ModelError(
                f"a {type(module).__name__} returns no tensor; leave its parameters out"
            )
        inputs: Tensor = arguments[0].detach()
        # Of token ids there are [B, T], of states [B, T, D].
        least = 3 if inputs.is_floating_point() else 2
        if inputs.dim() < least or output.shape[0] not in (1, samples):
            raise ModelError(
                f"{' and '.join(layers[module].values())}: this layer is given the tokens of all "
                "samples in one row, as a mixture's experts are, and cannot tell samples apart; "
                "leave such layers out with --parameters, or use --mode forward --normalisation "
                "none"
            )
        if not output.requires_grad:
            output = output.detach().requires_grad_()
            leaves.append(output)
        if output.shape[0] != samples:
            # Positions are looked up once for the whole batch; each sample has its own gradient.
            output = output.expand(samples, *output.shape[1:])
            inputs = inputs.expand(samples, *inputs.shape[1:])

        # Gemma's norms of heads see [B, heads, T, D], others' [B, T, heads, D].
        heads_first = inputs.dim() == 4 and inputs.shape[1] != tokens
        if heads_first:
            inputs = inputs.transpose(1, 2)

        def backward_hook(gradients: Tensor) -> None:
            gradients = gradients.transpose(1, 2) if heads_first else gradients
            for local, name in layers[module].items():
                report(name, use_of(module, local, inputs, gradients.detach(), grams))

        output.register_hook(backward_hook)
        return output

    handles: list[RemovableHandle] = [
        module.register_forward_hook(forward_hook) for module in layers
    ]
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()
