"""How far behind the group is, and whether the broker answers at all.

Comes in: offsets as they are committed. Goes out: ``alinfik_kafka_lag_records`` of the partitions
that this server owns, how many those are, and ``alinfik_kafka_connected``; and offsets that hold
nothing to value. Knows nothing of records.
"""

import time
from collections.abc import Mapping
from contextlib import suppress

import structlog
from kafka import KafkaConsumer
from kafka.errors import IllegalStateError, KafkaTimeoutError, NoOffsetForPartitionError
from kafka.structs import TopicPartition

from alinfik.server.kafka_io import CONNECT_MS
from alinfik.server.metrics import KafkaMetrics
from alinfik.server.settings import ServerSettings

_log = structlog.get_logger()

# One small request each time; Prometheus looks every 15 s.
_UPDATE_SECONDS = 2.0


class LagWatch:
    """The lag of a consumer's partitions.

    Args:
        consumer: used on the caller's thread.
        settings: the input, and the brokers for the log.
        metrics: where to say it.
    """

    def __init__(
        self, consumer: KafkaConsumer, settings: ServerSettings, metrics: KafkaMetrics
    ) -> None:
        self._consumer = consumer
        self._topic = settings.kafka_input
        self._brokers = settings.kafka_bootstrap
        self._metrics = metrics
        self._next: dict[TopicPartition, int] = {}
        self._seen: set[TopicPartition] = set()
        self._due = 0.0
        self._answers = True
        metrics.connected.set(1)

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Note the offsets, by partition, of the next records to value."""
        self._next.update(offsets)

    def passed(self) -> dict[TopicPartition, int]:
        """Where partitions stand, if that is past what is committed and all before it is done.

        So they do behind a transaction's marker, records that were aborted, and those that
        compaction took: nothing of them is ever given to us, and without a commit they would be
        lag for ever. To be asked while nothing is in flight.
        """
        positions: dict[TopicPartition, int] = {}
        for partition in self._consumer.assignment() & self._seen:
            # Of a partition that has just gone, or has no position yet, there will be more later.
            with suppress(IllegalStateError, NoOffsetForPartitionError):
                position = self._consumer.position(partition, timeout_ms=0)
                if position is not None and position > self._next.get(partition, -1):
                    positions[partition] = position
        return positions

    def update(self) -> None:
        """Ask the broker for the ends of our partitions, if that is due."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _UPDATE_SECONDS
        owned = self._consumer.assignment()
        self._metrics.assigned.set(len(owned))
        for partition in self._seen - owned:
            self._forget(partition)
        try:
            for partition in owned - self._seen:
                self._meet(partition)
            # One that has nothing to do wants to know whether a broker answers, too.
            asked = owned or {TopicPartition(self._topic, 0)}
            ends = self._consumer.end_offsets(asked, timeout_ms=CONNECT_MS)
        except KafkaTimeoutError:
            self._say(answers=False)
            return
        self._say(answers=True)
        for partition, end in ends.items():
            if partition in owned and (following := self._next.get(partition)) is not None:
                labels = partition.topic, str(partition.partition)
                self._metrics.lag.labels(*labels).set(max(0, end - following))

    def close(self) -> None:
        """Stop speaking for any partition: another server may own it now."""
        for partition in set(self._seen):
            self._forget(partition)
        self._metrics.assigned.set(0)
        self._metrics.connected.set(0)

    def _meet(self, partition: TopicPartition) -> None:
        """Ask what the group has committed of a partition that is ours now."""
        if partition not in self._next:
            committed = self._consumer.committed(partition, timeout_ms=CONNECT_MS)
            if committed is not None:
                self._next[partition] = committed
        self._seen.add(partition)

    def _forget(self, partition: TopicPartition) -> None:
        self._seen.discard(partition)
        if self._next.pop(partition, None) is None:
            return
        self._metrics.lag.remove(partition.topic, str(partition.partition))

    def _say(self, *, answers: bool) -> None:
        if answers != self._answers:
            said = "kafka broker answers again" if answers else "kafka broker does not answer"
            _log.warning(said, brokers=self._brokers)
        self._answers = answers
        self._metrics.connected.set(answers)
