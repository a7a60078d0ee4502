"""What changes under a running group: offsets, topics, partitions, members, bundles."""

import asyncio
import json
import threading
from collections import defaultdict
from contextlib import suppress

import pytest
from kafka import TopicPartition
from kafka.errors import NoOffsetForPartitionError
from structlog.testing import capture_logs

from alinfik.server.bundle import load_bundle
from alinfik.server.kafka_io import open_consumer
from tests.kafka.streams import (
    WAIT_SECONDS,
    Deadline,
    Stream,
    read,
    running,
    send,
    source_offsets,
)
from tests.kafka.test_exactly_once import samples
from tests.kafka.test_faults import flags, wait_for_log
from tests.server_process import running_server
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.kafka


@pytest.fixture
def one(kafka):
    """A stream of one partition."""
    return Stream(kafka, partitions=1).create()


def delete_before(stream, offset):
    with stream.broker.admin() as admin:
        admin.delete_records({TopicPartition(stream.samples, 0): offset})


def wait_for_commit(server, stream):
    deadline = Deadline("lag of 0")
    while server.metric("alinfik_kafka_lag_records", topic=stream.samples, partition="0") != 0:
        deadline.check()


def lose_four(stream, bundle):
    """Five records are valued, and of the next ten the first four deleted."""
    send(stream.broker, stream.samples, samples(5, 1))
    with running(stream.settings(bundle)) as server:
        wait_for_commit(server, stream)
    send(stream.broker, stream.samples, samples(10, 1, start=5))
    delete_before(stream, 9)


def test_a_member_knows_its_partitions_before_it_joins(stream, tiny_bundle):
    """Else it joins once more when it hears of them, and what it has read meanwhile is refused."""
    consumer = open_consumer(stream.settings(tiny_bundle))
    known = consumer._coordinator._metadata_snapshot
    consumer.close()
    assert known == {stream.samples: {0, 1, 2}}


def test_records_deleted_before_their_turn_are_told_and_counted(one, tiny_bundle):
    lose_four(one, tiny_bundle)
    with capture_logs() as logs, running(one.settings(tiny_bundle)) as server:
        valued = read(one.broker, one.valuations, 11)
        assert server.metric("alinfik_kafka_skipped_records_total") == 4
    assert source_offsets(valued) == {0: [0, 1, 2, 3, 4, 9, 10, 11, 12, 13, 14]}
    (said,) = [event for event in logs if event["event"] == "kafka offset out of range"]
    assert said["partition"] == f"{one.samples}-0"
    assert (said["wanted"], said["offset"], said["skipped"]) == (5, 9, 4)


def test_latest_goes_on_with_what_comes_and_counts_the_rest(one, tiny_bundle):
    lose_four(one, tiny_bundle)
    with running(one.settings(tiny_bundle, kafka_offset_reset="latest")) as server:
        wait_for_commit(server, one)
        assert server.metric("alinfik_kafka_skipped_records_total") == 10
        send(one.broker, one.samples, samples(1, 1))
        valued = read(one.broker, one.valuations, 6)
    assert source_offsets(valued) == {0: [0, 1, 2, 3, 4, 15]}


def test_fail_values_nothing_until_a_person_has_chosen(one, tiny_bundle):
    send(one.broker, one.samples, samples(5, 1))
    settings = one.settings(tiny_bundle, kafka_offset_reset="fail")
    with capture_logs() as logs, running(settings) as server:
        wait_for_log(logs, f"group {one.name} has no offset for {one.samples}-0")
        deadline = Deadline("failures")
        while not server.metric("alinfik_kafka_failures_total"):
            deadline.check()
    assert read(one.broker, one.valuations) == []


def test_missing_topics_are_created_if_that_is_asked_for(kafka, tiny_bundle):
    stream = Stream(kafka, partitions=2)
    settings = stream.settings(tiny_bundle, kafka_create_topics=True, kafka_partitions=2)
    with running(settings) as server:
        deadline = Deadline("both partitions")
        while server.metric("alinfik_kafka_assigned_partitions") != 2:
            deadline.check()
        send(kafka, stream.samples, samples(10, 2))
        read(kafka, stream.valuations, 10)
    assert read(kafka, stream.dead_letters) == []


def test_partitions_added_to_a_running_stream_are_valued_from_their_first_record(one, tiny_bundle):
    with running(one.settings(tiny_bundle)):
        send(one.broker, one.samples, samples(5, 1))
        read(one.broker, one.valuations, 5)
        with one.broker.admin() as admin:
            admin.create_partitions({one.samples: 3})
        send(one.broker, one.samples, samples(30, 3))
        valued = read(one.broker, one.valuations, 35)
    assert {p: len(offsets) for p, offsets in source_offsets(valued).items()} == {
        0: 15,
        1: 10,
        2: 10,
    }


@pytest.mark.parametrize("instances", [("", ""), ("pod-0", "pod-1")], ids=["dynamic", "static"])
def test_a_server_that_is_told_to_stop_hands_its_partitions_over(stream, tiny_bundle, instances):
    """At once: a static member's session would hold them for ten seconds, and so might we."""
    leaving, staying = (stream.settings(tiny_bundle, kafka_instance=name) for name in instances)
    with running(staying) as server:

        def wait_for_partitions(condition):
            deadline = Deadline("partitions")
            while not condition(server.metric("alinfik_kafka_assigned_partitions")):
                deadline.check()

        wait_for_partitions(lambda n: n == 3)
        with running_server(tiny_bundle, *flags(leaving)):
            wait_for_partitions(lambda n: n < 3)
        wait_for_partitions(lambda n: n == 3)
        send(stream.broker, stream.samples, samples(30, stream.partitions))
        read(stream.broker, stream.valuations, 30)


def test_a_named_member_that_dies_halfway_through_a_rebalance_leaves_no_partition_to_nobody(
    stream, tiny_bundle
):
    """What it gave up is another's only after a second round, which it did not live to ask for.

    When it comes back, the broker gives it what it kept, and asks nobody else.
    """
    one, other = (stream.settings(tiny_bundle, kafka_instance=name) for name in ("pod-0", "pod-1"))
    dies = open_consumer(one)
    deadline = Deadline("all of it")
    while len(dies.assignment()) < stream.partitions:
        polled(dies)
        deadline.check()
    stays, done = open_consumer(other), threading.Event()
    polling = threading.Thread(target=lambda: [polled(stays) for _ in iter(done.is_set, True)])
    polling.start()
    try:
        deadline = Deadline("its part")
        while len(dies.assignment()) == stream.partitions:
            polled(dies)
            deadline.check()
        # No word to the group: it has a name.
        dies.close()
        comes_back = open_consumer(one)
        deadline = Deadline("every partition")
        while len(comes_back.assignment() | stays.assignment()) < stream.partitions:
            polled(comes_back)
            deadline.check()
        comes_back.leave()
    finally:
        done.set()
        polling.join()
        stays.leave()


def polled(consumer):
    """As the pipeline does, which then seeks."""
    consumer.must_join()
    with suppress(NoOffsetForPartitionError):
        consumer.poll(1000)


def test_a_batch_that_is_stuck_in_the_model_holds_no_rebalance_up(stream, tiny_bundle, monkeypatch):
    """Nor is its server expelled; what it drops is valued by whoever has the partition then."""
    total = 300
    send(stream.broker, stream.samples, samples(total, stream.partitions))
    settings = stream.settings(tiny_bundle)
    unstuck = threading.Event()
    with capture_logs() as logs, running(settings) as first, first.bundles.use() as engine:
        run = engine.warm.runtime.run
        monkeypatch.setattr(
            engine.warm.runtime, "run", lambda rows: unstuck.wait(WAIT_SECONDS) and run(rows)
        )
        with running(settings):
            wait_for_log(logs, "of a rebalance")
            unstuck.set()
            read(stream.broker, stream.valuations, total)
    assert source_offsets(read(stream.broker, stream.valuations)) == {
        p: list(range(total // stream.partitions)) for p in range(stream.partitions)
    }


def test_each_valuation_names_the_bundle_that_gave_it(stream, tiny_bundle, tmp_path):
    """A swap in mid-stream: a text has one value for each bundle, and its record says which."""
    other = load_bundle(write_tiny_bundle(tmp_path / "other", seed=1))
    with running(stream.settings(tiny_bundle)) as server:
        send(stream.broker, stream.samples, samples(900, stream.partitions))
        read(stream.broker, stream.valuations, 100)
        loading = asyncio.run_coroutine_threadsafe(server.bundles.load(other), server.loop)
        loading.result(WAIT_SECONDS)
        server.loop.call_soon_threadsafe(server.bundles.activate, other.id)
        deadline = Deadline("activation")
        while server.bundles.active_id != other.id:
            deadline.check()
        send(stream.broker, stream.samples, samples(900, stream.partitions))
        valued = read(stream.broker, stream.valuations, 1800)
    values = defaultdict(set)
    for record in valued:
        valuation = json.loads(record.value)
        assert dict(record.headers)["alinfik-bundle-id"].decode() == valuation["bundle_id"]
        given = valuation["values"][0]["value"]
        values[valuation["bundle_id"]].add((valuation["sample_id"], given))
    old, new = values.pop(load_bundle(tiny_bundle).id), values.pop(other.id)
    assert not values
    assert len(dict(old)) == len(old)
    assert len(dict(new)) == len(new)
    assert not old & new
