"""The Kafka stream end to end, against the model alone: `python -m benchmarks.stream`.

Four minutes on two cores, which the server shares with Apache Kafka, one broker. It measures

    the limit      the model in ONNX Runtime with the texts tokenised ahead, sorted by length, in
                   the best batches found, no server and no Kafka (`benchmarks.limit`); just before
                   and just after each delivery, whose ratio is to the mean of the two
    the stream     real texts, `fresh.jsonl` of `benchmarks.pool`, wait on the topic before the
                   server starts; how quickly their valuations appear, once with exactly-once
                   delivery and once with at-least-once
    the trivial    the same with a model and a tokeniser that cost next to nothing, and records of
                   500 bytes: what the stream itself takes
    the client     the same records, copied by the client alone (`benchmarks.copier`)

No text comes twice, since a server remembers what it has valued: six letters that count up stand in
each (`benchmarks.traffic`). The server runs on the CPU with its defaults. Rates are over the middle
half of the records, by the broker's clock. A JSON object is the last line:

    limit_samples_per_second     when its best batches were found
    eos_ratio                    exactly once, over the limit           >= 0.85
    alo_ratio                    at least once, over the limit
    trivial_records_per_second   exactly once                           >= 15,000
    client_records_per_second    exactly once, and nothing but kafka-python: the trivial's limit
    ..._first_to_last            the same rates with start and end, over all records
    ..._cpu_microseconds         of the servers, all threads, a record: the one figure that other
                                 programs on the machine hardly change

`--servers 2` starts so many of a group, a core each, in place of one with all cores.

`--backlog 1000000` measures instead how a backlog of small records is drained, and whether the
server's memory (RSS) stays as it is:

    backlog_records_per_second
    backlog_memory_growth        after the first tenth of the records, the median memory of the last
                                 fifth of the time over that of the first   <= 1.05
    backlog_memory_ratio         the most at any moment after the first tenth, over the most before

and with `--grpc` beside it `Score` of 8 samples at 30 % of what the server bears, by Poisson
arrivals, first without Kafka and then while the backlog is drained. The broker, which has a machine
of its own wherever latency matters, gives way to the others then (it is "nice"):

    grpc_p99_ms, grpc_p99_ms_draining
    grpc_p99_ratio               the latter over the former             <= 2

While calls come, less of the stream is under way: with `--grpc` its memory is no measure of growth.
"""

import asyncio
import itertools
import json
import os
import tempfile
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer, models

from alinfik.distill.bundle import read_manifest
from alinfik.distill.samples import Row
from benchmarks.backlog import Backlog
from benchmarks.bundles import trained
from benchmarks.limit import Alone
from benchmarks.load import Generator as LoadGenerator
from benchmarks.load import Load
from benchmarks.pool import arguments
from benchmarks.serving import Server, cpu_seconds, running, running_server, usage
from benchmarks.traffic import Traffic, fresh_traffic
from demo.broker import ApacheKafka, Broker
from tests.tiny_bundle import read_manifest as read_tiny_manifest
from tests.tiny_bundle import write_manifest, write_tiny_bundle

_DELIVERIES = {"eos": "exactly_once", "alo": "at_least_once"}
# At least so many batches of 500 that a batch more or less is a small part.
_LEAST_RECORDS = 5_000
_TRIVIAL_BYTES = 500
_TRIVIAL_RECORDS = 150_000
_SMALL_BYTES = 150
# Until then memory grows: caches fill, and threads allocate for the first time.
_WARM_SHARE = 0.1
_GRPC_SIZE = 8
_GRPC_CALLERS = 64
_GRPC_LOAD = 0.3
_BROKER_NICENESS = 10


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--backbone", default="encoder", help="whose bundle to serve")
    parser.add_argument("--bundle", type=Path, help="another bundle to serve")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--delivery", nargs="+", choices=_DELIVERIES, default=list(_DELIVERIES))
    parser.add_argument("--trivial", action="store_true", help="the trivial and the client alone")
    parser.add_argument("--servers", type=int, default=0, help="of one group, a core each")
    parser.add_argument("--backlog", type=int, help="drain so many small records, and no more")
    parser.add_argument("--grpc", action="store_true", help="load gRPC beside the backlog")
    options = parser.parse_args()
    # The limit is the CPU's, so the server must not find a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    traffic = fresh_traffic(options.data, options.out)
    with ApacheKafka() as broker, tempfile.TemporaryDirectory() as directory:
        bench = Bench(broker, traffic, options.out, options.servers)
        trivial = trivial_bundle(Path(directory) / "trivial")
        if options.backlog:
            found = bench.backlog(trivial, options.backlog, options.seconds, grpc=options.grpc)
        else:
            found = bench.trivial(trivial, options.delivery)
            if not options.trivial:
                bundle = options.bundle or trained(options.backbone, options.data, options.out)
                found |= bench.ratios(bundle, options.seconds, options.delivery)
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


class Bench:
    """One broker, and servers that value what is on it.

    Args:
        broker: that is running.
        traffic: texts that no server has seen.
        out: directory of the servers' logs.
        servers: how many, a core each; 0 is one with all cores.
    """

    def __init__(self, broker: Broker, traffic: Traffic, out: Path, servers: int) -> None:
        self._broker = broker
        self._traffic = traffic
        self._out = out
        self._servers = servers

    def ratios(self, bundle: Path, seconds: float, deliveries: list[str]) -> dict[str, float]:
        """The stream's rates over the model's own."""
        alone = Alone(bundle, self._traffic.rows())
        count = max(_LEAST_RECORDS, int(alone.samples_per_second * seconds))
        found = {"limit_samples_per_second": alone.samples_per_second}
        for name in deliveries:
            records = itertools.islice(rows(self._traffic), count)
            with alone.around(seconds) as limit:
                found |= self.drain(name, bundle, records, name)
            rate = found[f"{name}_records_per_second"]
            found[f"{name}_ratio"] = rate / limit.samples_per_second
        return found

    def trivial(self, bundle: Path, deliveries: list[str]) -> dict[str, float]:
        """What the stream itself can do."""
        found: dict[str, float] = {}
        for delivery in deliveries:
            name = "trivial" if delivery == "eos" else f"trivial_{delivery}"
            found |= self.drain(name, bundle, self._trivial_rows(), delivery)
        return found | self.drain("client", None, self._trivial_rows(), deliveries[0])

    def _trivial_rows(self) -> Iterator[Row]:
        return itertools.islice(rows(self._traffic, _TRIVIAL_BYTES), _TRIVIAL_RECORDS)

    def backlog(self, bundle: Path, count: int, seconds: float, *, grpc: bool) -> dict[str, float]:
        """Drain small records, and watch memory, and gRPC if it is loaded."""
        found: dict[str, float] = {}
        idle = rate = 0.0
        if grpc:
            with running_server(bundle, self._out / "stream.log") as server:
                capacity = asyncio.run(
                    _generator(server, bundle).closed_loop(
                        self._traffic.requests(_GRPC_SIZE), _GRPC_CALLERS, seconds
                    )
                ).goodput
                rate = _GRPC_LOAD * capacity / _GRPC_SIZE
                idle = self._p99(server, bundle, rate, seconds)
            found |= {"grpc_samples_per_second": rate * _GRPC_SIZE, "grpc_p99_ms": idle}
        backlog = Backlog(self._broker, itertools.islice(rows(self._traffic, _SMALL_BYTES), count))
        print(f"{count:,} records, {backlog.bytes / 1e6:,.0f} MB", flush=True)
        with (
            environment(backlog.settings()),
            running_server(bundle, self._out / "stream.log") as server,
        ):
            with usage(server.process) as warming:
                backlog.wait(_WARM_SHARE)
            with usage(server.process) as used:
                if grpc:
                    os.setpriority(os.PRIO_PGRP, self._broker.pid, _BROKER_NICENESS)
                    draining = self._p99(server, bundle, rate, seconds)
                    found |= {"grpc_p99_ms_draining": draining, "grpc_p99_ratio": draining / idle}
                backlog.wait()
        drained = backlog.drained()
        return found | {
            "backlog_records": count,
            "backlog_records_per_second": drained.records_per_second,
            "backlog_first_to_last": drained.first_to_last_per_second,
            "backlog_memory_megabytes": used.most_bytes / 1e6,
            "backlog_memory_ratio": used.most_bytes / warming.most_bytes,
            "backlog_memory_growth": used.growth,
            "backlog_server_cores": used.server_cores,
        }

    def drain(
        self, name: str, bundle: Path | None, rows: Iterator[Row], delivery: str
    ) -> dict[str, float]:
        """Put the rows on a topic, start the servers, and see how quickly the rows are valued.

        Args:
            name: of the figures.
            bundle: what the servers value by; None for the client alone, which copies.
            rows: what is valued.
            delivery: one of the two of ``--delivery``.
        """
        backlog = Backlog(self._broker, rows)
        settings = backlog.settings() | {"ALINFIK_KAFKA_DELIVERY": _DELIVERIES[delivery]}
        cores = sorted(os.sched_getaffinity(0))
        shares = [{core} for core in cores[: self._servers]] or [set(cores)]
        with environment(settings), ExitStack() as running:

            def start(number: int, share: set[int]) -> Server:
                with _on_cores(share):
                    log = self._out / f"stream-{number}.log"
                    server = running_server(bundle, log) if bundle else client_alone(log)
                    return running.enter_context(server)

            # Together, or the first would have done the work before the second is there.
            with ThreadPoolExecutor() as pool:
                servers = list(pool.map(start, range(len(shares)), shares))
            before = _cpu_seconds(servers)
            backlog.wait()
            seconds = _cpu_seconds(servers) - before
        drained = backlog.drained(once=delivery == "eos")
        size = backlog.bytes // backlog.records
        print(f"{name}: {backlog.records:,} records of {size} bytes", flush=True)
        return {
            f"{name}_records_per_second": drained.records_per_second,
            f"{name}_first_to_last": drained.first_to_last_per_second,
            f"{name}_cpu_microseconds": 1e6 * seconds / backlog.records,
        }

    def _p99(self, server: Server, bundle: Path, rate: float, seconds: float) -> float:
        requests = self._traffic.requests(_GRPC_SIZE)
        load: Load = asyncio.run(_generator(server, bundle).open_loop(requests, rate, seconds))
        if load.failed:
            raise SystemExit(f"{load.failed} calls were neither answered nor refused")
        return load.latency_ms(99)[0]


def rows(traffic: Traffic, record_bytes: int = 0) -> Iterator[Row]:
    """Rows without end; where ``record_bytes`` is given, their JSON is about so long."""
    while True:
        for row in traffic.rows():
            yield of_length(row, record_bytes) if record_bytes else row


def trivial_bundle(directory: Path) -> Path:
    """The tests' bundle, whose tokeniser takes every text for one unknown word."""
    write_tiny_bundle(directory)
    vocabulary = {"<pad>": 0, "<begin>": 1, "<end>": 2, "<unknown>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))  # noqa: S106
    tokenizer.save(str(directory / "tokenizer.json"))
    write_manifest(directory, read_tiny_manifest(directory))
    return directory


def of_length(row: Row, record_bytes: int) -> Row:
    """The row without a prompt, its completion repeated and cut until its JSON is so long."""
    fields = {"id": row.id, "provider": row.provider, "prompt": "", "completion": ""}
    room = record_bytes - len(json.dumps(fields))
    # Letters alone: JSON escapes the others, and a record is to have the same length as the next.
    text = "".join(c if c.isalnum() and c.isascii() else " " for c in row.completion)
    return replace(row, prompt="", completion=(text * (room // len(text) + 1))[:room])


def client_alone(log: Path) -> AbstractContextManager[Server]:
    """Copies records, as the server would write them."""
    return running(["benchmarks.copier"], log)


def _generator(server: Server, bundle: Path) -> LoadGenerator:
    return LoadGenerator(server.address, read_manifest(bundle).bundle_id)


def _cpu_seconds(servers: list[Server]) -> float:
    return sum(cpu_seconds(server.process) for server in servers)


@contextmanager
def environment(settings: dict[str, str]) -> Generator[None]:
    """Processes that are started meanwhile find these variables."""
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]


@contextmanager
def _on_cores(cores: set[int]) -> Generator[None]:
    """Processes that this thread starts meanwhile have no others."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


if __name__ == "__main__":
    main()
