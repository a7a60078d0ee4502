"""Samples into a Kafka topic, valuations out of one.

In: ``Sample`` messages, or a topic. Out: acknowledged records, or ``Valuation`` messages. Knows
nothing of files and tables. kafka-python is imported when a function is called: the rest of the
client does without it.

A sample's record is its JSON form under its id as key: samples spread evenly over partitions, two
versions of one sample keep their order, and the valuation, which has the same key, replaces the
former one where the output topic is compacted. ``provider`` stands in the record.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from alinfik.command import CommandError, FailedError
from alinfik.v1 import Sample, Valuation

if TYPE_CHECKING:
    from kafka import Acknowledgement, ConsumerRecord

# A broker that is there answers in milliseconds.
_CONNECT_MS = 5_000
# Longer than a partition takes to move to another broker, shorter than anyone waits before looking.
_ACKNOWLEDGE_SECONDS = 60.0
# kafka-python buffers without bound; this is some 10 MB of ordinary samples.
_UNACKNOWLEDGED = 10_000
# How late an interrupt is noticed at worst.
_POLL_MS = 500
_JSON_HEADERS = [("content-type", b"application/json")]


def ingest(
    samples: Iterable[Sample],
    *,
    bootstrap: str,
    topic: str,
    on_sent: Callable[[int], None] | None = None,
) -> int:
    """Send ``samples`` to ``topic`` and wait until the broker has them all.

    Each is written once, however often the connection fails on the way.

    Args:
        samples: read as they are sent.
        bootstrap: ``HOST:PORT`` of brokers, comma-separated.
        topic: what the server reads; it must exist.
        on_sent: told how many more samples the broker has acknowledged.

    Returns:
        How many were sent.

    Raises:
        CommandError: the topic is missing, or kafka-python is; or ``samples`` raised it, and then
            it ends with how many came before and were sent.
        FailedError: no broker answers, or it did not take a sample.
    """
    _check_topic(bootstrap, topic)
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    sent = 0
    pending = deque[tuple[str, "Acknowledgement"]]()

    def settle(leave: int) -> None:
        nonlocal sent
        while len(pending) > leave:
            sample_id, acknowledgement = pending.popleft()
            try:
                acknowledgement.get(_ACKNOWLEDGE_SECONDS)
            except KafkaError as error:
                raise FailedError(
                    f"{bootstrap} took {sent} samples for topic {topic}, and then not the sample "
                    f"with id {sample_id!r}: {error}"
                ) from error
            sent += 1
            if on_sent is not None:
                on_sent(1)

    def until_broken() -> Iterator[Sample]:
        try:
            yield from samples
        except CommandError as error:
            # Those before it are not taken back: they must not be sent again.
            settle(0)
            raise CommandError(f"{error}; {sent} samples before it were sent") from error

    # Idempotence, which is the default, makes a repeated send harmless.
    producer = KafkaProducer(
        bootstrap_servers=bootstrap.split(","),
        bootstrap_timeout_ms=_CONNECT_MS,
        allow_auto_create_topics=False,
        # Fills its batches when samples come fast, and is not felt when they come one by one.
        linger_ms=5,
        # The topic's own limit is the one that counts.
        max_request_size=64 * 1024 * 1024,
    )
    try:
        for sample in until_broken():
            value = json_format.MessageToJson(sample, indent=None, ensure_ascii=False).encode()
            key = sample.id.encode() or None
            acknowledgement = producer.send(topic, value, key, list(_JSON_HEADERS))
            pending.append((sample.id, acknowledgement))
            settle(_UNACKNOWLEDGED)
        settle(0)
    finally:
        # All is acknowledged by now; what an error has left behind is not worth waiting for.
        with suppress(KafkaError):
            producer.close(timeout=0 if pending else 1)
    return sent


def watch(
    *, bootstrap: str, topic: str, from_beginning: bool = False, count: int | None = None
) -> Iterator[Valuation]:
    """Yield valuations as they land on ``topic``, committed ones alone.

    Args:
        bootstrap: ``HOST:PORT`` of brokers, comma-separated.
        topic: what the server writes.
        from_beginning: start with the oldest record of the topic, not with the next one.
        count: stop after so many; endless where None.

    Raises:
        CommandError: the topic is missing or holds something else, or kafka-python is missing.
        FailedError: no broker answers.
    """
    _check_topic(bootstrap, topic)
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=bootstrap.split(","),
        bootstrap_timeout_ms=_CONNECT_MS,
        # No group: each watcher sees every partition, and leaves no trace on the broker.
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest" if from_beginning else "latest",
    )
    try:
        seen = 0
        while count is None or seen < count:
            for records in consumer.poll(_POLL_MS).values():
                for record in records:
                    if seen == count:
                        return
                    yield _valuation(record)
                    seen += 1
    finally:
        consumer.close()


def _valuation(record: "ConsumerRecord") -> Valuation:
    try:
        content_type = dict(record.headers).get("content-type") or b""
        if content_type.startswith(b"application/x-protobuf"):
            return Valuation.FromString(record.value or b"")
        # Servers may be newer than this client.
        return json_format.Parse(record.value or b"", Valuation(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, DecodeError) as error:
        raise CommandError(
            f"topic {record.topic}, partition {record.partition}, offset {record.offset} holds no "
            "valuation: is --topic what the server writes (its --kafka-output)?"
        ) from error


def _check_topic(bootstrap: str, topic: str) -> None:
    try:
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError
    except ImportError as error:
        raise CommandError(
            "Kafka needs the package kafka-python: pip install 'alinfik[kafka]'"
        ) from error

    # It logs every try of an absent broker; we say so once.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    brokers = bootstrap.split(",")
    try:
        with KafkaAdminClient(bootstrap_servers=brokers, bootstrap_timeout_ms=_CONNECT_MS) as admin:
            topics = admin.list_topics()
    except KafkaError as error:
        raise FailedError(
            f"no Kafka broker answers at {bootstrap} (--kafka-bootstrap). Is it running there?"
        ) from error
    if topic not in topics:
        there = ", ".join(sorted(t for t in topics if not t.startswith("__"))) or "no topics"
        raise CommandError(
            f"{bootstrap} has no topic {topic} (--topic), but {there}. Create it with "
            f"kafka-topics --bootstrap-server {bootstrap} --create --topic {topic}"
        )
