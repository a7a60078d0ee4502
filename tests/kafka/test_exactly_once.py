"""What a reader of committed records sees, on Apache Kafka."""

import json

import pytest
from google.protobuf import json_format

from alinfik.kafka.headers import NULL, RawName
from alinfik.v1 import Sample, Valuation
from tests.kafka.streams import Deadline, Sent, Stream, read, running, send, source_offsets

pytestmark = pytest.mark.kafka


def samples(count, partitions, start=0):
    return [
        Sent(
            json.dumps(
                {"id": str(i), "provider": "p", "completion": f"She sold {i} clips"}
            ).encode(),
            key=None if i % 5 == 0 else b"key-%d" % i,
            partition=i % partitions,
        )
        for i in range(start, start + count)
    ]


def test_every_record_is_valued_once_and_in_order(stream, tiny_bundle):
    sent = samples(2000, stream.partitions)
    send(stream.broker, stream.samples, sent)
    with running(stream.settings(tiny_bundle)) as server:
        valued = read(stream.broker, stream.valuations, len(sent))
        assert server.metric("alinfik_samples_total", source="kafka", outcome="valued") == len(sent)
    everything = read(stream.broker, stream.valuations)
    assert len(everything) == len(valued) == len(sent)
    offsets = source_offsets(everything)
    expected = [len(sent[p :: stream.partitions]) for p in range(stream.partitions)]
    assert offsets == {p: list(range(n)) for p, n in enumerate(expected)}
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    for record in everything:
        headers = dict(record.headers)
        place = int(headers["alinfik-source-partition"]), int(headers["alinfik-source-offset"])
        source = sent[place[1] * stream.partitions + place[0]]
        valuation = json_format.Parse(record.value, Valuation())
        assert valuation.sample_id == json.loads(source.value)["id"]
        assert record.key == source.key
        assert headers["alinfik-bundle-id"].decode() == manifest["bundle_id"] == valuation.bundle_id
        assert headers["content-type"] == b"application/json"
        assert headers["alinfik-source-topic"].decode() == stream.samples


POISON = [
    ("bad_json", Sent(b'{"completion": "cut')),
    ("bad_json", Sent(b"")),
    ("bad_json", Sent(b"[" * 100_000)),
    ("bad_json", Sent(b'{"id": ' + b"9" * 5_000 + b"}")),
    ("not_a_sample", Sent(b'["a", "list"]')),
    ("not_a_sample", Sent(b'{"text": "no field of ours"}')),
    ("wrong_type", Sent(b'{"completion": 7}')),
    ("bad_utf8", Sent(b'{"completion": "\xff"}')),
    ("bad_utf8", Sent(b'{"completion": "\\ud800"}')),
    ("empty_completion", Sent(b'{"id": "1", "completion": " \\n"}', key=b"kept")),
    ("id_too_long", Sent(json.dumps({"id": "x" * 257, "completion": "a"}).encode())),
    ("tombstone", Sent(None, key=b"gone")),
    ("bad_protobuf", Sent(b"\xff\xff", headers=[("content-type", b"application/x-protobuf")])),
    (
        "unknown_content_type",
        Sent(b"a: 1", headers=[("trace", b"\x00\x01"), ("content-type", b"text/yaml")]),
    ),
    ("bad_json", Sent(b"", headers=[(RawName.of(b"\xff\xfe"), b"1"), ("null", NULL)])),
]


def test_poison_becomes_dead_letters_byte_for_byte_and_stops_nothing(stream, tiny_bundle):
    good = samples(len(POISON), partitions=1)
    mixed = [
        record for pair in zip(good, (sent for _, sent in POISON), strict=True) for record in pair
    ]
    send(stream.broker, stream.samples, mixed)
    with running(stream.settings(tiny_bundle)) as server:
        valued = read(stream.broker, stream.valuations, len(good))
        letters = read(stream.broker, stream.dead_letters, len(POISON))
        for reason in {reason for reason, _ in POISON}:
            count = sum(reason == other for other, _ in POISON)
            assert server.metric("alinfik_dead_letters_total", reason=reason) == count
    assert source_offsets(valued) == {0: list(range(0, len(mixed), 2))}
    assert source_offsets(letters) == {0: list(range(1, len(mixed), 2))}
    for letter, (reason, sent) in zip(letters, POISON, strict=True):
        headers = dict(letter.headers)
        assert headers["alinfik-reason"].decode() == reason
        assert headers["alinfik-error"]
        assert letter.value == sent.value
        assert letter.key == sent.key
        assert [(name.encode(), value) for name, value in letter.headers[: len(sent.headers)]] == [
            (name.encode(), as_read(value)) for name, value in sent.headers
        ]


def as_read(value):
    return None if value is NULL else value


def test_a_record_larger_than_the_dead_letter_topic_takes_does_not_stop_its_partition(
    kafka, tiny_bundle
):
    stream = Stream(kafka, partitions=1)
    kafka.create_topic(stream.samples, max_message_bytes="6000000")
    kafka.create_topic(stream.valuations)
    kafka.create_topic(stream.dead_letters)
    sizes = [5_000_000, 2_000_000, 900_000]
    good = samples(1, partitions=1)
    send(kafka, stream.samples, [*(Sent(b"x" * size) for size in sizes), *good])
    with running(stream.settings(tiny_bundle)):
        read(kafka, stream.valuations, 1)
        letters = read(kafka, stream.dead_letters, len(sizes))
    assert source_offsets(letters) == {0: [0, 1, 2]}
    assert [len(letter.value) for letter in letters] == [0, 0, 900_000]
    left_out = [dict(letter.headers).get("alinfik-value-bytes") for letter in letters]
    assert left_out == [b"5000000", b"2000000", None]


def test_a_key_too_large_for_the_valuations_is_a_dead_letter(kafka, tiny_bundle):
    stream = Stream(kafka, partitions=1)
    kafka.create_topic(stream.samples)
    kafka.create_topic(stream.valuations, max_message_bytes="5000")
    kafka.create_topic(stream.dead_letters, max_message_bytes="5000")
    (good,) = samples(1, partitions=1)
    send(kafka, stream.samples, [good._replace(key=b"k" * 900_000), good])
    with running(stream.settings(tiny_bundle)) as server:
        read(kafka, stream.valuations, 1)
        (letter,) = read(kafka, stream.dead_letters, 1)
        deadline = Deadline("count")
        while server.metric("alinfik_dead_letters_total", reason="too_large") != 1:
            deadline.check()
    assert letter.key is None
    assert letter.headers[0] == ("alinfik-reason", b"too_large")
    assert dict(letter.headers)["alinfik-key-bytes"] == b"900000"


def test_a_topic_may_take_less_than_a_producers_batch(kafka, tiny_bundle):
    stream = Stream(kafka, partitions=1)
    kafka.create_topic(stream.samples)
    kafka.create_topic(stream.valuations, max_message_bytes="5000")
    kafka.create_topic(stream.dead_letters, max_message_bytes="5000")
    send(kafka, stream.samples, samples(300, partitions=1))
    with running(stream.settings(tiny_bundle)) as server:
        valued = read(kafka, stream.valuations, 300)
        failures = server.metric("alinfik_kafka_failures_total")
    assert source_offsets(valued) == {0: list(range(300))}
    assert failures == 0


def test_what_a_topic_refuses_stops_no_partition(kafka, tiny_bundle):
    """Compacted topics take no record without a key, and others no time that is far off."""
    stream = Stream(kafka, partitions=1)
    kafka.create_topic(stream.samples, message_timestamp_after_max_ms=str(2**62))
    kafka.create_topic(stream.valuations, cleanup_policy="compact")
    kafka.create_topic(stream.dead_letters, cleanup_policy="compact")
    keyless, good, *_ = samples(2, partitions=1)
    in_the_year_2100 = 4_102_444_800_000
    sent = [keyless, good, good._replace(timestamp_ms=in_the_year_2100), Sent(b"no JSON"), good]
    send(kafka, stream.samples, sent)
    with running(stream.settings(tiny_bundle)) as server:
        valued = read(kafka, stream.valuations, 2)
        letters = read(kafka, stream.dead_letters, 3)
        deadline = Deadline("count")
        while server.metric("alinfik_dead_letters_total", reason="refused") != 2:
            deadline.check()
    assert source_offsets(valued) == {0: [1, 4]}
    assert source_offsets(letters) == {0: [0, 2, 3]}
    reasons = [dict(letter.headers)["alinfik-reason"] for letter in letters]
    assert reasons == [b"refused", b"refused", b"bad_json"]
    assert [letter.value for letter in letters] == [keyless.value, good.value, b"no JSON"]
    places = [f"{stream.samples}-0-{offset}".encode() for offset in (0, 3)]
    assert [letter.key for letter in letters] == [places[0], good.key, places[1]]
    assert all(letter.timestamp < in_the_year_2100 for letter in letters)


def test_protobuf_samples_are_valued_as_json_ones(stream, tiny_bundle):
    sample = Sample(id="1", provider="p", prompt="How many?", completion="She sold 48 clips")
    as_json = json_format.MessageToJson(sample, indent=None).encode()
    as_protobuf = sample.SerializeToString()
    kind = b"application/x-protobuf; proto=alinfik.v1.Sample"
    send(
        stream.broker,
        stream.samples,
        [Sent(as_json), Sent(as_protobuf, headers=[("content-type", kind)])],
    )
    with running(stream.settings(tiny_bundle)):
        first, second = read(stream.broker, stream.valuations, 2)
    assert first.value == second.value


def test_servers_of_one_group_share_the_work_and_double_none(stream, tiny_bundle):
    """A second server comes and goes in mid-stream, so batches in flight lose their partitions."""
    total = 9_000
    send(stream.broker, stream.samples, samples(total, stream.partitions))
    settings = stream.settings(tiny_bundle)
    with running(settings) as first:
        read(stream.broker, stream.valuations, 500)
        with running(settings) as second:
            deadline = Deadline("work for the second server")
            while not second.metric("alinfik_kafka_transactions_total", outcome="committed"):
                deadline.check()
                send(stream.broker, stream.samples, samples(300, stream.partitions, total))
                total += 300
        send(stream.broker, stream.samples, samples(300, stream.partitions, total))
        total += 300
        read(stream.broker, stream.valuations, total)
        assert first.metric("alinfik_kafka_transactions_total", outcome="committed")
    everything = read(stream.broker, stream.valuations)
    assert source_offsets(everything) == {
        p: list(range(total // stream.partitions)) for p in range(stream.partitions)
    }


def test_a_stop_in_mid_stream_keeps_what_is_committed_and_redoes_the_rest(stream, tiny_bundle):
    sent = samples(6_000, stream.partitions)
    send(stream.broker, stream.samples, sent)
    for _ in range(3):
        with running(stream.settings(tiny_bundle)) as server:
            deadline = Deadline("commit")
            while not server.metric("alinfik_kafka_transactions_total", outcome="committed"):
                deadline.check()
        # Left the group in time: the next one starts without waiting for a session to end.
    with running(stream.settings(tiny_bundle)):
        read(stream.broker, stream.valuations, len(sent))
    assert source_offsets(read(stream.broker, stream.valuations)) == {
        p: list(range(2_000)) for p in range(stream.partitions)
    }
