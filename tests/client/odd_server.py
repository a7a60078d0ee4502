"""A real gRPC server that behaves to order, for what a sound one does too seldom to test."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from alinfik.v1 import (
    BundleManifest,
    BundleSummary,
    GetBundleResponse,
    ListBundlesResponse,
    ScoreRequest,
    ScoreResponse,
    ScoreResult,
    Valuation,
)
from alinfik.v1.bundle_service_pb2_grpc import (
    BundleServiceServicer,
    add_BundleServiceServicer_to_server,
)
from alinfik.v1.valuation_service_pb2_grpc import (
    ValuationServiceServicer,
    add_ValuationServiceServicer_to_server,
)

Handler = Callable[[Any, grpc.ServicerContext], Any]


def valued(request: ScoreRequest) -> ScoreResponse:
    """What a sound server answers, in short."""
    valuations = [
        Valuation(sample_id=sample.id, provider=sample.provider) for sample in request.samples
    ]
    return ScoreResponse(results=[ScoreResult(valuation=one) for one in valuations])


def abort(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    message: str,
    *details: Message,
    request_id: str = "",
):
    """End the call with a google.rpc.Status."""
    status = Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    ended = rpc_status.to_status(status)
    if request_id:
        trailing = (*ended.trailing_metadata, ("x-request-id", request_id))
        ended = ended._replace(trailing_metadata=trailing)
    context.abort_with_status(ended)


def seeing(seen):
    """Two methods that keep what every call says of its caller."""

    def score(request, context):
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        return valued(request)

    def score_stream(requests, context):
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        yield from map(valued, requests)

    return score, score_stream


@contextmanager
def odd_server(
    score: Handler | None = None,
    score_stream: Callable[[Iterator[ScoreRequest], grpc.ServicerContext], Iterator[ScoreResponse]]
    | None = None,
    *,
    explain: Handler | None = None,
    load: Handler | None = None,
    activate: Handler | None = None,
    unload: Handler | None = None,
    bundle: BundleManifest | None = None,
    summaries: Sequence[BundleSummary] = (),
    credentials: grpc.ServerCredentials | None = None,
) -> Generator[str]:
    """Serve the methods as given, and one bundle, which is nameless by default; yields the address.

    With credentials the host of the address is ``localhost``, which certificates can name.
    """

    class Odd(ValuationServiceServicer, BundleServiceServicer):
        def Score(self, request, context):  # noqa: N802 - the proto names it, and those below
            return score(request, context)

        def ScoreStream(self, request_iterator, context):  # noqa: N802
            yield from score_stream(request_iterator, context)

        def Explain(self, request, context):  # noqa: N802
            return explain(request, context)

        def GetBundle(self, request, context):  # noqa: N802, ARG002
            return GetBundleResponse(bundle=bundle or BundleManifest(), active=True)

        def ListBundles(self, request, context):  # noqa: N802, ARG002
            return ListBundlesResponse(bundles=summaries)

        def LoadBundle(self, request, context):  # noqa: N802
            return load(request, context)

        def ActivateBundle(self, request, context):  # noqa: N802
            return activate(request, context)

        def UnloadBundle(self, request, context):  # noqa: N802
            return unload(request, context)

    Odd.__abstractmethods__ = frozenset()
    server = grpc.server(ThreadPoolExecutor(8))
    add_ValuationServiceServicer_to_server(Odd(), server)
    add_BundleServiceServicer_to_server(Odd(), server)
    if credentials:
        port = server.add_secure_port("localhost:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"{'localhost' if credentials else '127.0.0.1'}:{port}"
    finally:
        server.stop(None).wait()
