"""The benchmark of the stream measures what it says: records of their length, each once."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from alinfik.distill.samples import Row
from benchmarks.backlog import Backlog
from benchmarks.stream import Bench, of_length, rows, trivial_bundle
from benchmarks.traffic import Traffic
from tests.kafka.conftest import apache_kafka

ROWS = [
    Row(
        id=str(n),
        provider="p",
        prompt="Why?",
        group="",
        completion=f'{n} texts, "quoted", of a pool.',
    )
    for n in range(5)
]


@pytest.mark.parametrize("record_bytes", [150, 500])
def test_a_row_of_a_length_has_it_as_json(record_bytes: int) -> None:
    for row in Traffic(ROWS).rows():
        made = of_length(row, record_bytes)
        assert made.completion[:6] == row.completion[:6]
        fields = {name: getattr(made, name) for name in ("id", "provider", "prompt", "completion")}
        assert len(json.dumps(fields)) == record_bytes


def some_rows(count: int) -> Iterator[Row]:
    return itertools.islice(rows(Traffic(ROWS), 150), count)


@pytest.mark.kafka
def test_a_backlog_is_drained_and_its_rate_is_that_of_all_records(tmp_path: Path) -> None:
    with apache_kafka() as broker:
        bench = Bench(broker, Traffic(ROWS), tmp_path, servers=0)
        # By a server, and by the client alone.
        for bundle in (trivial_bundle(tmp_path / "trivial"), None):
            found = bench.drain("test", bundle, some_rows(1_000), "eos")
            names = ("records_per_second", "first_to_last", "cpu_microseconds")
            assert set(found) == {f"test_{name}" for name in names}
            assert all(value > 0 for value in found.values())
        # Nobody values this one.
        waiting = Backlog(broker, some_rows(10))
        assert (waiting.records, waiting.bytes) == (10, 1_500)
        with pytest.raises(SystemExit, match="0 valuations of 10 records"):
            waiting.drained()
