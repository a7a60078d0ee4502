"""Which samples go into the next batch.

Comes in: entries of known length, by priority. Goes out: batches whose padded size keeps to a
budget. Knows nothing of time, bounds, models and callers. No locks: the event loop alone touches
it.
"""

import math
from collections import OrderedDict
from enum import IntEnum
from itertools import islice
from typing import Generic, Protocol, TypeVar

import numpy as np

# How many waiting entries are looked at for lengths near the first one's. Wide enough to fill a
# batch with rows of nearly one length, narrow enough to form it in a fraction of a millisecond.
WINDOW = 512


class Priority(IntEnum):
    """Who goes first; an entry waits while any entry of a smaller number does."""

    INTERACTIVE = 0
    """A caller waits for this one answer."""
    STREAM = 1
    """A stream's records: throughput counts, and nobody watches a single one."""


class _Entry(Protocol):
    @property
    def length(self) -> int: ...


E = TypeVar("E", bound=_Entry)


class BatchQueue(Generic[E]):
    """Entries that wait for the model, told apart by identity; ``entry.length`` is its tokens."""

    def __init__(self) -> None:
        # Ordered dictionaries, not deques: entries leave from the middle, when their length fits a
        # batch or when their caller has gone.
        self._lines: dict[Priority, OrderedDict[E, None]] = {
            priority: OrderedDict() for priority in Priority
        }

    def __len__(self) -> int:
        """How many entries wait."""
        return sum(map(len, self._lines.values()))

    def push(self, entry: E, priority: Priority) -> None:
        """Add ``entry`` behind those of its priority."""
        self._lines[priority][entry] = None

    def discard(self, entry: E, priority: Priority) -> bool:
        """Take ``entry`` out and say whether it was in."""
        line = self._lines[priority]
        if entry not in line:
            return False
        del line[entry]
        return True

    def take(self, budget: int, most_padding: float = math.inf) -> list[E]:
        """Take the next batch out.

        The oldest entry of the first priority that has any always goes, so nothing starves. It is
        joined by the entries of nearest length, first those of its own priority, then of the next,
        while rows times longest row stays within ``budget`` tokens. Only an entry that is longer
        than the budget by itself exceeds it, alone. Empty when nothing waits.

        Args:
            budget: tokens of the batch, padding included.
            most_padding: an entry that would add more tokens of padding does not join: what a batch
                of its own costs.
        """
        batch: list[E] = []
        wanted = longest = 0
        for line in self._lines.values():
            window = list(islice(line, WINDOW))
            if window and not batch:
                wanted = longest = window[0].length
            away = np.abs(np.array([entry.length for entry in window]) - wanted)
            # Stable: of equal lengths the oldest goes first, so the very oldest does.
            nearest: list[int] = np.argsort(away, kind="stable").tolist()
            for place in nearest[: np.count_nonzero(away <= most_padding)]:
                entry = window[place]
                rows = len(batch) + 1
                if batch and rows * longest > budget:
                    return batch
                if batch and rows * entry.length > budget:
                    continue
                if _padding(len(batch), longest, entry.length) > most_padding:
                    continue
                batch.append(entry)
                longest = max(longest, entry.length)
                del line[entry]
        return batch


def _padding(rows: int, longest: int, length: int) -> int:
    """Tokens of padding that an entry of this length adds to a batch."""
    return longest - length if length <= longest else rows * (length - longest)
