"""A labelling run that is killed again and again loses nothing and doubles nothing."""

import os
import random
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from alinfik.distill.labels import read_labels
from tests.distill.conftest import write_rows
from tests.distill.processes import started

KILLS = 10
SHARDS = 40
SHARD_SAMPLES = 2


def labelling(tiny_llm: Path, directory: Path, out: Path) -> ForkServerProcess:
    arguments = [
        *("label", "--model", str(tiny_llm)),
        *("--target", f"t={directory / 'target.jsonl'}"),
        *("--pool", str(directory / "pool.jsonl")),
        *("--out", str(out)),
        *("--cache", str(directory / "cache")),
        *("--dtype", "float32"),
        *("--shard-samples", str(SHARD_SAMPLES)),
    ]
    return started(arguments, Path(os.devnull))


def shards_of(out: Path) -> int:
    return len(list(out.glob("part-*.parquet")))


def test_ten_kills_at_random_moments_change_nothing(tiny_llm: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pool.jsonl", SHARDS * SHARD_SAMPLES)
    write_rows(tmp_path / "target.jsonl", 3, seed=1)
    rng = random.Random(0)
    out = tmp_path / "killed"
    killed = 0
    while killed < KILLS:
        before = shards_of(out)
        # A few shards a life, and a moment of chance within the writing of the next.
        until = before + rng.randint(0, 3)
        process = labelling(tiny_llm, tmp_path, out)
        while process.is_alive() and (not out.exists() or shards_of(out) < until):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
        assert shards_of(out) >= before
        killed += 1
    assert not (out / "manifest.json").exists()

    undisturbed = tmp_path / "undisturbed"
    for place in (out, undisturbed):
        process = labelling(tiny_llm, tmp_path, place)
        process.join()
        assert process.exitcode == 0
    assert read_labels(out).table.equals(read_labels(undisturbed).table)
    assert read_labels(out).manifest == read_labels(undisturbed).manifest
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in undisturbed.iterdir()}
