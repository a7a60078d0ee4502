"""The scoring engine: one queue, one model, any number of callers.

Comes in: samples, from gRPC and Kafka alike. Goes out: a valuation or a rejection for each. A
sample is checked, admitted, tokenised in a thread, queued, batched the moment a worker is free, run
in that worker's thread, and mapped to its valuation. All but the tokenizer and the model runs on
one event loop, so nothing here locks. Knows nothing of gRPC and Kafka.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self

import numpy as np
import structlog

from alinfik.server.batching import BatchQueue, Priority
from alinfik.server.bound import Bound
from alinfik.server.bundle import Bundle, BundleError, Precision
from alinfik.server.call import Call, Entry, Outcome
from alinfik.server.device import Device, find_device
from alinfik.server.encode import Encoded, Encoder
from alinfik.server.metrics import Metrics
from alinfik.server.rejection import Rejection, rejections
from alinfik.server.runtime import Runtime
from alinfik.server.settings import ServerSettings
from alinfik.server.tally import Source, Tally
from alinfik.server.valuation import Valuer
from alinfik.v1 import Sample

__all__ = [
    "Engine",
    "ModelError",
    "NotRunningError",
    "Outcome",
    "Priority",
    "QueueFull",
    "Rejection",
]

# Throughput on a CPU is flat from about a thousand tokens a batch; a GPU wants many more in flight.
BATCH_TOKENS: dict[Device, int] = {"cpu": 2048, "cuda": 32_768}
# A refused caller is told to come back within these seconds, whatever the estimate says.
_RETRY_SECONDS = 0.05, 30.0

_log = structlog.get_logger()


class QueueFull(Exception):  # noqa: N818 - the name that asyncio's and queue's users know
    """The queue has no room and the caller would not wait; nothing was done."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("the queue is full")
        self.retry_after_seconds = retry_after_seconds


class NotRunningError(Exception):
    """The engine takes no samples: it has not started, or it has stopped."""


class ModelError(Exception):
    """The model failed; the log has the traceback under ``error_id``."""

    def __init__(self, error_id: str) -> None:
        super().__init__(f"the model failed; the server's log says why under error id {error_id}")
        self.error_id = error_id


class Engine:
    """Values samples with one bundle. An asynchronous context manager, or ``start`` and ``stop``.

    Args:
        bundle: a verified bundle.
        settings: workers, batch size and bounds.
        metrics: where to count.

    Once started, ``device`` and ``precision`` say where and how the model runs, and
    ``batch_tokens`` how large a batch is.
    """

    def __init__(self, bundle: Bundle, settings: ServerSettings, metrics: Metrics) -> None:
        self.bundle = bundle
        self.device: Device = "cpu"
        self.precision: Precision = "float32"
        self.batch_tokens = 0
        self._settings = settings
        self._metrics = metrics
        self._tally = Tally(metrics, bundle)
        self._valuer = Valuer(bundle)
        self._queue: BatchQueue[Entry] = BatchQueue()
        self._queued = asyncio.Event()
        self._samples = {priority: Bound(settings.queue_samples) for priority in Priority}
        self._tokens = {priority: Bound(settings.queue_tokens) for priority in Priority}
        # A small request must not wait until a large one is tokenised.
        self._tokenising = ThreadPoolExecutor(2, "tokenise")
        self._running = ThreadPoolExecutor(settings.workers, "model")
        self._workers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._tokens_per_second = 1.0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Load the tokenizer and the model, warm the model up, and begin to take samples.

        Raises:
            BundleError: the tokenizer or the model does not load.
        """
        loop = asyncio.get_running_loop()
        self._encoder = await loop.run_in_executor(self._tokenising, Encoder, self.bundle)
        runtimes = [
            await loop.run_in_executor(self._running, self._load)
            for _ in range(self._settings.workers)
        ]
        self._workers = [asyncio.create_task(self._work(runtime)) for runtime in runtimes]

    async def stop(self) -> None:
        """Refuse what is queued and what comes, and wait for the batches that are in the model."""
        workers, self._workers = self._workers, []
        self._stopping = True
        self._queued.set()
        await asyncio.gather(*workers)
        while batch := self._queue.take(self.batch_tokens):
            self._release(batch)
            for entry in batch:
                entry.call.fail(NotRunningError("the server is stopping"))
        self._tokenising.shutdown(wait=False)
        self._running.shutdown(wait=False)

    async def score(
        self,
        samples: Sequence[Sample],
        *,
        priority: Priority,
        source: Source,
        wait: bool,
        deadline: float | None = None,
    ) -> list[Outcome]:
        """Value ``samples``; one outcome each, in their order.

        Args:
            samples: any number.
            priority: whom they go before.
            source: which door they came by; a metric's label.
            wait: wait for room in the queue, first come first served, instead of failing.
            deadline: time on the event loop's clock past which the outcomes are of no use.

        Raises:
            QueueFull: there is no room, and ``wait`` is false.
            TimeoutError: the deadline passed. What had not reached the model never will; so it is
                when the call is cancelled.
            ModelError: the model failed.
            NotRunningError: the engine is not running.
        """
        if not self._workers:
            raise NotRunningError("the engine is not running")
        outcomes: list[Outcome | None] = [next(rejections(sample), None) for sample in samples]
        places = [place for place, outcome in enumerate(outcomes) if outcome is None]
        try:
            async with asyncio.timeout_at(deadline):
                valued = await self._value([samples[p] for p in places], priority, wait)
            for place, outcome in zip(places, valued, strict=True):
                outcomes[place] = outcome
        finally:
            self._tally.outcomes(source, outcomes)
        return [outcome for outcome in outcomes if outcome is not None]

    async def _value(
        self, samples: Sequence[Sample], priority: Priority, wait: bool
    ) -> list[Outcome]:
        if not samples:
            return []
        with ExitStack() as undo:
            # Room for the samples before they are tokenised, so that the tokenizer's own queue is
            # bounded too; room for their tokens once these are counted.
            await self._admit(self._samples[priority], len(samples), wait)
            undo.callback(self._samples[priority].release, len(samples))
            loop = asyncio.get_running_loop()
            encoded = await loop.run_in_executor(self._tokenising, self._encode, samples)
            await self._admit(self._tokens[priority], sum(map(len, encoded)), wait)
            undo.pop_all()
        call = Call(samples, encoded, priority)
        for entry in call.entries:
            self._queue.push(entry, priority)
        self._queued.set()
        self._show_queue()
        try:
            return await call.outcomes()
        finally:
            # The caller has gone, or part of the call failed: the rest must not reach the model.
            if call.missing:
                self._release([e for e in call.entries if self._queue.discard(e, priority)])

    def _encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        with self._metrics.tokenise_seconds.time():
            return self._encoder.encode(samples)

    async def _admit(self, bound: Bound, units: int, wait: bool) -> None:
        if wait:
            await bound.acquire(units)
        elif not bound.try_acquire(units):
            least, most = _RETRY_SECONDS
            queued = sum(held.held for held in self._tokens.values())
            raise QueueFull(min(max(queued / self._tokens_per_second, least), most))
        if self._stopping:
            # No worker would ever take it.
            bound.release(units)
            raise NotRunningError("the server is stopping")

    def _release(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._samples[entry.call.priority].release(1)
            self._tokens[entry.call.priority].release(entry.length)
        self._show_queue()

    async def _work(self, runtime: Runtime) -> None:
        """Run batches until the engine stops."""
        loop = asyncio.get_running_loop()
        while True:
            await self._queued.wait()
            if self._stopping:
                return
            batch = self._queue.take(self.batch_tokens)
            if not self._queue:
                self._queued.clear()
            if not batch:
                continue
            self._release(batch)
            try:
                with self._metrics.workers_busy.track_inprogress():
                    outcomes = await loop.run_in_executor(self._running, self._run, runtime, batch)
            except Exception:  # noqa: BLE001 - whatever it is, the callers hear and the worker lives
                error_id = uuid.uuid4().hex[:12]
                _log.exception("the model failed", error_id=error_id, samples=len(batch))
                for call in {entry.call for entry in batch}:
                    call.fail(ModelError(error_id))
            else:
                for entry, outcome in zip(batch, outcomes, strict=True):
                    entry.call.settle(entry.place, outcome)

    def _run(self, runtime: Runtime, batch: Sequence[Entry]) -> list[Outcome]:
        """One batch, in a worker's thread."""
        rows = [entry.encoded for entry in batch]
        begun = time.monotonic()
        output = runtime.run(rows)
        ended = time.monotonic()
        self._tally.batch(batch, begun, ended)
        tokens = sum(map(len, rows))
        self._tokens_per_second = self._settings.workers * tokens / (ended - begun)
        return self._valuer.valuations([entry.sample for entry in batch], rows, output)

    def _load(self) -> Runtime:
        """Load the model and run its largest and its smallest batch, in a worker's thread."""
        device = find_device()
        self.precision = self._settings.precision_on(device, quantised=self.bundle.quantised)
        runtime = Runtime(self.bundle, self.precision, device, self._settings.threads())
        self.device = runtime.device
        self.batch_tokens = self._settings.batch_tokens or BATCH_TOKENS[runtime.device]
        longest = self.bundle.manifest.encoding.token_limit
        # The tokenizer's last id shows whether the model knows every token that may come.
        row = Encoded(np.full(longest, self._encoder.last_id), 0, truncated=False)
        try:
            runtime.run([row] * max(1, self.batch_tokens // longest))
            runtime.run([row])
        except Exception as error:
            raise BundleError(f"{self.bundle.path} fails on its first batch: {error}") from error
        return runtime

    def _show_queue(self) -> None:
        self._metrics.queue_samples.set(sum(bound.held for bound in self._samples.values()))
        self._metrics.queue_tokens.set(sum(bound.held for bound in self._tokens.values()))
