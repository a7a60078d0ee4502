"""The blocking client. What it sends and how it reads answers is in ``batches`` and ``errors``."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Protocol, Self, TypeVar

import grpc

from alinfik.client.batches import REQUESTS_IN_FLIGHT, Batch, Scored, batches, valuations
from alinfik.client.channel import CHANNEL_OPTIONS
from alinfik.client.errors import call_error, no_answer
from alinfik.v1 import (
    BundleManifest,
    BundleSummary,
    GetBundleRequest,
    ListBundlesRequest,
    Sample,
    ScoreRequest,
    ScoreResponse,
    Valuation,
)
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class _Call(Protocol):
    """What a blocking stream call has, and the library's stubs do not name."""

    def __next__(self) -> ScoreResponse: ...

    def __iter__(self) -> Iterator[ScoreResponse]: ...

    def cancel(self) -> object: ...


class Client:
    """A connection to one ALinFiK server, opened at the first call and used by all that follow.

    Threads may share it. Close it, or use it as a context manager.

    Args:
        address: ``host:port``, or any other gRPC target (``dns:///…``, ``unix:…``).
        timeout_seconds: how long one request may take, retries included; in a stream, how long the
            next answer may take.

    Every method raises an ``AlinfikError``: see ``alinfik.client.errors`` for the tree.
    """

    def __init__(self, address: str, timeout_seconds: float = 30.0) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = ValuationServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in flight fail."""
        self._channel.close()

    def score(
        self, samples: Iterable[Sample], targets: Sequence[str] = (), bundle_id: str = ""
    ) -> list[Valuation]:
        """Value samples, all or none.

        Samples beyond what one request holds are sent in further requests, one after another; for
        many, ``score_stream`` is faster.

        Args:
            samples: what to value.
            targets: names of the targets wanted; all of the bundle where empty.
            bundle_id: the bundle to value with; the server's active one where empty.

        Returns:
            One valuation a sample, in the order of ``samples``.

        Raises:
            InvalidSamplesError: names every bad sample of the first request that has one.
        """
        values: list[Valuation] = []
        for batch in batches(samples):
            request = batch.request(targets, bundle_id)
            response = self._call(self._stub.Score, request) if request else ScoreResponse()
            values += valuations(batch.outcomes(response))
        return values

    def score_stream(
        self, samples: Iterable[Sample], targets: Sequence[str] = (), bundle_id: str = ""
    ) -> Iterator[Scored]:
        """Value any number of samples, in order, with bounded memory.

        ``samples`` is drawn in the caller's thread, at most ``REQUESTS_IN_FLIGHT`` requests ahead
        of the answers. Stop early by closing the iterator.

        Args:
            samples: what to value; may be endless.
            targets: names of the targets wanted; all of the bundle where empty.
            bundle_id: the bundle to value with; the server's active one where empty.

        Yields:
            Each sample with its ``Valuation``, or with the ``SampleError`` that says why it has
            none.
        """
        requests: SimpleQueue[ScoreRequest | None] = SimpleQueue()
        call = self._stub.ScoreStream(iter(requests.get, None))
        in_flight: deque[tuple[Batch, bool]] = deque()

        def answers(unanswered: int) -> Iterator[Scored]:
            while len(in_flight) > unanswered:
                batch, sent = in_flight.popleft()
                yield from batch.outcomes(self._next(call) if sent else ScoreResponse())

        try:
            for batch in batches(samples):
                if request := batch.request(targets, bundle_id):
                    requests.put(request)
                in_flight.append((batch, request is not None))
                yield from answers(REQUESTS_IN_FLIGHT - 1)
            requests.put(None)
            yield from answers(0)
            self._next(call)
        finally:
            requests.put(None)  # releases gRPC's thread that waits for the next request
            call.cancel()  # nothing, once the stream has ended

    def bundles(self) -> list[BundleSummary]:
        """The bundles that the server has loaded."""
        return list(self._call(self._stub.ListBundles, ListBundlesRequest()).bundles)

    def bundle(self, bundle_id: str = "") -> BundleManifest:
        """One bundle's manifest; the active one's where ``bundle_id`` is empty."""
        return self._call(self._stub.GetBundle, GetBundleRequest(bundle_id=bundle_id)).bundle

    # Quoted annotation: grpc's classes take type parameters in its stubs alone.
    def _call(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request
    ) -> _Response:
        try:
            return method(request, timeout=self.timeout_seconds)
        except grpc.RpcError as error:
            raise call_error(self.address, self.timeout_seconds, error) from error

    def _next(self, call: _Call) -> ScoreResponse:
        """The stream's next answer, empty at its end; gRPC's own deadline is for whole streams."""
        late = _CancelAfter(self.timeout_seconds, call.cancel)
        try:
            with late:
                return next(call, ScoreResponse())
        except grpc.RpcError as error:
            if late.fired:
                raise no_answer(self.address, self.timeout_seconds) from error
            raise call_error(self.address, self.timeout_seconds, error) from error


class _CancelAfter:
    """Cancels unless the block ends in time."""

    def __init__(self, seconds: float, cancel: Callable[[], object]) -> None:
        self.fired = False
        self._cancel = cancel
        self._timer = threading.Timer(seconds, self._fire)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _fire(self) -> None:
        self.fired = True
        self._cancel()
