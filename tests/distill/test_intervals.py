import numpy as np
import torch

from alinfik.distill.intervals import Spread, calibrated, conformal_width


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
    _, alone = calibrated(features, residuals, folds.tolist())
    twice = [np.concatenate([of, of]) for of in (features, residuals, folds)]
    _, copied = calibrated(twice[0], twice[1], twice[2].tolist())
    _, mixed = calibrated(twice[0], twice[1], (np.arange(240) % 7 % 5).tolist())
    assert copied > 0.9 * alone
    assert mixed < 0.8 * copied
