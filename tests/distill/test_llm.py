"""What loading does to a language model."""

import shutil
from pathlib import Path

import pytest
import torch

from alinfik.distill import llm as loading
from alinfik.distill.llm import load_llm, model_source
from tests.distill.tiny_llm import llama, write_llm


def test_bfloat16_leaves_the_positions_exact(tmp_path: Path) -> None:
    config = llama(tied=True)
    config.max_position_embeddings = 512
    source = str(write_llm(tmp_path / "llm", config))
    exact, rounded = (load_llm(source, dtype=dtype).model for dtype in ("float32", "bfloat16"))
    assert {weight.dtype for weight in rounded.parameters()} == {torch.bfloat16}
    buffers = dict(rounded.named_buffers())
    assert buffers
    for name, buffer in exact.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=0, atol=0)


def test_a_gguf_file_that_another_worker_converts_meanwhile_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Converted:
        @classmethod
        def from_pretrained(cls, *_: object, **__: object) -> "Converted":
            return cls()

        def save_pretrained(self, scratch: Path) -> None:
            (scratch / "config.json").touch()
            theirs = scratch.with_name(scratch.name[1:].rpartition("-")[0])
            shutil.copytree(scratch, theirs, dirs_exist_ok=True)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "AutoModelForCausalLM", Converted)
    monkeypatch.setattr(loading, "AutoTokenizer", Converted)
    (tmp_path / "m.gguf").touch()
    converted = Path(model_source(str(tmp_path / "m.gguf")))
    assert (converted / "config.json").exists()
    assert [path.name for path in converted.parent.iterdir()] == [converted.name]
