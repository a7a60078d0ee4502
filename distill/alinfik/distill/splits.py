"""Divides labelled samples into those to train on, to validate and calibrate with, and to hold out.

In: the labelled rows. Out: where the rows of each part stand. What is alike stays together: rows of
one group, near-duplicates, and, if asked for, everything of one provider. The parts follow from the
rows alone, so that `evaluate` finds those that `train` held out.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, cast

import numpy as np

from alinfik.distill.rows import Row
from alinfik.distill.settings import SplitBy

Part = Literal["train", "validation", "calibration", "held_out"]

Parts = dict[Part, list[int]]

HELD_OUT_SHARE = 0.2
CALIBRATION_SHARE = 0.15
VALIDATION_SHARE = 0.1

# Two texts are near-duplicates if they share so much of their runs of three words (Jaccard), as in
# deduplicating training data (Lee et al. 2022, arXiv 2107.06499, who use 0.8 and longer texts).
_NEAR = 0.7
_WORDS = 3
_PERMUTATIONS = 128


def split(rows: Sequence[Row], by: SplitBy = "group") -> Parts:
    """Return where the rows of each part stand, in their order."""
    parts: Parts = {"train": [], "validation": [], "calibration": [], "held_out": []}
    for index, family in enumerate(family_names(rows, by)):
        parts[part_of(family)].append(index)
    return parts


def folds(rows: Sequence[Row], by: SplitBy, count: int) -> list[int]:
    """Return each row's fold, from 0 to ``count`` - 1; a family is in one fold.

    Families are dealt out, so that even a few of them are in several folds.
    """
    names = family_names(rows, by)
    order = sorted(
        set(names), key=lambda name: hashlib.sha256(f"alinfik fold:{name}".encode()).digest()
    )
    number = {name: place % count for place, name in enumerate(order)}
    return [number[name] for name in names]


def known(parts: Parts) -> list[int]:
    """Return where the rows that are not held out stand."""
    return sorted(parts["train"] + parts["validation"] + parts["calibration"])


def family_names(rows: Sequence[Row], by: SplitBy) -> list[str]:
    """Return the name of each row's family, whatever the order of the rows."""
    key = [row.provider or row.group if by == "provider" else row.group for row in rows]
    family = families(rows, key)
    # The first of its keys.
    names: dict[int, str] = {}
    for index, number in enumerate(family):
        names[number] = min(names.get(number, key[index]), key[index])
    return [names[number] for number in family]


def part_of(family: str) -> Part:
    """Return the part that a family belongs to, by its name."""
    digest = hashlib.sha256(f"alinfik split 2:{family}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    shares: dict[Part, float] = {
        "held_out": HELD_OUT_SHARE,
        "calibration": CALIBRATION_SHARE,
        "validation": VALIDATION_SHARE,
    }
    for part, share in shares.items():
        if position < share:
            return part
        position -= share
    return "train"


def families(rows: Sequence[Row], keys: Sequence[str]) -> list[int]:
    """Number the families of rows that belong together, by key or as near-duplicates.

    Args:
        rows: N.
        keys: N; rows of one key are one family.

    Returns:
        N numbers, the same within a family.
    """
    # Here as below, since they take a second to load and labelling does not need them.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [*_same(keys), *_near_duplicates(rows)]
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    size = len(rows)
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(size, size))
    return connected_components(graph, directed=False)[1].tolist()


def _same(keys: Sequence[str]) -> Iterable[tuple[int, int]]:
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    return ((a, b) for a, b in pairwise(order) if keys[a] == keys[b])


def _near_duplicates(rows: Sequence[Row]) -> Iterable[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=_NEAR, num_perm=_PERMUTATIONS)
    sketches = MinHash.generator(map(_shingles, rows), num_perm=_PERMUTATIONS)
    for number, sketch in enumerate(sketches):
        for other in index.query(sketch):
            yield number, cast("int", other)
        index.insert(number, sketch)


def _shingles(row: Row) -> set[bytes]:
    words = f"{row.prompt} {row.completion}".lower().split()
    last = max(1, len(words) - _WORDS + 1)
    return {" ".join(words[start : start + _WORDS]).encode() for start in range(last)}
