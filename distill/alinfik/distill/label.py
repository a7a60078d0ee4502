"""`alinfik-distill label`: values a pool against targets with the language model itself."""

import itertools
import math
import platform
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, Self

import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings

from alinfik.command import progress
from alinfik.command.progress import Advance
from alinfik.distill.ceiling import ceilings
from alinfik.distill.gradient_cache import GradientCache
from alinfik.distill.labeller import Job
from alinfik.distill.labels import LabelsWriter
from alinfik.distill.llm import LLM, cache_directory
from alinfik.distill.losses import Reduction
from alinfik.distill.provenance import fingerprint_of, manifest_of
from alinfik.distill.ray_shards import label_on_ray
from alinfik.distill.recipe import Mode, Recipe
from alinfik.distill.samples import BadRows, DataError, Row, check_fields, read_pool, read_rows
from alinfik.distill.settings import SETTINGS
from alinfik.distill.shards import Shard, label_here, label_in_processes, local_devices
from alinfik.distill.survey import Survey, survey
from alinfik.distill.target import target_gradients
from alinfik.distill.values import Normalisation
from alinfik.v1 import BundleManifest, Target

_RECORDED_PACKAGES = ("alinfik", "torch", "transformers", "tokenizers", "pyarrow")


def _check_target_names(targets: dict[str, str]) -> dict[str, str]:
    if not targets:
        raise ValueError("name at least one target, as in --target gsm8k=target.jsonl")
    for name in targets:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name):
            raise ValueError(
                f"the target name {name!r} should be lower-case letters, digits, '_' and '-', and "
                "start with a letter"
            )
    return targets


class Label(BaseSettings):
    """Value every sample of a pool against one or more targets, exactly, by the LLM's gradients.

    Interrupted, it goes on where it stopped when it is started again with the same settings.
    """

    model_config = SETTINGS

    model: str = Field(description="the LLM: a Hugging Face id, a directory, or a .gguf file")
    adapter: str | None = Field(
        default=None,
        description="PEFT adapter on top of the LLM, such as LoRA: a Hugging Face id or a "
        "directory; its parameters alone count then, as in training it",
    )
    template: str = Field(
        default="plain",
        description="how prompt and completion are laid out: `plain`, a line each; `chat`, the "
        "LLM's own chat template; or a text such as 'Q: {prompt} A: {completion}'",
    )
    target: Annotated[dict[str, str], AfterValidator(_check_target_names)] = Field(
        description="NAME=FILE, once a target: samples of what the LLM should get better at"
    )
    pool: list[str] = Field(
        min_length=1,
        description="samples to value: .jsonl and .csv, also .gz, .parquet, or hf:DATASET[:SPLIT]",
    )
    fields: Annotated[dict[str, str], AfterValidator(check_fields)] = Field(
        default={},
        description="OURS=THEIRS: where columns have other names than id, provider, prompt, "
        "completion and group, as in id=uid,completion=answer",
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        default="fail",
        description="`skip` leaves rows out that are no samples, and counts them by reason",
    )
    out: Path = Field(description="labels directory to write, or to go on with")
    normalisation: Normalisation = Field(
        default="tensor",
        description="what the inner product is divided by: `tensor`, each tensor's two norms; "
        "`global`, the gradients' norms, which gives their cosine; `none`, nothing: the plain "
        "kernel, in nats per unit learning rate",
    )
    loss_reduction: Reduction = Field(
        default="mean",
        description="how a sample's loss is made of its tokens' losses; `sum` where long samples "
        "should count for more",
    )
    parameters: str = Field(
        default="all",
        description="whose gradients count: `all`, `last:N` for the last N layers, or a regular "
        "expression over parameter names; fewer are quicker and rank less well",
    )
    mode: Mode = Field(
        default="reverse",
        description="`reverse` serves many targets in one pass and every normalisation, and splits "
        "labels by position; `forward` gives the plain kernel alone, and splits by loss token",
    )
    token_values: bool = Field(
        default=True,
        description="keep each token's share of the label, which distillation learns from; in "
        "reverse they cost up to a forward pass a target",
    )
    token_limit: int | None = Field(
        default=None,
        ge=8,
        description="tokens a sample, prompt included; longer samples are cut. By default 512, or "
        "as many as the LLM has positions",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto",
        description="of weights and gradients; `auto` is what the device is quick in",
    )
    cache: Path = Field(
        default=cache_directory() / "gradients",
        description="directory for targets' gradients, as large as the LLM each; may be deleted",
    )
    batch_tokens: int = Field(
        default=1024,
        ge=1,
        description="tokens a batch, padding included; raise it on a GPU with memory to spare",
    )
    shard_samples: int = Field(
        default=256, ge=1, description="samples a Parquet shard: what an interruption can cost"
    )

    ceiling_samples: int = Field(
        default=100,
        ge=0,
        description="samples of the pool to label by halves of each target, to see how well labels "
        "can be trusted and whether the target is large enough; 0 leaves it out",
    )

    engine: Literal["local", "ray"] = Field(
        default="local",
        description="`ray` labels on every machine of the cluster that RAY_ADDRESS names",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="copies of the LLM that label side by side; by default one a GPU, else one a "
        "machine",
    )

    @model_validator(mode="after")
    def _forward_mode_gives_no_norms(self) -> Self:
        if self.mode == "forward" and self.normalisation != "none":
            raise ValueError(
                f"--mode forward gives no gradient norms, which --normalisation "
                f"{self.normalisation} divides by; use --mode reverse or --normalisation none"
            )
        return self

    @property
    def recipe(self) -> Recipe:
        """How the labels are made."""
        return Recipe(
            model=self.model,
            adapter=self.adapter,
            template=self.template,
            token_limit=self.token_limit,
            dtype=self.dtype,
            mode=self.mode,
            normalisation=self.normalisation,
            reduction=self.loss_reduction,
            parameters=self.parameters,
            token_values=self.token_values,
            batch_tokens=self.batch_tokens,
        )

    def cli_cmd(self) -> None:
        """Run the command."""
        label(self)


def label(settings: Label) -> None:
    """Write the labels directory that ``settings`` describe.

    Raises:
        CommandError: bad data, a bad model, or an output directory of another run.
    """
    targets = {name: _read_target(source, settings) for name, source in settings.target.items()}
    pool = _survey(settings, targets)
    recipe = settings.recipe
    llm = recipe.load_llm()
    # What `auto` means here it must mean on every worker.
    recipe = replace(recipe, dtype=str(llm.model.dtype).removeprefix("torch."))
    manifest = manifest_of(recipe, llm, targets)
    manifest.labels.sample_count = pool.size
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
    if not missing and writer.is_finished():
        return
    if missing:
        gradients = target_gradients(llm, recipe, targets, GradientCache(settings.cache))
        job = Job.of(recipe, llm, gradients)
        with progress("label pool", pool.size) as advance:
            shards = _missing_shards(settings, missing, advance)
            # Closed at once where a shard cannot be written: its workers would finish theirs first.
            with closing(_labelled(settings, job, llm, shards, advance)) as labelled:
                for number, table in labelled:
                    writer.write_shard(number, table)
    _measure_ceilings(settings, llm, recipe, targets, manifest)
    writer.finish(manifest)


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
    limit = f"no proxy can be expected to exceed {target.ceiling_spearman:.3f}"
    if size >= enough:
        return f"{agreement}, {limit}; {enough} samples would do, it has {size}"
    return f"{agreement}, {limit}; give it {enough} samples instead of {size}"


def _survey(settings: Label, targets: dict[str, list[Row]]) -> Survey:
    """Read the whole pool: a bad row should show before an hour of gradients, not after."""
    bad_rows = _bad_rows(settings)
    pool = survey(read_pool(settings.pool, settings.fields, bad_rows), targets)
    for line in bad_rows.report() if bad_rows else ():
        print(line, file=sys.stderr)
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
    if settings.engine == "ray":
        return label_on_ray(job, shards, settings.workers, advance)
    devices = local_devices(settings.workers)
    if len(devices) == 1:
        return label_here(job.labeller_of(llm), shards, advance)
    return label_in_processes(job, shards, devices, advance)


def _bad_rows(settings: Label) -> BadRows | None:
    return BadRows() if settings.on_bad_row == "skip" else None


def _read_target(source: str, settings: Label) -> list[Row]:
    rows = list(read_rows(source, settings.fields, _bad_rows(settings)))
    if not rows:
        raise DataError(f"the target {source} is empty")
    return rows
