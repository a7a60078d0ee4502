"""The gRPC service ``alinfik.v1.ValuationService``.

Comes in: requests. Goes out: responses, or the statuses of ``errors``. Knows nothing of sockets,
batches and models.
"""

# ruff: noqa: N802 - the proto names the methods

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from google.rpc.code_pb2 import Code
from grpc.aio import ServicerContext

from alinfik.server.access import may_administer
from alinfik.server.batching import Priority
from alinfik.server.bound import Bound
from alinfik.server.calls import Calls
from alinfik.server.engine import NotRunningError
from alinfik.server.errors import InvalidRequestError, status_of
from alinfik.server.limits import Limits
from alinfik.server.metrics import Metrics
from alinfik.server.ordered import ClosedError, in_order
from alinfik.server.registry import Registry
from alinfik.server.requests import explanations, response, sample_violations
from alinfik.server.settings import ServerSettings
from alinfik.server.tracing import request_spans, set_status
from alinfik.v1 import (
    ExplainRequest,
    ExplainResponse,
    GetBundleRequest,
    GetBundleResponse,
    ListBundlesRequest,
    ListBundlesResponse,
    ScoreRequest,
    ScoreResponse,
    ScoreResult,
)
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceServicer


class ValuationService(ValuationServiceServicer):
    """Values samples with the bundles of a registry.

    Args:
        settings: the bound of a stream.
        registry: values the samples.
        metrics: where to count.
        calls: surrounds every call.
        limits: the bounds of a request.
    """

    def __init__(
        self,
        settings: ServerSettings,
        registry: Registry,
        metrics: Metrics,
        calls: Calls,
        limits: Limits,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._calls = calls
        self._limits = limits
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Take no more requests; streams end once what they have read is answered."""
        self._draining.set()

    async def Score(
        self, request: ScoreRequest, context: ServicerContext[ScoreRequest, ScoreResponse]
    ) -> ScoreResponse:
        """Value a batch: all or nothing, unless the request asks for partial success."""
        async with self._calls.call("Score", context):
            self._limits.check_request(request)
            faults = sample_violations(request)
            if faults and not request.partial_success:
                self._metrics.samples.labels("grpc", "rejected").inc(len(faults))
                raise InvalidRequestError([fault for place in faults.values() for fault in place])
            deadline = _deadline(context)
            return await self._score(request, Priority.INTERACTIVE, wait=False, deadline=deadline)

    # grpc.aio takes a handler that writes to its context as well as one that yields, and only the
    # former is sure to be told at once when the client goes; its types know the latter alone.
    async def ScoreStream(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        request_iterator: AsyncIterator[ScoreRequest],
        context: ServicerContext[ScoreRequest, ScoreResponse],
    ) -> None:
        """Value batches as they come; each sample gets its own status."""
        async with self._calls.call("ScoreStream", context):
            bound = Bound(self._settings.stream_samples)
            answer = request_spans(self._answer)
            answers = in_order(request_iterator, answer, self._weight, bound, self._draining)
            try:
                async with aclosing(answers):
                    async for answered in answers:
                        await context.write(answered)
            except ClosedError as error:
                raise NotRunningError(
                    "the server is stopping; open a new stream for the requests not yet answered"
                ) from error

    async def Explain(
        self, request: ExplainRequest, context: ServicerContext[ExplainRequest, ExplainResponse]
    ) -> ExplainResponse:
        """Token values of each sample: all or none."""
        async with self._calls.call("Explain", context):
            self._limits.check_request(request)
            if faults := sample_violations(request):
                raise InvalidRequestError([fault for place in faults.values() for fault in place])
            async with asyncio.timeout_at(_deadline(context)):
                explained = await self._registry.explain(
                    request.samples, bundle_id=request.bundle_id, targets=request.targets
                )
            return explanations(request, explained)

    async def ListBundles(
        self,
        request: ListBundlesRequest,  # noqa: ARG002 - it has no fields
        context: ServicerContext[ListBundlesRequest, ListBundlesResponse],
    ) -> ListBundlesResponse:
        """The bundles in service."""
        async with self._calls.call("ListBundles", context):
            return ListBundlesResponse(bundles=self._registry.summaries())

    async def GetBundle(
        self,
        request: GetBundleRequest,
        context: ServicerContext[GetBundleRequest, GetBundleResponse],
    ) -> GetBundleResponse:
        """One bundle's manifest; providers' figures are for administrators alone."""
        async with self._calls.call("GetBundle", context):
            with self._registry.use(request.bundle_id) as engine:
                bundle = engine.bundle
            active = bundle.id == self._registry.active_id
            found = GetBundleResponse(bundle=bundle.manifest, active=active)
            if not may_administer():
                for target in found.bundle.metrics.targets:
                    target.ClearField("providers")
            return found

    async def _answer(self, request: ScoreRequest) -> ScoreResponse:
        """One request of a stream. What would fail a call is said of each of its samples."""
        try:
            self._limits.check_request(request)
            return await self._score(request, Priority.STREAM, wait=True, deadline=None)
        except Exception as error:
            status = status_of(error)
            set_status(Code.Name(status.code), status.message)
            result = ScoreResult(error=status)
            if len(request.samples) * result.ByteSize() > self._settings.max_message_bytes:
                # A sample may take two bytes, and a status a hundred: this ends the stream.
                raise
            return ScoreResponse(results=[result] * len(request.samples))

    def _weight(self, request: ScoreRequest) -> int:
        """What a request takes of ``stream_samples``; a largest one, in bytes, takes it all."""
        share = request.ByteSize() / self._settings.max_request_bytes
        # A request without samples is held too.
        return max(1, len(request.samples), math.ceil(share * self._settings.stream_samples))

    async def _score(
        self, request: ScoreRequest, priority: Priority, *, wait: bool, deadline: float | None
    ) -> ScoreResponse:
        with self._metrics.request_seconds.labels(
            "Score" if priority is Priority.INTERACTIVE else "ScoreStream"
        ).time():
            scored = await self._registry.score(
                request.samples,
                priority=priority,
                source="grpc",
                wait=wait,
                deadline=deadline,
                bundle_id=request.bundle_id,
                targets=request.targets,
            )
            return response(request, scored)


def _deadline(context: ServicerContext[Any, Any]) -> float | None:
    """On the event loop's clock."""
    # None where the caller set no deadline, whatever its type says.
    remaining = cast("float | None", context.time_remaining())
    return None if remaining is None else asyncio.get_running_loop().time() + remaining
