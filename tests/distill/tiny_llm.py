"""Tiny random language models with a real tokenizer: seconds where SmolLM2 takes minutes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCABULARY = 300

_TEXT = [
    "Ada buys 3 boxes of eggs. Each box holds 12 eggs. How many eggs does Ada have?",
    "def add(first, second):\n    return first + second",
    "The quick brown fox jumps over the lazy dog near the old river bank.",
    "Return a list of the even numbers in the input.",
]


_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def llama(*, tied: bool) -> PreTrainedConfig:
    """RMS norms, no biases, grouped queries."""
    return LlamaConfig(tie_word_embeddings=tied, **_SHAPE, **_COMMON)


def gpt2() -> PreTrainedConfig:
    """Conv1D layers, biases, learnt positions, and a head tied to the embedding."""
    return GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=128, **_COMMON)


def qwen2() -> PreTrainedConfig:
    """Biases on some projections."""
    return Qwen2Config(tie_word_embeddings=False, **_SHAPE, **_COMMON)


def gpt_neox() -> PreTrainedConfig:
    """LayerNorms with biases, fused projections, partial rotation."""
    shape = {name: _SHAPE[name] for name in _SHAPE if name != "num_key_value_heads"}
    return GPTNeoXConfig(tie_word_embeddings=False, **shape, **_COMMON)


def granite() -> PreTrainedConfig:
    """Logits that are divided by a number."""
    return GraniteConfig(logits_scaling=4.0, **_SHAPE, **_COMMON)


def gemma2() -> PreTrainedConfig:
    """Logits that are bent towards a bound."""
    return Gemma2Config(head_dim=8, final_logit_softcapping=3.0, **_SHAPE, **_COMMON)


def gemma() -> PreTrainedConfig:
    """Norms that add one to their weight, a scaled embedding, a tied head."""
    return GemmaConfig(head_dim=8, **_SHAPE, **_COMMON)


def opt() -> PreTrainedConfig:
    """Feed-forward layers that see the tokens of all samples in one row."""
    shape = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return OPTConfig(word_embed_proj_dim=32, max_position_embeddings=128, **shape, **_COMMON)


def gemma3_with_vision() -> PreTrainedConfig:
    """A tower of two layers for images beside the three for text."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text = {"head_dim": 8, **_SHAPE, **_COMMON}
    return Gemma3Config(text_config=text, vision_config={"num_attention_heads": 4, **vision})


def gemma3() -> PreTrainedConfig:
    """Norms of queries and keys, heads before positions."""
    return Gemma3TextConfig(head_dim=8, **_SHAPE, **_COMMON)


def write_llm(directory: Path, config: PreTrainedConfig, seed: int = 0) -> Path:
    """Write a random model of this configuration, with its tokenizer, as transformers reads it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    # Weights larger than the default, so that gradients and values are not all near zero.
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    return directory


def write_encoder(
    directory: Path, kind: type[PreTrainedConfig] = BertConfig, **settings: object
) -> Path:
    """Write a random bidirectional encoder with a tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_TEXT, trainer)
    # Files of encoders ask for both; the encoding is what decides.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    torch.manual_seed(0)
    config = kind(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=96,
        **{"pad_token_id": 0} | settings,
    )
    AutoModel.from_config(config).save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
