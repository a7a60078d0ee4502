"""Forward mode against its oracle: one backward pass for every token of every sample."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel

from alinfik.distill.batches import batched_by_length, pad
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.linfik import (
    ForwardMode,
    Parameters,
    Reduction,
    reduce_tokens,
    target_gradient,
)
from alinfik.distill.llm import LLM, load_llm
from alinfik.distill.samples import read_rows
from tests.distill.conftest import write_rows
from tests.distill.tiny_llm import gpt2, llama, write_llm

MODELS = {"llama-tied": llama(tied=True), "llama-untied": llama(tied=False), "gpt2": gpt2()}


@pytest.fixture(scope="module", params=MODELS)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    config: PreTrainedConfig = MODELS[request.param]
    return load_llm(str(write_llm(tmp_path_factory.mktemp("llm") / "m", config)), dtype="float64")


def samples_of(llm: LLM, tmp_path: Path, count: int, seed: int) -> list[Encoded]:
    rows = list(read_rows(write_rows(tmp_path / f"rows-{seed}.jsonl", count, seed)))
    return Encoder(llm.tokenizer, llm.encoding).encode(rows)


def oracle_losses(model: PreTrainedModel, parameters: Parameters, sample: Encoded) -> Tensor:
    """The losses of one sample's completion tokens, alone and without padding."""
    ids = torch.tensor([sample.input_ids])
    logits = functional_call(model, parameters, (), {"input_ids": ids}).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    return losses[sample.completion_start - 1 :]


def oracle_gradient(loss: Tensor, leaves: Parameters) -> Tensor:
    gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_values_are_the_inner_products_of_gradients(
    llm: LLM, tmp_path: Path, reduction: Reduction
) -> None:
    leaves = {
        name: weight.detach().clone().requires_grad_()
        for name, weight in llm.model.named_parameters()
    }
    target = samples_of(llm, tmp_path, count=3, seed=1)
    pool = samples_of(llm, tmp_path, count=4, seed=2)

    def reduced(losses: Tensor) -> Tensor:
        return losses.mean() if reduction == "mean" else losses.sum()

    target_loss = torch.stack(
        [reduced(oracle_losses(llm.model, leaves, sample)) for sample in target]
    ).mean()
    direction = oracle_gradient(target_loss, leaves)

    gradient = target_gradient(
        llm.model, batched_by_length(target, 64, llm.encoding.pad_id), reduction
    )
    engine = ForwardMode(llm.model, [gradient, {k: 2 * v for k, v in gradient.items()}])
    batch = pad(pool, list(range(len(pool))), llm.encoding.pad_id)
    losses, values = engine.token_values(batch)
    labels = reduce_tokens(values, batch.completion_mask, reduction)

    for row, sample in enumerate(pool):
        expected_losses = oracle_losses(llm.model, leaves, sample)
        completion = slice(sample.completion_start, len(sample))
        # Parts of these models compute in float32 whatever the dtype.
        torch.testing.assert_close(
            losses[row, completion], expected_losses.detach(), rtol=1e-6, atol=1e-6
        )
        expected = torch.stack(
            [oracle_gradient(loss, leaves) @ direction for loss in expected_losses]
        )
        tolerance = {"rtol": 1e-5, "atol": 1e-5 * expected.abs().max().item()}
        torch.testing.assert_close(values[0, row, completion], expected, **tolerance)
        torch.testing.assert_close(values[1, row, completion], 2 * expected, **tolerance)
        torch.testing.assert_close(
            labels[0, row],
            oracle_gradient(reduced(expected_losses), leaves) @ direction,
            **tolerance,
        )


def test_values_do_not_depend_on_the_batch(llm: LLM, tmp_path: Path) -> None:
    pool = samples_of(llm, tmp_path, count=9, seed=3)
    pad_id = llm.encoding.pad_id
    gradient = target_gradient(llm.model, batched_by_length(pool[:3], 512, pad_id), "mean")
    engine = ForwardMode(llm.model, [gradient])

    def values(padded_tokens: int) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for batch in batched_by_length(pool, padded_tokens, pad_id):
            _, token_values = engine.token_values(batch)
            for row, index in enumerate(batch.indices):
                found[index] = token_values[0, row, : len(pool[index])]
        return [found[index] for index in range(len(pool))]

    for one, other in zip(values(1), values(10_000), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_nothing_but_the_completion_has_a_value(llm: LLM, tmp_path: Path) -> None:
    pool = samples_of(llm, tmp_path, count=4, seed=4)
    batch = pad(pool, [0, 1, 2, 3], llm.encoding.pad_id)
    gradient = target_gradient(llm.model, [batch], "mean")
    losses, values = ForwardMode(llm.model, [gradient]).token_values(batch)
    outside = batch.completion_mask == 0
    assert losses[outside].abs().max() == 0
    assert values[0][outside].abs().max() == 0
    assert (losses[~outside] > 0).all()
