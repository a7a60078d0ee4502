"""What gives the proxy its states, and how far it reads."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    Gemma3Config,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from alinfik.distill.backbones import Reading, build_backbone
from alinfik.distill.llm import ModelError, load_fast_tokenizer
from alinfik.v1 import Encoding
from tests.distill.tiny_llm import write_encoder


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
    assert backbone(ids, torch.ones_like(ids), torch.ones_like(ids)).isfinite().all()


def test_the_first_layers_of_a_model_that_sees_are_those_that_read(
    tiny_llm: Path, tmp_path: Path
) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = Gemma3Config(
        text_config={**shape, "num_hidden_layers": 3, "vocab_size": 300, "head_dim": 8},
        vision_config={**shape, "num_hidden_layers": 3, "image_size": 32, "patch_size": 16},
        mm_tokens_per_image=4,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "gemma3")
    llm = Reading(load_fast_tokenizer(str(tiny_llm)).backend_tokenizer, Encoding())
    backbone, _ = build_backbone("layers:2", str(tmp_path / "gemma3"), llm)
    ids = torch.full((2, 5), 5)
    assert backbone is not None
    assert backbone(ids, torch.ones_like(ids), torch.ones_like(ids)).shape == (2, 5, 2 * 32)


def test_unknown_families_are_refused(tiny_llm: Path) -> None:
    llm = Reading(load_fast_tokenizer(str(tiny_llm)).backend_tokenizer, Encoding())
    with pytest.raises(ModelError, match="unknown backbone 'forest'"):
        build_backbone("forest", str(tiny_llm), llm)
