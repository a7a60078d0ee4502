"""Every bound: what it lets through, what it turns away and how that is told."""

import asyncio
import time
from functools import partial
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from alinfik.server.app import Running
from alinfik.server.limits import LIMITS
from alinfik.server.settings import ServerSettings
from alinfik.v1 import ExplainRequest, ListBundlesRequest, Sample, ScoreRequest, ScoreResponse
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceStub
from tests.server.test_service import detail, failure, fields, served

CLIPS = Sample(completion="72 clips")
REQUEST = ScoreRequest(samples=[CLIPS])


def refused(server: Running, limit: str) -> float | None:
    return server.registry.get_sample_value("alinfik_refused_total", {"limit": limit})


async def succeeds(call: grpc.aio.UnaryUnaryCall[object, object]) -> bool:
    code = await call.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return code is grpc.StatusCode.OK


def test_every_bound_is_a_metric(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle, max_calls=77) as (server, _):
            settings = ServerSettings(bundle=tiny_bundle, max_calls=77)
            for limit, setting in LIMITS.items():
                value = server.registry.get_sample_value("alinfik_limit", {"limit": limit})
                assert value == getattr(settings, setting)
            assert refused(server, "calls") == refused(server, "queue_samples") == 0

    asyncio.run(main())


def test_a_request_of_too_many_samples_or_bytes_is_told_to_split_and_counted(
    tiny_bundle: Path,
) -> None:
    async def main() -> None:
        bounds = {"max_samples_per_request": 3, "max_request_bytes": 1000}
        async with served(tiny_bundle, **bounds) as (server, stub):
            await stub.Score(ScoreRequest(samples=[CLIPS] * 3))
            many = ScoreRequest(samples=[CLIPS] * 4)
            large = ScoreRequest(samples=[Sample(completion="x" * 1000)])
            for request, says in [(many, "at most 3"), (large, "at most 1000")]:
                status = await failure(stub.Score(request))
                assert fields(status) == ["samples"]
                assert says in status.message
                assert "split it" in status.message
            assert refused(server, "request_samples") == refused(server, "request_bytes") == 1
            stream = stub.ScoreStream()
            await stream.write(large)
            assert fields((await stream.read()).results[0].error) == ["samples"]
            await stream.write(REQUEST)
            assert (await stream.read()).results[0].HasField("valuation")
            await stream.done_writing()
            assert await stream.code() is grpc.StatusCode.OK
            assert refused(server, "request_bytes") == 2

    asyncio.run(main())


def test_a_stream_s_request_of_millions_of_samples_ends_it_with_one_status(
    tiny_bundle: Path,
) -> None:
    """Parsed it would be forty times as large, and a status for each a hundred times."""

    async def main() -> None:
        async with served(tiny_bundle) as (server, stub):
            stream = stub.ScoreStream()
            await stream.write(REQUEST)
            assert (await stream.read()).results[0].HasField("valuation")
            await stream.write(ScoreRequest(samples=[Sample()] * 1_000_000))
            with pytest.raises(grpc.aio.AioRpcError):
                await stream.read()
            assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "more than 8192 times" in await stream.details()
            assert refused(server, "request_samples") == 1

    asyncio.run(main())


def test_a_stream_s_requests_take_room_by_their_bytes_too(slow_bundle: Path) -> None:
    async def main() -> None:
        async with served(slow_bundle, max_request_bytes=1000) as (server, stub):
            stream = stub.ScoreStream()
            for number in range(9):
                text = f"{number} clips {'x' * 800}"
                await stream.write(ScoreRequest(samples=[Sample(completion=text)]))
            while not server.registry.get_sample_value("alinfik_workers_busy"):
                await asyncio.sleep(0)
            for _ in range(20):
                # The next one at most, where the model is through with the one before it.
                assert server.registry.get_sample_value("alinfik_queue_samples") <= 1
                await asyncio.sleep(0.005)
            for _ in range(9):
                assert (await stream.read()).results[0].HasField("valuation")

    asyncio.run(main())


def test_a_call_too_many_is_told_when_to_come_back(slow_bundle: Path) -> None:
    async def main() -> None:
        async with served(slow_bundle, max_calls=1) as (server, stub):
            first = asyncio.ensure_future(stub.Score(REQUEST))
            while not server.registry.get_sample_value("alinfik_workers_busy"):
                await asyncio.sleep(0)
            status = await failure(stub.ListBundles(ListBundlesRequest()))
            assert status.code == Code.RESOURCE_EXHAUSTED
            assert detail(status, RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0
            assert "1 calls are under way" in status.message
            assert refused(server, "calls") == 1
            async with grpc.aio.insecure_channel(server.grpc) as channel:
                await HealthStub(channel).Check(HealthCheckRequest())
            assert (await first).results
            # The server lets go a moment after the caller has its answer.
            while not await succeeds(stub.ListBundles(ListBundlesRequest())):
                pass

    asyncio.run(main())


@pytest.mark.parametrize("another_bundle", [False, True])
def test_behind_a_full_queue_calls_are_refused_unread(
    slow_bundle: Path, tiny_bundle: Path, another_bundle: bool
) -> None:
    """Unless there is a bundle with room, which a call might be for."""
    bundles = [slow_bundle, tiny_bundle] if another_bundle else [slow_bundle]
    full = {"queue_samples": 1, "max_samples_per_request": 1, "batch_tokens": 1}

    async def main() -> None:
        async with (
            served(bundles, **full) as (server, stub),
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            score = channel.unary_unary("/alinfik.v1.ValuationService/Score")
            calls: list[asyncio.Future[object]] = []
            for number, has_come in enumerate(
                # To the model, into the queue, and to where it finds no room.
                (
                    partial(server.registry.get_sample_value, "alinfik_workers_busy"),
                    partial(server.registry.get_sample_value, "alinfik_queue_samples"),
                    partial(refused, server, "queue_samples"),
                )
            ):
                request = ScoreRequest(samples=[Sample(completion=f"{number} clips")])
                calls.append(asyncio.ensure_future(stub.Score(request)))
                while not has_come():
                    await asyncio.sleep(0.001)
            status = await failure(score(b"no message"))
            if another_bundle:
                assert status.code == Code.INVALID_ARGUMENT
            else:
                assert status.code == Code.RESOURCE_EXHAUSTED
                assert detail(status, RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0
                assert refused(server, "queue_samples") == 2
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [isinstance(end, ScoreResponse) for end in ends] == [True, True, False]
            assert (await failure(score(b"no message"))).code == Code.INVALID_ARGUMENT

    asyncio.run(main())


def test_a_stream_too_many_is_refused_until_another_ends(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle, max_streams=1) as (server, stub):

            async def opened() -> grpc.aio.StreamStreamCall:
                """A stream that has had an answer; tries until there is room."""
                while True:
                    stream = stub.ScoreStream()
                    try:
                        await stream.write(REQUEST)
                        assert isinstance(await stream.read(), ScoreResponse)
                    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                        assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    else:
                        return stream

            for end in ("cancel", "done", "done"):
                first = await opened()
                before = refused(server, "streams")
                second = stub.ScoreStream()
                await second.done_writing()
                assert await second.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "1 streams are under way" in await second.details()
                assert refused(server, "streams") == before + 1
                await stub.Score(REQUEST)
                if end == "cancel":
                    first.cancel()
                else:
                    await first.done_writing()
                    assert await first.code() is grpc.StatusCode.OK

    asyncio.run(main())


def test_an_explain_too_many_is_refused(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle, max_explains=1) as (server, stub):
            request = ExplainRequest(samples=[CLIPS] * 64)
            done = await asyncio.gather(*[succeeds(stub.Explain(request)) for _ in range(3)])
            assert True in done
            assert refused(server, "explains") == done.count(False) > 0

    asyncio.run(main())


def test_a_connection_of_age_is_left_by_new_calls_and_lasts_for_old_ones(
    tiny_bundle: Path,
) -> None:
    async def main() -> None:
        async with (
            served(tiny_bundle, max_connection_seconds=0.1) as (server, _),
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            stub = ValuationServiceStub(channel)
            stream = stub.ScoreStream()
            await stream.write(REQUEST)
            await stream.read()
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            await stub.Score(REQUEST)
            await stream.write(REQUEST)
            assert (await stream.read()).results

    asyncio.run(main())


def test_callers_who_leave_at_any_moment_take_no_room_with_them(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle, max_calls=16) as (_, stub):
            for turn in range(200):
                calls = [stub.Score(REQUEST), stub.ScoreStream(), stub.ScoreStream()]
                for _ in range(turn % 7):
                    await asyncio.sleep(0)
                for call in calls:
                    call.cancel()
            # All of the room is there again, once the server has heard of them.
            while not all(
                await asyncio.gather(*[succeeds(stub.Score(REQUEST)) for _ in range(16)])
            ):
                pass

    asyncio.run(main())


def test_a_client_that_pings_without_pause_is_sent_away(tiny_bundle: Path) -> None:
    restless = [("grpc.keepalive_time_ms", 200), ("grpc.http2.max_pings_without_data", 0)]

    async def main() -> None:
        async with (
            served(tiny_bundle) as (server, stub),
            grpc.aio.insecure_channel(server.grpc, options=restless) as channel,
        ):
            quiet, idle = stub.ScoreStream(), ValuationServiceStub(channel).ScoreStream()
            for stream in (quiet, idle):
                await stream.write(REQUEST)
                await stream.read()
            assert await idle.code() is grpc.StatusCode.UNAVAILABLE
            assert "Too many pings" in await idle.details()
            await quiet.write(REQUEST)
            assert (await quiet.read()).results

    asyncio.run(main())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"max_request_bytes": 2, "max_message_bytes": 1}, "no such request could ever be read"),
        ({"tls_key": "k"}, "--tls-certificate and --tls-key go together"),
        ({"tls_client_ca": "c"}, "--tls-client-ca needs --tls-certificate"),
        ({"tokens": "t", "open_admin": True}, "--open-admin is for servers without --tokens"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    flags: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        ServerSettings(bundle=Path("b"), **flags)


def test_calls_that_the_event_loop_comes_to_far_too_late_are_let_go(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle, pending_seconds=1) as (server, _):

            def codes(address: str) -> list[grpc.StatusCode]:
                with grpc.insecure_channel(address) as channel:
                    stub = ValuationServiceStub(channel)
                    calls = [stub.Score.future(REQUEST) for _ in range(8)]
                    return [call.code() for call in calls]

            calling = asyncio.create_task(asyncio.to_thread(codes, server.grpc))
            await asyncio.sleep(0)
            time.sleep(3)
            late = await calling
            assert set(late) == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
            # What comes in time is answered as ever.
            again = await asyncio.to_thread(codes, server.grpc)
            assert set(again) == {grpc.StatusCode.OK}

    asyncio.run(main())
