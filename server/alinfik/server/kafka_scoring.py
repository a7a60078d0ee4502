"""The pipeline's way into the engine: from its thread to the event loop and back.

Comes in: samples of one batch. Goes out: a future of one valuation or dead letter each. Knows
nothing of Kafka's clients, offsets and transactions.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from alinfik.server.engine import Engine, ModelError, Outcome, Priority, Rejection
from alinfik.server.records import DeadLetter
from alinfik.v1 import Sample, Valuation

Score = Callable[[Sequence[Sample]], Future[list[Valuation | DeadLetter]]]


def score_from_thread(engine: Engine, loop: asyncio.AbstractEventLoop) -> Score:
    """A function for a thread other than the loop's, which scores with ``engine`` on ``loop``.

    The future fails with ``NotRunningError`` while the engine is not running, and with
    ``ModelError`` where it can value no sample of the batch. Cancelling it takes the samples from
    the queue.
    """

    def score(samples: Sequence[Sample]) -> Future[list[Valuation | DeadLetter]]:
        return asyncio.run_coroutine_threadsafe(_value(engine, samples), loop)

    return score


async def _value(engine: Engine, samples: Sequence[Sample]) -> list[Valuation | DeadLetter]:
    try:
        outcomes: Sequence[Outcome | ModelError] = await _score(engine, samples)
    except ModelError as fault:
        # One sample that the model chokes on fails its batch, and must neither stop its partition
        # nor take the others along: each is tried alone. Where all fail it is the model that is
        # broken, and the records are better late than dead letters.
        outcomes = [await _score_alone(engine, sample) for sample in samples]
        if all(isinstance(outcome, ModelError) for outcome in outcomes):
            raise fault from None
    return [_dead_letter(outcome) for outcome in outcomes]


async def _score(engine: Engine, samples: Sequence[Sample]) -> list[Outcome]:
    return await engine.score(samples, priority=Priority.STREAM, source="kafka", wait=True)


async def _score_alone(engine: Engine, sample: Sample) -> Outcome | ModelError:
    try:
        return (await _score(engine, [sample]))[0]
    except ModelError as fault:
        return fault


def _dead_letter(outcome: Outcome | ModelError) -> Valuation | DeadLetter:
    match outcome:
        case ModelError():
            return DeadLetter("model_failed", str(outcome))
        case Rejection():
            return DeadLetter(outcome.reason, f"{outcome.field} {outcome.message}")
        case _:
            return outcome
