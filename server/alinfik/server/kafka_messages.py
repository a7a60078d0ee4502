"""What the server and its Kafka process say to each other. Plain data, pickled over a pipe.

A batch has a number, by which both know it. The process says ``Score``, is told ``Scored`` or
``NotScored``, and says ``Finished`` once its transaction is over, or at any time before if it drops
the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alinfik.server.records import DeadLetter, Headers

ScoredSample = tuple[bytes, str] | DeadLetter
"""The fields of a ``Valued``, which itself takes eight times as long to pickle."""


class Score(NamedTuple):
    """To the server: value these."""

    batch: int
    samples: Sequence[bytes]
    """Each an ``alinfik.v1.Sample``."""
    records: int
    """Of the batch; there may be records that hold no sample."""
    parents: Sequence[bytes]
    """The ``traceparent`` of each trace that the records come from."""


class Finished(NamedTuple):
    """To the server: nothing more comes of this batch."""

    batch: int
    committed: bool


class Measured(NamedTuple):
    """To the server: call this method of one of its ``KafkaMetrics``."""

    metric: str
    labels: tuple[str, ...] | None
    """None for a metric that has none."""
    method: str
    arguments: tuple[Any, ...]


class Logged(NamedTuple):
    """To the server: an event for its log."""

    level: str
    event: str
    fields: Mapping[str, Any]


class Scored(NamedTuple):
    """To the process: an outcome for each of the samples."""

    batch: int
    outcomes: Sequence[ScoredSample]
    headers: Headers
    """Of outgoing records, to name the batch's trace."""


class NotScored(NamedTuple):
    """To the process: these samples are not valued."""

    batch: int
    error: str
    """Empty where the server is stopping and there is no time left."""


class Stop(NamedTuple):
    """To the process: finish what is begun, leave the group and end."""


FromProcess = Score | Finished | Measured | Logged
ToProcess = Scored | NotScored | Stop
