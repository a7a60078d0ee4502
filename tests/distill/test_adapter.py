"""A LoRA adapter on a tiny Llama: its parameters, and they alone, make the label."""

from pathlib import Path

import peft
import pytest
import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from alinfik.distill.adapter import AdapterError
from alinfik.distill.batches import batched_by_length, pad
from alinfik.distill.commands import Label
from alinfik.distill.encoding import Encoder
from alinfik.distill.forward_mode import ForwardMode
from alinfik.distill.label import label
from alinfik.distill.labels import read_labels
from alinfik.distill.llm import load_llm
from alinfik.distill.reverse_mode import ReverseMode
from alinfik.distill.samples import read_rows
from alinfik.distill.selection import select_parameters
from alinfik.distill.target import target_gradient
from tests.distill.tiny_llm import llama, write_llm


@pytest.fixture(scope="module")
def adapter(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained-looking adapter: neither of its matrices is zero."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_llm)
    model.add_adapter(config)
    directory = tmp_path_factory.mktemp("adapter") / "lora"
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def settings(tiny_llm: Path, adapter: Path, pool: Path, target: Path, tmp_path: Path) -> Label:
    return Label(
        model=str(tiny_llm),
        adapter=str(adapter),
        target={"t": str(target)},
        pool=[str(pool)],
        out=tmp_path / "labels",
        cache=tmp_path / "cache",
        dtype="float64",
        normalisation="none",
    )


def test_both_engines_give_the_product_of_the_adapter_s_gradients(
    tiny_llm: Path, adapter: Path, pool: Path, target: Path
) -> None:
    llm = load_llm(str(tiny_llm), adapter=str(adapter), dtype="float64", attention="eager")
    selected = select_parameters(llm.model, "all", llm.trainable)
    assert len(selected) == 3 * 2 * 2
    assert all("lora_" in name for name in selected)
    encoder = Encoder(llm.tokenizer, llm.encoding)
    samples = encoder.encode(list(read_rows(pool)))[:6]
    targets = encoder.encode(list(read_rows(target)))
    gradient = target_gradient(
        llm.model, batched_by_length(targets, 64, llm.encoding.pad_id), "mean", selected
    )

    def oracle(ids: list[int], start: int) -> float:
        weights = dict(llm.model.named_parameters())
        leaves = {name: weights[name].detach().clone().requires_grad_() for name in selected}
        tokens = torch.tensor([ids])
        logits = functional_call(llm.model, leaves, (), {"input_ids": tokens}).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1], tokens[0, start:])
        found = torch.autograd.grad(loss, list(leaves.values()))
        return sum(
            float((value * gradient[name]).sum())
            for name, value in zip(selected, found, strict=True)
        )

    expected = torch.tensor(
        [oracle(sample.input_ids, sample.completion_start) for sample in samples],
        dtype=torch.float64,
    )
    batch = pad(samples, list(range(len(samples))), llm.encoding.pad_id)
    forward = ForwardMode(llm.model, [gradient], "mean").value(batch).labels[0]
    reverse = (
        ReverseMode(
            llm.model, [gradient], normalisation="none", reduction="mean", token_values=True
        )
        .value(batch)
        .labels[0]
    )
    scale = expected.abs().max().item()
    torch.testing.assert_close(forward, expected, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(reverse, expected, rtol=1e-5, atol=1e-5 * scale)


def test_labels_say_that_an_adapter_made_them(settings: Label, tiny_llm: Path) -> None:
    label(settings)
    model = read_labels(settings.out).manifest.language_model
    assert (model.name, model.adapter) == ("tiny-llama", "lora")
    assert model.sha256 != load_llm(str(tiny_llm), dtype="float64").identity.sha256


def test_parameters_narrow_the_adapter(tiny_llm: Path, adapter: Path) -> None:
    llm = load_llm(str(tiny_llm), adapter=str(adapter), dtype="float64")
    last = select_parameters(llm.model, "last:1", llm.trainable)
    assert len(last) == 2 * 2
    assert all("layers.2." in name and "lora_" in name for name in last)


def test_an_adapter_of_another_model_is_refused(
    tiny_llm: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="cannot load the adapter nowhere"):
        load_llm(str(tiny_llm), adapter="nowhere")
    other = llama(tied=True)
    other.num_hidden_layers = 2
    shallow = write_llm(tmp_path / "other", other)
    with pytest.raises(AdapterError, match="does not fit the model"):
        load_llm(str(shallow), adapter=str(adapter))
