"""What gives the proxy its states, and how far it reads."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from alinfik.distill.backbones import Backbone, Reading, build_backbone
from alinfik.distill.llm import ModelError, load_fast_tokenizer
from alinfik.v1 import Encoding
from tests.distill.tiny_llm import (
    VOCABULARY,
    gemma2,
    gemma3_with_vision,
    granite,
    llama,
    write_encoder,
    write_llm,
)


@pytest.mark.parametrize(
    ("kind", "settings", "positions"),
    [
        (BertConfig, {}, 96),
        (RobertaConfig, {"pad_token_id": 1}, 94),
        (ModernBertConfig, {}, 96),
    ],
)
def test_an_encoder_reads_as_far_as_its_positions_go(
    kind: type[PreTrainedConfig],
    settings: dict[str, object],
    positions: int,
    tiny_llm: Path,
    tmp_path: Path,
) -> None:
    encoder = write_encoder(tmp_path / "encoder", kind, **settings)
    tokenizer = load_fast_tokenizer(str(tiny_llm)).backend_tokenizer
    llm = Reading(tokenizer, Encoding(token_limit=10_000))
    backbone, reading = build_backbone(f"encoder:{encoder}", str(tiny_llm), llm)
    assert reading.encoding.token_limit == positions
    ids = torch.full((1, positions), 5)
    assert backbone is not None
    assert backbone(ids, torch.ones_like(ids), torch.ones_like(ids)).states.isfinite().all()


def test_the_first_layers_of_a_model_that_sees_are_those_that_read(
    tiny_llm: Path, tmp_path: Path
) -> None:
    model = write_llm(tmp_path / "gemma3", gemma3_with_vision())
    llm = Reading(load_fast_tokenizer(str(tiny_llm)).backend_tokenizer, Encoding())
    backbone, _ = build_backbone("layers:2", str(model), llm)
    ids = torch.full((2, 5), 5)
    assert backbone is not None
    read = backbone(ids, torch.ones_like(ids), torch.ones_like(ids))
    assert read.states.shape == (2, 5, 2 * 32)


def _all_layers(directory: Path) -> Backbone:
    llm = Reading(load_fast_tokenizer(str(directory)).backend_tokenizer, Encoding())
    backbone, _ = build_backbone("layers:3", str(directory), llm)
    assert backbone is not None
    return backbone


@pytest.fixture
def exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Backbone]:
    """A language model, and all of its layers with expectations over the whole vocabulary."""
    monkeypatch.setattr("alinfik.distill.backbones._FREQUENT", VOCABULARY)
    directory = write_llm(tmp_path / "llm", llama(tied=True))
    return directory, _all_layers(directory)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frequent", [100, VOCABULARY])
def test_all_layers_tell_the_loss_of_each_token_and_its_gradient(
    frequent: int, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_llm(tmp_path / "llm", llama(tied=tied))
    monkeypatch.setattr("alinfik.distill.backbones._FREQUENT", frequent)
    backbone = _all_layers(directory)
    ids = torch.randint(3, VOCABULARY, (2, 7))
    states = backbone(ids, torch.ones_like(ids), torch.ones_like(ids)).states[:, 1:]
    assert states.shape[-1] == backbone.width

    model = AutoModelForCausalLM.from_pretrained(directory)
    last = model.model(ids).last_hidden_state.detach()[:, :-1].requires_grad_()
    came = ids[:, 1:]
    left_out = (torch.arange(VOCABULARY) >= frequent) & ~one_hot(came, VOCABULARY).bool()
    logits = model.lm_head(last).masked_fill(left_out, -torch.inf)
    losses = cross_entropy(logits.mT, came, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), last)
    error = gradient / model.lm_head.weight.detach().square().mean().sqrt()
    expected = torch.cat([losses.unsqueeze(-1), error], dim=-1)
    torch.testing.assert_close(states[..., -33:], expected, rtol=1e-4, atol=1e-4)


def test_all_layers_tell_the_loss_where_logits_are_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_llm(tmp_path / "llm", granite())
    monkeypatch.setattr("alinfik.distill.backbones._FREQUENT", VOCABULARY)
    ids = torch.randint(3, VOCABULARY, (2, 7))
    states = _all_layers(directory)(ids, torch.ones_like(ids), torch.ones_like(ids)).states
    model = AutoModelForCausalLM.from_pretrained(directory)
    losses = cross_entropy(model(ids).logits[:, :-1].mT, ids[:, 1:], reduction="none")
    torch.testing.assert_close(states[:, 1:, -33], losses, rtol=1e-4, atol=1e-4)


def test_all_layers_are_refused_where_logits_are_more_than_a_product(tmp_path: Path) -> None:
    directory = write_llm(tmp_path / "llm", gemma2())
    with pytest.raises(ModelError, match=r"have a bias or a cap.* give layers:2"):
        _all_layers(directory)


def test_all_layers_know_the_gradients_of_a_layer_after_them(exact: tuple[Path, Backbone]) -> None:
    directory, backbone = exact
    ids = torch.randint(3, VOCABULARY, (4, 9))
    completion = (torch.arange(9) >= torch.tensor([[4], [6], [1], [8]])).long()
    sketches = backbone(ids, torch.ones_like(ids), completion).gradients
    assert sketches.shape == (4, len(backbone.gradient_importance))

    model = AutoModelForCausalLM.from_pretrained(directory)
    last = model.model(ids).last_hidden_state.detach()[:, :-1]
    # A layer of which nothing comes yet, after all others.
    layer = torch.zeros(32, 32, requires_grad=True)
    went_in = last * last.square().mean(dim=-1, keepdim=True).rsqrt()
    logits = model.lm_head(last + went_in @ layer)
    losses = cross_entropy(logits.mT, ids[:, 1:], reduction="none") * completion[:, 1:]
    gradients = torch.stack(
        [torch.autograd.grad(loss.sum(), layer, retain_graph=True)[0].flatten() for loss in losses]
    )
    cosines = torch.nn.functional.normalize(gradients) @ torch.nn.functional.normalize(gradients).T
    # As wide as the model's states, a sketch loses nothing.
    of_last = sketches[:, -32 * 32 :]
    torch.testing.assert_close(of_last @ of_last.T, cosines, rtol=1e-3, atol=1e-3)


def test_all_layers_tell_positions_of_their_own_and_of_later_errors(
    exact: tuple[Path, Backbone],
) -> None:
    _, backbone = exact
    ids = torch.randint(3, VOCABULARY, (2, 7))
    attention = (torch.arange(7) < torch.tensor([[7], [5]])).long()
    completion = attention * (torch.arange(7) >= 3)
    read = backbone(ids, attention, completion)
    assert read.positions.shape == (2, 7, backbone.position_width)
    third = backbone.sketch.projected
    errors, states, later = read.positions[..., : 3 * third].split(third, dim=-1)
    # A completion's first token is predicted at the position before it; at its last, none is.
    made = errors.abs().sum(dim=-1) > 0
    assert made.int().tolist() == [[0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0, 0]]
    count = torch.tensor([7.0, 5.0]).reshape(2, 1, 1)
    after = errors.flip(1).cumsum(dim=1).flip(1) / count
    torch.testing.assert_close(later, after, atol=1e-5, rtol=1e-4)
    # Positions' errors and states make the sketch of all.
    side = third // len(backbone._depths)
    depth = (errors[..., :side].mT @ states[..., :side]).flatten(1)
    unit = torch.nn.functional.normalize(depth)
    torch.testing.assert_close(unit, read.gradients[:, : side * side], atol=1e-5, rtol=1e-4)
    losses, first = read.positions[..., 3 * third], read.positions[..., 3 * third + 1]
    of_tokens = read.states[..., -33] * completion
    torch.testing.assert_close(losses[:, :-1], of_tokens[:, 1:])
    assert first.nonzero().tolist() == [[0, 0], [1, 0]]


def test_unknown_families_are_refused(tiny_llm: Path) -> None:
    llm = Reading(load_fast_tokenizer(str(tiny_llm)).backend_tokenizer, Encoding())
    with pytest.raises(ModelError, match="unknown backbone 'forest'"):
        build_backbone("forest", str(tiny_llm), llm)
