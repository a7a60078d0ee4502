"""Spans of calls, over a real socket and to a real collector."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from alinfik.server.call import Clock
from alinfik.server.tracing import MOST_REQUESTS, call_span, sending, stage_spans
from alinfik.v1 import Sample, ScoreRequest
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceStub
from tests.server.test_app import ANY_PORT, refusal
from tests.server.test_engine import engine_of, in_model, score, texts_of
from tests.server.test_service import BLANK, CLIPS, served
from tests.server_process import running_server

SCORE = "alinfik.v1.ValuationService/Score"
STREAM = "alinfik.v1.ValuationService/ScoreStream"
STAGES = ["admission", "tokenisation", "queue", "model"]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = Sample(id="secret-id", provider="secret-provider", completion="secret text")


@contextmanager
def spans_kept(ratio: float = 1.0) -> Iterator[InMemorySpanExporter]:
    """Whose ``get_finished_spans`` are all there once the block is left."""
    kept = InMemorySpanExporter()
    with sending(kept, ratio):
        yield kept


def named(kept: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in kept.get_finished_spans() if span.name == name]


def below(kept: InMemorySpanExporter, parent: ReadableSpan) -> list[str]:
    """The names of a span's children, as they began."""
    children = [
        span
        for span in kept.get_finished_spans()
        if span.parent and span.parent.span_id == parent.context.span_id
    ]
    return [span.name for span in sorted(children, key=lambda span: span.start_time)]


def traceparent(flags: str) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{TRACE}-{PARENT}-{flags}"),)


def test_a_call_is_a_span_of_its_callers_trace_with_its_stages(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as (_, stub):
            request = ScoreRequest(samples=[SECRET])
            metadata = (*traceparent("01"), ("x-request-id", "a-request"))
            await stub.Score(request, metadata=metadata)
            await stub.Score(request)

    with spans_kept() as kept:
        asyncio.run(main())
    first, second = named(kept, SCORE)
    assert format_trace_id(first.context.trace_id) == TRACE
    assert format_span_id(first.parent.span_id) == PARENT
    assert first.parent.is_remote
    assert first.kind is SpanKind.SERVER
    assert first.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "alinfik.v1.ValuationService",
        "rpc.method": "Score",
        "rpc.grpc.status_code": 0,
        "alinfik.request_id": "a-request",
        "alinfik.samples": 1,
        "alinfik.shared_samples": 0,
    }
    assert first.status.status_code is StatusCode.UNSET
    assert below(kept, first) == STAGES
    # One after the other, within the call.
    stages = sorted(
        (
            span
            for span in kept.get_finished_spans()
            if span.name in STAGES and span.parent and span.parent.span_id == first.context.span_id
        ),
        key=lambda span: span.start_time,
    )
    times = [time for span in stages for time in (span.start_time, span.end_time)]
    assert times == sorted(times)
    # Its text was valued before, so it came to no other stage.
    assert second.parent is None
    assert second.attributes["alinfik.shared_samples"] == 1
    assert below(kept, second) == ["admission"]
    assert "secret" not in "".join(span.to_json() for span in kept.get_finished_spans())


def test_a_failure_of_the_server_fails_the_span_and_a_callers_fault_does_not(
    failing_bundle: Path,
) -> None:
    async def main() -> None:
        async with served(failing_bundle) as (_, stub):
            for sample in (BLANK, Sample(completion="to her friends")):
                with pytest.raises(grpc.aio.AioRpcError):
                    await stub.Score(ScoreRequest(samples=[sample]))

    with spans_kept() as kept:
        asyncio.run(main())
    callers, ours = named(kept, SCORE)
    assert callers.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert callers.status.status_code is StatusCode.UNSET
    assert ours.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert ours.status.status_code is StatusCode.ERROR
    assert "error id" in ours.status.description
    assert below(kept, ours) == STAGES
    assert not any(span.events for span in kept.get_finished_spans())


@pytest.mark.parametrize("reached", range(1, len(STAGES) + 1))
def test_a_call_that_ends_on_the_way_has_the_stages_that_it_came_to(reached: int) -> None:
    with spans_kept() as kept, call_span("Score", (), "a-request"):
        clock = Clock()
        for mark in ("admitted", "tokenised", "taken")[: reached - 1]:
            setattr(clock, mark, time.monotonic())
        stage_spans(clock, samples=1)
    (span,) = named(kept, SCORE)
    assert below(kept, span) == STAGES[:reached]


def test_a_call_whose_time_is_up_in_the_queue_never_came_to_the_model(slow_bundle: Path) -> None:
    async def main() -> None:
        async with engine_of(slow_bundle, batch_tokens=1) as (engine, registry):
            *ahead, late = texts_of(21)
            running = asyncio.create_task(score(engine, *ahead))
            await in_model(registry)
            # Those ahead take seconds, and on a slow machine, which tokenises late, more.
            soon = asyncio.get_running_loop().time() + 0.5
            with (
                spans_kept() as kept,
                call_span("Score", (), "a-request"),
                pytest.raises(TimeoutError),
            ):
                await score(engine, late, deadline=soon)
            assert not running.done()
            (span,) = named(kept, SCORE)
            assert below(kept, span) == STAGES[:3]
            await running

    asyncio.run(main())


def test_each_of_a_streams_first_requests_is_a_span(failing_bundle: Path) -> None:
    requests = [ScoreRequest(samples=[Sample(completion=f"{i} clips")]) for i in range(3)]
    requests.append(ScoreRequest(samples=[Sample(completion="to her friends")]))
    requests += [ScoreRequest(samples=[CLIPS])] * MOST_REQUESTS

    async def main() -> None:
        async with served(failing_bundle) as (_, stub):
            call = stub.ScoreStream(iter(requests), metadata=traceparent("01"))
            assert len([answer async for answer in call]) == len(requests)

    with spans_kept() as kept:
        asyncio.run(main())
    (stream,) = named(kept, STREAM)
    assert stream.status.status_code is StatusCode.UNSET
    assert below(kept, stream) == ["request"] * MOST_REQUESTS
    failed = [s for s in named(kept, "request") if s.status.status_code is StatusCode.ERROR]
    # And those that shared its batch.
    assert failed
    assert below(kept, failed[0]) == STAGES
    assert {format_trace_id(span.context.trace_id) for span in kept.get_finished_spans()} == {TRACE}


def test_a_caller_decides_whether_its_trace_is_kept_and_the_ratio_whether_ours_is(
    tiny_bundle: Path,
) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as (_, stub):
            request = ScoreRequest(samples=[CLIPS])
            await stub.Score(request)
            await stub.Score(request, metadata=traceparent("00"))
            await stub.Score(request, metadata=traceparent("01"))

    with spans_kept(ratio=0.0) as kept:
        asyncio.run(main())
    assert [format_trace_id(span.context.trace_id) for span in named(kept, SCORE)] == [TRACE]


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate"]), st.text())))
def test_metadata_that_name_no_trace_begin_a_new_one(metadata: list[tuple[str, str]]) -> None:
    with spans_kept() as kept, call_span("Score", metadata, "a-request"):
        pass
    (span,) = named(kept, SCORE)
    assert span.parent is None


class Collector(TraceServiceServicer):
    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []

    def Export(  # noqa: N802 - the proto names it
        self, request: ExportTraceServiceRequest, _: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        self.requests.append(request)
        return ExportTraceServiceResponse()


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector that takes OTLP, and its URL."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_collector_has_every_span_when_the_server_has_stopped(failing_bundle: Path) -> None:
    with collecting() as (collector, url):
        with (
            running_server(failing_bundle, "--traces", url) as server,
            grpc.insecure_channel(server.grpc) as channel,
        ):
            stub = ValuationServiceStub(channel)
            stub.Score(ScoreRequest(samples=[CLIPS]), metadata=traceparent("01"))
            with pytest.raises(grpc.RpcError):
                stub.Score(ScoreRequest(samples=[Sample(completion="to her friends")]))
        resources = [one for request in collector.requests for one in request.resource_spans]
    spans = [span for one in resources for scope in one.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == sorted([SCORE, *STAGES] * 2)
    kept = next(s for s in spans if s.trace_id.hex() == TRACE and s.name == SCORE)
    assert kept.parent_span_id.hex() == PARENT
    resource = {one.key: one.value.string_value for one in resources[0].resource.attributes}
    assert resource["service.name"] == "alinfik-server"
    # A line of the log says in which trace to look.
    said = [json.loads(line) for line in server.log if line.startswith("{")]
    (failed,) = [line for line in said if line["message"] == "call failed"]
    assert failed["trace_id"] in {span.trace_id.hex() for span in spans} - {TRACE}
    assert all("trace_id" not in line for line in said if "request_id" not in line)


def test_a_collector_that_is_away_costs_a_line_in_the_log(tiny_bundle: Path) -> None:
    with (
        running_server(tiny_bundle, "--traces", "http://127.0.0.1:9") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        stub = ValuationServiceStub(channel)
        assert stub.Score(ScoreRequest(samples=[CLIPS])).results[0].HasField("valuation")
    assert all(line.startswith("{") for line in server.log), server.log
    said = [json.loads(line)["message"] for line in server.log]
    assert said.count("traces may be lost") == 1
    assert said[-1] == "stopped"


def test_a_url_that_is_none_is_one_line(tiny_bundle: Path) -> None:
    for url in ("127.0.0.1:4317", "http://collector", "http://127.0.0.1:4318/v1/traces"):
        said = refusal("--bundle", tiny_bundle, *ANY_PORT, "--traces", url)
        assert "--traces: a" in said


WITHOUT_THE_EXTRA = """
import sys
sys.modules["opentelemetry"] = None
import alinfik.server.kafka_pipeline
from alinfik.server.__main__ import main
main()
"""


def test_without_the_extra_all_but_traces_works(tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_THE_EXTRA, "check", "--bundle", tiny_bundle]
    ended = subprocess.run([*command, *ANY_PORT], check=True, capture_output=True, text=True)
    assert json.loads(ended.stdout)["bundles"]
    for word in (["check"], []):
        ended = subprocess.run(
            [*command[:3], *word, *command[4:], *ANY_PORT, "--traces", "http://127.0.0.1:4317"],
            check=False,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 2
        assert ended.stderr.count("\n") == 1
        assert "pip install 'alinfik[traces]'" in ended.stderr


UNTRACED = """
import asyncio, sys
import alinfik.server.kafka_pipeline
from pathlib import Path
from alinfik.v1 import ScoreRequest
from tests.server.test_service import CLIPS, served

async def main():
    async with served(Path(sys.argv[1])) as (_, stub):
        await stub.Score(ScoreRequest(samples=[CLIPS]))

asyncio.run(main())
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_what_is_not_asked_for_is_not_loaded(tiny_bundle: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", UNTRACED, tiny_bundle], check=True, capture_output=True, text=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"
