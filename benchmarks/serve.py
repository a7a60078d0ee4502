"""The gRPC server under load, against the model alone: `python -m benchmarks.serve`.

One run, eight minutes on two cores, which the server and its load generator share. It measures

    the limit      the model in ONNX Runtime with the texts tokenised ahead, sorted by length, in
                   the best batches found, no server (`benchmarks.limit`); just before and just
                   after each of the loads below, whose ratios are to the mean of the two, since a
                   machine may be quicker or slower a minute later
    closed loops   `Score` with 1, 8 and 32 samples a request, and `ScoreStream` with 64 a request
                   on one stream and on four; 256 samples being unanswered in all, 128 or 192 where
                   the model takes seconds for as many, and on four streams two requests on each
    open loops     `Score` with 8 samples a request, or more where the model's full batch has them,
                   at 50, 80 and 300 % of what the closed loop of that size reached, and with one
                   sample a request at 80 %: Poisson arrivals that wait for nobody, latency from the
                   moment a request was due, no retries

`--rounds 3` does all of that three times, and medians count: a machine that is shared changes
within a measurement too. Texts are real, `fresh.jsonl` of `benchmarks.pool`, and none is sent
twice, since a server may remember what it has valued: six letters that count up stand at the place
of each completion's first six characters, in the server's texts and in the limit's alike
(`benchmarks.traffic`). The server runs on the CPU with its defaults. A table a round, one of the
figures, and a JSON object as the last line:

    limit_samples_per_second   the mean of all
    stream_ratio        samples a second by one stream over the limit                     >= 0.90
    unary32_ratio       the same by Score with 32 samples a request                       >= 0.85
    goodput_ratio_300   samples valued a second at 300 % over the most that requests of
                        that size reached otherwise                                       >= 0.95
    p99_over_batch_80   p99 at 80 %, one sample a request, over the time of one of the
                        server's full batches in the model, with as many at a time as the
                        server runs                                                        < 4
    p99_over_queue_80   the same p99 over that of a flawless server for the same arrivals: one that
                        values them one by one at the limit's speed and never rests
    ..._80_of_8         both for the open loop with 8 samples a request, or more
    refusal_ms_p50      median time to RESOURCE_EXHAUSTED at 300 %                        <= 50
    retry_info          share of refusals that say when to come back                      >= 1
    memory_ratio_300    most memory (RSS) at 300 % over that when it began
    failed              requests neither answered nor refused                             <= 0

A bag of embeddings (`--backbone bag`) costs the model next to nothing, so the run measures the
server's own work, and against a speed: `stream_samples_per_second` >= 20,000.

`--soak-seconds 300` adds so long a load at 300 %, and `memory_ratio_soak`, memory at its end over
that when it began, <= 1.05. `--ghz` has ghz repeat the closed loop of 32. `--profile` loads a
server under cProfile with one stream, and prints what its event loop spends its time on; all Python
is slower under a profiler, so read shares and not sums.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from alinfik.distill.bundle import read_manifest
from benchmarks.bundles import trained
from benchmarks.ghz import Opinion, by_ghz
from benchmarks.limit import Alone
from benchmarks.load import Generator, Load
from benchmarks.pool import arguments
from benchmarks.serve_report import Point, report
from benchmarks.serving import Server, print_profile, running_server, usage
from benchmarks.traffic import Traffic, fresh_traffic

# At most as many as the server lets one stream have by default, and so few that a slow model is
# through with them well before `--queue-seconds`, past which the server refuses.
_MOST_IN_FLIGHT = 256
_IN_FLIGHT_SECONDS = 2.5
_STREAM_SIZE = 64
_OPEN_SIZE = 8
_GHZ_SIZE = 32
# What its file of requests may hold: 40 MB of text.
_GHZ_SAMPLES = 64_000
_PROFILED = 40


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--backbone", default="encoder", help="whose bundle to serve")
    parser.add_argument("--bundle", type=Path, help="another bundle to serve")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=1, help="of all of them; medians count")
    parser.add_argument("--soak-seconds", type=float, default=0.0, help="of load at 300 %%")
    parser.add_argument("--ghz", nargs="?", const="ghz", help="measure by ghz too; its path")
    parser.add_argument("--profile", action="store_true", help="profile a stream, and no more")
    options = parser.parse_args()
    if options.ghz and not shutil.which(options.ghz):
        parser.error(f"no {options.ghz}; go install github.com/bojand/ghz/cmd/ghz@latest")
    # The limit is the CPU's, so the server must not find a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    bundle = options.bundle or trained(options.backbone, options.data, options.out)
    traffic = fresh_traffic(options.data, options.out)
    log = options.out / "serve.log"
    if options.profile:
        profile(bundle, traffic, options.seconds, log)
        return
    alone = Alone(bundle, traffic.rows())
    with running_server(bundle, log) as server:
        bench = Bench(server, bundle, traffic, options.seconds, alone)
        rounds = [bench.round() for _ in range(options.rounds)]
        if options.soak_seconds:
            bench.soak(options.soak_seconds)
        opinion = bench.second_opinion(options.ghz) if options.ghz else None
    report(read_manifest(bundle).proxy.backbone, alone, server.way, rounds, opinion)


def in_flight(alone: Alone) -> int:
    """Samples to keep unanswered: a stream's requests, two at least, so that it is never idle."""
    requests = int(alone.samples_per_second * _IN_FLIGHT_SECONDS) // _STREAM_SIZE
    return _STREAM_SIZE * min(max(2, requests), _MOST_IN_FLIGHT // _STREAM_SIZE)


def profile(bundle: Path, traffic: Traffic, seconds: float, log: Path) -> None:
    """Print what the event loop of a server under a profiler does for one stream's samples."""
    profiled = log.with_suffix(".prof")
    with running_server(bundle, log, profiled) as server:
        generator = Generator(server.address, read_manifest(bundle).bundle_id)
        in_flight = _MOST_IN_FLIGHT // _STREAM_SIZE
        load = generator.streams(traffic.requests(_STREAM_SIZE), 1, in_flight, seconds)
        server.process.send_signal(signal.SIGUSR1)
        answers = asyncio.run(load).answers
    print_profile(profiled, sum(answer.valued for answer in answers), _PROFILED)


class Bench:
    """One server, loaded in one way after another; ``points`` is what came of this round's."""

    def __init__(
        self, server: Server, bundle: Path, traffic: Traffic, seconds: float, alone: Alone
    ) -> None:
        self.points: dict[str, Point] = {}
        self._server = server
        self._generator = Generator(server.address, read_manifest(bundle).bundle_id)
        self._traffic = traffic
        self._seconds = seconds
        self._alone = alone
        self._in_flight = in_flight(alone)

    def round(self) -> dict[str, Point]:
        """Load the server in every way; return what came of each, by name."""
        self.points = {}
        self._closed_loops()
        self._open_loops()
        return self.points

    def _closed_loops(self) -> None:
        """See how much the server can do, by every way in."""
        for size in (1, 8, 32):
            self._score(size)
        for streams in (1, 4):
            self._stream(streams)

    def _open_loops(self) -> None:
        """See how it bears some of that, and more than that."""
        size = self._open_size()
        if f"score{size}" not in self.points:
            self._score(size)
        self._open("open80single", 1, 80)
        for percent in (50, 80, 300):
            self._open(f"open{percent}", size, percent)

    def soak(self, seconds: float) -> None:
        """See how it bears more than it can for so long."""
        self._open("soak", self._open_size(), 300, seconds)

    def _open_size(self) -> int:
        """Samples a request of an open loop: fewer than a batch would measure gRPC alone."""
        size = _OPEN_SIZE
        while 2 * size <= self._alone.samples_per_batch(self._server.way):
            size *= 2
        return size

    def _stream(self, streams: int) -> None:
        """Keep so many streams busy."""
        requests = self._traffic.requests(_STREAM_SIZE)
        depth = max(2, self._in_flight // _STREAM_SIZE // streams)
        load = self._generator.streams(requests, streams, depth, self._seconds)
        self._run(f"stream{streams}", f"{streams} x ScoreStream of {_STREAM_SIZE}", load)

    def second_opinion(self, ghz: str) -> Opinion:
        """Have ghz measure what the closed loop of 32 did, for about as long."""
        expected = self.points[f"score{_GHZ_SIZE}"].load.goodput * self._seconds
        rounds = range(0, min(int(expected), _GHZ_SAMPLES), len(self._traffic))
        rows = [row for _ in rounds for row in self._traffic.rows()]
        return by_ghz(ghz, self._server.address, rows, _GHZ_SIZE, self._in_flight // _GHZ_SIZE)

    def _score(self, size: int) -> None:
        callers = self._in_flight // size
        load = self._generator.closed_loop(self._traffic.requests(size), callers, self._seconds)
        self._run(f"score{size}", f"Score of {size}, {callers} callers", load)

    def _open(self, name: str, size: int, percent: int, seconds: float | None = None) -> None:
        rate = self.points[f"score{size}"].load.goodput / size * percent / 100
        seconds = seconds or self._seconds
        load = self._generator.open_loop(self._traffic.requests(size), rate, seconds)
        self._run(name, f"Score of {size}, {percent} % load, {seconds:.0f} s", load)

    def _run(self, name: str, label: str, load: Coroutine[Any, Any, Load]) -> None:
        around = self._alone.around(self._seconds / 2, self._server.way)
        with around as limit, usage(self._server.process) as used:
            done = asyncio.run(load)
        point = self.points[name] = Point(label, done, used, limit)
        print(f"{label}: {done.goodput:,.0f} samples/s, {point.ratio:.2f} of the limit", flush=True)


if __name__ == "__main__":
    main()
