"""Sends dead letters once more to where the server reads samples.

In: the topic of dead letters, and which of them are meant. Out: acknowledged records, and by name
those that were not sent. Knows nothing of flags.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from alinfik.client.brokers import Brokers, Sender
from alinfik.client.dead_letter_topic import DeadLetterTopic
from alinfik.client.dead_letters import DeadLetter, Resubmission, Selection, resubmission
from alinfik.client.interrupts import interrupts
from alinfik.command import progress


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent again.

    Attributes:
        selection: which dead letters are meant.
        topic: where to; where each came from if None.
        max_attempt: no try of a higher number is made.
        limit: send so many at most; all where None.
    """

    selection: Selection
    topic: str | None
    max_attempt: int
    limit: int | None

    def of(
        self, letters: Iterator[DeadLetter], on_left: Callable[[DeadLetter, str], None]
    ) -> Iterator[tuple[DeadLetter, Resubmission]]:
        """What there is to send; each other one goes to ``on_left`` with the reason."""

        def sendable() -> Iterator[tuple[DeadLetter, Resubmission]]:
            for letter in letters:
                record = resubmission(letter, self.topic, self.max_attempt)
                if isinstance(record, str):
                    on_left(letter, record)
                else:
                    yield letter, record

        return islice(sendable(), self.limit)


@dataclass(frozen=True, slots=True)
class Survey:
    """What would be sent.

    Attributes:
        to: how many records to each topic.
        left: how many are meant and would not be sent.
    """

    to: Counter[str]
    left: int

    def __str__(self) -> str:
        topics = ", ".join(f"{count} to {topic}" for topic, count in sorted(self.to.items()))
        return topics or "none"


def survey(
    topic: DeadLetterTopic, plan: Plan, on_letter: Callable[[DeadLetter], None] | None = None
) -> Survey:
    """Go through what would be sent, and name on standard error what would not.

    Args:
        topic: of the dead letters.
        plan: what is sent.
        on_letter: told each that would be sent.
    """
    to = Counter[str]()
    left = 0

    def name(letter: DeadLetter, why: str) -> None:
        nonlocal left
        left += 1
        print(f"{topic.name} {letter.place}: not resubmitted: {why}", file=sys.stderr)

    with progress("read", topic.count(plan.selection)) as advance:
        for letter, record in plan.of(topic.letters(plan.selection, advance), name):
            to[record.topic] += 1
            if on_letter is not None:
                on_letter(letter)
    return Survey(to, left)


def send(brokers: Brokers, topic: DeadLetterTopic, plan: Plan, total: int) -> None:
    """Send, each once, and wait until the broker has them all.

    On an interrupt what was handed over is waited for, and standard error says where to go on.

    Args:
        brokers: where both topics are.
        topic: of the dead letters.
        plan: what is sent; its topics exist.
        total: how many ``survey`` counted.

    Raises:
        FailedError: the broker did not take a record; the message names it.
        KeyboardInterrupt: not all are sent.
    """
    letters = topic.letters(plan.selection)
    with (
        interrupts() as interrupted,
        progress("resubmit", total) as advance,
        Sender(brokers, "dead letters", advance) as sender,
    ):
        for letter, record in plan.of(letters, lambda _letter, _why: None):
            try:
                with interrupted.let():
                    pass
            except KeyboardInterrupt:
                sender.settle()
                print(
                    f"resubmitted {sender.sent} of {total} dead letters; --start-at {letter.place} "
                    "goes on",
                    file=sys.stderr,
                )
                raise
            there = record.partition in sender.partitions(record.topic)
            sender.send(
                f"that at {letter.place}",
                record.topic,
                record.value,
                record.key,
                record.headers,
                partition=record.partition if there else None,
                timestamp_ms=record.timestamp,
            )
        sender.settle()
