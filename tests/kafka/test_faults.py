"""What faults leave behind: nothing lost, nothing doubled, and a log that says what happened."""

import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
from structlog.testing import capture_logs

from tests.kafka.conftest import apache_kafka
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

pytestmark = pytest.mark.kafka


@contextmanager
def server_process(settings, log):
    """The real command; killed at the end unless it has ended by then."""
    flags = {
        "bundle": settings.bundle,
        "listen": "127.0.0.1:0",
        "metrics": "127.0.0.1:0",
        "kafka-bootstrap": settings.kafka_bootstrap,
        "kafka-input": settings.kafka_input,
        "kafka-output": settings.kafka_output,
        "kafka-dead-letters": settings.kafka_dead_letters,
        "kafka-group": settings.kafka_group,
        "kafka-instance": settings.kafka_instance,
    }
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "alinfik.server", *arguments], stdout=file, stderr=file
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_killed_and_stopped_servers_lose_and_double_nothing(stream, bundle, tmp_path):
    """SIGKILL in mid-stream, then SIGTERM in mid-stream, then a server that ends the work."""
    settings = stream.settings(bundle, kafka_instance="pod-0")
    log = tmp_path / "server.log"
    total = 12_000
    send(stream.broker, stream.samples, samples(total, stream.partitions))
    with server_process(settings, log) as server:
        done = len(read(stream.broker, stream.valuations, 1_000))
        server.kill()
        server.wait()
    with server_process(settings, log) as server:
        read(stream.broker, stream.valuations, done + 4_000)
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_SECONDS) == 0
    stopped_at = len(read(stream.broker, stream.valuations))
    with server_process(settings, log) as server:
        read(stream.broker, stream.valuations, total)
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_SECONDS) == 0
    assert done < stopped_at < total, "the faults came too late to prove anything"
    assert source_offsets(read(stream.broker, stream.valuations)) == {
        p: list(range(total // stream.partitions)) for p in range(stream.partitions)
    }
    assert "Traceback" not in log.read_text()


def test_a_broker_that_comes_late_and_goes_away_is_waited_for(bundle):
    broker = apache_kafka()
    stream = Stream(broker)
    total = 1_500
    with ExitStack() as started, capture_logs() as logs:
        with running(stream.settings(bundle)) as server:

            def wait_for_connected(value):
                deadline = Deadline(f"alinfik_kafka_connected {value}")
                while server.metric("alinfik_kafka_connected") != value:
                    deadline.check()

            wait_for_log(logs, broker.bootstrap)
            assert server.metric("alinfik_kafka_connected") == 0
            started.enter_context(broker)
            wait_for_log(logs, f"--create --topic {stream.valuations}")
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


def wait_for_log(logs, text):
    deadline = Deadline(f"{text!r} in the log")
    while not any(text in str(event) for event in logs):
        deadline.check(str(logs))
