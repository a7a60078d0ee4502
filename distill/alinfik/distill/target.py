"""The gradient of a target's loss, which all samples are compared with."""

from collections.abc import Collection, Iterable

import torch
from transformers import PreTrainedModel

from alinfik.distill.batches import Batch
from alinfik.distill.losses import Parameters, Reduction, reduce_tokens, token_losses


def target_gradient(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    reduction: Reduction,
    selected: Collection[str],
) -> Parameters:
    """Return the gradient of a target's loss: the mean of its samples' losses.

    Sums over batches are kept in float32 at least, whatever the model's dtype.

    Args:
        model: a causal language model.
        batches: the target's samples.
        reduction: how token losses make a sample's loss.
        selected: the names of the parameters that count.
    """
    weights = {name: value.detach() for name, value in model.named_parameters()}
    parameters = {name: weights[name] for name in selected}
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
