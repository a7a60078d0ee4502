"""How far behind the group is, and whether the broker answers at all.

Comes in: offsets as they are committed. Goes out: ``alinfik_kafka_lag_records`` of the partitions
that this server owns, and ``alinfik_kafka_connected``. Knows nothing of records.
"""

import time
from collections.abc import Mapping

import structlog
from kafka import KafkaConsumer
from kafka.errors import KafkaTimeoutError
from kafka.structs import TopicPartition

from alinfik.server.kafka_io import CONNECT_MS
from alinfik.server.metrics import KafkaMetrics

_log = structlog.get_logger()

# One small request each time; Prometheus looks every 15 s.
_UPDATE_SECONDS = 2.0


class LagWatch:
    """The lag of a consumer's partitions.

    Args:
        consumer: used on the caller's thread.
        brokers: whom it talks to, for the log.
        metrics: where to say it.
    """

    def __init__(self, consumer: KafkaConsumer, brokers: str, metrics: KafkaMetrics) -> None:
        self._consumer = consumer
        self._brokers = brokers
        self._metrics = metrics
        self._next: dict[TopicPartition, int] = {}
        self._shown: set[TopicPartition] = set()
        self._due = 0.0
        self._answers = True
        metrics.connected.set(1)

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Note the offsets, by partition, of the next records to value."""
        self._next.update(offsets)

    def update(self) -> None:
        """Ask the broker for the ends of our partitions, if that is due."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _UPDATE_SECONDS
        owned = self._consumer.assignment()
        for partition in self._shown - owned:
            self._forget(partition)
        try:
            ends = self._consumer.end_offsets(owned, timeout_ms=CONNECT_MS) if owned else {}
        except KafkaTimeoutError:
            self._say(answers=False)
            return
        self._say(answers=True)
        for partition, end in ends.items():
            following = self._next.get(partition)
            if following is None:
                following = self._consumer.position(partition, timeout_ms=CONNECT_MS)
            if following is not None:
                labels = partition.topic, str(partition.partition)
                self._metrics.lag.labels(*labels).set(max(0, end - following))
                self._shown.add(partition)

    def close(self) -> None:
        """Stop speaking for any partition: another server may own it now."""
        for partition in set(self._shown):
            self._forget(partition)
        self._metrics.connected.set(0)

    def _forget(self, partition: TopicPartition) -> None:
        self._shown.discard(partition)
        self._next.pop(partition, None)
        self._metrics.lag.remove(partition.topic, str(partition.partition))

    def _say(self, *, answers: bool) -> None:
        if answers != self._answers:
            said = "kafka broker answers again" if answers else "kafka broker does not answer"
            _log.warning(said, brokers=self._brokers)
        self._answers = answers
        self._metrics.connected.set(answers)
