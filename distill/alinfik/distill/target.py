"""The gradient of a target's loss, which all samples are compared with."""

from collections.abc import Collection, Iterable

import torch
from google.protobuf.json_format import MessageToJson
from transformers import PreTrainedModel

from alinfik.command import progress
from alinfik.distill.batches import Batch, batched_by_length, halve_to_fit
from alinfik.distill.encoding import Encoder
from alinfik.distill.gradient_cache import GradientCache
from alinfik.distill.llm import LLM
from alinfik.distill.losses import Parameters, reduce_tokens, token_losses
from alinfik.distill.recipe import Recipe
from alinfik.distill.samples import Row, rows_sha256
from alinfik.distill.selection import unused as unused_parameters
from alinfik.distill.settings import Reduction


def target_gradient(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    reduction: Reduction,
    selected: Collection[str],
) -> Parameters:
    """Return the gradient of a target's loss: the mean of its samples' losses.

    Sums over batches are kept in float32 at least, whatever the model's dtype. A batch that does
    not fit into a GPU's memory is halved.

    Args:
        model: a causal language model.
        batches: the target's samples.
        reduction: how token losses make a sample's loss.
        selected: the names of the parameters that count.

    Raises:
        ModelError: one of them had no part in any loss.
    """
    weights = {name: value.detach() for name, value in model.named_parameters()}
    parameters = {name: weights[name] for name in selected}
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    wide = torch.promote_types(model.dtype, torch.float32)
    total = {name: torch.zeros_like(value, dtype=wide) for name, value in parameters.items()}

    def gradient(batch: Batch) -> tuple[torch.Tensor | None, ...]:
        on_device = batch.to(model.device)
        losses = token_losses(model, leaves, on_device)
        loss = reduce_tokens(losses, on_device.completion_mask, reduction).sum()
        if not loss.requires_grad:
            return (None,) * len(leaves)
        return torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)

    samples = 0
    seen: set[str] = set()

    def add(found: tuple[torch.Tensor | None, ...]) -> None:
        for name, value in zip(leaves, found, strict=True):
            if value is not None:
                total[name] += value
                seen.add(name)

    for whole in batches:
        for batch, found in halve_to_fit(whole, gradient):
            add(found)
            samples += len(batch.indices)
            # Before the next batch: it is as large as the model.
            del found
    if never := leaves.keys() - seen:
        raise unused_parameters(never)
    return {name: value.div_(samples) for name, value in total.items()}


def target_gradients(
    llm: LLM, recipe: Recipe, targets: dict[str, list[Row]], cache: GradientCache
) -> dict[str, Parameters]:
    """Return every target's gradient, on the CPU, computing those that are not kept already."""
    selected = recipe.selected(llm)
    encoder = Encoder(llm.tokenizer, llm.encoding)

    def compute(name: str) -> Parameters:
        rows = targets[name]
        with progress(f"target {name}", len(rows)) as advance:

            def batches() -> Iterable[Batch]:
                pad_id = llm.encoding.pad_id
                for batch in batched_by_length(encoder.encode(rows), recipe.batch_tokens, pad_id):
                    yield batch
                    advance(len(batch.indices))

            found = target_gradient(llm.model, batches(), recipe.reduction, selected)
        return {name: value.cpu() for name, value in found.items()}

    def key(name: str) -> dict[str, object]:
        return {
            "format": 2,
            "model": llm.identity.sha256,
            "target": rows_sha256(targets[name]),
            "encoding": MessageToJson(llm.encoding, sort_keys=True),
            "dtype": str(llm.model.dtype),
            "reduction": recipe.reduction,
            "parameters": selected,
        }

    return {name: cache.get(key(name), lambda name=name: compute(name)) for name in targets}
