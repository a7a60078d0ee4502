"""Turns a failed call, or a sample's failed status, into a typed exception with a readable message.

    AlinfikError
    ├── InvalidRequestError      INVALID_ARGUMENT: a field of the request is wrong
    ├── InvalidSamplesError      samples of a batch that have no value; holds a SampleError for each
    ├── SampleError              why one sample has no value; ``score_stream`` yields it, unraised
    ├── NotFoundError            NOT_FOUND: no such bundle or target
    ├── FailedPreconditionError  FAILED_PRECONDITION: what the bundle, as it is, does not allow
    ├── UnauthenticatedError     UNAUTHENTICATED: no token, or one that the server does not know
    ├── PermissionDeniedError    PERMISSION_DENIED: the token's role may not do this
    ├── OverloadedError          RESOURCE_EXHAUSTED: the queue is full, or a message is too large
    ├── DeadlineExceededError    DEADLINE_EXCEEDED: no answer in time
    ├── UnavailableError         UNAVAILABLE: nobody answers, or the server is starting or draining;
    │                            CANCELLED: it let go of the call, with more to do than it can
    └── ServerError              anything else; the message holds the id under which it is logged

Everything here is pure: it reads statuses and makes exceptions, and knows neither channel nor call.
"""

import re
from collections.abc import Sequence

import grpc
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

# Where gRPC carries google.rpc.Status with its details.
# https://grpc.io/docs/guides/error/#richer-error-model
_STATUS_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "x-request-id"

# Enough to see the pattern of what is wrong; the exception holds them all.
_NAMED_IN_MESSAGE = 3

# A field's path, ``samples[3].completion``, and what is wrong with it.
Violation = tuple[str, str]


class AlinfikError(Exception):
    """Base of all that this package raises for a call that failed.

    Attributes:
        request_id: under what the server's log has the call; empty where it returned none.
    """

    request_id: str = ""


class InvalidRequestError(AlinfikError):
    """The server refuses a field of the request.

    Attributes:
        violations: each bad field's path and what is wrong with it; empty where it names none.
    """

    def __init__(self, message: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)


class NotFoundError(AlinfikError):
    """The server has no such bundle, or the bundle no such target."""


class FailedPreconditionError(AlinfikError):
    """The bundle has no token values to explain by, or is the active one and stays."""


class UnauthenticatedError(AlinfikError):
    """The server wants a token, and knows the one that it got (if any) not, or not any more."""


class PermissionDeniedError(AlinfikError):
    """The server knows the token, and its role may not make this call."""


class DeadlineExceededError(AlinfikError):
    """The answer did not come within the client's ``timeout_seconds``."""


class UnavailableError(AlinfikError):
    """No server answers at the address, or it has no bundle ready, or it is shutting down.

    Attributes:
        retry_after_seconds: when the server asks to be tried again; None where it does not say.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


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
        UnavailableError: it is the server's state, which passes, and no fault of the sample.
    """
    code = _CODES[status.code]
    if code is grpc.StatusCode.NOT_FOUND:
        raise NotFoundError(status.message)
    if code is grpc.StatusCode.UNAVAILABLE:
        raise UnavailableError(status.message, _retry_after(status))
    # The sample's place in its request means nothing to the caller, who knows neither.
    reason = re.sub(r"\bsamples\[\d+\]\.", "", _reason(status))
    return SampleError(index, sample_id, code, reason)


def call_error(address: str, timeout_seconds: float, error: grpc.RpcError) -> AlinfikError:
    """Read what a call to ``address`` raised, blocking or asyncio."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return ServerError(f"{address}: {error}")  # grpc promises no more than RpcError
    code = error.code()
    trailing = dict(error.trailing_metadata() or ())
    status = _status(trailing.get(_STATUS_DETAILS_KEY))
    status.message = status.message or error.details() or code.name
    request_id = str(trailing.get(_REQUEST_ID_KEY, ""))
    failure = _error_of(address, timeout_seconds, code, status, request_id)
    failure.request_id = request_id
    return failure


def no_answer(address: str, timeout_seconds: float) -> DeadlineExceededError:
    """What a call gets that waited ``timeout_seconds`` for nothing."""
    return DeadlineExceededError(f"{address}: no answer within {timeout_seconds:g} s")


def _error_of(
    address: str, timeout_seconds: float, code: grpc.StatusCode, status: Status, request_id: str
) -> AlinfikError:
    # Where nobody answers, gRPC begins with words about its own list of addresses.
    said = f"{address}: {_reason(status).rpartition('; last error: ')[2]}"
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequestError(said, _violations(status))
        case grpc.StatusCode.NOT_FOUND:
            return NotFoundError(said)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return FailedPreconditionError(said)
        case grpc.StatusCode.UNAUTHENTICATED:
            return UnauthenticatedError(said)
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDeniedError(said)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return OverloadedError(said, _retry_after(status))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return no_answer(address, timeout_seconds)
        case grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(said, _retry_after(status))
        case grpc.StatusCode.CANCELLED:
            # Not by us: whoever cancels a call of ours hears no error.
            return UnavailableError(f"{address}: the server let go of the call")
        case grpc.StatusCode.INTERNAL if request_id:
            return ServerError(f"{address}: INTERNAL: {_reason(status)} (request {request_id})")
        case _:
            return ServerError(f"{address}: {code.name}: {_reason(status)}")


def _status(details: str | bytes | None) -> Status:
    return Status.FromString(details) if isinstance(details, bytes) else Status()


def _violations(status: Status) -> list[Violation]:
    violated: list[Violation] = []
    for detail in status.details:
        bad = BadRequest()
        if detail.Unpack(bad):
            violated += [(item.field, item.description) for item in bad.field_violations]
    return violated


def _reason(status: Status) -> str:
    """The violated fields where the status names them, else its message."""
    named = "; ".join(f"{field} {description}" for field, description in _violations(status))
    return named or status.message


def _retry_after(status: Status) -> float | None:
    for detail in status.details:
        retry = RetryInfo()
        if detail.Unpack(retry):
            return retry.retry_delay.ToTimedelta().total_seconds()
    return None


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
