"""The same labels and the same files, whoever computes them."""

import os
import resource
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from alinfik.command import FailedError
from alinfik.distill.commands import Label
from alinfik.distill.label import label, recipe_of
from alinfik.distill.labeller import Job
from alinfik.distill.labels import read_labels
from alinfik.distill.llm import ModelError, choose_device
from alinfik.distill.shards import label_in_processes, local_devices
from tests.distill.conftest import write_rows
from tests.distill.processes import started


@pytest.fixture
def settings(tiny_llm: Path, pool: Path, target: Path, tmp_path: Path) -> Label:
    return Label(
        model=str(tiny_llm),
        target={"gsm8k": str(target), "again": str(target)},
        pool=[str(pool)],
        out=tmp_path / "alone",
        cache=tmp_path / "cache",
        dtype="float32",
        shard_samples=3,
    )


def command(settings: Label, *options: str) -> list[str]:
    return [
        *("label", "--model", settings.model),
        *(f"--target={name}={source}" for name, source in settings.target.items()),
        *("--pool", settings.pool[0]),
        *("--cache", str(settings.cache)),
        *("--dtype", settings.dtype),
        *("--shard-samples", str(settings.shard_samples)),
        *options,
    ]


def labelling(settings: Label, directory: Path) -> ForkServerProcess:
    """Two workers, each of which has written a shard."""
    out = directory / "together"
    arguments = command(settings, "--workers", "2", "--out", str(out))
    process = started(arguments, directory / "messages")
    while process.is_alive() and len(list(out.glob("part-*"))) < 2:
        time.sleep(0.01)
    assert process.pid is not None
    return process


def last_message(directory: Path) -> str:
    return (directory / "messages").read_text().splitlines()[-1]


def assert_same(settings: Label, out: Path) -> None:
    alone, together = read_labels(settings.out), read_labels(out)
    assert together.rows == alone.rows
    assert together.manifest == alone.manifest
    np.testing.assert_allclose(together.values, alone.values, rtol=1e-4, atol=1e-6)
    assert {path.name for path in out.iterdir()} == {path.name for path in settings.out.iterdir()}


@pytest.mark.parametrize(
    "options",
    [("--workers", "2"), ("--engine", "ray", "--workers", "2")],
    ids=["processes", "ray"],
)
def test_two_workers_label_as_one(
    settings: Label, options: tuple[str, ...], tmp_path: Path
) -> None:
    label(settings)
    out = tmp_path / "together"
    out.mkdir()
    messages = tmp_path / "messages"
    process = started(command(settings, *options, "--out", str(out)), messages)
    process.join()
    assert process.exitcode == 0, messages.read_text()
    assert "label pool: 20/20" in messages.read_text()
    assert_same(settings, out)
    # What one began, the other finishes.
    (out / "manifest.json").unlink()
    (out / "part-00003.parquet").unlink()
    label(settings.model_copy(update={"out": out}))
    assert_same(settings, out)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_workers_end_with_the_run(settings: Label, ending: signal.Signals, tmp_path: Path) -> None:
    write_rows(Path(settings.pool[0]), 2000)
    process = labelling(settings, tmp_path)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    os.kill(process.pid, ending)
    process.join()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    if ending == signal.SIGINT:
        assert process.exitcode == 130
        assert last_message(tmp_path) == "alinfik-distill: interrupted"


def test_a_worker_that_dies_is_told(settings: Label, tmp_path: Path) -> None:
    write_rows(Path(settings.pool[0]), 2000)
    process = labelling(settings, tmp_path)
    # A server between them and the run begins them.
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if child.ppid() != process.pid]
    max(workers, key=lambda worker: worker.cpu_times().user).kill()
    process.join()
    assert process.exitcode == 1
    assert "a labelling worker died" in last_message(tmp_path)
    assert "Traceback" not in (tmp_path / "messages").read_text()


def test_too_little_shared_memory_is_told(settings: Label) -> None:
    job = Job(recipe_of(settings), "0" * 64, {}, {"gsm8k": torch.zeros(1_000_000)})
    workers = label_in_processes(job, [], local_devices(2), lambda _units=1, _note="": None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Of the files there too.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(FailedError, match="gradients, 4 MB, do not fit into shared memory"):
            next(workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_worker_with_another_model_is_refused(settings: Label) -> None:
    with pytest.raises(ModelError, match="other weights than the one"):
        Job(recipe_of(settings), "0" * 64, {}, {}).labeller(choose_device())
