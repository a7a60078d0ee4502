"""Loads a gRPC server with requests and notes what comes back, and when.

In: an address and serialised requests. Out: `Load`, every answer with its times. Three ways to
load: callers that each wait for their answer (closed loop), streams, and arrivals that wait for
nobody (open loop). Requests go out and answers are read as bytes, and nothing is retried, so that
the generator takes little of the cores that it shares with the server. Knows nothing of models.
"""

import asyncio
import gc
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import grpc
import numpy as np

_METHOD = "/alinfik.v1.ValuationService/"
_OPTIONS = (("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1))
# Before answers of an open loop count: the queue fills meanwhile, up to `--queue-seconds`, and more
# samples are valued than requests are answered.
_WARM_SECONDS = 7.0
# More than a full queue takes to empty; a call that is longer under way counts as failed.
_PATIENCE_SECONDS = 60.0
REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED.name


class Answer(NamedTuple):
    """What became of one request; times in seconds on one clock."""

    due: float
    """When it was to be sent. A generator that is late does not make the server look quick."""
    ended: float
    valued: int
    """Samples that came back with a valuation."""
    status: str
    """`OK` or the name of another gRPC status."""
    retry_info: bool


@dataclass(frozen=True)
class Load:
    """The answers to one load, and the window of time in which they count.

    A closed loop's is all of it, from the first request to the last answer. Answers come in lumps,
    since a server batches what is alike and answers in order; cut at any other time, the window
    would lose or gain as many samples as are in flight.
    """

    answers: list[Answer]
    begun: float
    ended: float

    @property
    def goodput(self) -> float:
        """Samples valued a second, by answers that came within the window."""
        valued = sum(a.valued for a in self.answers if self.begun <= a.ended <= self.ended)
        return valued / (self.ended - self.begun)

    @property
    def refused(self) -> float:
        """Share of requests due within the window that were refused."""
        due = self._due()
        return sum(answer.status == REFUSED for answer in due) / len(due)

    @property
    def retry_info(self) -> float:
        """Share of refusals that say when to come back."""
        return float(np.mean([a.retry_info for a in self.answers if a.status == REFUSED] or [1.0]))

    @property
    def failed(self) -> Counter[str]:
        """How many requests were neither answered nor refused, by status."""
        return Counter(a.status for a in self.answers if a.status not in ("OK", REFUSED))

    def latency_ms(self, *percentiles: float, status: str = "OK") -> list[float]:
        """Percentiles of the time to an answer of ``status``, of requests due within the window."""
        taken = [1000 * (a.ended - a.due) for a in self._due() if a.status == status]
        return [float(q) for q in np.percentile(taken or [np.nan], percentiles)]

    def queued_ms(self, percentile: float, samples_per_second: float) -> float:
        """A percentile of the time that the same requests would take a server without a flaw.

        It takes them one by one in their order, at this speed, and never rests while one waits:
        what random arrivals alone make of a latency.
        """
        seconds = max(answer.valued for answer in self.answers) / samples_per_second
        free, taken = 0.0, list[float]()
        for due in sorted(answer.due for answer in self.answers):
            free = max(free, due) + seconds
            if self.begun <= due <= self.ended:
                taken.append(1000 * (free - due))
        return float(np.percentile(taken, percentile))

    def _due(self) -> Sequence[Answer]:
        return [answer for answer in self.answers if self.begun <= answer.due <= self.ended]


class Generator:
    """Loads one server.

    Args:
        address: where it listens.
        bundle_id: of the bundle that it serves. Every valuation has it, so counting it counts them
            without parsing.
    """

    def __init__(self, address: str, bundle_id: str) -> None:
        self._address = address
        self._mark = bundle_id.encode()

    async def closed_loop(self, requests: Iterator[bytes], callers: int, seconds: float) -> Load:
        """Let ``callers`` each send a request, wait for its answer, and send the next."""
        answers: list[Answer] = []

        async def caller() -> None:
            while (now := time.perf_counter()) < begun + seconds:
                answers.append(await self._ask(score, next(requests), now))

        async with self._channel() as channel, asyncio.TaskGroup() as group:
            score = channel.unary_unary(_METHOD + "Score")
            begun = time.perf_counter()
            for _ in range(callers):
                group.create_task(caller())
        return Load(answers, begun, answers[-1].ended)

    async def streams(
        self, requests: Iterator[bytes], streams: int, in_flight: int, seconds: float
    ) -> Load:
        """Keep ``in_flight`` requests unanswered on each of ``streams``."""
        answers: list[Answer] = []

        async def stream() -> None:
            call = channel.stream_stream(_METHOD + "ScoreStream")()
            sent: deque[float] = deque()
            for _ in range(in_flight):
                sent.append(time.perf_counter())
                await call.write(next(requests))
            while sent:
                reply = await call.read()
                now = time.perf_counter()
                valued = reply.count(self._mark)
                answers.append(Answer(sent.popleft(), now, valued, "OK", retry_info=False))
                if now < begun + seconds:
                    sent.append(now)
                    await call.write(next(requests))
            await call.done_writing()

        async with self._channel() as channel, asyncio.TaskGroup() as group:
            begun = time.perf_counter()
            for _ in range(streams):
                group.create_task(stream())
        return Load(answers, begun, answers[-1].ended)

    async def open_loop(self, requests: Iterator[bytes], rate: float, seconds: float) -> Load:
        """Send ``rate`` requests a second, as independent callers would: a Poisson process."""
        answers: list[Answer] = []
        random = np.random.default_rng(0)

        async def ask(due: float) -> None:
            answers.append(await self._ask(score, next(requests), due))

        async with self._channel() as channel, asyncio.TaskGroup() as group:
            score = channel.unary_unary(_METHOD + "Score")
            due = time.perf_counter()
            begun = due + _WARM_SECONDS
            while (due := due + random.exponential(1 / rate)) < begun + seconds:
                # Also where it is due already, or those before it would never be sent.
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(ask(due))
        return Load(answers, begun, begun + seconds)

    async def _ask(
        self, score: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], request: bytes, due: float
    ) -> Answer:
        try:
            reply = await score(request, timeout=_PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            ended = time.perf_counter()
            return Answer(due, ended, 0, error.code().name, _says_when_to_retry(error))
        return Answer(due, time.perf_counter(), reply.count(self._mark), "OK", retry_info=False)

    @asynccontextmanager
    async def _channel(self) -> AsyncGenerator[grpc.aio.Channel, None]:
        # What is there by now stays: the collector need not look at it again in mid-measurement.
        gc.collect()
        gc.freeze()
        try:
            async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
                await channel.channel_ready()
                yield channel
        finally:
            gc.unfreeze()


def _says_when_to_retry(error: grpc.aio.AioRpcError) -> bool:
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    return b"google.rpc.RetryInfo" in details
