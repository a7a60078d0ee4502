"""Counts the samples of a file that got no answer, and says of each why."""

import sys

from alinfik.client.errors import SampleError
from alinfik.command import FailedError


class Tally:
    """What became of the samples of one file.

    Args:
        file: where the samples are from.
        lacks: what those without an answer have not got: ``value``.
    """

    def __init__(self, file: str, lacks: str) -> None:
        self.done = 0
        self.failed = 0
        self._file = file
        self._lacks = lacks

    def count(self, error: SampleError | None) -> None:
        """Count the next sample, and report on standard error what it got instead."""
        self.done += 1
        if error is not None:
            self.failed += 1
            place = f"{self._file}: sample no. {self.done} (id {error.sample_id!r})"
            print(f"{place}: {error.code.name}: {error.reason}", file=sys.stderr)

    def count_answered(self, *, failed: bool) -> None:
        """Count a sample that was answered, and reported, in an earlier run."""
        self.done += 1
        self.failed += failed

    def check(self, see: str) -> None:
        """End the command where a sample failed; ``see`` says where the reasons stand.

        Raises:
            FailedError: says how many.
        """
        if self.failed:
            of = f"{self.failed} of {self.done} samples of {self._file}"
            raise FailedError(f"{of} have no {self._lacks}: see {see}")
