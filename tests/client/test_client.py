"""Both clients against a real server. Each test runs twice, by the blocking and the asyncio one."""

import asyncio
import inspect
import itertools
import textwrap
import threading

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, RetryInfo

import alinfik.client
from alinfik.client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidSamplesError,
    NotFoundError,
    OverloadedError,
    Sample,
    SampleError,
    ServerError,
    UnavailableError,
)
from alinfik.client.batches import REQUESTS_IN_FLIGHT, SAMPLES_A_REQUEST
from alinfik.v1 import ScoreResponse
from tests.client.odd_server import abort, odd_server, valued

SAMPLES = [
    Sample(id="sum", provider="p", prompt="How many?", completion="She sold 48 / 2 = 24 clips."),
    Sample(id="code", provider="q", completion="def add(a, b): return a + b"),
]
BAD = Sample(id="bad", completion=" ")


class Blocking:
    """The blocking client, each call with a connection of its own."""

    def score(self, address, samples, *, timeout_seconds=10, **options):
        with Client(address, timeout_seconds) as client:
            return client.score(samples, **options)

    def score_stream(self, address, samples, *, timeout_seconds=10, **options):
        with Client(address, timeout_seconds) as client:
            yield from client.score_stream(samples, **options)

    def bundles(self, address):
        with Client(address) as client:
            return client.bundles()

    def bundle(self, address, bundle_id=""):
        with Client(address) as client:
            return client.bundle(bundle_id)


class Asyncio:
    """The asyncio client, driven to the end of each call."""

    def score(self, address, samples, *, timeout_seconds=10, **options):
        async def score():
            async with AsyncClient(address, timeout_seconds) as client:
                return await client.score(samples, **options)

        return asyncio.run(score())

    def score_stream(self, address, samples, *, timeout_seconds=10, **options):
        async def score_stream():
            async with AsyncClient(address, timeout_seconds) as client:
                async for scored in client.score_stream(samples, **options):
                    yield scored

        stream = score_stream()
        with asyncio.Runner() as runner:
            while True:
                try:
                    yield runner.run(anext(stream))
                except StopAsyncIteration:
                    return

    def bundles(self, address):
        async def bundles():
            async with AsyncClient(address) as client:
                return await client.bundles()

        return asyncio.run(bundles())

    def bundle(self, address, bundle_id=""):
        async def bundle():
            async with AsyncClient(address) as client:
                return await client.bundle(bundle_id)

        return asyncio.run(bundle())


@pytest.fixture(params=[Blocking, Asyncio], ids=["blocking", "asyncio"])
def client(request):
    return request.param()


def test_the_example_of_the_package_runs(address, capsys):
    text = inspect.cleandoc(alinfik.client.__doc__)
    lines = [line for line in text.splitlines() if line.startswith("    ") or not line]
    exec(textwrap.dedent("\n".join(lines)).replace("127.0.0.1:50051", address), {})  # noqa: S102
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["gsm8k", "mbpp"]


def test_values_come_in_the_order_of_the_samples(client, address):
    valuations = client.score(address, SAMPLES)
    assert [(v.sample_id, v.provider) for v in valuations] == [("sum", "p"), ("code", "q")]
    assert [value.target for value in valuations[0].values] == ["gsm8k", "mbpp"]


def test_no_samples_have_no_values(client, address):
    assert client.score(address, []) == []
    assert list(client.score_stream(address, [])) == []


def test_targets_narrow_the_values(client, address):
    [valuation] = client.score(address, SAMPLES[:1], targets=["mbpp"])
    assert [value.target for value in valuation.values] == ["mbpp"]


def test_more_samples_than_a_request_holds_are_valued_as_alone(client, address):
    [alone] = client.score(address, SAMPLES[:1])
    many = client.score(address, SAMPLES[:1] * (2 * SAMPLES_A_REQUEST + 1))
    streamed = list(client.score_stream(address, SAMPLES[:1] * (2 * SAMPLES_A_REQUEST + 1)))
    assert len(many) == len(streamed) == 2 * SAMPLES_A_REQUEST + 1
    for valuation in (*many, *(scored.outcome for scored in streamed)):
        assert valuation.values[0].value == pytest.approx(alone.values[0].value, abs=1e-5)


def test_score_names_the_samples_without_a_value(client, address):
    with pytest.raises(InvalidSamplesError) as error:
        client.score(address, [*SAMPLES, BAD])
    [bad] = error.value.errors
    assert (bad.index, bad.sample_id, bad.code) == (2, "bad", grpc.StatusCode.INVALID_ARGUMENT)
    assert str(error.value).startswith("sample 2 (id 'bad'): INVALID_ARGUMENT: completion is empty")


def test_a_stream_gives_every_sample_its_outcome_in_order(client, address):
    samples = [
        BAD if number % 10 == 3 else Sample(id=str(number), completion=f"{number} clips")
        for number in range(REQUESTS_IN_FLIGHT * SAMPLES_A_REQUEST + 7)
    ]
    scored = list(client.score_stream(address, iter(samples)))
    assert [one.sample for one in scored] == samples
    for index, (sample, outcome) in enumerate(scored):
        if sample is BAD:
            assert isinstance(outcome, SampleError)
            assert (outcome.index, outcome.sample_id) == (index, "bad")
        else:
            assert outcome.sample_id == sample.id


def test_a_stream_draws_a_bounded_number_of_samples_ahead(client, address):
    drawn = itertools.count()
    samples = (Sample(id=str(next(drawn)), completion="clips") for _ in itertools.repeat(None))
    stream = client.score_stream(address, samples)
    assert next(stream).outcome.sample_id == "0"
    stream.close()
    assert next(drawn) <= REQUESTS_IN_FLIGHT * SAMPLES_A_REQUEST + 1


def test_what_the_source_of_samples_raises_reaches_the_caller(client, address):
    def broken():
        yield SAMPLES[0]
        raise LookupError("line 7")

    with pytest.raises(LookupError, match="line 7"):
        list(client.score_stream(address, broken()))


def test_an_asyncio_stream_takes_async_sources(address):
    async def samples():
        for sample in SAMPLES:
            yield sample

    async def score():
        async with AsyncClient(address) as client:
            return [scored.outcome.sample_id async for scored in client.score_stream(samples())]

    assert asyncio.run(score()) == ["sum", "code"]


def test_threads_share_a_client(address):
    found = []
    with Client(address) as client:

        def score():
            found.append(client.score(SAMPLES))

        threads = [threading.Thread(target=score) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 8
    assert all(valuations == found[0] for valuations in found)


def test_bundles_are_listed_and_shown(client, address):
    [summary] = client.bundles(address)
    assert summary.active
    assert client.bundle(address) == client.bundle(address, summary.bundle_id)
    assert client.bundle(address).bundle_id == summary.bundle_id


def test_an_unknown_bundle_or_target_is_not_found(client, address):
    with pytest.raises(NotFoundError, match=f"{address}: no bundle 'nope'; there is"):
        client.bundle(address, "nope")
    with pytest.raises(NotFoundError, match="no target 'nope'; there is gsm8k, mbpp"):
        client.score(address, SAMPLES, targets=["nope"])
    with pytest.raises(NotFoundError, match="no bundle 'nope'"):
        list(client.score_stream(address, SAMPLES, bundle_id="nope"))


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


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_passing_fault_is_ridden_out(client, code):
    calls = itertools.count()

    def score(request, context):
        if next(calls) < 2:
            abort(context, code, "not now")
        return valued(request)

    with odd_server(score) as address:
        assert len(client.score(address, SAMPLES)) == 2
    assert next(calls) == 3


def test_a_full_queue_says_when_to_come_back(client):
    def score(_, context):
        retry = RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
        abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", retry)

    with odd_server(score) as address, pytest.raises(OverloadedError) as error:
        client.score(address, SAMPLES)
    assert error.value.retry_after_seconds == 1.5
    assert str(error.value) == f"{address}: the queue is full"


def test_violated_fields_are_named(client):
    def score(_, context):
        bad = BadRequest(
            field_violations=[BadRequest.FieldViolation(field="targets", description="are many")]
        )
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, "invalid", bad)

    with odd_server(score) as address, pytest.raises(InvalidRequestError) as error:
        client.score(address, SAMPLES)
    assert str(error.value) == f"{address}: targets are many"


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


def test_a_sample_too_large_for_any_request_does_not_end_the_stream(client, address):
    large = Sample(id="large", completion="x" * 5_000_000)
    scored = list(client.score_stream(address, [SAMPLES[0], large, SAMPLES[1]]))
    assert scored[0].outcome.sample_id == "sum"
    assert isinstance(scored[1].outcome, SampleError)
    assert scored[2].outcome.sample_id == "code"
    [alone] = client.score_stream(address, [large])
    assert isinstance(alone.outcome, SampleError)
