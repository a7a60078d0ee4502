"""Turns a failed call, or a sample's failed status, into a typed exception with a readable message.

    AlinfikError
    ├── InvalidRequestError      INVALID_ARGUMENT: a field of the request is wrong
    ├── InvalidSamplesError      samples of a batch that have no value; holds a SampleError for each
    ├── SampleError              why one sample has no value; ``score_stream`` yields it, unraised
    ├── NotFoundError            NOT_FOUND: no such bundle or target
    ├── OverloadedError          RESOURCE_EXHAUSTED: the queue is full, or a message is too large
    ├── DeadlineExceededError    DEADLINE_EXCEEDED: no answer in time
    ├── UnavailableError         UNAVAILABLE: nobody answers, or the server is starting or draining
    └── ServerError              anything else; the message holds the id under which it is logged

Everything here is pure: it reads statuses and makes exceptions, and knows neither channel nor call.
"""

import re
from collections.abc import Iterable, Sequence

import grpc
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

# Where gRPC carries google.rpc.Status with its details.
# https://grpc.io/docs/guides/error/#richer-error-model
_STATUS_DETAILS_KEY = "grpc-status-details-bin"

# Enough to see the pattern of what is wrong; the exception holds them all.
_NAMED_IN_MESSAGE = 3


class AlinfikError(Exception):
    """Base of all that this package raises for a call that failed."""


class InvalidRequestError(AlinfikError):
    """The server refuses a field of the request."""


class NotFoundError(AlinfikError):
    """The server has no such bundle, or the bundle no such target."""


class DeadlineExceededError(AlinfikError):
    """The answer did not come within the client's ``timeout_seconds``."""


class UnavailableError(AlinfikError):
    """No server answers at the address, or it has no bundle ready, or it is shutting down."""


class ServerError(AlinfikError):
    """The server failed in a way that is neither the caller's fault nor a passing state."""


class OverloadedError(AlinfikError):
    """The server's queue stayed full through every retry; nothing was done.

    Attributes:
        retry_after_seconds: when the server asks to be tried again; None where it does not say.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class SampleError(AlinfikError):
    """Why one sample has no value.

    Attributes:
        index: the sample's place among the samples of the call, from 0.
        sample_id: its ``Sample.id``.
        code: the status that it got.
        reason: what is wrong with it, in the server's words.
    """

    def __init__(self, index: int, sample_id: str, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(f"sample {index} (id {sample_id!r}): {code.name}: {reason}")
        self.index = index
        self.sample_id = sample_id
        self.code = code
        self.reason = reason


class InvalidSamplesError(AlinfikError):
    """Samples of a ``score`` call have no value, so the call as a whole has none.

    Attributes:
        errors: one a sample that has no value, in the caller's order.
    """

    def __init__(self, errors: Sequence[SampleError]) -> None:
        named = "; ".join(str(error) for error in errors[:_NAMED_IN_MESSAGE])
        more = len(errors) - _NAMED_IN_MESSAGE
        super().__init__(named + (f"; and {more} more" if more > 0 else ""))
        self.errors = tuple(errors)


def sample_error(index: int, sample_id: str, status: Status) -> SampleError:
    """Read the status that one sample of a batch got.

    Raises:
        NotFoundError: the fault is the request's: every other sample would get the same.
    """
    code = _CODES[status.code]
    if code is grpc.StatusCode.NOT_FOUND:
        raise NotFoundError(status.message)
    # The sample's place in its request means nothing to the caller, who knows neither.
    reason = re.sub(r"\bsamples\[\d+\]\.", "", _reason(status))
    return SampleError(index, sample_id, code, reason)


def call_error(address: str, timeout_seconds: float, error: grpc.RpcError) -> AlinfikError:
    """Read what a call to ``address`` raised, blocking or asyncio."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return ServerError(f"{address}: {error}")  # grpc promises no more than RpcError
    code = error.code()
    status = _status(error.trailing_metadata() or ())
    status.message = status.message or error.details() or code.name
    return _error_of(address, timeout_seconds, code, status)


def no_answer(address: str, timeout_seconds: float) -> DeadlineExceededError:
    """What a call gets that waited ``timeout_seconds`` for nothing."""
    return DeadlineExceededError(f"{address}: no answer within {timeout_seconds:g} s")


def _error_of(
    address: str, timeout_seconds: float, code: grpc.StatusCode, status: Status
) -> AlinfikError:
    # Where nobody answers, gRPC begins with words about its own list of addresses.
    said = f"{address}: {_reason(status).rpartition('; last error: ')[2]}"
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequestError(said)
        case grpc.StatusCode.NOT_FOUND:
            return NotFoundError(said)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return OverloadedError(said, _retry_after(status))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return no_answer(address, timeout_seconds)
        case grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(said)
        case _:
            return ServerError(f"{address}: {code.name}: {_reason(status)}")


def _status(metadata: Iterable[tuple[str, str | bytes]]) -> Status:
    for key, value in metadata:
        if key == _STATUS_DETAILS_KEY and isinstance(value, bytes):
            return Status.FromString(value)
    return Status()


def _reason(status: Status) -> str:
    """The violated fields where the status names them, else its message."""
    violated: list[str] = []
    for detail in status.details:
        bad = BadRequest()
        if detail.Unpack(bad):
            violated += [f"{item.field} {item.description}" for item in bad.field_violations]
    return "; ".join(violated) or status.message


def _retry_after(status: Status) -> float | None:
    for detail in status.details:
        retry = RetryInfo()
        if detail.Unpack(retry):
            return retry.retry_delay.ToTimedelta().total_seconds()
    return None


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
