"""The Kafka process's batches in the server: from the pipe to the engine and back.

Comes in: samples of a batch, and what became of it. Goes out: a valuation or a dead letter for
each, and the batch's trace. Runs on the event loop, a piece of a batch at a time. Knows nothing of
Kafka's clients, offsets and transactions.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import structlog

from alinfik.server.batching import Priority
from alinfik.server.call import Outcome
from alinfik.server.engine import NotRunningError
from alinfik.server.fault import ModelError
from alinfik.server.kafka_messages import Finished, NotScored, Score, Scored, ScoredSample
from alinfik.server.records import DeadLetter, ValuationFormat, written
from alinfik.server.registry import Registry
from alinfik.server.rejection import Rejection
from alinfik.server.settings import ServerSettings
from alinfik.server.tracing import BatchSpan, batch_span, part_span, traced
from alinfik.server.valuation import Estimate
from alinfik.v1 import Sample

_log = structlog.get_logger()

# A sample is at fault that fails alone so often: once may be a moment's shortage of memory.
_TRIES = 3
_PAUSE_SECONDS = 0.2
# Samples that the engine is given at a time while calls come: about a millisecond of the event loop
# in each of its turns, which is what a call waits that comes meanwhile.
_PIECE = 64
# And where none has come for so long: with a proxy that costs next to nothing, the server spends a
# third less on each sample then.
_QUIET_PIECE = 256
_QUIET_SECONDS = 1.0
# How long the next piece waits for the one before it to be valued. Where a piece takes less, one at
# a time keeps the engine busy; where it takes longer, the engine wants more to choose from.
_PIECE_SECONDS = 0.05
# How long the event loop and the cores are left to calls after each piece, while calls come. A slow
# proxy has the pieces before it to go on with.
_REST_SECONDS = 0.01
# How long a piece waits for interactive calls to be over: their turns of the event loop are to be
# short ones. At the worst, then, ten pieces a second.
_CALM_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Batch:
    span: BatchSpan
    scoring: asyncio.Task[list[ScoredSample]]
    committed: asyncio.Future[bool]
    """False where it was dropped."""


class BatchScoring:
    """Values batches by the active bundle, after interactive calls.

    Args:
        settings: for traces, and the form of valuations.
        registry: has the engine.
        answer: sends a message to the process; may block, and is called in a thread.

    All methods are for the event loop.
    """

    def __init__(
        self,
        settings: ServerSettings,
        registry: Registry,
        answer: Callable[[Scored | NotScored], None],
    ) -> None:
        self._settings = settings
        self._form: ValuationFormat = settings.kafka_valuation_format
        self._registry = registry
        self._answer = answer
        self._batches: dict[int, _Batch] = {}
        # One batch after the other, as they are committed.
        self._feeding = asyncio.Lock()
        self._following: set[asyncio.Task[None]] = set()

    def begin(self, message: Score) -> None:
        """Value a batch and answer."""
        span = batch_span(self._settings, message.records, message.parents)
        with span.current():
            scoring = asyncio.create_task(self._score(message.samples))
            batch = _Batch(span, scoring, asyncio.get_running_loop().create_future())
            self._batches[message.batch] = batch
            following = asyncio.create_task(self._follow(message.batch, batch))
        self._following.add(following)
        following.add_done_callback(self._following.discard)

    def finish(self, message: Finished) -> None:
        """Take what is left of a batch from the queue, and end its trace."""
        batch = self._batches.get(message.batch)
        if batch and not batch.committed.done():
            batch.scoring.cancel()
            batch.committed.set_result(message.committed)

    def give_up(self) -> None:
        """Answer at once that what is not scored yet will not be."""
        for batch in self._batches.values():
            batch.scoring.cancel()

    def drop(self) -> None:
        """The process has ended, and nobody waits for any batch."""
        for number in self._batches:
            self.finish(Finished(number, committed=False))

    async def _follow(self, number: int, batch: _Batch) -> None:
        """Answer once a batch is scored, and go with it to its commit."""
        try:
            await self._answer_with(Scored(number, await batch.scoring, batch.span.headers))
            with part_span("commit"):
                await batch.committed
        except asyncio.CancelledError:
            # The scoring is; nobody cancels this task.
            await self._answer_with(NotScored(number, ""))
        except (ModelError, NotRunningError) as error:
            await self._answer_with(NotScored(number, str(error)))
        except Exception as error:  # noqa: BLE001 - a defect must not keep the batch for ever
            _log.exception("kafka batch not scored")
            await self._answer_with(NotScored(number, repr(error)))
        del self._batches[number]
        if batch.committed.done() and batch.committed.result():
            batch.span.end()
        else:
            batch.span.drop()

    async def _answer_with(self, answer: Scored | NotScored) -> None:
        await asyncio.to_thread(self._answer, answer)

    async def _score(self, samples: Sequence[bytes]) -> list[ScoredSample]:
        """Value a batch by pieces, between which the event loop looks for calls."""
        pieces: list[asyncio.Task[list[ScoredSample]]] = []
        try:
            async with self._feeding:
                begin = 0
                while begin < len(samples):
                    quiet = await self._registry.calm(_CALM_SECONDS) > _QUIET_SECONDS
                    end = begin + (_QUIET_PIECE if quiet else _PIECE)
                    piece = [Sample.FromString(one) for one in samples[begin:end]]
                    begin = end
                    work = traced("score", _score_piece(self._registry, piece, self._form))
                    pieces.append(asyncio.create_task(work))
                    await asyncio.wait(pieces[-1:], timeout=_PIECE_SECONDS)
                    if not quiet:
                        await asyncio.sleep(_REST_SECONDS)
            return list(chain.from_iterable(await asyncio.gather(*pieces)))
        finally:
            for task in pieces:
                task.cancel()


async def _score_piece(
    registry: Registry, samples: Sequence[Sample], form: ValuationFormat
) -> list[ScoredSample]:
    try:
        outcomes: Sequence[Outcome | ModelError] = await _score_together(registry, samples)
    except ModelError:
        # One sample that the model chokes on fails all, and must neither stop its partition nor
        # take the others along.
        outcomes = await _score_each(registry, samples)
    return [
        _written(sample, outcome, form) for sample, outcome in zip(samples, outcomes, strict=True)
    ]


async def _score_each(registry: Registry, samples: Sequence[Sample]) -> list[Outcome | ModelError]:
    """Value each alone, and blame those that fail again and again while plain texts do not.

    Raises:
        ModelError: plain texts fail too. It is the model that is broken, and the records are
            better late than dead letters.
    """
    outcomes = [await _score_alone(registry, sample) for sample in samples]
    for _ in range(_TRIES - 1):
        failed = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, ModelError)]
        if not failed:
            break
        await registry.try_model()
        await asyncio.sleep(_PAUSE_SECONDS)
        for place in failed:
            outcomes[place] = await _score_alone(registry, samples[place])
    return outcomes


async def _score_alone(registry: Registry, sample: Sample) -> Outcome | ModelError:
    try:
        return (await _score_together(registry, [sample]))[0]
    except ModelError as fault:
        return fault


async def _score_together(registry: Registry, samples: Sequence[Sample]) -> list[Outcome]:
    scored = await registry.score(samples, priority=Priority.STREAM, source="kafka", wait=True)
    return scored.outcomes


def _written(sample: Sample, outcome: Outcome | ModelError, form: ValuationFormat) -> ScoredSample:
    match outcome:
        case Estimate():
            return written(sample, outcome, form), outcome.bundle.id
        case Rejection():
            return DeadLetter(outcome.reason, f"{outcome.field} {outcome.message}")
        case ModelError():
            return DeadLetter("model_failed", str(outcome))
