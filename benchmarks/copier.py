"""Kafka's client alone: a stand-in for the server that values nothing, for `benchmarks.stream`.

    ALINFIK_KAFKA_BOOTSTRAP=HOST:PORT python -m benchmarks.copier

Topics, group and delivery are those that the server would take from its environment, and so are the
consumer, the producer and their commits. But no record is parsed, valued or counted: a record as
long as a valuation, with as many headers, is written for each one read. What is left is what
kafka-python itself can do.
"""

import gc
import json
import signal
import sys
from pathlib import Path
from threading import Event

from kafka.errors import NoOffsetForPartitionError
from kafka.structs import OffsetAndMetadata, TopicPartition

from alinfik.server.kafka_commit import open_committer
from alinfik.server.kafka_io import DEFAULT_RECORD_BYTES, GroupConsumer, open_consumer
from alinfik.server.kafka_process import ALLOCATIONS
from alinfik.server.kafka_producer import Outgoing
from alinfik.server.records import OutgoingRecord, SourceRecord, Valued, valuation_record
from alinfik.server.settings import ServerSettings

_IDLE_MS = 200
_JOIN_MS = 1_000
# A valuation for two targets, in JSON; what stands in it is no matter of the client's.
_VALUED = Valued(b"v" * 430, "0" * 64)


def main() -> None:
    """Copy until SIGTERM."""
    settings = ServerSettings(bundle=[Path()])
    gc.set_threshold(ALLOCATIONS)
    stopping = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    consumer = open_consumer(settings)
    committer = open_committer(settings, "copier", consumer, DEFAULT_RECORD_BYTES)
    ready = {"message": "ready", "grpc": "", "metrics": "", "batch_tokens": 0, "workers": 0}
    print(json.dumps(ready), file=sys.stderr, flush=True)
    written: OutgoingRecord | None = None
    while not stopping.is_set():
        records = _poll(consumer, settings.kafka_batch_records)
        if not records:
            continue
        # Made once: what it takes to make is no matter of the client's.
        written = written or valuation_record(_VALUED, records[0], "json")
        outgoing = [
            Outgoing(settings.kafka_output, record.partition, written) for record in records
        ]
        offsets = {
            TopicPartition(record.topic, record.partition): OffsetAndMetadata(
                record.offset + 1, "", -1
            )
            for record in records
        }
        committer.commit(outgoing, offsets, consumer.group_metadata())
    committer.close()
    consumer.leave()


def _poll(consumer: GroupConsumer, most: int) -> list[SourceRecord]:
    patience_ms = _JOIN_MS if consumer.must_join() else _IDLE_MS
    try:
        polled = consumer.poll(patience_ms, max_records=most)
    except NoOffsetForPartitionError as error:
        consumer.seek_to_beginning(*error.args[0])
        return []
    return [record for partition in polled.values() for record in partition]


if __name__ == "__main__":
    main()
