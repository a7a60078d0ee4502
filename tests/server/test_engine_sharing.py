"""One text goes to the model once: in flight, and in the cache."""

import asyncio
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from alinfik.server.batching import Priority
from alinfik.v1 import Sample
from tests.server.engines import (
    CLIPS,
    engine_of,
    in_model,
    queued,
    score,
    seen_by_model,
    texts_of,
    values,
)
from tests.tiny_bundle import expected_values


def shared(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value("alinfik_shared_samples_total")


def test_one_text_goes_to_the_model_once(slow_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(slow_bundle) as (engine, registry):
            text = {"prompt": "How many?", "completion": "72 clips"}
            first = Sample(id="1", provider="a", **text)
            in_flight = Sample(id="2", provider="b", **text)
            later = Sample(id="3", provider="c", **text)
            other = Sample(id="4", prompt="How many?72", completion=" clips")
            together = await asyncio.gather(
                score(engine, first, in_flight, other), score(engine, in_flight)
            )
            outcomes = [*together[0], *together[1], *await score(engine, later)]
            assert seen_by_model(registry) == 2
            assert shared(registry) == 3
            assert values(outcomes)[0] == values(outcomes)[1] == values(outcomes)[4]
            assert values(outcomes)[0] != values(outcomes)[2]

    asyncio.run(main())


def test_who_goes_leaves_the_text_to_those_who_stay(slow_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(slow_bundle) as (engine, registry):
            running = asyncio.create_task(score(engine, *texts_of(1)))
            await in_model(registry)
            goes = asyncio.create_task(score(engine, CLIPS))
            await queued(registry, 1)
            stays = asyncio.create_task(score(engine, CLIPS))
            await asyncio.sleep(0.05)
            goes.cancel()
            expected, _ = expected_values(slow_bundle, CLIPS)
            np.testing.assert_allclose(values(await stays), [expected], rtol=1e-5, atol=1e-5)
            await running
            assert registry.get_sample_value("alinfik_queue_samples") == 0

    asyncio.run(main())


def test_a_text_of_a_stream_goes_first_once_a_caller_waits_for_it(slow_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(slow_bundle, batch_tokens=1) as (engine, registry):
            running, other, wanted = texts_of(3)
            ends: list[str] = []

            async def call(name: str, sample: Sample, priority: Priority) -> None:
                await score(engine, sample, priority=priority)
                ends.append(name)

            async with asyncio.TaskGroup() as group:
                group.create_task(call("running", running, Priority.STREAM))
                await in_model(registry)
                group.create_task(call("other", other, Priority.STREAM))
                await queued(registry, 1)
                group.create_task(call("stream", wanted, Priority.STREAM))
                await queued(registry, 2)
                group.create_task(call("interactive", wanted, Priority.INTERACTIVE))
            assert ends == ["running", "stream", "interactive", "other"]

    asyncio.run(main())


def test_a_cache_keeps_what_was_used_last(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(tiny_bundle, cache_samples=2) as (engine, registry):
            one, two, three = texts_of(3)
            for sample, known in ((one, 0), (two, 0), (one, 1), (three, 1), (one, 2), (two, 2)):
                await score(engine, sample)
                assert shared(registry) == known
        async with engine_of(tiny_bundle, cache_samples=0) as (engine, registry):
            await score(engine, one)
            await score(engine, one)
            assert shared(registry) == 0

    asyncio.run(main())
