import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from alinfik.server.admission import OversizedError, QueueFull
from alinfik.server.batching import Priority
from alinfik.server.bundle import load_bundle
from alinfik.server.engine import Engine, NotRunningError
from alinfik.server.fault import ModelError
from alinfik.server.metrics import Metrics
from alinfik.server.rejection import Rejection
from alinfik.server.settings import ServerSettings
from alinfik.server.valuation import Estimate
from alinfik.v1 import Sample
from tests.server.engines import (
    CLIPS,
    INTERACTIVE,
    engine_of,
    in_model,
    queued,
    score,
    seen_by_model,
    texts_of,
    values,
)
from tests.tiny_bundle import expected_values, read_manifest, write_tiny_bundle


def counted(registry: CollectorRegistry, outcome: str) -> float | None:
    labels = {"source": "grpc", "outcome": outcome}
    return registry.get_sample_value("alinfik_samples_total", labels)


texts = st.one_of(st.text(max_size=60), st.sampled_from(["She sold 48 clips. " * 20, "outlandish"]))


@given(texts=st.lists(st.tuples(texts, texts), min_size=1, max_size=12), budget=st.integers(1, 400))
@settings(max_examples=30)
def test_values_are_the_oracles_alone_and_in_any_batch(
    tiny_bundle: Path, texts: list[tuple[str, str]], budget: int
) -> None:
    samples = [
        Sample(id=str(place), prompt=prompt, completion=completion)
        for place, (prompt, completion) in enumerate(texts)
    ]

    async def main() -> None:
        async with engine_of(tiny_bundle, batch_tokens=budget) as (engine, _):
            together = await score(engine, *samples)
            alone = [(await score(engine, sample))[0] for sample in samples]
        for sample, one, other in zip(samples, together, alone, strict=True):
            if not sample.completion or sample.completion.isspace():
                assert isinstance(one, Rejection)
                assert one.reason == "empty_completion"
                continue
            expected, ood = expected_values(tiny_bundle, sample)
            assert isinstance(one, Estimate)
            assert one.bundle.id == read_manifest(tiny_bundle).bundle_id
            np.testing.assert_allclose(values([one, other]), [expected] * 2, rtol=1e-5, atol=1e-5)
            assert one.out_of_distribution_score == pytest.approx(ood, rel=1e-5)
            assert one.out_of_distribution == (ood > 20)

    asyncio.run(main())


def test_bad_samples_are_rejected_in_place_and_counted(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(tiny_bundle) as (engine, registry):
            outcomes = await score(
                engine,
                Sample(completion=" \n\t\u2003"),
                CLIPS,
                Sample(id="é" * 129, completion="x"),
                Sample(provider="p" * 257, completion="x"),
                Sample(id="é" * 128, provider="p" * 256, completion="x"),
            )
            reasons = [o.reason if isinstance(o, Rejection) else None for o in outcomes]
            assert reasons == ["empty_completion", None, "id_too_long", "provider_too_long", None]
            assert (counted(registry, "valued"), counted(registry, "rejected")) == (2, 3)

    asyncio.run(main())


def test_a_deadline_that_passes_in_the_queue_keeps_the_sample_from_the_model(
    slow_bundle: Path,
) -> None:
    async def main() -> None:
        async with engine_of(slow_bundle, batch_tokens=1) as (engine, registry):
            *ahead, late, other = texts_of(22)
            first = asyncio.create_task(score(engine, *ahead))
            await in_model(registry)
            # Those ahead take seconds, and on a slow machine, which tokenises late, more.
            soon = asyncio.get_running_loop().time() + 0.5
            with pytest.raises(TimeoutError):
                await score(engine, late, deadline=soon)
            assert not first.done()
            assert counted(registry, "dropped") == 1
            await first
            await score(engine, other)
            assert seen_by_model(registry) == len(ahead) + 1

    asyncio.run(main())


def test_a_cancelled_call_frees_its_room_and_never_reaches_the_model(slow_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(slow_bundle) as (engine, registry):
            first = asyncio.create_task(score(engine, CLIPS))
            await in_model(registry)
            gone = asyncio.create_task(score(engine, *texts_of(3)))
            await queued(registry, 3)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert registry.get_sample_value("alinfik_queue_samples") == 0
            await first
            assert seen_by_model(registry) == 1

    asyncio.run(main())


def test_a_full_queue_refuses_the_impatient_and_lets_the_patient_wait(slow_bundle: Path) -> None:
    async def main() -> None:
        full = {"queue_samples": 1, "max_samples_per_request": 1}
        async with engine_of(slow_bundle, **full) as (engine, registry):
            one, two, three = texts_of(3)
            running = asyncio.create_task(score(engine, one))
            await in_model(registry)
            waiting = asyncio.create_task(score(engine, two))
            await queued(registry, 1)
            with pytest.raises(QueueFull) as refused:
                await score(engine, three)
            assert 0.05 <= refused.value.retry_after_seconds <= 30
            patient = await score(engine, three, wait=True)
            found = [values(outcomes)[0] for outcomes in (await running, await waiting, patient)]
            expected = [expected_values(slow_bundle, sample)[0] for sample in (one, two, three)]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    asyncio.run(main())


def test_a_call_of_more_tokens_than_ever_have_room_is_told_to_split(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(tiny_bundle, queue_tokens=20) as (engine, registry):
            with pytest.raises(OversizedError, match="at most 20 are taken of one Score, so split"):
                await score(engine, *texts_of(9))
            assert registry.get_sample_value("alinfik_queue_samples") == 0
            assert len(values(await score(engine, *texts_of(1)))) == 1
            assert len(values(await score(engine, *texts_of(9), wait=True))) == 9

    asyncio.run(main())


def test_a_wait_that_would_be_too_long_is_refused_to_the_impatient(slow_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(slow_bundle, queue_seconds=1e-6) as (engine, registry):
            one, two, three = texts_of(3)
            running = asyncio.create_task(score(engine, one))
            await in_model(registry)
            waiting = asyncio.create_task(score(engine, two))
            await queued(registry, 1)
            with pytest.raises(QueueFull):
                await score(engine, three)
            refused = registry.get_sample_value("alinfik_refused_total", {"limit": "queue_seconds"})
            assert refused == 1
            assert counted(registry, "refused") == 1
            assert counted(registry, "failed") == 0
            await asyncio.gather(running, waiting, score(engine, three, wait=True))

    asyncio.run(main())


def test_streams_that_fill_their_queue_leave_interactive_calls_their_own(slow_bundle: Path) -> None:
    async def main() -> None:
        full = {"queue_samples": 1, "max_samples_per_request": 1, "batch_tokens": 1}
        async with engine_of(slow_bundle, **full) as (engine, registry):
            order: list[str] = []

            async def call(name: str, priority: Priority) -> None:
                sample = Sample(completion=name)
                await score(engine, sample, priority=priority, wait=priority is Priority.STREAM)
                order.append(name)

            async with asyncio.TaskGroup() as group:
                group.create_task(call("running", Priority.STREAM))
                await in_model(registry)
                group.create_task(call("stream 1", Priority.STREAM))
                group.create_task(call("stream 2", Priority.STREAM))
                await queued(registry, 1)
                group.create_task(call("interactive", Priority.INTERACTIVE))
            assert order == ["running", "interactive", "stream 1", "stream 2"]

    asyncio.run(main())


def test_a_model_that_fails_fails_its_callers_and_not_the_engine(failing_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(failing_bundle) as (engine, registry):
            with pytest.raises(ModelError) as failed:
                await score(engine, Sample(completion="A text of friends."))
            assert len(failed.value.error_id) == 12
            assert failed.value.error_id in str(failed.value)
            assert len(values(await score(engine, CLIPS))) == 1
            assert counted(registry, "failed") == 1

    asyncio.run(main())


def test_a_text_that_the_model_fails_on_takes_no_stranger_along(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", loops=200_000, fails_on_friends=True)

    async def main() -> None:
        async with engine_of(bundle, batch_tokens=1000) as (engine, registry):
            running = asyncio.create_task(score(engine, *texts_of(1)))
            await in_model(registry)
            bad = asyncio.create_task(score(engine, Sample(completion="A text of friends.")))
            good = asyncio.create_task(score(engine, CLIPS))
            await queued(registry, 2)
            with pytest.raises(ModelError):
                await bad
            expected, _ = expected_values(bundle, CLIPS)
            np.testing.assert_allclose(values(await good), [expected], rtol=1e-5, atol=1e-5)
            await running
            # The batch of both failed, and so nobody counted it.
            assert seen_by_model(registry) == 2

    asyncio.run(main())


def test_calls_are_refused_before_start_and_after_stop(tiny_bundle: Path) -> None:
    async def main() -> None:
        engine = Engine(
            load_bundle(tiny_bundle),
            ServerSettings(bundle=tiny_bundle),
            Metrics(CollectorRegistry()),
        )
        with pytest.raises(NotRunningError):
            await score(engine, CLIPS)
        await engine.start()
        await score(engine, CLIPS)
        await engine.stop()
        with pytest.raises(NotRunningError):
            await score(engine, CLIPS)

    asyncio.run(main())


def test_stopping_ends_every_call_that_is_queued_or_waits_for_room(slow_bundle: Path) -> None:
    async def main() -> None:
        tight = {"queue_samples": 2, "max_samples_per_request": 2, "batch_tokens": 1}
        async with engine_of(slow_bundle, **tight) as (engine, registry):
            calls = [asyncio.create_task(score(engine, one, wait=True)) for one in texts_of(6)]
            await in_model(registry)
            await engine.stop()
            ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} <= {list, NotRunningError}
        assert any(isinstance(end, NotRunningError) for end in ends)

    asyncio.run(main())


def test_a_call_says_where_its_time_went(slow_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(slow_bundle) as (engine, registry):
            running = asyncio.create_task(score(engine, *texts_of(1)))
            await in_model(registry)
            begun = time.monotonic()
            timing = (await engine.score([CLIPS], **INTERACTIVE)).timing
            took = time.monotonic() - begun
            parts = [
                duration.ToTimedelta().total_seconds()
                for duration in (
                    timing.admission_duration,
                    timing.tokenisation_duration,
                    timing.queue_duration,
                    timing.model_duration,
                )
            ]
            assert all(part >= 0 for part in parts)
            # Behind one batch, and in one of its own.
            assert min(parts[2:]) > 0
            assert took / 2 < sum(parts) <= took
            assert (await engine.score([CLIPS], **INTERACTIVE)).timing.shared_count == 1
            await running

    asyncio.run(main())
