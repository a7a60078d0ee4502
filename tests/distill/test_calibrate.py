import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from alinfik.distill.calibrate import FittedScale, Scales


def test_the_fitted_scale_restores_labels() -> None:
    labels = np.random.default_rng(0).standard_t(df=2, size=(500, 3)) * [1.0, 1e-6, 1e6]
    scale = FittedScale(labels)
    tensor = torch.tensor(labels, dtype=torch.float32)
    fitted = scale.fit(tensor)
    torch.testing.assert_close(fitted.mean(dim=0), torch.zeros(3), rtol=0, atol=1e-2)
    torch.testing.assert_close(fitted.std(dim=0), torch.ones(3), rtol=0, atol=2e-2)
    torch.testing.assert_close(scale.restore(fitted), tensor, rtol=1e-3, atol=1e-8)


def test_scales_on_another_device_are_others() -> None:
    scales = Scales(FittedScale(np.arange(9.0)[:, None]), None)
    assert scales.to(torch.device("meta")).samples.values.device.type == "meta"
    assert scales.samples.values.device.type == "cpu"


def test_the_fitted_scale_goes_on_past_the_labels_it_knows() -> None:
    scale = FittedScale(np.random.default_rng(0).standard_normal((500, 1)))
    beyond = scale.fit(torch.tensor([[3.4], [-3.4]]))
    torch.testing.assert_close(scale.restore(beyond), torch.tensor([[3.4], [-3.4]]))


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 1e9]), min_size=2, max_size=40))
def test_the_fitted_scale_keeps_the_order_of_labels_with_ties(labels: list[float]) -> None:
    scale = FittedScale(np.array(labels)[:, None])
    fitted = scale.fit(torch.tensor(sorted(labels))[:, None])[:, 0]
    assert torch.isfinite(fitted).all()
    assert (fitted.diff() >= 0).all()


@given(st.floats(-1e6, 1e6))
def test_a_wild_estimate_stays_finite(fitted: float) -> None:
    scale = FittedScale(np.array([[1.0], [2.0], [-3.0]]))
    assert torch.isfinite(scale.restore(torch.tensor([fitted]))).all()


def test_labels_that_are_all_alike_are_no_division_by_zero() -> None:
    scale = FittedScale(np.zeros((5, 1)))
    assert torch.isfinite(scale.fit(torch.zeros(1))).all()
