"""The same labels and the same files, whoever computes them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from alinfik.distill.commands import Label
from alinfik.distill.label import label, recipe_of
from alinfik.distill.labeller import Job
from alinfik.distill.labels import read_labels
from alinfik.distill.llm import ModelError, choose_device
from tests.distill.conftest import write_rows


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
        *(sys.executable, "-m", "alinfik.distill", "label"),
        *("--model", settings.model),
        *(f"--target={name}={source}" for name, source in settings.target.items()),
        *("--pool", settings.pool[0]),
        *("--cache", str(settings.cache)),
        *("--dtype", settings.dtype),
        *("--shard-samples", str(settings.shard_samples)),
        *options,
    ]


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
    run = [*command(settings, *options), "--out", str(out)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "label pool: 20/20" in done.stderr
    assert_same(settings, out)
    # What one began, the other finishes.
    (out / "manifest.json").unlink()
    (out / "part-00003.parquet").unlink()
    label(settings.model_copy(update={"out": out}))
    assert_same(settings, out)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_workers_end_with_the_run(settings: Label, ending: signal.Signals, tmp_path: Path) -> None:
    write_rows(Path(settings.pool[0]), 2000)
    out = tmp_path / "together"
    run = [*command(settings, "--workers", "2"), "--out", str(out)]
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(list(out.glob("part-*"))) < 2:
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        process.send_signal(ending)
        message = process.communicate()[1]
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    if ending == signal.SIGINT:
        assert process.returncode == 130
        assert message.splitlines()[-1] == "alinfik-distill: interrupted"


def test_a_worker_that_dies_is_told(settings: Label, tmp_path: Path) -> None:
    write_rows(Path(settings.pool[0]), 2000)
    out = tmp_path / "together"
    run = [*command(settings, "--workers", "2"), "--out", str(out)]
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(list(out.glob("part-*"))) < 2:
            time.sleep(0.01)
        busiest = max(
            psutil.Process(process.pid).children(), key=lambda child: child.cpu_times().user
        )
        busiest.kill()
        message = process.communicate()[1]
    assert process.returncode == 1
    assert "a labelling worker died" in message.splitlines()[-1]
    assert "Traceback" not in message


def test_a_worker_with_another_model_is_refused(settings: Label) -> None:
    with pytest.raises(ModelError, match="other weights than the one"):
        Job(recipe_of(settings), "0" * 64, {}, {}).labeller(choose_device())
