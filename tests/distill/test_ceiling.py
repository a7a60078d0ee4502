"""What the noise of a target's labels leaves a proxy to reach."""

import numpy as np
import pytest

from alinfik.distill.ceiling import ceiling_of


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_ceiling_is_where_a_perfect_proxy_ends(noise: float) -> None:
    """Labels are the truth and noise that falls with the target's size."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(200_000)
    halves = [truth + noise * rng.standard_normal(len(truth)) for _ in range(2)]
    whole = sum(halves) / 2
    found = ceiling_of(float(np.corrcoef(*halves)[0, 1]), samples=40)
    assert found.spearman == pytest.approx(np.corrcoef(truth, whole)[0, 1], abs=2e-3)
    enough = truth + noise * np.sqrt(20 / found.enough_samples) * rng.standard_normal(len(truth))
    assert np.corrcoef(truth, enough)[0, 1] == pytest.approx(0.99, abs=1e-3)


def test_halves_that_do_not_agree_recommend_nothing() -> None:
    assert ceiling_of(-0.1, 12).enough_samples == 0


def test_halves_that_agree_wholly_leave_all_to_reach() -> None:
    found = ceiling_of(1.0, 12)
    assert found.spearman == pytest.approx(1.0)
    assert found.enough_samples == 2
