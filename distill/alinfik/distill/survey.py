"""Reads a pool once, before an hour of gradients, for what must be known of it beforehand.

In: the pool's rows and the targets'. Out: how many rows, what they are, and how many of them are a
target's own. Knows nothing of files or tokens.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

from alinfik.distill.rows import Row, text_hash


@dataclass(frozen=True, slots=True)
class Survey:
    """What a pool is.

    Attributes:
        size: its number of rows.
        sha256: hash of its rows in their order, whatever its files are called and their format is.
        shared: for every target, how many of the rows have a text of the target's, but for case
            and white space. Their values say that a target is like itself.
    """

    size: int
    sha256: str
    shared: dict[str, int]


def survey(pool: Iterable[Row], targets: Mapping[str, Iterable[Row]]) -> Survey:
    """Read a pool to its end, keeping none of it."""
    texts = {name: {_text(row) for row in rows} for name, rows in targets.items()}
    shared = dict.fromkeys(texts, 0)
    digest = hashlib.sha256()
    size = 0
    for row in pool:
        size += 1
        digest.update(json.dumps(astuple(row)).encode())
        text = _text(row)
        for name, known in texts.items():
            shared[name] += text in known
    return Survey(size, digest.hexdigest(), shared)


def _text(row: Row) -> str:
    return text_hash(row.prompt, row.completion)
