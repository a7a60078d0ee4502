"""Decides whether and when a failed unary call is made again.

In: the errors of one call's tries. Out: the seconds until the next try, or that there is none. Both
clients drive it; it sleeps nowhere and knows neither channel nor event loop. gRPC's own retries,
which a stream has, do not read RetryInfo, and would start the deadline of the next try unseen.
"""

import random
import time

from alinfik.client.errors import AlinfikError, OverloadedError, UnavailableError

# The random part of the waits is at most 0.1, 0.2, 0.4 and 0.8 s. So a restart behind a load
# balancer or a full queue of about a second is ridden out, and a server that is not there is
# reported after a second and a half.
_TRIES = 5
_FIRST_BACKOFF_SECONDS = 0.1
_BACKOFF_MULTIPLIER = 2


class Retry:
    """The tries of one call, which share its deadline.

    Every method may be repeated: valuing has no side effects, and what an administrator asks for is
    the same when it is asked for twice.

    Args:
        timeout_seconds: how long the call may take, waits included.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._deadline = time.monotonic() + timeout_seconds
        self._tries = 0

    def remaining_seconds(self) -> float:
        """Until the deadline: what the next try may take."""
        return max(0.0, self._deadline - time.monotonic())

    def wait_seconds(self, failure: AlinfikError) -> float | None:
        """How long to wait before the next try; None where ``failure`` is the call's outcome.

        The wait is the server's own (RetryInfo, or nothing where it says none) and a random time
        after it, which doubles with every try and keeps the clients that were refused together
        from coming back together. A wait that would pass the deadline is not begun: the refusal
        says more than a timeout.
        """
        self._tries += 1
        if not isinstance(failure, OverloadedError | UnavailableError) or self._tries == _TRIES:
            return None
        backoff = _FIRST_BACKOFF_SECONDS * _BACKOFF_MULTIPLIER ** (self._tries - 1)
        wait = (failure.retry_after_seconds or 0.0) + random.uniform(0, backoff)  # noqa: S311
        return wait if wait < self.remaining_seconds() else None
