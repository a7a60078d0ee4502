"""`alinfik-distill label`: values a pool against targets with the language model itself."""

import itertools
import math
import platform
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings

from alinfik.command import progress
from alinfik.distill.forward_mode import ForwardMode
from alinfik.distill.gradient_cache import GradientCache
from alinfik.distill.labeller import Labeller
from alinfik.distill.labels import LabelsWriter
from alinfik.distill.llm import LLM, cache_directory, load_llm
from alinfik.distill.losses import Parameters, Reduction
from alinfik.distill.reverse_mode import ReverseMode
from alinfik.distill.samples import (
    BadRows,
    DataError,
    Row,
    check_fields,
    read_pool,
    read_rows,
    rows_sha256,
)
from alinfik.distill.selection import select_parameters
from alinfik.distill.settings import SETTINGS
from alinfik.distill.survey import survey
from alinfik.distill.values import Normalisation, TokenSplit, ValueEngine
from alinfik.v1 import (
    LOSS_REDUCTION_MEAN,
    LOSS_REDUCTION_SUM,
    NORMALISATION_GLOBAL,
    NORMALISATION_NONE,
    NORMALISATION_TENSOR,
    TOKEN_SPLIT_LOSS,
    TOKEN_SPLIT_POSITION,
    TOKEN_SPLIT_UNSPECIFIED,
    BundleManifest,
    LabelSettings,
    Target,
)

# Of the plain kernel: a loss in nats falls by this much per unit of learning rate. Divided by
# norms, the kernel has no unit.
_PLAIN_UNIT = "nats per unit learning rate"
_NO_UNIT = "1"

_REDUCTIONS = {"mean": LOSS_REDUCTION_MEAN, "sum": LOSS_REDUCTION_SUM}
_NORMALISATIONS = {
    "none": NORMALISATION_NONE,
    "global": NORMALISATION_GLOBAL,
    "tensor": NORMALISATION_TENSOR,
}
_TOKEN_SPLITS = {
    None: TOKEN_SPLIT_UNSPECIFIED,
    "loss": TOKEN_SPLIT_LOSS,
    "position": TOKEN_SPLIT_POSITION,
}
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
    engine: Literal["reverse", "forward"] = Field(
        default="reverse",
        description="`reverse` serves many targets in one pass and every normalisation, and splits "
        "labels by position; `forward` gives the plain kernel alone, and splits by loss token",
    )
    token_values: bool = Field(
        default=True,
        description="keep each token's share of the label, which distillation learns from; in "
        "reverse they cost up to a forward pass a target",
    )
    token_limit: int = Field(
        default=512, ge=8, description="tokens a sample, prompt included; longer samples are cut"
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

    @model_validator(mode="after")
    def _forward_mode_gives_no_norms(self) -> Self:
        if self.engine == "forward" and self.normalisation != "none":
            raise ValueError(
                f"--engine forward gives no gradient norms, which --normalisation "
                f"{self.normalisation} divides by; use --engine reverse or --normalisation none"
            )
        return self

    @property
    def token_split(self) -> TokenSplit | None:
        """How labels are split over tokens, if they are."""
        if not self.token_values:
            return None
        return "loss" if self.engine == "forward" else "position"

    def cli_cmd(self) -> None:
        """Run the command."""
        label(self)


def label(settings: Label) -> None:
    """Write the labels directory that ``settings`` describe.

    Raises:
        CommandError: bad data, a bad model, or an output directory of another run.
    """
    targets = {name: _read_target(source, settings) for name, source in settings.target.items()}
    # A bad row should show before an hour of gradients, not after.
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
    llm = load_llm(
        settings.model,
        dtype=settings.dtype,
        attention="eager" if settings.engine == "forward" else "sdpa",
    )
    selected = select_parameters(llm.model, settings.parameters)
    llm.encoding.token_limit = min(settings.token_limit, llm.encoding.token_limit)
    manifest = _manifest(settings, llm, targets)
    writer = LabelsWriter(
        settings.out,
        fingerprint=_fingerprint(settings, manifest, pool.sha256),
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
    if missing:
        labeller = Labeller(
            llm,
            targets,
            lambda gradients: _engine(settings, llm, gradients),
            cache=GradientCache(settings.cache),
            selected=selected,
            reduction=settings.loss_reduction,
            batch_tokens=settings.batch_tokens,
        )
        rows = read_pool(settings.pool, settings.fields, _bad_rows(settings))
        with progress("label pool", pool.size) as advance:
            for number in range(shard_count):
                shard = list(itertools.islice(rows, settings.shard_samples))
                if number in missing:
                    writer.write_shard(number, labeller.label(shard, advance))
                else:
                    advance(len(shard))
    manifest.labels.sample_count = pool.size
    writer.finish(manifest)


def _bad_rows(settings: Label) -> BadRows | None:
    return BadRows() if settings.on_bad_row == "skip" else None


def _read_target(source: str, settings: Label) -> list[Row]:
    rows = list(read_rows(source, settings.fields, _bad_rows(settings)))
    if not rows:
        raise DataError(f"the target {source} is empty")
    return rows


def _engine(settings: Label, llm: LLM, gradients: list[Parameters]) -> ValueEngine:
    if settings.engine == "forward":
        return ForwardMode(llm.model, gradients, settings.loss_reduction)
    return ReverseMode(
        llm.model,
        gradients,
        normalisation=settings.normalisation,
        reduction=settings.loss_reduction,
        token_values=settings.token_values,
    )


def _manifest(settings: Label, llm: LLM, targets: dict[str, list[Row]]) -> BundleManifest:
    return BundleManifest(
        encoding=llm.encoding,
        language_model=llm.identity,
        labels=LabelSettings(
            loss_reduction=_REDUCTIONS[settings.loss_reduction],
            normalisation=_NORMALISATIONS[settings.normalisation],
            dtype=str(llm.model.dtype).removeprefix("torch."),
            unit=_PLAIN_UNIT if settings.normalisation == "none" else _NO_UNIT,
            parameters=settings.parameters,
            token_split=_TOKEN_SPLITS[settings.token_split],
        ),
        targets=[
            Target(name=name, sha256=rows_sha256(rows), sample_count=len(rows))
            for name, rows in targets.items()
        ],
    )


def _fingerprint(settings: Label, manifest: BundleManifest, pool_sha256: str) -> dict[str, object]:
    """Everything that decides the labels, by the name that a user knows it by."""
    return {
        "model": manifest.language_model.sha256,
        "target": {target.name: target.sha256 for target in manifest.targets},
        "pool": pool_sha256,
        "normalisation": settings.normalisation,
        "loss_reduction": settings.loss_reduction,
        "parameters": settings.parameters,
        "token_split": settings.token_split,
        "dtype": manifest.labels.dtype,
        "token_limit": manifest.encoding.token_limit,
        "shard_samples": settings.shard_samples,
    }
