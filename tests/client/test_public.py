import alinfik.client
from alinfik.client import errors


def test_the_public_names_are_these():
    assert alinfik.client.__all__ == [
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
    assert all(hasattr(alinfik.client, name) for name in alinfik.client.__all__)


def test_the_drawn_exception_tree_is_the_real_one():
    drawn = {
        line.split()[1]
        for line in errors.__doc__.splitlines()
        if line.strip().startswith(("├──", "└──"))
    }
    assert drawn == {error.__name__ for error in errors.AlinfikError.__subclasses__()}


def test_both_clients_have_the_same_methods():
    def public(client):
        return {name for name in vars(client) if not name.startswith("_")}

    assert public(alinfik.client.Client) == public(alinfik.client.AsyncClient)
