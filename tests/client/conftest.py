import pytest


@pytest.fixture
def address(server):
    """Where a real server listens, with the tiny bundle."""
    return server.grpc
