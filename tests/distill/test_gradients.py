"""Going back through the last layers tells their share of labels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from alinfik.distill import directions
from alinfik.distill.backbone import Backbone
from alinfik.distill.backbones import Reading, build_backbone
from alinfik.distill.batches import Batch
from alinfik.distill.directions import Kernel, factorised
from alinfik.distill.llm import ModelError, load_fast_tokenizer
from alinfik.distill.losses import Parameters
from alinfik.distill.reverse_mode import ReverseMode
from alinfik.distill.settings import Normalisation, Reduction
from alinfik.v1 import Encoding
from tests.distill.tiny_llm import (
    VOCABULARY,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    granite,
    llama,
    opt,
    qwen2,
    write_llm,
)

_TARGETS = 2
DEFAULT: tuple[Normalisation, Reduction] = ("tensor", "mean")


@pytest.fixture
def batch() -> Batch:
    """Three samples, of which two are shorter than seven tokens."""
    torch.manual_seed(0)
    attention = (torch.arange(7) < torch.tensor([[7], [5], [4]])).long()
    completion = attention * (torch.arange(7) >= torch.tensor([[3], [1], [2]]))
    ids = torch.randint(3, VOCABULARY, (3, 7)) * attention
    return Batch([0, 1, 2], ids, attention, completion)


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions that leave nothing out."""
    monkeypatch.setattr(directions, "_RANK", 1000)


def _random_gradients(directory: Path, within: str = "layers.") -> list[Parameters]:
    """Targets' gradients of the parameters whose names have ``within``."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    torch.manual_seed(1)
    return [
        {
            name: torch.randn_like(value)
            for name, value in model.named_parameters()
            if within in name
        }
        for _ in range(_TARGETS)
    ]


def _backbone(
    directory: Path,
    gradients: list[Parameters],
    kernel: tuple[Normalisation, Reduction] = DEFAULT,
    depth: int = 3,
) -> Backbone:
    llm = Reading(load_fast_tokenizer(str(directory)).backend_tokenizer, Encoding())
    towards = Kernel(factorised(gradients, kernel[0]), *kernel)
    backbone, _ = build_backbone(f"gradients:{depth}", str(directory), llm, towards)
    assert backbone is not None
    return backbone


def _compare(
    backbone: Backbone,
    directory: Path,
    gradients: list[Parameters],
    batch: Batch,
    kernel: tuple[Normalisation, Reduction],
) -> None:
    """Hold products of all layers against what reverse mode says of the same parameters."""
    normalisation, reduction = kernel
    read = backbone(batch.input_ids, batch.attention_mask, batch.completion_mask)
    assert read.products.shape == (3, 7, _TARGETS, backbone.product_width)
    assert backbone.product_width == len(gradients[0])
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    model.requires_grad_(requires_grad=False)
    engine = ReverseMode(
        model, gradients, normalisation=normalisation, reduction=reduction, token_values=True
    )
    values = engine.value(batch)
    assert values.tokens is not None
    torch.testing.assert_close(read.products.sum(dim=(1, 3)).T, values.labels, rtol=1e-3, atol=1e-4)
    shares = read.products.sum(dim=-1).permute(2, 0, 1)
    if reduction == "mean":
        shares = shares * batch.attention_mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(shares, values.tokens, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (lambda: llama(tied=True), "layers."),
        (lambda: llama(tied=False), "layers."),
        (gpt2, "transformer.h."),
        (qwen2, "layers."),
        (gpt_neox, "layers."),
        (granite, "layers."),
        (gemma, "layers."),
        (gemma3, "layers."),
    ],
)
def test_all_layers_tell_their_share_of_labels_and_token_values(
    config: Callable[[], PreTrainedConfig], layers: str, batch: Batch, tmp_path: Path
) -> None:
    directory = write_llm(tmp_path / "llm", config())
    gradients = _random_gradients(directory, layers)
    _compare(_backbone(directory, gradients), directory, gradients, batch, DEFAULT)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("normalisation", ["none", "global", "tensor"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_of_every_kernel(
    normalisation: Normalisation, reduction: Reduction, tiny_llm: Path, batch: Batch
) -> None:
    gradients, kernel = _random_gradients(tiny_llm), (normalisation, reduction)
    _compare(_backbone(tiny_llm, gradients, kernel), tiny_llm, gradients, batch, kernel)


@pytest.mark.usefixtures("whole")
def test_the_last_layer_alone(tiny_llm: Path, batch: Batch) -> None:
    gradients = _random_gradients(tiny_llm)
    read = _backbone(tiny_llm, gradients, depth=1)(
        batch.input_ids, batch.attention_mask, batch.completion_mask
    )
    last = [{n: v for n, v in one.items() if "layers.2." in n} for one in gradients]
    other = _backbone(tiny_llm, last)(batch.input_ids, batch.attention_mask, batch.completion_mask)
    assert read.products.shape[-1] == len(last[0])
    torch.testing.assert_close(read.products, other.products)


def test_few_directions_hold_most_of_a_gradient_of_few_tokens() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(40, 6) @ torch.randn(6, 50)
    direction = factorised([{"w": gradient, "b": gradient[0]}], "none")["w"]
    torch.testing.assert_close(
        direction.left[0] @ direction.right[0].T, gradient, rtol=1e-3, atol=1e-3
    )


def test_what_is_more_than_a_product_is_refused(tmp_path: Path) -> None:
    directory = write_llm(tmp_path / "llm", gemma2())
    gradients = _random_gradients(directory)
    with pytest.raises(ModelError, match=r"have a bias or a cap.* give layers:3"):
        _backbone(directory, gradients)


def test_tokens_of_all_samples_in_one_row_are_refused(tmp_path: Path, batch: Batch) -> None:
    directory = write_llm(tmp_path / "llm", opt())
    backbone = _backbone(directory, _random_gradients(directory), depth=2)
    with pytest.raises(ModelError, match=r"in one row.* give layers:N"):
        backbone(batch.input_ids, batch.attention_mask, batch.completion_mask)


def test_labels_without_directions_are_refused(tiny_llm: Path) -> None:
    with pytest.raises(ModelError, match=r"no directions of the last 3 layers.* layers:N"):
        _backbone(tiny_llm, [{}])
