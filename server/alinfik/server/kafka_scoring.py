"""The pipeline's way into the engine: from its thread to the event loop and back.

Comes in: samples of one batch. Goes out: a future of one valuation or dead letter each. Knows
nothing of Kafka's clients, offsets and transactions.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from alinfik.server.engine import ModelError, Outcome, Priority, Rejection
from alinfik.server.records import DeadLetter
from alinfik.server.registry import Registry
from alinfik.server.tracing import traced
from alinfik.v1 import Sample, Valuation

# A sample is at fault that fails alone so often: once may be a moment's shortage of memory.
_TRIES = 3
_PAUSE_SECONDS = 0.2

Score = Callable[[Sequence[Sample]], Future[list[Valuation | DeadLetter]]]


def score_from_thread(registry: Registry, loop: asyncio.AbstractEventLoop) -> Score:
    """A function for a thread other than the loop's, which scores by the active bundle on it.

    The future fails with ``NotRunningError`` while no engine is running, and with
    ``ModelError`` where it values no plain text either. Cancelling it takes the samples from
    the queue.
    """

    def score(samples: Sequence[Sample]) -> Future[list[Valuation | DeadLetter]]:
        return asyncio.run_coroutine_threadsafe(traced("score", _value(registry, samples)), loop)

    return score


async def _value(registry: Registry, samples: Sequence[Sample]) -> list[Valuation | DeadLetter]:
    try:
        outcomes: Sequence[Outcome | ModelError] = await _score(registry, samples)
    except ModelError:
        # One sample that the model chokes on fails its batch, and must neither stop its partition
        # nor take the others along.
        outcomes = await _score_each(registry, samples)
    return [_dead_letter(outcome) for outcome in outcomes]


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


async def _score(registry: Registry, samples: Sequence[Sample]) -> list[Outcome]:
    scored = await registry.score(samples, priority=Priority.STREAM, source="kafka", wait=True)
    return scored.outcomes


async def _score_alone(registry: Registry, sample: Sample) -> Outcome | ModelError:
    try:
        return (await _score(registry, [sample]))[0]
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
