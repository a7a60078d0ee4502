"""Records in and out, without a broker."""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import example, given
from hypothesis import strategies as st

from alinfik.kafka.headers import NULL
from alinfik.server.bundle import Bundle
from alinfik.server.records import (
    DeadLetter,
    Valued,
    dead_letter_record,
    fits,
    parse_sample,
    valuation_record,
    written,
)
from alinfik.server.valuation import Estimate, valuation
from alinfik.v1 import BundleManifest, Sample, Target, Valuation

PROTOBUF = b"application/x-protobuf"


def bundle(bundle_id: str, targets: Sequence[str]) -> Bundle:
    named = [Target(name=name) for name in targets]
    return Bundle(Path(), BundleManifest(bundle_id=bundle_id, targets=named))


ESTIMATE = Estimate(
    bundle("b" * 64, ["gsm8k"]),
    array("d", [0.5, 0.0, 1.0, 25.0]),
    token_count=3,
    truncated=False,
    out_of_distribution_score=0.0,
    out_of_distribution=False,
)


class Record(NamedTuple):
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    key: bytes | None = None
    topic: str = "samples"
    partition: int = 3
    offset: int = 17
    timestamp: int = 1_700_000_000_000


def reason(value: bytes | None, content_type: bytes | None = None) -> str:
    headers = [] if content_type is None else [("content-type", content_type)]
    outcome = parse_sample(Record(value, headers))
    assert isinstance(outcome, DeadLetter)
    assert outcome.error
    return outcome.reason


texts = st.text(st.characters(exclude_categories=["Cs"]))
samples = st.builds(Sample, id=texts, provider=texts, prompt=texts, completion=texts)


@given(samples)
def test_a_sample_survives_both_encodings(sample: Sample):
    if sample.ByteSize():
        assert parse_sample(Record(json_format.MessageToJson(sample).encode())) == sample
    packed = Record(sample.SerializeToString(), [("content-type", PROTOBUF)])
    assert parse_sample(packed) == sample


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("completion"), inner),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise(value: bytes):
    for content_type in (b"application/json", PROTOBUF, b"\xff"):
        record = Record(value, [("content-type", content_type)])
        outcome = parse_sample(record)
        if isinstance(outcome, DeadLetter):
            letter = dead_letter_record(outcome, record, 1_000_000)
            assert letter.value == value
            assert len(dict(letter.headers)["alinfik-error"]) < 2_000
        else:
            outcome.SerializeToString()


@pytest.mark.parametrize(
    ("value", "content_type", "expected"),
    [
        (None, None, "tombstone"),
        (None, PROTOBUF, "tombstone"),
        (b"", None, "bad_json"),
        (b"{", None, "bad_json"),
        (b"[" * 100_000, None, "bad_json"),
        (b"9" * 5_000, None, "bad_json"),
        (b"\xff", None, "bad_utf8"),
        (b'{"id": "\\udc00"}', None, "bad_utf8"),
        (b"[]", None, "not_a_sample"),
        (b'"text"', None, "not_a_sample"),
        (b"{}", None, "not_a_sample"),
        (b'{"text": "other field"}', None, "not_a_sample"),
        (b'{"completion": null}', None, "not_a_sample"),
        (b'{"completion": 1}', None, "wrong_type"),
        (b'{"completion": ["a"]}', None, "wrong_type"),
        (b'{"completion": true}', b"application/json; charset=utf-8", "wrong_type"),
        (b"\xff", PROTOBUF, "bad_protobuf"),
        (b"\x0a\x01\xff", PROTOBUF, "bad_protobuf"),
        (b"", b"text/plain", "unknown_content_type"),
        (b"", b"application/x-protobuf; proto=other.v1.Sample", "unknown_content_type"),
    ],
)
def test_each_fault_has_its_reason(value, content_type, expected):
    assert reason(value, content_type) == expected


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/x-protobuf",
        b'Application/X-Protobuf ; proto="alinfik.v1.Sample"',
        PROTOBUF + b";",
    ],
)
def test_content_types_are_read_leniently(content_type):
    sample = Sample(completion="a")
    record = Record(sample.SerializeToString(), [("content-type", content_type)])
    assert parse_sample(record) == sample


@pytest.mark.parametrize("licence", ["NaN", "-Infinity", "1e999", "9" * 400, r'"\ud83d"'])
def test_an_unknown_field_may_hold_what_strict_readers_of_json_refuse(licence):
    value = f'{{"completion": "a", "licence": {licence}}}'.encode()
    assert parse_sample(Record(value)) == Sample(completion="a")


def test_unknown_fields_are_ignored_and_null_is_absent():
    value = b'{"completion": "a", "prompt": null, "licence": {"name": "MIT"}}'
    assert parse_sample(Record(value)) == Sample(completion="a")


def test_a_valuation_record_says_where_its_sample_stood():
    sample = Sample(id="1", completion="a")
    outcome = Valued(written(sample, ESTIMATE, "json"), ESTIMATE.bundle.id)
    source = Record(b"{}", key=b"key")
    record = valuation_record(outcome, source, "json")
    assert record.key == b"key"
    assert record.timestamp == source.timestamp
    assert dict(record.headers) == {
        "content-type": b"application/json",
        "alinfik-bundle-id": b"b" * 64,
        "alinfik-source-topic": b"samples",
        "alinfik-source-partition": b"3",
        "alinfik-source-offset": b"17",
    }
    # Proto names, and values that proto3 would leave out.
    fields = json.loads(record.value or b"")
    assert fields["values"][0]["lower"] == 0.0
    assert fields["truncated"] is False
    assert json_format.Parse(record.value or b"", Valuation()) == valuation(sample, ESTIMATE)


numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    targets = draw(st.lists(texts, min_size=1, max_size=3))
    return Estimate(
        bundle(draw(texts), targets),
        array("d", draw(st.lists(numbers, min_size=(n := 4 * len(targets)), max_size=n))),
        token_count=draw(st.integers(0, 2**32 - 1)),
        truncated=draw(st.booleans()),
        out_of_distribution_score=draw(st.floats(width=32, allow_nan=False, allow_infinity=False)),
        out_of_distribution=draw(st.booleans()),
    )


@given(st.builds(Sample, id=texts, provider=texts), estimates())
@example(Sample(), ESTIMATE._replace(out_of_distribution_score=float(np.float32(1.26e-43))))
def test_a_valuations_json_is_protobufs_own(sample: Sample, estimate: Estimate):
    """All fields, defaults too, as the library writes them; so no new field is forgotten."""
    own = json_format.MessageToDict(
        valuation(sample, estimate),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    found = json.loads(written(sample, estimate, "json"))
    for fields in (own, found):
        # A float32 has many spellings, and below 1e-37 the library's is not the shortest.
        score = "out_of_distribution_score"
        fields[score] = str(np.float32(fields[score]))
    assert found == own


def test_a_valuation_in_protobuf_says_so_as_a_sample_does():
    sample = Sample(id="1", completion="a")
    outcome = Valued(written(sample, ESTIMATE, "protobuf"), ESTIMATE.bundle.id)
    record = valuation_record(outcome, Record(b"{}"), "protobuf")
    assert (
        dict(record.headers)["content-type"]
        == b"application/x-protobuf; proto=alinfik.v1.Valuation"
    )
    assert Valuation.FromString(record.value or b"") == valuation(sample, ESTIMATE)


def test_a_dead_letter_keeps_all_of_its_source():
    source = Record(b"\x00bad", [("trace", b"\x01"), ("empty", None), ("trace", b"\x02")], b"k")
    letter = dead_letter_record(DeadLetter("bad_json", "not JSON: ä"), source, largest_bytes=1_000)
    assert (letter.key, letter.value, letter.timestamp) == (b"k", b"\x00bad", source.timestamp)
    assert letter.headers[:3] == [("trace", b"\x01"), ("empty", NULL), ("trace", b"\x02")]
    assert dict(letter.headers[3:]) == {
        "alinfik-reason": b"bad_json",
        "alinfik-error": "not JSON: ä".encode(),
        "alinfik-attempt": b"1",
        "alinfik-source-topic": b"samples",
        "alinfik-source-partition": b"3",
        "alinfik-source-offset": b"17",
    }


def test_a_letter_of_nothing_at_all_can_be_written():
    letter = dead_letter_record(DeadLetter("tombstone", "no value"), Record(None), 1_000)
    assert (letter.key, letter.value) == (None, b"")


def test_a_letter_too_large_for_its_topic_says_how_large_it_was():
    source = Record(b"x" * 700)
    letter = dead_letter_record(DeadLetter("bad_json", "not JSON"), source, largest_bytes=900)
    assert letter.value == b""
    assert dict(letter.headers)["alinfik-value-bytes"] == b"700"


@pytest.mark.parametrize(
    ("before", "now"), [(b"1", b"2"), (b"41", b"42"), (b"", b"1"), (b"x", b"1"), (None, b"1")]
)
def test_a_letter_that_is_sent_again_counts_its_attempts(before: bytes | None, now: bytes):
    source = Record(b"x", [("alinfik-attempt", before)])
    letter = dead_letter_record(DeadLetter("bad_json", "not JSON"), source, 1_000)
    assert [value for name, value in letter.headers if name == "alinfik-attempt"] == [now]


sizes = st.integers(0, 3_000)


@given(key=sizes, value=sizes, header=sizes)
def test_any_letter_fits_its_topic_and_says_what_was_left_out(key: int, value: int, header: int):
    source = Record(b"v" * value, [("h", b"h" * header)], b"k" * key)
    letter = dead_letter_record(DeadLetter("bad_json", "not JSON"), source, 2_000)
    assert fits(letter, 2_000)
    headers = dict(letter.headers)
    assert len(letter.value or b"") == value or headers["alinfik-value-bytes"] == b"%d" % value
    assert len(letter.key or b"") == key or headers["alinfik-key-bytes"] == b"%d" % key
    assert "h" in headers or headers["alinfik-headers-bytes"] == b"%d" % (header + 1)


def test_the_lengths_of_many_headers_count_too():
    source = Record(b"[", [("h", b"")] * 1_000)
    letter = dead_letter_record(DeadLetter("bad_json", "not JSON"), source, largest_bytes=2_000)
    assert dict(letter.headers)["alinfik-headers-bytes"] == b"1000"
