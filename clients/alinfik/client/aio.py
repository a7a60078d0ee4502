"""The asyncio client, method for method the twin of ``sync``."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
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


class AsyncClient:
    """A connection to one ALinFiK server, for one event loop.

    Arguments and errors are those of ``alinfik.client.Client``. Close it with ``await close()``, or
    use it as an async context manager.
    """

    def __init__(self, address: str, timeout_seconds: float = 30.0) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._channel = aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = ValuationServiceStub(self._channel)

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
            response = await self._call(self._stub.Score, request) if request else ScoreResponse()
            values += valuations(batch.outcomes(response))
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
        call = self._stub.ScoreStream(_until_none(requests))
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

    async def bundles(self) -> list[BundleSummary]:
        """The bundles that the server has loaded."""
        response = await self._call(self._stub.ListBundles, ListBundlesRequest())
        return list(response.bundles)

    async def bundle(self, bundle_id: str = "") -> BundleManifest:
        """One bundle's manifest; the active one's where ``bundle_id`` is empty."""
        request = GetBundleRequest(bundle_id=bundle_id)
        return (await self._call(self._stub.GetBundle, request)).bundle

    # Quoted annotations: grpc's classes take type parameters in its stubs alone.
    async def _call(
        self, method: "aio.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request
    ) -> _Response:
        try:
            return await method(request, timeout=self.timeout_seconds)
        except grpc.RpcError as error:
            raise call_error(self.address, self.timeout_seconds, error) from error

    async def _next(
        self, call: "aio.StreamStreamCall[ScoreRequest, ScoreResponse]"
    ) -> ScoreResponse:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                response = await call.read()
        except TimeoutError as error:
            raise no_answer(self.address, self.timeout_seconds) from error
        except grpc.RpcError as error:
            raise call_error(self.address, self.timeout_seconds, error) from error
        return response if isinstance(response, ScoreResponse) else ScoreResponse()


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
