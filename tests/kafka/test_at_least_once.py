"""Without transactions: nothing is lost, and order breaks only where a batch is repeated."""

import itertools

import pytest

from alinfik.client.kafka import watch
from tests.kafka.streams import read, send, source_offsets
from tests.kafka.test_exactly_once import samples
from tests.kafka.test_faults import flags
from tests.server_process import running_server

pytestmark = pytest.mark.kafka


def test_a_killed_server_loses_nothing(stream, tiny_bundle):
    total = 6_000
    settings = stream.settings(tiny_bundle, kafka_instance="pod-0")
    options = *flags(settings), "--kafka-delivery=at_least_once"
    send(stream.broker, stream.samples, samples(total, stream.partitions))
    with running_server(tiny_bundle, *options) as server:
        killed_at = len(read(stream.broker, stream.valuations, 1_000))
        server.process.kill()
        server.process.wait()
    assert killed_at < total, "the kill came too late to prove anything"
    with running_server(tiny_bundle, *options, "--kafka-valuation-format=protobuf"):
        read(stream.broker, stream.valuations, total)
        unseen = set(range(total))
        for valuation in watch(
            bootstrap=stream.broker.bootstrap, topic=stream.valuations, from_beginning=True
        ):
            unseen.discard(int(valuation.sample_id))
            if not unseen:
                break
    for offsets in source_offsets(read(stream.broker, stream.valuations)).values():
        # What was sent again begins where the offsets committed last end.
        assert sorted(set(offsets)) == list(range(total // stream.partitions))
        assert sum(b != a + 1 for a, b in itertools.pairwise(offsets)) <= 1
