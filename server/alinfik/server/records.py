"""What stands in a Kafka record: samples in, valuations and dead letters out. Pure functions.

A sample's encoding is told by the record's ``content-type`` header: ``application/json``, also
where there is none, or ``application/x-protobuf``. Both are those of ``alinfik.v1.Sample``; fields
that it does not have are ignored, so that producers may be newer than the server. A valuation is an
``alinfik.v1.Valuation`` in either form, JSON with the field names of the proto file and defaults.
Knows nothing of brokers and offsets to commit.
"""

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
import orjson
from google.protobuf.message import DecodeError

from alinfik.kafka.headers import NULL
from alinfik.server import rejection
from alinfik.server.valuation import Estimate, valuation
from alinfik.v1 import Sample, Valuation

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
CONTENT_TYPE = "content-type"

ValuationFormat = Literal["json", "protobuf"]
_CONTENT_TYPES: dict[ValuationFormat, bytes] = {
    "json": JSON.encode(),
    # As many readers of Kafka ask for it, the message is named.
    "protobuf": f"{PROTOBUF}; proto={Valuation.DESCRIPTOR.full_name}".encode(),
}

ATTEMPT = "alinfik-attempt"
TRACEPARENT = "traceparent"
"""Names the trace that a record comes from, as W3C Trace Context has it."""

Headers = list[tuple[str, bytes]]
_FIELDS = tuple(Sample.DESCRIPTOR.fields_by_name)
# An error text quotes what was wrong with a record; a header is no place for all of a 5 MB record.
_ERROR_CHARACTERS = 300
# Of a batch (61) and of a record in it (at most 36); and of the lengths of a header's two parts.
_FRAMING_BYTES = 97
_HEADER_FRAMING_BYTES = 10


class SourceRecord(Protocol):
    """What the pipeline reads of a consumed record; kafka-python's ``ConsumerRecord`` has it."""

    @property
    def topic(self) -> str: ...  # noqa: D102
    @property
    def partition(self) -> int: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970."""
        ...

    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...  # noqa: D102


class OutgoingRecord(NamedTuple):
    """A record to produce, without its topic."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int


# Why a record has no value. With the reasons of ``rejection``, the values of the header
# ``alinfik-reason`` and of the label of ``alinfik_dead_letters_total``.
Reason = Literal[
    "tombstone",
    "unknown_content_type",
    "bad_utf8",
    "bad_json",
    "not_a_sample",
    "wrong_type",
    "bad_protobuf",
    "model_failed",
    "too_large",
    "refused",
]
REASONS: tuple[str, ...] = *get_args(Reason), *get_args(rejection.Reason)


class Valued(NamedTuple):
    """A sample's valuation, written."""

    value: bytes
    bundle_id: str


class DeadLetter(NamedTuple):
    """A record cannot be valued."""

    reason: Reason | rejection.Reason
    error: str


def parse_sample(record: SourceRecord) -> Sample | DeadLetter:
    """The sample in a record, or why there is none. Never raises.

    What the texts must be, such as a completion that is not blank, is for ``rejection`` to say.
    """
    if record.value is None:
        return DeadLetter("tombstone", "the record has no value")
    headers = dict(record.headers)
    content_type = (headers.get(CONTENT_TYPE) or b"").decode(errors="replace")
    kind, _, parameters = content_type.partition(";")
    match kind.strip().lower():
        case "" | "application/json":
            return _parse_json(record.value)
        case "application/x-protobuf" if _is_sample(parameters):
            return _parse_protobuf(record.value)
        case _:
            error = (
                f"content-type is {content_type!r}: use {JSON} or {PROTOBUF} of alinfik.v1.Sample"
            )
            return DeadLetter("unknown_content_type", error[:_ERROR_CHARACTERS])


def written(sample: Sample, estimate: Estimate, form: ValuationFormat) -> bytes:
    """A sample's valuation, written in that form."""
    if form == "json":
        return _to_json(sample, estimate)
    return valuation(sample, estimate).SerializeToString()


def valuation_record(
    outcome: Valued,
    source: SourceRecord,
    form: ValuationFormat,
    trace: Sequence[tuple[str, bytes]] = (),
) -> OutgoingRecord:
    """The record that carries a valuation: its source's key and timestamp, and where that stood.

    Args:
        outcome: the valuation.
        source: the record as it was consumed.
        form: how the valuation is written.
        trace: headers that name the trace of its batch.
    """
    headers = [
        (CONTENT_TYPE, _CONTENT_TYPES[form]),
        ("alinfik-bundle-id", outcome.bundle_id.encode()),
        *_source_headers(source),
        *trace,
    ]
    return OutgoingRecord(source.key, outcome.value, headers, source.timestamp)


def fits(record: OutgoingRecord, largest_bytes: int) -> bool:
    """Whether a topic takes the record.

    Args:
        record: what is to be sent.
        largest_bytes: what the topic takes in one batch, framing included.
    """
    headers = [
        len(name.encode()) + len(value) + _HEADER_FRAMING_BYTES for name, value in record.headers
    ]
    own = len(record.key or b"") + len(record.value or b"")
    return own + sum(headers) + _FRAMING_BYTES <= largest_bytes


def dead_letter_record(
    letter: DeadLetter,
    source: SourceRecord,
    largest_bytes: int,
    trace: Sequence[tuple[str, bytes]] = (),
) -> OutgoingRecord:
    """The source record byte for byte, its own headers first, then why it could not be valued.

    ``alinfik-attempt`` counts how often it was tried: one more than the source's own header of that
    name says, which a record has that is sent again.

    Args:
        letter: the reason.
        source: the record as it was consumed.
        largest_bytes: what the dead-letter topic takes, framing included. Of a larger record the
            value is left out, then its headers, then the key, until it fits; the header
            ``alinfik-value-bytes`` (``alinfik-headers-bytes``, ``alinfik-key-bytes``) says how
            long that was.
        trace: headers that name the trace of its batch. They come after the source's own, which may
            name the trace that it was sent in.
    """
    own = [(name, NULL if value is None else value) for name, value in source.headers]
    own = [(name, value) for name, value in own if name != ATTEMPT]
    ours = [
        ("alinfik-reason", letter.reason.encode()),
        ("alinfik-error", letter.error.encode(errors="replace")),
        (ATTEMPT, str(_attempts(source) + 1).encode()),
        *_source_headers(source),
        *trace,
    ]
    # kafka-python writes no record that has neither.
    value = b"" if source.key is None and source.value is None else source.value
    record = OutgoingRecord(source.key, value, [*own, *ours], source.timestamp)
    if not fits(record, largest_bytes) and value:
        ours.append(("alinfik-value-bytes", str(len(value)).encode()))
        record = record._replace(value=b"", headers=[*own, *ours])
    if not fits(record, largest_bytes) and own:
        length = sum(len(name.encode()) + len(value) for name, value in own)
        ours.append(("alinfik-headers-bytes", str(length).encode()))
        record = record._replace(headers=ours)
    if not fits(record, largest_bytes) and source.key:
        ours.append(("alinfik-key-bytes", str(len(source.key)).encode()))
        record = record._replace(key=None, value=record.value or b"", headers=ours)
    return record


def _attempts(source: SourceRecord) -> int:
    """How often the record was tried before."""
    said = dict(source.headers).get(ATTEMPT) or b""
    # Nine digits are more than anybody tries, and few enough to read.
    return int(said) if said.isdigit() and len(said) < 10 else 0


def _to_json(sample: Sample, estimate: Estimate) -> bytes:
    # Field by field: the library's own way takes many times as long, for every sample.
    fields = {
        "sample_id": sample.id,
        "provider": sample.provider,
        "bundle_id": estimate.bundle.id,
        "values": [
            {
                "target": target,
                "value": value,
                "lower": lower,
                "upper": upper,
                "percentile": percentile,
            }
            for target, value, lower, upper, percentile in zip(
                estimate.bundle.targets, *estimate.columns, strict=True
            )
        ],
        "token_count": estimate.token_count,
        "truncated": estimate.truncated,
        # Written in the fewest digits that tell a float32 from others.
        "out_of_distribution_score": np.float32(estimate.out_of_distribution_score),
        "out_of_distribution": estimate.out_of_distribution,
    }
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def _source_headers(source: SourceRecord) -> Headers:
    return [
        ("alinfik-source-topic", source.topic.encode()),
        ("alinfik-source-partition", str(source.partition).encode()),
        ("alinfik-source-offset", str(source.offset).encode()),
    ]


def _is_sample(parameters: str) -> bool:
    """Whether ``proto=`` or ``messageType=`` names our message, or neither is there."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() in {"proto", "messagetype"}:
            return value.strip().strip('"') == Sample.DESCRIPTOR.full_name
    return True


def _parse_json(value: bytes) -> Sample | DeadLetter:
    try:
        fields: object = orjson.loads(value)
    except ValueError:
        # It is strict, and says little. Whatever Python's own can read, as NaN, is read.
        try:
            fields = json.loads(value.decode())
        except UnicodeDecodeError as error:
            return DeadLetter("bad_utf8", f"byte {error.start} is not UTF-8")
        except json.JSONDecodeError as error:
            return DeadLetter("bad_json", f"not JSON: {error}")
        except RecursionError:
            return DeadLetter("bad_json", "nested too deeply")
        except ValueError as error:  # an integer of more digits than Python will read
            return DeadLetter("bad_json", str(error)[:_ERROR_CHARACTERS])
    if not isinstance(fields, dict):
        return DeadLetter("not_a_sample", f"JSON {_json_type(fields)}, not an object")
    named = cast("dict[str, object]", fields)
    # As the protobuf JSON mapping has it, null is a field that was not set.
    present = {name: named[name] for name in _FIELDS if named.get(name) is not None}
    if not present:
        return DeadLetter("not_a_sample", f"none of the fields {', '.join(_FIELDS)}")
    for name, text in present.items():
        if not isinstance(text, str):
            return DeadLetter("wrong_type", f"{name} is a JSON {_json_type(text)}, not a string")
    try:
        return Sample(**cast("dict[str, str]", present))
    except UnicodeEncodeError:
        return DeadLetter("bad_utf8", "a string holds half of a surrogate pair")


def _parse_protobuf(value: bytes) -> Sample | DeadLetter:
    try:
        return Sample.FromString(value)
    except DecodeError as error:
        return DeadLetter("bad_protobuf", str(error)[:_ERROR_CHARACTERS])


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
