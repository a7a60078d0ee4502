"""Loads the language model whose gradients make the labels.

In: a Hugging Face id, a directory or a `.gguf` file. Out: an `LLM`, its tokenizer and its identity.
The dtype policy is here, in one place.
"""

import hashlib
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from alinfik.command import CommandError
from alinfik.distill.adapter import load_adapter
from alinfik.distill.disk import cache_directory
from alinfik.distill.text_template import TextTemplate, text_template
from alinfik.v1 import Encoding, LanguageModel

# Progress is shown by ours alone.
transformers_logging.disable_progress_bar()

# Of models that tell positions apart by their distance (BLOOM, MPT): what these were trained on.
_UNCOUNTED_POSITIONS = 2048


class ModelError(CommandError):
    """A model that cannot be found, read or used."""


@dataclass(frozen=True)
class LLM:
    """A causal language model, ready for gradients.

    Attributes:
        model: in evaluation mode, on `device`; its parameters ask for no gradient.
        tokenizer: the fast tokenizer, without the transformers layer around it.
        encoding: how a sample becomes tokens, but for the token limit, which is the model's most.
        identity: name and weight hash, as the bundle manifest records them.
        trainable: the parameters that training would change: all, or the adapter's.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    encoding: Encoding
    identity: LanguageModel
    trainable: list[str]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device


def load_fast_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """Load a model's tokenizer alone.

    Raises:
        ModelError: there is no such model, or it has no fast tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _unloadable(source, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"the model {source} has no fast tokenizer (tokenizer.json)")
    return tokenizer


def _unloadable(source: str, error: Exception) -> ModelError:
    return ModelError(
        f"cannot load the model {source}: {error}. Give a Hugging Face id, a directory with "
        "config.json, weights and tokenizer, or a .gguf file"
    )


def choose_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and gradients in labelling.

    `auto` is bfloat16 where the hardware multiplies it natively and float32 elsewhere: labels in
    bfloat16 rank as those in float32 do (rank correlation 0.996 on SmolLM2-135M) and take about two
    thirds of the time on a CPU without matrix tiles (`python -m benchmarks.labels`). Losses, sums
    over tokens and sums over batches are float32 or wider always.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[
            name
        ]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    native = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] there is no public way to ask
    return torch.bfloat16 if native else torch.float32


def load_llm(
    name: str,
    *,
    adapter: str | None = None,
    template: str = "plain",
    dtype: str = "auto",
    device: torch.device | None = None,
    attention: Literal["eager", "sdpa"] = "sdpa",
) -> LLM:
    """Load a causal language model.

    Args:
        name: a Hugging Face id, a local model directory, or a `.gguf` file. A GGUF file is
            dequantised once and kept in the cache directory, since reading it takes half a minute.
        adapter: a PEFT adapter on top of it, such as LoRA: a Hugging Face id or a directory.
        template: how prompt and completion are laid out; see `alinfik.distill.text_template`.
        dtype: `auto`, `float32`, `bfloat16` or `float64`; see `choose_dtype`.
        device: where to put it; CUDA if there is any by default.
        attention: `sdpa` is fused and fast; forward-mode derivatives need `eager`.

    Raises:
        ModelError: there is no such model, it is no causal language model, it lacks a fast
            tokenizer, or the adapter is none of this model's.
        TextTemplateError: the model has no such template.
    """
    device = device or choose_device()
    source = model_source(name)
    tokenizer = load_fast_tokenizer(source)
    layout = text_template(template, tokenizer)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype="auto", attn_implementation=attention
        )
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from error
    trainable = [name for name, _ in model.named_parameters()]
    if adapter is not None:
        trainable = load_adapter(model, adapter)
    for module in model.modules():
        # Padding is masked. A table that gives one id no gradient would give that token, where a
        # text holds it, no gradient either.
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    identity = LanguageModel(name=public_name(name), sha256=_weights_sha256(model))
    if adapter is not None:
        identity.adapter = public_name(adapter)
    _cast(model, choose_dtype(dtype, device))
    torch.nn.Module.to(model, device)
    model.eval().requires_grad_(False)
    encoding = _encoding(model, tokenizer, layout)
    return LLM(model, tokenizer.backend_tokenizer, encoding, identity, trainable)


def _cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters alone.

    Buffers hold what a model computes with in float32 always: RoPE's frequencies, cut to bfloat16,
    turn a token at position 512 by most of a radian too far.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def public_name(source: str) -> str:
    """Return a Hugging Face id as it is; of a path, what says nothing of the machine."""
    return Path(source).name if Path(source).exists() else source


def model_source(name: str) -> str:
    """Return what `transformers` loads for a model name: for a `.gguf` file, its converted copy.

    Raises:
        ModelError: the file does not exist or is no GGUF language model.
    """
    return _dequantised(Path(name)) if name.endswith(".gguf") else name


def _encoding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, layout: TextTemplate
) -> Encoding:
    """Samples start with the model's start token, so that the first completion token has a loss."""
    start, end, pad = (
        tokenizer.convert_tokens_to_ids(str(token)) if token is not None else None
        for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    )
    start = end if start is None else start
    text_config = model.config.get_text_config()
    if not isinstance(start, int):
        raise ModelError("the tokenizer has neither a start nor an end token to begin samples with")
    return Encoding(
        token_limit=getattr(text_config, "max_position_embeddings", _UNCOUNTED_POSITIONS),
        prompt_template=layout.prompt,
        completion_template=layout.completion,
        prefix_ids=[start],
        pad_id=pad if isinstance(pad, int) else start,
    )


def _weights_sha256(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _dequantised(path: Path) -> str:
    """Convert a GGUF file to a model directory in the cache, once."""
    if not path.is_file():
        raise ModelError(f"there is no model file {path}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache_directory() / "gguf" / f"{path.stem}-{digest[:16]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            source = {"gguf_file": path.name}
            AutoModelForCausalLM.from_pretrained(
                path.parent,
                **source,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            ).save_pretrained(scratch)
            # After the model, whose save_pretrained removes what else it finds.
            AutoTokenizer.from_pretrained(path.parent, **source).save_pretrained(scratch)
            scratch.rename(target)
        except (OSError, ValueError, LookupError, struct.error) as error:
            if target.is_dir():
                # Another worker has converted it meanwhile.
                return str(target)
            # All but OSError are what the reader makes of bytes that are no GGUF file.
            raise ModelError(f"cannot read {path} as a GGUF language model: {error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return str(target)
