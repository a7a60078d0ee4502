"""Runs an exported model over samples and compares what it says with their labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alinfik.command import CommandError, progress
from alinfik.distill.batches import batched_by_length
from alinfik.distill.encoding import Encoded
from alinfik.distill.export import OnnxModel
from alinfik.distill.labels import Labels
from alinfik.v1 import Metrics, TargetMetrics

Floats = NDArray[np.float64]

# Below this many samples a rank correlation says nothing.
_FEWEST = 8


class EvaluationError(CommandError):
    """Labels that a bundle cannot be measured with."""


@dataclass(frozen=True)
class Predictions:
    """What the exported model says of N samples for K targets.

    Attributes:
        value: [N, K], in the label's unit.
        lower: [N, K].
        upper: [N, K].
        ood: [N].
    """

    value: Floats
    lower: Floats
    upper: Floats
    ood: Floats

    def take(self, indices: list[int]) -> "Predictions":
        """Return the predictions of some samples."""
        return Predictions(
            self.value[indices], self.lower[indices], self.upper[indices], self.ood[indices]
        )


def predict(model: OnnxModel, samples: Sequence[Encoded], pad_id: int) -> Predictions:
    """Run the exported model over samples, in their order."""
    rows: list[tuple[Floats, ...]] = [()] * len(samples)
    with progress("value pool", len(samples)) as advance:
        for batch in batched_by_length(samples, padded_tokens=2048, pad_id=pad_id):
            outputs = model.run(batch)
            for row, index in enumerate(batch.indices):
                rows[index] = tuple(output[row] for output in outputs)
            advance(len(batch.indices))
    value, lower, upper, ood = (
        np.asarray(column, dtype=np.float64) for column in zip(*rows, strict=True)
    )
    return Predictions(value, lower, upper, ood)


def measure(predictions: Predictions, labels: Labels) -> Metrics:
    """Compare predictions with labels of the same samples, which the model did not see.

    Raises:
        EvaluationError: there are too few samples.
    """
    # Here, since it takes seconds to load and labelling does not need it.
    from scipy.stats import pearsonr, spearmanr

    if len(labels) < _FEWEST:
        raise EvaluationError(
            f"only {len(labels)} labels are held out, too few to measure with; label more samples"
        )
    metrics = Metrics(held_out_count=len(labels))
    lengths = [sample.completion_length for sample in labels.samples]
    for column, name in enumerate(labels.names):
        label, value = labels.values[:, column], predictions.value[:, column]
        inside = (predictions.lower[:, column] <= label) & (label <= predictions.upper[:, column])
        metrics.targets.append(
            TargetMetrics(
                target=name,
                spearman=float(spearmanr(value, label).statistic),
                pearson=float(pearsonr(value, label).statistic),
                length_spearman=abs(float(spearmanr(lengths, label).statistic)),
                coverage=float(inside.mean()),
            )
        )
    return metrics
