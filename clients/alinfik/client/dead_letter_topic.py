"""Reads the dead-letter topic from end to end, as it stands when it is opened.

In: brokers, a topic. Out: dead letters in the order of partitions, then offsets, committed ones
alone, a few in memory at a time. Commits nothing and joins no group. Knows nothing of what becomes
of them.
"""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self

from alinfik.client.brokers import POLL_MS, Brokers
from alinfik.client.dead_letters import DeadLetter, Place, Selection, read_dead_letter
from alinfik.command import CommandError, FailedError

if TYPE_CHECKING:
    from kafka import ConsumerRecord
    from kafka.structs import TopicPartition

# A partition that moves to another broker is back within seconds.
_SILENCE_SECONDS = 30.0


class DeadLetterTopic:
    """What a topic holds at the moment; what is added later is left for later.

    Args:
        brokers: where it is.
        topic: its name.

    Raises:
        CommandError: the topic is missing, or kafka-python is.
        FailedError: no broker answers; from every method.
    """

    def __init__(self, brokers: Brokers, topic: str) -> None:
        brokers.check_topic(topic, "--kafka-dead-letters")
        from kafka.structs import TopicPartition

        self.name = topic
        self._brokers = brokers
        with brokers.answering():
            self._consumer = brokers.consumer(from_beginning=True)
            numbers = self._consumer.partitions_for_topic(topic)
            self._partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
            self._begins = self._consumer.beginning_offsets(self._partitions)
            self._ends = self._consumer.end_offsets(self._partitions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def count(self, selection: Selection) -> int:
        """How many offsets ``letters`` goes through; not each has a record."""
        starts = self._starts(selection)
        return sum(max(0, self._ends[each] - starts[each]) for each in self._partitions)

    def letters(
        self, selection: Selection, on_read: Callable[[int], None] | None = None
    ) -> Iterator[DeadLetter]:
        """Yield those that are meant.

        Args:
            selection: says which.
            on_read: told how many more offsets are behind us.
        """
        starts = self._starts(selection)
        for partition in self._partitions:
            letters = map(read_dead_letter, self._read(partition, starts[partition], on_read))
            yield from filter(selection.takes, letters)

    def at(self, place: Place) -> "ConsumerRecord":
        """The record that stands at a place.

        Raises:
            CommandError: there is none.
        """
        from kafka.structs import TopicPartition

        partition = TopicPartition(self.name, place.partition)
        if partition not in self._ends:
            last = len(self._partitions) - 1
            raise CommandError(
                f"{self.name} has no partition {place.partition}, but 0 to {last}: `alinfik dlq "
                "list` shows what there is"
            )
        begin, end = self._begins[partition], self._ends[partition]
        if begin <= place.offset < end:
            record = next(self._read(partition, place.offset), None)
            if record is not None and record.offset == place.offset:
                return record
        raise CommandError(
            f"{self.name} has no record at {place}: partition {place.partition} begins at offset "
            f"{begin} and ends before {end}, and not each has a record. `alinfik dlq list` shows "
            "what there is"
        )

    def _starts(self, selection: Selection) -> "dict[TopicPartition, int]":
        """The offset of each partition before which nothing is meant."""
        starts = dict(self._begins)
        if selection.since is not None:
            since = dict.fromkeys(self._partitions, selection.since)
            with self._brokers.answering():
                found = self._consumer.offsets_for_times(since)
            for partition, first in found.items():
                starts[partition] = self._ends[partition] if first is None else first.offset
        if selection.start_at is not None:
            number, offset = selection.start_at
            for partition in self._partitions:
                if partition.partition < number:
                    starts[partition] = self._ends[partition]
                elif partition.partition == number:
                    starts[partition] = max(starts[partition], offset)
        return starts

    def _read(
        self,
        partition: "TopicPartition",
        start: int,
        on_read: Callable[[int], None] | None = None,
    ) -> Iterator["ConsumerRecord"]:
        end = self._ends[partition]
        if start >= end:
            return
        self._consumer.assign([partition])
        self._consumer.seek(partition, start)
        here = start
        while here < end:
            records, after = self._poll(partition, here)
            for record in records:
                if record.offset < end:
                    yield record
            if on_read is not None:
                on_read(min(after, end) - here)
            here = after

    def _poll(self, partition: "TopicPartition", here: int) -> "tuple[list[ConsumerRecord], int]":
        """The next records, and the offset after them and after what was aborted."""
        begun = time.monotonic()
        while True:
            with self._brokers.answering():
                records = self._consumer.poll(POLL_MS).get(partition, [])
                after = self._consumer.position(partition)
            if after is not None and after > here:
                return records, after
            if time.monotonic() - begun > _SILENCE_SECONDS:
                raise FailedError(
                    f"{self._brokers.bootstrap} has sent nothing of {self.name}, partition "
                    f"{partition.partition}, for {_SILENCE_SECONDS:.0f} s. Does it still run?"
                )
