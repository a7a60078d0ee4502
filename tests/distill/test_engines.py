"""Both engines against their oracle: one backward pass for every token of every sample, alone."""

from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedConfig

from alinfik.distill.batches import batched_by_length, pad
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.forward_mode import ForwardMode
from alinfik.distill.llm import LLM, ModelError, load_llm
from alinfik.distill.losses import Parameters
from alinfik.distill.reverse_mode import ReverseMode
from alinfik.distill.samples import read_rows
from alinfik.distill.selection import select_parameters, unused
from alinfik.distill.settings import Normalisation, Reduction
from alinfik.distill.target import target_gradient
from alinfik.distill.values import ValueEngine
from tests.distill.conftest import write_rows
from tests.distill.tiny_llm import (
    gemma,
    gemma3,
    gemma3_with_vision,
    gpt2,
    gpt_neox,
    llama,
    opt,
    qwen2,
    write_llm,
)

MODELS: dict[str, PreTrainedConfig] = {
    "llama-tied": llama(tied=True),
    "llama-untied": llama(tied=False),
    "qwen2": qwen2(),
    "gpt2": gpt2(),
    "gpt-neox": gpt_neox(),
    "gemma": gemma(),
    "gemma3": gemma3(),
}
# Parts of these models compute in float32 whatever the dtype.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Setting:
    """One model with samples to value and two targets."""

    llm: LLM
    pool: list[Encoded]
    targets: list[list[Encoded]]

    @property
    def pad_id(self) -> int:
        return self.llm.encoding.pad_id

    def gradients(self, selection: str, reduction: Reduction) -> list[Parameters]:
        selected = select_parameters(self.llm.model, selection)
        return [
            target_gradient(
                self.llm.model, batched_by_length(target, 64, self.pad_id), reduction, selected
            )
            for target in self.targets
        ]

    def reverse(
        self,
        normalisation: Normalisation,
        reduction: Reduction = "mean",
        selection: str = "all",
        *,
        token_values: bool = True,
    ) -> ReverseMode:
        return ReverseMode(
            self.llm.model,
            self.gradients(selection, reduction),
            normalisation=normalisation,
            reduction=reduction,
            token_values=token_values,
        )


@pytest.fixture(scope="module", params=MODELS)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    directory = tmp_path_factory.mktemp("llm")
    # Eager, so that both engines and the oracle differentiate the same arithmetic.
    model = write_llm(directory / "model", MODELS[request.param])
    llm = load_llm(str(model), dtype="float64", attention="eager")
    encoder = Encoder(llm.tokenizer, llm.encoding)

    def encoded(count: int, seed: int) -> list[Encoded]:
        path = write_rows(directory / f"rows-{seed}.jsonl", count, seed)
        return encoder.encode(list(read_rows(path)))

    return Setting(llm, encoded(7, seed=0), [encoded(3, seed=1), encoded(2, seed=2)])


class Oracle:
    """Gradients of single tokens' losses of single samples, by the model's own backward pass."""

    def __init__(self, setting: Setting, selection: str, reduction: Reduction) -> None:
        self._model = setting.llm.model
        self._reduction = reduction
        weights = dict(self._model.named_parameters())
        self._leaves = {
            name: weights[name].detach().clone().requires_grad_()
            for name in select_parameters(self._model, selection)
        }
        self.targets = [
            self._gradient(torch.stack([self._reduced(self.losses(s)) for s in target]).mean())
            for target in setting.targets
        ]

    def losses(self, sample: Encoded) -> Tensor:
        ids = torch.tensor([sample.input_ids])
        logits = functional_call(self._model, self._leaves, (), {"input_ids": ids}).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        return losses[sample.completion_start - 1 :]

    def label(self, sample: Encoded, target: int, normalisation: Normalisation) -> float:
        ours = self._gradient(self._reduced(self.losses(sample)))
        theirs = self.targets[target]
        products = {name: (ours[name] * theirs[name]).sum() for name in ours}
        norms = {name: ours[name].norm() * theirs[name].norm() for name in ours}
        if normalisation == "tensor":
            return float(sum(products[name] / norms[name] for name in ours if norms[name] > 0))
        total = sum(products.values())
        if normalisation == "global":
            for gradient in (ours, theirs):
                total = total / torch.cat([value.flatten() for value in gradient.values()]).norm()
        return float(total)

    def token_labels(self, sample: Encoded, target: int) -> Tensor:
        """The plain products of single tokens' gradients."""
        return torch.stack(
            [
                sum(
                    ((value * self.targets[target][name]).sum() for name, value in found.items()),
                    torch.zeros((), dtype=torch.float64),
                )
                for found in (self._gradient(loss) for loss in self.losses(sample))
            ]
        )

    def _reduced(self, losses: Tensor) -> Tensor:
        return losses.mean() if self._reduction == "mean" else losses.sum()

    def _gradient(self, loss: Tensor) -> Parameters:
        found = torch.autograd.grad(
            loss, list(self._leaves.values()), retain_graph=True, materialize_grads=True
        )
        return dict(zip(self._leaves, found, strict=True))


def assert_labels_match(
    setting: Setting, engine: ValueEngine, oracle: Oracle, normalisation: Normalisation
) -> None:
    batch = pad(setting.pool, list(range(len(setting.pool))), setting.pad_id)
    labels = engine.value(batch).labels
    for target in range(len(setting.targets)):
        expected = torch.tensor(
            [oracle.label(sample, target, normalisation) for sample in setting.pool],
            dtype=torch.float64,
        )
        scale = expected.abs().max().item()
        torch.testing.assert_close(labels[target], expected, rtol=TOLERANCE, atol=TOLERANCE * scale)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_forward_mode_is_the_inner_product(setting: Setting, reduction: Reduction) -> None:
    engine = ForwardMode(setting.llm.model, setting.gradients("all", reduction), reduction)
    assert_labels_match(setting, engine, Oracle(setting, "all", reduction), "none")


@pytest.mark.parametrize("token_values", [True, False], ids=["positions", "formed"])
@pytest.mark.parametrize("normalisation", ["none", "global", "tensor"])
def test_reverse_mode_is_the_inner_product_under_every_normalisation(
    setting: Setting, normalisation: Normalisation, token_values: bool
) -> None:
    engine = setting.reverse(normalisation, token_values=token_values)
    assert_labels_match(setting, engine, Oracle(setting, "all", "mean"), normalisation)


def test_reverse_mode_sums_losses_if_told_to(setting: Setting) -> None:
    engine = setting.reverse("none", "sum")
    assert_labels_match(setting, engine, Oracle(setting, "all", "sum"), "none")


@pytest.mark.parametrize("selection", ["last:1", r"norm|ln_|bias", r"embed|wte|wpe|lm_head"])
def test_a_selection_is_the_inner_product_over_it(setting: Setting, selection: str) -> None:
    oracle = Oracle(setting, selection, "mean")
    forward = ForwardMode(setting.llm.model, setting.gradients(selection, "mean"), "mean")
    assert_labels_match(setting, forward, oracle, "none")
    reverse = setting.reverse("tensor", selection=selection)
    assert_labels_match(setting, reverse, oracle, "tensor")


def test_token_values_by_loss_are_the_tokens_own_products(setting: Setting) -> None:
    engine = ForwardMode(setting.llm.model, setting.gradients("all", "mean"), "mean")
    oracle = Oracle(setting, "all", "mean")
    tokens = engine.value(pad(setting.pool, [0, 1, 2], setting.pad_id)).tokens
    assert tokens is not None
    for row, sample in enumerate(setting.pool[:3]):
        expected = oracle.token_labels(sample, target=0)
        found = tokens[0, row, sample.completion_start : len(sample)]
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE * scale)
        assert tokens[0, row, : sample.completion_start].abs().max() == 0
        assert (tokens[0, row, len(sample) :] == 0).all()


@pytest.mark.parametrize("normalisation", ["none", "global", "tensor"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_token_values_by_position_make_up_the_label(
    setting: Setting, normalisation: Normalisation, reduction: Reduction
) -> None:
    batch = pad(setting.pool, list(range(len(setting.pool))), setting.pad_id)
    values = setting.reverse(normalisation, reduction).value(batch)
    assert values.tokens is not None
    made_up = values.tokens.sum(dim=2)
    if reduction == "mean":
        made_up = made_up / batch.attention_mask.sum(dim=1)
    torch.testing.assert_close(made_up, values.labels, rtol=1e-9, atol=1e-9)
    assert (values.tokens[:, batch.attention_mask == 0] == 0).all()


@pytest.mark.parametrize("make", ["forward", "reverse"])
def test_values_do_not_depend_on_batch_padding_or_order(setting: Setting, make: str) -> None:
    engine: ValueEngine = (
        ForwardMode(setting.llm.model, setting.gradients("all", "mean"), "mean")
        if make == "forward"
        else setting.reverse("tensor")
    )

    def labels(batches: list[list[int]]) -> Tensor:
        found: dict[int, Tensor] = {}
        for indices in batches:
            values = engine.value(pad(setting.pool, indices, setting.pad_id))
            found |= {index: values.labels[:, row] for row, index in enumerate(indices)}
        return torch.stack([found[index] for index in sorted(found)])

    everything = list(range(len(setting.pool)))
    together = labels([everything])
    for other in (
        [[index] for index in everything],
        [everything[::-1]],
        [[3, 0], [1, 2, 6], [5, 4]],
    ):
        scale = together.abs().max().item()
        torch.testing.assert_close(labels(other), together, rtol=TOLERANCE, atol=TOLERANCE * scale)


def test_one_pass_gives_every_normalisation(setting: Setting) -> None:
    batch = pad(setting.pool, [0, 1, 2, 3], setting.pad_id)
    found, _ = setting.reverse("none").under_every_normalisation(batch)
    assert set(found) == set(get_args(Normalisation))
    for name, labels in found.items():
        expected = setting.reverse(name).value(batch).labels
        torch.testing.assert_close(labels, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_fused_attention_gives_the_same(setting: Setting) -> None:
    batch = pad(setting.pool, [0, 1, 2], setting.pad_id)
    eager = setting.reverse("tensor").value(batch).labels
    setting.llm.model.set_attn_implementation("sdpa")
    try:
        fused = setting.reverse("tensor").value(batch).labels
    finally:
        setting.llm.model.set_attn_implementation("eager")
    torch.testing.assert_close(fused, eager, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_parameter_without_a_part_is_an_error(setting: Setting) -> None:
    model = setting.llm.model
    model.idle = torch.nn.Linear(3, 1, dtype=torch.float64)
    try:
        engine = ReverseMode(
            model,
            [{"idle.weight": torch.ones(1, 3, dtype=torch.float64)}],
            normalisation="none",
            reduction="mean",
            token_values=False,
        )
        with pytest.raises(ModelError, match=r"idle\.weight"):
            engine.value(pad(setting.pool, [0], setting.pad_id))
        batches = [pad(setting.pool, [0], setting.pad_id)]
        with pytest.raises(ModelError, match=r"idle\.weight"):
            target_gradient(model, batches, "mean", ["idle.weight"])
    finally:
        del model.idle


def test_layers_that_see_all_samples_as_one_are_refused(tmp_path: Path) -> None:
    llm = load_llm(str(write_llm(tmp_path / "opt", opt())), dtype="float32")
    rows = Encoder(llm.tokenizer, llm.encoding).encode(
        list(read_rows(write_rows(tmp_path / "r.jsonl", 2)))
    )
    batch = pad(rows, [0, 1], llm.encoding.pad_id)
    for selection, tells in (("fc1", False), ("self_attn", True)):
        selected = select_parameters(llm.model, selection)
        gradient = target_gradient(llm.model, [batch], "mean", selected)
        engine = ReverseMode(
            llm.model, [gradient], normalisation="none", reduction="mean", token_values=False
        )
        if tells:
            assert engine.value(batch).labels.shape == (1, 2)
        else:
            with pytest.raises(ModelError, match=r"fc1.*cannot tell samples apart"):
                engine.value(batch)


def test_of_many_unused_parameters_some_are_named() -> None:
    assert "the parameters a, b, c and 23 more had" in str(unused(ascii_lowercase))


def test_the_layers_of_a_model_that_sees_are_the_text_s() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(gemma3_with_vision())
    names = select_parameters(model, "last:1")
    assert names
    assert all("language_model.layers.2." in name for name in names)


@pytest.mark.parametrize(
    ("selection", "complaint"),
    [
        ("last:9", "a number of layers from 1 to 3"),
        ("last:x", "a number of layers from 1 to 3"),
        ("nothing", "selects none of the"),
        ("(", "no regular expression"),
    ],
)
def test_an_empty_selection_is_refused(setting: Setting, selection: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        select_parameters(setting.llm.model, selection)
