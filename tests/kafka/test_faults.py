"""What faults leave behind: nothing lost, nothing doubled, and a log that says what happened."""

import itertools
import json
import multiprocessing
import signal
import threading
from contextlib import ExitStack

import psutil
import pytest
from structlog.testing import capture_logs

from alinfik.server import kafka_pipeline, kafka_report
from alinfik.server.kafka_io import NotThereError, open_consumer, open_producer
from alinfik.server.kafka_messages import Measured
from tests.kafka.conftest import apache_kafka
from tests.kafka.streams import (
    WAIT_SECONDS,
    Deadline,
    Sent,
    Stream,
    read,
    running,
    send,
    source_offsets,
)
from tests.kafka.test_exactly_once import samples
from tests.server_process import running_server

pytestmark = pytest.mark.kafka


def flags(settings):
    names = ("bootstrap", "input", "output", "dead_letters", "group", "instance")
    return [
        f"--kafka-{name.replace('_', '-')}={getattr(settings, f'kafka_{name}')}" for name in names
    ]


def test_killed_and_stopped_servers_lose_and_double_nothing(stream, tiny_bundle):
    """SIGKILL in mid-stream, then SIGTERM in mid-stream, then a server that ends the work."""
    settings = stream.settings(tiny_bundle, kafka_instance="pod-0")
    # Some 200 transactions, so that however quick the machine is, both find it in mid-stream.
    told = [*flags(settings), "--kafka-batch-records=64"]
    total = 12_000
    send(stream.broker, stream.samples, samples(total, stream.partitions))
    with running_server(tiny_bundle, *told) as server:
        killed_at = len(read(stream.broker, stream.valuations, 1_000))
        server.process.kill()
        server.process.wait()
    with running_server(tiny_bundle, *told):
        read(stream.broker, stream.valuations, killed_at + 4_000)
    stopped_at = len(read(stream.broker, stream.valuations))
    with running_server(tiny_bundle, *told):
        read(stream.broker, stream.valuations, total)
    assert killed_at < stopped_at < total, "the faults came too late to prove anything"
    assert source_offsets(read(stream.broker, stream.valuations)) == {
        p: list(range(total // stream.partitions)) for p in range(stream.partitions)
    }


def test_the_kafka_process_is_started_again_and_loses_and_doubles_nothing(stream, tiny_bundle):
    settings = stream.settings(tiny_bundle, kafka_instance="pod-0", kafka_batch_records=64)
    total = 12_000
    send(stream.broker, stream.samples, samples(total, stream.partitions))
    with capture_logs() as logs, running(settings) as server:
        read(stream.broker, stream.valuations, 1_000)
        (process,) = (p for p in multiprocessing.active_children() if p.name == "kafka")
        process.kill()
        wait_for_log(logs, "kafka process ended")
        assert server.metric("alinfik_kafka_connected") == 0
        killed_at = len(read(stream.broker, stream.valuations))
        read(stream.broker, stream.valuations, total)
        transactions = server.metric("alinfik_kafka_transactions_total", outcome="committed")
    assert killed_at < total, "the fault came too late to prove anything"
    assert transactions >= total / 64, "what the first process counted is forgotten"
    assert source_offsets(read(stream.broker, stream.valuations)) == {
        p: list(range(total // stream.partitions)) for p in range(stream.partitions)
    }


def test_a_metric_that_cannot_be_shown_costs_a_process_and_no_record(
    stream, tiny_bundle, monkeypatch
):
    shown = itertools.count()

    def show(message, metrics):
        if isinstance(message, Measured) and next(shown) == 20:
            raise LookupError("a metric that the server does not have")
        kafka_report.show(message, metrics)

    monkeypatch.setattr(kafka_pipeline, "show", show)
    settings = stream.settings(tiny_bundle, kafka_instance="pod-0", kafka_batch_records=64)
    send(stream.broker, stream.samples, samples(3_000, stream.partitions))
    with capture_logs() as logs, running(settings):
        wait_for_log(logs, "kafka process ended")
        read(stream.broker, stream.valuations, 3_000)
    assert "kafka pipeline failed" in [entry["event"] for entry in logs]
    assert source_offsets(read(stream.broker, stream.valuations)) == {
        p: list(range(1_000)) for p in range(stream.partitions)
    }


def test_a_process_that_cannot_be_started_is_tried_again(stream, tiny_bundle, monkeypatch):
    lives = kafka_pipeline._Life

    def no_memory(*_):
        monkeypatch.setattr(kafka_pipeline, "_Life", lives)
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(kafka_pipeline, "_Life", no_memory)
    send(stream.broker, stream.samples, samples(3, stream.partitions))
    with capture_logs() as logs, running(stream.settings(tiny_bundle)):
        read(stream.broker, stream.valuations, 3)
    assert "kafka pipeline failed" in [entry["event"] for entry in logs]


def test_the_kafka_process_gives_way_to_calls_and_ends_with_a_server_that_is_killed(
    stream, tiny_bundle
):
    send(stream.broker, stream.samples, samples(3, stream.partitions))
    with running_server(tiny_bundle, *flags(stream.settings(tiny_bundle))) as server:
        read(stream.broker, stream.valuations, 3)
        ours = psutil.Process(server.process.pid)
        children = ours.children()
        assert max(child.nice() for child in children) > ours.nice()
        server.process.kill()
        _, alive = psutil.wait_procs(children, WAIT_SECONDS)
    assert not alive


def test_records_of_a_partition_that_the_input_gained_are_valued_too(stream, tiny_bundle):
    with running(stream.settings(tiny_bundle)):
        send(stream.broker, stream.samples, samples(3, stream.partitions))
        read(stream.broker, stream.valuations, 3)
        with stream.broker.admin() as admin:
            admin.create_partitions({stream.samples: 4})
        send(stream.broker, stream.samples, samples(8, partitions=4, start=3))
        read(stream.broker, stream.valuations, 11)
    assert source_offsets(read(stream.broker, stream.valuations)) == {
        p: list(range(2 if p == 3 else 3)) for p in range(4)
    }


def test_a_fenced_transaction_is_done_again_by_a_new_producer(stream, tiny_bundle):
    """Its batch fails with the records sent, and is read and sent again."""
    settings = stream.settings(tiny_bundle, kafka_instance="twin")
    total = 3_000
    send(stream.broker, stream.samples, samples(total // 2, stream.partitions))
    with capture_logs() as logs, running(settings) as server:
        read(stream.broker, stream.valuations, 1)
        open_producer(settings, "twin").abandon()
        send(stream.broker, stream.samples, samples(total // 2, stream.partitions, total // 2))
        read(stream.broker, stream.valuations, total)
        assert server.metric("alinfik_kafka_transactions_total", outcome="aborted") == 1
    assert any("has this --kafka-instance" in str(event) for event in logs), logs
    assert source_offsets(read(stream.broker, stream.valuations)) == {
        p: list(range(total // stream.partitions)) for p in range(stream.partitions)
    }


def test_a_sample_that_breaks_the_model_takes_no_other_along(stream, failing_bundle):
    good, bad = "She sold 48 clips.", "A text of friends."
    texts = [good, bad, good, good, bad, bad, good]
    sent = [
        Sent(json.dumps({"completion": f"{text} {place}"}).encode())
        for place, text in enumerate(texts)
    ]
    send(stream.broker, stream.samples, sent)
    with running(stream.settings(failing_bundle)):
        valued = read(stream.broker, stream.valuations, 4)
        letters = read(stream.broker, stream.dead_letters, 3)
    assert source_offsets(valued) == {0: [0, 2, 3, 6]}
    assert source_offsets(letters) == {0: [1, 4, 5]}
    assert {dict(letter.headers)["alinfik-reason"] for letter in letters} == {b"model_failed"}


def test_a_batch_of_nothing_but_poison_passes(stream, failing_bundle):
    """The model fails on every sample of it, and on none of the plain texts that it is tried on."""
    sent = [Sent(json.dumps({"completion": f"A text of friends {n}"}).encode()) for n in range(5)]
    send(stream.broker, stream.samples, sent)
    with running(stream.settings(failing_bundle)):
        letters = read(stream.broker, stream.dead_letters, 5)
    assert source_offsets(letters) == {0: list(range(5))}
    assert {dict(letter.headers)["alinfik-reason"] for letter in letters} == {b"model_failed"}


def test_a_broken_model_delays_records_and_condemns_none(stream, tiny_bundle, monkeypatch):
    send(stream.broker, stream.samples, [*samples(30, stream.partitions), Sent(b"no JSON")])

    def broken(*_):
        raise RuntimeError("out of memory")

    with capture_logs() as logs, running(stream.settings(tiny_bundle)) as server:
        with server.bundles.use() as engine, monkeypatch.context() as patch:
            patch.setattr(engine.warm.runtime, "run", broken)
            wait_for_log(logs, "reading again from what is committed")
        read(stream.broker, stream.valuations, 30)
    assert len(read(stream.broker, stream.dead_letters)) == 1


def test_a_broker_that_comes_late_and_goes_away_is_waited_for(tiny_bundle):
    broker = apache_kafka()
    stream = Stream(broker)
    total = 1_500
    with ExitStack() as started, capture_logs() as logs:
        with running(stream.settings(tiny_bundle)) as server:

            def wait_for_connected(value):
                deadline = Deadline(f"alinfik_kafka_connected {value}")
                while server.metric("alinfik_kafka_connected") != value:
                    deadline.check()

            wait_for_log(logs, f"no broker answers at {broker.bootstrap}")
            assert server.metric("alinfik_kafka_connected") == 0
            started.enter_context(broker)
            wait_for_log(logs, f"has no topic {stream.samples}, {stream.valuations}, ")
            stream.create()
            wait_for_connected(1)
            send(broker, stream.samples, samples(total, stream.partitions))
            read(broker, stream.valuations, 500)
            broker.stop(signal.SIGKILL)
            broker.start()
            read(broker, stream.valuations, total)
            broker.stop()
            wait_for_connected(0)
            broker.start()
            wait_for_connected(1)
            send(broker, stream.samples, samples(300, stream.partitions, total))
            total += 300
            read(broker, stream.valuations, total)
        everything = read(broker, stream.valuations)
    assert source_offsets(everything) == {
        p: list(range(total // stream.partitions)) for p in range(stream.partitions)
    }
    assert all(event["log_level"] != "error" for event in logs), logs


def test_brokers_that_never_come_cost_no_threads(tiny_bundle):
    stream = Stream(Nowhere())
    settings = stream.settings(tiny_bundle)
    for _ in range(2):
        with pytest.raises(NotThereError, match=r"no broker answers at 127\.0\.0\.1:1$"):
            open_consumer(settings)
        with pytest.raises(NotThereError):
            open_producer(settings, "pod-0")
    assert not [thread for thread in threading.enumerate() if stream.name in thread.name]


class Nowhere:
    bootstrap = "127.0.0.1:1"


def wait_for_log(logs, text):
    deadline = Deadline(f"{text!r} in the log")
    while not any(text in str(event) for event in logs):
        deadline.check(str(logs))
