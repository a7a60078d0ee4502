"""Exactly once under faults, on Apache Kafka: `python -m tests.kafka.chaos`, or `make chaos`.

In: a scale and a seed. Out: what became of every record (`tests.kafka.verdict`), while servers and
brokers were killed and restarted, leaders moved, the bundle was swapped and the input got more
partitions. Which fault strikes when is drawn from the seed, which is printed first. "When" is told
in records that have an outcome, not in seconds, so that a slow machine meets the same chaos; a
third of the faults strike within seconds of the one before, while it is being recovered from.

The last line is a JSON object; the exit code is 1 where a record has no outcome, two, or a wrong
one, or where a server reported a defect of its own.
"""

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from kafka.errors import KafkaError

from tests.kafka.cluster import Cluster
from tests.kafka.load import feed, records
from tests.kafka.streams import Stream, read
from tests.kafka.verdict import Verdict, judge
from tests.kafka.workers import Worker
from tests.tiny_bundle import read_manifest, write_tiny_bundle

# What docs/kafka.md creates the dead-letter topic with, and what stands beside a value in a record.
_LETTER_BYTES = 2_097_152
_LETTER_FRAMING_BYTES = 2_048
_PAUSE_SECONDS = 0.2
# Kafka's tools give up where a broker that they ask is down; a restart takes less.
_ADMIN_TRIES = 30
_ORACLE_SAMPLES = 500


@dataclass(frozen=True)
class Scale:
    """How much of everything, and how long at most."""

    records: int
    brokers: int
    workers: int
    kills: int
    broker_restarts: int
    leader_moves: int
    swaps: int
    most_seconds: float
    partitions: int = 6
    more_partitions: int = 8


SHORT = Scale(
    records=5_000,
    brokers=1,
    workers=2,
    kills=3,
    broker_restarts=1,
    leader_moves=0,
    swaps=1,
    most_seconds=400,
)
LONG = Scale(
    records=50_000,
    brokers=3,
    workers=3,
    kills=12,
    broker_restarts=3,
    leader_moves=2,
    swaps=2,
    most_seconds=1_500,
)


class Fault(NamedTuple):
    """One thing that happens."""

    name: str
    """``kill``, ``restart_broker``, ``move_leaders``, ``swap_bundle`` or ``add_partitions``."""
    after_records: int
    """Strikes once so many have an outcome."""
    pause_seconds: float
    """And so much later."""
    luck: float
    """From 0 to 1: who is struck, and how."""


def planned(scale: Scale, seed: int) -> list[Fault]:
    """The faults, in the order in which they strike; the same for the same seed."""
    random = Random(seed)
    names = ["kill"] * scale.kills + ["restart_broker"] * scale.broker_restarts
    names += ["move_leaders"] * scale.leader_moves + ["swap_bundle"] * scale.swaps
    random.shuffle(names)
    # In the first half, so that records follow into the new partitions.
    names.insert(random.randint(0, len(names) // 2), "add_partitions")
    faults: list[Fault] = []
    for after in sorted(random.uniform(0.05, 0.9) * scale.records for _ in names):
        at_once = bool(faults) and random.random() < 1 / 3
        when = faults[-1].after_records if at_once else int(after)
        pause = random.uniform(0.0, 3.0 if at_once else 0.3)
        faults.append(Fault(names[len(faults)], when, pause, random.random()))
    return faults


@dataclass(frozen=True)
class Report:
    """What a run came to."""

    scale: Scale
    seed: int
    seconds: float
    struck: Counter[str]
    verdict: Verdict
    errors: list[str]
    """Log lines of servers that tell of a defect."""
    retries: int
    """How often a server went back to what was committed, or lost its brokers."""

    @property
    def holds(self) -> bool:
        """Whether every record has its outcome, and no server a defect."""
        return self.verdict.holds and not self.errors

    def summary(self) -> dict[str, Any]:
        """Figures for one line."""
        verdict = self.verdict
        return {
            "seed": self.seed,
            "records": self.scale.records,
            "partitions": [self.scale.partitions, self.scale.more_partitions],
            "workers": self.scale.workers,
            "brokers": self.scale.brokers,
            **{f"{name}_faults": count for name, count in sorted(self.struck.items())},
            "retries": self.retries,
            "valued": verdict.valued,
            "dead_letters": verdict.dead_letters,
            "bundles_named": len(verdict.bundles),
            "values_checked": verdict.checked_values,
            "lost": len(verdict.lost),
            "doubled": len(verdict.doubled),
            "out_of_order": len(verdict.out_of_order),
            "wrong": len(verdict.wrong),
            "errors": len(self.errors),
            "seconds": round(self.seconds, 1),
            "holds": self.holds,
        }


def run(scale: Scale, seed: int, directory: Path) -> Report:
    """Feed the stream, strike it, wait for the last record, judge.

    Args:
        scale: how much.
        seed: of everything that is drawn.
        directory: for the bundles; it must not have any.

    Raises:
        AssertionError: it did not end in time, or a fault could not be made to strike.
    """
    begun = time.monotonic()
    bundles = [write_tiny_bundle(directory / f"bundle-{n}", seed=n) for n in range(2)]
    with Cluster(scale.brokers) as cluster:
        stream = Stream(cluster, scale.partitions)
        for topic in (stream.samples, stream.valuations):
            cluster.create_topic(topic, scale.partitions)
        cluster.create_topic(
            stream.dead_letters, scale.partitions, max_message_bytes=str(_LETTER_BYTES)
        )
        chaos = _Chaos(scale, seed, cluster, stream, bundles)
        chaos.run()
        sent = read(cluster, stream.samples, scale.records)
        poison = sum(1 for record in sent if dict(record.headers)["kind"] != b"good")
        # Until all are there, then once more, for those that should not be.
        read(cluster, stream.valuations, scale.records - poison)
        read(cluster, stream.dead_letters, poison)
        verdict = judge(
            sent,
            read(cluster, stream.valuations),
            read(cluster, stream.dead_letters),
            bundles={read_manifest(bundle).bundle_id: bundle for bundle in bundles},
            largest_letter=_LETTER_BYTES - _LETTER_FRAMING_BYTES,
            oracle_samples=_ORACLE_SAMPLES,
            seed=seed,
        )
    events = [json.loads(line) for line in chaos.log_lines() if line.startswith("{")]
    return Report(
        scale=scale,
        seed=seed,
        seconds=time.monotonic() - begun,
        struck=chaos.struck,
        verdict=verdict,
        errors=[json.dumps(event) for event in events if event["level"] in ("error", "critical")],
        retries=sum(event["level"] == "warning" for event in events),
    )


class _Chaos:
    """One run's threads: workers, the feeder, and a fault each."""

    def __init__(
        self, scale: Scale, seed: int, cluster: Cluster, stream: Stream, bundles: list[Path]
    ) -> None:
        self.struck: Counter[str] = Counter()
        self._scale = scale
        self._seed = seed
        self._cluster = cluster
        self._stream = stream
        self._bundles = bundles
        self._workers = [Worker(bundles[0], self._flags(n)) for n in range(scale.workers)]
        self._done = 0
        self._ends = time.monotonic() + scale.most_seconds
        self._one_broker = threading.Lock()
        self._one_bundle = threading.Lock()
        self._running: list[Future[Any]] = []

    def run(self) -> None:
        """Return once every record that was sent has an outcome, and the servers have stopped."""
        with ThreadPoolExecutor(32) as pool:
            workers = [pool.submit(worker.run) for worker in self._workers]
            self._running += workers
            try:
                self._strike_all(pool)
            finally:
                # Also where it failed: the pool waits for them.
                self._ends = min(self._ends, time.monotonic())
                for worker in self._workers:
                    worker.stop()
            for worker in workers:
                worker.result()

    def log_lines(self) -> list[str]:
        """What all servers said."""
        return [line for worker in self._workers for log in worker.logs for line in log]

    def _strike_all(self, pool: ThreadPoolExecutor) -> None:
        sent = records(self._scale.records, self._seed)
        feeding = pool.submit(
            feed, self._cluster, self._stream.samples, sent, self._may_send, self._seed
        )
        self._running.append(feeding)
        faults: list[Future[None]] = []
        for fault in planned(self._scale, self._seed):
            self._wait(lambda due=fault.after_records: self._done >= due, str(fault))
            time.sleep(fault.pause_seconds)
            print(f"{self._done:>7} valued: {fault}", file=sys.stderr, flush=True)
            faults.append(pool.submit(self._strike, fault))
            self._running.append(faults[-1])
        self._wait(lambda: all(fault.done() for fault in faults), "end of the faults")
        self._wait(feeding.done, "all records sent")
        self._wait(lambda: self._done >= self._scale.records, "all records valued")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            for future in self._running:
                if future.done():
                    future.result()
            self._done = max(self._done, self._committed())
            assert time.monotonic() < self._ends, (
                f"seed {self._seed}: {self._scale.most_seconds:.0f} s were not enough for: {what}; "
                f"{self._done} records have an outcome"
            )
            time.sleep(_PAUSE_SECONDS)

    def _committed(self) -> int:
        """Records that the group has committed."""
        group = self._stream.name
        try:
            # A new client each time: an old one goes on asking the group's former coordinator.
            with self._cluster.admin() as admin:
                offsets = admin.list_group_offsets(group)[group]
        except KafkaError:
            # It is down or moving.
            return 0
        return sum(max(0, offset.offset) for offset in offsets.values())

    def _may_send(self, sent: int) -> bool:
        assert time.monotonic() < self._ends, "the time is over"
        # So far ahead that servers never idle, so little that faults find most of the work undone.
        return sent < self._done + max(1_000, self._scale.records // 20)

    def _strike(self, fault: Fault) -> None:
        match fault.name:
            case "kill":
                self._workers[int(fault.luck * len(self._workers))].kill()
            case "restart_broker":
                # One at a time: of three, two are needed.
                with self._one_broker:
                    brokers = self._cluster.brokers
                    how = signal.SIGKILL if fault.luck * 10 % 1 < 0.5 else signal.SIGTERM
                    self._cluster.restart(brokers[int(fault.luck * len(brokers))], how)
            case "move_leaders":
                self._patiently(self._cluster.move_leaders)
            case "swap_bundle":
                with self._one_bundle:
                    self._bundles.reverse()
                    for worker in self._workers:
                        worker.swap(self._bundles[0])
            case _:
                self._patiently(self._add_partitions)
        self.struck[fault.name] += 1

    def _add_partitions(self) -> None:
        with self._cluster.admin() as admin:
            admin.create_partitions({self._stream.samples: self._scale.more_partitions})

    def _patiently(self, act: Callable[[], None]) -> None:
        """Do it again while a broker that it needs is down."""
        for _ in range(_ADMIN_TRIES):
            try:
                return act()
            except KafkaError as error:
                failure = error
                time.sleep(1.0)
        raise AssertionError("could not be made to strike") from failure

    def _flags(self, number: int) -> list[str]:
        stream = self._stream
        return [
            f"--kafka-bootstrap={self._cluster.bootstrap}",
            f"--kafka-input={stream.samples}",
            f"--kafka-output={stream.valuations}",
            f"--kafka-dead-letters={stream.dead_letters}",
            f"--kafka-group={stream.name}",
            f"--kafka-instance=worker-{number}",
        ]


def main() -> None:
    """Run the long form, or the short one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--short", action="store_true", help="as `make test` has it")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        report = run(SHORT if options.short else LONG, options.seed, Path(directory))
    for place in ("lost", "doubled", "out_of_order", "wrong"):
        for what in getattr(report.verdict, place)[:20]:
            print(f"{place}: {what}")
    for line in report.errors[:20]:
        print(line)
    print(json.dumps(report.summary()))
    sys.exit(not report.holds)


if __name__ == "__main__":
    main()
