"""Spans of what the server does, for an OpenTelemetry collector.

Comes in: calls, a stream's requests, batches of records, and the times that the engine keeps. Goes
out: spans over OTLP, the trace's id in log lines and in records. A process has one tracer, as it
has one log. Without one, nothing of OpenTelemetry is loaded and every function here returns at
once. Knows nothing of samples: no text, id or provider gets into a span.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from google.rpc.code_pb2 import Code
from structlog.contextvars import bound_contextvars

from alinfik.command import CommandError
from alinfik.server.call import Clock
from alinfik.server.records import TRACEPARENT, Headers
from alinfik.server.settings import ServerSettings
from alinfik.v1 import bundle_service_pb2, valuation_service_pb2

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanContext, Tracer

Request = TypeVar("Request")
Answer = TypeVar("Answer")

# What W3C Trace Context has a caller send.
_PROPAGATED = (TRACEPARENT, "tracestate")
# Those that OpenTelemetry counts as the server's fault; any other is the caller's doing, or its
# wish, and no error of the span.
_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
_SERVICES = {
    method.name: service.full_name
    for module in (valuation_service_pb2, bundle_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
# Of one stream. It may stay open for days, and a store of traces takes some thousand spans of one.
MOST_REQUESTS = 256
# Of one batch. A span keeps 128 by OpenTelemetry's default, and nobody follows so many.
MOST_LINKS = 64
# What is left is sent within this time once the server has drained, whether or not the collector
# answers: with --drain-seconds, it must fit into what a supervisor waits.
_FLUSH_SECONDS = 3.0
# Between two lines that say that spans are lost: a collector that is away fails every export.
_QUIET_SECONDS = 60.0

_NOTHING = nullcontext()

_log = structlog.get_logger()
_tracer: "Tracer | None" = None


def check_tracing(settings: ServerSettings) -> None:
    """Refuse to trace without the packages for it.

    Raises:
        CommandError: --traces is set and they are not installed.
    """
    if not settings.traces:
        return
    try:
        import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    except ImportError as error:
        raise CommandError(
            f"--traces {settings.traces}: OpenTelemetry is not installed ({error}); "
            "pip install 'alinfik[traces]'"
        ) from error


@contextmanager
def tracing(settings: ServerSettings) -> Generator[None]:
    """Send spans to the collector that ``settings`` name, if they name one, until the block ends.

    Raises:
        CommandError: as ``check_tracing``.
    """
    check_tracing(settings)
    if not settings.traces:
        yield
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    insecure = settings.traces.startswith("http:")
    exporter = OTLPSpanExporter(settings.traces, insecure=insecure)
    with sending(exporter, settings.trace_ratio):
        yield


@contextmanager
def sending(exporter: "SpanExporter", ratio: float) -> Generator[None]:
    """Give spans to ``exporter`` until the block ends, then what is left of them.

    Args:
        exporter: shut down at the end.
        ratio: of the traces that begin here; of those that a caller began, the caller has decided.
    """
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    global _tracer  # noqa: PLW0603 - see the module's docstring
    ours = Resource({"service.name": "alinfik-server", "service.version": version("alinfik")})
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, by which whole fleets are named, go first.
        resource=ours.merge(OTELResourceDetector().detect()),
        shutdown_on_exit=False,
    )
    told = _Told()
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(told)
    logger.propagate = False
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = provider.get_tracer("alinfik.server")
    try:
        yield
    finally:
        _tracer = None
        # The provider's own bound on this is half a minute.
        flush = Thread(target=provider.shutdown, name="flush traces", daemon=True)
        flush.start()
        flush.join(_FLUSH_SECONDS)
        if flush.is_alive():
            # Ends the export that it waits for, which then says so to the handler.
            exporter.shutdown()
            flush.join(_FLUSH_SECONDS)
        logger.removeHandler(told)


class _Told(logging.Handler):
    """Puts what OpenTelemetry complains of into our log, seldom."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._quiet_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if (now := time.monotonic()) >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            _log.warning("traces may be lost", reason=record.getMessage())


def call_span(
    method: str, metadata: Iterable[tuple[str, Any]] | None, request_id: str
) -> AbstractContextManager[None]:
    """The span of one gRPC call, in the trace that its metadata name, and current meanwhile."""
    if _tracer is None:
        return _NOTHING
    return _call_span(_tracer, method, metadata or (), request_id)


@contextmanager
def _call_span(
    tracer: "Tracer", method: str, metadata: Iterable[tuple[str, Any]], request_id: str
) -> Generator[None]:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {key: value for key, value in metadata if key in _PROPAGATED}
    service = _SERVICES.get(method, "")
    span = tracer.start_span(
        f"{service}/{method}" if service else method,
        TraceContextTextMapPropagator().extract(carrier),
        SpanKind.SERVER,
        {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
            "alinfik.request_id": request_id,
        },
    )
    with _current(span, ends=True):
        yield


def set_status(code: str, message: str = "") -> None:
    """Say of the current span by which gRPC code it ended, with ``message`` if it is our fault."""
    if _tracer is None:
        return
    from opentelemetry.trace import Status, StatusCode, get_current_span

    span = get_current_span()
    span.set_attribute("rpc.grpc.status_code", Code.Value(code))
    if code in _FAULTS:
        span.set_status(Status(StatusCode.ERROR, message or code))


def request_spans(
    answer: Callable[[Request], Awaitable[Answer]],
) -> Callable[[Request], Awaitable[Answer]]:
    """Give each call of ``answer``, for a request of the current stream, a span of its own.

    Spans and not events, since a request has a duration, stages and a status, and many are under
    way at once. The first ``MOST_REQUESTS`` of the stream have one.
    """
    if (tracer := _tracer) is None:
        return answer
    from opentelemetry.trace import NonRecordingSpan, get_current_span

    stream = get_current_span()
    left = MOST_REQUESTS

    async def answer_in_span(request: Request) -> Answer:
        nonlocal left
        left -= 1
        # What is below a span that records nothing is not recorded either.
        span = (
            tracer.start_span("request")
            if left >= 0
            else NonRecordingSpan(stream.get_span_context())
        )
        with _current(span, ends=True):
            return await answer(request)

    return answer_in_span


def stage_spans(clock: Clock, samples: int) -> None:
    """Put into the current span what the engine did in it: a span for each stage of ``samples``."""
    if (tracer := _tracer) is None:
        return
    from opentelemetry.trace import get_current_span

    span = get_current_span()
    if not span.is_recording():
        return
    span.set_attributes({"alinfik.samples": samples, "alinfik.shared_samples": clock.shared})
    # Spans stand on the wall's clock.
    shift = time.time() - time.monotonic()
    for stage, begun, ended in clock.stages():
        child = tracer.start_span(stage, start_time=_nanoseconds(begun + shift))
        child.end(_nanoseconds(ended + shift))


def traced(name: str, work: Coroutine[Any, Any, Answer]) -> Coroutine[Any, Any, Answer]:
    """``work``, in a span of its own within the current one."""
    return work if _tracer is None else _traced(name, work)


async def _traced(name: str, work: Coroutine[Any, Any, Answer]) -> Answer:
    with part_span(name):
        return await work


def part_span(name: str) -> AbstractContextManager[None]:
    """A span for a part of what the current span is of; an exception is its error."""
    return _NOTHING if _tracer is None else _part_span(_tracer, name)


@contextmanager
def _part_span(tracer: "Tracer", name: str) -> Generator[None]:
    from opentelemetry.trace import Status, StatusCode, get_current_span

    if not get_current_span().is_recording():
        yield
        return
    span = tracer.start_span(name)
    with _current(span, ends=True):
        try:
            yield
        except Exception as error:
            # Its kind alone: what others' exceptions quote is not ours to send.
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


class BatchSpan:
    """The span of a batch of records, from fetched to committed or dropped.

    Args:
        span: None where nothing is traced.

    ``headers`` name its trace to whoever reads an outcome.
    """

    def __init__(self, span: "Span | None" = None) -> None:
        self._span = span
        self.headers: Headers = []
        if span is not None:
            from opentelemetry.trace import set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            carrier: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
            self.headers = [(name, value.encode()) for name, value in carrier.items()]

    def current(self) -> AbstractContextManager[None]:
        """Make it the current span meanwhile, in this thread and in what this thread starts."""
        return _NOTHING if self._span is None else _current(self._span, ends=False)

    def end(self) -> None:
        """The batch is committed."""
        if self._span is not None:
            self._span.end()

    def drop(self) -> None:
        """The batch is dropped, for its records to be read again."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, "dropped, to be read again"))
            self._span.end()


_UNTRACED = BatchSpan()


def batch_span(settings: ServerSettings, records: int, parents: Iterable[bytes]) -> BatchSpan:
    """The span of a batch of ``records``: a trace of its own, linked to those of its ``parents``.

    Args:
        settings: the input topic and the group.
        records: how many.
        parents: the ``traceparent`` of each trace that records come from; some may be none.
    """
    if (tracer := _tracer) is None:
        return _UNTRACED
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind

    span = tracer.start_span(
        f"process {settings.kafka_input}",
        Context(),
        SpanKind.CONSUMER,
        {
            "messaging.system": "kafka",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": settings.kafka_input,
            "messaging.consumer.group.name": settings.kafka_group,
            "messaging.batch.message_count": records,
        },
    )
    if span.is_recording():
        for source in islice(_contexts(parents), MOST_LINKS):
            span.add_link(source)
    return BatchSpan(span)


def _contexts(parents: Iterable[bytes]) -> "Iterator[SpanContext]":
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    for parent in parents:
        found = propagator.extract({TRACEPARENT: parent.decode("ascii", "replace")})
        context = get_current_span(found).get_span_context()
        if context.is_valid:
            yield context


@contextmanager
def _current(span: "Span", *, ends: bool) -> Generator[None]:
    """Have ``span`` be the parent of what is begun here, and its trace named in log lines."""
    from opentelemetry.trace import format_trace_id, use_span

    context = span.get_span_context()
    # A trace that is not sampled is nowhere to be found.
    named = {"trace_id": format_trace_id(context.trace_id)} if context.trace_flags.sampled else {}
    with (
        use_span(span, ends, record_exception=False, set_status_on_exception=False),
        bound_contextvars(**named),
    ):
        yield


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
