"""Requests whose texts no server has seen before, as bytes, at next to no cost.

In: rows. Out: serialised `ScoreRequest`s without end, or the same rows for other uses. A server may
answer from memory what it has valued before, so no text is ever sent twice: the first six
characters of each completion give way to six letters that count up, which makes a text a token or
two longer. They are written into requests that were serialised beforehand, at 0.4 µs a sample.
"""

import itertools
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from alinfik.distill.samples import Row, read_rows
from alinfik.v1 import Sample, ScoreRequest
from benchmarks.pool import write_pool

_LETTERS = 6
# No text holds it. It marks the place of the letters in a serialised request.
_GAP = "\x00" * _LETTERS
_HALVES = ["".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3)]
# How often the rows are dealt out anew, so that a request of any size has many neighbourhoods.
_DEALS = 8


class Traffic:
    """Rows that are never the same twice: 309 million of them, which is hours of the quickest."""

    def __init__(self, rows: Sequence[Row]) -> None:
        order = np.random.default_rng(0)
        self._rows = rows
        self._dealt = [row for _ in range(_DEALS) for row in order.permutation(len(rows))]
        self._stamps = map("".join, itertools.product(_HALVES, repeat=2))

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def rows(self) -> list[Row]:
        """Every row once, stamped."""
        return [_stamped(row, next(self._stamps)) for row in self._rows]

    def requests(self, size: int) -> Iterator[bytes]:
        """Serialised requests of ``size`` samples, without end."""
        starts = range(0, len(self._dealt) - size + 1, size)
        templates = [self._template(size, start) for start in starts]
        for body, places in itertools.cycle(templates):
            for place in places:
                body[place : place + _LETTERS] = next(self._stamps).encode()
            yield bytes(body)

    def _template(self, size: int, start: int) -> tuple[bytearray, list[int]]:
        """A request with gaps, and where these are."""
        dealt = self._dealt[start : start + size]
        rows = [_stamped(self._rows[row], _GAP) for row in dealt]
        body = ScoreRequest(
            samples=[
                Sample(id=r.id, provider=r.provider, prompt=r.prompt, completion=r.completion)
                for r in rows
            ]
        ).SerializeToString()
        return bytearray(body), [gap.start() for gap in re.finditer(_GAP.encode(), body)]


def fresh_traffic(data: Path, out: Path) -> Traffic:
    """Traffic of `fresh.jsonl` of `benchmarks.pool`, which is written first where it is missing."""
    texts = out / "fresh.jsonl"
    if not texts.exists():
        write_pool(data, out)
    return Traffic(list(read_rows(texts)))


def _stamped(row: Row, stamp: str) -> Row:
    return replace(row, completion=stamp + row.completion[_LETTERS:])
