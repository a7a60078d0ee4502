"""Engines for tests, and how to wait until samples have come to a stage."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from alinfik.server.batching import Priority
from alinfik.server.bundle import load_bundle
from alinfik.server.call import Outcome
from alinfik.server.engine import Engine
from alinfik.server.metrics import Metrics
from alinfik.server.settings import ServerSettings
from alinfik.server.valuation import Estimate
from alinfik.v1 import Sample

CLIPS = Sample(id="clips", provider="p", prompt="How many?", completion="72 clips")


INTERACTIVE = {"priority": Priority.INTERACTIVE, "source": "grpc", "wait": False}


@asynccontextmanager
async def engine_of(
    bundle: Path, **flags: object
) -> AsyncIterator[tuple[Engine, CollectorRegistry]]:
    registry = CollectorRegistry()
    # One worker, since what waits behind one batch is what most of these tests are about.
    server_settings = ServerSettings(bundle=bundle, **{"workers": 1} | flags)
    async with Engine(load_bundle(bundle), server_settings, Metrics(registry)) as engine:
        yield engine, registry


async def score(
    engine: Engine,
    *samples: Sample,
    priority: Priority = Priority.INTERACTIVE,
    wait: bool = False,
    deadline: float | None = None,
) -> list[Outcome]:
    scored = await engine.score(
        samples, priority=priority, source="grpc", wait=wait, deadline=deadline
    )
    return scored.outcomes


def texts_of(count: int) -> list[Sample]:
    """Samples of as many texts, since one text is valued once."""
    return [Sample(id=str(n), completion=f"{n} clips") for n in range(count)]


async def in_model(registry: CollectorRegistry) -> None:
    """Wait until a batch is in the model."""
    while registry.get_sample_value("alinfik_workers_busy") != 1:
        await asyncio.sleep(0.001)


async def queued(registry: CollectorRegistry, samples: int) -> None:
    """Wait until so many samples are queued, behind a batch that is in the model."""
    while registry.get_sample_value(
        "alinfik_queue_samples"
    ) != samples or not registry.get_sample_value("alinfik_queue_tokens"):
        await asyncio.sleep(0.001)


def values(outcomes: Sequence[Outcome]) -> list[list[float]]:
    return [list(outcome.columns[0]) for outcome in outcomes if isinstance(outcome, Estimate)]


def seen_by_model(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("alinfik_batch_samples_sum") or 0
