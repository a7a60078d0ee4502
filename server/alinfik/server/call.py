"""Callers' samples on their way through the queue, and their outcomes as they come.

A ``Call`` is what one caller asked for; a ``Job`` is one text that the model has to read, for as
many calls as wait for it. Comes in: tokenised texts, then outcomes one by one, in any order. Goes
out: all outcomes of a call in its samples' order, and where their time went. Knows nothing of how
jobs are batched and valued.
"""

import asyncio
import time
from dataclasses import dataclass, field

from alinfik.server.batching import Priority
from alinfik.server.encode import Encoded
from alinfik.server.rejection import Rejection
from alinfik.server.valuation import Estimate
from alinfik.v1 import Timing

Outcome = Estimate | Rejection


@dataclass(eq=False, slots=True)
class Job:
    """One text on its way to the model."""

    key: bytes
    """Of its content: see ``cache.content_key``."""
    encoded: Encoded
    priority: Priority
    """The line it stands in; that of the most urgent call that waits for it."""
    held_by: Priority
    """The line whose room in the queue it takes up; that of the call that brought it."""
    in_model: bool = False
    length: int = field(init=False)
    """Its tokens."""
    pushed_at: float = field(default_factory=time.monotonic)
    waiters: "list[tuple[Call, int]]" = field(default_factory=list["tuple[Call, int]"])
    """Who waits for its outcome, and for which of their samples."""

    def __post_init__(self) -> None:
        self.length = len(self.encoded)

    def settle(self, outcome: Outcome) -> None:
        """Give every waiter the outcome, and forget them: they know this job, and would keep it."""
        for call, place in self.waiters:
            call.settle(place, outcome)
        self.waiters.clear()

    def abandon(self, call: "Call") -> bool:
        """Forget that ``call`` waits; say whether nobody does now."""
        self.waiters = [waiter for waiter in self.waiters if waiter[0] is not call]
        return not self.waiters


class Call:
    """The samples of one call to the engine, behind one future: a future each would cost more."""

    def __init__(self, samples: int) -> None:
        self.clock = Clock()
        self.missing = samples
        self.jobs: list[Job] = []
        """Those that it waits for, or waited for."""
        self.outcomes: list[Outcome | None] = [None] * samples
        """In the samples' order; None while there is none."""
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, place: int, outcome: Outcome) -> None:
        """Take the outcome of the sample at ``place``; each once."""
        self.outcomes[place] = outcome
        self.missing -= 1
        if self.missing == 0 and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the whole call with ``error``."""
        if not self._done.done():
            self._done.set_exception(error)

    async def wait(self) -> None:
        """Wait for the last outcome, or raise the error that the call ended with."""
        if self.missing or self._done.done():
            await self._done


class Clock:
    """Where a call's time went, on the monotonic clock."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        # None until then: a call may end on the way, or need no model.
        self.admitted: float | None = None
        self.tokenised: float | None = None
        self.taken: float | None = None
        self.shared = 0
        """Samples that another's outcome served."""

    def stages(self) -> list[tuple[str, float, float]]:
        """Each stage that the call came to, when it began and ended; the last one ends now."""
        begins = [
            (stage, mark)
            for stage, mark in (
                ("admission", self.begun),
                ("tokenisation", self.admitted),
                ("queue", self.tokenised),
                ("model", self.taken),
            )
            if mark is not None
        ]
        ends = [*(mark for _, mark in begins[1:]), time.monotonic()]
        return [(stage, mark, end) for (stage, mark), end in zip(begins, ends, strict=True)]

    def waited(self) -> float:
        """Seconds from admission until the model took the last of it; 0 before it has."""
        if self.admitted is None or self.taken is None:
            return 0.0
        return self.taken - self.admitted

    def timing(self) -> Timing:
        """How long each stage took, up to now."""
        timing = Timing(shared_count=self.shared)
        for stage, begun, ended in self.stages():
            getattr(timing, f"{stage}_duration").FromNanoseconds(int((ended - begun) * 1e9))
        return timing
