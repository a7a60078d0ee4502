"""Helpers that any test may use."""

import os
from typing import NoReturn

import pytest


def skip_or_fail(reason: str) -> NoReturn:
    """Skip a test whose needs this machine lacks; fail it where ALINFIK_NO_SKIP is 1, as in CI.

    Args:
        reason: what is missing and how to get it.
    """
    if os.environ.get("ALINFIK_NO_SKIP") == "1":
        pytest.fail(f"ALINFIK_NO_SKIP=1 and {reason}", pytrace=False)
    pytest.skip(reason)
