import grpc
import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from alinfik.client import InvalidSamplesError, SampleError, ServerError
from alinfik.client.batches import BYTES_A_REQUEST, SAMPLES_A_REQUEST, batches, valuations
from alinfik.v1 import Sample, ScoreResponse, ScoreResult, Valuation

# Up to a little more than fits one request alone.
SIZES = st.lists(st.integers(0, BYTES_A_REQUEST + 2**16), max_size=12)
MANY = st.integers(0, 5 * SAMPLES_A_REQUEST)


def sample(index, size=0):
    return Sample(id=str(index), completion="x" * size)


def answer(request):
    """What a server gives that values every sample."""
    if request is None:
        return ScoreResponse()
    results = [ScoreResult(valuation=Valuation(sample_id=s.id)) for s in request.samples]
    return ScoreResponse(results=results)


def check(samples):
    outcomes = []
    for batch in batches(iter(samples)):
        request = batch.request(["t"], "b")
        if request is not None:
            assert 1 <= len(request.samples) <= SAMPLES_A_REQUEST
            assert sum(s.ByteSize() for s in request.samples) <= BYTES_A_REQUEST
            assert (list(request.targets), request.bundle_id) == (["t"], "b")
        outcomes += batch.outcomes(answer(request))
    assert [scored.sample for scored in outcomes] == samples
    for index, (one, outcome) in enumerate(outcomes):
        if one.ByteSize() > BYTES_A_REQUEST:
            assert isinstance(outcome, SampleError)
            assert (outcome.index, outcome.sample_id) == (index, one.id)
        else:
            assert outcome.sample_id == one.id


@given(SIZES)
def test_requests_stay_within_bytes_and_every_sample_keeps_its_outcome(sizes):
    check([sample(index, size) for index, size in enumerate(sizes)])


@given(MANY)
def test_requests_stay_within_samples_and_every_sample_keeps_its_outcome(count):
    check([sample(index) for index in range(count)])


def test_batches_draw_no_further_ahead_than_one_sample():
    drawn = []

    def source():
        for index in range(3 * SAMPLES_A_REQUEST):
            drawn.append(index)
            yield sample(index)

    next(batches(source()))
    assert len(drawn) == SAMPLES_A_REQUEST + 1


def test_all_or_an_error_that_names_every_bad_sample():
    [batch] = batches([sample(index) for index in range(6)])
    results = answer(batch.request((), "")).results
    assert len(valuations(batch.outcomes(ScoreResponse(results=results)))) == 6
    status = Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="completion is empty")
    for index in (0, 2, 3, 5):
        results[index].error.CopyFrom(status)
    with pytest.raises(InvalidSamplesError) as error:
        valuations(batch.outcomes(ScoreResponse(results=results)))
    assert [bad.index for bad in error.value.errors] == [0, 2, 3, 5]
    text = str(error.value)
    assert text.startswith("sample 0 (id '0'): INVALID_ARGUMENT: completion is empty; sample 2 (")
    assert text.endswith("; and 1 more")


def test_an_answer_for_another_number_of_samples_is_refused():
    [batch] = batches([sample(0), sample(1)])
    with pytest.raises(ServerError, match="1 results for 2 samples"):
        list(batch.outcomes(ScoreResponse(results=[ScoreResult(valuation=Valuation())])))
