"""A bound on how much may be held at once.

Comes in: demands for units. Goes out: units, first come, first served. Knows nothing of what a unit
is. For one event loop; no locks.
"""

import asyncio
from collections import deque


class Bound:
    """At most ``limit`` units are held at a time.

    A demand larger than the limit is met when nothing else is held: late, but not never.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_acquire(self, units: int) -> bool:
        """Take ``units`` now, or say no: there is no room, or others were first."""
        if self._waiting or not self._fits(units):
            return False
        self.held += units
        return True

    async def acquire(self, units: int) -> None:
        """Take ``units``, after all who asked before."""
        if self.try_acquire(units):
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((units, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._grant()  # it may have stood first, in the way of those behind
            else:
                self.release(units)
            raise

    def release(self, units: int) -> None:
        """Give ``units`` back."""
        self.held -= units
        self._grant()

    def _fits(self, units: int) -> bool:
        return self.held == 0 or self.held + units <= self.limit

    def _grant(self) -> None:
        while self._waiting:
            units, granted = self._waiting[0]
            if not granted.cancelled():
                if not self._fits(units):
                    return
                self.held += units
                granted.set_result(None)
            self._waiting.popleft()
