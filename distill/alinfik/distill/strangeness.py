"""Says how unlike the labelled texts a text is: the out-of-distribution score.

In: token ids of texts that the proxy knows, and of the same with their words shuffled. Out: a
module that gives every sample a score, part of the exported graph. Knows nothing of the proxy,
whose own states are what strange text leads astray.

A text is strange by its tokens (another language, base64) or by their order (words at random). For
the first, its mean surprise under the known texts' unigram counts. For the second, a logistic
regression that tells known texts from shuffled ones (outlier exposure, Hendrycks et al. 2019,
arXiv 1812.04606) by n-gram statistics: how surprising pairs are, alone and against their parts
(absolute discounting, Ney et al. 1994), and how many pairs and triples are new. The score is the
larger of the two, each in standard deviations above the mean known text.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alinfik.distill.batches import batched_by_length
from alinfik.distill.encoding import Encoded
from alinfik.distill.pairs import Ids, hash_pairs

Floats = NDArray[np.float64]

# Pairs and triples of ids are counted under a hash.
_BUCKETS = 1 << 18
# What is taken off each pair's count, and how many kinds of follower a token is thought to have.
_DISCOUNT = 0.75
_FOLLOWERS = 40.0
_UNSEEN_COUNT = 0.5
# A text is judged by counts that it is not part of.
_FOLDS = 5


class NgramStatistics(nn.Module):
    """Describes token sequences by how usual they are among known ones.

    Args:
        samples: the known ones.
        vocabulary: the number of token ids.
    """

    def __init__(self, samples: Sequence[Encoded], vocabulary: int) -> None:
        super().__init__()
        known = [np.array(sample.input_ids, dtype=np.int64) for sample in samples]
        counts = np.bincount(np.concatenate(known), minlength=vocabulary) + _UNSEEN_COUNT
        contexts = np.bincount(np.concatenate([ids[:-1] for ids in known]), minlength=vocabulary)
        pairs = np.concatenate([_pairs(ids[:-1], ids[1:]) for ids in known])
        triples = np.concatenate([_pairs(_pairs(i[:-2], i[1:-1]), i[2:]) for i in known])
        self.surprise = nn.Buffer(torch.tensor(-np.log(counts / counts.sum())).float())
        self.contexts = nn.Buffer(torch.tensor(contexts).float())
        self.pairs = nn.Buffer(torch.tensor(np.bincount(pairs, minlength=_BUCKETS)).float())
        self.triples = nn.Buffer(torch.tensor(np.bincount(triples, minlength=_BUCKETS)).float())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return statistics [B, 9] of ids [B, T] under a mask [B, T]; the first is the surprise."""
        mask = attention_mask.to(torch.float32)
        before, here = input_ids[:, :-1], input_ids[:, 1:]
        surprise, followed = self.surprise[input_ids], self.contexts[before]
        pairs = _pairs(before, here)
        triples = _pairs(pairs[:, :-1], here[:, 1:])
        count = self.pairs[pairs]
        backed_off = _DISCOUNT * followed.clamp(max=_FOLLOWERS) + 1
        probability = (count - _DISCOUNT).clamp(min=0) + backed_off * (-surprise[:, 1:]).exp()
        pair_surprise = (followed + 1).log() - probability.log()
        lengths = mask.sum(dim=1)
        statistics = [
            _mean(surprise, mask),
            _mean(pair_surprise, mask[:, 1:]),
            _mean(pair_surprise - surprise[:, 1:], mask[:, 1:]),
            _mean((count == 0).float(), mask[:, 1:]),
            _mean((self.triples[triples] == 0).float(), mask[:, 2:]),
            _mean(followed.log1p(), mask[:, 1:]),
            lengths.rsqrt(),
            _deviation(surprise, mask),
            _deviation(pair_surprise - surprise[:, 1:], mask[:, 1:]),
        ]
        return torch.stack(statistics, dim=1)


class Strangeness(nn.Module):
    """The out-of-distribution score.

    Args:
        known: samples that the proxy knows, N.
        shuffled: the same samples with their words in random order.
        vocabulary: the number of token ids.
        pad_id: fills batches up.
    """

    def __init__(
        self,
        known: Sequence[Encoded],
        shuffled: Sequence[Encoded],
        vocabulary: int,
        pad_id: int,
    ) -> None:
        super().__init__()
        # Here, since they take a second to load and labelling does not need them.
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        self.statistics = NgramStatistics(known, vocabulary)
        usual, odd = _judged_by_others(known, shuffled, vocabulary, pad_id)
        scaler = StandardScaler().fit(np.concatenate([usual, odd]))
        is_odd = np.arange(len(usual) + len(odd)) >= len(usual)
        both = scaler.transform(np.concatenate([usual, odd]))
        disorder = LogisticRegression(max_iter=1000).fit(both, is_odd).coef_[0] / scaler.scale_
        # Two directions in the space of the statistics: the surprise alone, and disorder.
        directions = np.stack([np.eye(len(disorder))[0], disorder], axis=1)
        scores = usual @ directions
        deviation = np.maximum(scores.std(axis=0), 1e-6)
        self.directions = nn.Buffer(torch.tensor(directions / deviation).float())
        self.centre = nn.Buffer(torch.tensor(scores.mean(axis=0) / deviation).float())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores [B]; about 0 for a usual text, above 2 for a strange one."""
        scores = self.statistics(input_ids, attention_mask) @ self.directions - self.centre
        return scores.amax(dim=1)


def _judged_by_others(
    known: Sequence[Encoded], shuffled: Sequence[Encoded], vocabulary: int, pad_id: int
) -> tuple[Floats, Floats]:
    """Return statistics of all samples [N, F] by counts of other folds, known and shuffled."""
    usual: list[Floats] = []
    odd: list[Floats] = []
    for fold in range(_FOLDS):
        others = [sample for index, sample in enumerate(known) if index % _FOLDS != fold]
        statistics = NgramStatistics(others, vocabulary)
        usual.append(_describe(statistics, known[fold::_FOLDS], pad_id))
        odd.append(_describe(statistics, shuffled[fold::_FOLDS], pad_id))
    return np.concatenate(usual), np.concatenate(odd)


def _describe(statistics: NgramStatistics, samples: Sequence[Encoded], pad_id: int) -> Floats:
    batches = batched_by_length(samples, padded_tokens=1 << 15, pad_id=pad_id)
    found = [statistics(batch.input_ids, batch.attention_mask) for batch in batches]
    return torch.cat(found).double().numpy()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _deviation(values: Tensor, mask: Tensor) -> Tensor:
    away = values - _mean(values, mask).unsqueeze(-1)
    return _mean(away.square(), mask).sqrt()


def _pairs(first: Ids, second: Ids) -> Ids:
    return hash_pairs(first, second, _BUCKETS)
