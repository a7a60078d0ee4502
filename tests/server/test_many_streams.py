"""A thousand streams at once, some slow and some that vanish, leave nothing behind."""

import asyncio
import gc
from pathlib import Path

import grpc.aio
import psutil
from prometheus_client import CollectorRegistry

from alinfik.server.app import Running
from alinfik.v1 import Sample, ScoreRequest
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceStub
from tests.server.test_service import served

STREAMS = 1000
CHANNELS = 20
REQUESTS = 4


def texts(stream: int, turn: int) -> ScoreRequest:
    return ScoreRequest(
        samples=[Sample(id=f"{stream}.{turn}.{n}", completion=f"{n} clips") for n in range(8)]
    )


async def one_stream(stub: ValuationServiceStub, number: int) -> str:
    """Every second one reads slowly, every tenth goes after the first answer."""
    call = stub.ScoreStream(texts(number, turn) for turn in range(REQUESTS))
    for turn in range(REQUESTS):
        if number % 2:
            await asyncio.sleep(0.05)
        response = await call.read()
        assert [one.valuation.sample_id for one in response.results] == [
            sample.id for sample in texts(number, turn).samples
        ]
        if number % 10 == 0:
            call.cancel()
            return "gone"
    assert await call.read() == grpc.aio.EOF
    return "answered"


async def round_of_streams(server: Running) -> None:
    channels = [grpc.aio.insecure_channel(server.grpc) for _ in range(CHANNELS)]
    stubs = [ValuationServiceStub(channel) for channel in channels]
    ends = await asyncio.gather(
        *(one_stream(stubs[number % CHANNELS], number) for number in range(STREAMS))
    )
    assert (ends.count("gone"), ends.count("answered")) == (STREAMS // 10, STREAMS * 9 // 10)
    for channel in channels:
        await channel.close()


async def settled(registry: CollectorRegistry, tasks: int) -> None:
    """Wait until no task is left of what went on."""
    while len(asyncio.all_tasks()) > tasks:
        await asyncio.sleep(0.01)
    for gauge in ("alinfik_queue_samples", "alinfik_queue_tokens", "alinfik_workers_busy"):
        assert registry.get_sample_value(gauge) == 0


def test_a_thousand_streams_leave_nothing_behind(tiny_bundle: Path) -> None:
    async def main() -> None:
        process = psutil.Process()
        async with served(tiny_bundle) as (server, _):
            tasks = len(asyncio.all_tasks())
            levels: list[int] = []
            # The first round brings allocators and pools to their level.
            for _ in range(3):
                await round_of_streams(server)
                await settled(server.registry, tasks)
                gc.collect()
                levels.append(process.memory_info().rss)
        assert levels[-1] < 1.05 * levels[0]

    asyncio.run(asyncio.wait_for(main(), 300))
