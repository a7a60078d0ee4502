"""Distils a proxy: trains it on one part of the labels, and learns from others how far it errs.

In: an untrained backbone and labels. Out: models ready to be exported. Knows nothing of files.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alinfik.distill.backbones import Backbone, Reading
from alinfik.distill.bag import fit_bag
from alinfik.distill.blend import blend
from alinfik.distill.calibrate import ServedModel, TokenModel, described
from alinfik.distill.checkpoint import Checkpoint
from alinfik.distill.encoding import Encoder
from alinfik.distill.fit import Plan, estimate, fit, learn_scales
from alinfik.distill.intervals import Intervals
from alinfik.distill.labels import Labels
from alinfik.distill.llm import choose_device
from alinfik.distill.probe import cross_fit
from alinfik.distill.proxy import Proxy
from alinfik.distill.samples import Row
from alinfik.distill.splits import Parts, folds, known
from alinfik.distill.strangeness import Strangeness
from alinfik.distill.training_data import Training
from alinfik.distill.values import Sums
from alinfik.distill.words import shuffled

Floats = NDArray[np.float64]

# For the estimates that intervals come from: each by four fifths of the labels.
_FOLDS = 5


@dataclass(frozen=True)
class Distilled:
    """A proxy ready to be exported, on the CPU.

    Attributes:
        served: what is served.
        tokens: what explains it; None where labels have no token values.
        reading: how both read.
        data: every labelled sample as they read it.
        unfitted: what the proxy says, in the label's unit, of M samples that are not held out and
            that it was not fitted to when it said so, [M, K].
    """

    served: ServedModel
    tokens: TokenModel | None
    reading: Reading
    data: Training
    unfitted: Floats


def distil(
    backbone: Backbone | None,
    reading: Reading,
    labels: Labels,
    data: Training,
    parts: Parts,
    plan: Plan,
    checkpoint: Checkpoint,
) -> Distilled:
    """Train on one part of the labels, stop by another, find intervals by that and a third.

    Where no training beats the regressions that a network starts from, these are fitted to all
    three parts, and intervals come from what they say of each fold without it; a bag is fitted so
    always. A network and a bag estimate together.

    Args:
        backbone: untrained for the task; None for a bag.
        reading: how it reads.
        labels: N.
        data: the same as the backbone reads them.
        parts: which of the N serve for what.
        plan: how long to train and in what order.
        checkpoint: where a training that was cut off goes on from.
    """
    rest = judged = known(parts)
    network = None if backbone is None else Proxy(backbone, len(labels.names)).to(choose_device())
    scales = None
    if network is not None and plan.epochs:
        training, validation = data.take(parts["train"]), data.take(parts["validation"])
        scales = fit(network, training, validation, plan, checkpoint)
    trained = scales is not None
    known_data = data.take(rest)
    scales = (scales or learn_scales(known_data)).to(torch.device("cpu"))
    fold = folds(known_data.families, _FOLDS)
    encoder = Encoder(reading.tokenizer, reading.encoding)
    sums = Sums(labels.token_split, labels.reduction)
    # Beside a network, words have no say in what a token is worth.
    taught = scales if network is None else replace(scales, tokens=None)
    words, found = fit_bag(known_data, taught, fold, encoder.vocabulary)
    proxy: nn.Module = words
    if network is not None:
        heard = found.samples
        if trained:
            judged = sorted(parts["validation"] + parts["calibration"])
            heard = heard[np.searchsorted(rest, judged)]
            judged_data = data.take(judged)
            fold = folds(judged_data.families, _FOLDS)
            found = estimate(network, judged_data.samples, plan)
        else:
            on_device = scales.to(choose_device())
            size = plan.batch_tokens, plan.pad_id
            found = cross_fit(network, known_data, on_device, fold, sums, *size)
        fitted = scales.samples.fit_labels(data.labels[judged])
        proxy, found = blend(network, found, words, heard, scales.samples, fitted)
    values = scales.samples.restore(found.samples).double().numpy()
    residuals = values - data.labels[judged]
    intervals = Intervals(described(found).double().numpy(), values, residuals, fold)
    strangeness = learn_strangeness(encoder, labels.take(rest).rows)
    served = ServedModel(proxy, scales.samples, intervals, strangeness)
    tokens = None
    if scales.tokens is not None:
        told = network is not None and network.tells_tokens
        token_scale = None if told else scales.tokens
        tokens = TokenModel(proxy, scales.samples, token_scale, sums).eval()
    return Distilled(served.eval(), tokens, reading, data, values)


def learn_strangeness(encoder: Encoder, rows: Sequence[Row]) -> Strangeness:
    """Learn what known texts are like, beside the same with their words in random order."""
    order = random.Random(0)  # noqa: S311
    shuffled_rows = [
        replace(row, prompt=shuffled(row.prompt, order), completion=shuffled(row.completion, order))
        for row in rows
    ]
    return Strangeness(
        encoder.encode(rows),
        encoder.encode(shuffled_rows),
        encoder.vocabulary,
        encoder.encoding.pad_id,
    )
