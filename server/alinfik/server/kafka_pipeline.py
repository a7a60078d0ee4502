"""The Kafka front door: a thread that keeps a session with the brokers until it is told to stop.

Comes in: settings and a registry. Goes out: nothing but metrics and log lines; the work is the
session's. A broker that is not there, or goes away, is asked again; gRPC never notices.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Event, Thread

import structlog
from kafka.errors import KafkaError

from alinfik.command import CommandError
from alinfik.server.kafka_scoring import score_from_thread
from alinfik.server.kafka_session import Session
from alinfik.server.metrics import KafkaMetrics
from alinfik.server.records import DeadLetter
from alinfik.server.registry import Registry
from alinfik.server.settings import ServerSettings
from alinfik.v1 import Sample, Valuation

_log = structlog.get_logger()

# A broker that is starting is there within seconds; one that is not coming is asked four times a
# minute, which makes as many lines in the log.
_RETRY_SECONDS = 1.0, 15.0
# Of the time to stop, how much scoring may take; the rest is for the commit and for leaving.
_SCORING_SHARE = 0.6


class KafkaPipeline:
    """Values the input topic's records from ``start`` to ``stop``.

    Args:
        settings: brokers, topics and group.
        registry: values the samples, after interactive ones.
        metrics: where to count.
        loop: the event loop that engines run on; it must go on running until ``stop`` is over.
    """

    def __init__(
        self,
        settings: ServerSettings,
        registry: Registry,
        metrics: KafkaMetrics,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._score_on_loop = score_from_thread(registry, loop)
        self._scoring: set[Future[list[Valuation | DeadLetter]]] = set()
        self._stopping = Event()
        # Names the transactions: of two servers with one name, the younger fences the elder.
        self._instance = settings.kafka_instance or secrets.token_hex(8)
        self._thread = Thread(target=self._run, name="kafka", daemon=True)

    def start(self) -> None:
        """Begin; returns at once, whether or not there is a broker."""
        # kafka-python logs every try of a lost broker five times over; what matters of it comes as
        # an exception, and is said once by us.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Commit what is scored in time, abort the rest, leave the group.

        Blocks, so an event loop calls it by ``asyncio.to_thread``.

        Returns:
            Whether that was done in time. If not, the broker aborts what is open when it times out.
        """
        ends = time.monotonic() + timeout_seconds
        self._stopping.set()
        self._thread.join(timeout_seconds * _SCORING_SHARE)
        for scoring in set(self._scoring):
            scoring.cancel()
        self._thread.join(max(0.0, ends - time.monotonic()))
        return not self._thread.is_alive()

    def _score(self, samples: Sequence[Sample]) -> Future[list[Valuation | DeadLetter]]:
        scoring = self._score_on_loop(samples)
        self._scoring.add(scoring)
        scoring.add_done_callback(self._scoring.discard)
        return scoring

    def _run(self) -> None:
        first, longest = _RETRY_SECONDS
        retry_seconds = first
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                with Session(self._settings, self._instance, self._score, self._metrics) as session:
                    _log.info("kafka connected", brokers=self._settings.kafka_bootstrap)
                    session.run(self._stopping)
            except (KafkaError, CommandError) as error:
                _log.warning("kafka not connected", error=str(error), retry_seconds=retry_seconds)
            except Exception:  # noqa: BLE001 - a defect must not take gRPC along, nor be silent
                _log.exception("kafka pipeline failed", retry_seconds=retry_seconds)
            if time.monotonic() - begun > longest:
                retry_seconds = first
            self._stopping.wait(retry_seconds)
            retry_seconds = min(2 * retry_seconds, longest)
