"""How far an exported model may be from the trained one."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from alinfik.distill.batches import pad
from alinfik.distill.encoding import Encoded
from alinfik.distill.export import export_error


class _Served(nn.Module):
    """Gives two targets, of the second one value for all."""

    def forward(self, *_: Tensor) -> tuple[Tensor, ...]:
        value = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
        return value, value - 1, value + 1, torch.zeros(3)


class _Exported:
    def __init__(self, away: float) -> None:
        self._away = away

    def run(self, *_: object) -> list[Any]:
        value, lower, upper, ood = (one.numpy() for one in _Served()())
        return [value, lower + self._away, upper, ood]


def test_rounding_is_no_difference_where_all_values_are_one() -> None:
    batch = pad([Encoded([1, 2, 3], 1, truncated=False)] * 3, range(3), 0)
    found = export_error(cast("Any", _Served()), cast("Any", _Exported(1e-7)), batch)
    assert 0 < found < 1e-6
