"""A language model made ready to value rows against targets.

In: rows. Out: Arrow tables, laid out as `alinfik.distill.labels` says. Knows nothing of files.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa
import torch
from torch import Tensor

from alinfik.command import FailedError
from alinfik.command.progress import Advance
from alinfik.distill.batches import Batch, batched_by_length, halve_to_fit
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.labels import labels_schema
from alinfik.distill.llm import LLM
from alinfik.distill.losses import Parameters
from alinfik.distill.recipe import Recipe
from alinfik.distill.samples import Row
from alinfik.distill.values import ValueEngine, Values


class Labeller:
    """Values rows against targets.

    Args:
        llm: the language model.
        engine: values batches against the targets.
        names: the targets'.
        batch_tokens: tokens a batch, padding included; fewer once a batch did not fit into memory.
    """

    def __init__(self, llm: LLM, engine: ValueEngine, names: list[str], batch_tokens: int) -> None:
        self._engine = engine
        self._names = names
        self._batch_tokens = batch_tokens
        self._encoder = Encoder(llm.tokenizer, llm.encoding)

    def label(self, rows: list[Row], advance: Advance) -> pa.Table:
        """Value rows; the table keeps their order.

        Raises:
            FailedError: a label is no finite number.
        """
        samples = self._encoder.encode(rows)
        records = [asdict(row) | asdict(sample) for row, sample in zip(rows, samples, strict=True)]
        for batch, values in self._values(samples):
            for row, index in enumerate(batch.indices):
                records[index]["loss"] = values.losses[row].item()
                for target, name in enumerate(self._names):
                    value = values.labels[target, row].item()
                    if not math.isfinite(value):
                        raise FailedError(
                            f"the label of the sample {rows[index].id!r} for {name} is {value}: "
                            "the model's numbers overflow; try --dtype float32, or leave the "
                            "sample out"
                        )
                    records[index][f"label_{name}"] = value
                    if values.tokens is not None:
                        tokens = self._tokens(values.tokens[target, row], samples[index])
                        records[index][f"token_values_{name}"] = tokens
            advance(len(batch.indices))
        return pa.Table.from_pylist(records, schema=labels_schema(self._names))

    def _values(self, samples: list[Encoded]) -> Iterator[tuple[Batch, Values]]:
        pad_id = self._encoder.encoding.pad_id
        for whole in batched_by_length(samples, self._batch_tokens, pad_id):
            for batch, values in halve_to_fit(whole, self._engine.value):
                # What did not fit once will not fit in the next shard.
                if batch is not whole:
                    self._batch_tokens = min(self._batch_tokens, whole.input_ids.numel() // 2)
                yield batch, values

    def _tokens(self, values: Tensor, sample: Encoded) -> list[float]:
        start = sample.completion_start if self._engine.split == "loss" else 0
        return values[start : len(sample)].tolist()


@dataclass(frozen=True)
class Job:
    """All that a worker needs to value rows as every other worker of the run does.

    Attributes:
        recipe: how labels are made.
        model_sha256: the hash of the language model that the run began with.
        shapes: of the parameters that count, by name.
        gradients: every target's, by its name, as one vector over all of `shapes`: what goes to
            another process by shared memory costs a file descriptor a tensor.
    """

    recipe: Recipe
    model_sha256: str
    shapes: dict[str, torch.Size]
    gradients: dict[str, Tensor]

    @classmethod
    def of(cls, recipe: Recipe, llm: LLM, gradients: dict[str, Parameters]) -> "Job":
        """Make the job of valuing rows against targets, by their gradients."""
        shapes = {name: value.shape for name, value in next(iter(gradients.values())).items()}
        # By name: a gradient that was kept on disk comes back in another order.
        flat = {
            target: torch.cat([gradient[name].flatten() for name in shapes])
            for target, gradient in gradients.items()
        }
        return cls(recipe, llm.identity.sha256, shapes, flat)

    def labeller(self, device: torch.device) -> Labeller:
        """Load the model on a device and make it ready.

        Raises:
            CommandError: it cannot be loaded there, or is another model.
        """
        return self.labeller_of(self.recipe.load_llm(device, self.model_sha256))

    def labeller_of(self, llm: LLM) -> Labeller:
        """Make a model that is loaded already ready."""
        engine = self.recipe.engine(llm, [self._named(flat) for flat in self.gradients.values()])
        return Labeller(llm, engine, list(self.gradients), self.recipe.batch_tokens)

    def _named(self, flat: Tensor) -> Parameters:
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: part.view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
