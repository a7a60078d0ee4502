"""What other packages may import of the contracts; a change here is a change of the contract."""

import alinfik.command
import alinfik.v1


def test_the_public_list_of_messages_is_this() -> None:
    messages = {name for name in alinfik.v1.__all__ if name[1].islower()}
    assert messages == {
        "ActivateBundleRequest",
        "ActivateBundleResponse",
        "BundleManifest",
        "BundleSummary",
        "Encoding",
        "ExplainRequest",
        "ExplainResponse",
        "Explanation",
        "FileDigest",
        "GetBundleRequest",
        "GetBundleResponse",
        "LabelSettings",
        "LanguageModel",
        "ListBundlesRequest",
        "ListBundlesResponse",
        "LoadBundleRequest",
        "LoadBundleResponse",
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
        "Timing",
        "TokenSplit",
        "TokenValue",
        "UnloadBundleRequest",
        "UnloadBundleResponse",
        "Valuation",
    }
    assert set(alinfik.v1.__all__) - messages == {
        "LOSS_REDUCTION_MEAN",
        "LOSS_REDUCTION_SUM",
        "NORMALISATION_GLOBAL",
        "NORMALISATION_NONE",
        "NORMALISATION_TENSOR",
        "TOKEN_SPLIT_LOSS",
        "TOKEN_SPLIT_POSITION",
        "TOKEN_SPLIT_UNSPECIFIED",
    }
    assert all(hasattr(alinfik.v1, name) for name in alinfik.v1.__all__)


def test_the_public_list_of_command_is_this() -> None:
    assert set(alinfik.command.__all__) == {"CommandError", "FailedError", "progress", "run"}
