"""What the chaos test sends: numbered samples, one in a hundred of them poison, at a pace.

Comes in: a count and a seed. Goes out: records, and records on the brokers. Each says in a header
what it is, so that a reader needs nothing else to judge what became of it.
"""

import json
import time
from collections.abc import Callable, Iterator
from random import Random

from kafka import KafkaProducer

from alinfik.v1 import Sample
from tests.kafka.cluster import Cluster
from tests.kafka.streams import WAIT_SECONDS, Sent

KIND = "kind"
"""The header that says what a record is: ``good``, or one of ``POISON``."""
GOOD = "good"
POISON_SHARE = 0.01
OVERSIZED_BYTES = 5_000_000

_PROTOBUF = ("content-type", b"application/x-protobuf")

# By kind: the reason that its dead letter must give, and the record.
POISON: dict[str, tuple[str, Sent]] = {
    "broken_json": ("bad_json", Sent(b'{"completion": "cut')),
    "wrong_type": ("wrong_type", Sent(b'{"id": "7", "completion": ["not", "text"]}')),
    "empty": ("bad_json", Sent(b"")),
    "oversized": ("bad_json", Sent(b"x" * OVERSIZED_BYTES)),
    "bad_utf8": ("bad_utf8", Sent(b'{"completion": "\xff\xfe"}')),
    "deep": ("bad_json", Sent(b'{"completion": ' + b"[" * 100_000)),
    "content_type": (
        "unknown_content_type",
        Sent(b"completion: text", headers=[("content-type", b"text/yaml")]),
    ),
    "huge_number": ("bad_json", Sent(b'{"id": ' + b"9" * 5_000 + b"}")),
    "tombstone": ("tombstone", Sent(None)),
    "bad_protobuf": ("bad_protobuf", Sent(b"\xff\xff\x00\x01", headers=[_PROTOBUF])),
}

_PAUSE_SECONDS = 0.02
# Producers see a partition that was added this soon; five minutes by default.
_METADATA_MS = 1_000


def sample(number: int) -> Sample:
    """The sample of a good record: a text that no other record has."""
    return Sample(
        id=str(number),
        provider=f"provider-{number % 7}",
        prompt="How many did she sell?" if number % 2 else "",
        completion=f"She sold {number} clips in May and {number // 2} in June.",
    )


def records(count: int, seed: int) -> Iterator[Sent]:
    """So many records, numbered by their keys, with as much of each kind of poison."""
    random = Random(seed)
    poisoned = random.sample(range(count), round(count * POISON_SHARE))
    kinds = dict(zip(poisoned, list(POISON) * len(poisoned), strict=False))
    for number in range(count):
        kind = kinds.get(number, GOOD)
        sent = POISON[kind][1] if kind != GOOD else _good(number)
        headers = [(KIND, kind.encode()), *sent.headers]
        yield sent._replace(key=b"%d" % number, headers=headers)


def feed(
    cluster: Cluster,
    topic: str,
    sent: Iterator[Sent],
    may_send: Callable[[int], bool],
    seed: int,
) -> None:
    """Send records to partitions of the topic at random, those that come up meanwhile included.

    Args:
        cluster: whose topic it is.
        topic: where to.
        sent: what; their own partitions do not count.
        may_send: is asked, with the number of records sent so far, whether the next may follow.
        seed: of the partitions.
    """
    random = Random(seed)
    producer = KafkaProducer(
        bootstrap_servers=cluster.bootstrap,
        linger_ms=5,
        # So that the oversized ones fit a topic that takes 1 MB, as a producer's may.
        compression_type="lz4",
        max_request_size=2 * OVERSIZED_BYTES,
        metadata_max_age_ms=_METADATA_MS,
    )
    try:
        acknowledged = []
        for number, record in enumerate(sent):
            while not may_send(number):
                time.sleep(_PAUSE_SECONDS)
            partition = random.choice(sorted(producer.partitions_for(topic)))
            acknowledged.append(
                producer.send(topic, record.value, record.key, list(record.headers), partition)
            )
        for one in acknowledged:
            one.get(WAIT_SECONDS)
    finally:
        producer.close(timeout=WAIT_SECONDS)


def _good(number: int) -> Sent:
    one = sample(number)
    if number % 4 == 0:
        return Sent(one.SerializeToString(), headers=[_PROTOBUF])
    fields = {name.name: value for name, value in one.ListFields()}
    return Sent(json.dumps(fields).encode())
