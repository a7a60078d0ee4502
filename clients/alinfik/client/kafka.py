"""Samples into a Kafka topic, valuations out of one.

In: ``Sample`` messages, or a topic. Out: acknowledged records, or ``Valuation`` messages. Knows
nothing of files and tables.

A sample's record is its JSON form under its id as key: samples spread evenly over partitions, two
versions of one sample keep their order, and the valuation, which has the same key, replaces the
former one where the output topic is compacted. ``provider`` stands in the record.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from alinfik.client.brokers import POLL_MS, Brokers, Sender
from alinfik.client.interrupts import interrupts
from alinfik.command import CommandError, FailedError
from alinfik.v1 import Sample, Valuation

if TYPE_CHECKING:
    from kafka import ConsumerRecord

_JSON_HEADERS = [("content-type", b"application/json")]


def ingest(
    samples: Iterable[Sample],
    *,
    bootstrap: str,
    topic: str,
    security: Mapping[str, object] | None = None,
    skip: int = 0,
    on_sent: Callable[[int], None] | None = None,
) -> int:
    """Send ``samples`` to ``topic`` and wait until the broker has them all.

    Each is written once, however often the connection fails on the way. Where it ends before the
    last, the message says how many to skip the next time. On an interrupt what was handed over is
    waited for, and standard error says so.

    Args:
        samples: read as they are sent.
        bootstrap: ``HOST:PORT`` of brokers, comma-separated.
        topic: what the server reads; it must exist.
        security: what kafka-python is told of TLS and SASL; plain text where None.
        skip: so many at the beginning are not sent.
        on_sent: told how many more samples the broker has acknowledged.

    Returns:
        How many were sent.

    Raises:
        CommandError: the topic is missing, or kafka-python is; or ``samples`` raised it.
        FailedError: no broker answers, or it did not take a sample. Some of those after that one
            may have been taken.
        KeyboardInterrupt: not all are sent.
    """
    brokers = Brokers(bootstrap, security or {})
    brokers.check_topic(topic)
    with interrupts() as interrupted, Sender(brokers, "samples", on_sent) as sender:
        rest = islice(samples, skip, None)

        def settled() -> str:
            sender.settle()
            return f"{sender.sent} samples were sent; --skip {skip + sender.sent} goes on"

        def drawn() -> Sample | None:
            try:
                with interrupted.let():
                    return next(rest, None)
            except KeyboardInterrupt:
                print(settled(), file=sys.stderr)
                raise
            except CommandError as error:
                # Those before it are not taken back: they must not be sent again.
                raise CommandError(f"{error}; {settled()}") from error

        try:
            while (sample := drawn()) is not None:
                value = json_format.MessageToJson(sample, indent=None, ensure_ascii=False).encode()
                name = f"the sample with id {sample.id!r}"
                sender.send(name, topic, value, sample.id.encode() or None, _JSON_HEADERS)
            sender.settle()
        except FailedError as error:
            raise FailedError(f"{error}; --skip {skip + sender.sent} goes on") from error
        return sender.sent


def watch(
    *,
    bootstrap: str,
    topic: str,
    security: Mapping[str, object] | None = None,
    from_beginning: bool = False,
    count: int | None = None,
) -> Iterator[Valuation]:
    """Yield valuations as they land on ``topic``, committed ones alone.

    Args:
        bootstrap: ``HOST:PORT`` of brokers, comma-separated.
        topic: what the server writes.
        security: what kafka-python is told of TLS and SASL; plain text where None.
        from_beginning: start with the oldest record of the topic, not with the next one.
        count: stop after so many; endless where None.

    Raises:
        CommandError: the topic is missing or holds something else, or kafka-python is missing.
        FailedError: no broker answers, or it does not let us read.
    """
    brokers = Brokers(bootstrap, security or {})
    brokers.check_topic(topic)
    with brokers.answering():
        consumer = brokers.consumer(topic, from_beginning=from_beginning)
    try:
        seen = 0
        while count is None or seen < count:
            with brokers.answering():
                polled = consumer.poll(POLL_MS)
            for records in polled.values():
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
