"""What the labeller does when a GPU's memory is too small for a batch."""

from pathlib import Path

import pytest
import torch

from alinfik.command import FailedError
from alinfik.distill.batches import Batch, batched_by_length
from alinfik.distill.encoding import Encoder
from alinfik.distill.forward_mode import ForwardMode
from alinfik.distill.labeller import Labeller
from alinfik.distill.llm import LLM, load_llm
from alinfik.distill.losses import Parameters
from alinfik.distill.samples import Row, read_rows
from alinfik.distill.selection import select_parameters
from alinfik.distill.target import target_gradient
from alinfik.distill.values import Values
from tests.distill.conftest import write_rows


class SmallMemory(ForwardMode):
    """An engine whose device holds so many samples and no more."""

    def __init__(self, llm: LLM, gradients: list[Parameters], most: int) -> None:
        super().__init__(llm.model, gradients, "mean")
        self._most = most
        self.sizes: list[int] = []

    def value(self, batch: Batch) -> Values:
        self.sizes.append(len(batch.indices))
        if len(batch.indices) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().value(batch)


@pytest.fixture(scope="module")
def llm(tiny_llm: Path) -> LLM:
    return load_llm(str(tiny_llm), dtype="float32", attention="eager")


def labeller_of(llm: LLM, directory: Path, most: int) -> tuple[Labeller, SmallMemory]:
    rows = list(read_rows(write_rows(directory / "target.jsonl", 3, seed=1)))
    encoded = Encoder(llm.tokenizer, llm.encoding).encode(rows)
    batches = batched_by_length(encoded, 64, llm.encoding.pad_id)
    selected = select_parameters(llm.model, "all")
    engine = SmallMemory(llm, [target_gradient(llm.model, batches, "mean", selected)], most)
    return Labeller(llm, engine, ["t"], batch_tokens=10_000), engine


def ignore(units: int = 1, note: str = "") -> None:
    """Progress that nobody looks at."""


def rows_of(directory: Path) -> list[Row]:
    return list(read_rows(write_rows(directory / "pool.jsonl", 11)))


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(llm: LLM, tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    advanced: list[int] = []

    def count(units: int = 1, note: str = "") -> None:  # noqa: ARG001  as progress calls it
        advanced.append(units)

    roomy, _ = labeller_of(llm, tmp_path, most=100)
    tight, engine = labeller_of(llm, tmp_path, most=3)
    expected = roomy.label(rows, ignore)
    found = tight.label(rows, count)
    assert found["id"].to_pylist() == [row.id for row in rows]
    assert found["label_t"].to_pylist() == pytest.approx(expected["label_t"].to_pylist(), rel=1e-3)
    assert sum(advanced) == len(rows)
    engine.sizes.clear()
    tight.label(rows, ignore)
    assert max(engine.sizes) <= 6, "the next shard begins with what fitted"


def test_a_label_that_is_no_number_is_refused(llm: LLM, tmp_path: Path) -> None:
    labeller, engine = labeller_of(llm, tmp_path, most=100)
    for tangent in engine._tangents.values():
        tangent.fill_(torch.nan)
    with pytest.raises(FailedError, match=r"the label of the sample 'pool-\d+' for t is nan"):
        labeller.label(rows_of(tmp_path), ignore)


def test_a_sample_that_does_not_fit_alone_is_an_error(llm: LLM, tmp_path: Path) -> None:
    labeller, _ = labeller_of(llm, tmp_path, most=0)
    with pytest.raises(torch.OutOfMemoryError):
        labeller.label(rows_of(tmp_path), ignore)
