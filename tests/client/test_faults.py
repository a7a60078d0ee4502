"""What either client makes of refusals and faults. Each test runs twice, as in test_client."""

import asyncio
import itertools
import threading

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from alinfik.client import (
    AsyncClient,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ServerError,
    UnauthenticatedError,
    UnavailableError,
)
from alinfik.client.batches import BYTES_A_REQUEST, REQUESTS_IN_FLIGHT, SAMPLES_A_REQUEST
from alinfik.v1 import (
    Sample,
    ScoreResponse,
    ScoreResult,
)
from tests.client.both import SAMPLES
from tests.client.odd_server import abort, odd_server, valued


def test_nobody_there_is_unavailable_and_says_where(client):
    with odd_server() as address:
        pass
    with pytest.raises(UnavailableError, match=f"{address}: .*Connection refused"):
        client.score(address, SAMPLES)
    with pytest.raises(UnavailableError, match=address):
        list(client.score_stream(address, SAMPLES))


def test_no_answer_in_time_is_an_error(client):
    release = threading.Event()

    def score(request, _):
        release.wait(20)
        return valued(request)

    def score_stream(requests, _):
        yield valued(next(requests))
        release.wait(20)

    with odd_server(score, score_stream) as address:
        with pytest.raises(DeadlineExceededError, match=f"{address}: no answer within 0.2 s"):
            client.score(address, SAMPLES, timeout_seconds=0.2)
        answered = []
        with pytest.raises(DeadlineExceededError, match=f"{address}: no answer within 0.2 s"):
            answered.extend(
                client.score_stream(
                    address, SAMPLES[:1] * (SAMPLES_A_REQUEST + 1), timeout_seconds=0.2
                )
            )
        release.set()


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
    ],
)
def test_a_passing_fault_is_ridden_out(client, code):
    calls = itertools.count()

    def score(request, context):
        if next(calls) < 2:
            abort(context, code, "not now")
        return valued(request)

    with odd_server(score) as address:
        assert len(client.score(address, SAMPLES)) == 2
    assert next(calls) == 3


def refusing(code, retry_seconds, calls, times=99):
    """A method that refuses ``times`` calls, and keeps the seconds that each had left."""

    def score(request, context):
        calls.append(context.time_remaining())
        if len(calls) <= times:
            delay = Duration()
            delay.FromNanoseconds(int(retry_seconds * 1e9))
            abort(context, code, "not now", RetryInfo(retry_delay=delay))
        return valued(request)

    return score


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_refused_call_comes_back_when_told_to_and_keeps_its_deadline(client, code):
    calls = []
    with odd_server(refusing(code, 0.5, calls, times=1)) as address:
        assert len(client.score(address, SAMPLES, timeout_seconds=10)) == 2
    first, second = calls
    assert second < first - 0.4 < 10


def test_a_wait_that_would_pass_the_deadline_is_not_begun(client):
    calls = []
    refuses = refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, 60, calls)
    with odd_server(refuses) as address, pytest.raises(OverloadedError) as error:
        client.score(address, SAMPLES)
    assert error.value.retry_after_seconds == 60
    assert str(error.value) == f"{address}: not now"
    assert len(calls) == 1


def test_a_call_that_the_server_always_lets_go_of_is_unavailable(client):
    def score(_, context):
        abort(context, grpc.StatusCode.CANCELLED, "")

    with odd_server(score) as address, pytest.raises(UnavailableError) as error:
        client.score(address, SAMPLES)
    assert str(error.value) == f"{address}: the server let go of the call"


def test_a_call_that_is_always_refused_gives_up(client):
    calls = []
    refuses = refusing(grpc.StatusCode.UNAVAILABLE, 0.01, calls)
    with odd_server(refuses) as address, pytest.raises(UnavailableError, match="not now"):
        client.score(address, SAMPLES)
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("samples", "requests_read"),
    [
        (SAMPLES, 1),
        ([Sample(completion="x" * (BYTES_A_REQUEST - 9))] * REQUESTS_IN_FLIGHT, REQUESTS_IN_FLIGHT),
    ],
    ids=["small", "as much as may be in flight"],
)
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_a_stream_that_is_refused_before_its_first_answer_is_made_again(
    client, samples, requests_read, code
):
    calls = itertools.count()

    def score_stream(requests, context):
        if next(calls) < 2:
            assert len(list(itertools.islice(requests, requests_read))) == requests_read
            abort(context, code, "not now")
        yield from map(valued, requests)

    with odd_server(score_stream=score_stream) as address:
        assert len(list(client.score_stream(address, samples))) == len(samples)
    assert next(calls) == 3


def test_violated_fields_are_named(client):
    def score(_, context):
        bad = BadRequest(
            field_violations=[BadRequest.FieldViolation(field="targets", description="are many")]
        )
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, "invalid", bad)

    with odd_server(score) as address, pytest.raises(InvalidRequestError) as error:
        client.score(address, SAMPLES)
    assert str(error.value) == f"{address}: targets are many"
    assert error.value.violations == (("targets", "are many"),)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDeniedError),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPreconditionError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
    ],
)
def test_a_refusal_has_its_type_and_the_id_of_the_request(client, code, kind):
    def score(_, context):
        abort(context, code, "no", request_id="5f3a")

    def score_stream(_, context):
        abort(context, code, "no", request_id="77")
        yield

    with odd_server(score, score_stream) as address:
        with pytest.raises(kind) as error:
            client.score(address, SAMPLES)
        assert (str(error.value), error.value.request_id) == (f"{address}: no", "5f3a")
        with pytest.raises(kind) as error:
            list(client.score_stream(address, SAMPLES))
        assert error.value.request_id == "77"


def test_an_internal_error_names_the_request_that_the_log_has(client):
    def score(_, context):
        abort(context, grpc.StatusCode.INTERNAL, "it broke", request_id="5f3a")

    with odd_server(score) as address, pytest.raises(ServerError) as error:
        client.score(address, SAMPLES)
    assert str(error.value) == f"{address}: INTERNAL: it broke (request 5f3a)"
    assert error.value.request_id == "5f3a"


def test_a_state_of_the_server_is_no_fault_of_the_sample(client):
    passing = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="stopping")

    def score_stream(requests, _):
        for request in requests:
            yield ScoreResponse(results=[ScoreResult(error=passing)] * len(request.samples))

    with (
        odd_server(score_stream=score_stream) as address,
        pytest.raises(UnavailableError, match="stopping"),
    ):
        list(client.score_stream(address, SAMPLES))


def test_a_fault_of_the_server_is_no_bare_grpc_error(client):
    def score(_, context):
        abort(context, grpc.StatusCode.INTERNAL, "error id 42")

    def score_stream(requests, context):
        yield valued(next(requests))
        abort(context, grpc.StatusCode.INTERNAL, "error id 43")

    with odd_server(score, score_stream) as address:
        with pytest.raises(ServerError, match=f"{address}: INTERNAL: error id 42"):
            client.score(address, SAMPLES)
        with pytest.raises(ServerError, match=f"{address}: INTERNAL: error id 43"):
            list(client.score_stream(address, SAMPLES[:1] * (SAMPLES_A_REQUEST + 1)))


def test_a_stream_that_ends_early_is_an_error(client):
    def score_stream(requests, _):
        yield valued(next(requests))

    with odd_server(score_stream=score_stream) as address:
        stream = client.score_stream(address, SAMPLES[:1] * (SAMPLES_A_REQUEST + 1))
        with pytest.raises(ServerError, match="0 results for 1 samples"):
            list(stream)


def test_an_answer_of_another_length_is_an_error(client):
    with (
        odd_server(lambda *_: ScoreResponse()) as address,
        pytest.raises(ServerError, match="0 results for 2 samples"),
    ):
        client.score(address, SAMPLES)


def test_a_client_that_is_closed_ends_its_calls_with_an_error():
    """The asyncio client alone: gRPC ends them as if their tasks had been cancelled."""
    release = threading.Event()

    def score(request, _):
        release.wait(20)
        return valued(request)

    def score_stream(requests, _):
        release.wait(20)
        yield valued(next(requests))

    async def closed(address):
        client = AsyncClient(address)

        async def stream():
            return [scored async for scored in client.score_stream(SAMPLES)]

        tasks = [asyncio.create_task(one) for one in (client.score(SAMPLES), stream())]
        await asyncio.sleep(0.2)
        await client.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with odd_server(score, score_stream) as address:
        errors = asyncio.run(closed(address))
        release.set()
    assert [type(error) for error in errors] == [ServerError, ServerError]
    assert str(errors[0]) == f"{address}: the client was closed"


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_timeout_that_gRPC_cannot_count_is_refused(client, seconds):  # noqa: N802
    with pytest.raises(ValueError, match="give more than 0 and at most 1,000,000"):
        client.score("127.0.0.1:1", SAMPLES, timeout_seconds=seconds)
