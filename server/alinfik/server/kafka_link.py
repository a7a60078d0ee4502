"""The Kafka process's end of its pipe to the server, which has the engine, the metrics and the log.

Comes in: samples, and what became of their batch. Goes out: a future of their outcomes. A server
that has died takes the process along: nobody would value its records. Knows nothing of Kafka.
"""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Event, Lock, Thread
from typing import NamedTuple

from alinfik.server.kafka_messages import (
    Finished,
    FromProcess,
    NotScored,
    Score,
    Scored,
    Stop,
    ToProcess,
)
from alinfik.v1 import Sample


class NotScoredError(Exception):
    """The server could not value a batch now."""


class StoppedError(Exception):
    """The server is stopping and there is no time left to value a batch."""


class Scoring(NamedTuple):
    """A batch that the server has."""

    batch: int
    scored: Future[Scored]
    """Fails with ``NotScoredError`` or ``StoppedError``."""


class Link:
    """The way to the server. Thread-safe.

    Args:
        connection: this process's end.

    ``stopping`` is set once the server says so.
    """

    def __init__(self, connection: "Connection[FromProcess, ToProcess]") -> None:
        self.stopping = Event()
        self._connection = connection
        self._sending = Lock()
        self._numbers = itertools.count()
        self._scoring: dict[int, Future[Scored]] = {}
        Thread(target=self._listen, name="server", daemon=True).start()

    def tell(self, message: FromProcess) -> None:
        """Send a message."""
        # A server that has died is for the listening thread to notice.
        with self._sending, suppress(OSError):
            self._connection.send(message)

    def score(self, samples: Sequence[Sample], records: int, parents: Sequence[bytes]) -> Scoring:
        """Have a batch's samples valued; ``records`` and ``parents`` are as in ``Score``."""
        number = next(self._numbers)
        scoring = self._scoring[number] = Future[Scored]()
        serialised = [sample.SerializeToString() for sample in samples]
        self.tell(Score(number, serialised, records, parents))
        return Scoring(number, scoring)

    def finish(self, scoring: Scoring, *, committed: bool) -> None:
        """Say what became of a batch, to be called once for each; or that it is dropped."""
        self._scoring.pop(scoring.batch, None)
        self.tell(Finished(scoring.batch, committed))

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                # The server is no more. A transaction that is open is the broker's to abort.
                os._exit(1)
            match message:
                case Stop():
                    self.stopping.set()
                case Scored():
                    if scoring := self._scoring.pop(message.batch, None):
                        scoring.set_result(message)
                case NotScored():
                    if scoring := self._scoring.pop(message.batch, None):
                        error = NotScoredError(message.error) if message.error else StoppedError()
                        scoring.set_exception(error)
