"""The proxy without a network: every token and every pair of neighbours has a weight.

    value = sum over completion of w / sqrt(tokens) + sum over prompt of w' / sqrt(tokens) + lengths

on the fitted scale: a ridge regression on counts, each as large as the token or the pair is rare
(TF-IDF). It reads text as fast as it can be tokenised, and tells what words can tell. In: samples
with labels. Out: a module that estimates labels as `alinfik.distill.proxy.Proxy` does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alinfik.distill.calibrate import FittedScale, Scales
from alinfik.distill.encoding import Encoded
from alinfik.distill.pairs import hash_pairs
from alinfik.distill.proxy import Estimate, log_lengths
from alinfik.distill.ridge import best_penalties, fit_ridge
from alinfik.distill.training_data import Training

_PAIRS = 1 << 15
_PENALTIES = np.logspace(-2, 3, 16)
# Token values: a token's mean over these many tokens of no value.
_TOKEN_PENALTY = 10.0
# Of the two lengths beside thousands of counts, where a sample's counts are of length 1.
_LENGTH_WEIGHT = 0.2

Floats = NDArray[np.float64]


class Bag(nn.Module):
    """Weights of tokens and of hashed pairs for K targets.

    Args:
        vocabulary: token ids, V.
        targets: K.
    """

    def __init__(self, vocabulary: int, targets: int) -> None:
        super().__init__()
        # For each target: as part of a completion, as part of a prompt, and the token's own value.
        self.tokens = nn.Embedding(vocabulary, 3 * targets)
        self.pairs = nn.Embedding(_PAIRS, 3 * targets)
        self.lengths = nn.Linear(2, targets)
        self.token_bias = nn.Buffer(torch.zeros(targets))
        self.requires_grad_(requires_grad=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> Estimate:
        """Estimate labels and token values; see `Proxy.forward`."""
        before = torch.cat([torch.zeros_like(input_ids[:, :1]), input_ids[:, :-1]], dim=1)
        weights = self.tokens(input_ids) + self.pairs(hash_pairs(before, input_ids, _PAIRS))
        in_completion, in_prompt, own = weights.chunk(3, dim=-1)
        mask = completion_mask.to(weights.dtype).unsqueeze(-1)
        prompt_mask = attention_mask.to(weights.dtype).unsqueeze(-1) - mask
        count, prompt_count = mask.sum(dim=1), prompt_mask.sum(dim=1)
        completion = (in_completion * mask).sum(dim=1) / count.clamp(min=1).sqrt()
        prompt = (in_prompt * prompt_mask).sum(dim=1) / prompt_count.clamp(min=1).sqrt()
        lengths = log_lengths(count, prompt_count)
        return Estimate(
            samples=completion + prompt + self.lengths(lengths),
            tokens=own + self.token_bias,
            features=torch.cat([completion, prompt], dim=-1),
            lengths=lengths,
        )


def fit_bag(
    data: Training, scales: Scales, folds: Sequence[int], vocabulary: int
) -> tuple[Bag, Estimate]:
    """Fit a bag to all samples; return it, and what it says of each when fitted without its fold.

    Args:
        data: N samples.
        scales: the scales to estimate on.
        folds: N, the number of each sample's fold.
        vocabulary: token ids.
    """
    inputs, rarity, scale = _inputs(data.samples, vocabulary)
    labels = scales.samples.fit_labels(data.labels)
    penalties = best_penalties(inputs, labels, _PENALTIES, data.families)
    whole = fit_ridge(inputs, labels, penalties)
    bag = Bag(vocabulary, labels.shape[1])
    _set(bag, _parts(whole, vocabulary), rarity * scale)
    bag.lengths.weight.copy_(torch.tensor(_LENGTH_WEIGHT * np.atleast_2d(whole.coef_)[:, -2:]))
    bag.lengths.bias.copy_(torch.tensor(np.atleast_1d(whole.intercept_)))
    if scales.tokens is not None:
        _fit_tokens(bag, data, scales.tokens, vocabulary)

    estimates, features = np.empty_like(labels), np.empty((len(labels), 2 * labels.shape[1]))
    number = np.array(folds)
    for fold in set(folds):
        kept, out = np.flatnonzero(number != fold), np.flatnonzero(number == fold)
        rest = fit_ridge(inputs[kept], labels[kept], penalties)
        estimates[out] = rest.predict(inputs[out]).reshape(len(out), -1)
        half = (inputs.shape[1] - 2) // 2
        weight = np.atleast_2d(rest.coef_)
        features[out] = np.concatenate(
            [
                inputs[out][:, :half] @ weight[:, :half].T,
                inputs[out][:, half:-2] @ weight[:, half:-2].T,
            ],
            axis=1,
        )
    found = Estimate(
        samples=torch.tensor(estimates).float(),
        tokens=torch.empty(0),
        features=torch.tensor(features).float(),
        lengths=_lengths(data.samples),
    )
    return bag.eval(), found


def _inputs(samples: Sequence[Encoded], vocabulary: int) -> tuple[Any, Floats, float]:
    """Weighted counts [N, 2 (V + pairs) + 2], sparse: of completion, of prompt, and the lengths.

    Returns:
        them; how rare each count is, and what all counts were divided by.
    """
    from scipy.sparse import csr_array, hstack

    width = vocabulary + _PAIRS
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    shares: list[Floats] = []
    for row, sample in enumerate(samples):
        start = sample.completion_start
        grams = _grams(sample, vocabulary)
        for part, found in enumerate((grams[start:], grams[:start])):
            rows.append(np.full(found.size, row))
            columns.append(found.ravel() + part * width)
            shares.append(np.full(found.size, 1 / np.sqrt(max(1, len(found)))))
    place = np.concatenate(rows), np.concatenate(columns)
    counts = csr_array((np.concatenate(shares), place), shape=(len(samples), 2 * width))
    counts.sum_duplicates()
    holding = np.bincount(counts.indices, minlength=2 * width)
    rarity = np.log((1 + len(samples)) / (1 + holding)) + 1
    counts = counts.multiply(rarity).tocsr()
    scale = 1 / np.sqrt(counts.multiply(counts).sum(axis=1).mean())
    lengths = _LENGTH_WEIGHT * _lengths(samples).double().numpy()
    return hstack([counts * scale, csr_array(lengths)]).tocsr(), rarity, float(scale)


def _grams(sample: Encoded, vocabulary: int) -> NDArray[np.int64]:
    """Each token's id and, past the vocabulary, its pair's bucket: [T, 2]."""
    ids = np.array(sample.input_ids, dtype=np.int64)
    pairs = hash_pairs(np.concatenate([[0], ids[:-1]]), ids, _PAIRS)
    return np.stack([ids, vocabulary + pairs], axis=1)


def _lengths(samples: Sequence[Encoded]) -> Tensor:
    counts = [[sample.completion_length, sample.completion_start] for sample in samples]
    completion, prompt = torch.tensor(counts, dtype=torch.float32).split(1, dim=1)
    return log_lengths(completion, prompt)


def _parts(ridge: Any, vocabulary: int) -> Floats:
    """Weights [2, V + pairs, K] of completion and prompt."""
    weight = np.atleast_2d(ridge.coef_)[:, :-2]
    return weight.reshape(len(weight), 2, vocabulary + _PAIRS).transpose(1, 2, 0)


def _set(bag: Bag, parts: Floats, factor: Floats) -> None:
    """Write the weights of completion and prompt, each times its count's factor."""
    weighted = parts * factor.reshape(2, -1, 1)
    both = torch.tensor(np.concatenate(list(weighted), axis=1)).float()
    vocabulary, width = bag.tokens.num_embeddings, both.shape[1]
    bag.tokens.weight.zero_()
    bag.pairs.weight.zero_()
    bag.tokens.weight[:, :width] = both[:vocabulary]
    bag.pairs.weight[:, :width] = both[vocabulary:]


def _fit_tokens(bag: Bag, data: Training, scale: FittedScale, vocabulary: int) -> None:
    """Set each token's own value, by a ridge regression on which token and which pair it is."""
    from scipy.sparse import csr_array

    grams = np.concatenate(
        [
            _grams(sample, vocabulary)[sample.completion_start if data.split == "loss" else 0 :]
            for sample in data.samples
        ]
    )
    values = torch.tensor(np.concatenate(data.token_values), dtype=torch.float32)
    wanted = scale.fit(values).double().numpy()
    ends = np.arange(0, grams.size + 1, 2)
    shape = len(grams), vocabulary + _PAIRS
    which = csr_array((np.ones(grams.size), grams.ravel(), ends), shape=shape)
    ridge = fit_ridge(which, wanted, _TOKEN_PENALTY)
    weight = torch.tensor(np.atleast_2d(ridge.coef_).T).float()
    bag.tokens.weight[:, -weight.shape[1] :] = weight[:vocabulary]
    bag.pairs.weight[:, -weight.shape[1] :] = weight[vocabulary:]
    bag.token_bias.copy_(torch.tensor(np.atleast_1d(ridge.intercept_)))
