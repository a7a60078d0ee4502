"""Groups encoded samples into padded batches.

In: `Encoded` samples. Out: `Batch`es of tensors, nearest lengths together. Knows nothing of models.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from alinfik.command import FailedError
from alinfik.distill.encoding import Encoded

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples padded on the right to one length.

    Attributes:
        indices: where the samples stand in the sequence that was batched, B of them.
        input_ids: int64 [B, T].
        attention_mask: int64 [B, T], 1 on tokens and 0 on padding.
        completion_mask: int64 [B, T], 1 on completion tokens.
    """

    indices: list[int]
    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on ``device``."""
        return Batch(
            self.indices,
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.completion_mask.to(device),
        )

    def halves(self) -> tuple["Batch", "Batch"]:
        """Return the batch as two of half its rows each."""
        middle = len(self.indices) // 2
        first, second = slice(None, middle), slice(middle, None)
        return self._rows(first), self._rows(second)

    def _rows(self, rows: slice) -> "Batch":
        return Batch(
            self.indices[rows],
            self.input_ids[rows],
            self.attention_mask[rows],
            self.completion_mask[rows],
        )


def pad(samples: Sequence[Encoded], indices: list[int], pad_id: int) -> Batch:
    """Pad the samples at ``indices`` to the longest of them."""
    chosen = [samples[index] for index in indices]
    longest = max(len(sample) for sample in chosen)
    input_ids = torch.full((len(chosen), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    completion_mask = torch.zeros_like(input_ids)
    for row, sample in enumerate(chosen):
        input_ids[row, : len(sample)] = torch.tensor(sample.input_ids)
        attention_mask[row, : len(sample)] = 1
        completion_mask[row, sample.completion_start : len(sample)] = 1
    return Batch(indices, input_ids, attention_mask, completion_mask)


def batched_by_length(
    samples: Sequence[Encoded], padded_tokens: int, pad_id: int
) -> Iterator[Batch]:
    """Yield all samples in batches of at most ``padded_tokens`` (rows x longest), longest first.

    A sample longer than the budget has a batch of its own. Longest first, so that a run that does
    not fit into memory fails at its start.
    """
    order = sorted(range(len(samples)), key=lambda index: -len(samples[index]))
    indices: list[int] = []
    for index in order:
        longest = len(samples[indices[0]]) if indices else 0
        if indices and (len(indices) + 1) * longest > padded_tokens:
            yield pad(samples, indices, pad_id)
            indices = []
        indices.append(index)
    if indices:
        yield pad(samples, indices, pad_id)


def halve_to_fit(
    batch: Batch, compute: Callable[[Batch], Result]
) -> Iterator[tuple[Batch, Result]]:
    """Yield what ``compute`` makes of the batch, or of its parts where it does not fit into memory.

    Raises:
        torch.OutOfMemoryError: a single sample does not fit into the GPU's memory.
    """
    try:
        result = compute(batch)
    except torch.OutOfMemoryError:
        if len(batch.indices) == 1:
            raise
    else:
        yield batch, result
        return
    # Past the except clause, whose traceback would hold the failed batch's memory.
    for half in batch.halves():
        yield from halve_to_fit(half, compute)


@contextmanager
def memory_error(mend: str) -> Generator[None]:
    """Say what would help where a GPU's memory does not suffice, a sample at a time either.

    Raises:
        FailedError: it does not.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise FailedError(f"the GPU has too little memory: {mend}") from error
