import numpy as np
import pytest
import torch

from alinfik.distill.intervals import Intervals, Spread, conformal_width


def residuals_of(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Errors three times as large where the first feature is 1 as where it is -1."""
    return rng.standard_normal((len(features), 2)) * np.exp(0.55 * features[:, :1])


def sizes_of(spread: Spread, features: np.ndarray) -> np.ndarray:
    return spread(torch.tensor(features, dtype=torch.float32)).numpy()


def test_a_constant_width_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered: list[float] = []
    for _ in range(400):
        width = conformal_width(np.abs(rng.standard_normal((40, 2))))
        covered.append(float((np.abs(rng.standard_normal((50, 2))) <= width).mean()))
    assert 0.895 < np.mean(covered) < 0.93  # (n + 1) steps of 1/41 above 0.9 at the most


def test_intervals_are_wide_where_errors_are_large_and_cover_more_evenly() -> None:
    rng = np.random.default_rng(2)
    ours: list[list[float]] = []
    constants: list[list[float]] = []
    widths: list[list[float]] = []
    for _ in range(60):
        first, second, third = (rng.choice([-1.0, 1.0], (300, 12)) for _ in range(3))
        spread = Spread(first, residuals_of(first, rng))
        scores = np.abs(residuals_of(second, rng))
        width = conformal_width(scores / sizes_of(spread, second)) * sizes_of(spread, third)
        constant = conformal_width(scores)
        errors, large = np.abs(residuals_of(third, rng)), third[:, 0] > 0
        ours.append([float((errors <= width)[side].mean()) for side in (large, ~large)])
        constants.append([float((errors <= constant)[side].mean()) for side in (large, ~large)])
        widths.append([float(width[large].mean()), float(width[~large].mean()), constant.mean()])
    assert 0.89 < np.mean(ours) < 0.92
    assert np.ptp(np.mean(ours, axis=0)) < 0.5 * np.ptp(np.mean(constants, axis=0))
    wide, narrow, constant_width = np.mean(widths, axis=0)
    assert wide > 2 * narrow
    assert (wide + narrow) / 2 < constant_width


def test_features_that_tell_nothing_give_one_width() -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((400, 20))
    sizes = sizes_of(Spread(features, rng.standard_normal((400, 2))), features)
    assert sizes.max() / sizes.min() < 1.6


def test_residuals_that_are_all_zero_are_no_division_by_zero() -> None:
    spread = Spread(np.zeros((30, 3)), np.zeros((30, 1)))
    assert torch.isfinite(spread(torch.zeros(2, 3))).all()


def test_copies_do_not_narrow_intervals() -> None:
    """A sample's size must not be told by its copy's: what is alike is in one fold."""
    rng = np.random.default_rng(4)
    features = rng.standard_normal((120, 100))
    residuals = rng.standard_normal((120, 1)) ** 3
    folds = np.arange(120) % 5

    def multiple(repeats: int, folds: np.ndarray) -> float:
        """Of values that are all one, so that there is one level."""
        twice = np.tile(features, (repeats, 1)), np.tile(residuals, (repeats, 1))
        found = Intervals(twice[0], np.zeros_like(twice[1]), twice[1], folds.tolist())
        return float(found.multiples.max())

    alone, copied = multiple(1, folds), multiple(2, np.tile(folds, 2))
    mixed = multiple(2, np.arange(240) % 7 % 5)
    assert copied > 0.9 * alone
    assert mixed < 0.8 * copied


def test_high_values_are_held_as_often_as_low_ones() -> None:
    """Errors that grow with the value alone, which no feature tells."""
    rng = np.random.default_rng(5)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values = rng.standard_normal((count, 2))
        errors = rng.standard_normal((count, 2)) * np.where(values > 1, 4.0, 1.0)
        return rng.standard_normal((count, 3)), values, errors

    features, values, errors = draw(1500)
    intervals = Intervals(features, values, errors, (np.arange(1500) % 5).tolist())
    features, values, errors = draw(20_000)
    width = intervals(*(torch.tensor(one, dtype=torch.float32) for one in (features, values)))
    held = np.abs(errors) <= width.numpy()
    for side in (values > 1.3, values < 0.7):
        assert 0.87 < held[side].mean() < 0.93


@pytest.mark.parametrize("count", [30, 250])
def test_values_that_are_all_one_have_one_width(count: int) -> None:
    rng = np.random.default_rng(6)
    residuals = rng.standard_normal((count, 1))
    folds = (np.arange(count) % 5).tolist()
    intervals = Intervals(np.zeros((count, 1)), np.ones((count, 1)), residuals, folds)
    width = intervals(torch.zeros(3, 1), torch.tensor([[0.0], [1.0], [2.0]]))
    assert width.isfinite().all()
    assert (np.abs(residuals) <= float(width[1])).mean() >= 0.9
