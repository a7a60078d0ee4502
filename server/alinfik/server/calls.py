"""What surrounds every gRPC call: its id in the log, its count, and its status where it failed.

Comes in: a method's name and its context. Goes out: metrics, a span, and a status instead of an
exception. Knows nothing of what the methods do.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
import structlog
from google.rpc.code_pb2 import INTERNAL, Code
from grpc.aio import AbortError, InternalError, ServicerContext
from grpc_status import rpc_status
from structlog.contextvars import bound_contextvars

from alinfik.server.errors import status_of
from alinfik.server.metrics import Metrics
from alinfik.server.tracing import call_span, set_status

# Sent by a caller, or a proxy before us, to find the call in our log; else we make one up. It goes
# back with the status, so that a caller can tell us which call failed.
REQUEST_ID = "x-request-id"
_MAX_REQUEST_ID = 128

# What interceptors deal with. Quoted, since grpc's classes take parameters in its stubs alone.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]"

_OURS = "/alinfik."

_log = structlog.get_logger()


def method_of_ours(path: str) -> str | None:
    """``Score``, of ``/alinfik.v1.ValuationService/Score``; None of what is not of our services."""
    return path.rpartition("/")[2] if path.startswith(_OURS) else None


class Calls:
    """All calls in flight."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def call(
        self, method: str, context: ServicerContext[Any, Any]
    ) -> AsyncGenerator[None, None]:
        """Surround one call of ``method``; what it raises becomes the call's status."""
        request_id = _request_id(context)
        code, message = "OK", ""
        self.in_flight += 1
        self._idle.clear()
        with (
            bound_contextvars(request_id=request_id, method=method),
            call_span(method, context.invocation_metadata(), request_id),
        ):
            context.set_trailing_metadata(((REQUEST_ID, request_id),))
            try:
                yield
            except (asyncio.CancelledError, GeneratorExit):
                code = grpc.StatusCode.CANCELLED.name
                raise
            except InternalError as error:
                # grpc's word for a message that could not be sent or read: the client has gone.
                code = grpc.StatusCode.CANCELLED.name
                raise asyncio.CancelledError from error
            except Exception as error:  # noqa: BLE001 - none may end a call without a proper status
                status = status_of(error)
                code, message = Code.Name(status.code), status.message
                if status.code == INTERNAL:
                    _log.error("call failed", error=status.message)
                end = rpc_status.to_status(status)  # pyright: ignore[reportUnknownMemberType] - untyped
                named = (*end.trailing_metadata, (REQUEST_ID, request_id))
                try:
                    await context.abort(end.code, end.details, named)
                except AbortError as aborted:
                    _forget_at_the_end(aborted, error)
                    raise
            finally:
                self._metrics.requests.labels(method, code).inc()
                set_status(code, message)
                self.in_flight -= 1
                if not self.in_flight:
                    self._idle.set()

    def refusal(self, method: str, error: Exception) -> Handler:
        """What ends a call of ``method`` with ``error``, whatever its kind.

        A stream's handler, since it may end before it has read anything: a request that is refused
        for who sent it is not worth its memory.
        """

        async def refuse(_requests: Any, context: ServicerContext[Any, Any]) -> None:
            async with self.call(method, context):
                raise error

        return grpc.stream_stream_rpc_method_handler(refuse)

    async def wait_idle(self) -> None:
        """Wait until no call is in flight."""
        await self._idle.wait()


def _forget_at_the_end(aborted: AbortError, error: Exception) -> None:
    """Cut circles that would keep a refused request until the interpreter looks for such.

    gRPC keeps its exception in the call, the exception the frames that it has passed, and these the
    call and its request.
    """

    def forget(_task: asyncio.Task[Any]) -> None:
        aborted.__context__ = None
        for one in (aborted, error):
            one.with_traceback(None)

    if task := asyncio.current_task():
        task.add_done_callback(forget)


def _request_id(context: ServicerContext[Any, Any]) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID:
            # As a header, a text that is no header would end the call without a status.
            text = str(value).encode("ascii", "ignore").decode()
            return "".join(filter(str.isprintable, text))[:_MAX_REQUEST_ID]
    # No secret: a few microseconds less than a UUID, which asks the kernel.
    return f"{random.getrandbits(128):032x}"
