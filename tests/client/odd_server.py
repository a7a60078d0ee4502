"""A real gRPC server that misbehaves to order, for what a sound one does too seldom to test."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from alinfik.v1 import ScoreRequest, ScoreResponse, ScoreResult, Valuation
from alinfik.v1.valuation_service_pb2_grpc import (
    ValuationServiceServicer,
    add_ValuationServiceServicer_to_server,
)


def valued(request: ScoreRequest) -> ScoreResponse:
    """What a sound server answers, in short."""
    valuations = [Valuation(sample_id=sample.id) for sample in request.samples]
    return ScoreResponse(results=[ScoreResult(valuation=one) for one in valuations])


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str, *details: Message):
    """End the call with a google.rpc.Status."""
    status = Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    context.abort_with_status(rpc_status.to_status(status))


@contextmanager
def odd_server(
    score: Callable[[ScoreRequest, grpc.ServicerContext], ScoreResponse] | None = None,
    score_stream: Callable[[Iterator[ScoreRequest], grpc.ServicerContext], Iterator[ScoreResponse]]
    | None = None,
) -> Generator[str]:
    """Serve the two methods as given; yields the address."""

    class Odd(ValuationServiceServicer):
        def Score(self, request, context):  # noqa: N802 - the proto names it
            return score(request, context)

        def ScoreStream(self, request_iterator, context):  # noqa: N802 - the proto names it
            yield from score_stream(request_iterator, context)

    Odd.__abstractmethods__ = frozenset()
    server = grpc.server(ThreadPoolExecutor(8))
    add_ValuationServiceServicer_to_server(Odd(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
