"""The whole server: brings its parts up in order, and down again.

Comes in: settings. Goes out: a running server, until SIGTERM or SIGINT. Up: bundles verified,
metrics and gRPC listening, models warm, the newest bundle in service, Kafka. Down: Kafka and gRPC
drain side by side, then the engines stop.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from alinfik.server.bundle import load_bundles
from alinfik.server.endpoint import serve_metrics
from alinfik.server.front import Front, NoFront
from alinfik.server.logs import configure_logs
from alinfik.server.metrics import KafkaMetrics, Metrics
from alinfik.server.registry import Registry
from alinfik.server.settings import ServerSettings
from alinfik.server.tracing import tracing
from alinfik.server.watch import BundleWatch

_log = structlog.get_logger()

# Allocations between two looks for garbage that counting references leaves. A request makes
# thousands of objects and hardly any such garbage; with Python's own 700, looking takes a third of
# what a cheap proxy's sample does.
ALLOCATIONS = 10_000
# How long a thread that computes keeps the interpreter from one that waits for it. The event loop
# waits after every look at its sockets, and a thread that makes estimates would keep it for
# Python's own 5 ms each time: more than all that a call needs otherwise.
SWITCH_SECONDS = 0.0005


async def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the draining short.

    Raises:
        CommandError: the bundle does not verify or load, an address cannot be listened on, or
            traces are asked for and OpenTelemetry is not installed.
    """
    configure_logs(settings.log_format)
    gc.set_threshold(ALLOCATIONS)
    sys.setswitchinterval(SWITCH_SECONDS)
    with tracing(settings):
        server = asyncio.create_task(_serve_forever(settings))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.cancel)
        with suppress(asyncio.CancelledError):
            await server
    _log.info("stopped")


@dataclass(frozen=True)
class Running:
    """A server that is ready, and where it listens."""

    grpc: str
    metrics: str
    bundles: Registry
    registry: CollectorRegistry


@asynccontextmanager
async def running(settings: ServerSettings) -> AsyncGenerator[Running, None]:
    """Bring a server up; drain it and take it down at the end.

    Raises:
        CommandError: as ``serve``.
    """
    bundles, shadow = load_bundles(settings.bundle, settings.shadow)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    ProcessCollector(registry=registry)
    loaded = Registry(settings, metrics)
    loaded.starting = True
    front = Front(settings, loaded, metrics) if settings.listen else NoFront(metrics)
    with serve_metrics(settings.metrics, registry) as metrics_address:
        grpc_address = await front.listen()
        try:
            for bundle in bundles:
                await loaded.load(bundle)
            loaded.activate(bundles[0].id)
            if shadow:
                await loaded.load(shadow)
                loaded.shadow(shadow.id)
            async with _watching(settings, loaded):
                loaded.starting = False
                stop_kafka = _start_kafka(settings, loaded, metrics)
                await front.open()
                try:
                    yield Running(grpc_address, metrics_address, loaded, registry)
                finally:
                    seconds = settings.drain_seconds
                    _log.info("draining", drain_seconds=seconds)
                    await front.retire(settings.drain_delay_seconds)
                    await asyncio.gather(front.close(seconds), stop_kafka(seconds))
        finally:
            await loaded.stop()
            await front.close(0)


@asynccontextmanager
async def _watching(settings: ServerSettings, loaded: Registry) -> AsyncGenerator[None, None]:
    """Follow the bundle root meanwhile, if that is asked for; its newest bundle comes first."""
    if not settings.watch_seconds or settings.bundle_root is None:
        yield
        return
    watch = BundleWatch(loaded, settings.bundle_root, settings.watch_seconds)
    # Before anything is valued: the bundles of the command line are as old as the command.
    await watch.look()
    watching = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        watching.cancel()


def _start_kafka(
    settings: ServerSettings, loaded: Registry, metrics: Metrics
) -> Callable[[float], Awaitable[None]]:
    """Start the pipeline if a broker is named; returns what stops it within so many seconds."""

    async def nothing(_seconds: float) -> None:
        pass

    if not settings.kafka_bootstrap:
        return nothing
    # Not at the top: without a broker, no Kafka client is loaded.
    from alinfik.server.kafka_pipeline import KafkaPipeline
    from alinfik.server.kafka_security import connection

    # Files that will not do are the user's to mend now; a broker may yet come.
    connection(settings)
    kafka_metrics = KafkaMetrics(metrics)
    pipeline = KafkaPipeline(settings, loaded, kafka_metrics, asyncio.get_running_loop())
    pipeline.start()

    async def stop(seconds: float) -> None:
        if not await asyncio.to_thread(pipeline.stop, seconds):
            _log.warning("kafka did not stop in time; the broker aborts what is open")

    return stop


async def _serve_forever(settings: ServerSettings) -> None:
    async with running(settings) as server:
        with server.bundles.use() as engine:
            _log.info(
                "ready",
                grpc=server.grpc or "none",
                metrics=server.metrics,
                kafka=settings.kafka_bootstrap or "none",
                bundle_id=engine.bundle.id,
                targets=engine.bundle.targets,
                device=engine.warm.runtime.device,
                precision=engine.warm.precision,
                workers=engine.warm.workers,
                batch_tokens=engine.warm.batch_tokens,
            )
        await asyncio.Event().wait()
