"""The probe finds in closed form what labels have in common with what a backbone reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from alinfik.distill.backbones import Reading, build_backbone
from alinfik.distill.batches import pad
from alinfik.distill.calibrate import FittedScale, Scales
from alinfik.distill.directions import Kernel, factorised
from alinfik.distill.encoding import Encoded
from alinfik.distill.llm import load_fast_tokenizer, load_llm
from alinfik.distill.probe import cross_fit, fit_probes
from alinfik.distill.proxy import Proxy
from alinfik.distill.training_data import Training
from alinfik.distill.values import Sums, TokenSplit
from alinfik.v1 import Encoding
from tests.distill.tiny_llm import VOCABULARY, llama, write_llm

_SAMPLES = 300
_FOLDS = [index % 5 for index in range(_SAMPLES)]


def _proxy(directory: Path, family: str) -> Proxy:
    torch.manual_seed(0)
    model = load_llm(str(directory), dtype="float32").model
    gradient = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    kernel = Kernel(factorised([gradient], "tensor"), "tensor", "mean")
    llm = Reading(load_fast_tokenizer(str(directory)).backend_tokenizer, Encoding())
    backbone, _ = build_backbone(family, str(directory), llm, kernel)
    assert backbone is not None
    return Proxy(backbone, 1)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("llm"), llama(tied=True))


@pytest.fixture(scope="module")
def proxy(llm: Path) -> Proxy:
    return _proxy(llm, "layers:3")


@pytest.fixture(scope="module")
def data(proxy: Proxy) -> Training:
    """Texts of few words each, and a direction of their states' mean, tails and all."""
    draw = np.random.default_rng(0)
    samples = [
        Encoded(draw.choice(draw.integers(3, VOCABULARY, 4), 12).tolist(), 4, truncated=False)
        for _ in range(_SAMPLES)
    ]
    batch = pad(samples, list(range(_SAMPLES)), 0)
    inputs = batch.input_ids, batch.attention_mask, batch.completion_mask
    with torch.no_grad():
        states = proxy.pooled(proxy.backbone(*inputs), *inputs[1:]).mean
    labels = states[:, :16].sum(dim=1, keepdim=True).double().numpy() ** 3
    alone = [str(number) for number in range(_SAMPLES)]
    return Training(samples, labels, alone, [], "position")


def test_a_sample_s_estimate_across_folds_is_not_its_own_label_s(
    proxy: Proxy, data: Training
) -> None:
    def found(labels: np.ndarray) -> np.ndarray:
        changed = Training(data.samples, labels, data.families, [], "position")
        scales = Scales(FittedScale(data.labels), None)
        sums = Sums("position", "mean")
        return cross_fit(proxy, changed, scales, _FOLDS, sums, 512, 0).samples.numpy()

    before = found(data.labels)
    assert spearmanr(before[:, 0], data.labels[:, 0]).statistic > 0.9
    changed = data.labels.copy()
    changed[7] += 100
    moved = np.abs(found(changed) - before)[:, 0]
    assert moved[7] < 0.2 * np.abs(before).mean()


def test_the_proxy_says_what_the_regressions_do(proxy: Proxy, data: Training) -> None:
    fit_probes(proxy, data, Scales(FittedScale(data.labels), None), 512, 0)
    batch = pad(data.samples, list(range(_SAMPLES)), 0)
    with torch.no_grad():
        found = proxy(batch.input_ids, batch.attention_mask, batch.completion_mask).samples
    assert spearmanr(found[:, 0], data.labels[:, 0]).statistic > 0.9


@pytest.mark.parametrize("split", ["position", "loss"])
def test_products_of_gradients_tell_labels_in_their_unit(
    llm: Path, data: Training, split: TokenSplit
) -> None:
    """Labels that are three times what one parameter's products are, and a number."""
    proxy, sums = _proxy(llm, "gradients:2"), Sums(split, "mean")
    batch = pad(data.samples, list(range(_SAMPLES)), 0)
    inputs = batch.input_ids, batch.attention_mask, batch.completion_mask
    with torch.no_grad():
        one = proxy.backbone(*inputs).products[..., 5]
    labels = 3 * one.sum(dim=1).double().numpy() + 1
    counted = sums.counted(*inputs[1:]).bool()
    values = [row[mask].double().numpy() for row, mask in zip(one, counted, strict=True)]
    taught = Training(data.samples, labels, data.families, values, split)
    scales = Scales(FittedScale(labels), FittedScale(np.concatenate(values)))
    found = cross_fit(proxy, taught, scales, _FOLDS, sums, 512, 0)
    assert found.labels is not None
    near = {"rtol": 0.02, "atol": 0.2 * labels.std()}
    np.testing.assert_allclose(found.labels.numpy(), labels, **near)
    with torch.no_grad():
        estimate = proxy(*inputs)
    torch.testing.assert_close(estimate.labels, found.labels, **near)
    # Of positions they tell values too; by loss, a regression on states does.
    assert proxy.tells_tokens == (split == "position")
    if proxy.tells_tokens:
        torch.testing.assert_close(
            estimate.tokens.mean(dim=1) + proxy.products.bias, estimate.labels
        )


def test_products_are_read_as_they_are_served(
    llm: Path, data: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, whatever the processor multiplies: rounding is much of what they err by."""

    def said(dtype: torch.dtype) -> np.ndarray:
        monkeypatch.setattr("alinfik.distill.probe.choose_dtype", lambda *_: dtype)
        scales, sums = Scales(FittedScale(data.labels), None), Sums("position", "mean")
        proxy = _proxy(llm, "gradients:2")
        found = cross_fit(proxy, data, scales, _FOLDS, sums, 512, 0)
        assert found.labels is not None
        return found.labels.numpy()

    np.testing.assert_array_equal(said(torch.bfloat16), said(torch.float32))
