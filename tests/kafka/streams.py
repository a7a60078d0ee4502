"""Topics, records and servers for the tests of the stream."""

import asyncio
import threading
import uuid
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from prometheus_client import CollectorRegistry

from alinfik.kafka.headers import mend_headers
from alinfik.server.bundle import load_bundle
from alinfik.server.kafka_pipeline import KafkaPipeline
from alinfik.server.metrics import KafkaMetrics, Metrics
from alinfik.server.registry import Registry
from alinfik.server.settings import ServerSettings
from demo.broker import Broker

mend_headers()

WAIT_SECONDS = 40.0
"""For what should take a second or two; a busy machine may need ten times that."""


@dataclass(frozen=True)
class Stream:
    """Three topics of one broker, and a group, that no other test uses."""

    broker: Broker
    partitions: int = 3
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def samples(self) -> str:
        return f"{self.name}.samples"

    @property
    def valuations(self) -> str:
        return f"{self.name}.valuations"

    @property
    def dead_letters(self) -> str:
        return f"{self.name}.samples.dlq"

    def create(self) -> "Stream":
        for topic in (self.samples, self.valuations, self.dead_letters):
            self.broker.create_topic(topic, self.partitions)
        return self

    def settings(self, bundle: Path, **others: object) -> ServerSettings:
        ours = {
            "kafka_bootstrap": self.broker.bootstrap,
            "kafka_input": self.samples,
            "kafka_output": self.valuations,
            "kafka_dead_letters": self.dead_letters,
            "kafka_group": self.name,
        }
        return ServerSettings(bundle=bundle, **(ours | others))


class Sent(NamedTuple):
    """A record to produce."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int = 0
    timestamp_ms: int | None = None


def send(broker: Broker, topic: str, records: Iterable[Sent]) -> None:
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap, linger_ms=5, max_request_size=10_000_000
    )
    sent = [
        producer.send(topic, r.value, r.key, list(r.headers), r.partition, r.timestamp_ms)
        for r in records
    ]
    for one in sent:
        one.get(WAIT_SECONDS)
    producer.close()


def read(broker: Broker, topic: str, count: int | None = None) -> list:
    """Committed records from the beginning: the first ``count``, or all that are there now."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap,
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    records = []
    ends = consumer.end_offsets(partitions)
    deadline = Deadline(f"{count} records of {topic}")
    while (
        any(consumer.position(p) < ends[p] for p in partitions)
        if count is None
        else len(records) < count
    ):
        deadline.check(f"came {len(records)}")
        for polled in consumer.poll(200).values():
            records += polled
    consumer.close()
    return records


def source_offsets(records: Iterable) -> dict[int, list[int]]:
    """Where records came from: by source partition, the offsets in the order of arrival."""
    offsets = defaultdict(list)
    for record in records:
        headers = dict(record.headers)
        offsets[int(headers["alinfik-source-partition"])].append(
            int(headers["alinfik-source-offset"])
        )
    return dict(offsets)


class Deadline:
    """A loop that waits for something checks this each time round."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._timer = threading.Event()
        self._alarm = threading.Timer(WAIT_SECONDS, self._timer.set)
        self._alarm.daemon = True
        self._alarm.start()

    def check(self, so_far: str = "") -> None:
        assert not self._timer.is_set(), f"no {self._what} in {WAIT_SECONDS} s {so_far}"


class Running(NamedTuple):
    """A pipeline with a real engine in this process."""

    pipeline: KafkaPipeline
    registry: CollectorRegistry
    bundles: Registry
    loop: asyncio.AbstractEventLoop

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@contextmanager
def running(settings: ServerSettings) -> Generator[Running]:
    """Engine and pipeline, on an event loop of their own, until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    bundles = Registry(settings, metrics)
    bundle = load_bundle(settings.bundle[0])
    asyncio.run_coroutine_threadsafe(bundles.load(bundle), loop).result(WAIT_SECONDS)
    bundles.activate(bundle.id)
    pipeline = KafkaPipeline(settings, bundles, KafkaMetrics(metrics), loop)
    pipeline.start()
    try:
        yield Running(pipeline, registry, bundles, loop)
    finally:
        stopped = pipeline.stop(10.0)
        asyncio.run_coroutine_threadsafe(bundles.stop(), loop).result(WAIT_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        assert stopped
