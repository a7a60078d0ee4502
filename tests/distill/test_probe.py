"""The probe finds in closed form what labels have in common with what a backbone reads."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from alinfik.distill.backbones import AllLayers, Reading, build_backbone
from alinfik.distill.batches import pad
from alinfik.distill.calibrate import FittedScale, Scales
from alinfik.distill.encoding import Encoded
from alinfik.distill.llm import load_fast_tokenizer
from alinfik.distill.probe import cross_fit, fit_probes
from alinfik.distill.proxy import Proxy
from alinfik.distill.training_data import Training
from alinfik.distill.values import Sums, TokenSplit
from alinfik.v1 import Encoding
from tests.distill.tiny_llm import VOCABULARY, llama, write_llm

_SAMPLES = 300
SUMS = Sums("position", "mean")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Proxy:
    torch.manual_seed(0)
    directory = write_llm(tmp_path_factory.mktemp("llm"), llama(tied=True))
    llm = Reading(load_fast_tokenizer(str(directory)).backend_tokenizer, Encoding())
    backbone, _ = build_backbone("layers:3", str(directory), llm)
    assert isinstance(backbone, AllLayers)
    return Proxy(backbone, 1)


@pytest.fixture(scope="module")
def data(proxy: Proxy) -> Training:
    """Texts of few words each, and the inner products of their gradients with one of them."""
    draw = np.random.default_rng(0)
    samples = [
        Encoded(draw.choice(draw.integers(3, VOCABULARY, 4), 12).tolist(), 4, truncated=False)
        for _ in range(_SAMPLES)
    ]
    batch = pad(samples, list(range(_SAMPLES)), 0)
    with torch.no_grad():
        read = proxy.backbone(batch.input_ids, batch.attention_mask, batch.completion_mask)
    labels = (read.gradients @ read.gradients[0]).double().numpy()[:, None]
    alone = [str(number) for number in range(_SAMPLES)]
    return Training(samples, labels, alone, [], "position")


def _found(proxy: Proxy, data: Training) -> tuple[float, np.ndarray]:
    """Rank correlation with labels across folds, and the estimates."""
    scales = Scales(FittedScale(data.labels), None)
    folds = [index % 5 for index in range(_SAMPLES)]
    estimate = cross_fit(proxy, data, scales, folds, SUMS, 512, 0).samples.numpy()
    return float(spearmanr(estimate[:, 0], data.labels[:, 0]).statistic), estimate


def test_what_counts_for_more_is_learnt_from_fewer_labels(proxy: Proxy, data: Training) -> None:
    gradients = len(proxy.backbone.gradient_importance)
    known = proxy.importance
    proxy.importance = known.clone()
    proxy.importance[-gradients:] *= 1e-6
    without, _ = _found(proxy, data)
    proxy.importance[-gradients:] = known[-gradients:]
    as_it_is, _ = _found(proxy, data)
    proxy.importance = known
    assert as_it_is > without + 0.05


def test_a_sample_s_estimate_across_folds_is_not_its_own_label_s(
    proxy: Proxy, data: Training
) -> None:
    _, estimate = _found(proxy, data)
    changed = data.labels.copy()
    changed[7] += 100
    _, after = _found(proxy, Training(data.samples, changed, data.families, [], "position"))
    # The scale that all share moves a little.
    moved = np.abs(after - estimate)[:, 0]
    assert moved[7] < 0.2 * np.abs(estimate).mean()


def test_the_proxy_says_what_the_regressions_do(proxy: Proxy, data: Training) -> None:
    fit_probes(proxy, data, Scales(FittedScale(data.labels), None), 512, 0)
    batch = pad(data.samples, list(range(_SAMPLES)), 0)
    with torch.no_grad():
        found = proxy(batch.input_ids, batch.attention_mask, batch.completion_mask).samples
    assert spearmanr(found[:, 0], data.labels[:, 0]).statistic > 0.9


@pytest.mark.parametrize("split", ["position", "loss"])
def test_token_values_tell_labels_too(proxy: Proxy, data: Training, split: TokenSplit) -> None:
    """Values that are a number of the position's error and one of its state."""
    sums = Sums(split, "mean")
    ids = pad(data.samples, list(range(_SAMPLES)), 0)
    batch = ids.input_ids, ids.attention_mask, ids.completion_mask
    with torch.no_grad():
        told = sums.told(proxy.backbone(*batch).positions)
    counted = sums.counted(ids.attention_mask, ids.completion_mask).bool()
    third = proxy.backbone.sketch.projected
    shares = told[..., :1] + told[..., third : third + 1]
    values = [one[mask].double().numpy() for one, mask in zip(shares, counted, strict=True)]
    labels = np.stack([one.mean(axis=0) for one in values])
    taught = Training(data.samples, labels, data.families, values, split)
    scales = Scales(FittedScale(labels), FittedScale(np.concatenate(values)))
    found = cross_fit(proxy, taught, scales, [n % 5 for n in range(_SAMPLES)], sums, 512, 0)
    networks = proxy.token_networks
    with torch.no_grad():
        estimate = proxy(*batch)
    proxy.token_networks = None
    assert networks is not None
    assert spearmanr(found.labels[:, 0], labels[:, 0]).statistic > 0.6
    # They say the same where the proxy asks them.
    mean = sums.reduced(estimate.tokens, counted)
    torch.testing.assert_close(estimate.labels, mean)
    assert spearmanr(estimate.labels[:, 0], labels[:, 0]).statistic > 0.6
