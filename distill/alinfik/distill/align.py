"""Carries token values from one tokenizer's tokens to another's, by the characters they share.

In: values of the tokens that the labels were made with. Out: values of the tokens that a proxy
with a tokenizer of its own reads. A token's value is spread evenly over its characters; what stands
for no character, such as a start token, keeps its value on the first token. Knows nothing of
tokenizers.
"""

import numpy as np
from numpy.typing import NDArray

from alinfik.distill.encoding import Spans

Floats = NDArray[np.float64]


def realign(values: Floats, theirs: Spans, ours: Spans) -> Floats:
    """Return values of our tokens, which sum to what theirs do.

    Args:
        values: [n, K], of their tokens.
        theirs: [n, 2], the characters that each of their tokens stands for.
        ours: [m, 2], the same of ours.

    Returns:
        [m, K].
    """
    length = int(max(theirs.max(initial=0), ours.max(initial=0)))
    by_character = np.zeros((length, values.shape[1]))
    owner = _owners(ours, length)
    found = np.zeros((len(ours), values.shape[1]))
    for (start, end), value in zip(theirs, values, strict=True):
        if end > start:
            by_character[start:end] += value / (end - start)
        else:
            found[0] += value
    np.add.at(found, owner, by_character)
    return found


def _owners(spans: Spans, length: int) -> NDArray[np.int64]:
    """Say for every character which token has it: the one that covers it, or the next that does."""
    owner = np.full(length, -1, dtype=np.int64)
    for token, (start, end) in enumerate(spans):
        owner[start:end] = token
    following = len(spans) - 1
    for place in range(length - 1, -1, -1):
        following = owner[place] if owner[place] >= 0 else following
        owner[place] = following
    return owner
