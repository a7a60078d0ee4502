import pytest
from hypothesis import given
from hypothesis import strategies as st

from alinfik.client import (
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    ServerError,
    UnavailableError,
)
from alinfik.client.retry import Retry

DELAYS = st.none() | st.floats(0, 100)
REFUSALS = st.builds(
    lambda kind, delay: kind("not now", delay),
    st.sampled_from([OverloadedError, UnavailableError]),
    DELAYS,
)


@given(st.floats(0, 300), st.lists(REFUSALS, min_size=5))
def test_waits_are_no_shorter_than_told_bounded_in_number_and_within_the_deadline(
    timeout_seconds, refusals
):
    retry = Retry(timeout_seconds)
    waits = []
    for refusal in refusals:
        if (wait := retry.wait_seconds(refusal)) is None:
            break
        assert (refusal.retry_after_seconds or 0) <= wait < timeout_seconds
        waits.append(wait)
    assert len(waits) <= 4


@given(st.integers(1, 4))
def test_without_word_from_the_server_the_back_off_doubles(tries):
    retry = Retry(60)
    waits = [retry.wait_seconds(UnavailableError("not now")) for _ in range(tries)]
    for number, wait in enumerate(waits):
        assert 0 <= wait <= 0.1 * 2**number


@pytest.mark.parametrize("kind", [InvalidRequestError, DeadlineExceededError, ServerError])
def test_what_would_fail_again_is_not_repeated(kind):
    assert Retry(60).wait_seconds(kind("no")) is None


def test_what_remains_is_never_negative():
    assert Retry(0).remaining_seconds() == 0
