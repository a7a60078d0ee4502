"""A server in a process of its own, and what it and its load generator take of the machine.

In: a bundle. Out: the server's address, and memory and CPU time while something goes on. Knows
nothing of requests.
"""

import json
import math
import pstats
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

_STOP_SECONDS = 60.0
_EVERY_SECONDS = 0.2


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        address: of gRPC.
        metrics: address of ``/metrics``.
        way: most tokens of its batches and how many it runs at a time, as it has chosen.
        process: it.
    """

    address: str
    metrics: str
    way: tuple[int, int]
    process: psutil.Process


@dataclass
class Usage:
    """What the server and this process took while a block ran.

    Attributes:
        resident_bytes: the server's memory, a fifth of a second apart.
        server_cores: in the mean.
        generator_cores: of this process.
    """

    resident_bytes: list[int]
    server_cores: float = 0.0
    generator_cores: float = 0.0

    @property
    def first_bytes(self) -> int:
        """When the block began."""
        return self.resident_bytes[0]

    @property
    def last_bytes(self) -> int:
        """When it ended."""
        return self.resident_bytes[-1]

    @property
    def most_bytes(self) -> int:
        """At any time of it."""
        return max(self.resident_bytes)

    @property
    def growth(self) -> float:
        """The median of the last fifth over that of the first."""
        fifth = math.ceil(len(self.resident_bytes) / 5)
        return median(self.resident_bytes[-fifth:]) / median(self.resident_bytes[:fifth])


@contextmanager
def running_server(bundle: Path, log: Path, profile: Path | None = None) -> Generator[Server]:
    """Run a server on free ports, on the CPU, until the block ends.

    Args:
        bundle: what it serves.
        log: where its log goes.
        profile: where cProfile's account of its event loop goes, at its end.
    """
    program = ["benchmarks.profiled", str(profile)] if profile else ["alinfik.server"]
    options = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--log-format", "json"]
    with running([*program, "--bundle", str(bundle), *options], log) as server:
        yield server


@contextmanager
def running(program: list[str], log: Path) -> Generator[Server]:
    """Run a Python module and its arguments, which says in its log when it is ready."""
    command = [sys.executable, "-m", *program]
    with log.open("w") as written, subprocess.Popen(command, stderr=written) as process:
        try:
            ready = _wait_until_ready(process, log)
            way = ready["batch_tokens"], ready["workers"]
            yield Server(ready["grpc"], ready["metrics"], way, psutil.Process(process.pid))
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    while True:
        ended = process.poll() is not None
        for line in log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("message") == "ready":
                return event
        if ended:
            raise SystemExit(f"the server ended before it was ready; {log} says why")
        time.sleep(0.1)


@contextmanager
def usage(server: psutil.Process) -> Generator[Usage]:
    """Watch the server, with its Kafka process, and this process until the block ends."""
    found, stop = Usage([_resident_bytes(server)]), threading.Event()

    def watch() -> None:
        while not stop.wait(_EVERY_SECONDS):
            found.resident_bytes.append(_resident_bytes(server))

    watcher = threading.Thread(target=watch)
    # The server is a child of this process, and its time is not this one's.
    before = cpu_seconds(server), _own_cpu_seconds(psutil.Process())
    begun = time.perf_counter()
    watcher.start()
    try:
        yield found
    finally:
        seconds = time.perf_counter() - begun
        after = cpu_seconds(server), _own_cpu_seconds(psutil.Process())
        found.server_cores, found.generator_cores = (
            (end - start) / seconds for start, end in zip(before, after, strict=True)
        )
        stop.set()
        watcher.join()


def cpu_seconds(process: psutil.Process) -> float:
    """What a process and its children have taken so far."""
    return sum(map(_own_cpu_seconds, _family(process)))


def _own_cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _resident_bytes(process: psutil.Process) -> int:
    return sum(one.memory_info().rss for one in _family(process))


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children()]


def print_profile(profile: Path, samples: float, count: int) -> None:
    """Print the ``count`` functions that took most, by their own time, in µs a sample."""
    stats = pstats.Stats(str(profile)).stats
    print(f"{'µs a sample':>12} {'with callees':>12} {'calls a sample':>14}  function")
    by_own_time = sorted(stats.items(), key=lambda entry: -entry[1][2])
    for (file, line, function), (_, calls, own, total, _) in by_own_time[:count]:
        where = f"{Path(file).name}:{line} {function}" if line else function
        print(
            f"{1e6 * own / samples:12.2f} {1e6 * total / samples:12.2f} "
            f"{calls / samples:14.2f}  {where}"
        )
