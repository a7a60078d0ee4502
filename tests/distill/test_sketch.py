"""Projected gradients have about the inner products of the gradients themselves."""

import torch

from alinfik.distill.sketch import GradientSketch


def test_a_sketch_keeps_angles() -> None:
    torch.manual_seed(0)
    # Gradients that have something in common, as samples of one kind do.
    errors = torch.randn(6, 20, 256) + torch.randn(256)
    states = [torch.randn(6, 20, 256) + torch.randn(256) for _ in range(2)]
    sketch = GradientSketch(256, 2)
    found = sketch(errors, states).gradients.unflatten(1, (2, -1))
    for depth, state in enumerate(states):
        exact = torch.nn.functional.normalize((errors.mT @ state).flatten(1))
        angles = found[:, depth] @ found[:, depth].T
        assert (angles - exact @ exact.T).abs().max() < 0.1
        assert (exact @ exact.T).min() > 0.2


def test_what_does_not_count_has_no_gradient() -> None:
    sketch = GradientSketch(16, 1)
    errors, states = torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    errors[:, 3:] = 0
    changed = states.clone()
    changed[:, 3:] += 1
    found, other = sketch(errors, [states]), sketch(errors, [changed])
    torch.testing.assert_close(found.gradients, other.gradients)
    assert sketch(torch.zeros(1, 5, 16), [states]).gradients.abs().max() == 0


def test_it_is_the_same_whenever_it_is_made() -> None:
    torch.manual_seed(1)
    one = GradientSketch(16, 2)
    torch.manual_seed(2)
    assert torch.equal(one.errors, GradientSketch(16, 2).errors)
