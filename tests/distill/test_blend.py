from dataclasses import replace

import numpy as np
import torch
from torch import nn

from alinfik.distill.bag import fit_bag
from alinfik.distill.batches import pad
from alinfik.distill.blend import blend
from alinfik.distill.fit import learn_scales
from alinfik.distill.proxy import Estimate, log_lengths
from alinfik.distill.ranks import spearman
from tests.distill.test_bag import SAMPLES, VOCABULARY, training


class Lengths(nn.Module):
    """A network that knows how long a completion is, and no more."""

    def forward(self, input_ids, attention_mask, completion_mask):
        count = completion_mask.sum(dim=1, keepdim=True).float()
        lengths = log_lengths(count, attention_mask.sum(dim=1, keepdim=True) - count)
        samples = lengths[:, :1].repeat(1, 2)
        return Estimate(samples, torch.zeros(*input_ids.shape, 2), samples, lengths)


def test_network_and_words_together_tell_what_neither_does_alone() -> None:
    """Labels of words and of length; for the second target, of words alone."""
    data = training()
    everything = pad(data.samples, range(SAMPLES), 0)
    batch = everything.input_ids, everything.attention_mask, everything.completion_mask
    network = Lengths()
    length = network(*batch).samples.numpy()[:, 0]
    labels = data.labels / data.labels.std(axis=0)
    labels[:, 0] += 3 * (length - length.mean()) / length.std()
    data = replace(data, labels=labels, token_values=[])
    scales = learn_scales(data)
    words, found = fit_bag(data, scales, [n % 5 for n in range(SAMPLES)], VOCABULARY)
    fitted = scales.samples.fit_labels(labels)
    said = network(*batch)
    said = replace(said, samples=said.samples - said.samples.mean(dim=0))
    both, together = blend(network, said, words, found.samples, scales.samples, fitted)

    def agreement(samples: torch.Tensor) -> list[float]:
        return [spearman(samples[:, k].numpy(), labels[:, k]) for k in range(2)]

    alone = np.maximum(agreement(said.samples), agreement(found.samples))
    assert agreement(together.samples)[0] > alone[0]
    assert agreement(together.samples)[1] > alone[1] - 0.01
    assert both.shares.min() >= 0
    # The module says for a batch what it is made of, and keeps the network's tokens and features.
    module, parts = both(*batch), (network(*batch).samples, words(*batch).samples)
    wanted = sum(part * share for part, share in zip(parts, both.shares, strict=True))
    torch.testing.assert_close(module.samples, wanted)
    torch.testing.assert_close(module.tokens, network(*batch).tokens)


class Tokens(Lengths):
    """The same, with labels that token values of its own add up to."""

    def __init__(self, labels: torch.Tensor) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, input_ids, attention_mask, completion_mask):
        found = super().forward(input_ids, attention_mask, completion_mask)
        return replace(found, labels=self.labels)


def test_what_token_values_add_up_to_has_a_share_of_its_own() -> None:
    data = replace(training(), token_values=[])
    everything = pad(data.samples, range(SAMPLES), 0)
    batch = everything.input_ids, everything.attention_mask, everything.completion_mask
    scales = learn_scales(data)
    words, found = fit_bag(data, scales, [n % 5 for n in range(SAMPLES)], VOCABULARY)
    # In the label's unit, on whatever scale that is.
    network = Tokens(torch.tensor(data.labels).float())
    fitted = scales.samples.fit_labels(data.labels)
    said = network(*batch)
    both, together = blend(network, said, words, found.samples, scales.samples, fitted)
    assert both.shares.shape == (3, 2)
    assert (both.shares[2] > 0.9).all()
    torch.testing.assert_close(together.samples, torch.tensor(fitted).float(), rtol=0.1, atol=0.1)
    fresh = both(*batch).samples
    wanted = [said.samples, words(*batch).samples, scales.samples.fit(said.labels)]
    summed = sum(part * share for part, share in zip(wanted, both.shares, strict=True))
    torch.testing.assert_close(fresh, summed)
