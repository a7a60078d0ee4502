"""The scoring engine: one queue, one model, any number of callers.

Comes in: samples, from gRPC and Kafka alike. Goes out: an estimate or a rejection for each. A
sample is checked, answered from the cache where its text was valued before, admitted, tokenised in
a thread, queued, batched the moment a worker is free, run in that worker's thread, and mapped to
its estimate. All but the tokenizer and the model runs on one event loop, so nothing here locks.
Knows nothing of gRPC and Kafka.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple, Self

from alinfik.server.admission import Admission, OversizedError, QueueFull
from alinfik.server.batching import BatchQueue, Priority
from alinfik.server.bundle import Bundle, BundleError
from alinfik.server.cache import Cache, content_key
from alinfik.server.call import Call, Job, Outcome
from alinfik.server.cores import give_way
from alinfik.server.encode import Encoder
from alinfik.server.explainer import Explainer
from alinfik.server.fault import model_error
from alinfik.server.metrics import Metrics
from alinfik.server.rejection import Rejection, rejections
from alinfik.server.settings import ServerSettings
from alinfik.server.tally import Source, Tally, Unvalued
from alinfik.server.tokenising import Tokenising
from alinfik.server.tracing import stage_spans
from alinfik.server.valuation import Estimate
from alinfik.server.valuer import Valuer
from alinfik.server.warmup import Warm, warm_up
from alinfik.v1 import Sample, Timing

# Texts of every day, which each bundle must be able to value before it takes others.
_PROBES = (
    Sample(prompt="What is 2 + 2?", completion="2 + 2 = 4."),
    Sample(completion="The ship left the harbour at dawn and was never seen again."),
    Sample(prompt="Add two numbers.", completion="def add(a, b):\n    return a + b"),
)


class NotRunningError(Exception):
    """The engine takes no samples: it has not started, or it has stopped."""


class Scored(NamedTuple):
    """What became of a call's samples."""

    outcomes: list[Outcome]
    """One a sample, in their order."""
    timing: Timing


class Engine:
    """Values samples with one bundle. An asynchronous context manager, or ``start`` and ``stop``.

    Args:
        bundle: a verified bundle.
        settings: workers, batch size and bounds.
        metrics: where to count.

    Once started, ``warm`` says where and how the model runs, and ``explainer`` explains its values.
    """

    warm: Warm
    explainer: Explainer

    def __init__(self, bundle: Bundle, settings: ServerSettings, metrics: Metrics) -> None:
        self.bundle = bundle
        self._settings = settings
        self._metrics = metrics
        self._tally = Tally(metrics, bundle)
        self._valuer = Valuer(bundle)
        self._cache = Cache(bundle, settings.cache_samples)
        self._queue: BatchQueue[Job] = BatchQueue()
        self._queued = asyncio.Event()
        # In the queue or in the model, by their texts' keys.
        self._jobs: dict[bytes, Job] = {}
        self._admission = Admission(settings, metrics)
        self._workers: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Load the tokenizer and the model, warm it up, try it, and begin to take samples.

        Raises:
            BundleError: the tokenizer or the model does not load, or values nothing.
        """
        # ONNX Runtime's own threads are as nice as the one that makes them.
        loading = ThreadPoolExecutor(1, "load", give_way)
        try:
            await asyncio.get_running_loop().run_in_executor(loading, self._load)
        finally:
            loading.shutdown(wait=False)
        self._admission.tokens_per_second = self.warm.tokens_per_second
        self._running = ThreadPoolExecutor(self.warm.workers, "model", give_way)
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.warm.workers)]

    def _load(self) -> None:
        self._encoder = Encoder(self.bundle)
        self._tokenising = Tokenising(self._encoder, self._metrics)
        self.warm = warm_up(self.bundle, self._settings, self._encoder.last_id)
        self.explainer = Explainer(self.bundle, self._encoder, self.warm.runtime.device)
        try:
            outcomes = self._probe()
        except Exception as error:
            raise BundleError(f"{self.bundle.path} fails on plain texts: {error}") from error
        for sample, outcome in zip(_PROBES, outcomes, strict=True):
            if isinstance(outcome, Rejection):
                raise BundleError(f"{self.bundle.path} cannot value {sample.completion!r}")

    def _probe(self) -> list[Outcome]:
        rows = self._encoder.encode(_PROBES)
        return self._valuer.estimates(rows, self.warm.runtime.run(rows))

    async def try_model(self) -> None:
        """Run the model on the plain texts that it was tried on at the start.

        Raises:
            ModelError: it fails; so it is not some sample's fault.
            NotRunningError: the engine is not running.
        """
        if not self._workers or self._stopping:
            raise NotRunningError("the engine is not running")
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._running, self._probe)
        except Exception as error:
            raise model_error("model", error, len(_PROBES)) from error

    async def stop(self) -> None:
        """Refuse what is queued and what comes, and wait for the batches that are in the model."""
        workers, self._workers = self._workers, []
        if not workers:
            return
        self._stopping = True
        self._queued.set()
        await asyncio.gather(*workers)
        stopping = NotRunningError("the server is stopping")
        self._tokenising.close(stopping)
        while batch := self._take():
            _fail(batch, stopping)
        self.explainer.close()
        self._running.shutdown(wait=False)

    def refusal(self) -> QueueFull | None:
        """What an interactive call is to hear before its request is read; None if there is room."""
        return self._admission.refusal()

    async def score(
        self,
        samples: Sequence[Sample],
        *,
        priority: Priority,
        source: Source,
        wait: bool,
        deadline: float | None = None,
    ) -> Scored:
        """Value ``samples``; one outcome each, in their order.

        A text that was valued before, or is in the queue already, does not go to the model again.

        Args:
            samples: any number.
            priority: whom they go before.
            source: which door they came by; a metric's label.
            wait: wait for room in the queue, first come first served, instead of failing.
            deadline: time on the event loop's clock past which the outcomes are of no use.

        Raises:
            QueueFull: there is no room, and ``wait`` is false.
            OversizedError: there never is for so many tokens, and ``wait`` is false.
            TimeoutError: the deadline passed. What had not reached the model never will; so it is
                when the call is cancelled.
            ModelError: the model or the tokenizer failed on one of them.
            NotRunningError: the engine is not running.
        """
        if not self._workers:
            raise NotRunningError("the engine is not running")
        call = Call(len(samples))
        unvalued: Unvalued = "failed"
        try:
            if unknown := self._settle_known(call, samples):
                async with asyncio.timeout_at(deadline):
                    await self._value(call, samples, unknown, priority, wait)
        except (QueueFull, OversizedError) as error:
            self._tally.refused(source, error.limit)
            unvalued = "refused"
            raise
        except NotRunningError:
            unvalued = "refused"
            raise
        except (TimeoutError, asyncio.CancelledError):
            unvalued = "dropped"
            raise
        finally:
            self._tally.outcomes(source, call.outcomes, call.clock.shared, unvalued)
            # Nobody waits for a shadow, whoever's samples it values.
            if source != "shadow":
                stage_spans(call.clock, len(samples))
        return Scored([one for one in call.outcomes if one is not None], call.clock.timing())

    def _settle_known(self, call: Call, samples: Sequence[Sample]) -> dict[int, bytes]:
        """Settle what cannot be valued and what has been; the others' keys, by place."""
        unknown: dict[int, bytes] = {}
        for place, sample in enumerate(samples):
            if rejection := next(rejections(sample), None):
                call.settle(place, rejection)
                continue
            key = content_key(sample)
            if estimate := self._cache.get(key):
                call.clock.shared += 1
                call.settle(place, estimate)
            else:
                unknown[place] = key
        return unknown

    async def _value(
        self,
        call: Call,
        samples: Sequence[Sample],
        unknown: dict[int, bytes],
        priority: Priority,
        wait: bool,
    ) -> None:
        wanted = [samples[place] for place in unknown]
        with ExitStack() as undo:
            undo.callback(self._admission.show)
            # Room for the samples before they are tokenised, so that the tokenizer's own queue is
            # bounded too; room for their tokens once these are counted.
            await self._admission.samples(len(wanted), priority, wait=wait)
            ahead = self._admission.held_samples(priority)
            undo.callback(self._admission.release, priority, samples=len(wanted), tokens=0)
            self._check_running()
            call.clock.admitted = time.monotonic()
            encoded = await self._tokenising.encode(wanted, priority)
            call.clock.tokenised = time.monotonic()
            tokens = sum(map(len, encoded))
            await self._admission.tokens(tokens, priority, wait=wait)
            undo.callback(self._admission.release, priority, samples=0, tokens=tokens)
            self._check_running()
            undo.pop_all()
        for (place, key), row in zip(unknown.items(), encoded, strict=True):
            self._enqueue(call, place, Job(key, row, priority, priority))
        self._queued.set()
        self._admission.show()
        try:
            await call.wait()
            self._admission.learn_wait(ahead, call.clock.waited(), priority)
        finally:
            # The caller has gone, or part of the call failed: what nobody else waits for must not
            # reach the model.
            if call.missing:
                self._drop([job for job in call.jobs if job.abandon(call)])

    def _enqueue(self, call: Call, place: int, job: Job) -> None:
        """Queue a job for which room is held, or join the one of the same text."""
        if (same := self._jobs.get(job.key)) is None:
            self._jobs[job.key] = same = job
            self._queue.push(job, job.priority)
        else:
            self._give_back([job])
            call.clock.shared += 1
            if job.priority < same.priority and self._queue.discard(same, same.priority):
                same.priority = job.priority
                self._queue.push(same, same.priority)
        if same.in_model:
            call.clock.taken = time.monotonic()
        call.jobs.append(same)
        same.waiters.append((call, place))

    def _check_running(self) -> None:
        if self._stopping:
            # No worker would ever take what was admitted meanwhile.
            raise NotRunningError("the server is stopping")

    def _take(self) -> list[Job]:
        """The next batch, out of the queue and of its room."""
        batch = self._queue.take(self.warm.batch_tokens, self.warm.around_tokens)
        self._give_back(batch)
        return batch

    def _drop(self, jobs: Iterable[Job]) -> None:
        """Take those out of the queue that are still in it."""
        left = [job for job in jobs if self._queue.discard(job, job.priority)]
        for job in left:
            del self._jobs[job.key]
        self._give_back(left)

    def _give_back(self, jobs: Sequence[Job]) -> None:
        for priority in Priority:
            lengths = [job.length for job in jobs if job.held_by == priority]
            self._admission.release(priority, samples=len(lengths), tokens=sum(lengths))
        self._admission.show()

    async def _work(self) -> None:
        """Run batches until the engine stops."""
        while True:
            await self._queued.wait()
            if self._stopping:
                return
            batch = self._take()
            if not self._queue:
                self._queued.clear()
            if not batch:
                continue
            taken = time.monotonic()
            for job in batch:
                job.in_model = True
                for call, _ in job.waiters:
                    call.clock.taken = taken
            with self._metrics.workers_busy.track_inprogress():
                await self._value_batch(batch)

    async def _value_batch(self, batch: Sequence[Job]) -> None:
        """Run a batch; one that fails, text by text, so that none takes strangers along."""
        loop = asyncio.get_running_loop()
        try:
            outcomes, seconds = await loop.run_in_executor(self._running, self._run, batch)
        except Exception as error:  # noqa: BLE001 - the callers hear and the worker lives
            if len(batch) > 1:
                for job in batch:
                    await self._value_batch([job])
                return
            self._forget(batch)
            _fail(batch, model_error("model", error, len(batch)))
        else:
            self._forget(batch)
            self._learn_speed(batch, seconds)
            for job, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Estimate):
                    self._cache.put(job.key, outcome)
                job.settle(outcome)

    def _forget(self, batch: Sequence[Job]) -> None:
        for job in batch:
            del self._jobs[job.key]

    def _learn_speed(self, batch: Sequence[Job], seconds: float) -> None:
        """Small batches say little of how soon a full queue is through."""
        padded = len(batch) * max(job.length for job in batch)
        if padded >= self.warm.batch_tokens / 2:
            self._admission.learn_speed(self.warm.workers * padded / seconds)

    def _run(self, batch: Sequence[Job]) -> tuple[list[Outcome], float]:
        """One batch, in a worker's thread: its outcomes, and the seconds in the model."""
        rows = [job.encoded for job in batch]
        begun = time.monotonic()
        output = self.warm.runtime.run(rows)
        ended = time.monotonic()
        self._tally.batch(batch, begun, ended)
        return self._valuer.estimates(rows, output), ended - begun


def _fail(jobs: Iterable[Job], error: Exception) -> None:
    for call in {call for job in jobs for call, _ in job.waiters}:
        call.fail(error)
