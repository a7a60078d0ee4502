"""What gives the proxy its states, and how far it reads."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, ModernBertConfig, PreTrainedConfig, RobertaConfig

from alinfik.distill.backbone import Backbone
from alinfik.distill.backbones import Reading, build_backbone
from alinfik.distill.directions import Kernel
from alinfik.distill.llm import ModelError, load_fast_tokenizer
from alinfik.v1 import Encoding
from tests.distill.tiny_llm import gemma3_with_vision, write_encoder, write_llm

KERNEL = Kernel({}, "tensor", "mean")


def _built(family: str, llm: Path) -> Backbone | None:
    reading = Reading(load_fast_tokenizer(str(llm)).backend_tokenizer, Encoding())
    return build_backbone(family, str(llm), reading, KERNEL)[0]


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
    backbone, reading = build_backbone(f"encoder:{encoder}", str(tiny_llm), llm, KERNEL)
    assert reading.encoding.token_limit == positions
    ids = torch.full((1, positions), 5)
    assert backbone is not None
    assert backbone(ids, torch.ones_like(ids), torch.ones_like(ids)).states.isfinite().all()


def test_the_first_layers_of_a_model_that_sees_are_those_that_read(tmp_path: Path) -> None:
    model = write_llm(tmp_path / "gemma3", gemma3_with_vision())
    backbone = _built("layers:2", model)
    ids = torch.full((2, 5), 5)
    assert backbone is not None
    read = backbone(ids, torch.ones_like(ids), torch.ones_like(ids))
    assert read.states.shape == (2, 5, 2 * 32)


def test_more_layers_than_there_are_are_refused(tiny_llm: Path) -> None:
    for family in ("layers:4", "gradients:4"):
        with pytest.raises(ModelError, match=f"{family}: the model has only 3 layers"):
            _built(family, tiny_llm)


def test_unknown_families_are_refused(tiny_llm: Path) -> None:
    with pytest.raises(ModelError, match="unknown backbone 'forest'"):
        _built("forest", tiny_llm)
