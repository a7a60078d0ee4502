"""Which samples go into the next batch.

Comes in: entries of known length, by priority. Goes out: batches whose padded size keeps to a
budget. Knows nothing of time, bounds, models and callers. No locks: the event loop alone touches
it.
"""

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

    def take(self, budget: int) -> list[E]:
        """Take the next batch out.

        The oldest entry of the first priority that has any always goes, so nothing starves. It is
        joined by the entries of nearest length, first those of its own priority, then of the next,
        while rows times longest row stays within ``budget`` tokens. Only an entry that is longer
        than the budget by itself exceeds it, alone. Empty when nothing waits.
        """
        batch: list[E] = []
        wanted = longest = 0
        for line in self._lines.values():
            window = list(islice(line, WINDOW))
            if window and not batch:
                wanted = longest = window[0].length
            lengths = np.array([entry.length for entry in window])
            # Stable: of equal lengths the oldest goes first, so the very oldest does.
            nearest: list[int] = np.argsort(np.abs(lengths - wanted), kind="stable").tolist()
            for place in nearest:
                entry = window[place]
                rows = len(batch) + 1
                if batch and rows * longest > budget:
                    return batch
                if batch and rows * entry.length > budget:
                    continue
                batch.append(entry)
                longest = max(longest, entry.length)
                del line[entry]
        return batch
