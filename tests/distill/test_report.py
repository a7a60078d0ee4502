"""What the report makes of token values."""

import numpy as np

from alinfik.distill.explain import Explanation
from alinfik.distill.report import coloured
from alinfik.distill.samples import Row


def test_a_character_of_several_tokens_has_the_colour_of_their_sum() -> None:
    row = Row(id="1", provider="p", prompt="", completion="a中b", group="g")
    explanation = Explanation(
        row=row,
        values=np.array([0.0]),
        spans=np.array([[0, 0], [0, 1], [1, 2], [1, 2], [1, 2], [2, 3]]),
        token_values=np.array([[50.0], [1.0], [0.1], [5.0], [-9.0], [2.0]]),
        truncated=False,
    )
    pieces = [(piece.text, round(piece.share, 3)) for piece in coloured(explanation, 0)]
    assert pieces == [("a", round(1 / 3.9, 3)), ("中", -1.0), ("b", round(2 / 3.9, 3))]
