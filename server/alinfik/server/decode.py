"""Turns messages that are none into INVALID_ARGUMENT; grpc's own word for them is UNKNOWN.

Comes in: every call of ours. Goes out: the call, its bytes parsed where its status is made, once it
is known that this does not multiply them. Knows nothing of what the messages say.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServerInterceptor, ServicerContext

from alinfik.server.calls import Calls, Continuation, Handler, method_of_ours
from alinfik.server.errors import InvalidRequestError
from alinfik.server.limits import Limits


class Decode(ServerInterceptor):
    """Parses requests.

    Args:
        calls: ends the calls whose request is no message.
        limits: says which messages are not to be parsed.
    """

    def __init__(self, calls: Calls, limits: Limits) -> None:
        self._calls = calls
        self._limits = limits

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Hand the call on, as one of bytes."""
        handler = await continuation(handler_call_details)
        method = method_of_ours(handler_call_details.method)
        if handler is None or handler.request_deserializer is None or method is None:
            return handler
        deserialise, serialise = handler.request_deserializer, handler.response_serializer

        def parse(request: bytes) -> Any:
            self._limits.check_message(request)
            return deserialise(request)

        # grpc's types are those of its blocking half.
        inner: Any = handler
        if inner.request_streaming:

            async def stream(
                requests: AsyncIterator[bytes], context: ServicerContext[Any, Any]
            ) -> None:
                await inner.stream_stream(_parsed(requests, parse), context)

            return grpc.stream_stream_rpc_method_handler(stream, None, serialise)

        async def unary(request: bytes, context: ServicerContext[Any, Any]) -> Any:
            try:
                message = _parse(request, parse)
            except InvalidRequestError as error:
                async with self._calls.call(method, context):
                    raise error from None
            else:
                return await inner.unary_unary(message, context)

        return grpc.unary_unary_rpc_method_handler(unary, None, serialise)


async def _parsed(
    requests: AsyncIterator[bytes], parse: Callable[[bytes], Any]
) -> AsyncIterator[Any]:
    async for request in requests:
        yield _parse(request, parse)


def _parse(request: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(request)
    except DecodeError as error:
        message = "is no message of this method; use the stubs of proto/alinfik/v1"
        raise InvalidRequestError([("request", message)]) from error
