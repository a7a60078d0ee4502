"""`alinfik-distill explain`: which tokens of a sample make its value."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from alinfik.command import CommandError
from alinfik.distill.batches import pad
from alinfik.distill.bundle import EXPLAIN, TOKENIZER, read_manifest
from alinfik.distill.encoding import Encoder, Spans
from alinfik.distill.export import TokenOnnxModel
from alinfik.distill.samples import Row, read_rows
from alinfik.v1 import LOSS_REDUCTION_MEAN, TOKEN_SPLIT_LOSS, BundleManifest

Floats = NDArray[np.float64]


class ExplainError(CommandError):
    """A bundle that cannot explain its values."""


@dataclass(frozen=True)
class Explanation:
    """A sample's T tokens and what each adds to its value, for K targets.

    Attributes:
        row: the sample.
        values: [K].
        spans: [T, 2], the characters of each token in prompt and completion put together; those of
            a start or end token begin and end at one place.
        token_values: [T, K], as the labels are split: over all tokens, or, by loss, over the
            completion's alone. Their mean over those, or their sum, is the value.
        truncated: the sample is longer than the token limit, and what lies past it has no value.
    """

    row: Row
    values: Floats
    spans: Spans
    token_values: Floats
    truncated: bool


class Explainer:
    """Explains the values of a bundle.

    Args:
        bundle: its directory; the manifest need not be there yet.
        manifest: what it says, or will.

    Raises:
        ExplainError: its labels were made without token values.
    """

    def __init__(self, bundle: Path, manifest: BundleManifest) -> None:
        if not (bundle / EXPLAIN).is_file():
            raise ExplainError(
                f"{bundle} has no {EXPLAIN}: its labels were made with --token-values false"
            )
        self._model = TokenOnnxModel(bundle / EXPLAIN)
        self._encoder = Encoder(Tokenizer.from_file(str(bundle / TOKENIZER)), manifest.encoding)
        self._by_loss = manifest.labels.token_split == TOKEN_SPLIT_LOSS
        self._mean = manifest.labels.loss_reduction == LOSS_REDUCTION_MEAN

    def explain(self, rows: Sequence[Row]) -> Iterator[Explanation]:
        """Explain rows one by one, in their order."""
        samples = self._encoder.encode(rows)
        for index, spans in enumerate(self._encoder.spans(rows)):
            sample = samples[index]
            batch = pad(samples, [index], self._encoder.encoding.pad_id)
            token_values = self._model.run(batch)[0].astype(np.float64)
            values = token_values.sum(axis=0)
            if self._mean:
                values /= sample.completion_length if self._by_loss else len(sample)
            yield Explanation(rows[index], values, spans, token_values, sample.truncated)


def explain(bundle: Path, samples: str, fields: Mapping[str, str]) -> None:
    """Print an explanation of every sample, a line of JSON each.

    Args:
        bundle: its directory.
        samples: as `read_rows` takes it.
        fields: likewise.

    Raises:
        CommandError: no bundle, none that explains, or a row that is no sample.
    """
    manifest = read_manifest(bundle)
    names = [target.name for target in manifest.targets]
    explainer = Explainer(bundle, manifest)
    for row in read_rows(samples, fields):
        for explanation in explainer.explain([row]):
            print(json.dumps(_record(explanation, names), ensure_ascii=False))


def _record(explanation: Explanation, names: list[str]) -> dict[str, object]:
    return {
        "id": explanation.row.id,
        "values": _named(names, explanation.values),
        "truncated": explanation.truncated,
        "tokens": [
            _place(explanation.row, int(start), int(end)) | {"values": _named(names, values)}
            for (start, end), values in zip(
                explanation.spans, explanation.token_values, strict=True
            )
        ],
    }


def _place(row: Row, start: int, end: int) -> dict[str, object]:
    middle = len(row.prompt)
    if start == end:
        return {"field": "added", "start": 0, "end": 0, "text": ""}
    if start < middle:
        return {"field": "prompt", "start": start, "end": end, "text": row.prompt[start:end]}
    start, end = start - middle, end - middle
    return {"field": "completion", "start": start, "end": end, "text": row.completion[start:end]}


def _named(names: list[str], values: Floats) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in zip(names, values, strict=True)}
