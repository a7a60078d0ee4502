from pathlib import Path

import numpy as np
import pytest

from alinfik.server.bundle import Bundle
from alinfik.server.encode import Encoded
from alinfik.server.rejection import Rejection
from alinfik.server.runtime import Output
from alinfik.server.valuation import Valuer
from alinfik.v1 import Valuation
from tests.tiny_bundle import THRESHOLD, read_manifest

ROW = Encoded(np.array([1, 2, 3]), 1, truncated=True)


def valuer(bundle: Path, quantiles: list[float]) -> Valuer:
    manifest = read_manifest(bundle)
    for target in manifest.targets:
        target.value_quantiles[:] = quantiles
    return Valuer(Bundle(bundle, manifest))


def output(values: list[list[float]], ood: list[float]) -> Output:
    value = np.array(values, dtype=np.float32)
    return Output(value, value - 1, value + 1, np.array(ood, dtype=np.float32))


@pytest.mark.parametrize(
    ("value", "percentile"),
    [(-1.0, 0), (0.0, 0), (0.25, 0.25), (50.5, 50.5), (99.0, 99), (100.0, 100), (1e9, 100)],
)
def test_percentile_is_the_share_of_the_pool_that_is_lower(
    tiny_bundle: Path, value: float, percentile: float
) -> None:
    percentiles = valuer(tiny_bundle, [float(q) for q in range(101)]).percentiles
    assert percentiles(np.array([[value, value]], np.float32)).tolist() == [[percentile] * 2]


def test_a_value_that_much_of_the_pool_shares_is_above_only_what_is_lower(
    tiny_bundle: Path,
) -> None:
    # Half of the pool has the value 7.
    quantiles = [*map(float, range(-25, 0)), *([7.0] * 51), *map(float, range(8, 33))]
    percentiles = valuer(tiny_bundle, quantiles).percentiles
    assert percentiles(np.array([[7.0, 7.5]], np.float32)).tolist() == [[25.0, 75.5]]


def test_each_row_keeps_its_own_numbers(tiny_bundle: Path) -> None:
    numbers = output([[1, 2], [3, 4]], [THRESHOLD, THRESHOLD + 1])
    first, second = valuer(tiny_bundle, [0.0] * 101).valuations([ROW, ROW], numbers)
    assert isinstance(first, Valuation)
    assert isinstance(second, Valuation)
    assert [(v.target, v.value, v.lower, v.upper) for v in second.values] == [
        ("gsm8k", 3, 2, 4),
        ("mbpp", 4, 3, 5),
    ]
    assert (first.token_count, first.truncated) == (3, True)
    assert (first.out_of_distribution, second.out_of_distribution) == (False, True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_a_rejection_of_its_sample_alone(
    tiny_bundle: Path, bad: float
) -> None:
    numbers = output([[1, bad], [1, 1], [1, 1]], [0, 0, bad])
    valuations = valuer(tiny_bundle, [0.0] * 101).valuations([ROW] * 3, numbers)
    assert [isinstance(valuation, Rejection) for valuation in valuations] == [True, False, True]
