"""The bounds on what callers may send and have under way at once.

Comes in: settings, requests, calls. Goes out: what fits; the rest is refused and counted by the
bound that it was past. The engine keeps the queue's bounds; where there is no room in it, a call is
told here, before it is read.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

import grpc
from grpc.aio import ServerInterceptor

from alinfik.server.admission import QueueFull
from alinfik.server.bound import Bound
from alinfik.server.calls import Calls, Continuation, Handler, method_of_ours
from alinfik.server.errors import InvalidRequestError, LimitError
from alinfik.server.metrics import Metrics
from alinfik.server.settings import ServerSettings
from alinfik.server.wire import repeats_more
from alinfik.v1 import ExplainRequest, ScoreRequest

# The settings that bound something, by the name that metrics call them.
LIMITS = {
    "request_samples": "max_samples_per_request",
    "explained_samples": "max_explained_samples",
    "request_bytes": "max_request_bytes",
    "message_bytes": "max_message_bytes",
    "calls": "max_calls",
    "streams": "max_streams",
    "explains": "max_explains",
    "stream_samples": "stream_samples",
    "queue_samples": "queue_samples",
    "queue_tokens": "queue_tokens",
    "queue_seconds": "queue_seconds",
    "pending_seconds": "pending_seconds",
}
# Those that turn something away where we see it: gRPC drops too large a message and a call that we
# do not come to on its own, and a full stream is not read on.
_REFUSING = (
    "request_samples",
    "explained_samples",
    "request_bytes",
    "calls",
    "streams",
    "explains",
    "queue_samples",
    "queue_tokens",
    "queue_seconds",
)

# A stream's request of too many samples has each of them told. One of so many times too many is
# not even parsed.
_TOLD_TIMES = 8


class Limits(ServerInterceptor):
    """Keeps the bounds of requests and calls.

    Args:
        settings: the bounds.
        metrics: where to show and count.
        calls: ends the calls that are refused.
        refusal: what a ``Score`` is refused with, unread; None where there is room.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        calls: Calls,
        refusal: Callable[[], QueueFull | None],
    ) -> None:
        self._most_samples = settings.max_samples_per_request
        self._most_explained = settings.max_explained_samples
        self._most_bytes = settings.max_request_bytes
        self._open_calls = Bound(settings.max_calls)
        self._open_streams = Bound(settings.max_streams)
        self._open_explains = Bound(settings.max_explains)
        self._refused = metrics.refused
        self._calls = calls
        self._refusal = refusal
        for limit, setting in LIMITS.items():
            metrics.limit.labels(limit).set(getattr(settings, setting))
        for limit in _REFUSING:
            # A series from the start: a rate needs a value before the first refusal.
            self._refused.labels(limit)

    def check_message(self, message: bytes) -> None:
        """Refuse a message that would be many times its size once it is parsed.

        Raises:
            InvalidRequestError: it is one of these.
        """
        if repeats_more(message, most := _TOLD_TIMES * self._most_samples):
            self._refused.labels("request_samples").inc()
            problem = f"repeats a field more than {most} times"
            mend = f"at most {self._most_samples} samples are taken, so split it"
            raise InvalidRequestError([("request", f"{problem}: {mend}")])

    def check_request(self, request: ScoreRequest | ExplainRequest) -> None:
        """Refuse a request without samples, or with more samples or bytes than are taken.

        Raises:
            InvalidRequestError: it is one of these.
        """
        count = len(request.samples)
        if not count:
            raise InvalidRequestError([("samples", "is empty: at least one sample is needed")])
        explain = isinstance(request, ExplainRequest)
        most = self._most_explained if explain else self._most_samples
        if count > most:
            self._refused.labels("explained_samples" if explain else "request_samples").inc()
            message = f"holds {count}: at most {most} a request are taken, so split it"
            raise InvalidRequestError([("samples", message)])
        if (size := request.ByteSize()) > self._most_bytes:
            self._refused.labels("request_bytes").inc()
            message = f"makes a request of {size} bytes: at most {self._most_bytes} are taken"
            raise InvalidRequestError([("samples", message + ", so split it")])

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Hand the call on where there is room for it, which it keeps to its end."""
        handler = await continuation(handler_call_details)
        method = method_of_ours(handler_call_details.method)
        task = asyncio.current_task()
        if handler is None or task is None or method is None:
            return handler
        if method == "Score" and (full := self._refusal()):
            self._refused.labels(full.limit).inc()
            return self._calls.refusal(method, full)
        bounds = [("calls", self._open_calls)]
        if handler.request_streaming:
            bounds.append(("streams", self._open_streams))
        if method == "Explain":
            bounds.append(("explains", self._open_explains))
        with ExitStack() as taken:
            for limit, bound in bounds:
                if not bound.try_acquire(1):
                    self._refused.labels(limit).inc()
                    message = f"{bound.limit} {limit} are under way, as many as are taken at once"
                    return self._calls.refusal(method, LimitError(message))
                taken.callback(bound.release, 1)
            kept = taken.pop_all()
        # The task is the call's own. Its end is the one thing that is sure to come: a client that
        # goes before its request is read has no handler run for it.
        task.add_done_callback(lambda _: kept.close())
        return handler
