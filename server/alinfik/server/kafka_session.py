"""One connected stretch of the pipeline: consume, score, produce and commit until something breaks.

Comes in: records of the partitions that the group assigns. Goes out: their valuations and dead
letters, in their order. Knows nothing of how a connection is made again once lost, and of what
makes a commit whole.

A few batches are in flight at most: some are scored while the one before them is committed. After
a failure the consumer goes back to the offsets that the broker has, not to remembered ones.
"""

import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog
from kafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition

from alinfik.server.kafka_commit import RefusedError, open_committer
from alinfik.server.kafka_io import CONNECT_MS, largest_records, open_consumer
from alinfik.server.kafka_lag import LagWatch
from alinfik.server.kafka_link import Link, NotScoredError, Scoring, StoppedError
from alinfik.server.kafka_outcomes import Outcomes, Written
from alinfik.server.kafka_pace import Pace
from alinfik.server.kafka_producer import Outgoing
from alinfik.server.kafka_start import Starts
from alinfik.server.metrics import KafkaMetrics
from alinfik.server.records import (
    TRACEPARENT,
    DeadLetter,
    Headers,
    SourceRecord,
    Valued,
    parse_sample,
)
from alinfik.server.settings import ServerSettings
from alinfik.v1 import Sample

_log = structlog.get_logger()

# One in the model, one behind it, one being committed. Measured with proxies that cost next to
# nothing: 2 to 22 % more samples a second than two, and no fewer than four.
_IN_FLIGHT = 3
# How long an idle consumer waits for records, and so how late it sees that it should stop: its wait
# cannot be interrupted.
_IDLE_MS = 200
# How long it waits while the group agrees on who owns what.
_JOIN_MS = 1_000
# How long the oldest batch is waited for before we look for records again: less than a batch of
# the fastest proxy takes.
_LOOK_SECONDS = 0.005
# How long, where there is no room for records. Past it we poll all the same, since a member that
# does not poll for five minutes is expelled, and a model that is busy with gRPC may take longer.
_FULL_SECONDS = 1.0
# How long a rebalance, and so the whole group, waits for what we have in flight.
_REBALANCE_SECONDS = 5.0
# Between tries of a batch that keeps failing: soon, since a rebalance is over in a moment, then
# seldom, since what is left is broken.
_RETRY_SECONDS = 0.1, 10.0


class SlowBatchError(KafkaError):
    """A batch is given up, since others wait for us."""


@dataclass(frozen=True, slots=True)
class _Batch:
    records: Sequence[SourceRecord]
    """Per partition in the order of their offsets."""
    parsed: Sequence[Sample | DeadLetter]
    scoring: Scoring
    """Of the samples in ``parsed``."""
    member: ConsumerGroupMetadata
    """Who we were to the group when it gave us these records."""
    fetched: float
    """On the monotonic clock."""

    def outcomes(self) -> Iterator[Valued | DeadLetter]:
        """One for each record; waits for the engine."""
        scored = iter(self.scoring.scored.result().outcomes)
        for parsed in self.parsed:
            outcome = next(scored) if isinstance(parsed, Sample) else parsed
            yield outcome if isinstance(outcome, DeadLetter) else Valued(*outcome)

    def headers(self) -> Headers:
        """Of outgoing records; waits for the engine."""
        return self.scoring.scored.result().headers


class Session:
    """A consumer and a producer that live and die together; a context manager.

    Args:
        settings: topics, group and brokers.
        instance: name of this server within the group.
        link: the way to the engine.
        metrics: where to count.

    Raises:
        NotThereError: no broker answers or lets us in, or a topic is missing.
        CommandError: a file of the connection's security will not do.
    """

    def __init__(
        self, settings: ServerSettings, instance: str, link: Link, metrics: KafkaMetrics
    ) -> None:
        self._settings = settings
        self._link = link
        self._metrics = metrics
        self._in_flight: deque[_Batch] = deque()
        self._consumer = open_consumer(settings)
        try:
            largest_bytes = largest_records(settings)
            self._outcomes = Outcomes(settings, largest_bytes)
            most_bytes = min(largest_bytes.values())
            self._committer = open_committer(settings, instance, self._consumer, most_bytes)
        except BaseException:
            self._consumer.close(timeout_ms=CONNECT_MS)
            raise
        self._pace = Pace(settings.kafka_batch_records)
        self._committed_at = 0.0
        self._joining_since: float | None = None
        self._starts = Starts(self._consumer, settings, metrics)
        self._lag = LagWatch(self._consumer, settings, metrics)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the group at once, so that the others have our partitions; drop what is open."""
        for batch in self._in_flight:
            self._link.finish(batch.scoring, committed=False)
        self._lag.close()
        self._committer.close()
        self._consumer.leave()

    def run(self) -> None:
        """Work until told to stop, then finish what is in flight, if there is time to value it.

        Raises:
            KafkaError: the broker does not answer; a new session may find it back.
        """
        stopping = self._link.stopping
        first, longest = _RETRY_SECONDS
        retry_seconds = first
        while self._in_flight or not stopping.is_set():
            try:
                if self._take_turn():
                    retry_seconds = first
            except StoppedError:
                return
            except (KafkaError, NotScoredError) as error:
                _log.warning(
                    "kafka failed, reading again from what is committed", error=_describe(error)
                )
                self._metrics.failures.inc()
                self._roll_back()
                # Not in step with another server, or each would spoil the other's try for ever.
                stopping.wait(retry_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
                retry_seconds = min(2 * retry_seconds, longest)

    def _take_turn(self) -> bool:
        """Fetch a batch if there is room for it, else commit one; say whether that went forward."""
        stopping = self._link.stopping.is_set()
        self._lag.update()
        rebalancing = self._consumer.must_join()
        if not rebalancing:
            self._joining_since = None
        room = (1 if rebalancing else _IN_FLIGHT) - len(self._in_flight)
        if room > 0 and not stopping:
            patience_ms = 0 if self._in_flight else _JOIN_MS if rebalancing else _IDLE_MS
            batch = self._fetch(patience_ms)
            if batch is not None:
                self._in_flight.append(batch)
                return False
            if not self._in_flight and not rebalancing:
                self._commit_passed()
        if not self._in_flight:
            return False
        batch = self._in_flight[0]
        may_fetch = room > 0 and not rebalancing and not stopping
        if not wait([batch.scoring.scored], _LOOK_SECONDS if may_fetch else _FULL_SECONDS).done:
            if rebalancing:
                self._check_rebalance()
            elif not may_fetch:
                self._stay_member()
            return False
        if not self._commit(batch, list(batch.outcomes())):
            # Something else is sent the next time.
            self._roll_back()
            return True
        self._in_flight.popleft()
        self._link.finish(batch.scoring, committed=True)
        return True

    def _check_rebalance(self) -> None:
        now = time.monotonic()
        if self._joining_since is None:
            self._joining_since = now
        elif now - self._joining_since > _REBALANCE_SECONDS:
            raise SlowBatchError(f"not valued in {_REBALANCE_SECONDS} s of a rebalance")

    def _stay_member(self) -> None:
        """Poll, and take no records of the partitions that we have."""
        owned = self._consumer.assignment()
        self._consumer.pause(*owned)
        try:
            batch = self._fetch(0)
            if batch is not None:
                # Of partitions that are ours since this poll.
                self._in_flight.append(batch)
        finally:
            # Whatever the poll raises: nobody else would.
            self._consumer.resume(*(owned & self._consumer.assignment()))

    def _fetch(self, timeout_ms: int) -> _Batch | None:
        try:
            polled = self._consumer.poll(timeout_ms, max_records=self._pace.records)
        except NoOffsetForPartitionError as error:
            self._starts.begin(error.args[0])
            return None
        except OffsetOutOfRangeError as error:
            self._starts.resume(error.args[0])
            return None
        if not polled:
            return None
        member = self._consumer.group_metadata()
        if member.generation_id < 0:
            # Expelled since the poll: the broker takes offsets without a generation from anyone, so
            # these are not to be committed. The next poll joins anew and starts from what is.
            return None
        records = [record for partition in polled.values() for record in partition]
        parsed = [parse_sample(record) for record in records]
        samples = [sample for sample in parsed if isinstance(sample, Sample)]
        scoring = self._link.score(samples, len(records), _traces(records))
        return _Batch(records, parsed, scoring, member, time.monotonic())

    def _commit_passed(self) -> None:
        """Commit offsets that hold nothing to value, as at the end of a transactional input."""
        member = self._consumer.group_metadata()
        passed = self._lag.passed() if member.generation_id >= 0 else {}
        if passed:
            offsets = {place: OffsetAndMetadata(end, "", -1) for place, end in passed.items()}
            self._committer.commit([], offsets, member)
            self._lag.committed(passed)

    def _commit(self, batch: _Batch, outcomes: Sequence[Valued | DeadLetter]) -> bool:
        """Make a batch's outcomes and the offsets after it lasting.

        Each goes to the partition of its source's number, so that order is kept. Says no where a
        topic has refused records for the first time.
        """
        begun = time.monotonic()
        topics = self._settings.kafka_output, self._settings.kafka_dead_letters
        counts = {topic: self._committer.partition_count(topic) for topic in topics}
        headers = batch.headers()
        written = [
            self._outcomes.written(source, outcome, headers)
            for source, outcome in zip(batch.records, outcomes, strict=True)
        ]
        outgoing = [
            Outgoing(topic, source.partition % counts[topic], record)
            for source, (_, topic, record) in zip(batch.records, written, strict=True)
        ]
        last = {(source.topic, source.partition): source.offset for source in batch.records}
        offsets = {
            TopicPartition(*place): OffsetAndMetadata(offset + 1, "", -1)
            for place, offset in last.items()
        }
        try:
            self._committer.commit(outgoing, offsets, batch.member)
        except RefusedError as error:
            new = [
                self._outcomes.refuse(batch.records[place], written[place].topic, why)
                for place, why in error.refused.items()
            ]
            if not any(new):
                raise
            _log.warning("kafka topic refuses records", error=str(error))
            return False
        self._outcomes.forget(batch.records)
        ended = time.monotonic()
        self._pace.took(len(batch.records), ended - max(batch.fetched, self._committed_at))
        self._committed_at = ended
        self._count(batch, written, ended - begun)
        self._lag.committed({partition: offset.offset for partition, offset in offsets.items()})
        return True

    def _count(self, batch: _Batch, written: Sequence[Written], commit_seconds: float) -> None:
        self._metrics.transactions.labels("committed").inc()
        self._metrics.commit_seconds.observe(commit_seconds)
        now = time.time()
        sent = [record.timestamp / 1000 for record in batch.records if record.timestamp >= 0]
        self._metrics.delay_seconds.labels().observe([max(0.0, now - when) for when in sent])
        for outcome, _, _ in written:
            if isinstance(outcome, DeadLetter):
                self._metrics.dead_letters.labels(outcome.reason).inc()

    def _roll_back(self) -> None:
        """Drop all in flight and go back to the committed offsets.

        Raises:
            KafkaError: the broker does not answer.
        """
        if self._committer.recover():
            self._metrics.transactions.labels("aborted").inc()
        first: dict[TopicPartition, int] = {}
        for batch in self._in_flight:
            self._link.finish(batch.scoring, committed=False)
            for record in batch.records:
                first.setdefault(TopicPartition(record.topic, record.partition), record.offset)
        self._in_flight.clear()
        for partition in self._consumer.assignment() & first.keys():
            committed = self._consumer.committed(partition, timeout_ms=CONNECT_MS)
            # Where nothing was ever committed, nobody was ahead of us.
            start = first[partition] if committed is None else committed
            # A rebalance may take the partition away just now, and its new owner starts there too.
            with suppress(ValueError):
                self._consumer.seek(partition, start)


def _traces(records: Sequence[SourceRecord]) -> list[bytes]:
    """Those that the records come from, each once."""
    named = (
        value
        for record in records
        for name, value in record.headers
        if name == TRACEPARENT and value
    )
    return list(dict.fromkeys(named))


# The coordinator answers a fenced producer by the one, a partition's leader by the other.
_FENCED = ("ProducerFenced", "InvalidProducerEpoch")


def _describe(error: Exception) -> str:
    # kafka-python wraps them in errors of other types.
    if any(name in str(error) for name in _FENCED):
        return "a transaction timed out, or another server of the group has this --kafka-instance"
    return str(error)
