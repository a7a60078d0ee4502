"""What labels teach a proxy that reads with a tokenizer of its own.

In: labels, and how the proxy reads. Out: samples in the proxy's tokens with their labels and token
values. Knows nothing of networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alinfik.distill.align import realign
from alinfik.distill.backbones import Reading
from alinfik.distill.batches import Batch
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.labels import Labels
from alinfik.distill.values import TokenSplit

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Training:
    """Samples with what is to be learnt of them: N, for K targets.

    Attributes:
        samples: encoded, N.
        labels: [N, K].
        families: of each, the name of what it is one with, and what is left out of a regression as
            a whole to see how that does.
        token_values: N arrays [tokens, K]; none where labels are not split over tokens.
        split: over which tokens.
    """

    samples: Sequence[Encoded]
    labels: Floats
    families: Sequence[str]
    token_values: Sequence[Floats]
    split: TokenSplit

    def take(self, indices: Sequence[int]) -> "Training":
        """Return some of the samples."""
        return Training(
            [self.samples[index] for index in indices],
            self.labels[indices],
            [self.families[index] for index in indices],
            [self.token_values[index] for index in indices] if self.token_values else [],
            self.split,
        )


def training_data(
    labels: Labels, families: Sequence[str], llm: Reading, proxy: Reading
) -> Training:
    """Return labelled samples as the proxy reads them.

    Args:
        labels: N.
        families: the name of each one's.
        llm: how the labels' language model reads.
        proxy: how the proxy reads.
    """
    values = labels.token_values
    if proxy is llm:
        return Training(labels.samples, labels.values, families, values, labels.token_split)
    rows = labels.rows
    encoder = Encoder(proxy.tokenizer, proxy.encoding)
    samples = encoder.encode(rows)
    if values:
        spans = Encoder(llm.tokenizer, llm.encoding).spans(rows), encoder.spans(rows)
        mean = labels.reduction == "mean"
        values = [
            _realigned(*one, split=labels.token_split, mean=mean)
            for one in zip(values, labels.samples, samples, *spans, strict=True)
        ]
    return Training(samples, labels.values, families, values, labels.token_split)


def token_targets(data: Training, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the mask [B, T] of tokens that have values, and the values [tokens, K] in order."""
    values = np.concatenate([data.token_values[index] for index in batch.indices])
    mask = batch.completion_mask if data.split == "loss" else batch.attention_mask
    return mask.bool(), torch.tensor(values, dtype=torch.float32)


def _realigned(
    values: Floats,
    theirs: Encoded,
    ours: Encoded,
    their_spans: NDArray[np.int64],
    our_spans: NDArray[np.int64],
    *,
    split: TokenSplit,
    mean: bool,
) -> Floats:
    """Carry a sample's token values over; they reduce to its label as before."""
    if split == "loss":
        their_spans = their_spans[theirs.completion_start :]
        our_spans = our_spans[ours.completion_start :]
    found = realign(values, their_spans, our_spans)
    # The mean is over tokens, of which there may be more now, or fewer.
    return found * (len(our_spans) / len(their_spans)) if mean else found
