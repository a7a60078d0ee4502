"""Calls are tokenised together while threads are busy, and each gets its own rows."""

import asyncio
from collections.abc import Sequence
from threading import Event, Lock
from typing import cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from alinfik.server.batching import Priority
from alinfik.server.encode import Encoded, Encoder
from alinfik.server.fault import ModelError
from alinfik.server.metrics import Metrics
from alinfik.server.tokenising import Tokenising
from alinfik.v1 import Sample

_THREADS = 2


class Panic(BaseException):
    """As the tokenizers library raises where its Rust panics."""


class Slow:
    """Stands where the encoder does, and lets a test say when a run ends."""

    def __init__(self) -> None:
        self.runs: list[list[str]] = []
        self.go = Event()
        self._lock = Lock()

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        with self._lock:
            self.runs.append([sample.completion for sample in samples])
        assert self.go.wait(10)
        if any(sample.completion == "broken" for sample in samples):
            raise Panic
        return [Encoded(np.array([len(s.completion)]), 0, truncated=False) for s in samples]


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def tokenising(slow: Slow) -> Tokenising:
    return Tokenising(cast("Encoder", slow), Metrics(CollectorRegistry()))


def _texts(*texts: str) -> list[Sample]:
    return [Sample(completion=text) for text in texts]


async def _called(
    tokenising: Tokenising, *calls: tuple[list[Sample], Priority]
) -> list[asyncio.Task[list[Encoded]]]:
    """The calls, which have come and are not answered."""
    tasks = [asyncio.create_task(tokenising.encode(*call)) for call in calls]
    # Each has its first turn now, up to where it waits.
    await asyncio.sleep(0)
    return tasks


async def _busy(slow: Slow, tokenising: Tokenising) -> list[asyncio.Task[list[Encoded]]]:
    """A call in each thread."""
    tasks: list[asyncio.Task[list[Encoded]]] = []
    for text in ("first", "second"):
        tasks += await _called(tokenising, (_texts(text), Priority.STREAM))
        async with asyncio.timeout(10):
            while len(slow.runs) < len(tasks):
                await asyncio.sleep(0.001)
    return tasks


def test_gathers_what_waits_urgent_first(slow: Slow, tokenising: Tokenising) -> None:
    async def main() -> None:
        busy = await _busy(slow, tokenising)
        later = await _called(
            tokenising,
            (_texts("a", "bb"), Priority.STREAM),
            (_texts("ccc"), Priority.INTERACTIVE),
            (_texts("dddd"), Priority.STREAM),
        )
        slow.go.set()
        rows = await asyncio.gather(*busy, *later)
        assert slow.runs == [["first"], ["second"], ["ccc", "a", "bb", "dddd"]]
        lengths = [[int(row.input_ids[0]) for row in call] for call in rows]
        assert lengths == [[5], [6], [1, 2], [3], [4]]

    asyncio.run(main())


def test_gathers_so_many_and_no_more(slow: Slow, tokenising: Tokenising) -> None:
    async def main() -> None:
        busy = await _busy(slow, tokenising)
        large = [(_texts(*["x"] * size), Priority.STREAM) for size in (200, 56, 1, 1000)]
        later = await _called(tokenising, *large)
        slow.go.set()
        await asyncio.gather(*busy, *later)
        assert sorted(map(len, slow.runs[_THREADS:])) == [1, 256, 1000]

    asyncio.run(main())


def test_a_call_that_is_cancelled_in_time_is_not_done(slow: Slow, tokenising: Tokenising) -> None:
    async def main() -> None:
        busy = await _busy(slow, tokenising)
        gone, stays = await _called(
            tokenising, (_texts("gone"), Priority.STREAM), (_texts("stays"), Priority.STREAM)
        )
        gone.cancel()
        slow.go.set()
        assert len(await stays) == 1
        await asyncio.gather(*busy)
        assert slow.runs[_THREADS:] == [["stays"]]

    asyncio.run(main())


def test_gathers_so_many_bytes_and_no_more(slow: Slow, tokenising: Tokenising) -> None:
    async def main() -> None:
        busy = await _busy(slow, tokenising)
        large = [(_texts(f"{n}" * 100_000), Priority.STREAM) for n in range(5)]
        later = await _called(tokenising, *large)
        slow.go.set()
        await asyncio.gather(*busy, *later)
        assert sorted(map(len, slow.runs[_THREADS:])) == [1, 2, 2]

    asyncio.run(main())


def test_an_error_is_its_call_s_alone(slow: Slow, tokenising: Tokenising) -> None:
    async def main() -> None:
        busy = await _busy(slow, tokenising)
        fails, fine = await _called(
            tokenising, (_texts("broken"), Priority.STREAM), (_texts("fine"), Priority.STREAM)
        )
        slow.go.set()
        with pytest.raises(ModelError):
            await fails
        assert len(await fine) == 1
        assert ["broken", "fine"] in slow.runs
        await asyncio.gather(*busy)
        assert len(await tokenising.encode(_texts("next"), Priority.STREAM)) == 1

    asyncio.run(main())


def test_closing_fails_what_waits_and_finishes_what_runs(
    slow: Slow, tokenising: Tokenising
) -> None:
    async def main() -> None:
        busy = await _busy(slow, tokenising)
        (waits,) = await _called(tokenising, (_texts("waits"), Priority.INTERACTIVE))
        tokenising.close(RuntimeError("stopping"))
        slow.go.set()
        with pytest.raises(RuntimeError, match="stopping"):
            await waits
        assert [len(await one) for one in busy] == [1, 1]

    asyncio.run(main())
