"""Has texts tokenised off the event loop, those of many small requests at once.

Comes in: samples, call by call. Goes out: their rows. While the threads are busy, calls gather, and
the next thread that is free takes all there are, the urgent ones first: a hand-over to a thread and
back costs as much as a text does. A call on which the tokenizer fails takes no other along. For one
event loop; no locks. Knows nothing of the model.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from alinfik.server.batching import Priority
from alinfik.server.cores import give_way
from alinfik.server.encode import Encoded, Encoder
from alinfik.server.fault import ModelError, model_error
from alinfik.server.metrics import Metrics
from alinfik.v1 import Sample

# A small request must not wait until a large one is tokenised.
_THREADS = 2
# Calls are gathered up to so many samples and bytes, some tens of milliseconds of work.
_GATHERED_SAMPLES = 256
_GATHERED_BYTES = 256 * 1024


class _Call(NamedTuple):
    samples: Sequence[Sample]
    size: int
    """In bytes."""
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
        self._threads = ThreadPoolExecutor(_THREADS, "tokenise", give_way)
        self._idle = _THREADS
        self._waiting: dict[Priority, deque[_Call]] = {priority: deque() for priority in Priority}

    async def encode(self, samples: Sequence[Sample], priority: Priority) -> list[Encoded]:
        """A row for each sample. Cancelled before its turn, it is not done.

        Raises:
            ModelError: the tokenizer failed on one of them.
        """
        size = sum(sample.ByteSize() for sample in samples)
        call = _Call(samples, size, asyncio.get_running_loop().create_future())
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
            loop = asyncio.get_running_loop()
            run = loop.run_in_executor(self._threads, self._encode, calls)
            run.add_done_callback(lambda run, calls=calls: self._end(calls, run))

    def _gather(self) -> list[_Call]:
        """The calls whose turn it is: one at least, if any waits."""
        calls: list[_Call] = []
        samples, size = _GATHERED_SAMPLES, _GATHERED_BYTES
        for line in self._waiting.values():
            while line and (
                not calls or (len(line[0].samples) <= samples and line[0].size <= size)
            ):
                call = line.popleft()
                if not call.rows.cancelled():
                    calls.append(call)
                    samples -= len(call.samples)
                    size -= call.size
        return calls

    def _encode(self, calls: Sequence[_Call]) -> list[list[Encoded] | ModelError]:
        """Each call's rows, in a thread; where all together fail, call by call."""
        samples = [sample for call in calls for sample in call.samples]
        try:
            with self._metrics.tokenise_seconds.time():
                rows = iter(self._encoder.encode(samples))
        # A panic of the library is no Exception; what else is none does not come in a thread.
        except BaseException as error:  # noqa: BLE001
            if len(calls) > 1:
                return [rows for call in calls for rows in self._encode([call])]
            return [model_error("tokenizer", error, len(samples))]
        return [list(islice(rows, len(call.samples))) for call in calls]

    def _end(
        self, calls: Sequence[_Call], run: asyncio.Future[list[list[Encoded] | ModelError]]
    ) -> None:
        self._idle += 1
        self._begin()
        for call, rows in zip(calls, run.result(), strict=True):
            # Its caller may have gone meanwhile.
            if call.rows.done():
                continue
            if isinstance(rows, ModelError):
                call.rows.set_exception(rows)
            else:
                call.rows.set_result(rows)
