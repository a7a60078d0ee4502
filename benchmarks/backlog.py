"""A backlog on Apache Kafka, and how quickly servers drain it.

In: samples, and servers to come. Out: records a second, by the broker's own clock, so that nobody
need read along: the output's timestamps are those of its appends. Knows nothing of models.
"""

import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from alinfik.distill.samples import Row
from demo.broker import Broker

PARTITIONS = 6
# Of the producer's futures that are kept at a time.
_CHUNK = 20_000
_ACKNOWLEDGE_SECONDS = 60.0
# A server that starts, and a group that forms, on a busy machine.
_START_SECONDS = 120.0
_LEAST_RATE = 20.0
_LOOK_AGAIN_SECONDS = 0.25


@dataclass(frozen=True)
class Drained:
    """How quickly a backlog went.

    Attributes:
        records_per_second: over the middle half of the records: without the start, the group's
            forming, and the last batch, which has no other beside it.
        first_to_last_per_second: over all of them, from the first valuation to the last.
    """

    records_per_second: float
    first_to_last_per_second: float


class Backlog:
    """Three topics that hold samples to be valued, and the group that is to value them.

    Args:
        broker: that is running.
        rows: the samples.
    """

    def __init__(self, broker: Broker, rows: Iterable[Row]) -> None:
        self._broker = broker
        self._group = uuid.uuid4().hex[:8]
        broker.create_topic(self._topic("samples"), PARTITIONS)
        broker.create_topic(self._topic("dlq"), PARTITIONS)
        broker.create_topic(
            self._topic("valuations"), PARTITIONS, message_timestamp_type="LogAppendTime"
        )
        self.bytes = 0
        self.records = 0
        self._fill(rows)

    def settings(self) -> dict[str, str]:
        """What servers are told, as variables of their environment."""
        return {
            "ALINFIK_KAFKA_BOOTSTRAP": self._broker.bootstrap,
            "ALINFIK_KAFKA_INPUT": self._topic("samples"),
            "ALINFIK_KAFKA_OUTPUT": self._topic("valuations"),
            "ALINFIK_KAFKA_DEAD_LETTERS": self._topic("dlq"),
            "ALINFIK_KAFKA_GROUP": self._group,
        }

    def wait(self, share: float = 1.0) -> None:
        """Return once that share of the records is committed.

        Raises:
            SystemExit: it takes far too long.
        """
        wanted = share * self.records
        deadline = time.monotonic() + _START_SECONDS + wanted / _LEAST_RATE
        with self._broker.admin() as admin:
            while (done := _patiently(lambda: self._committed(admin))) < wanted:
                if time.monotonic() > deadline:
                    raise SystemExit(f"{done} of {wanted:.0f} records are valued: the logs say why")
                time.sleep(_LOOK_AGAIN_SECONDS)

    def valuations(self) -> int:
        """How many there are, as a reader of committed records sees them."""
        return len(self._append_times())

    def drained(self, *, once: bool = True) -> Drained:
        """What the output says, once all are committed; each is there once, or at least once."""
        times = np.sort(np.array(self._append_times())) / 1000
        if len(times) < self.records or (once and len(times) > self.records):
            raise SystemExit(f"{len(times)} valuations of {self.records} records")
        quarter = len(times) // 4
        middle = times[-quarter] - times[quarter]
        return Drained(
            float((len(times) - 2 * quarter) / max(middle, 1e-3)),
            float(len(times) / max(times[-1] - times[0], 1e-3)),
        )

    def _topic(self, name: str) -> str:
        return f"{self._group}.{name}"

    def _fill(self, rows: Iterable[Row]) -> None:
        producer = KafkaProducer(
            bootstrap_servers=self._broker.bootstrap, linger_ms=20, batch_size=256 * 1024
        )
        remaining = iter(rows)
        while chunk := list(itertools.islice(remaining, _CHUNK)):
            sent = [self._send(producer, row) for row in chunk]
            for one in sent:
                one.get(_ACKNOWLEDGE_SECONDS)
        producer.close()

    def _send(self, producer: KafkaProducer, row: Row):  # noqa: ANN202 - the library's future
        fields = {"id": row.id, "provider": row.provider, "prompt": row.prompt}
        value = json.dumps(fields | {"completion": row.completion}).encode()
        self.bytes += len(value)
        self.records += 1
        partition = self.records % PARTITIONS
        return producer.send(self._topic("samples"), value, None, None, partition)

    def _committed(self, admin) -> int:  # noqa: ANN001 - the library has no types
        offsets = admin.list_group_offsets(self._group)[self._group]
        return sum(max(0, offset.offset) for offset in offsets.values())

    def _append_times(self) -> list[int]:
        consumer = KafkaConsumer(
            bootstrap_servers=self._broker.bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        topic = self._topic("valuations")
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(partitions)
        times: list[int] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(500).values():
                times += [record.timestamp for record in records]
        consumer.close()
        return times


def _patiently(ask: Callable[[], int]) -> int:
    """The answer, or 0 while the group has no coordinator yet."""
    try:
        return ask()
    except KafkaError:
        return 0
