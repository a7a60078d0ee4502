"""Networks learn token values from positions, and say of each sample what they did not see."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from alinfik.distill import token_networks
from alinfik.distill.encoding import Encoded
from alinfik.distill.ranks import spearman
from alinfik.distill.token_networks import TokenNetworks, fit_token_networks
from alinfik.distill.training_data import Training
from alinfik.distill.values import Sums

INPUTS, SAMPLES, FOLDS = 6, 240, 3


@pytest.fixture(autouse=True)
def _few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_networks, "_EPOCHS", 30)
    monkeypatch.setattr(token_networks, "_HIDDEN", 32)
    monkeypatch.setattr(token_networks, "_DROPOUT", 0.0)


def positions() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [
        draw.normal(size=(draw.integers(3, 9), INPUTS)).astype(np.float16) for _ in range(SAMPLES)
    ]


def training(found: list[np.ndarray], reduction: str, unit: float = 1.0) -> Training:
    """Values that are products of two inputs, which no line through one tells."""
    values = [unit * (one[:, :1] * one[:, 1:2]).astype(np.float64) for one in found]
    labels = [one.mean(axis=0) if reduction == "mean" else one.sum(axis=0) for one in values]
    samples = [Encoded([3] * len(one), 1, truncated=False) for one in found]
    alone = [str(number) for number in range(SAMPLES)]
    return Training(samples, np.array(labels), alone, values, "position")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("unit", [1e-4, 1e3])
def test_networks_learn_what_is_no_sum_of_inputs(reduction, unit) -> None:
    found = positions()
    data = training(found, reduction, unit)
    folds = [number % FOLDS for number in range(SAMPLES)]
    cpu = torch.device("cpu")
    networks, said = fit_token_networks(found, data, Sums("position", reduction), folds, cpu)
    assert spearman(said[:, 0].numpy(), data.labels[:, 0]) > 0.7
    with torch.no_grad():
        values = networks(torch.tensor(found[0]).float().unsqueeze(0))
    assert np.corrcoef(values[0, :, 0], data.token_values[0][:, 0])[0, 1] > 0.7


def test_a_sample_s_label_is_said_by_the_network_that_did_not_see_it() -> None:
    found = positions()
    data = training(found, "mean")
    folds = [number % FOLDS for number in range(SAMPLES)]
    sums, cpu = Sums("position", "mean"), torch.device("cpu")
    networks, said = fit_token_networks(found, data, sums, folds, cpu)
    for number in (0, 1, 2, 100):
        with torch.no_grad():
            apart = networks.apart(torch.tensor(found[number]).float()).mean(dim=1)
        torch.testing.assert_close(said[number], apart[folds[number]])
    # Were its own values what they are not, it would be said the same of.
    changed = [-10 * one if number == 4 else one for number, one in enumerate(data.token_values)]
    labels = data.labels.copy()
    labels[4] *= -10
    other = replace(data, token_values=changed, labels=labels)
    _, after = fit_token_networks(found, other, sums, folds, cpu)
    assert abs(after[4] - said[4]) < 0.2 * data.labels.std()


def test_sums_by_loss_read_the_position_before_and_count_completions_alone() -> None:
    sums = Sums("loss", "sum")
    told = torch.arange(1.0, 4.0).reshape(1, 3, 1)
    assert sums.told(told).flatten().tolist() == [0, 1, 2]
    attention, completion = torch.ones(1, 3, dtype=torch.int64), torch.tensor([[0, 1, 1]])
    assert sums.reduced(told, sums.counted(attention, completion)).tolist() == [[5]]
    networks = TokenNetworks(1, 1, 2, sums).eval()
    torch.nn.init.ones_(networks.straight.weight)
    assert networks(told).flatten().tolist() == [0, 1, 2]


def test_sums_by_position_count_all_but_padding() -> None:
    sums = Sums("position", "mean")
    told = torch.arange(1.0, 4.0).reshape(1, 3, 1)
    assert sums.told(told) is told
    attention, completion = torch.tensor([[1, 1, 0]]), torch.tensor([[0, 1, 0]])
    assert sums.reduced(told, sums.counted(attention, completion)).tolist() == [[1.5]]
