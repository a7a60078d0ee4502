"""What tests of several folders share."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.server_process import ServerProcess, running_server
from tests.tiny_bundle import write_tiny_bundle

# Nothing comes from the hub; where it cannot be reached it would be asked again and again.
os.environ["HF_HUB_OFFLINE"] = "1"

# How long an example takes is the machine's affair, and the first one loads libraries.
hypothesis.settings.register_profile("alinfik", deadline=None)
hypothesis.settings.load_profile("alinfik")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two targets, gsm8k and mbpp. Not to be changed."""
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def server(tiny_bundle: Path) -> Iterator[ServerProcess]:
    """A running server of the tiny bundle, shared by all tests that leave it running."""
    with running_server(tiny_bundle) as running:
        yield running
