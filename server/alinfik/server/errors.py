"""The one table from what can go wrong to a gRPC status.

Comes in: an exception, or what is wrong with a sample. Goes out: a ``google.rpc.Status`` with
details, which ends a call or stands in one sample's ``ScoreResult.error``. Never a stack trace.

    InvalidRequestError, Rejection   INVALID_ARGUMENT    BadRequest: the bad fields
    OversizedError                   INVALID_ARGUMENT    BadRequest: the samples
    NotFoundError                    NOT_FOUND           ResourceInfo
    NotExplainableError, InUseError  FAILED_PRECONDITION PreconditionFailure
    QueueFull, LimitError            RESOURCE_EXHAUSTED  RetryInfo
    UnauthenticatedError             UNAUTHENTICATED     ErrorInfo
    PermissionDeniedError            PERMISSION_DENIED   ErrorInfo with the role that is needed
    TimeoutError                     DEADLINE_EXCEEDED
    NotRunningError                  UNAVAILABLE         RetryInfo
    ModelError                       INTERNAL            ErrorInfo with the error id
    anything else, a defect          INTERNAL            ErrorInfo with the error id
"""

import uuid
from collections.abc import Sequence

import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.code_pb2 import (
    DEADLINE_EXCEEDED,
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    UNAUTHENTICATED,
    UNAVAILABLE,
)
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    ResourceInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status

from alinfik.server.admission import OversizedError, QueueFull
from alinfik.server.engine import NotRunningError
from alinfik.server.explainer import NotExplainableError
from alinfik.server.fault import ModelError
from alinfik.server.registry import InUseError, NotFoundError

# Long enough for a warm-up, for another replica to take over, or for some call to end; short enough
# not to be noticed.
_RETRY_SECONDS = 1.0
# Of every ErrorInfo's reason.
_DOMAIN = "alinfik.v1"
# Violations told in the message, and in the details. Both travel in a call's metadata, of which
# clients take 8 KiB, or answer with a status of their own that says nothing of all this.
_TOLD = 3
_DETAILED = 40

# A field's path, ``samples[3].completion``, and what is wrong with it.
Violation = tuple[str, str]

_log = structlog.get_logger()


class InvalidRequestError(Exception):
    """A request breaks the contract in one field or more."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("invalid request")
        self.violations = violations


class LimitError(Exception):
    """As much is under way as a bound allows; a later call may get through."""


class UnauthenticatedError(Exception):
    """A call without a token, or with one that nobody has."""


class PermissionDeniedError(Exception):
    """A call that needs ``role``, by someone who has not got it."""

    def __init__(self, message: str, role: str) -> None:
        super().__init__(message)
        self.role = role


def status_of(error: Exception) -> Status:
    """The status that ``error`` means. A defect is logged, under the id that the status carries."""
    match error:
        case InvalidRequestError():
            return invalid(error.violations)
        case OversizedError():
            return invalid([("samples", str(error))])
        case NotFoundError():
            info = ResourceInfo(resource_type=error.kind, resource_name=error.name)
            return _status(NOT_FOUND, str(error), info)
        case NotExplainableError() | InUseError():
            kind = type(error).__name__.removesuffix("Error")
            violation = PreconditionFailure.Violation(type=kind, description=str(error))
            details = PreconditionFailure(violations=[violation])
            return _status(FAILED_PRECONDITION, str(error), details)
        case QueueFull():
            seconds = error.retry_after_seconds
            message = f"the queue is full; try again in {seconds:.2g} s"
            return _status(RESOURCE_EXHAUSTED, message, _retry(seconds))
        case LimitError():
            return _status(RESOURCE_EXHAUSTED, str(error), _retry(_RETRY_SECONDS))
        case UnauthenticatedError():
            info = ErrorInfo(reason="TOKEN_NEEDED", domain=_DOMAIN)
            return _status(UNAUTHENTICATED, str(error), info)
        case PermissionDeniedError():
            info = ErrorInfo(reason="ROLE_NEEDED", domain=_DOMAIN, metadata={"role": error.role})
            return _status(PERMISSION_DENIED, str(error), info)
        case TimeoutError():
            message = "the deadline passed before all samples were valued"
            return _status(DEADLINE_EXCEEDED, message)
        case NotRunningError():
            retry = _retry(_RETRY_SECONDS)
            return _status(UNAVAILABLE, str(error), retry)
        case ModelError():
            return _internal(str(error), "MODEL_FAILED", error.error_id)
        case _:
            error_id = uuid.uuid4().hex[:12]
            _log.error("a call failed on a defect", error_id=error_id, exc_info=error)
            message = f"internal error; the server's log says why under error id {error_id}"
            return _internal(message, "DEFECT", error_id)


def invalid(found: Sequence[Violation]) -> Status:
    """INVALID_ARGUMENT for ``found``; what is past the first forty is counted."""
    told = "; ".join(f"{path} {message}" for path, message in found[:_TOLD])
    more = f"; and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
    details = BadRequest(
        field_violations=[
            BadRequest.FieldViolation(field=path, description=message)
            for path, message in found[:_DETAILED]
        ]
    )
    if len(found) > _DETAILED:
        rest = f"and {len(found) - _DETAILED} more violations"
        details.field_violations.add(field="samples", description=rest)
    return _status(INVALID_ARGUMENT, told + more, details)


def _internal(message: str, reason: str, error_id: str) -> Status:
    info = ErrorInfo(reason=reason, domain=_DOMAIN, metadata={"error_id": error_id})
    return _status(INTERNAL, message, info)


def _retry(seconds: float) -> RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    return RetryInfo(retry_delay=delay)


def _status(code: int, message: str, *details: Message) -> Status:
    status = Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status
