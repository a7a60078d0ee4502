"""Both clients against a real server. Each test runs twice, by the blocking and the asyncio one."""

import asyncio
import inspect
import itertools
import textwrap
import threading

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest

import alinfik.client
from alinfik.client import (
    AsyncClient,
    Client,
    InvalidRequestError,
    InvalidSamplesError,
    NotFoundError,
    PermissionDeniedError,
    Sample,
    SampleError,
)
from alinfik.client.batches import REQUESTS_IN_FLIGHT, SAMPLES_A_REQUEST
from alinfik.v1 import (
    ActivateBundleResponse,
    BundleSummary,
    ExplainResponse,
    Explanation,
    LoadBundleResponse,
)
from tests.client.both import SAMPLES
from tests.client.odd_server import abort, odd_server

BAD = Sample(id="bad", completion=" ")


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


def test_a_sample_too_large_for_any_request_does_not_end_the_stream(client, address):
    large = Sample(id="large", completion="x" * 5_000_000)
    scored = list(client.score_stream(address, [SAMPLES[0], large, SAMPLES[1]]))
    assert scored[0].outcome.sample_id == "sum"
    assert isinstance(scored[1].outcome, SampleError)
    assert scored[2].outcome.sample_id == "code"
    [alone] = client.score_stream(address, [large])
    assert isinstance(alone.outcome, SampleError)


def explained(request, context):
    """One explanation a sample, or the violations of those without completion."""
    bad = [
        BadRequest.FieldViolation(field=f"samples[{index}].{field}", description="is bad")
        for index, sample in enumerate(request.samples)
        if not sample.completion
        for field in ("id", "completion")
    ]
    if bad:
        details = BadRequest(field_violations=bad)
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, "bad", details, request_id="5f3a")
    assert (request.bundle_id, list(request.targets)) == ("b", ["mbpp"])
    return ExplainResponse(
        explanations=[Explanation(sample_id=sample.id) for sample in request.samples]
    )


def explain(client, address, samples):
    return client.call(address, "explain", samples, targets=["mbpp"], bundle_id="b")


def test_explanations_come_in_the_order_of_the_samples(client):
    many = [Sample(id=str(number), completion="x") for number in range(SAMPLES_A_REQUEST + 3)]
    with odd_server(explain=explained) as address:
        assert [one.sample_id for one in explain(client, address, many)] == [s.id for s in many]
        assert explain(client, address, []) == []


def test_explain_names_the_samples_that_it_cannot_by_their_place_in_the_call(client):
    many = [Sample(id=str(number), completion="x") for number in range(SAMPLES_A_REQUEST + 3)]
    many[-2].completion = ""
    with odd_server(explain=explained) as address:
        with pytest.raises(InvalidSamplesError) as error:
            explain(client, address, many)
        with pytest.raises(InvalidSamplesError, match=r"sample 1 .* 5000005 bytes; a sample may"):
            explain(client, address, [many[0], Sample(completion="x" * 5_000_000)])
    [bad] = error.value.errors
    assert (bad.index, bad.sample_id) == (SAMPLES_A_REQUEST + 1, many[-2].id)
    assert (bad.reason, error.value.request_id) == ("id is bad; completion is bad", "5f3a")


@pytest.mark.parametrize("field", ["targets", "samples", "samples[9].id"])
def test_a_refusal_of_the_request_as_a_whole_stays_one(client, field):
    def refuse(_, context):
        bad = BadRequest.FieldViolation(field=field, description="is bad")
        details = BadRequest(field_violations=[bad])
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, "bad", details)

    with odd_server(explain=refuse) as address, pytest.raises(InvalidRequestError) as error:
        explain(client, address, SAMPLES)
    assert str(error.value) == f"{address}: {field} is bad"


def test_bundles_are_administered_by_either_client(client):
    def load(request, _):
        return LoadBundleResponse(bundle=BundleSummary(bundle_id=request.directory))

    def activate(request, _):
        return ActivateBundleResponse(active_bundle_id="a", shadow_bundle_id=request.bundle_id)

    def unload(_, context):
        abort(context, grpc.StatusCode.PERMISSION_DENIED, "the role admin alone may do this")

    with odd_server(load=load, activate=activate, unload=unload) as address:
        assert client.call(address, "load_bundle", "2026").bundle_id == "2026"
        now = client.call(address, "activate_bundle", "b", shadow=True)
        assert (now.active_bundle_id, now.shadow_bundle_id) == ("a", "b")
        with pytest.raises(PermissionDeniedError, match="the role admin alone"):
            client.call(address, "unload_bundle", "b")
