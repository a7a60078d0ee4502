"""Brings a bundle's model up: on its largest batch and its smallest, in the way that is quickest.

Comes in: a verified bundle and settings. Goes out: a model that has run, how many batches to have
in it at once, and how large they may be. Knows nothing of samples and queues.

Whether two batches on one core each are quicker than one batch on two depends on the model: small
matrices leave cores idle, large ones do not. A larger batch costs less around it, until it is out
of the cache. So both are measured, unless they are set.

What is measured has the cores to itself. In a server the tokenizer and the event loop take one now
and then: a batch on two cores stands still meanwhile, of two batches one goes on. On two cores that
cost a batch on both a third of its speed. So fewer at once are for models that are much quicker so.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np

from alinfik.server.bundle import Bundle, BundleError, Precision
from alinfik.server.cores import usable_cores
from alinfik.server.device import Device, find_device
from alinfik.server.encode import Encoded
from alinfik.server.runtime import Runtime
from alinfik.server.settings import ServerSettings

# To choose from, smallest first, since a small batch is soon over. A GPU wants many in flight.
BATCH_TOKENS: dict[Device, tuple[int, ...]] = {
    "cpu": (512, 1024, 2048, 8192),
    "cuda": (8192, 32_768),
}
# A batch that takes as long is large enough: what is around it is nothing to it, and those who wait
# for it, and behind it, would feel a larger one.
_LONG_SECONDS = 0.05
# What the event loop does for a batch however small: take it, hand it to a thread, hear of it. No
# other batch's turn comes meanwhile, so a model that is as quick as that wants large ones.
_AROUND_SECONDS = 0.0005
# Of a text that costs little but what is around it.
_SHORT_TOKENS = 8
# Rounds to take the quickest of, and when to make do with fewer: a large model's take a tenth of a
# second, and a start is not to be felt.
_ROUNDS = 100
_MEASURE_SECONDS = 0.5
# Fewer batches at once, on more cores each, are worth it from here on.
_FEWER_WORTH = 1.25
# Larger ones take longer: only for what shows beyond the noise.
_LARGER_WORTH = 1.05


@dataclass(frozen=True)
class Warm:
    """A model that has run, and how to run it."""

    runtime: Runtime
    precision: Precision
    workers: int
    """Batches to have in it at once."""
    batch_tokens: int
    """Most tokens of one, padding included."""
    tokens_per_second: float
    """Of full batches, all workers together."""
    around_tokens: float = 0.0
    """What a batch costs besides its tokens, in tokens: more padding than that is not worth it."""


def warm_up(bundle: Bundle, settings: ServerSettings, last_id: int) -> Warm:
    """Load the model and run it.

    Args:
        bundle: a verified bundle.
        settings: precision, workers, threads and batch size; what is not set is chosen.
        last_id: the tokenizer's last id, which shows whether the model knows every token.

    Raises:
        BundleError: it does not load, or fails on a batch.
    """
    device = find_device()
    if device == "cuda":
        # There is a driver; whether there are the libraries, loading shows.
        device = Runtime(bundle, "float32", device, threads=1).device
    precision = settings.precision_on(device, quantised=bundle.quantised)
    longest = bundle.manifest.encoding.token_limit
    row = Encoded(np.full(longest, last_id), 0, truncated=False)

    def tried(runtime: Runtime, workers: int, batch_tokens: int) -> Warm:
        batch = [row] * max(1, batch_tokens // longest)
        try:
            runtime.run([row])
            speed = _tokens_per_second(runtime, batch, workers)
        except Exception as error:
            raise BundleError(f"{bundle.path} fails on its first batch: {error}") from error
        return Warm(runtime, precision, workers, batch_tokens, speed)

    def better(one: Warm, other: Warm, worth: float) -> Warm:
        return other if other.tokens_per_second > worth * one.tokens_per_second else one

    def ways() -> Iterator[Warm]:
        for workers, threads in _ways(settings, device):
            # One copy of the weights serves all workers. Each brings its own thread into a run, and
            # the rest is theirs in common.
            runtime = Runtime(bundle, precision, device, 1 + workers * (threads - 1))
            yield tried(runtime, workers, _sizes(settings, runtime.device)[0])

    # Two models are in memory at a time, the best so far and the one that is tried.
    best = reduce(partial(better, worth=_FEWER_WORTH), ways())
    for size in _sizes(settings, best.runtime.device)[1:]:
        if best.workers * best.batch_tokens / best.tokens_per_second > _LONG_SECONDS:
            break
        best = better(best, tried(best.runtime, best.workers, size), _LARGER_WORTH)
    short = Encoded(row.input_ids[:_SHORT_TOKENS], 0, truncated=False)
    return replace(best, around_tokens=_around_tokens(best, short))


def _around_tokens(warm: Warm, short: Encoded) -> float:
    """What a batch of one short text takes beyond its tokens, in tokens of full batches."""
    seconds = len(short) / _tokens_per_second(warm.runtime, [short], warm.workers)
    return max(0.0, seconds * warm.tokens_per_second - len(short))


def _sizes(settings: ServerSettings, device: Device) -> Sequence[int]:
    return [settings.batch_tokens] if settings.batch_tokens else BATCH_TOKENS[device]


def _ways(settings: ServerSettings, device: Device) -> list[tuple[int, int]]:
    """Workers and threads of each to try, most workers first."""
    cores = usable_cores()
    workers, threads = settings.workers, settings.threads_per_worker
    if workers or threads:
        workers = workers or max(1, cores // (threads or 1))
        return [(workers, threads or max(1, cores // workers))]
    if device == "cuda":
        # A second batch is copied and padded while the first one runs.
        return [(2, cores), (1, cores)]
    numbers = sorted({1, max(1, cores // 2), cores}, reverse=True)
    return [(workers, cores // workers) for workers in numbers]


def _tokens_per_second(runtime: Runtime, batch: list[Encoded], workers: int) -> float:
    """Run full batches, ``workers`` at a time, again and again; the quickest round counts.

    What else the machine does makes rounds longer and never shorter, and a way that is chosen by it
    stays until the server is started again.
    """
    tokens = sum(map(len, batch))
    quickest = float("inf")
    with ThreadPoolExecutor(workers) as pool:
        # The first round allocates.
        list(pool.map(runtime.run, [batch] * workers))
        ends = time.monotonic() + _MEASURE_SECONDS
        for _ in range(_ROUNDS):
            begun = time.monotonic()
            list(pool.map(runtime.run, [batch] * workers))
            ended = time.monotonic()
            quickest = min(quickest, ended - begun)
            if ended > ends:
                break
    return tokens / (quickest / workers + _AROUND_SECONDS)
