"""How soon a stopped server's partitions are another's: `python -m benchmarks.takeover`.

Two servers of one group drain a backlog from one broker of Apache Kafka, exactly once, with a model
that costs next to nothing. In the midst of it one gets SIGTERM; it commits what it has in flight
and leaves, and the other takes its partitions over. Half a minute a try on two cores. A JSON object
is the last line, of the slowest try:

    takeover_seconds   from SIGTERM until the other server has every partition       <= 5
    exit_seconds       from SIGTERM until the process has ended
    redone_records     valuations of records that had one already                    <= 0
"""

import itertools
import json
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.backlog import PARTITIONS, Backlog
from benchmarks.pool import arguments
from benchmarks.serving import Server, running_server
from benchmarks.stream import environment, rows, trivial_bundle
from benchmarks.traffic import Traffic, fresh_traffic
from demo.broker import ApacheKafka, Broker

_RECORDS = 100_000
_RECORD_BYTES = 500
_STRUCK_AT = 0.3
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.02


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--tries", type=int, default=5)
    options = parser.parse_args()
    traffic = fresh_traffic(options.data, options.out)
    tries: list[dict[str, float]] = []
    with ApacheKafka() as broker, tempfile.TemporaryDirectory() as directory:
        bundle = trivial_bundle(Path(directory) / "trivial")
        for _ in range(options.tries):
            tries.append(struck(broker, traffic, bundle, options.out))
            print(tries[-1], flush=True)
    print(json.dumps({name: max(one[name] for one in tries) for name in tries[0]}))


def struck(broker: Broker, traffic: Traffic, bundle: Path, out: Path) -> dict[str, float]:
    """Stop one of two servers in the midst of a backlog."""
    backlog = Backlog(broker, itertools.islice(rows(traffic, _RECORD_BYTES), _RECORDS))
    with (
        environment(backlog.settings()),
        running_server(bundle, out / "stays.log") as stays,
        running_server(bundle, out / "leaves.log") as leaves,
    ):
        _until(lambda: _partitions(stays) == _partitions(leaves) == PARTITIONS / 2)
        backlog.wait(_STRUCK_AT)
        begun = time.monotonic()
        leaves.process.terminate()
        _until(lambda: _partitions(stays) == PARTITIONS)
        taken = time.monotonic() - begun
        leaves.process.wait(_PATIENCE_SECONDS)
        ended = time.monotonic() - begun
        backlog.wait()
    return {
        "takeover_seconds": round(taken, 3),
        "exit_seconds": round(ended, 3),
        "redone_records": backlog.valuations() - backlog.records,
    }


def _partitions(server: Server) -> float:
    """How many partitions a server says that it values."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        if family.name == "alinfik_kafka_assigned_partitions":
            return family.samples[0].value
    return 0


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("the servers do not share the partitions; their logs say why")
        time.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    main()
