"""What gives the proxy its states, and how far it reads."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, ModernBertConfig, PreTrainedConfig, RobertaConfig

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


def test_unknown_families_are_refused(tiny_llm: Path) -> None:
    llm = Reading(load_fast_tokenizer(str(tiny_llm)).backend_tokenizer, Encoding())
    with pytest.raises(ModelError, match="unknown backbone 'forest'"):
        build_backbone("forest", str(tiny_llm), llm)
