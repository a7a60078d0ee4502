"""Who is let into the queue, and who is told to come back when.

Comes in: demands for room, by priority; how quick the model is, and how long those waited who were
let in. Goes out: room, first come, first served, or ``QueueFull``; and, past a first refusal,
whether the next demand is worth reading. For one event loop; no locks.
Knows nothing of what waits and of batches.
"""

import math
from collections.abc import Mapping
from typing import Literal

from alinfik.server.batching import Priority
from alinfik.server.bound import Bound
from alinfik.server.metrics import Metrics
from alinfik.server.settings import ServerSettings

# What is bounded, by the name that metrics call it.
Limit = Literal["queue_samples", "queue_tokens", "queue_seconds"]

# A refused caller is told to come back within these seconds, whatever the estimate says.
_RETRY_SECONDS = 0.05, 30.0
# Of the last batch in the model's speed, and of the last wait in the server's: about the last ten
# count.
_SPEED_WEIGHT = 0.1
# Of the longest wait that is taken: who waited as long waited for others, and not for a thread.
_TELLING_SHARE = 0.1
# Whoever comes after one that was refused is too, until less than this share of every bound is
# taken: to read each request only to find room for the smallest costs more than to value some.
_REOPENING_SHARE = 15 / 16


class QueueFull(Exception):  # noqa: N818 - the name that asyncio's and queue's users know
    """The queue has no room and the caller would not wait; nothing was done."""

    def __init__(self, limit: Limit, retry_after_seconds: float) -> None:
        super().__init__("the queue is full")
        self.limit: Limit = limit
        self.retry_after_seconds = retry_after_seconds


class OversizedError(Exception):
    """A call has more tokens than all of the queue; no waiting would mend that."""

    limit: Limit = "queue_tokens"

    def __init__(self, tokens: int, most: int) -> None:
        super().__init__(f"are {tokens} tokens: at most {most} are taken of one Score, so split it")


class Admission:
    """Room for samples and for their tokens, each priority's its own.

    Args:
        settings: the bounds.
        metrics: where to show what is held.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._most_seconds = settings.queue_seconds
        self._metrics = metrics
        self._samples = {priority: Bound(settings.queue_samples) for priority in Priority}
        self._tokens = {priority: Bound(settings.queue_tokens) for priority in Priority}
        self._shown = 0, 0
        # By which interactive calls were last refused, until there is room again.
        self._closed_by: Limit | None = None
        self.tokens_per_second = 1.0
        """Of the model, as far as is known."""
        # Of all the server, which may be slower than its model: infinite until something waits.
        self._samples_per_second = math.inf

    async def samples(self, count: int, priority: Priority, *, wait: bool) -> None:
        """Take room for samples; wait for it, or fail.

        Raises:
            QueueFull: there is none, or it would wait too long for the model, and ``wait`` is
                false.
        """
        if not wait and self._wait_seconds(priority) > self._most_seconds:
            raise self._refuse("queue_seconds", priority)
        await self._admit("queue_samples", self._samples, count, priority, wait=wait)

    async def tokens(self, count: int, priority: Priority, *, wait: bool) -> None:
        """Take room for tokens, as ``samples`` does for samples, however long they will wait.

        To be tokenised they had been let in already.

        Raises:
            OversizedError: there never is so much, and ``wait`` is false. Whoever waits gets it
                once nothing else is held, which while there is traffic may be never.
            QueueFull: there is none, and ``wait`` is false.
        """
        if not wait and count > (most := self._tokens[priority].limit):
            raise OversizedError(count, most)
        await self._admit("queue_tokens", self._tokens, count, priority, wait=wait)

    def refusal(self) -> QueueFull | None:
        """What an interactive call is to hear before its request is read; None if there is room."""
        if self._closed_by and self._taken_share() < _REOPENING_SHARE:
            self._closed_by = None
        return self._full(self._closed_by) if self._closed_by else None

    def release(self, priority: Priority, *, samples: int, tokens: int) -> None:
        """Give room back."""
        self._samples[priority].release(samples)
        self._tokens[priority].release(tokens)

    def learn_speed(self, tokens_per_second: float) -> None:
        """Follow the model's speed, as a large batch shows it."""
        self.tokens_per_second += _SPEED_WEIGHT * (tokens_per_second - self.tokens_per_second)

    def held_samples(self, priority: Priority) -> int:
        """Samples that are let in, not yet in the model, and go before others of ``priority``."""
        return _before(self._samples, priority)

    def learn_wait(self, samples: int, seconds: float, priority: Priority) -> None:
        """Follow the server's speed: so many samples, the last one waited ``seconds`` for.

        A short wait only says that the server is at least so quick. Whoever others overtake waits
        for more than was there when it came, so the first priority alone tells.
        """
        if priority != min(Priority) or not seconds:
            return
        speed, known = samples / seconds, self._samples_per_second
        if seconds < _TELLING_SHARE * self._most_seconds and speed <= known:
            return
        self._samples_per_second = (
            speed if known == math.inf else known + _SPEED_WEIGHT * (speed - known)
        )

    def show(self) -> None:
        """Say what is held; other engines hold theirs beside it."""
        samples, tokens = (
            sum(bound.held for bound in bounds.values()) for bounds in (self._samples, self._tokens)
        )
        self._metrics.queue_samples.inc(samples - self._shown[0])
        self._metrics.queue_tokens.inc(tokens - self._shown[1])
        self._shown = samples, tokens

    async def _admit(
        self,
        limit: Limit,
        bounds: Mapping[Priority, Bound],
        units: int,
        priority: Priority,
        *,
        wait: bool,
    ) -> None:
        if wait:
            await bounds[priority].acquire(units)
        elif not bounds[priority].try_acquire(units):
            raise self._refuse(limit, priority)

    def _taken_share(self) -> float:
        """Of the interactive bounds, of which most is taken."""
        bounds = (held[Priority.INTERACTIVE] for held in (self._samples, self._tokens))
        waited = self._wait_seconds(Priority.INTERACTIVE) / self._most_seconds
        return max(waited, *(bound.held / bound.limit for bound in bounds))

    def _refuse(self, limit: Limit, priority: Priority) -> QueueFull:
        if priority is Priority.INTERACTIVE:
            self._closed_by = limit
        return self._full(limit)

    def _full(self, limit: Limit) -> QueueFull:
        least, most = _RETRY_SECONDS
        return QueueFull(limit, min(max(self._wait_seconds(max(Priority)), least), most))

    def _wait_seconds(self, priority: Priority) -> float:
        """How long the samples take that go before a new one of this priority."""
        return max(
            _before(self._tokens, priority) / self.tokens_per_second,
            _before(self._samples, priority) / self._samples_per_second,
        )


def _before(held: Mapping[Priority, Bound], priority: Priority) -> int:
    return sum(bound.held for line, bound in held.items() if line <= priority)
