"""The Kafka front door: keeps the Kafka process alive and gives its batches to the engine.

Comes in: settings and a registry. Goes out: metrics, log lines, and a process that has ended. What
the process says decides what is done; gRPC never notices whether it lives.
"""

import asyncio
import multiprocessing
import secrets
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Event, Lock, Thread

import structlog

from alinfik.server.kafka_messages import Finished, FromProcess, Score, Stop, ToProcess
from alinfik.server.kafka_process import run
from alinfik.server.kafka_report import show
from alinfik.server.kafka_scoring import BatchScoring
from alinfik.server.metrics import KafkaMetrics
from alinfik.server.registry import Registry
from alinfik.server.settings import ServerSettings

_log = structlog.get_logger()

# Not forked: a fork of a process with threads may hang.
_SPAWN = multiprocessing.get_context("spawn")
# Between two lives of a process that ends by itself, as for want of memory.
_RESTART_SECONDS = 1.0
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
        self._loop = loop
        self._registry = registry
        self._stopping = Event()
        # Names the transactions: of two servers with one name, the younger fences the elder.
        self._instance = settings.kafka_instance or secrets.token_hex(8)
        self._life: _Life | None = None
        self._thread = Thread(target=self._run, name="kafka", daemon=True)

    def start(self) -> None:
        """Begin; returns at once, whether or not there is a broker."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Commit what is scored in time, abort the rest, leave the group.

        Blocks, so an event loop calls it by ``asyncio.to_thread``.

        Returns:
            Whether that was done in time. If not, the broker aborts what is open when it times out.
        """
        ends = time.monotonic() + timeout_seconds
        self._stopping.set()
        if life := self._life:
            life.tell(Stop())
        self._thread.join(timeout_seconds * _SCORING_SHARE)
        if life := self._life:
            self._loop.call_soon_threadsafe(life.scoring.give_up)
        self._thread.join(max(0.0, ends - time.monotonic()))
        in_time = not self._thread.is_alive()
        if (life := self._life) and not in_time:
            life.process.kill()
            self._thread.join()
        return in_time

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._live()
            except Exception:  # noqa: BLE001 - a defect, or no memory, must end no stream, nor be silent
                _log.exception("kafka pipeline failed")
            if not self._stopping.is_set():
                self._metrics.lost()
                exit_code = self._life.process.exitcode if self._life else None
                _log.error("kafka process ended", exit_code=exit_code)
                self._stopping.wait(_RESTART_SECONDS)

    def _live(self) -> None:
        self._life = None
        self._life = life = _Life(self._settings, self._registry, self._instance)
        if self._stopping.is_set():
            # Since before there was anybody to be told.
            life.tell(Stop())
        life.listen(self._loop, self._metrics)


class _Life:
    """One process, the pipe to it, and the batches that it has given us.

    Args:
        settings: as for ``KafkaPipeline``.
        registry: as for ``KafkaPipeline``.
        instance: names the transactions.
    """

    def __init__(self, settings: ServerSettings, registry: Registry, instance: str) -> None:
        self.scoring = BatchScoring(settings, registry, self.tell)
        self._sending = Lock()
        self._connection: Connection[ToProcess, FromProcess]
        self._connection, theirs = _SPAWN.Pipe()
        # The command's own class of settings is not to be found in another process.
        plain = ServerSettings.model_construct(**dict(settings))
        self.process: SpawnProcess = _SPAWN.Process(
            target=run, args=(plain, instance, theirs), name="kafka", daemon=True
        )
        self.process.start()
        theirs.close()

    def tell(self, message: ToProcess) -> None:
        """Send a message to the process, if it lives. Thread-safe."""
        with self._sending, suppress(OSError):
            self._connection.send(message)

    def listen(self, loop: asyncio.AbstractEventLoop, metrics: KafkaMetrics) -> None:
        """Do what the process says until it has ended."""
        try:
            with suppress(EOFError, OSError):
                while True:
                    match message := self._connection.recv():
                        case Score():
                            loop.call_soon_threadsafe(self.scoring.begin, message)
                        case Finished():
                            loop.call_soon_threadsafe(self.scoring.finish, message)
                        case _:
                            show(message, metrics)
        finally:
            # It ends, if it has not, once nobody listens.
            with self._sending:
                self._connection.close()
            self.process.join()
            loop.call_soon_threadsafe(self.scoring.drop)
