"""Answers a stream's requests side by side and gives the answers in their order.

Comes in: a stream of requests. Goes out: a stream of answers, one each. Holds no more requests than
a bound allows, so whoever takes the answers slowly is read slowly. Knows nothing of gRPC.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from alinfik.server.bound import Bound

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class ClosedError(Exception):
    """Requests may have been left unread."""


async def in_order(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    weigh: Callable[[Request], int],
    bound: Bound,
    closing: asyncio.Event,
) -> AsyncGenerator[Answer, None]:
    """Yield ``answer(request)`` for each request, in order.

    Args:
        requests: read only while the requests read, and not yet answered and taken, fit the bound.
        answer: run as a task for each request; what it raises ends the stream, as what ``requests``
            raises does.
        weigh: how many of the bound's units a request takes.
        bound: this stream's own.
        closing: once set, no more is read.

    Raises:
        ClosedError: ``closing`` was set before the requests had ended. All that were read are
            answered, but for one that was still waiting for room.
    """
    answers: asyncio.Queue[tuple[asyncio.Future[Answer], int] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for request in requests:
                weight = weigh(request)
                await bound.acquire(weight)
                answers.put_nowait((asyncio.ensure_future(answer(request)), weight))
        finally:
            answers.put_nowait(None)

    reader = asyncio.create_task(read())
    closer = asyncio.create_task(closing.wait())
    closer.add_done_callback(lambda _: reader.cancel())
    try:
        while (next_answer := await answers.get()) is not None:
            future, weight = next_answer
            yield await future
            # Not before: until the caller comes for the next, this answer takes up room.
            bound.release(weight)
        await asyncio.wait([reader])
        if reader.cancelled():
            raise ClosedError
        reader.result()
    finally:
        closer.cancel()
        reader.cancel()
        while not answers.empty():
            if (left := answers.get_nowait()) is not None:
                left[0].cancel()
