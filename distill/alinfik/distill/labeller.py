"""A language model made ready to value rows against targets.

In: rows. Out: Arrow tables, laid out as `alinfik.distill.labels` says. Knows nothing of files.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict

import pyarrow as pa
import torch
from google.protobuf.json_format import MessageToJson

from alinfik.command import progress
from alinfik.command.progress import Advance
from alinfik.distill.batches import Batch, batched_by_length
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.gradient_cache import GradientCache
from alinfik.distill.labels import labels_schema
from alinfik.distill.llm import LLM
from alinfik.distill.losses import Parameters, Reduction
from alinfik.distill.samples import Row, rows_sha256
from alinfik.distill.target import target_gradient
from alinfik.distill.values import MakeEngine, ValueEngine, Values


class Labeller:
    """Values rows against the targets that it was made with.

    Args:
        llm: the language model.
        targets: every target's rows, by name.
        make_engine: makes the engine from the targets' gradients.
        cache: keeps the gradients for the next pool.
        selected: the names of the parameters that count.
        reduction: how token losses make a sample's loss.
        batch_tokens: tokens a batch, padding included.
    """

    def __init__(
        self,
        llm: LLM,
        targets: dict[str, list[Row]],
        make_engine: MakeEngine,
        *,
        cache: GradientCache,
        selected: list[str],
        reduction: Reduction,
        batch_tokens: int,
    ) -> None:
        self._llm = llm
        self._names = list(targets)
        self._reduction: Reduction = reduction
        self._batch_tokens = batch_tokens
        self._cache = cache
        self._encoder = Encoder(llm.tokenizer, llm.encoding)
        self._engine: ValueEngine = make_engine(
            [self._gradient(name, rows, selected) for name, rows in targets.items()]
        )

    def _gradient(self, name: str, rows: list[Row], selected: list[str]) -> Parameters:
        def compute() -> Parameters:
            with progress(f"target {name}", len(rows)) as advance:
                batches = self._batches(self._encoder.encode(rows), advance)
                return target_gradient(self._llm.model, batches, self._reduction, selected)

        key = {
            "format": 1,
            "model": self._llm.identity.sha256,
            "target": rows_sha256(rows),
            "encoding": MessageToJson(self._llm.encoding, sort_keys=True),
            "dtype": str(self._llm.model.dtype),
            "reduction": self._reduction,
            "parameters": selected,
        }
        return self._cache.get(key, compute)

    def _batches(self, samples: list[Encoded], advance: Advance) -> Iterator[Batch]:
        for batch in batched_by_length(samples, self._batch_tokens, self._encoder.encoding.pad_id):
            yield batch
            advance(len(batch.indices))

    def _value(self, batch: Batch) -> Iterator[tuple[Batch, Values]]:
        """Value a batch; in halves, down to single samples, where the GPU's memory is too small."""
        try:
            values = self._engine.value(batch)
        except torch.OutOfMemoryError:
            if len(batch.indices) == 1:
                raise
            # What did not fit once will not fit in the next shard.
            self._batch_tokens = min(self._batch_tokens, batch.input_ids.numel() // 2)
        else:
            yield batch, values
            return
        # Past the except clause, whose traceback would hold the failed batch's memory.
        for half in batch.halves():
            yield from self._value(half)

    def label(self, rows: list[Row], advance: Advance) -> pa.Table:
        """Value rows; the table keeps their order."""
        samples = self._encoder.encode(rows)
        records = [asdict(row) | asdict(sample) for row, sample in zip(rows, samples, strict=True)]
        batches = self._batches(samples, advance)
        for batch, values in itertools.chain.from_iterable(map(self._value, batches)):
            for row, index in enumerate(batch.indices):
                records[index]["loss"] = values.losses[row].item()
                for target, name in enumerate(self._names):
                    records[index][f"label_{name}"] = values.labels[target, row].item()
                    if values.tokens is not None:
                        tokens = self._tokens(values.tokens[target, row], samples[index])
                        records[index][f"token_values_{name}"] = tokens
        return pa.Table.from_pylist(records, schema=labels_schema(self._names))

    def _tokens(self, values: torch.Tensor, sample: Encoded) -> list[float]:
        start = sample.completion_start if self._engine.split == "loss" else 0
        return values[start : len(sample)].tolist()
