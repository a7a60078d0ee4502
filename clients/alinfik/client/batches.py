"""Cuts samples into requests that a server takes, and puts its answers back beside the samples.

In: samples, any number, in order. Out: batches; each makes one ``ScoreRequest`` or
``ExplainRequest`` and reads its response. Nothing here knows of channels, threads or event loops:
both clients share it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import grpc

from alinfik.client.errors import (
    AlinfikError,
    InvalidRequestError,
    InvalidSamplesError,
    SampleError,
    ServerError,
    sample_error,
)
from alinfik.v1 import (
    ExplainRequest,
    ExplainResponse,
    Explanation,
    Sample,
    ScoreRequest,
    ScoreResponse,
    Valuation,
)

# One or two of the server's batches: more adds latency, less adds a message's overhead to each.
SAMPLES_A_REQUEST = 64
# Half of what gRPC receives by default (4 MiB), so that ids, targets and framing always fit beside.
BYTES_A_REQUEST = 2 * 1024 * 1024
# Requests of a stream that may be unanswered: enough for the server to tokenise the next batch and
# send the last while it runs one, few enough that a slow reader holds little of its queue.
REQUESTS_IN_FLIGHT = 8


class Scored(NamedTuple):
    """One sample with what became of it."""

    sample: Sample
    outcome: Valuation | SampleError


class Batch:
    """Consecutive samples of a call, for one request.

    A sample that alone is over ``BYTES_A_REQUEST`` would fail the whole request, or the stream, so
    it is kept back and gets its ``SampleError`` here.

    Args:
        first_index: the place of the first sample among those of the call.
    """

    def __init__(self, first_index: int) -> None:
        self.samples: list[Sample] = []
        self._first_index = first_index
        self._sendable: list[Sample] = []
        self._bytes = 0

    def takes(self, sample: Sample) -> bool:
        """Whether ``sample`` still fits."""
        size = sample.ByteSize()
        return len(self.samples) < SAMPLES_A_REQUEST and (
            size > BYTES_A_REQUEST or self._bytes + size <= BYTES_A_REQUEST
        )

    def add(self, sample: Sample) -> None:
        """Append a sample that the batch takes."""
        self.samples.append(sample)
        if (size := sample.ByteSize()) <= BYTES_A_REQUEST:
            self._sendable.append(sample)
            self._bytes += size

    def request(self, targets: Sequence[str], bundle_id: str) -> ScoreRequest | None:
        """The request for the batch, or None where no sample of it can be sent."""
        if not self._sendable:
            return None
        return ScoreRequest(
            samples=self._sendable, targets=targets, bundle_id=bundle_id, partial_success=True
        )

    def outcomes(self, response: ScoreResponse) -> Iterator[Scored]:
        """Every sample of the batch with its outcome, in order.

        Args:
            response: the answer to ``request``; an empty one where that was None.

        Raises:
            ServerError: the answer is for another number of samples (a stream that ended early).
        """
        self._check(len(response.results), "results", len(self._sendable))
        results = iter(response.results)
        for index, sample in enumerate(self.samples, self._first_index):
            if sample.ByteSize() > BYTES_A_REQUEST:
                yield Scored(sample, _too_large(index, sample))
                continue
            result = next(results)
            if result.HasField("error"):
                yield Scored(sample, sample_error(index, sample.id, result.error))
            else:
                yield Scored(sample, result.valuation)

    def explain_request(self, targets: Sequence[str], bundle_id: str) -> ExplainRequest:
        """The request to explain the batch.

        Raises:
            InvalidSamplesError: samples of it are too large to be sent.
        """
        numbered = enumerate(self.samples, self._first_index)
        large = [_too_large(i, one) for i, one in numbered if one.ByteSize() > BYTES_A_REQUEST]
        if large:
            raise InvalidSamplesError(large)
        return ExplainRequest(samples=self.samples, targets=targets, bundle_id=bundle_id)

    def explanations(self, response: ExplainResponse) -> Sequence[Explanation]:
        """One a sample, in order.

        Raises:
            ServerError: the answer is for another number of samples.
        """
        self._check(len(response.explanations), "explanations", len(self.samples))
        return response.explanations

    def refusal(self, error: InvalidRequestError) -> AlinfikError:
        """The same by samples of the call, where samples of the batch are what is wrong."""
        bad: dict[int, list[str]] = {}
        for field, description in error.violations:
            place = re.match(r"samples\[(\d+)\]\.", field)
            if place is None:
                # Of all samples: how many more are bad than the server tells.
                continue
            if int(place[1]) >= len(self.samples):
                return error
            bad.setdefault(int(place[1]), []).append(f"{field[place.end() :]} {description}")
        if not bad:
            return error
        code = grpc.StatusCode.INVALID_ARGUMENT
        refused = InvalidSamplesError(
            [
                SampleError(self._first_index + i, self.samples[i].id, code, "; ".join(bad[i]))
                for i in sorted(bad)
            ]
        )
        refused.request_id = error.request_id
        return refused

    def _check(self, count: int, of: str, expected: int) -> None:
        if count != expected:
            raise ServerError(f"{count} {of} for {expected} samples")


def _too_large(index: int, sample: Sample) -> SampleError:
    reason = f"{sample.ByteSize()} bytes; a sample may have {BYTES_A_REQUEST}"
    return SampleError(index, sample.id, grpc.StatusCode.INVALID_ARGUMENT, reason)


class Batcher:
    """Gathers samples one by one into batches; the shape that a loop of either kind can drive."""

    def __init__(self) -> None:
        self._count = 0
        self._batch = Batch(0)

    def add(self, sample: Sample) -> Batch | None:
        """Take one sample; return the batch that was full before it, if any."""
        full = None
        if not self._batch.takes(sample):
            full, self._batch = self._batch, Batch(self._count)
        self._batch.add(sample)
        self._count += 1
        return full

    def rest(self) -> Batch | None:
        """The last batch, which no further sample fills; None where there were no samples."""
        return self._batch if self._batch.samples else None


def batches(samples: Iterable[Sample]) -> Iterator[Batch]:
    """Cut ``samples`` into batches, drawing no further ahead than one sample."""
    batcher = Batcher()
    for sample in samples:
        if full := batcher.add(sample):
            yield full
    if last := batcher.rest():
        yield last


def valuations(scored: Iterable[Scored]) -> list[Valuation]:
    """All valuations, or InvalidSamplesError that names every sample without one."""
    values: list[Valuation] = []
    errors: list[SampleError] = []
    for _, outcome in scored:
        if isinstance(outcome, SampleError):
            errors.append(outcome)
        else:
            values.append(outcome)
    if errors:
        raise InvalidSamplesError(errors)
    return values
