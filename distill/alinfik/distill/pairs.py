"""Hashes pairs of token ids into tables of a fixed size, in torch and in NumPy alike."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ids = TypeVar("Ids", Tensor, NDArray[np.int64])

# A prime, whose product with an id or a bucket fits into 63 bits.
_FACTOR = 1_000_003


def hash_pairs(first: Ids, second: Ids, buckets: int) -> Ids:
    """Return the bucket, from 0 to ``buckets`` - 1, of each pair of int64 ids of one shape."""
    return (first * _FACTOR + second) % buckets
