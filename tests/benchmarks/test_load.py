"""The load generator counts what a real server answers, from when each request was due."""

import asyncio
import itertools

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from alinfik.distill.samples import Row
from alinfik.v1 import ScoreRequest, ScoreResponse, ScoreResult, Valuation
from benchmarks.load import Answer, Generator, Load
from benchmarks.traffic import Traffic
from tests.client.odd_server import abort, odd_server

BUNDLE = "ab" * 32
ROWS = [Row(str(n), "p", "Why?" * (n % 2), f"Because of {n}. ¿Así?", "g") for n in range(5)]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.load._WARM_SECONDS", 0.0)


def valued(request: ScoreRequest) -> ScoreResponse:
    valuations = [Valuation(sample_id=s.id, bundle_id=BUNDLE) for s in request.samples]
    return ScoreResponse(results=[ScoreResult(valuation=one) for one in valuations])


class EveryThirdIsRefused:
    """Every other refusal says when to come back."""

    def __init__(self):
        self.requests: list[ScoreRequest] = []
        self._numbers = itertools.count(1)

    def __call__(self, request, context):
        self.requests.append(request)
        if (number := next(self._numbers)) % 3:
            return valued(request)
        details = [RetryInfo(retry_delay=Duration(seconds=1))] * (number % 2)
        return abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "full", *details)


def texts(requests: list[ScoreRequest]) -> list[str]:
    return [sample.completion for request in requests for sample in request.samples]


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_valued_samples_and_refusals_are_those_of_the_server(loop: str):
    server = EveryThirdIsRefused()
    with odd_server(server) as address:
        generator, requests = Generator(address, BUNDLE), Traffic(ROWS).requests(4)
        if loop == "open":
            load = asyncio.run(generator.open_loop(requests, 200, 0.5))
        else:
            load = asyncio.run(generator.closed_loop(requests, 4, 0.3))
    statuses = [answer.status for answer in load.answers]
    assert len(statuses) == len(server.requests)
    assert statuses.count("RESOURCE_EXHAUSTED") == len(server.requests) // 3
    assert statuses.count("OK") == len(server.requests) - len(server.requests) // 3
    assert {answer.valued for answer in load.answers if answer.status == "OK"} == {4}
    assert not load.failed
    refusals = [answer.retry_info for answer in load.answers if answer.status != "OK"]
    assert refusals.count(True) == sum(n % 2 for n in range(3, len(statuses) + 1, 3))
    assert len(set(texts(server.requests))) == 4 * len(server.requests), "a text came twice"


def test_a_stream_counts_valuations_and_not_answers():
    seen: list[ScoreRequest] = []

    def score_stream(requests, _):
        for request in requests:
            seen.append(request)
            response = valued(request)
            response.results[0].CopyFrom(ScoreResult(error=Status(code=8)))
            yield response

    with odd_server(score_stream=score_stream) as address:
        generator = Generator(address, BUNDLE)
        load = asyncio.run(generator.streams(Traffic(ROWS).requests(4), 2, 3, 0.3))
    assert len(load.answers) == len(seen) >= 6
    assert {answer.valued for answer in load.answers} == {3}


def test_figures_are_of_the_window_and_from_when_a_request_was_due():
    refused = "RESOURCE_EXHAUSTED"
    answers = [
        Answer(due=9.0, ended=10.5, valued=8, status="OK", retry_info=False),
        Answer(due=10.0, ended=11.0, valued=8, status="OK", retry_info=False),
        Answer(due=10.5, ended=10.51, valued=0, status=refused, retry_info=True),
        Answer(due=11.9, ended=14.9, valued=8, status="OK", retry_info=False),
        Answer(due=11.9, ended=14.9, valued=0, status="INTERNAL", retry_info=False),
    ]
    load = Load(answers, 10.0, 12.0)
    assert load.goodput == (8 + 8) / 2
    assert load.refused == 1 / 4
    assert load.retry_info == 1
    assert load.failed == {"INTERNAL": 1}
    assert load.latency_ms(50) == pytest.approx([2000])
    assert load.latency_ms(50, status=refused) == pytest.approx([10])


def test_traffic_changes_the_first_letters_and_nothing_else():
    requests = Traffic(ROWS).requests(5)
    sent = [ScoreRequest.FromString(body) for body in itertools.islice(requests, 20)]
    for sample in (sample for request in sent for sample in request.samples):
        row = next(row for row in ROWS if row.id == sample.id)
        assert (sample.provider, sample.prompt) == (row.provider, row.prompt)
        assert sample.completion[6:] == row.completion[6:]
        assert sample.completion[:6].islower()
    assert len(set(texts(sent))) == 100


def test_a_flawless_server_keeps_requests_waiting_only_for_those_before_them():
    answers = [Answer(due, due + 9.0, 4, "OK", retry_info=False) for due in (0.0, 1.0, 1.0, 5.0)]
    load = Load(answers, 0.5, 5.5)
    # One second each: the second request is alone, the third waits for it, the fourth for nobody.
    assert load.queued_ms(100, 4.0) == pytest.approx(2000)
    assert load.queued_ms(0, 4.0) == pytest.approx(1000)
