"""Values shards of a pool with Ray Data, on every machine of a cluster.

In: shards of rows. Out: `(number, table)` a shard, in any order. Rows and labels travel through
Ray's object store, so that workers need the model and no file of ours. Knows nothing of files.
"""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Generator, Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from alinfik.command import CommandError, FailedError
from alinfik.command.progress import Advance
from alinfik.distill.labeller import Job, Labeller
from alinfik.distill.llm import choose_device
from alinfik.distill.rows import Row
from alinfik.distill.shards import Shard

_NUMBER, _ROWS = "shard", "shard_rows"


class _Worker:
    """One copy of the language model, on the device that Ray gives it."""

    def __init__(self, given: Any) -> None:
        import ray

        job: Any = ray.get(given)
        # Ray sets the number of threads by the CPUs that it gives, and shows the GPU that it gives.
        self._labeller: Labeller = job.labeller(choose_device())

    def __call__(self, block: pa.Table) -> pa.Table:
        def no_progress(units: int = 1, note: str = "") -> None:
            """The driver counts whole shards."""

        text = block.drop_columns([_NUMBER, _ROWS])
        table = self._labeller.label([Row(**row) for row in text.to_pylist()], no_progress)
        return _marked(table, block[_NUMBER][0].as_py())


def label_on_ray(
    job: Job, shards: Iterable[Shard], workers: int | None, advance: Advance
) -> Generator[tuple[int, pa.Table]]:
    """Value shards on the cluster that `RAY_ADDRESS` names, or one that is begun on this machine.

    Args:
        job: what every worker needs.
        shards: what to value.
        workers: how many copies of the model; by default one a GPU of the cluster or, where there
            is none, one a machine.
        advance: called with every shard's rows.

    Raises:
        CommandError: Ray is not installed.
        FailedError: the cluster does not answer, or a worker failed.
    """
    # Before it is imported: a pool under contract is nobody else's to count.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise CommandError("--engine ray needs Ray: pip install 'alinfik[ray]'") from error
    try:
        _connect(ray)
        options = _resources(ray, workers)
        context = ray.data.DataContext.get_current()
        # A shard is one block, however long its token values are.
        context.target_max_block_size = None
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        given = ray.put(job)
        blocks: list[Any] = [ray.put(_block(shard)) for shard in shards]
        labelled = ray.data.from_arrow_refs(blocks).map_batches(
            _Worker,  # pyright: ignore[reportArgumentType] the stubs ask for a narrower callable
            fn_constructor_args=(given,),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            **options,
        )
        parts: defaultdict[int, list[pa.Table]] = defaultdict(list)
        stream: Iterable[Any] = labelled.iter_batches(batch_size=None, batch_format="pyarrow")
        for part in stream:
            number, expected = (int(part[name][0].as_py()) for name in (_NUMBER, _ROWS))
            parts[number].append(part.drop_columns([_NUMBER, _ROWS]))
            if sum(table.num_rows for table in parts[number]) == expected:
                table = pa.concat_tables(parts.pop(number))
                advance(table.num_rows)
                yield number, table
    except (RayError, ConnectionError) as error:
        raise FailedError(
            f"labelling on Ray failed: {_reason(error)}; run the same command again to go on"
        ) from error


def _connect(ray: Any) -> None:
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        # Ray's workers step back for whatever else runs; here they are what runs.
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _resources(ray: Any, workers: int | None) -> dict[str, Any]:
    """Say how many workers there are, and what each is given: no more than every machine can."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    machines = [there for there in machines if there.get("CPU", 0) >= 1]
    gpus = int(sum(there.get("GPU", 0) for there in machines))
    count = workers or gpus or len(machines)
    pool = ray.data.ActorPoolStrategy(size=count)
    if gpus:
        # Beside a GPU a worker tokenises, no more.
        return {"compute": pool, "num_gpus": 1 / math.ceil(count / gpus)}
    smallest = int(min(there["CPU"] for there in machines))
    side_by_side = math.ceil(count / len(machines))
    return {"compute": pool, "num_cpus": max(1, smallest // side_by_side)}


def _block(shard: Shard) -> pa.Table:
    return _marked(pa.Table.from_pylist([asdict(row) for row in shard.rows]), shard.number)


def _marked(table: pa.Table, number: int) -> pa.Table:
    """Say of every row which shard it is of, and how many rows that has."""
    count = table.num_rows
    for name, value in ((_NUMBER, number), (_ROWS, count)):
        table = table.append_column(name, pa.array([value] * count, pa.int64()))
    return table


def _reason(error: BaseException) -> str:
    """Say the last line of what went wrong on a worker, without its traceback."""
    return str(error).strip().splitlines()[-1]
