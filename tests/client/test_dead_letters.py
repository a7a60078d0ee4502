"""A dead letter says what the server wrote; what is sent again is what the producer sent."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alinfik.client.dead_letter_output import letter_json, printable
from alinfik.client.dead_letters import (
    Place,
    Resubmission,
    Selection,
    Source,
    read_dead_letter,
    resubmission,
)
from alinfik.kafka.headers import NULL
from alinfik.server import records


class Consumed(NamedTuple):
    """What tests need of kafka-python's ConsumerRecord."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


offsets = st.integers(0, 2**63 - 1)
contents = st.none() | st.binary(max_size=40)
names = st.text(max_size=12) | st.sampled_from(
    ["alinfik-reason", "alinfik-attempt", "alinfik-source-offset", "alinfik-value-bytes"]
)
consumed = st.builds(
    Consumed,
    topic=st.just("samples"),
    partition=st.integers(0, 2**31 - 1),
    offset=offsets,
    timestamp=st.integers(-1, 2**63 - 1),
    key=contents,
    value=contents,
    headers=st.lists(st.tuples(names, contents), max_size=5).map(tuple),
)


def dead(source, largest=1_000_000):
    """The record that the server makes of a record that it cannot value."""
    letter = records.DeadLetter("bad_json", "not JSON")
    out = records.dead_letter_record(letter, source, largest)
    headers = tuple((name, None if value is NULL else value) for name, value in out.headers)
    return Consumed("samples.dlq", 1, 7, out.timestamp, out.key, out.value, headers)


def test_the_trace_that_the_server_names_is_not_sent_again():
    theirs, ours = ("traceparent", b"of the producer"), ("traceparent", b"of the server")
    source = Consumed("samples", 0, 3, 0, b"k", b"{", (theirs,))
    letter = records.DeadLetter("bad_json", "not JSON")
    out = records.dead_letter_record(letter, source, 1_000_000, [ours])
    record = Consumed("samples.dlq", 1, 7, out.timestamp, out.key, out.value, tuple(out.headers))
    sent = resubmission(read_dead_letter(record), None, 3)
    assert isinstance(sent, Resubmission)
    assert sent.headers == [theirs, ("alinfik-attempt", b"1")]


def test_a_key_is_found_by_its_own_name():
    source = Consumed("samples", 0, 3, 0, b"wiki[12]", b"{", ())
    letter = read_dead_letter(dead(source))
    assert Selection(keys=["wiki[12]"]).takes(letter)
    assert Selection(keys=["wiki*"]).takes(letter)
    assert not Selection(keys=["wiki[13]"]).takes(letter)


@given(consumed)
def test_any_record_is_read(record):
    letter = read_dead_letter(record)
    assert letter.attempt >= 1
    letter_json(letter)
    resubmission(letter, None, 3)


@given(consumed, st.none() | st.just("elsewhere"))
def test_what_is_sent_again_is_the_record_as_it_came(source, topic):
    source = source._replace(headers=tuple(h for h in source.headers if "alinfik-" not in h[0]))
    letter = read_dead_letter(dead(source))
    assert (letter.reason, letter.place, letter.attempt) == ("bad_json", Place(1, 7), 1)
    assert letter.source == Source("samples", Place(source.partition, source.offset))
    sent = resubmission(letter, topic, 3)
    assert isinstance(sent, Resubmission)
    assert sent.topic == (topic or "samples")
    assert sent.partition == (None if topic else source.partition)
    # An empty value stands for none where there is no key either.
    assert (sent.key, sent.timestamp) == (source.key, source.timestamp)
    assert sent.value == (b"" if source.key is source.value is None else source.value)
    assert sent.headers == [*source.headers, ("alinfik-attempt", b"1")]


def test_tries_are_counted_up_to_the_last():
    source = Consumed("samples", 0, 41, 1_700_000_000_000, b"k", b"[", (("trace", b"\x00"),))
    for attempt in (1, 2):
        letter = read_dead_letter(dead(source))
        assert letter.attempt == attempt
        sent = resubmission(letter, None, 3)
        source = source._replace(headers=tuple(sent.headers))
        assert [name for name, _ in sent.headers] == ["trace", "alinfik-attempt"]
    refused = resubmission(read_dead_letter(dead(source)), None, 3)
    assert refused == "it was tried 3 times (--max-attempt 3)"


def test_a_value_that_was_left_out_is_not_sent():
    source = Consumed("samples", 2, 41, 0, b"k", b"x" * 5_000, ())
    letter = read_dead_letter(dead(source, largest=4_000))
    assert (letter.size, letter.value) == (5_000, b"")
    assert resubmission(letter, None, 3) == (
        "5000 bytes of it were left out for their size; it stood at samples 2:41"
    )


def test_what_is_no_dead_letter_is_not_sent():
    record = Consumed("samples.dlq", 0, 0, 0, b"k", b"v", (("content-type", b"text/plain"),))
    assert "it is no dead letter" in resubmission(read_dead_letter(record), "samples", 3)


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        (Selection(), True),
        (Selection(reasons=["wrong_type", "bad_json"]), True),
        (Selection(reasons=["wrong_type"]), False),
        (Selection(source_topic="samples", source_partition=2), True),
        (Selection(source_topic="others"), False),
        (Selection(source_partition=0), False),
        (Selection(since=5_000, until=5_001), True),
        (Selection(since=5_001), False),
        (Selection(until=5_000), False),
        (Selection(keys=["no", "id-*"]), True),
        (Selection(keys=["ID-*"]), False),
        (Selection(start_at=Place(1, 7)), True),
        (Selection(start_at=Place(0, 99)), True),
        (Selection(start_at=Place(1, 8)), False),
        (Selection(reasons=["bad_json"], keys=["other"]), False),
    ],
)
def test_every_filter_must_take_a_letter(selection, taken):
    letter = read_dead_letter(dead(Consumed("samples", 2, 41, 5_000, b"id-1", b"[", ())))
    assert selection.takes(letter) is taken


@given(st.text())
def test_nothing_that_is_shown_moves_a_terminals_cursor(text):
    assert printable(text).isprintable()
