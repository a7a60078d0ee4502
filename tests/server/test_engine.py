import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from alinfik.server.bundle import BundleError, load_bundle
from alinfik.server.device import find_device
from alinfik.server.engine import Engine, ModelError, NotRunningError, Outcome, Priority, QueueFull
from alinfik.server.metrics import Metrics
from alinfik.server.rejection import Rejection
from alinfik.server.settings import ServerSettings
from alinfik.v1 import Sample, Valuation
from tests.tiny_bundle import expected_values, read_manifest, write_manifest, write_tiny_bundle

CLIPS = Sample(id="clips", provider="p", prompt="How many?", completion="72 clips")
INTERACTIVE = {"priority": Priority.INTERACTIVE, "source": "grpc", "wait": False}


@asynccontextmanager
async def engine_of(
    bundle: Path, **flags: object
) -> AsyncIterator[tuple[Engine, CollectorRegistry]]:
    registry = CollectorRegistry()
    # One worker, since what waits behind one batch is what most of these tests are about.
    server_settings = ServerSettings(bundle=bundle, **{"workers": 1} | flags)
    async with Engine(load_bundle(bundle), server_settings, Metrics(registry)) as engine:
        yield engine, registry


async def score(
    engine: Engine,
    *samples: Sample,
    priority: Priority = Priority.INTERACTIVE,
    wait: bool = False,
    deadline: float | None = None,
) -> list[Outcome]:
    scored = await engine.score(
        samples, priority=priority, source="grpc", wait=wait, deadline=deadline
    )
    return scored.outcomes


def texts_of(count: int) -> list[Sample]:
    """Samples of as many texts, since one text is valued once."""
    return [Sample(id=str(n), completion=f"{n} clips") for n in range(count)]


async def in_model(registry: CollectorRegistry) -> None:
    """Wait until a batch is in the model."""
    while registry.get_sample_value("alinfik_workers_busy") != 1:
        await asyncio.sleep(0.001)


async def queued(registry: CollectorRegistry, samples: int) -> None:
    """Wait until so many samples are queued, behind a batch that is in the model."""
    while registry.get_sample_value(
        "alinfik_queue_samples"
    ) != samples or not registry.get_sample_value("alinfik_queue_tokens"):
        await asyncio.sleep(0.001)


def values(outcomes: Sequence[Outcome]) -> list[list[float]]:
    return [
        [v.value for v in outcome.values] for outcome in outcomes if isinstance(outcome, Valuation)
    ]


def seen_by_model(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("alinfik_batch_samples_sum") or 0


texts = st.one_of(st.text(max_size=60), st.sampled_from(["She sold 48 clips. " * 20, "outlandish"]))


@given(texts=st.lists(st.tuples(texts, texts), min_size=1, max_size=12), budget=st.integers(1, 400))
@settings(deadline=None, max_examples=30)
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
            assert isinstance(one, Valuation)
            assert one.sample_id == sample.id
            assert one.bundle_id == read_manifest(tiny_bundle).bundle_id
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

            def counted(outcome: str) -> float | None:
                labels = {"source": "grpc", "outcome": outcome}
                return registry.get_sample_value("alinfik_samples_total", labels)

            assert (counted("valued"), counted("rejected")) == (2, 3)

    asyncio.run(main())


def test_a_deadline_that_passes_in_the_queue_keeps_the_sample_from_the_model(
    slow_bundle: Path,
) -> None:
    async def main() -> None:
        async with engine_of(slow_bundle) as (engine, registry):
            one, late, other = texts_of(3)
            first = asyncio.create_task(score(engine, one))
            await in_model(registry)
            soon = asyncio.get_running_loop().time() + 0.02
            with pytest.raises(TimeoutError):
                await score(engine, late, deadline=soon)
            assert not first.done()
            await first
            await score(engine, other)
            assert seen_by_model(registry) == 2

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
            labels = {"source": "grpc", "outcome": "failed"}
            assert registry.get_sample_value("alinfik_samples_total", labels) == 1

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


def shared(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value("alinfik_shared_samples_total")


def test_one_text_goes_to_the_model_once_and_each_sample_keeps_its_name(slow_bundle: Path) -> None:
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
            names = [(v.sample_id, v.provider) for v in outcomes if isinstance(v, Valuation)]
            assert names == [("1", "a"), ("2", "b"), ("4", ""), ("2", "b"), ("3", "c")]
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


def test_workers_are_chosen_by_measurement_unless_they_are_set(tiny_bundle: Path) -> None:
    async def workers(**flags: object) -> int:
        async with engine_of(tiny_bundle, **flags) as (engine, _):
            assert engine.warm.tokens_per_second > 0
            return engine.warm.workers

    assert asyncio.run(workers(workers=3)) == 3
    assert asyncio.run(workers(workers=None, threads_per_worker=1)) == os.cpu_count()
    assert 1 <= asyncio.run(workers(workers=None)) <= (os.cpu_count() or 1)


def test_two_workers_give_the_values_of_one(tiny_bundle: Path) -> None:
    samples = [Sample(id=str(n), completion="She sold clips " * (n + 1)) for n in range(40)]

    async def scored(workers: int) -> list[list[float]]:
        async with engine_of(tiny_bundle, workers=workers, batch_tokens=100) as (engine, _):
            return values(await score(engine, *samples))

    np.testing.assert_allclose(asyncio.run(scored(2)), asyncio.run(scored(1)), rtol=1e-5)


def test_a_model_that_is_no_proxy_is_refused(tmp_path: Path) -> None:
    def refusal(name: str, spoil: object) -> str:
        bundle = write_tiny_bundle(tmp_path / name)
        model = onnx.load(str(bundle / "model.onnx"))
        spoil(model)
        onnx.save(model, str(bundle / "model.onnx"))
        write_manifest(bundle, read_manifest(bundle))

        async def main() -> None:
            async with engine_of(bundle):
                pass

        with pytest.raises(BundleError) as caught:
            asyncio.run(main())
        return str(caught.value)

    assert "gives ['lower', 'upper', 'value'];" in refusal("no_ood", lambda m: m.graph.output.pop())

    def forget_tokens(model: onnx.ModelProto) -> None:
        embedding = next(one for one in model.graph.initializer if one.name == "embedding")
        some = onnx.numpy_helper.to_array(embedding)[:50]
        embedding.CopyFrom(onnx.numpy_helper.from_array(some, "embedding"))

    assert "fails on its first batch" in refusal("small", forget_tokens)

    def one_column(model: onnx.ModelProto) -> None:
        columns = next(one for one in model.graph.initializer if one.name == "columns")
        some = onnx.numpy_helper.to_array(columns)[:, :1]
        columns.CopyFrom(onnx.numpy_helper.from_array(some, "columns"))
        for output in model.graph.output[:3]:
            output.type.tensor_type.shape.dim[1].dim_value = 1

    assert "gives 1 values a sample, and the manifest has 2" in refusal("one", one_column)


def test_a_bundle_is_run_in_8_bits_where_it_can_be_and_there_is_no_gpu(tmp_path: Path) -> None:
    """The bundle's int8 model gives other values, so that one can see which one ran."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    other = write_tiny_bundle(tmp_path / "other", seed=1)
    with pytest.raises(BundleError, match=r"no model\.int8\.onnx"):
        asyncio.run(value_of_clips(bundle, precision="int8"))
    shutil.copy(other / "model.onnx", bundle / "model.int8.onnx")
    write_manifest(bundle, read_manifest(bundle))
    exact, eight_bits = (expected_values(directory, CLIPS)[0][0] for directory in (bundle, other))
    chosen = eight_bits if find_device() == "cpu" else exact
    for precision, expected in (("auto", chosen), ("int8", eight_bits), ("float32", exact)):
        found = asyncio.run(value_of_clips(bundle, precision=precision))
        assert found == pytest.approx(expected, rel=1e-4)


async def value_of_clips(bundle: Path, **flags: object) -> float:
    async with engine_of(bundle, **flags) as (engine, _):
        return values(await score(engine, CLIPS))[0][0]
