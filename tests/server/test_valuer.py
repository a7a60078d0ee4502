from pathlib import Path

import numpy as np
import pytest

from alinfik.server.bundle import Bundle
from alinfik.server.encode import Encoded
from alinfik.server.rejection import Rejection
from alinfik.server.runtime import Output
from alinfik.server.valuation import Estimate, valuation
from alinfik.server.valuer import Valuer
from alinfik.v1 import Sample, TargetValue
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


def test_each_row_keeps_its_own_numbers_and_the_name_of_its_sample(tiny_bundle: Path) -> None:
    numbers = output([[1, 2], [3, 4]], [THRESHOLD, THRESHOLD + 1])
    first, second = valuer(tiny_bundle, [float(q) for q in range(101)]).estimates(
        [ROW, ROW], numbers
    )
    assert isinstance(first, Estimate)
    assert isinstance(second, Estimate)
    named = valuation(Sample(id="1", provider="p", completion="a"), second)
    assert (named.sample_id, named.provider) == ("1", "p")
    assert named.bundle_id == read_manifest(tiny_bundle).bundle_id
    gsm8k = TargetValue(target="gsm8k", value=3, lower=2, upper=4, percentile=3)
    mbpp = TargetValue(target="mbpp", value=4, lower=3, upper=5, percentile=4)
    assert list(named.values) == [gsm8k, mbpp]
    assert list(valuation(Sample(), second, ["mbpp"]).values) == [mbpp]
    assert (named.token_count, named.truncated) == (3, True)
    assert named.out_of_distribution_score == THRESHOLD + 1
    assert (first.out_of_distribution, named.out_of_distribution) == (False, True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_a_rejection_of_its_sample_alone(
    tiny_bundle: Path, bad: float
) -> None:
    numbers = output([[1, bad], [1, 1], [1, 1]], [0, 0, bad])
    estimates = valuer(tiny_bundle, [0.0] * 101).estimates([ROW] * 3, numbers)
    assert [isinstance(estimate, Rejection) for estimate in estimates] == [True, False, True]
