"""Calls leave nothing behind that only the interpreter's collector would free.

What it frees late adds up: a request that waited in a full queue is old when its call ends, and old
circles stay until the collector looks at everything.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from grpc import StatusCode

from alinfik.v1 import ExplainRequest, Sample, ScoreRequest
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceStub
from tests.server.test_service import served

_CALLS = 20


@contextmanager
def circles() -> Generator[list[str]]:
    """What of ours, or of calls' frames, a block leaves to the collector; known at its end."""
    found: list[str] = []
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += [
            f"{type(one).__module__}.{type(one).__name__}"
            for one in gc.garbage
            if type(one).__module__.startswith("alinfik") or type(one).__name__ == "frame"
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.unfreeze()


def text(number: int) -> list[Sample]:
    return [Sample(completion=f"{number} clips")]


async def valued(stub: ValuationServiceStub, number: int) -> StatusCode:
    return await stub.Score(ScoreRequest(samples=text(number))).code()


async def invalid(stub: ValuationServiceStub, number: int) -> StatusCode:
    return await stub.Score(ScoreRequest(samples=[*text(number), Sample()])).code()


async def late(stub: ValuationServiceStub, number: int) -> StatusCode:
    return await stub.Score(ScoreRequest(samples=text(number)), timeout=0.001).code()


async def explained(stub: ValuationServiceStub, number: int) -> StatusCode:
    return await stub.Explain(ExplainRequest(samples=text(number))).code()


async def streamed(stub: ValuationServiceStub, number: int) -> StatusCode:
    stream = stub.ScoreStream()
    await stream.write(ScoreRequest(samples=[*text(number), Sample()]))
    assert len((await stream.read()).results) == 2
    await stream.done_writing()
    return await stream.code()


async def refused(stub: ValuationServiceStub, number: int) -> StatusCode:
    """One of these finds the queue full, and the others are not read."""
    samples = [Sample(completion=f"{number} {other}") for other in range(8)]
    calls = [stub.Score(ScoreRequest(samples=[sample])) for sample in samples]
    codes = {await call.code() for call in calls}
    return StatusCode.RESOURCE_EXHAUSTED if StatusCode.RESOURCE_EXHAUSTED in codes else codes.pop()


@pytest.mark.parametrize(
    ("call", "ends"),
    [
        (valued, StatusCode.OK),
        (invalid, StatusCode.INVALID_ARGUMENT),
        (late, StatusCode.DEADLINE_EXCEEDED),
        (explained, StatusCode.OK),
        (streamed, StatusCode.OK),
        (refused, StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_calls_leave_no_circles(
    tiny_bundle: Path,
    call: Callable[[ValuationServiceStub, int], Awaitable[StatusCode]],
    ends: StatusCode,
) -> None:
    async def main() -> None:
        bounds = {"queue_samples": 2, "max_samples_per_request": 2}
        async with served(tiny_bundle, **bounds) as (_, stub):
            idle = len(asyncio.all_tasks())
            await call(stub, 0)
            with circles() as found:
                codes = {await call(stub, number) for number in range(1, 1 + _CALLS)}
                async with asyncio.timeout(10):
                    # The server's side of the last one ends a moment later.
                    while len(asyncio.all_tasks()) > idle:
                        await asyncio.sleep(0.001)
            assert ends in codes
            assert found == []

    asyncio.run(main())
