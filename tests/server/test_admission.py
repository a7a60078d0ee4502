"""Who must wait too long is refused at once: by the model's speed, or by what waits are seen."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from alinfik.server.admission import Admission, QueueFull
from alinfik.server.batching import Priority
from alinfik.server.metrics import Metrics
from alinfik.server.settings import ServerSettings

_SECONDS = 5.0


@pytest.fixture
def admission(tmp_path_factory: pytest.TempPathFactory) -> Admission:
    settings = ServerSettings(
        bundle=[tmp_path_factory.getbasetemp()], queue_seconds=_SECONDS, queue_samples=100_000
    )
    admission = Admission(settings, Metrics(CollectorRegistry()))
    admission.tokens_per_second = 1e6
    return admission


async def _admitted(admission: Admission, most: int, count: int = 10) -> int:
    """How many samples are let in, in requests of ``count``, until one is refused."""
    for samples in range(0, most, count):
        try:
            await admission.samples(count, Priority.INTERACTIVE, wait=False)
        except QueueFull:
            return samples
    return most


def test_knows_no_wait_at_first(admission: Admission) -> None:
    async def main() -> None:
        assert await _admitted(admission, 50_000) == 50_000

    asyncio.run(main())


def test_keeps_the_queue_as_short_as_waits_say(admission: Admission) -> None:
    async def main() -> None:
        # Its model is quick, and yet a thousand samples took it two seconds.
        for _ in range(50):
            admission.learn_wait(1000, 2.0, Priority.INTERACTIVE)
        let_in = await _admitted(admission, 50_000)
        assert let_in == pytest.approx(500 * _SECONDS, rel=0.02)

    asyncio.run(main())


def test_a_short_wait_only_says_at_least_so_quick(admission: Admission) -> None:
    async def main() -> None:
        for _ in range(50):
            admission.learn_wait(1000, 2.0, Priority.INTERACTIVE)
            # One at a time, which tells nothing of how many there could be.
            admission.learn_wait(1, 0.05, Priority.INTERACTIVE)
        assert await _admitted(admission, 50_000) == pytest.approx(500 * _SECONDS, rel=0.02)
        for _ in range(100):
            admission.learn_wait(2000, 0.2, Priority.INTERACTIVE)
        assert await _admitted(admission, 50_000) > 5_000

    asyncio.run(main())


def test_says_when_to_come_back(admission: Admission) -> None:
    async def main() -> None:
        for _ in range(50):
            admission.learn_wait(1000, 2.0, Priority.INTERACTIVE)
        await _admitted(admission, 50_000)
        with pytest.raises(QueueFull) as refused:
            await admission.samples(10, Priority.INTERACTIVE, wait=False)
        assert refused.value.retry_after_seconds == pytest.approx(_SECONDS, rel=0.02)

    asyncio.run(main())


def test_whoever_was_refused_closes_it_until_a_sixteenth_is_free(admission: Admission) -> None:
    async def main() -> None:
        let_in = await _admitted(admission, 200_000)
        assert let_in == 100_000
        refused = admission.refusal()
        assert refused is not None
        assert refused.limit == "queue_samples"
        admission.release(Priority.INTERACTIVE, samples=let_in // 16, tokens=0)
        assert admission.refusal()
        admission.release(Priority.INTERACTIVE, samples=1, tokens=0)
        assert admission.refusal() is None
        await admission.samples(1, Priority.INTERACTIVE, wait=False)
        assert admission.refusal() is None, "a queue that nobody was refused by is open"

    asyncio.run(main())


def test_a_long_wait_closes_it_and_a_stream_does_not(admission: Admission) -> None:
    async def main() -> None:
        await admission.samples(100_000, Priority.STREAM, wait=False)
        with pytest.raises(QueueFull):
            await admission.samples(1, Priority.STREAM, wait=False)
        assert admission.refusal() is None
        for _ in range(50):
            admission.learn_wait(1000, 2.0, Priority.INTERACTIVE)
        let_in = await _admitted(admission, 50_000)
        refused = admission.refusal()
        assert refused is not None
        assert refused.limit == "queue_seconds"
        admission.release(Priority.INTERACTIVE, samples=let_in // 8, tokens=0)
        assert admission.refusal() is None

    asyncio.run(main())


def test_what_several_engines_hold_is_shown_together(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async def main() -> None:
        settings = ServerSettings(bundle=[tmp_path_factory.getbasetemp()])
        metrics = Metrics(CollectorRegistry())
        held = metrics.registry.get_sample_value
        one, other = Admission(settings, metrics), Admission(settings, metrics)
        await one.samples(7, Priority.STREAM, wait=False)
        one.show()
        await other.samples(2, Priority.STREAM, wait=False)
        await other.tokens(30, Priority.STREAM, wait=False)
        other.show()
        assert (held("alinfik_queue_samples"), held("alinfik_queue_tokens")) == (9, 30)
        other.release(Priority.STREAM, samples=2, tokens=30)
        other.show()
        assert (held("alinfik_queue_samples"), held("alinfik_queue_tokens")) == (7, 0)

    asyncio.run(main())


def test_a_stream_that_is_overtaken_does_not_make_the_server_look_slow(
    admission: Admission,
) -> None:
    async def main() -> None:
        for _ in range(50):
            admission.learn_wait(64, 30.0, Priority.STREAM)
        assert await _admitted(admission, 50_000) == 50_000

    asyncio.run(main())
