"""`alinfik-distill label`: values a pool against targets with the language model itself."""

import hashlib
import itertools
import math
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from alinfik.command import progress
from alinfik.command.progress import Advance
from alinfik.distill.batches import Batch, batched_by_length
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.labels import LabelsWriter, labels_schema
from alinfik.distill.linfik import (
    ForwardMode,
    Parameters,
    Reduction,
    reduce_tokens,
    target_gradient,
)
from alinfik.distill.llm import LLM, load_llm
from alinfik.distill.samples import DataError, Row, read_pool, read_rows, rows_sha256
from alinfik.v1 import (
    LOSS_REDUCTION_MEAN,
    LOSS_REDUCTION_SUM,
    NORMALISATION_NONE,
    BundleManifest,
    LabelSettings,
    Target,
)

# Unit of the plain kernel: a loss in nats falls by this much per unit of learning rate.
UNIT = "nats per unit learning rate"

_REDUCTIONS = {"mean": LOSS_REDUCTION_MEAN, "sum": LOSS_REDUCTION_SUM}
_RECORDED_PACKAGES = ("alinfik", "torch", "transformers", "tokenizers", "pyarrow")


def _check_target_names(targets: dict[str, Path]) -> dict[str, Path]:
    if not targets:
        raise ValueError("name at least one target, as in --target gsm8k=target.jsonl")
    for name in targets:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name):
            raise ValueError(
                f"the target name {name!r} should be lower-case letters, digits, '_' and '-', and "
                "start with a letter"
            )
    return targets


class Label(BaseModel):
    """Value every sample of a pool against one or more targets, exactly, by the LLM's gradients.

    Interrupted, it goes on where it stopped when it is started again with the same settings.
    """

    model_config = ConfigDict(protected_namespaces=())

    model: str = Field(description="the LLM: a Hugging Face id, a directory, or a .gguf file")
    target: Annotated[dict[str, Path], AfterValidator(_check_target_names)] = Field(
        description="NAME=FILE, once a target: JSONL samples of what the LLM should get better at"
    )
    pool: list[Path] = Field(min_length=1, description="JSONL files of the samples to value")
    out: Path = Field(description="labels directory to write, or to go on with")
    loss_reduction: Reduction = Field(
        default="mean",
        description="how a sample's loss is made of its tokens' losses; `sum` where long samples "
        "should count for more",
    )
    token_limit: int = Field(
        default=512, ge=8, description="tokens a sample, prompt included; longer samples are cut"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto",
        description="of weights and gradients; `auto` is what the device is quick in",
    )
    batch_tokens: int = Field(
        default=1024,
        ge=1,
        description="tokens a batch, padding included; raise it on a GPU with memory to spare",
    )
    shard_samples: int = Field(
        default=256, ge=1, description="samples a Parquet shard: what an interruption can cost"
    )

    def cli_cmd(self) -> None:
        """Run the command."""
        label(self)


def label(settings: Label) -> None:
    """Write the labels directory that ``settings`` describe.

    Raises:
        CommandError: bad data, a bad model, or an output directory of another run.
    """
    targets = {name: _read_target(path) for name, path in settings.target.items()}
    # A bad row should show before an hour of gradients, not after.
    pool_size = sum(1 for _ in read_pool(settings.pool))
    if pool_size == 0:
        raise DataError(f"the pool is empty: {', '.join(map(str, settings.pool))}")
    llm = load_llm(settings.model, dtype=settings.dtype)
    llm.encoding.token_limit = min(settings.token_limit, llm.encoding.token_limit)
    manifest = _manifest(settings, llm, targets)
    writer = LabelsWriter(
        settings.out,
        fingerprint=_fingerprint(settings, manifest),
        record={
            "settings": settings.model_dump(mode="json"),
            "versions": {name: version(name) for name in _RECORDED_PACKAGES}
            | {"python": platform.python_version()},
            "device": str(llm.device),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    shard_count = math.ceil(pool_size / settings.shard_samples)
    missing = {number for number in range(shard_count) if not writer.has_shard(number)}
    if missing:
        labeller = _Labeller(settings, llm, targets)
        rows = read_pool(settings.pool)
        with progress("label pool", pool_size) as advance:
            for number in range(shard_count):
                shard = list(itertools.islice(rows, settings.shard_samples))
                if number in missing:
                    writer.write_shard(number, labeller.label(shard, advance))
                else:
                    advance(len(shard))
    manifest.labels.sample_count = pool_size
    writer.finish(manifest)


def _read_target(path: Path) -> list[Row]:
    rows = list(read_rows(path))
    if not rows:
        raise DataError(f"the target {path} is empty")
    return rows


class _Labeller:
    """The language model, made ready to value rows against the targets."""

    def __init__(self, settings: Label, llm: LLM, targets: dict[str, list[Row]]) -> None:
        self._names = list(targets)
        self._batch_tokens = settings.batch_tokens
        self._reduction: Reduction = settings.loss_reduction
        self._encoder = Encoder(llm.tokenizer, llm.encoding)
        self._engine = ForwardMode(
            llm.model, [self._gradient(llm, name, rows) for name, rows in targets.items()]
        )

    def _gradient(self, llm: LLM, name: str, rows: list[Row]) -> Parameters:
        with progress(f"target {name}", len(rows)) as advance:
            batches = self._batches(self._encoder.encode(rows), advance)
            return target_gradient(llm.model, batches, self._reduction)

    def _batches(self, samples: list[Encoded], advance: Advance) -> Iterator[Batch]:
        for batch in batched_by_length(samples, self._batch_tokens, self._encoder.encoding.pad_id):
            yield batch
            advance(len(batch.indices))

    def label(self, rows: list[Row], advance: Advance) -> pa.Table:
        """Value rows and lay them out as `alinfik.distill.labels` says, in their order."""
        samples = self._encoder.encode(rows)
        records = [asdict(row) | asdict(sample) for row, sample in zip(rows, samples, strict=True)]
        for batch in self._batches(samples, advance):
            token_losses, token_values = self._engine.token_values(batch)
            losses = reduce_tokens(token_losses, batch.completion_mask, self._reduction)
            labels = reduce_tokens(token_values, batch.completion_mask, self._reduction)
            for row, index in enumerate(batch.indices):
                completion = slice(samples[index].completion_start, len(samples[index]))
                record = records[index]
                record["loss"] = losses[row].item()
                for target, name in enumerate(self._names):
                    record[f"label_{name}"] = labels[target, row].item()
                    values = token_values[target, row, completion]
                    record[f"token_values_{name}"] = values.tolist()
        return pa.Table.from_pylist(records, schema=labels_schema(self._names))


def _manifest(settings: Label, llm: LLM, targets: dict[str, list[Row]]) -> BundleManifest:
    return BundleManifest(
        encoding=llm.encoding,
        language_model=llm.identity,
        labels=LabelSettings(
            loss_reduction=_REDUCTIONS[settings.loss_reduction],
            normalisation=NORMALISATION_NONE,
            dtype=str(llm.model.dtype).removeprefix("torch."),
            unit=UNIT,
        ),
        targets=[
            Target(name=name, sha256=rows_sha256(rows), sample_count=len(rows))
            for name, rows in targets.items()
        ],
    )


def _fingerprint(settings: Label, manifest: BundleManifest) -> dict[str, object]:
    """Everything that decides the labels, by the name that a user knows it by."""
    return {
        "model": manifest.language_model.sha256,
        "target": {target.name: target.sha256 for target in manifest.targets},
        "pool": [_file_sha256(path) for path in settings.pool],
        "loss_reduction": settings.loss_reduction,
        "dtype": manifest.labels.dtype,
        "token_limit": manifest.encoding.token_limit,
        "shard_samples": settings.shard_samples,
    }


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
