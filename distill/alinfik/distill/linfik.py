"""LinFiK, the inner product of a sample's gradient with a target's, by forward-mode derivatives.

Every sample shares one direction, the target's gradient g. The directional derivative of all the
token losses of a batch along g is one Jacobian-vector product, which costs about two further
forward passes and stores no gradient:

    d/de  loss_t(theta + e g)  at e = 0   =   <grad loss_t, g>     for every token t

(Pan et al., NAACL 2025, arXiv 2503.01052, for the kernel; Pearlmutter 1994 for the product.) Knows
nothing of files, tokenizers or targets' names.
"""

import inspect
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call, jvp, vmap
from transformers import PreTrainedModel

from alinfik.distill.batches import Batch

Parameters = dict[str, Tensor]

# How the losses of a sample's completion tokens make the sample's loss.
Reduction = Literal["mean", "sum"]


def token_losses(model: PreTrainedModel, parameters: Parameters, batch: Batch) -> Tensor:
    """Return the loss of every completion token, 0 elsewhere.

    Args:
        model: a causal language model.
        parameters: what stands in for the model's own parameters, by name.
        batch: B samples of T tokens.

    Returns:
        float32 [B, T], nats; column t is the loss of predicting token t from those before it.
    """
    # The head is a fifth of a small model: leave it out for the columns before any completion.
    first = int(batch.completion_mask.any(dim=0).int().argmax())
    before = max(first - 1, 0)
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
    }
    columns = batch.input_ids.shape[1] - before
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = columns
    logits: Tensor = functional_call(model, parameters, (), inputs).logits[:, -columns:]
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probabilities = logits[:, :-1].to(wide).log_softmax(dim=-1)
    following = batch.input_ids[:, before + 1 :, None]
    losses = -log_probabilities.gather(-1, following).squeeze(-1)
    losses = losses * batch.completion_mask[:, before + 1 :]
    return torch.nn.functional.pad(losses, (before + 1, 0))


def reduce_tokens(values: Tensor, completion_mask: Tensor, reduction: Reduction) -> Tensor:
    """Make per-token quantities [..., B, T] the sample's own [..., B], as its loss is made."""
    totals = values.sum(dim=-1)
    if reduction == "mean":
        return totals / completion_mask.sum(dim=-1).clamp(min=1)
    return totals


def target_gradient(
    model: PreTrainedModel, batches: Iterable[Batch], reduction: Reduction
) -> Parameters:
    """Return the gradient of a target's loss: the mean of its samples' losses.

    Sums over batches are kept in float32 at least, whatever the model's dtype.
    """
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    wide = torch.promote_types(model.dtype, torch.float32)
    total = {name: torch.zeros_like(value, dtype=wide) for name, value in parameters.items()}
    samples = 0
    for batch in batches:
        on_device = batch.to(model.device)
        losses = token_losses(model, leaves, on_device)
        loss = reduce_tokens(losses, on_device.completion_mask, reduction).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for name, gradient in zip(leaves, gradients, strict=True):
            total[name] += gradient
        samples += len(batch.indices)
    return {name: value / samples for name, value in total.items()}


class ForwardMode:
    """Values the tokens of batches against K targets in one pass.

    Args:
        model: a causal language model, with attention that forward mode can differentiate.
        gradients: the K targets' gradients.
    """

    def __init__(self, model: PreTrainedModel, gradients: list[Parameters]) -> None:
        self._model = model
        self._parameters = {name: value.detach() for name, value in model.named_parameters()}
        # The tangents of bfloat16 parameters are bfloat16. What rounding takes from a gradient with
        # 10^8 entries does not show in its inner products.
        self._tangents = {
            name: torch.stack([gradient[name] for gradient in gradients]).to(value)
            for name, value in self._parameters.items()
        }

    @torch.no_grad()
    def token_values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return token losses [B, T] in nats and token values [K, B, T].

        A token value is <gradient of the token's loss, target's gradient>, 0 off the completion.
        """
        on_device = batch.to(self._model.device)

        def losses(parameters: Parameters) -> Tensor:
            return token_losses(self._model, parameters, on_device)

        def along(tangent: Parameters) -> tuple[Tensor, Tensor]:
            primal, derivative, *_ = jvp(losses, (self._parameters,), (tangent,))
            return primal, derivative

        # The primal does not depend on the tangent, so vmap computes it once for all targets.
        losses_of_tokens, values = vmap(along, out_dims=(None, 0))(self._tangents)  # pyright: ignore[reportArgumentType] out_dims may be None, but is not typed so
        return losses_of_tokens.cpu(), values.cpu()
