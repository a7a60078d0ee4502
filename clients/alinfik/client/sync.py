"""The blocking client. What it sends and how it reads answers is in ``batches`` and ``errors``."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Protocol, Self, TypeVar

import grpc

from alinfik.client.batches import REQUESTS_IN_FLIGHT, Batch, Scored, batches, valuations
from alinfik.client.channel import channel_options, checked_timeout
from alinfik.client.errors import InvalidRequestError, call_error, no_answer
from alinfik.client.retry import Retry
from alinfik.client.security import Tls, authorization
from alinfik.v1 import (
    ActivateBundleRequest,
    ActivateBundleResponse,
    BundleManifest,
    BundleSummary,
    Explanation,
    GetBundleRequest,
    ListBundlesRequest,
    LoadBundleRequest,
    Sample,
    ScoreRequest,
    ScoreResponse,
    UnloadBundleRequest,
    Valuation,
)
from alinfik.v1.bundle_service_pb2_grpc import BundleServiceStub
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
        token: shown to the server with every call.
        tls: how to make sure of the server, and to show it a certificate; None for a connection in
            clear.
        allow_plaintext_token: send the token in clear to another machine too. For where something
            else encrypts the connection, as a service mesh does.

    Raises:
        ValueError: the token would travel in clear, or it, a PEM file or the timeout is malformed.
        OSError: a PEM file cannot be read.

    Every method raises an ``AlinfikError``: see ``alinfik.client.errors`` for the tree.
    """

    def __init__(
        self,
        address: str,
        timeout_seconds: float = 30.0,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        allow_plaintext_token: bool = False,
    ) -> None:
        self.address = address
        self.timeout_seconds = checked_timeout(timeout_seconds)
        encrypted = tls is not None or allow_plaintext_token
        self._metadata = authorization(address, token, encrypted=encrypted)
        options = channel_options(address)
        self._channel = (
            grpc.secure_channel(address, tls.credentials(), options=options)
            if tls
            else grpc.insecure_channel(address, options=options)
        )
        self._valuations = ValuationServiceStub(self._channel)
        self._bundles = BundleServiceStub(self._channel)

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
            answered = request and self._call(self._valuations.Score, request)
            values += valuations(batch.outcomes(answered or ScoreResponse()))
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
        call = self._valuations.ScoreStream(iter(requests.get, None), metadata=self._metadata)
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

    def explain(
        self, samples: Iterable[Sample], targets: Sequence[str] = (), bundle_id: str = ""
    ) -> list[Explanation]:
        """Say which tokens of the samples make their values, of all samples or none.

        Args:
            samples: what to explain; beyond what one request holds, in further ones.
            targets: names of the targets wanted; all of the bundle where empty.
            bundle_id: the bundle to explain by; the server's active one where empty.

        Returns:
            One explanation a sample, in the order of ``samples``.

        Raises:
            InvalidSamplesError: names the bad samples of the first request that has one, forty at
                most.
            FailedPreconditionError: the bundle was made without token values.
        """
        explanations: list[Explanation] = []
        for batch in batches(samples):
            request = batch.explain_request(targets, bundle_id)
            try:
                response = self._call(self._valuations.Explain, request)
            except InvalidRequestError as error:
                raise batch.refusal(error) from error
            explanations += batch.explanations(response)
        return explanations

    def bundles(self) -> list[BundleSummary]:
        """The bundles that the server has loaded."""
        return list(self._call(self._valuations.ListBundles, ListBundlesRequest()).bundles)

    def bundle(self, bundle_id: str = "") -> BundleManifest:
        """One bundle's manifest; the active one's where ``bundle_id`` is empty."""
        return self._call(self._valuations.GetBundle, GetBundleRequest(bundle_id=bundle_id)).bundle

    def load_bundle(self, directory: str) -> BundleSummary:
        """Have the server load a bundle beside those that it has, for administrators.

        Returns once the bundle is warm and checked: give ``timeout_seconds`` room for that.

        Args:
            directory: the bundle's, under the server's ``--bundle-root``.

        Raises:
            InvalidRequestError: it is no sound bundle; nothing has changed.
        """
        request = LoadBundleRequest(directory=directory)
        return self._call(self._bundles.LoadBundle, request).bundle

    def activate_bundle(self, bundle_id: str, *, shadow: bool = False) -> ActivateBundleResponse:
        """Have a loaded bundle value the requests that name none, for administrators.

        Args:
            bundle_id: the bundle; with ``shadow``, empty ends the shadow.
            shadow: only compare the bundle with the active one, which goes on answering.

        Returns:
            What is active and what is its shadow now.
        """
        request = ActivateBundleRequest(bundle_id=bundle_id, shadow=shadow)
        return self._call(self._bundles.ActivateBundle, request)

    def unload_bundle(self, bundle_id: str) -> None:
        """Have the server forget a bundle once what it has begun is answered, for administrators.

        Raises:
            FailedPreconditionError: it is the active one.
        """
        self._call(self._bundles.UnloadBundle, UnloadBundleRequest(bundle_id=bundle_id))

    # Quoted annotation: grpc's classes take type parameters in its stubs alone.
    def _call(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request
    ) -> _Response:
        retry = Retry(self.timeout_seconds)
        while True:
            try:
                return method(request, timeout=retry.remaining_seconds(), metadata=self._metadata)
            except grpc.RpcError as error:
                failure = call_error(self.address, self.timeout_seconds, error)
                if (wait_seconds := retry.wait_seconds(failure)) is None:
                    raise failure from error
            time.sleep(wait_seconds)

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
