"""Values samples from Python: a blocking client and an asyncio one over the same contract.

    from alinfik.client import Client, Sample

    with Client("127.0.0.1:50051") as client:
        sample = Sample(id="1", prompt="What is 2 + 2?", completion="2 + 2 = 4.")
        for value in client.score([sample])[0].values:
            print(value.target, value.value, value.percentile)

A sample's text goes to the server as it is; no model, tokenizer or tensor library is needed here.
"""

from alinfik.client.aio import AsyncClient
from alinfik.client.batches import Scored
from alinfik.client.errors import (
    AlinfikError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidRequestError,
    InvalidSamplesError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    SampleError,
    ServerError,
    UnauthenticatedError,
    UnavailableError,
)
from alinfik.client.security import Tls
from alinfik.client.sync import Client
from alinfik.v1 import (
    ActivateBundleResponse,
    BundleManifest,
    BundleSummary,
    Explanation,
    Sample,
    TargetValue,
    TokenValue,
    Valuation,
)

__all__ = [
    "ActivateBundleResponse",
    "AlinfikError",
    "AsyncClient",
    "BundleManifest",
    "BundleSummary",
    "Client",
    "DeadlineExceededError",
    "Explanation",
    "FailedPreconditionError",
    "InvalidRequestError",
    "InvalidSamplesError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "Sample",
    "SampleError",
    "Scored",
    "ServerError",
    "TargetValue",
    "Tls",
    "TokenValue",
    "UnauthenticatedError",
    "UnavailableError",
    "Valuation",
]
