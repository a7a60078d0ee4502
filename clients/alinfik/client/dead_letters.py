"""What a record of the dead-letter topic says, which of them are meant, what is sent again.

In: records as they were consumed, filters. Out: dead letters, and records to produce. Pure
functions; knows nothing of brokers and of what is shown. docs/kafka.md has the format.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kafka import ConsumerRecord

Headers = list[tuple[str, bytes | None]]

# Headers of these names are the server's, not the producer's.
_OURS = "alinfik-"
_ATTEMPT = "alinfik-attempt"
_REASON = "alinfik-reason"


class Place(NamedTuple):
    """Where a record stands in a topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class Source(NamedTuple):
    """Where the record stands that could not be valued."""

    topic: str
    place: Place


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be valued, and why.

    Attributes:
        place: where the dead letter stands.
        timestamp: of the record, in milliseconds since 1970.
        key: of the record.
        value: of the record; empty where it was left out.
        headers: the record's own, in their order.
        reason: one word of docs/kafka.md; empty where the topic holds something else here.
        error: one line for people.
        source: None where the headers do not say.
        attempt: how many times the record has been tried, this time included.
        left_out_bytes: how long the value, headers and key were that were left out for their size;
            None where none were.
    """

    place: Place
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str
    error: str
    source: Source | None
    attempt: int
    left_out_bytes: int | None

    @property
    def key_text(self) -> str:
        """The key as text, and bytes that are none as Python escapes them."""
        return (self.key or b"").decode(errors="backslashreplace")

    @property
    def size(self) -> int:
        """Bytes of the record's value as it came."""
        return len(self.value or b"") if self.left_out_bytes is None else self.left_out_bytes


def read_dead_letter(record: "ConsumerRecord") -> DeadLetter:
    """Take a record of the dead-letter topic apart. Never raises, whatever stands there."""
    # The server's stand last, from the reason on: a producer's header of such a name is not
    # believed, and a trace that the server names there is not the producer's.
    begins = max((n for n, one in enumerate(record.headers) if one[0] == _REASON), default=None)
    said = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
    source = None
    partition, offset = (
        _number(said, f"alinfik-source-{what}") for what in ("partition", "offset")
    )
    topic = said.get("alinfik-source-topic")
    if topic and partition is not None and offset is not None:
        source = Source(topic, Place(partition, offset))
    left_out = [
        number
        for part in ("value", "headers", "key")
        if (number := _number(said, f"alinfik-{part}-bytes")) is not None
    ]
    return DeadLetter(
        place=Place(record.partition, record.offset),
        timestamp=record.timestamp,
        key=record.key,
        value=record.value,
        headers=[header for header in record.headers[:begins] if not header[0].startswith(_OURS)],
        reason=said.get(_REASON, ""),
        error=said.get("alinfik-error", ""),
        source=source,
        attempt=_number(said, _ATTEMPT) or 1,
        left_out_bytes=sum(left_out) if left_out else None,
    )


def _number(said: dict[str, str], name: str) -> int | None:
    text = said.get(name, "")
    # No number of Kafka's has more digits.
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: those that every filter takes that is set.

    Attributes:
        reasons: one of them; any where empty.
        source_topic: any where None.
        source_partition: any where None.
        since: milliseconds since 1970 of the oldest record; None is no bound.
        until: milliseconds since 1970 that the records are all older than; None is no bound.
        keys: keys, or shell patterns that the key fits (``id-*``), one of them; any where empty.
        start_at: the first place in the order of partitions, then offsets; None is the beginning.
    """

    reasons: Sequence[str] = ()
    source_topic: str | None = None
    source_partition: int | None = None
    since: int | None = None
    until: int | None = None
    keys: Sequence[str] = ()
    start_at: Place | None = None

    def takes(self, letter: DeadLetter) -> bool:
        """Whether ``letter`` is one of those meant."""
        topic, place = letter.source or (None, Place(-1, -1))
        return (
            (not self.reasons or letter.reason in self.reasons)
            and self.source_topic in (None, topic)
            and self.source_partition in (None, place.partition)
            and (self.since is None or self.since <= letter.timestamp)
            and (self.until is None or letter.timestamp < self.until)
            and (not self.keys or any(_fits(letter.key_text, key) for key in self.keys))
            and (self.start_at is None or self.start_at <= letter.place)
        )


def _fits(key: str, pattern: str) -> bool:
    """Keys may hold what patterns are made of."""
    return key == pattern or fnmatchcase(key, pattern)


class Resubmission(NamedTuple):
    """A record to produce so that it is valued once more."""

    topic: str
    # None is for the producer to choose, by the key.
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int


def resubmission(letter: DeadLetter, topic: str | None, max_attempt: int) -> Resubmission | str:
    """The record as it came, to be tried once more; or why it is not.

    The server's headers are dropped but for ``alinfik-attempt``: should the record fail again, the
    server makes it one higher in the next dead letter.

    Args:
        letter: what is to be sent again.
        topic: where to; where it came from if None, then into the same partition, so that the
            records of a key stay together whatever its producer went by.
        max_attempt: no try of a higher number is made.
    """
    if letter.source is None or not letter.reason:
        return "it is no dead letter: it has no alinfik-reason or no source"
    source_topic, place = letter.source
    if letter.left_out_bytes is not None:
        return (
            f"{letter.left_out_bytes} bytes of it were left out for their size; it stood at "
            f"{source_topic} {place}"
        )
    if letter.attempt >= max_attempt:
        return f"it was tried {letter.attempt} times (--max-attempt {max_attempt})"
    return Resubmission(
        topic=topic or source_topic,
        partition=place.partition if topic in (None, source_topic) else None,
        key=letter.key,
        # kafka-python writes no record that has neither.
        value=b"" if letter.key is None and letter.value is None else letter.value,
        headers=[*letter.headers, (_ATTEMPT, str(letter.attempt).encode())],
        timestamp=letter.timestamp,
    )
