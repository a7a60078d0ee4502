import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from alinfik.server.app import running
from alinfik.server.batching import Priority
from alinfik.server.bundle import Bundle, load_bundle
from alinfik.server.engine import NotRunningError
from alinfik.server.metrics import Metrics
from alinfik.server.registry import InUseError, NotFoundError, Registry
from alinfik.server.settings import ServerSettings
from alinfik.server.valuation import Estimate, valuation
from alinfik.server.watch import BundleWatch
from alinfik.v1 import (
    ActivateBundleRequest,
    ListBundlesRequest,
    LoadBundleRequest,
    Sample,
    ScoreRequest,
    UnloadBundleRequest,
    Valuation,
)
from alinfik.v1.bundle_service_pb2_grpc import BundleServiceStub
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceStub
from tests.server.test_service import CLIPS, failure, fields
from tests.tiny_bundle import expected_values, read_manifest, write_tiny_bundle

HERE = {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0", "workers": 1, "open_admin": True}


@asynccontextmanager
async def registry_of(*bundles: Path) -> AsyncIterator[tuple[Registry, CollectorRegistry]]:
    """A registry with these bundles, the first of them active."""
    metrics = CollectorRegistry()
    registry = Registry(ServerSettings(bundle=list(bundles), workers=1), Metrics(metrics))
    for bundle in map(load_bundle, bundles):
        await registry.load(bundle)
    registry.activate(load_bundle(bundles[0]).id)
    yield registry, metrics
    await registry.stop()


async def value(registry: Registry, sample: Sample = CLIPS, bundle_id: str = "") -> Valuation:
    scored = await registry.score(
        [sample], priority=Priority.INTERACTIVE, source="grpc", wait=False, bundle_id=bundle_id
    )
    (outcome,) = scored.outcomes
    assert isinstance(outcome, Estimate)
    return valuation(sample, outcome)


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("other") / "bundle", seed=1)


def test_a_bundle_that_is_named_answers_and_the_active_one_else(
    tiny_bundle: Path, other_bundle: Path
) -> None:
    one, other = (read_manifest(bundle).bundle_id for bundle in (tiny_bundle, other_bundle))

    async def main() -> None:
        async with registry_of(tiny_bundle, other_bundle) as (registry, _):
            found = [await value(registry), await value(registry, bundle_id=other)]
            registry.activate(other)
            found += [await value(registry), await value(registry, bundle_id=one)]
        assert [answer.bundle_id for answer in found] == [one, other, other, one]
        for answer, bundle in zip(found, [tiny_bundle, other_bundle] * 2, strict=False):
            if answer.bundle_id == read_manifest(bundle).bundle_id:
                expected, _ = expected_values(bundle, CLIPS)
                given = [target.value for target in answer.values]
                np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)

    asyncio.run(main())


def test_a_bundle_goes_only_when_its_calls_are_over(slow_bundle: Path, tiny_bundle: Path) -> None:
    slow, tiny = (read_manifest(bundle).bundle_id for bundle in (slow_bundle, tiny_bundle))

    async def main() -> None:
        async with registry_of(slow_bundle, tiny_bundle) as (registry, _):
            with pytest.raises(InUseError, match="is the active one"):
                await registry.unload(slow)
            begun = [
                asyncio.create_task(value(registry, Sample(completion=f"{n} clips")))
                for n in range(3)
            ]
            await asyncio.sleep(0)
            registry.activate(tiny)
            leaving = asyncio.create_task(registry.unload(slow))
            await asyncio.sleep(0)
            with pytest.raises(NotFoundError, match="no bundle"):
                await value(registry, bundle_id=slow)
            assert not leaving.done()
            assert {(await call).bundle_id for call in begun} == {slow}
            await leaving
            assert (await value(registry)).bundle_id == tiny

    asyncio.run(main())


def test_a_bundle_goes_to_its_end_although_nobody_waits(
    slow_bundle: Path, tiny_bundle: Path
) -> None:
    async def main() -> None:
        async with registry_of(tiny_bundle, slow_bundle) as (registry, _):
            slow = read_manifest(slow_bundle).bundle_id
            with registry.use(slow) as engine:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(registry.unload(slow), 0.01)
                assert len(registry.summaries()) == 1
                await engine.try_model()
            await registry.stop()
            with pytest.raises(NotRunningError):
                await engine.try_model()

    asyncio.run(main())


def test_until_a_bundle_is_active_the_server_is_starting(tiny_bundle: Path) -> None:
    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        registry = Registry(ServerSettings(bundle=tiny_bundle, workers=1), metrics)
        await registry.load(load_bundle(tiny_bundle))
        with pytest.raises(NotRunningError, match="starting"):
            await value(registry)
        assert await value(registry, bundle_id=read_manifest(tiny_bundle).bundle_id)
        for registry.starting in (False, True):
            with pytest.raises(NotRunningError, match="starting"):
                await value(registry, bundle_id="f" * 64)
            registry.activate(read_manifest(tiny_bundle).bundle_id)
        await registry.stop()

    asyncio.run(main())


def test_without_a_bundle_nothing_is_valued() -> None:
    async def main() -> None:
        registry = Registry(ServerSettings(bundle=Path("b")), Metrics(CollectorRegistry()))
        with pytest.raises(NotRunningError):
            await value(registry)

    asyncio.run(main())


def test_a_shadow_is_measured_and_never_given(tiny_bundle: Path, other_bundle: Path) -> None:
    one, other = (read_manifest(bundle).bundle_id for bundle in (tiny_bundle, other_bundle))

    async def main() -> None:
        async with registry_of(tiny_bundle, other_bundle) as (registry, metrics):
            with pytest.raises(InUseError):
                registry.shadow(one)
            registry.shadow(other)
            summaries = {summary.bundle_id: summary for summary in registry.summaries()}
            assert (summaries[one].active, summaries[one].shadow) == (True, False)
            assert (summaries[other].active, summaries[other].shadow) == (False, True)
            answered = await value(registry)
            assert answered.bundle_id == one
            compared = {"outcome": "compared"}
            while metrics.get_sample_value("alinfik_shadow_samples_total", compared) != 1:
                await asyncio.sleep(0.001)
            shadowed = await value(registry, bundle_id=other)
            for mine, theirs in zip(answered.values, shadowed.values, strict=True):
                apart = metrics.get_sample_value(
                    "alinfik_shadow_percentile_difference_sum", {"target": mine.target}
                )
                assert apart == pytest.approx(abs(mine.percentile - theirs.percentile), abs=1e-4)
            given = metrics.get_sample_value("alinfik_value_count", {"target": "gsm8k"})
            assert given == 2, "what the shadow said was counted as given"
            registry.shadow("")
            await value(registry)
            assert registry.shadow_id == ""
            assert metrics.get_sample_value("alinfik_shadow_samples_total", compared) == 1

    asyncio.run(main())


def test_administrators_change_bundles_under_load_and_no_call_notices(tmp_path: Path) -> None:
    """Swaps, and loads that fail, while samples are valued; each by one bundle throughout."""
    paths = [write_tiny_bundle(tmp_path / str(seed), seed=seed) for seed in range(3)]
    (tmp_path / "broken").mkdir()
    samples = [Sample(id=str(n), completion=f"She sold {n} clips") for n in range(20)]
    expected = {
        read_manifest(path).bundle_id: [expected_values(path, one)[0] for one in samples]
        for path in paths
    }
    flags = HERE | {"cache_samples": 0, "bundle_root": tmp_path}

    async def main() -> None:
        async with (
            running(ServerSettings(bundle=paths[0], **flags)) as server,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            admin, stub = BundleServiceStub(channel), ValuationServiceStub(channel)
            swapping = True
            answers = 0

            async def load() -> None:
                nonlocal answers
                while swapping:
                    response = await stub.Score(ScoreRequest(samples=samples))
                    (by,) = {result.valuation.bundle_id for result in response.results}
                    given = [[v.value for v in r.valuation.values] for r in response.results]
                    np.testing.assert_allclose(given, expected[by], rtol=1e-5, atol=1e-5)
                    answers += 1

            callers = [asyncio.create_task(load()) for _ in range(4)]
            active = read_manifest(paths[0]).bundle_id
            for turn in range(1, 21):
                if turn % 4 == 0:
                    status = await failure(admin.LoadBundle(LoadBundleRequest(directory="broken")))
                    assert fields(status) == ["directory"]
                    continue
                loaded = await admin.LoadBundle(LoadBundleRequest(directory=str(turn % 3)))
                following = loaded.bundle.bundle_id
                if following == active:
                    continue
                said = await admin.ActivateBundle(ActivateBundleRequest(bundle_id=following))
                assert said.active_bundle_id == following
                await admin.UnloadBundle(UnloadBundleRequest(bundle_id=active))
                active = following
            swapping = False
            await asyncio.gather(*callers)
            assert answers > 20
            (left,) = (await stub.ListBundles(ListBundlesRequest())).bundles
            assert (left.bundle_id, left.active) == (active, True)

    asyncio.run(main())


def test_bundles_are_loaded_from_under_the_root_alone(tmp_path: Path, tiny_bundle: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tiny_bundle)

    async def main() -> None:
        async with (
            running(ServerSettings(bundle=tiny_bundle, bundle_root=root, **HERE)) as server,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            admin = BundleServiceStub(channel)
            for directory in ("link", "..", ".", "", "/etc", str(tiny_bundle), "a/../../b"):
                status = await failure(admin.LoadBundle(LoadBundleRequest(directory=directory)))
                assert fields(status) == ["directory"]
                assert "under --bundle-root" in status.message
            status = await failure(admin.LoadBundle(LoadBundleRequest(directory="absent")))
            assert "no such directory" in status.message
        async with (
            running(ServerSettings(bundle=tiny_bundle, **HERE)) as server,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            admin = BundleServiceStub(channel)
            status = await failure(admin.LoadBundle(LoadBundleRequest(directory="x")))
            assert status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]

    asyncio.run(main())


def test_a_watch_lives_on_when_bundles_are_changed_by_hand_meanwhile(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with registry_of(tiny_bundle) as (registry, _):
            watch = BundleWatch(registry, tmp_path, 1.0)
            new = write_tiny_bundle(tmp_path / "new", seed=2, made="2026-01-01T00:00:00Z")
            activate = registry.activate
            tiny = read_manifest(tiny_bundle).bundle_id

            def and_back(bundle_id: str) -> None:
                activate(bundle_id)
                activate(tiny)

            monkeypatch.setattr(registry, "activate", and_back)
            await watch.look()
            assert registry.active_id == tiny
            loaded = {one.bundle_id for one in registry.summaries()}
            assert loaded == {tiny, read_manifest(new).bundle_id}

    asyncio.run(main())


def test_a_watched_root_puts_its_newest_bundle_in_service(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    async def main() -> None:
        async with registry_of(tiny_bundle) as (registry, _):
            watch = BundleWatch(registry, tmp_path, 1.0)
            write_tiny_bundle(tmp_path / "old", seed=1, made="2024-01-01T00:00:00Z")
            await watch.look()
            assert registry.active_id == read_manifest(tiny_bundle).bundle_id
            new = write_tiny_bundle(tmp_path / "new", seed=2, made="2026-01-01T00:00:00Z")
            newer = write_tiny_bundle(tmp_path / "newer", seed=3, made="2026-01-02T00:00:00Z")
            (newer / "model.onnx").write_bytes(b"spoilt")
            # As a bundle is called while it is written.
            write_tiny_bundle(tmp_path / ".newest-x", seed=4, made="2026-01-03T00:00:00Z")
            await watch.look()
            assert registry.active_id == read_manifest(new).bundle_id
            newest = write_tiny_bundle(tmp_path / "newest", seed=5, made="2026-01-04T00:00:00Z")
            await watch.look()
            # One of before the swap is still there for those who name it, and no more than one.
            left = [(one.bundle_id, one.active) for one in registry.summaries()]
            assert left == [(read_manifest(one).bundle_id, one is newest) for one in (new, newest)]

    asyncio.run(main())


def test_a_start_serves_the_newest_bundle_and_none_on_the_way(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    newest, _, _ = (
        write_tiny_bundle(tmp_path / str(day), seed=day, made=f"2026-01-0{day}T00:00:00Z")
        for day in (3, 2, 1)
    )
    flags = HERE | {"bundle_root": tmp_path, "watch_seconds": 60}

    async def main() -> None:
        async with running(ServerSettings(bundle=tiny_bundle, **flags)) as server:
            loaded = [(one.bundle_id, one.active) for one in server.bundles.summaries()]
        served = (tiny_bundle, newest)
        assert loaded == [(read_manifest(one).bundle_id, one is newest) for one in served]

    asyncio.run(main())


def test_a_watched_bundle_that_is_being_copied_is_served_once_it_is_whole(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    async def main() -> None:
        async with registry_of(tiny_bundle) as (registry, _):
            new = write_tiny_bundle(tmp_path / "new", seed=2, made="2026-01-01T00:00:00Z")
            (tmp_path / "new" / "model.onnx").rename(tmp_path / "late")
            watch = BundleWatch(registry, tmp_path, 1.0)
            await watch.look()
            assert registry.active_id == read_manifest(tiny_bundle).bundle_id
            (tmp_path / "late").rename(new / "model.onnx")
            await watch.look()
            assert registry.active_id == read_manifest(new).bundle_id

    asyncio.run(main())


def test_a_watch_outlives_a_defect(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with registry_of(tiny_bundle) as (registry, _):
            watch = BundleWatch(registry, tmp_path, 0.01)
            load = registry.load

            async def load_at_second_try(_: Bundle) -> None:
                monkeypatch.setattr(registry, "load", load)
                raise MemoryError

            monkeypatch.setattr(registry, "load", load_at_second_try)
            running = asyncio.create_task(watch.run())
            write_tiny_bundle(tmp_path / "new", seed=2, made="2026-01-01T00:00:00Z")
            while registry.load != load:
                await asyncio.sleep(0.01)
            new = write_tiny_bundle(tmp_path / "newer", seed=3, made="2026-01-02T00:00:00Z")
            while registry.active_id != read_manifest(new).bundle_id:
                await asyncio.sleep(0.01)
            running.cancel()

    asyncio.run(main())


def test_calm_is_when_no_interactive_sample_is_being_valued(slow_bundle: Path) -> None:
    async def scenario() -> None:
        async with registry_of(slow_bundle) as (registry, _):
            loop = asyncio.get_running_loop()
            in_stream = asyncio.create_task(
                registry.score([CLIPS], priority=Priority.STREAM, source="kafka", wait=True)
            )
            await asyncio.sleep(0)
            # Since ever.
            assert await asyncio.wait_for(registry.calm(60), 1) == math.inf
            calls = [asyncio.create_task(value(registry, Sample(completion=text))) for text in "ab"]
            await asyncio.sleep(0)
            begun = loop.time()
            assert await registry.calm(0.01) == 0
            assert loop.time() - begun >= 0.01
            assert not any(call.done() for call in calls)
            assert await registry.calm(60) < loop.time() - begun
            assert all(call.done() for call in calls)
            await in_stream

    asyncio.run(scenario())
