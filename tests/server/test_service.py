import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from alinfik.server.app import Running, running
from alinfik.server.settings import ServerSettings
from alinfik.v1 import (
    GetBundleRequest,
    ListBundlesRequest,
    Sample,
    ScoreRequest,
    ScoreResponse,
)
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceStub
from tests.tiny_bundle import expected_values, read_manifest

CLIPS = Sample(id="clips", provider="p", prompt="How many?", completion="72 clips")
BLANK = Sample(id="blank", completion=" \n")
LONG = "x" * 257


@asynccontextmanager
async def served(
    bundle: Path | list[Path], **flags: object
) -> AsyncIterator[tuple[Running, ValuationServiceStub]]:
    here = {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"}
    async with (
        running(ServerSettings(bundle=bundle, **here, **{"workers": 1} | flags)) as server,
        grpc.aio.insecure_channel(server.grpc) as channel,
    ):
        yield server, ValuationServiceStub(channel)


async def failure(call: grpc.aio.UnaryUnaryCall[object, object]) -> Status:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    status = rpc_status.from_call(failed.value)
    assert status is not None, f"no details: {failed.value}"
    return status


def detail(status: Status, kind: type[Message]) -> Message:
    """The status's one detail, which must be a ``kind``."""
    message = kind()
    assert len(status.details) == 1
    assert status.details[0].Unpack(message)
    return message


def fields(status: Status) -> list[str]:
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    found = detail(status, BadRequest)
    assert all(violation.description for violation in found.field_violations)
    return [violation.field for violation in found.field_violations]


def test_score_gives_each_sample_its_values_in_order(tiny_bundle: Path) -> None:
    async def main() -> None:
        samples = [Sample(id=str(n), completion="She sold clips " * (1 + n % 7)) for n in range(50)]
        async with served(tiny_bundle) as (_, stub):
            response = await stub.Score(ScoreRequest(samples=samples))
        for sample, result in zip(samples, response.results, strict=True):
            valuation = result.valuation
            assert valuation.sample_id == sample.id
            expected, _ = expected_values(tiny_bundle, sample)
            given = [value.value for value in valuation.values]
            assert given == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)
            assert [value.target for value in valuation.values] == ["gsm8k", "mbpp"]

    asyncio.run(main())


def test_only_the_targets_asked_for_come_back(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as (_, stub):
            request = ScoreRequest(samples=[CLIPS], targets=["mbpp"])
            response = await stub.Score(request)
            assert [v.target for v in response.results[0].valuation.values] == ["mbpp"]
            # The same text, which the server remembers, by another name.
            again = Sample(
                id="again", provider="q", prompt=CLIPS.prompt, completion=CLIPS.completion
            )
            response = await stub.Score(ScoreRequest(samples=[again]))
            valuation = response.results[0].valuation
            assert response.timing.shared_count == 1
            assert (valuation.sample_id, valuation.provider) == ("again", "q")
            assert [v.target for v in valuation.values] == ["gsm8k", "mbpp"]

    asyncio.run(main())


def test_every_violation_of_a_request_is_named_by_its_path(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as (_, stub):
            worst = Sample(id=LONG, provider=LONG)
            status = await failure(stub.Score(ScoreRequest(samples=[CLIPS, BLANK, worst])))
            assert fields(status) == [
                "samples[1].completion",
                "samples[2].completion",
                "samples[2].id",
                "samples[2].provider",
            ]
            assert "samples[1].completion is empty" in status.message
            assert status.message.endswith("and 1 more")

    asyncio.run(main())


def test_what_is_told_of_a_call_fits_the_metadata_that_clients_take(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as (_, stub):
            status = await failure(stub.Score(ScoreRequest(samples=[BLANK] * 160)))
            assert fields(status) == [*(f"samples[{n}].completion" for n in range(40)), "samples"]
            assert "and 157 more" in status.message
            assert "120 more" in detail(status, BadRequest).field_violations[-1].description
            unknown = ScoreRequest(samples=[CLIPS], bundle_id="é" * 100_000)
            status = await failure(stub.Score(unknown))
            assert status.code == grpc.StatusCode.NOT_FOUND.value[0]
            assert detail(status, ResourceInfo).resource_name == f"{'é' * 64}…"

    asyncio.run(main())


def test_partial_success_gives_each_sample_its_own_outcome(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as (_, stub):
            worst = Sample(id=LONG, provider=LONG, completion="x")
            request = ScoreRequest(samples=[BLANK, CLIPS, worst], partial_success=True)
            blank, clips, long = (await stub.Score(request)).results
            assert fields(blank.error) == ["samples[0].completion"]
            assert clips.valuation.sample_id == "clips"
            assert fields(long.error) == ["samples[2].id", "samples[2].provider"]

    asyncio.run(main())


@pytest.mark.parametrize("partial_success", [False, True])
def test_none_and_too_many_samples_are_invalid(tiny_bundle: Path, partial_success: bool) -> None:
    async def main() -> None:
        async with served(tiny_bundle, max_samples_per_request=2) as (_, stub):
            for samples in ([], [CLIPS] * 3):
                request = ScoreRequest(samples=samples, partial_success=partial_success)
                assert fields(await failure(stub.Score(request))) == ["samples"]
            assert "at most 2" in (await failure(stub.Score(request))).message

    asyncio.run(main())


def test_an_unknown_target_or_bundle_is_not_found(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as (_, stub):
            asked = ScoreRequest(samples=[CLIPS], targets=["gsm8k", "tennis", "chess"])
            for call, name in (
                (stub.Score(asked), "tennis, chess"),
                (stub.Score(ScoreRequest(samples=[CLIPS], bundle_id="f" * 64)), "f" * 64),
                (stub.GetBundle(GetBundleRequest(bundle_id="f" * 64)), "f" * 64),
            ):
                status = await failure(call)
                assert status.code == grpc.StatusCode.NOT_FOUND.value[0]
                assert detail(status, ResourceInfo).resource_name == name

    asyncio.run(main())


def test_a_full_queue_is_resource_exhausted_with_retry_info(slow_bundle: Path) -> None:
    async def main() -> None:
        full = {"queue_samples": 1, "max_samples_per_request": 1, "batch_tokens": 1}
        async with served(slow_bundle, **full) as (_, stub):
            texts = [Sample(completion=f"{n} clips") for n in range(6)]
            calls = [stub.Score(ScoreRequest(samples=[text])) for text in texts]
            ends = await asyncio.gather(*calls, return_exceptions=True)
            refused = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
            assert len(refused) >= 4
            for error in refused:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                status = rpc_status.from_call(error)
                assert status is not None
                assert detail(status, RetryInfo).retry_delay.ToTimedelta().total_seconds() >= 0.05

    asyncio.run(main())


def test_a_deadline_that_passes_is_deadline_exceeded(slow_bundle: Path) -> None:
    async def main() -> None:
        async with served(slow_bundle) as (_, stub):
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await stub.Score(ScoreRequest(samples=[CLIPS]), timeout=0.05)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(main())


def test_a_model_that_fails_is_internal_with_an_id_and_no_stack_trace(failing_bundle: Path) -> None:
    async def main() -> None:
        async with served(failing_bundle) as (_, stub):
            strange = Sample(completion="A text of friends.")
            status = await failure(stub.Score(ScoreRequest(samples=[strange])))
            assert status.code == grpc.StatusCode.INTERNAL.value[0]
            info = detail(status, ErrorInfo)
            assert info.metadata["error_id"] in status.message
            assert "Traceback" not in str(status)
            assert "onnx" not in str(status).lower()

    asyncio.run(main())


def test_bundles_are_listed_and_given(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as (_, stub):
            manifest = read_manifest(tiny_bundle)
            (summary,) = (await stub.ListBundles(ListBundlesRequest())).bundles
            assert summary.bundle_id == manifest.bundle_id
            assert summary.active
            assert list(summary.targets) == ["gsm8k", "mbpp"]
            for asked in ("", manifest.bundle_id):
                response = await stub.GetBundle(GetBundleRequest(bundle_id=asked))
                assert response.bundle == manifest
                assert response.active

    asyncio.run(main())


def test_a_stream_answers_every_request_in_order_and_survives_bad_ones(tiny_bundle: Path) -> None:
    async def main() -> None:
        requests = [
            ScoreRequest(samples=[CLIPS, BLANK]),
            ScoreRequest(),
            ScoreRequest(samples=[CLIPS], targets=["tennis"]),
            ScoreRequest(samples=[CLIPS] * 3),
            *(ScoreRequest(samples=[Sample(id=str(n), completion="x " * n)]) for n in range(1, 90)),
        ]
        async with served(tiny_bundle, max_samples_per_request=2, stream_samples=8) as (_, stub):
            responses = [response async for response in stub.ScoreStream(iter(requests))]
        mixed, empty, unknown, many, *rest = responses
        assert mixed.results[0].valuation.sample_id == "clips"
        assert fields(mixed.results[1].error) == ["samples[1].completion"]
        assert empty == ScoreResponse()
        assert [r.error.code for r in unknown.results] == [grpc.StatusCode.NOT_FOUND.value[0]]
        assert [fields(result.error) for result in many.results] == [["samples"]] * 3
        ids = [response.results[0].valuation.sample_id for response in rest]
        assert ids == [str(n) for n in range(1, 90)]

    asyncio.run(main())


def test_a_full_queue_slows_a_stream_and_never_ends_it(slow_bundle: Path) -> None:
    async def main() -> None:
        full = {"queue_samples": 1, "max_samples_per_request": 1, "batch_tokens": 1}
        async with served(slow_bundle, **full) as (_, stub):
            requests = [ScoreRequest(samples=[Sample(id=str(n), completion="x")]) for n in range(6)]
            responses = [response async for response in stub.ScoreStream(iter(requests))]
        ids = [response.results[0].valuation.sample_id for response in responses]
        assert ids == list("012345")

    asyncio.run(main())


def test_a_reader_that_does_not_read_is_not_read(tiny_bundle: Path) -> None:
    """The client writes until the server stops taking; only then does it read."""

    async def main() -> None:
        provider = "p" * 256
        samples = [Sample(id=str(n), provider=provider, completion="x") for n in range(64)]
        request = ScoreRequest(samples=samples)
        enough = 1000
        async with served(tiny_bundle, stream_samples=64) as (server, stub):
            stream = stub.ScoreStream()
            written = 0
            while written < enough:
                writing = asyncio.ensure_future(stream.write(request))
                await asyncio.wait([writing], timeout=1)
                if not writing.done():
                    break
                written += 1
            assert written < enough, "the server took all, though nobody read its answers"
            valued = server.registry.get_sample_value(
                "alinfik_samples_total", {"source": "grpc", "outcome": "valued"}
            )
            assert valued is not None
            assert valued < written * 64
            for _ in range(written + 1):
                response = await stream.read()
                assert isinstance(response, ScoreResponse)
                ids = [result.valuation.sample_id for result in response.results]
                assert ids == [str(n) for n in range(64)]
            await writing
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF

    asyncio.run(main())


def test_a_client_that_goes_without_having_read_is_a_cancelled_call_and_no_defect(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        samples = [Sample(provider="p" * 256, completion="x")] * 64
        async with served(tiny_bundle) as (server, stub):
            stream = stub.ScoreStream()
            writing = asyncio.ensure_future(stream.write(ScoreRequest(samples=samples)))
            while (await asyncio.wait([writing], timeout=0.5))[0]:
                writing = asyncio.ensure_future(stream.write(ScoreRequest(samples=samples)))
            stream.cancel()
            await asyncio.wait([writing])

            def calls(code: str) -> float | None:
                labels = {"method": "ScoreStream", "code": code}
                return server.registry.get_sample_value("alinfik_requests_total", labels)

            while not any(map(calls, ("CANCELLED", "INTERNAL", "OK"))):
                await asyncio.sleep(0.001)
            assert calls("CANCELLED") == 1
            assert server.registry.get_sample_value("alinfik_queue_samples") == 0

    asyncio.run(main())
    assert "defect" not in capsys.readouterr().out
    assert not caplog.records


def test_a_client_that_goes_leaves_nothing_behind(slow_bundle: Path) -> None:
    async def main() -> None:
        async with served(slow_bundle, batch_tokens=1) as (server, stub):
            stream = stub.ScoreStream()
            for number in range(5):
                await stream.write(ScoreRequest(samples=[Sample(id=str(number), completion="x")]))
            assert (await stream.read()).results[0].valuation.sample_id == "0"
            stream.cancel()
            while server.registry.get_sample_value("alinfik_queue_samples") != 0:
                await asyncio.sleep(0.001)
            await stub.Score(ScoreRequest(samples=[CLIPS]))
            # The first of the stream, at most the one that was in the model, and the last call's.
            assert (server.registry.get_sample_value("alinfik_batch_samples_sum") or 0) <= 3

    asyncio.run(main())
