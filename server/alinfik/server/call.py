"""One caller's samples on their way through the queue, and their outcomes as they come.

Comes in: tokenised samples, then outcomes one by one, in any order. Goes out: all outcomes in the
samples' order. Knows nothing of how they are batched and valued.
"""

import asyncio
import time
from collections.abc import Sequence

from alinfik.server.batching import Priority
from alinfik.server.encode import Encoded
from alinfik.server.rejection import Rejection
from alinfik.v1 import Sample, Valuation

Outcome = Valuation | Rejection


class Call:
    """The samples of one call to the engine, behind one future: a future each would cost more."""

    def __init__(
        self, samples: Sequence[Sample], encoded: Sequence[Encoded], priority: Priority
    ) -> None:
        self.priority = priority
        self.pushed_at = time.monotonic()
        self.entries = [
            Entry(self, place, sample, row)
            for place, (sample, row) in enumerate(zip(samples, encoded, strict=True))
        ]
        self.missing = len(samples)
        self._outcomes: list[Outcome | None] = [None] * len(samples)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, place: int, outcome: Outcome) -> None:
        """Take the outcome of the sample at ``place``; each once."""
        self._outcomes[place] = outcome
        self.missing -= 1
        if self.missing == 0 and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the whole call with ``error``."""
        if not self._done.done():
            self._done.set_exception(error)

    async def outcomes(self) -> list[Outcome]:
        """All outcomes, once the last has come; or the error that the call ended with."""
        await self._done
        return [outcome for outcome in self._outcomes if outcome is not None]


class Entry:
    """One sample in the queue; ``length`` is its tokens."""

    __slots__ = ("call", "encoded", "length", "place", "sample")

    def __init__(self, call: Call, place: int, sample: Sample, encoded: Encoded) -> None:
        self.call = call
        self.place = place
        self.sample = sample
        self.encoded = encoded
        self.length = len(encoded)
