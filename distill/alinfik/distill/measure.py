"""Runs an exported model over samples and compares what it says with their labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alinfik.command import CommandError, progress
from alinfik.distill.baselines import length_scores, tfidf_scores
from alinfik.distill.batches import batched_by_length
from alinfik.distill.encoding import Encoded
from alinfik.distill.export import OnnxModel, TokenOnnxModel
from alinfik.distill.labels import Labels
from alinfik.distill.ranks import pearson, spearman
from alinfik.distill.training_data import Training, token_targets
from alinfik.v1 import Metrics, ProviderMetrics, TargetMetrics

Floats = NDArray[np.float64]

# Below this many samples a rank correlation says nothing.
FEWEST_MEASURED = 8

# Tokens a batch, padding included: two gigabytes where the way back starts at a vocabulary.
_BATCH_TOKENS = 1024


class EvaluationError(CommandError):
    """Labels that a bundle cannot be measured with."""


@dataclass(frozen=True)
class TargetPredictions:
    """What the exported model says of N samples for one target: three arrays [N]."""

    value: Floats
    lower: Floats
    upper: Floats


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

    def of(self, target: int) -> "TargetPredictions":
        """Return what is said for one target."""
        return TargetPredictions(
            self.value[:, target], self.lower[:, target], self.upper[:, target]
        )

    def take(self, indices: list[int]) -> "Predictions":
        """Return the predictions of some samples."""
        return Predictions(
            self.value[indices], self.lower[indices], self.upper[indices], self.ood[indices]
        )


def predict(model: OnnxModel, samples: Sequence[Encoded], pad_id: int) -> Predictions:
    """Run the exported model over samples, in their order."""
    rows: list[tuple[Floats, ...]] = [()] * len(samples)
    with progress("value pool", len(samples)) as advance:
        for batch in batched_by_length(samples, padded_tokens=_BATCH_TOKENS, pad_id=pad_id):
            outputs = model.run(batch)
            for row, index in enumerate(batch.indices):
                rows[index] = tuple(output[row] for output in outputs)
            advance(len(batch.indices))
    value, lower, upper, ood = (
        np.asarray(column, dtype=np.float64) for column in zip(*rows, strict=True)
    )
    return Predictions(value, lower, upper, ood)


def measure(predictions: Predictions, labels: Labels, training: Labels | None) -> Metrics:
    """Compare predictions with labels of the same samples, which the model did not see.

    Args:
        predictions: of N samples.
        labels: of the same samples.
        training: what the model may have been fitted to, and the TF-IDF baseline is; without it
            there is no baseline.

    Raises:
        EvaluationError: there are too few samples.
    """
    if len(labels) < FEWEST_MEASURED:
        raise EvaluationError(
            f"there are only {len(labels)} labels to measure with, too few; label more samples"
        )
    words = None if training is None else tfidf_scores(training, labels)
    lengths = length_scores(labels)
    metrics = Metrics(held_out_count=len(labels))
    for column, name in enumerate(labels.names):
        found = measure_target(predictions.of(column), labels.values[:, column])
        found.target = name
        found.ceiling_spearman = labels.manifest.targets[column].ceiling_spearman
        found.length_spearman = abs(spearman(lengths, labels.values[:, column]))
        if words is not None:
            found.tfidf_spearman = spearman(words[:, column], labels.values[:, column])
        found.providers.extend(_measure_providers(predictions.of(column), labels, column))
        metrics.targets.append(found)
    return metrics


def measure_tokens(model: TokenOnnxModel, data: Training, pad_id: int) -> list[float]:
    """Rank correlation of token values with the labels' own, over all tokens, of each target.

    Args:
        model: what explains values.
        data: samples that it was not fitted to, with token values.
        pad_id: that fills its batches.
    """
    found: list[Floats] = []
    labelled: list[Floats] = []
    with progress("explain held-out samples", len(data.samples)) as advance:
        for batch in batched_by_length(data.samples, padded_tokens=_BATCH_TOKENS, pad_id=pad_id):
            mask, values = token_targets(data, batch)
            found.append(model.run(batch)[mask.numpy()].astype(np.float64))
            labelled.append(values.double().numpy())
            advance(len(batch.indices))
    ours, theirs = np.concatenate(found), np.concatenate(labelled)
    return [spearman(one, other) for one, other in zip(ours.T, theirs.T, strict=True)]


def agreement(first: Predictions, second: Predictions) -> float:
    """Rank correlation of two models' values, of the target where it is least.

    Targets of which the first says one value for all have no ranks to keep.
    """
    found = [
        spearman(one, other)
        for one, other in zip(first.value.T, second.value.T, strict=True)
        if np.ptp(one) > 0
    ]
    return min(found, default=1.0)


def measure_target(found: TargetPredictions, label: Floats) -> TargetMetrics:
    """Compare N predictions for one target with the labels [N] of the same samples."""
    from scipy.stats import rankdata
    from sklearn.metrics import ndcg_score

    inside = (found.lower <= label) & (label <= found.upper)
    top = max(1, len(label) // 10)
    best, chosen = np.argsort(-label)[:top], np.argsort(-found.value)[:top]
    gains = (rankdata(label) - 1) / max(len(label) - 1, 1)
    tenths = np.array_split(np.argsort(found.value, kind="stable"), 10)
    return TargetMetrics(
        spearman=spearman(found.value, label),
        pearson=pearson(found.value, label),
        coverage=float(inside.mean()),
        top_tenth_overlap=len(set(best) & set(chosen)) / top,
        top_tenth_ndcg=float(ndcg_score(gains[None], found.value[None], k=top)),
        relative_width=_relative_width(found, label, float(inside.mean())),
        tenth_coverage=[float(inside[tenth].mean()) for tenth in tenths if len(tenth)],
    )


def _relative_width(found: TargetPredictions, label: Floats, coverage: float) -> float:
    """Mean width of the intervals, over the one width that would cover as many of these labels."""
    one = 2 * np.quantile(np.abs(found.value - label), coverage)
    return float((found.upper - found.lower).mean() / one) if one > 0 else 1.0


def _measure_providers(
    found: TargetPredictions, labels: Labels, column: int
) -> list[ProviderMetrics]:
    providers = np.array([row.provider for row in labels.rows])
    label = labels.values[:, column]
    inside = (found.lower <= label) & (label <= found.upper)
    measured: list[ProviderMetrics] = []
    for name in np.unique(providers):
        rows = providers == name
        count = int(rows.sum())
        tells = count >= FEWEST_MEASURED
        measured.append(
            ProviderMetrics(
                provider=str(name),
                held_out_count=count,
                median_value=float(np.median(found.value[rows])),
                median_label=float(np.median(label[rows])),
                spearman=spearman(found.value[rows], label[rows]) if tells else 0.0,
                coverage=float(inside[rows].mean()),
            )
        )
    return sorted(measured, key=lambda one: -one.held_out_count)
