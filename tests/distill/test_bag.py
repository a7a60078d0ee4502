import numpy as np
import torch

from alinfik.distill.bag import fit_bag
from alinfik.distill.batches import pad
from alinfik.distill.encoding import Encoded
from alinfik.distill.fit import learn_scales
from alinfik.distill.ranks import spearman
from alinfik.distill.training_data import Training

VOCABULARY = 50
SAMPLES = 200


def _alone(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def training() -> Training:
    """Labels that are told by the completion's tokens, and by nothing of the prompt."""
    random = np.random.default_rng(0)
    worth = random.normal(size=(VOCABULARY, 2))
    # One that stands out.
    worth[3] = 5
    samples, labels, token_values = [], [], []
    for _ in range(SAMPLES):
        ids = random.integers(2, VOCABULARY, random.integers(8, 20)).tolist()
        start = int(random.integers(1, 5))
        samples.append(Encoded(input_ids=ids, completion_start=start, truncated=False))
        own = worth[ids[start:]]
        token_values.append(own)
        labels.append(own.sum(axis=0) / np.sqrt(len(own)) + random.normal(size=2) * 0.01)
    return Training(samples, np.array(labels), _alone(SAMPLES), token_values, "loss")


def test_the_module_says_what_the_regression_does_for_any_batch() -> None:
    data = training()
    scales = learn_scales(data)
    bag, _ = fit_bag(data, scales, [0, 1] * (SAMPLES // 2), VOCABULARY)
    alone, together = [], pad(data.samples, range(SAMPLES), 0)
    for index in range(SAMPLES):
        one = pad(data.samples, [index], 0)
        alone.append(bag(one.input_ids, one.attention_mask, one.completion_mask).samples)
    batch = bag(together.input_ids, together.attention_mask, together.completion_mask)
    torch.testing.assert_close(torch.cat(alone), batch.samples, rtol=1e-4, atol=1e-5)
    wanted = scales.samples.fit(torch.tensor(data.labels, dtype=torch.float32))
    for target in range(2):
        assert spearman(batch.samples[:, target].numpy(), wanted[:, target].numpy()) > 0.8
    # A token's own value is told too.
    mask = together.completion_mask.bool()
    values = batch.tokens[mask][:, 0]
    is_three = together.input_ids[mask] == 3
    assert values[is_three].min() > values[~is_three].median()


def test_what_is_said_across_folds_does_not_know_the_fold_s_own_labels() -> None:
    """With labels that nothing tells, an estimate that knew its own would agree with them."""
    random = np.random.default_rng(1)
    noise = training()
    noise = Training(noise.samples, random.normal(size=(SAMPLES, 2)), noise.families, [], "loss")
    folds = [index % 5 for index in range(SAMPLES)]
    bag, across = fit_bag(noise, learn_scales(noise), folds, VOCABULARY)
    everything = pad(noise.samples, range(SAMPLES), 0)
    within = bag(everything.input_ids, everything.attention_mask, everything.completion_mask)
    labels = noise.labels[:, 0]
    assert abs(spearman(across.samples[:, 0].numpy(), labels)) < 0.25
    assert spearman(within.samples[:, 0].numpy(), labels) >= spearman(
        across.samples[:, 0].numpy(), labels
    )
    known = training()
    _, told = fit_bag(known, learn_scales(known), folds, VOCABULARY)
    assert spearman(told.samples[:, 0].numpy(), known.labels[:, 0]) > 0.5
