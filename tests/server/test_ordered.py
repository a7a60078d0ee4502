import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from alinfik.server.bound import Bound
from alinfik.server.ordered import ClosedError, in_order


async def counted(upto: int, read: list[int]) -> AsyncIterator[int]:
    for number in range(upto):
        read.append(number)
        yield number


def test_answers_keep_the_requests_order_whatever_ends_first() -> None:
    async def main() -> None:
        latest = asyncio.Event()

        async def answer(number: int) -> int:
            # The first request ends last.
            if number == 0:
                await latest.wait()
            if number == 19:
                latest.set()
            return number

        stream = in_order(counted(20, []), answer, lambda _: 1, Bound(100), asyncio.Event())
        assert [number async for number in stream] == list(range(20))

    asyncio.run(main())


def test_no_more_is_read_than_the_bound_allows_while_answers_are_not_taken() -> None:
    async def main() -> None:
        read: list[int] = []

        async def answer(number: int) -> int:
            return number

        stream = in_order(counted(100, read), answer, lambda _: 2, Bound(10), asyncio.Event())
        async with aclosing(stream):
            taken = [await anext(stream) for _ in range(3)]
            for _ in range(50):
                await asyncio.sleep(0)
            assert taken == [0, 1, 2]
            # Five fit the bound, two were taken and given back, one is read and waits for room.
            assert len(read) == 5 + 2 + 1

    asyncio.run(main())


def test_closing_ends_the_stream_after_what_was_read() -> None:
    async def main() -> None:
        closing = asyncio.Event()
        may_end = asyncio.Event()

        async def requests() -> AsyncIterator[int]:
            yield 0
            yield 1
            closing.set()
            await asyncio.Event().wait()

        async def answer(number: int) -> int:
            await may_end.wait()
            return number

        stream = in_order(requests(), answer, lambda _: 1, Bound(10), closing)
        first = asyncio.ensure_future(anext(stream))
        await closing.wait()
        may_end.set()
        assert [await first, await anext(stream)] == [0, 1]
        with pytest.raises(ClosedError):
            await anext(stream)

    asyncio.run(main())


def test_closing_does_not_matter_once_all_is_read() -> None:
    async def main() -> None:
        closing = asyncio.Event()

        async def answer(number: int) -> int:
            closing.set()
            return number

        stream = in_order(counted(3, []), answer, lambda _: 1, Bound(10), closing)
        assert [number async for number in stream] == [0, 1, 2]

    asyncio.run(main())


def test_what_the_requests_raise_is_raised() -> None:
    async def main() -> None:
        async def requests() -> AsyncIterator[int]:
            yield 0
            raise ConnectionError("the client went")

        async def answer(number: int) -> int:
            return number

        stream = in_order(requests(), answer, lambda _: 1, Bound(10), asyncio.Event())
        assert await anext(stream) == 0
        with pytest.raises(ConnectionError):
            await anext(stream)

    asyncio.run(main())


def test_leaving_early_cancels_the_answers_under_way() -> None:
    async def main() -> None:
        cancelled: list[int] = []

        async def answer(number: int) -> int:
            try:
                if number:
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(number)
                raise
            return number

        stream = in_order(counted(5, []), answer, lambda _: 1, Bound(10), asyncio.Event())
        async with aclosing(stream):
            assert await anext(stream) == 0
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert cancelled == [1, 2, 3, 4]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
