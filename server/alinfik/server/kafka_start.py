"""Where partitions begin of which the group has no offset, or one that the broker has no more.

Comes in: the consumer's complaint. Goes out: a consumer that stands somewhere, as the settings have
it, and a line in the log that says where. Knows nothing of records.
"""

from collections.abc import Iterable, Mapping

import structlog
from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from alinfik.server.kafka_io import CONNECT_MS
from alinfik.server.metrics import KafkaMetrics
from alinfik.server.settings import ServerSettings

_log = structlog.get_logger()


class NoStartError(KafkaError):
    """The settings want a person to say where to begin; the message says how."""

    def __str__(self) -> str:
        return str(self.args[0])


class Starts:
    """Puts partitions where they begin.

    Args:
        consumer: used on the caller's thread.
        settings: what to do, and what the messages name.
        metrics: where to count what is skipped.

    Raises:
        NoStartError: from each method, where the policy is to fail.
        KafkaError: from each, where the broker does not answer.
    """

    def __init__(
        self, consumer: KafkaConsumer, settings: ServerSettings, metrics: KafkaMetrics
    ) -> None:
        self._consumer = consumer
        self._group = settings.kafka_group
        self._brokers = settings.kafka_bootstrap
        self._policy = settings.kafka_offset_reset
        self._metrics = metrics

    def begin(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions of which the group has never committed an offset."""
        for partition in partitions:
            earliest, start = self._place(partition, "no offset")
            _log.info(
                "kafka partition begins",
                partition=f"{partition.topic}-{partition.partition}",
                offset=start,
                skipped=start - earliest,
            )
            self._metrics.skipped.inc(start - earliest)

    def resume(self, wanted: Mapping[TopicPartition, int]) -> None:
        """Partitions whose next offset the broker does not have: it is deleted, or not yet there.

        What lies between is lost to retention, or skipped where the policy is ``latest``.
        """
        for partition, offset in wanted.items():
            _, start = self._place(partition, f"offset {offset}, which the broker does not have,")
            skipped = max(0, start - offset)
            _log.warning(
                "kafka offset out of range",
                partition=f"{partition.topic}-{partition.partition}",
                wanted=offset,
                offset=start,
                skipped=skipped,
            )
            self._metrics.skipped.inc(skipped)

    def _place(self, partition: TopicPartition, had: str) -> tuple[int, int]:
        """Seek; returns the partition's earliest offset and the one to begin with."""
        if self._policy == "fail":
            raise NoStartError(
                f"group {self._group} has {had} for {partition.topic}-{partition.partition} and "
                "--kafka-offset-reset is fail; set one while no server of the group runs: "
                f"kafka-consumer-groups --bootstrap-server {self._brokers} --group {self._group} "
                f"--topic {partition.topic}:{partition.partition} --reset-offsets --to-earliest "
                "--execute"
            )
        earliest = self._consumer.beginning_offsets([partition], timeout_ms=CONNECT_MS)[partition]
        start = earliest
        if self._policy == "latest":
            start = self._consumer.end_offsets([partition], timeout_ms=CONNECT_MS)[partition]
        self._consumer.seek(partition, start)
        return earliest, start
