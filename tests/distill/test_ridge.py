"""Penalties are chosen for texts that are new, not for copies of known ones."""

import numpy as np

from alinfik.distill.ridge import best_penalties

_AMONG = np.logspace(0, 6, 13)


def test_copies_do_not_make_a_penalty_small() -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(200, 400))
    labels = inputs[:, :1] + 3 * random.normal(size=(200, 1))
    alone = best_penalties(inputs, labels, _AMONG)
    copies = np.repeat(inputs, 4, axis=0) + 0.01 * random.normal(size=(800, 400))
    copied = np.repeat(labels, 4, axis=0)
    families = [str(number // 4) for number in range(800)]
    assert best_penalties(copies, copied, _AMONG)[0] < alone[0] / 10
    assert best_penalties(copies, copied, _AMONG, families)[0] >= alone[0] / 3.2
