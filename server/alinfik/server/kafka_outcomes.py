"""What is written of each record, and to which topic.

Comes in: a record and its outcome, and what topics have refused. Goes out: a valuation or a dead
letter that its topic takes. Knows nothing of batches and of how they are committed.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from alinfik.server.records import (
    DeadLetter,
    Headers,
    OutgoingRecord,
    SourceRecord,
    ValuationFormat,
    Valued,
    dead_letter_record,
    fits,
    valuation_record,
)
from alinfik.server.settings import ServerSettings


class Written(NamedTuple):
    """What becomes of a record in the end."""

    outcome: Valued | DeadLetter
    topic: str
    record: OutgoingRecord


class Outcomes:
    """Turns outcomes into records; what a topic has refused becomes another one the next time.

    Args:
        settings: topics, and the form of valuations.
        largest_bytes: what each topic takes.
    """

    def __init__(self, settings: ServerSettings, largest_bytes: Mapping[str, int]) -> None:
        self._valuations = settings.kafka_output
        self._dead_letters = settings.kafka_dead_letters
        self._form: ValuationFormat = settings.kafka_valuation_format
        self._largest = largest_bytes
        self._refused: dict[tuple[str, str], str] = {}

    def written(
        self, source: SourceRecord, outcome: Valued | DeadLetter, headers: Headers
    ) -> Written:
        """The record of an outcome; ``headers`` name the trace of its batch."""
        if isinstance(outcome, Valued):
            record = valuation_record(outcome, source, self._form, headers)
            if why := self._why(self._valuations, source):
                outcome = DeadLetter("refused", f"topic {self._valuations} refuses: {why}")
            elif fits(record, self._largest[self._valuations]):
                return Written(outcome, self._valuations, record)
            else:
                error = f"its valuation, with the key, is more than topic {self._valuations} takes"
                outcome = DeadLetter("too_large", error)
        letter = dead_letter_record(outcome, source, self._largest[self._dead_letters], headers)
        if self._why(self._dead_letters, source):
            # A topic may object to a time that is far off, and to no key where it is compacted.
            key = _place(source).encode() if letter.key is None else letter.key
            letter = letter._replace(key=key, timestamp=-1)
        return Written(outcome, self._dead_letters, letter)

    def _why(self, topic: str, source: SourceRecord) -> str | None:
        """Why the topic has refused what was written of a record, if it has."""
        # Next to nothing is ever refused, and this is asked for every record.
        return self._refused.get((topic, _place(source))) if self._refused else None

    def refuse(self, source: SourceRecord, topic: str, why: str) -> bool:
        """Note that a topic does not take what was written of a record; says if that is new."""
        new = (topic, _place(source)) not in self._refused
        self._refused[topic, _place(source)] = why
        return new

    def forget(self, sources: Iterable[SourceRecord]) -> None:
        """Records that are done."""
        if self._refused:
            for source in sources:
                for topic in self._valuations, self._dead_letters:
                    self._refused.pop((topic, _place(source)), None)


def _place(source: SourceRecord) -> str:
    return f"{source.topic}-{source.partition}-{source.offset}"
