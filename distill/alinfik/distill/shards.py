"""Values shards of a pool on the devices of one machine.

In: shards of rows. Out: `(number, table)` a shard, in any order. One device is used by this process
itself; several have a process each, since one interpreter cannot feed them. Knows nothing of files.
"""

import itertools
import os
import signal
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import torch
from torch import multiprocessing  # its processes share tensors' memory

from alinfik.command import FailedError
from alinfik.command.progress import Advance
from alinfik.distill.labeller import Job, Labeller
from alinfik.distill.samples import Row

# Shards that wait for a worker: one, so that none is idle while rows are read.
_QUEUED_PER_WORKER = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """Some rows of the pool that stand together; valued at once or not at all."""

    number: int
    rows: list[Row]


def local_devices(workers: int | None) -> list[torch.device]:
    """Return a device for every worker: the GPUs in turn, or the CPU for all.

    Args:
        workers: how many; one a GPU by default, and one where there is none.
    """
    gpus = torch.cuda.device_count()
    count = workers or max(gpus, 1)
    if not gpus:
        return [torch.device("cpu")] * count
    return [torch.device("cuda", index % gpus) for index in range(count)]


def label_here(
    labeller: Labeller, shards: Iterable[Shard], advance: Advance
) -> Generator[tuple[int, pa.Table]]:
    """Value shards one after the other in this process."""
    for shard in shards:
        yield shard.number, labeller.label(shard.rows, advance)


def label_in_processes(
    job: Job, shards: Iterable[Shard], devices: list[torch.device], advance: Advance
) -> Generator[tuple[int, pa.Table]]:
    """Value shards in a process a device; at most two shards a device are in memory.

    Raises:
        FailedError: a worker died, as it does when the machine runs out of memory; or shared
            memory has no room for the targets' gradients, as in a container.
    """
    _share(job)
    # Imports take ten seconds: once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    places = context.SimpleQueue()
    for device in devices:
        places.put(str(device))
    threads = max(1, (os.cpu_count() or 1) // len(devices))
    waiting = iter(shards)
    with ProcessPoolExecutor(len(devices), context, _start, (job, places, threads)) as pool:

        def submit(count: int) -> dict[Future[pa.Table], int]:
            return {
                pool.submit(_label, shard.rows): shard.number
                for shard in itertools.islice(waiting, count)
            }

        try:
            running = submit(len(devices) * (1 + _QUEUED_PER_WORKER))
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    number, table = running.pop(future), future.result()
                    running |= submit(1)
                    advance(table.num_rows)
                    yield number, table
        except BrokenProcessPool as error:
            raise FailedError(
                "a labelling worker died, perhaps for want of memory; lower --workers or "
                "--batch-tokens, and run the same command again to go on"
            ) from error
        except BaseException:
            # Leaving would wait for the shards under way, which may be minutes.
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _share(job: Job) -> None:
    """Move the gradients to where workers read them too."""
    try:
        for gradient in job.gradients.values():
            gradient.share_memory_()
    except RuntimeError as error:
        size = sum(gradient.nbytes for gradient in job.gradients.values())
        raise FailedError(
            f"the targets' gradients, {size / 1e6:,.0f} MB, do not fit into shared memory "
            "(/dev/shm), from which several workers read them; give it more, as a container's "
            f"--shm-size does, or --workers 1 ({error})"
        ) from error


# Of a worker's process: what `_start` was given.
_given: list[tuple[Job, torch.device]] = []


def _start(job: Job, places: Any, threads: int) -> None:
    # An interrupt at the terminal reaches all processes; the one that began the others ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _given.append((job, torch.device(places.get())))


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


@cache
def _labeller() -> Labeller:
    # With the first shard and not before, so that what goes wrong is that shard's exception.
    [(job, device)] = _given
    return job.labeller(device)


def _label(rows: list[Row]) -> pa.Table:
    def no_progress(units: int = 1, note: str = "") -> None:
        """The parent counts whole shards."""

    return _labeller().label(rows, no_progress)
