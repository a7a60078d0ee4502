"""`alinfik-distill label`: values a pool against targets with the language model itself."""

import itertools
import math
import platform
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

import pyarrow as pa
import torch

from alinfik.command import progress
from alinfik.command.progress import Advance
from alinfik.distill.batches import memory_error
from alinfik.distill.ceiling import ceilings
from alinfik.distill.commands import Label
from alinfik.distill.directions import Direction, factorised
from alinfik.distill.disk import check_place
from alinfik.distill.gradient_cache import GradientCache
from alinfik.distill.labeller import Job
from alinfik.distill.labels import LabelsWriter
from alinfik.distill.llm import LLM
from alinfik.distill.losses import Parameters
from alinfik.distill.provenance import fingerprint_of, manifest_of
from alinfik.distill.ray_shards import label_on_ray
from alinfik.distill.recipe import Recipe
from alinfik.distill.samples import BadRows, DataError, Row, read_pool, read_rows
from alinfik.distill.shards import Shard, label_here, label_in_processes, local_devices
from alinfik.distill.survey import Survey, survey
from alinfik.distill.target import target_gradients
from alinfik.v1 import BundleManifest, Target

_RECORDED_PACKAGES = ("alinfik", "torch", "transformers", "tokenizers", "pyarrow")


@memory_error("lower --batch-tokens, then --token-limit, or narrow --parameters")
def label(settings: Label) -> None:
    """Write the labels directory that ``settings`` describe.

    Raises:
        CommandError: bad data, a bad model, or an output directory of another run.
    """
    check_place(settings.out, "directory")
    targets = {name: _read_target(source, settings) for name, source in settings.target.items()}
    pool = _survey(settings, targets)
    recipe = recipe_of(settings)
    llm = recipe.load_llm()
    # What `auto` means here it must mean on every worker.
    recipe = replace(recipe, dtype=str(llm.model.dtype).removeprefix("torch."))
    manifest = manifest_of(recipe, llm, targets)
    manifest.labels.sample_count = pool.size
    manifest.labels.pool_sha256 = pool.sha256
    writer = LabelsWriter(
        settings.out,
        fingerprint=fingerprint_of(recipe, manifest, pool.sha256, settings.shard_samples),
        record={
            "settings": settings.model_dump(mode="json"),
            "versions": {name: version(name) for name in _RECORDED_PACKAGES}
            | {"python": platform.python_version()},
            "device": str(llm.device),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    shard_count = math.ceil(pool.size / settings.shard_samples)
    missing = {number for number in range(shard_count) if not writer.has_shard(number)}
    finished = not missing and writer.is_finished()
    if finished and writer.has_directions():
        return
    gradients: dict[str, Parameters] = {}
    if missing or not writer.has_directions():
        gradients = target_gradients(llm, recipe, targets, GradientCache(settings.cache))
    if not writer.has_directions():
        writer.write_directions(_directions(llm, recipe, gradients), list(gradients))
    if finished:
        return
    if missing:
        job = Job.of(recipe, llm, gradients)
        with progress("label pool", pool.size) as advance:
            shards = _missing_shards(settings, missing, advance)
            # Closed at once where a shard cannot be written: its workers would finish theirs first.
            with closing(_labelled(settings, job, llm, shards, advance)) as labelled:
                for number, table in labelled:
                    writer.write_shard(number, table)
    _measure_ceilings(settings, llm, recipe, targets, manifest)
    writer.finish(manifest)


def recipe_of(settings: Label) -> Recipe:
    """Return how the labels are to be made."""
    return Recipe(
        model=settings.model,
        adapter=settings.adapter,
        template=settings.template,
        token_limit=settings.token_limit,
        dtype=settings.dtype,
        mode=settings.mode,
        normalisation=settings.normalisation,
        reduction=settings.loss_reduction,
        parameters=settings.parameters,
        token_values=settings.token_values,
        batch_tokens=settings.batch_tokens,
    )


def _directions(llm: LLM, recipe: Recipe, gradients: dict[str, Parameters]) -> dict[str, Direction]:
    """Factorise the targets' gradients, but for tables of tokens: of these there are few uses."""
    if recipe.adapter is not None:
        return {}
    tables = [llm.model.get_input_embeddings(), llm.model.get_output_embeddings()]
    theirs = {id(value) for table in tables if table for value in table.parameters()}
    left_out = [name for name, value in llm.model.named_parameters() if id(value) in theirs]
    return factorised(list(gradients.values()), recipe.normalisation, left_out)


def _measure_ceilings(
    settings: Label,
    llm: LLM,
    recipe: Recipe,
    targets: dict[str, list[Row]],
    manifest: BundleManifest,
) -> None:
    """Say, here and in the manifest, how well labels can be trusted and what would be enough."""
    if not settings.ceiling_samples:
        return
    step = max(1, manifest.labels.sample_count // settings.ceiling_samples)
    pool = itertools.islice(
        read_pool(settings.pool, settings.fields, _bad_rows(settings)), 0, None, step
    )
    rows = list(itertools.islice(pool, settings.ceiling_samples))
    found = ceilings(llm, recipe, targets, rows, GradientCache(settings.cache))
    for target in manifest.targets:
        if target.name in found:
            ceiling = found[target.name]
            target.half_spearman = ceiling.half_spearman
            target.ceiling_spearman = ceiling.spearman
            target.recommended_sample_count = ceiling.enough_samples
            print(_advice(target), file=sys.stderr)


def _advice(target: Target) -> str:
    size, enough = target.sample_count, target.recommended_sample_count
    agreement = (
        f"target {target.name}: labels by its two halves agree at rank correlation "
        f"{target.half_spearman:.2f}"
    )
    if not enough:
        return f"{agreement}: its {size} samples are far too few, or of too many kinds"
    limit = f"these could agree with its kind's at {target.ceiling_spearman:.3f}"
    if size >= enough:
        return f"{agreement}, {limit}; {enough} samples would do, it has {size}"
    return f"{agreement}, {limit}; give it {enough} samples instead of {size}"


def _survey(settings: Label, targets: dict[str, list[Row]]) -> Survey:
    """Read the whole pool: a bad row should show before an hour of gradients, not after."""
    bad_rows = _bad_rows(settings)
    pool = survey(read_pool(settings.pool, settings.fields, bad_rows), targets)
    _report(bad_rows)
    if pool.size == 0:
        raise DataError(f"the pool is empty: {', '.join(settings.pool)}")
    for name, count in pool.shared.items():
        if count:
            print(
                f"{count} of the pool's {pool.size} samples are also in the target {name}: their "
                "labels say how well the target predicts itself",
                file=sys.stderr,
            )
    return pool


def _missing_shards(settings: Label, missing: set[int], advance: Advance) -> Iterator[Shard]:
    """Read the pool again, and count what an earlier run has done as done."""
    rows = read_pool(settings.pool, settings.fields, _bad_rows(settings))
    for number in range(max(missing) + 1):
        shard = Shard(number, list(itertools.islice(rows, settings.shard_samples)))
        if number in missing:
            yield shard
        else:
            advance(len(shard.rows))


def _labelled(
    settings: Label, job: Job, llm: LLM, shards: Iterator[Shard], advance: Advance
) -> Generator[tuple[int, pa.Table]]:
    devices = local_devices(settings.workers)
    if settings.engine == "local" and len(devices) == 1:
        yield from label_here(job.labeller_of(llm), shards, advance)
        return
    # This process shares its GPU with a worker, which needs all of it.
    device = llm.device
    torch.nn.Module.to(llm.model, torch.device("cpu"))
    torch.cuda.empty_cache()
    if settings.engine == "ray":
        yield from label_on_ray(job, shards, settings.workers, advance)
    else:
        yield from label_in_processes(job, shards, devices, advance)
    torch.nn.Module.to(llm.model, device)


def _bad_rows(settings: Label) -> BadRows | None:
    return BadRows() if settings.on_bad_row == "skip" else None


def _report(bad_rows: BadRows | None) -> None:
    for line in bad_rows.report() if bad_rows else ():
        print(line, file=sys.stderr)


def _read_target(source: str, settings: Label) -> list[Row]:
    bad_rows = _bad_rows(settings)
    fields = settings.fields if settings.target_fields is None else settings.target_fields
    rows = list(read_rows(source, fields, bad_rows))
    _report(bad_rows)
    if not rows:
        raise DataError(f"the target {source} is empty")
    return rows
