"""Divides labelled samples into those to train on, to validate and calibrate with, and to hold out.

In: the labelled rows. Out: where the rows of each part stand. What is alike stays together: rows of
one group, near-duplicates, and, if asked for, everything of one provider. The parts follow from the
rows alone, so that `evaluate` finds those that `train` held out.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from alinfik.distill.rows import Row
from alinfik.distill.settings import SplitBy
from alinfik.distill.words import words

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
    return parts_of(family_names(rows, by))


def parts_of(names: Sequence[str]) -> Parts:
    """Return where the rows of each part stand, by the names of their families."""
    parts: Parts = {"train": [], "validation": [], "calibration": [], "held_out": []}
    for index, family in enumerate(names):
        parts[part_of(family)].append(index)
    return parts


def folds(names: Sequence[str], count: int) -> list[int]:
    """Return each row's fold, from 0 to ``count`` - 1, by the names of their families.

    A family is in one fold. They are dealt out, so that even a few of them are in several.
    """
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
    from scipy.cluster.hierarchy import DisjointSet

    together = DisjointSet(range(len(rows)))
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        together.merge(first.setdefault(key, index), index)
    _join_near_duplicates(rows, together)
    return [together[index] for index in range(len(rows))]


def _join_near_duplicates(rows: Sequence[Row], together: Any) -> None:
    """Merge the sets of the numbers of rows that are near-duplicates."""
    from datasketch import MinHash, MinHashLSH

    @cache
    def shingles(number: int) -> set[bytes]:
        return _shingles(rows[number])

    index = MinHashLSH(threshold=_NEAR, num_perm=_PERMUTATIONS)
    sketches = MinHash.generator(map(_shingles, rows), num_perm=_PERMUTATIONS)
    for number, sketch in enumerate(sketches):
        # The index finds a good share of pairs below the threshold too. Were they believed, texts
        # with a long prompt in common would be a chain, and so one family.
        for other in index.query(sketch):
            if not together.connected(number, other) and (
                _jaccard(shingles(number), shingles(other)) >= _NEAR
            ):
                together.merge(number, other)
        index.insert(number, sketch)


def _jaccard(first: set[bytes], second: set[bytes]) -> float:
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def _shingles(row: Row) -> set[bytes]:
    text = words(f"{row.prompt} {row.completion}".lower())
    last = max(1, len(text) - _WORDS + 1)
    return {" ".join(text[start : start + _WORDS]).encode() for start in range(last)}
