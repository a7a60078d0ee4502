"""Has texts tokenised off the event loop, those of many small requests at once.

Comes in: samples, call by call. Goes out: their rows. While the threads are busy, calls gather, and
the next thread that is free takes all there are, the urgent ones first: a hand-over to a thread and
back costs as much as a text does. For one event loop; no locks. Knows nothing of the model.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from alinfik.server.batching import Priority
from alinfik.server.encode import Encoded, Encoder
from alinfik.server.metrics import Metrics
from alinfik.v1 import Sample

# A small request must not wait until a large one is tokenised.
_THREADS = 2
# Calls are gathered up to so many samples, some tens of milliseconds of work.
_GATHERED_SAMPLES = 256


class _Call(NamedTuple):
    samples: Sequence[Sample]
    rows: asyncio.Future[list[Encoded]]


class Tokenising:
    """Threads that tokenise.

    Args:
        encoder: the bundle's.
        metrics: where to count.
    """

    def __init__(self, encoder: Encoder, metrics: Metrics) -> None:
        self._encoder = encoder
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(_THREADS, "tokenise")
        self._idle = _THREADS
        self._waiting: dict[Priority, deque[_Call]] = {priority: deque() for priority in Priority}

    async def encode(self, samples: Sequence[Sample], priority: Priority) -> list[Encoded]:
        """A row for each sample. Cancelled before its turn, it is not done."""
        call = _Call(samples, asyncio.get_running_loop().create_future())
        self._waiting[priority].append(call)
        self._begin()
        return await call.rows

    def close(self, error: Exception) -> None:
        """Finish what is begun, and fail what waits with ``error``; no more must come."""
        while calls := self._gather():
            for call in calls:
                call.rows.set_exception(error)
        self._threads.shutdown(wait=False)

    def _begin(self) -> None:
        while self._idle and (calls := self._gather()):
            self._idle -= 1
            samples = [sample for call in calls for sample in call.samples]
            loop = asyncio.get_running_loop()
            run = loop.run_in_executor(self._threads, self._encode, samples)
            run.add_done_callback(lambda run, calls=calls: self._end(calls, run))

    def _gather(self) -> list[_Call]:
        """The calls whose turn it is: one at least, if any waits."""
        calls: list[_Call] = []
        room = _GATHERED_SAMPLES
        for line in self._waiting.values():
            while line and (not calls or len(line[0].samples) <= room):
                call = line.popleft()
                if not call.rows.cancelled():
                    calls.append(call)
                    room -= len(call.samples)
        return calls

    def _encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        with self._metrics.tokenise_seconds.time():
            return self._encoder.encode(samples)

    def _end(self, calls: Sequence[_Call], run: asyncio.Future[list[Encoded]]) -> None:
        self._idle += 1
        self._begin()
        begin = 0
        for call in calls:
            end = begin + len(call.samples)
            # Its caller may have gone meanwhile.
            if not call.rows.done():
                if error := run.exception():
                    call.rows.set_exception(error)
                else:
                    call.rows.set_result(run.result()[begin:end])
            begin = end
