import asyncio

import pytest

from alinfik.server.bound import Bound


def test_units_are_granted_first_come_first_served() -> None:
    async def main() -> None:
        bound = Bound(10)
        order: list[str] = []

        async def demand(name: str, units: int) -> None:
            await bound.acquire(units)
            order.append(name)

        await bound.acquire(8)
        async with asyncio.TaskGroup() as group:
            for name, units in (("large", 7), ("small", 1), ("next", 2)):
                group.create_task(demand(name, units))
            await asyncio.sleep(0)
            assert order == []
            assert not bound.try_acquire(1), "the small one overtook the large one before it"
            bound.release(8)
        assert order == ["large", "small", "next"]
        assert bound.held == 10

    asyncio.run(main())


def test_a_demand_above_the_limit_is_met_alone() -> None:
    bound = Bound(10)
    assert bound.try_acquire(25)
    assert not bound.try_acquire(1)
    bound.release(25)
    assert bound.try_acquire(1)
    assert not bound.try_acquire(25)


@pytest.mark.parametrize("granted_first", [False, True])
def test_a_cancelled_demand_holds_nothing_and_lets_others_pass(granted_first: bool) -> None:
    async def main() -> None:
        bound = Bound(10)
        await bound.acquire(10)
        first = asyncio.create_task(bound.acquire(10))
        second = asyncio.create_task(bound.acquire(3))
        await asyncio.sleep(0)
        if granted_first:
            bound.release(10)
            first.cancel()
        else:
            first.cancel()
            bound.release(10)
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
        assert bound.held == 3

    asyncio.run(main())
