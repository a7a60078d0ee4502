"""A value that is read from files, and read again once they have changed.

Comes in: paths, and what makes a value of them. Goes out: the value as of now, or the last good one
where the files as they are now make none. Knows nothing of what they hold. For any thread.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from alinfik.command import CommandError

Value = TypeVar("Value")
# What changes when a file is written to, or another takes its place, as in a Kubernetes secret.
Stamp = tuple[int, int, int] | None

_log = structlog.get_logger()


class Watched(Generic[Value]):
    """What ``load`` makes of files.

    Args:
        paths: the files.
        load: reads them; raises CommandError where it cannot.
        seconds: how often to look at most; at every ``current`` by default.

    Raises:
        CommandError: they do not load to begin with.
    """

    def __init__(
        self, paths: Sequence[Path], load: Callable[[], Value], seconds: float = 0.0
    ) -> None:
        self._paths = paths
        self._load = load
        self._seconds = seconds
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        # Before loading, so that what changes meanwhile is loaded again.
        self._stamps = self._stamp()
        self._value = load()

    def current(self) -> Value:
        """The value; costs one `stat` a file where it is time to look."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at >= self._seconds:
                self._looked_at = now
                self._look()
            return self._value

    def _look(self) -> None:
        if (stamps := self._stamp()) == self._stamps:
            return
        self._stamps = stamps
        files = [str(path) for path in self._paths]
        try:
            self._value = self._load()
        except CommandError as error:
            # Once: until they change again nothing is loaded, and so nothing is said.
            _log.warning("changed files do not load; the old ones count", error=str(error))
        else:
            _log.info("files loaded again", files=files)

    def _stamp(self) -> list[Stamp]:
        return [stamp(path) for path in self._paths]


def stamp(path: Path) -> Stamp:
    """When a file was last written to, which one it is and its bytes; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
