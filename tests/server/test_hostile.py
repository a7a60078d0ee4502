"""Whatever bytes arrive, callers get a documented status and the server stays healthy."""

from collections.abc import Sequence
from contextlib import suppress

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alinfik.v1 import (
    ActivateBundleRequest,
    ExplainRequest,
    GetBundleRequest,
    ListBundlesRequest,
    LoadBundleRequest,
    Sample,
    ScoreRequest,
    UnloadBundleRequest,
)
from tests.server_process import ServerProcess

VALUATION, BUNDLES = "/alinfik.v1.ValuationService/", "/alinfik.v1.BundleService/"
UNARY = [
    *(VALUATION + name for name in ("Score", "Explain", "ListBundles", "GetBundle")),
    *(BUNDLES + name for name in ("LoadBundle", "ActivateBundle", "UnloadBundle")),
]
STREAM = VALUATION + "ScoreStream"

# Those of the contract; INTERNAL is not among them, since nothing here breaks the model.
DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
}

texts = st.text(max_size=40)
samples = st.builds(Sample, id=texts, provider=texts, prompt=texts, completion=texts)
names = st.lists(texts, max_size=3)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        ScoreRequest,
        samples=st.lists(samples, max_size=4),
        bundle_id=texts | st.just(""),
        targets=names | st.just([]),
        partial_success=st.booleans(),
    ),
    st.builds(ExplainRequest, samples=st.lists(samples, max_size=2), targets=names),
    st.builds(GetBundleRequest, bundle_id=texts),
    st.builds(ListBundlesRequest),
    st.builds(LoadBundleRequest, directory=texts),
    st.builds(ActivateBundleRequest, bundle_id=texts.filter(bool), shadow=st.booleans()),
    st.builds(UnloadBundleRequest, bundle_id=texts),
)
payloads = st.one_of(st.binary(max_size=200), messages.map(lambda one: one.SerializeToString()))


def unary(channel: grpc.Channel, method: str, payload: bytes) -> grpc.StatusCode:
    return channel.unary_unary(method).future(payload, timeout=30).code()


def stream(channel: grpc.Channel, payloads: Sequence[bytes]) -> grpc.StatusCode:
    call = channel.stream_stream(STREAM)(iter(payloads), timeout=30)
    with suppress(grpc.RpcError):
        for _ in call:
            pass
    return call.code()


@given(method=st.sampled_from(UNARY), payload=payloads, stream_of=st.lists(payloads, max_size=4))
@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_bytes_and_any_message_get_a_documented_status(
    server: ServerProcess, method: str, payload: bytes, stream_of: list[bytes]
) -> None:
    # The blocking client: grpc.aio's says INTERNAL where a status crosses a request on its way.
    with grpc.insecure_channel(server.grpc) as channel:
        assert unary(channel, method, payload) in DOCUMENTED
        assert stream(channel, stream_of) in DOCUMENTED
        health = HealthStub(channel).Check(HealthCheckRequest())
        assert health.status == HealthCheckResponse.SERVING
