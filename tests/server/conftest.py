"""Bundles whose models misbehave."""

from pathlib import Path

import pytest

from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose every batch takes a tenth of a second or so, or more."""
    return write_tiny_bundle(tmp_path_factory.mktemp("slow") / "bundle", loops=200_000)


@pytest.fixture(scope="session")
def failing_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that passes the trial and whose model then fails on the word `friends`."""
    return write_tiny_bundle(tmp_path_factory.mktemp("failing") / "bundle", fails_on_friends=True)
