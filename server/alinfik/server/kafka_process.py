"""The Kafka process: keeps a session with the brokers until the server tells it to stop.

A process of its own, since a client of Kafka in Python computes for each record as long as the
engine does: in the server it would have the interpreter half of the time, and calls would wait.
Comes in: settings and a pipe to the server. Goes out: nothing but what it says over the pipe; the
work is the session's. A broker that is not there, or goes away, is asked again.
"""

import gc
import logging
import os
import signal
import time
from multiprocessing.connection import Connection

import structlog
from kafka.errors import KafkaError

from alinfik.command import CommandError
from alinfik.server.kafka_link import Link
from alinfik.server.kafka_messages import FromProcess, ToProcess
from alinfik.server.kafka_report import report_logs, reported_metrics
from alinfik.server.kafka_session import Session
from alinfik.server.settings import ServerSettings

_log = structlog.get_logger()

# A broker that is starting is there within seconds; one that is not coming is asked four times a
# minute, which makes as many lines in the log.
_RETRY_SECONDS = 1.0, 15.0
# Of the process beside gRPC: where cores are short, those go first who wait for an answer. What
# nobody else wants of them it has all the same.
_NICENESS = 10
ALLOCATIONS = 10_000
"""Between two looks for garbage that counting references leaves: a record makes dozens of objects
and none of such garbage."""


def run(
    settings: ServerSettings, instance: str, connection: "Connection[FromProcess, ToProcess]"
) -> None:
    """Be the process: value the input topic's records until told to stop.

    Args:
        settings: brokers, topics and group.
        instance: names the transactions.
        connection: this process's end of the pipe.
    """
    # They go to all processes of a terminal or a service; it is the server that says when to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if settings.listen:
        os.nice(_NICENESS)
    gc.set_threshold(ALLOCATIONS)
    link = Link(connection)
    report_logs(link.tell)
    # kafka-python logs every try of a lost broker five times over; what matters of it comes as an
    # exception, and is said once by us.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    metrics = reported_metrics(link.tell)
    first, longest = _RETRY_SECONDS
    retry_seconds = first
    while not link.stopping.is_set():
        begun = time.monotonic()
        try:
            with Session(settings, instance, link, metrics) as session:
                _log.info("kafka connected", brokers=settings.kafka_bootstrap)
                session.run()
        except (KafkaError, CommandError) as error:
            _log.warning("kafka not connected", error=str(error), retry_seconds=retry_seconds)
        except Exception:  # noqa: BLE001 - a defect must end no stream, nor be silent
            _log.exception("kafka pipeline failed", retry_seconds=retry_seconds)
        if time.monotonic() - begun > longest:
            retry_seconds = first
        link.stopping.wait(retry_seconds)
        retry_seconds = min(2 * retry_seconds, longest)
