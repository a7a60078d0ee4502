"""The messages of ALinFiK's public contract, version 1.

The gRPC stubs are in ``valuation_service_pb2_grpc``, so that reading a bundle manifest needs no
grpc.
"""

from alinfik.v1.bundle_pb2 import (
    LOSS_REDUCTION_MEAN,
    LOSS_REDUCTION_SUM,
    NORMALISATION_GLOBAL,
    NORMALISATION_NONE,
    NORMALISATION_TENSOR,
    TOKEN_SPLIT_LOSS,
    TOKEN_SPLIT_POSITION,
    TOKEN_SPLIT_UNSPECIFIED,
    BundleManifest,
    Encoding,
    FileDigest,
    LabelSettings,
    LanguageModel,
    LossReduction,
    Metrics,
    Normalisation,
    OutOfDistribution,
    ProviderMetrics,
    Proxy,
    Target,
    TargetMetrics,
    TokenSplit,
)
from alinfik.v1.sample_pb2 import Sample
from alinfik.v1.valuation_pb2 import TargetValue, Valuation
from alinfik.v1.valuation_service_pb2 import (
    BundleSummary,
    GetBundleRequest,
    GetBundleResponse,
    ListBundlesRequest,
    ListBundlesResponse,
    ScoreRequest,
    ScoreResponse,
    ScoreResult,
)

__all__ = [
    "LOSS_REDUCTION_MEAN",
    "LOSS_REDUCTION_SUM",
    "NORMALISATION_GLOBAL",
    "NORMALISATION_NONE",
    "NORMALISATION_TENSOR",
    "TOKEN_SPLIT_LOSS",
    "TOKEN_SPLIT_POSITION",
    "TOKEN_SPLIT_UNSPECIFIED",
    "BundleManifest",
    "BundleSummary",
    "Encoding",
    "FileDigest",
    "GetBundleRequest",
    "GetBundleResponse",
    "LabelSettings",
    "LanguageModel",
    "ListBundlesRequest",
    "ListBundlesResponse",
    "LossReduction",
    "Metrics",
    "Normalisation",
    "OutOfDistribution",
    "ProviderMetrics",
    "Proxy",
    "Sample",
    "ScoreRequest",
    "ScoreResponse",
    "ScoreResult",
    "Target",
    "TargetMetrics",
    "TargetValue",
    "TokenSplit",
    "Valuation",
]
