"""The asyncio client, method for method the twin of ``sync``."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Self, TypeVar

import grpc
from grpc import aio

from alinfik.client.batches import (
    REQUESTS_IN_FLIGHT,
    Batch,
    Batcher,
    Scored,
    batches,
    valuations,
)
from alinfik.client.channel import channel_options, checked_timeout
from alinfik.client.errors import (
    AlinfikError,
    InvalidRequestError,
    ServerError,
    UnavailableError,
    call_error,
    no_answer,
)
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

# What is left of a server's status where it crossed a request that was being sent.
# https://github.com/grpc/grpc/issues/36066
_STATUS_LOST = "Internal error from Core"

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class AsyncClient:
    """A connection to one ALinFiK server, for one event loop.

    Arguments and errors are those of ``alinfik.client.Client``. Close it with ``await close()``, or
    use it as an async context manager.
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
            aio.secure_channel(address, tls.credentials(), options=options)
            if tls
            else aio.insecure_channel(address, options=options)
        )
        self._valuations = ValuationServiceStub(self._channel)
        self._bundles = BundleServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight fail."""
        await self._channel.close()

    async def score(
        self, samples: Iterable[Sample], targets: Sequence[str] = (), bundle_id: str = ""
    ) -> list[Valuation]:
        """Value samples, all or none: see ``Client.score``."""
        values: list[Valuation] = []
        for batch in batches(samples):
            request = batch.request(targets, bundle_id)
            answered = request and await self._call(self._valuations.Score, request)
            values += valuations(batch.outcomes(answered or ScoreResponse()))
        return values

    async def score_stream(
        self,
        samples: Iterable[Sample] | AsyncIterable[Sample],
        targets: Sequence[str] = (),
        bundle_id: str = "",
    ) -> AsyncIterator[Scored]:
        """Value any number of samples, in order, with bounded memory: see ``Client.score_stream``.

        Stop early by closing the generator (``contextlib.aclosing``).
        """
        requests: asyncio.Queue[ScoreRequest | None] = asyncio.Queue()
        call = self._valuations.ScoreStream(_until_none(requests), metadata=self._metadata)
        in_flight: deque[tuple[Batch, bool]] = deque()

        async def answers(unanswered: int) -> AsyncIterator[Scored]:
            while len(in_flight) > unanswered:
                batch, sent = in_flight.popleft()
                for scored in batch.outcomes(await self._next(call) if sent else ScoreResponse()):
                    yield scored

        try:
            async for batch in _batches(samples):
                if request := batch.request(targets, bundle_id):
                    requests.put_nowait(request)
                in_flight.append((batch, request is not None))
                async for scored in answers(REQUESTS_IN_FLIGHT - 1):
                    yield scored
            requests.put_nowait(None)
            async for scored in answers(0):
                yield scored
            await self._next(call)
        finally:
            call.cancel()  # nothing, once the stream has ended

    async def explain(
        self, samples: Iterable[Sample], targets: Sequence[str] = (), bundle_id: str = ""
    ) -> list[Explanation]:
        """Say which tokens of the samples make their values: see ``Client.explain``."""
        explanations: list[Explanation] = []
        for batch in batches(samples):
            request = batch.explain_request(targets, bundle_id)
            try:
                response = await self._call(self._valuations.Explain, request)
            except InvalidRequestError as error:
                raise batch.refusal(error) from error
            explanations += batch.explanations(response)
        return explanations

    async def bundles(self) -> list[BundleSummary]:
        """The bundles that the server has loaded."""
        response = await self._call(self._valuations.ListBundles, ListBundlesRequest())
        return list(response.bundles)

    async def bundle(self, bundle_id: str = "") -> BundleManifest:
        """One bundle's manifest; the active one's where ``bundle_id`` is empty."""
        request = GetBundleRequest(bundle_id=bundle_id)
        return (await self._call(self._valuations.GetBundle, request)).bundle

    async def load_bundle(self, directory: str) -> BundleSummary:
        """Have the server load a bundle: see ``Client.load_bundle``."""
        request = LoadBundleRequest(directory=directory)
        return (await self._call(self._bundles.LoadBundle, request)).bundle

    async def activate_bundle(
        self, bundle_id: str, *, shadow: bool = False
    ) -> ActivateBundleResponse:
        """Have a bundle value the requests that name none: see ``Client.activate_bundle``."""
        request = ActivateBundleRequest(bundle_id=bundle_id, shadow=shadow)
        return await self._call(self._bundles.ActivateBundle, request)

    async def unload_bundle(self, bundle_id: str) -> None:
        """Have the server forget a bundle: see ``Client.unload_bundle``."""
        await self._call(self._bundles.UnloadBundle, UnloadBundleRequest(bundle_id=bundle_id))

    # Quoted annotations: grpc's classes take type parameters in its stubs alone.
    async def _call(
        self, method: "aio.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request
    ) -> _Response:
        retry = Retry(self.timeout_seconds)
        while True:
            try:
                with self._open():
                    return await method(
                        request, timeout=retry.remaining_seconds(), metadata=self._metadata
                    )
            except grpc.RpcError as error:
                failure = call_error(self.address, self.timeout_seconds, error)
                if (wait_seconds := retry.wait_seconds(failure)) is None:
                    raise failure from error
            await asyncio.sleep(wait_seconds)

    async def _next(
        self, call: "aio.StreamStreamCall[ScoreRequest, ScoreResponse]"
    ) -> ScoreResponse:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                with self._open():
                    response = await call.read()
        except TimeoutError as error:
            raise no_answer(self.address, self.timeout_seconds) from error
        except aio.AioRpcError as error:
            if error.details() == _STATUS_LOST:
                raise await self._refusal_of_streams() from error
            raise call_error(self.address, self.timeout_seconds, error) from error
        return response if isinstance(response, ScoreResponse) else ScoreResponse()

    @contextmanager
    def _open(self) -> Generator[None]:
        """Where the channel is closed meanwhile, gRPC says that the caller's task is cancelled."""
        try:
            yield
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            raise ServerError(f"{self.address}: the client was closed") from error

    async def _refusal_of_streams(self) -> AlinfikError:
        """Why the server ended a stream: it says the same of one that sends nothing."""
        call = self._valuations.ScoreStream(
            _until_none(_no_requests()), timeout=self.timeout_seconds, metadata=self._metadata
        )
        try:
            await call.read()
        except grpc.RpcError as error:
            return call_error(self.address, self.timeout_seconds, error)
        return UnavailableError(f"{self.address}: the server ended the stream; open a new one")


def _no_requests() -> asyncio.Queue[ScoreRequest | None]:
    requests: asyncio.Queue[ScoreRequest | None] = asyncio.Queue()
    requests.put_nowait(None)
    return requests


async def _until_none(
    requests: asyncio.Queue[ScoreRequest | None],
) -> AsyncIterator[ScoreRequest]:
    while (request := await requests.get()) is not None:
        yield request


async def _batches(samples: Iterable[Sample] | AsyncIterable[Sample]) -> AsyncIterator[Batch]:
    if not isinstance(samples, AsyncIterable):
        for batch in batches(samples):
            yield batch
        return
    batcher = Batcher()
    async for sample in samples:
        if full := batcher.add(sample):
            yield full
    if last := batcher.rest():
        yield last
