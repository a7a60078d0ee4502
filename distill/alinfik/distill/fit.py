"""Fits the proxy to labels: sample labels and token values together.

In: encoded samples with their labels. Out: a trained `Proxy`. Knows nothing of files or bundles.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import huber_loss

from alinfik.command import progress
from alinfik.distill.batches import Batch, batched_by_length
from alinfik.distill.calibrate import FittedScale
from alinfik.distill.encoding import Encoded
from alinfik.distill.llm import choose_dtype
from alinfik.distill.proxy import Proxy
from alinfik.distill.values import TokenSplit

Floats = NDArray[np.float64]

# The trained backbone moves a tenth as far as the fresh heads do.
_HEAD_RATE = 1e-3
_BACKBONE_RATE = 1e-4
_WARM_UP_SHARE = 0.1
# One label a sample is little to learn from; its tokens' values are some fifty more.
_TOKEN_WEIGHT = 0.5


@dataclass(frozen=True)
class Training:
    """The samples to fit: N of them, for K targets.

    Attributes:
        samples: encoded, N.
        labels: [N, K].
        token_values: N arrays [tokens, K]; none where labels are not split over tokens.
        split: over which tokens.
    """

    samples: Sequence[Encoded]
    labels: Floats
    token_values: Sequence[Floats]
    split: TokenSplit


def fit(
    proxy: Proxy, data: Training, *, epochs: int, batch_tokens: int, pad_id: int
) -> FittedScale:
    """Train ``proxy`` in place and return the scale that it was trained on.

    The loss is Huber's on the fitted scale, on samples and, at half weight, on tokens. Embeddings
    stay as they are: a few thousand samples touch a few of them.
    """
    device = next(proxy.parameters()).device
    scale = FittedScale(data.labels).to(device)
    tokens = np.concatenate([*data.token_values, np.zeros((0, data.labels.shape[1]))])
    token_scale = FittedScale(tokens).to(device) if len(tokens) else None
    batches = list(batched_by_length(data.samples, batch_tokens, pad_id))
    optimiser, schedule = _optimiser(proxy, steps=epochs * len(batches))
    half = choose_dtype("auto", device) == torch.bfloat16
    proxy.train()
    with progress("train", epochs * len(data.samples)) as advance:
        for _ in range(epochs):
            random.shuffle(batches)
            for batch in batches:
                here = batch.to(device)
                labels = torch.tensor(data.labels[batch.indices], dtype=torch.float32)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                    estimate = proxy(here.input_ids, here.attention_mask, here.completion_mask)
                loss = huber_loss(estimate.samples.float(), scale.fit(labels.to(device)))
                if token_scale is not None:
                    mask, values = _token_targets(data, batch)
                    found = estimate.tokens.float()[mask.to(device)]
                    wanted = token_scale.fit(values.to(device))
                    loss = loss + _TOKEN_WEIGHT * huber_loss(found, wanted)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(proxy.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                advance(len(batch.indices), note=f"loss {loss.item():.3f}")
    proxy.eval()
    return scale


def _token_targets(data: Training, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the mask [B, T] of tokens that have values, and the values [tokens, K] in order."""
    values = np.concatenate([data.token_values[index] for index in batch.indices])
    mask = batch.completion_mask if data.split == "loss" else batch.attention_mask
    return mask.bool(), torch.tensor(values, dtype=torch.float32)


def _optimiser(
    proxy: Proxy, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    backbone = [
        weight
        for module in proxy.backbone.modules()
        if not isinstance(module, torch.nn.Embedding)
        for weight in module.parameters(recurse=False)
    ]
    inside = {id(weight) for weight in proxy.backbone.parameters()}
    heads = [weight for weight in proxy.parameters() if id(weight) not in inside]
    optimiser = torch.optim.AdamW(
        [{"params": heads, "lr": _HEAD_RATE}, {"params": backbone, "lr": _BACKBONE_RATE}],
        weight_decay=0.01,
    )
    warm_up = max(1, round(_WARM_UP_SHARE * steps))

    def rate(step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
