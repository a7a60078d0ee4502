"""Fits the proxy to labels: sample labels and token values together.

In: encoded samples with their labels. Out: a trained `Proxy`. Knows nothing of files or bundles.
"""

import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import huber_loss

from alinfik.command import progress
from alinfik.distill.batches import Batch, batched_by_length, halve_to_fit
from alinfik.distill.calibrate import FittedScale, Scales
from alinfik.distill.checkpoint import Checkpoint, State
from alinfik.distill.encoding import Encoded
from alinfik.distill.llm import choose_dtype
from alinfik.distill.probe import fit_probes
from alinfik.distill.proxy import Correction, Estimate, Proxy
from alinfik.distill.ranks import spearman
from alinfik.distill.training_data import Training, token_targets

Floats = NDArray[np.float64]

_HEAD_RATE = 1e-3
_WARM_UP_SHARE = 0.1
# One label a sample is little to learn from; its tokens' values are some fifty more.
_TOKEN_WEIGHT = 0.5


@dataclass(frozen=True)
class Plan:
    """How long to train and in what order.

    Attributes:
        epochs: passes over the samples, at most.
        patience: epochs without a better rank correlation after which to stop.
        batch_tokens: tokens a batch, padding included.
        pad_id: fills batches up.
        seed: of order and dropout.
    """

    epochs: int
    patience: int
    batch_tokens: int
    pad_id: int
    seed: int


def fit(
    proxy: Proxy, data: Training, validation: Training, plan: Plan, checkpoint: Checkpoint
) -> Scales | None:
    """Train ``proxy`` in place; return the scales that it was trained on.

    The loss is Huber's on the fitted scale, on samples and, at half weight, on tokens. Embeddings
    stay as they are: a few thousand samples touch a few of them. Training starts from regressions
    in closed form (`alinfik.distill.probe`). Of these and all epochs that is kept which ranks the
    validation samples best, by Spearman's correlation in the mean over targets.

    Returns:
        None where that is the regressions, which had better be fitted to more samples.
    """
    sizes = proxy.backbone.width, proxy.probe.in_features, data.labels.shape[1]
    proxy.correction = Correction(*sizes).to(next(proxy.parameters()).device)
    run = _Run(proxy, data, plan)
    if state := checkpoint.load():
        run.restore(state["run"])
        first, best, best_epoch = state["epoch"], state["best"], state["best_epoch"]
        best_weights = state["best_weights"]
    else:
        fit_probes(proxy, data, run.scales, plan.batch_tokens, plan.pad_id)
        best = _rank_correlation(proxy, validation, plan)
        first, best_epoch, best_weights = 0, -1, _copy(proxy.state_dict())
    with progress("train", plan.epochs * len(data.samples)) as advance:
        advance(first * len(data.samples))
        note = f", validation Spearman {best:.3f}"
        for epoch in range(first, plan.epochs):
            if epoch - best_epoch > plan.patience:
                break
            for count, loss in run.epoch(epoch):
                advance(count, note=f"loss {loss:.3f}{note}")
            correlation = _rank_correlation(proxy, validation, plan)
            note = f", validation Spearman {correlation:.3f}"
            if correlation > best:
                best, best_epoch, best_weights = correlation, epoch, _copy(proxy.state_dict())
            checkpoint.save(
                {
                    "run": run.state(),
                    "epoch": epoch + 1,
                    "best": best,
                    "best_epoch": best_epoch,
                    "best_weights": best_weights,
                }
            )
    proxy.load_state_dict(best_weights)
    proxy.eval()
    if best_epoch >= 0:
        return run.scales
    print(
        f"no epoch ranks the {len(validation.samples)} validation samples better than regressions "
        f"do (Spearman {best:.3f}): the proxy is these, untrained",
        file=sys.stderr,
    )
    proxy.correction = None
    return None


def learn_scales(data: Training) -> Scales:
    """Return the scales on which the samples' labels and token values are tame."""
    tokens = FittedScale(np.concatenate(data.token_values)) if data.token_values else None
    return Scales(FittedScale(data.labels), tokens)


class _Run:
    """What an epoch needs, and what must be kept between two of them."""

    def __init__(self, proxy: Proxy, data: Training, plan: Plan) -> None:
        self._proxy = proxy
        self._data = data
        self._seed = plan.seed
        self._device = next(proxy.parameters()).device
        self.scales = learn_scales(data).to(self._device)
        self._batches = list(batched_by_length(data.samples, plan.batch_tokens, plan.pad_id))
        self._optimiser, self._schedule = _optimiser(proxy, plan.epochs * len(self._batches))
        self._half = choose_dtype("auto", self._device) == torch.bfloat16

    def state(self) -> State:
        """Return all that `restore` needs."""
        return {
            "weights": self._proxy.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def restore(self, state: State) -> None:
        """Go on where `state` was called."""
        self._proxy.load_state_dict(state["weights"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])

    def epoch(self, number: int) -> Iterator[tuple[int, float]]:
        """Train on every sample once; yield how many a step had, and its loss."""
        # By number, so that an epoch is the same after an interruption as without one.
        torch.manual_seed(hash((self._seed, number)))
        order = list(self._batches)
        random.Random(hash((self._seed, number))).shuffle(order)  # noqa: S311
        self._proxy.train()
        for batch in order:
            loss = self._loss(batch)
            self._optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._proxy.parameters(), 1.0)
            self._optimiser.step()
            self._schedule.step()
            yield len(batch.indices), loss.item()
        self._proxy.eval()

    def _loss(self, batch: Batch) -> Tensor:
        here = batch.to(self._device)
        labels = torch.tensor(self._data.labels[batch.indices], dtype=torch.float32)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half):
            estimate = self._proxy(here.input_ids, here.attention_mask, here.completion_mask)
        loss = huber_loss(
            estimate.samples.float(), self.scales.samples.fit(labels.to(self._device))
        )
        if self.scales.tokens is None:
            return loss
        mask, values = token_targets(self._data, batch)
        found = estimate.tokens.float()[mask.to(self._device)]
        wanted = self.scales.tokens.fit(values.to(self._device))
        return loss + _TOKEN_WEIGHT * huber_loss(found, wanted)


def _copy(weights: State) -> State:
    return {name: value.detach().cpu().clone() for name, value in weights.items()}


def _rank_correlation(proxy: Proxy, data: Training, plan: Plan) -> float:
    """Spearman's correlation of estimates with labels, in the mean over targets."""
    estimates = estimate(proxy, data.samples, plan).samples.numpy()
    found = [
        spearman(estimates[:, target], data.labels[:, target])
        for target in range(data.labels.shape[1])
    ]
    return float(np.mean(found))


@torch.no_grad()
def estimate(proxy: Proxy, samples: Sequence[Encoded], plan: Plan) -> Estimate:
    """Return what the proxy says of samples, without tokens, in their order and on the CPU."""
    device = next(proxy.parameters()).device
    order: list[int] = []
    parts: list[tuple[Tensor, ...]] = []

    def read(batch: Batch) -> Estimate:
        here = batch.to(device)
        return proxy(here.input_ids, here.attention_mask, here.completion_mask)

    for whole in batched_by_length(samples, plan.batch_tokens, plan.pad_id):
        for batch, found in halve_to_fit(whole, read):
            parts.append((found.samples.cpu(), found.features.cpu(), found.lengths.cpu()))
            order += batch.indices
    back = torch.tensor(order).argsort()
    estimates, features, lengths = (torch.cat(part)[back] for part in zip(*parts, strict=True))
    return Estimate(estimates, torch.empty(0), features, lengths)


def _optimiser(
    proxy: Proxy, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    backbone = [weight for weight in proxy.backbone.parameters() if weight.requires_grad]
    inside = {id(weight) for weight in proxy.backbone.parameters()}
    heads = [w for w in proxy.parameters() if w.requires_grad and id(w) not in inside]
    optimiser = torch.optim.AdamW(
        [
            {"params": heads, "lr": _HEAD_RATE},
            {"params": backbone, "lr": float(proxy.backbone.learning_rate)},
        ],
        weight_decay=0.01,
    )
    warm_up = max(1, round(_WARM_UP_SHARE * steps))

    def rate(step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
