"""Losses of a batch: every completion token's, and how they make a sample's.

Both engines differentiate these; nothing else says what a loss is.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from alinfik.distill.batches import Batch
from alinfik.distill.settings import Reduction

Parameters = dict[str, Tensor]


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
