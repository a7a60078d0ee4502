"""The trace of a batch, on Apache Kafka."""

import json

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, TraceFlags, format_span_id, format_trace_id

from alinfik.server.tracing import MOST_LINKS, sending
from tests.kafka.streams import Sent, read, running, send

pytestmark = pytest.mark.kafka

STAGES = ["admission", "tokenisation", "queue", "model"]


def sent_in(trace: int) -> tuple[str, bytes]:
    return "traceparent", f"00-{trace:032x}-{trace:016x}-01".encode()


def test_outcomes_name_the_trace_of_their_batch_and_that_names_those_of_its_records(
    stream, tiny_bundle
):
    count = 2 * MOST_LINKS
    sample = {"id": "secret-id", "provider": "secret-provider"}
    samples = [
        Sent(json.dumps(sample | {"completion": f"{i} clips"}).encode(), headers=[sent_in(i + 1)])
        for i in range(count)
    ]
    bad = Sent(b"secret", headers=[sent_in(count + 1), ("traceparent", b"none")])
    send(stream.broker, stream.samples, [bad, *samples])
    kept = InMemorySpanExporter()
    with sending(kept, ratio=1.0), running(stream.settings(tiny_bundle)):
        valued = read(stream.broker, stream.valuations, count)
        (letter,) = read(stream.broker, stream.dead_letters, 1)
    batches = {
        format_span_id(span.context.span_id): span
        for span in kept.get_finished_spans()
        if span.kind is SpanKind.CONSUMER
    }
    linked = {link.context.trace_id for batch in batches.values() for link in batch.links}
    assert linked <= set(range(1, count + 2))
    assert all(len(batch.links) <= MOST_LINKS for batch in batches.values())
    assert linked
    committed = set()
    for record in (*valued, letter):
        # A dead letter has its source's own before it.
        _, trace_id, span_id, flags = dict(record.headers)["traceparent"].decode().split("-")
        batch = batches[span_id]
        committed.add(span_id)
        assert trace_id == format_trace_id(batch.context.trace_id)
        assert int(flags, 16) & TraceFlags.SAMPLED
        parts = [s for s in kept.get_finished_spans() if s.parent == batch.context]
        assert {part.name for part in parts} == {"score", "commit"}
        score = next(part for part in parts if part.name == "score")
        stages = [s.name for s in kept.get_finished_spans() if s.parent == score.context]
        # The first alone where its texts were valued for a batch that a rebalance spoilt.
        assert stages in (STAGES, STAGES[:1])
    assert STAGES[-1] in {span.name for span in kept.get_finished_spans()}
    # A batch that a rebalance spoils has a trace too, and no outcome that names it.
    counts = [batches[one].attributes["messaging.batch.message_count"] for one in committed]
    assert sum(counts) == count + 1
    assert list(letter.headers[: len(bad.headers)]) == list(bad.headers)
    assert "secret" not in "".join(span.to_json() for span in kept.get_finished_spans())
