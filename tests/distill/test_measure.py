import numpy as np
import pytest

from alinfik.distill.measure import Predictions, TargetPredictions, agreement, measure_target
from alinfik.distill.ranks import spearman


def predictions(value: np.ndarray, width: float) -> TargetPredictions:
    return TargetPredictions(value, value - width / 2, value + width / 2)


def test_a_perfect_proxy_has_perfect_figures() -> None:
    label = np.random.default_rng(0).standard_normal(200)
    found = measure_target(predictions(label, 1.0), label)
    assert found.spearman == pytest.approx(1)
    assert found.pearson == pytest.approx(1)
    assert found.top_tenth_overlap == 1
    assert found.top_tenth_ndcg == pytest.approx(1)
    assert list(found.tenth_coverage) == [1.0] * 10


def test_the_opposite_order_finds_none_of_the_best() -> None:
    label = np.random.default_rng(0).standard_normal(200)
    found = measure_target(predictions(-label, 1.0), label)
    assert found.spearman == pytest.approx(-1)
    assert found.top_tenth_overlap == 0
    assert found.top_tenth_ndcg < 0.2


def test_one_width_for_all_has_the_relative_width_of_one() -> None:
    rng = np.random.default_rng(0)
    label = rng.standard_normal(4000)
    found = measure_target(predictions(label + rng.standard_normal(4000), 3.0), label)
    assert found.relative_width == pytest.approx(1, abs=0.01)


def test_coverage_is_told_by_tenth_of_the_values() -> None:
    label = np.arange(100.0)
    value = label.copy()
    value[90:] += 5
    found = measure_target(predictions(value, 1.0), label)
    assert found.coverage == pytest.approx(0.9)
    assert list(found.tenth_coverage) == [1.0] * 9 + [0.0]


def test_equal_scores_are_no_linear_estimate() -> None:
    label = np.arange(20.0)
    assert measure_target(predictions(np.ones(20), 1.0), label).pearson == 0


def test_equal_scores_rank_nothing() -> None:
    assert spearman(np.ones(5), np.arange(5.0)) == 0


def test_models_need_not_agree_on_ranks_that_there_are_none_of() -> None:
    def two(first: np.ndarray, second: np.ndarray) -> Predictions:
        value = np.stack([first, second], axis=1)
        return Predictions(value, value, value, np.zeros(len(value)))

    ranks, one = np.arange(20.0), np.ones(20)
    assert agreement(two(ranks, one), two(2 * ranks, one)) == pytest.approx(1)
    assert agreement(two(ranks, one), two(-ranks, one)) == pytest.approx(-1)
    assert agreement(two(one, one), two(one, one)) == 1
