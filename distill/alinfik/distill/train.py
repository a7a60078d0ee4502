"""`alinfik-distill train`: distils a proxy from labels and writes the bundle."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from google.protobuf import json_format
from numpy.typing import NDArray
from pydantic import Field, StringConstraints
from pydantic_settings import BaseSettings

from alinfik.command import CommandError
from alinfik.distill import bundle as files
from alinfik.distill.backbones import Reading, build_backbone
from alinfik.distill.bag import Bag
from alinfik.distill.batches import pad
from alinfik.distill.checkpoint import Checkpoint
from alinfik.distill.distil import Distilled, distil
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.explain import Explainer
from alinfik.distill.export import OnnxModel, export_error, export_onnx, export_tokens
from alinfik.distill.fit import Plan
from alinfik.distill.labels import Labels, read_labels
from alinfik.distill.llm import load_fast_tokenizer, model_source, public_name
from alinfik.distill.measure import Predictions, agreement, measure, predict
from alinfik.distill.quantise import AGREEMENT_LIMIT, quantise
from alinfik.distill.report import write_report
from alinfik.distill.settings import SETTINGS
from alinfik.distill.splits import Part, Parts, SplitBy, known, split
from alinfik.distill.training_data import training_data
from alinfik.v1 import BundleManifest

Floats = NDArray[np.float64]

# Held-out samples past this quantile of the strangeness score count as out of distribution.
_OOD_QUANTILE = 0.95
_FEWEST_LABELS = 60
_PROBE_SAMPLES = 16
_PURPOSES: dict[Part, str] = {
    "train": "train on",
    "validation": "stop the training by",
    "calibration": "calibrate intervals with",
    "held_out": "measure the proxy on",
}

Size = Literal["small", "medium", "large"]
_BACKBONES: dict[Size, str] = {"small": "bag", "medium": "encoder", "large": "layers:18"}


class TrainError(CommandError):
    """Labels that no proxy can be distilled from."""


class Train(BaseSettings):
    """Distil a proxy from labels, export it, and write the bundle that the server loads."""

    model_config = SETTINGS

    labels: Path = Field(description="labels directory")
    out: Path = Field(description="bundle directory to write; must not exist")
    size: Size = Field(
        default="large",
        description="how large a proxy: `small` is --backbone bag, to value tens of thousands of "
        "samples a second; `medium` is encoder, quicker on a CPU than `large`, which is layers:18, "
        "agrees best with the labels and is meant for a GPU or a patient CPU",
    )
    backbone: (
        Annotated[str, StringConstraints(pattern=r"^(bag|encoder(:.+)?|layers:[1-9]\d*)$")] | None
    ) = Field(
        default=None,
        description="what the proxy is made of, if not what --size says: `bag`, weights of "
        "tokens and their pairs; `encoder` or encoder:MODEL, a bidirectional encoder, MiniLM by "
        "default; layers:N, the LLM's first N layers",
    )
    model: str | None = Field(
        default=None, description="where the LLM is now, if not where it was labelled with"
    )
    split_by: SplitBy = Field(
        default="group",
        description="what is trained on or held out as a whole: a `group` with its "
        "near-duplicates; or a `provider`, to see how the proxy does on one it does not know",
    )
    epochs: int = Field(
        default=0,
        ge=0,
        description="passes over the training samples, at most, to train an encoder or layers:N "
        "itself; none by default, since regressions on their states fit a few thousand labels as "
        "well. Train where there are tens of thousands and a GPU",
    )
    patience: int = Field(
        default=3,
        ge=1,
        description="epochs without a better rank correlation on validation samples to stop after",
    )
    batch_tokens: int = Field(default=1024, ge=1, description="tokens a batch, padding included")
    seed: int = Field(default=0, description="of initial weights, order and dropout")

    def cli_cmd(self) -> None:
        """Run the command."""
        train(self)


def train(settings: Train) -> None:
    """Write the bundle that ``settings`` describe.

    Raises:
        CommandError: no labels, too few labels, no model, or an export that does not agree.
    """
    files.refuse_existing(settings.out)
    labels = read_labels(settings.labels)
    if len(labels) < _FEWEST_LABELS:
        raise TrainError(
            f"{settings.labels} holds {len(labels)} labels; a proxy needs at least {_FEWEST_LABELS}"
        )
    parts = split(labels.rows, settings.split_by)
    if empty := [purpose for part, purpose in _PURPOSES.items() if not parts[part]]:
        raise TrainError(
            f"{settings.labels} leaves no samples to {empty[0]}: with --split-by "
            f"{settings.split_by}, what is alike stays together; label more text, of more kinds"
        )
    torch.manual_seed(settings.seed)
    source, llm = _llm(settings, labels)
    backbone, reading = build_backbone(_backbone(settings), source, llm)
    plan = Plan(
        epochs=settings.epochs,
        patience=settings.patience,
        batch_tokens=settings.batch_tokens,
        pad_id=reading.encoding.pad_id,
        seed=settings.seed,
        split_by=settings.split_by,
    )
    data = training_data(labels, llm, reading)
    distilled = distil(backbone, reading, labels, data, parts, plan, _checkpoint(settings, labels))
    with files.new_bundle(settings.out) as directory:
        distilled.reading.tokenizer.save(str(directory / files.TOKENIZER))
        _write_bundle(directory, settings, labels, parts, distilled)


def _backbone(settings: Train) -> str:
    return settings.backbone or _BACKBONES[settings.size]


def _llm(settings: Train, labels: Labels) -> tuple[str, Reading]:
    """Find the language model, and check that it reads as the one did that made the labels."""
    source = model_source(settings.model or labels.model)
    llm = Reading(load_fast_tokenizer(source).backend_tokenizer, labels.manifest.encoding)
    first = labels.take([0])
    if Encoder(llm.tokenizer, llm.encoding).encode(first.rows) != first.samples:
        raise TrainError(
            "the model's tokenizer is not the one that the labels were made with; give --model "
            f"{labels.manifest.language_model.name} where it is now"
        )
    return source, llm


def _checkpoint(settings: Train, labels: Labels) -> Checkpoint:
    key = {
        "settings": settings.model_dump(mode="json"),
        "labels": [labels.table[f"label_{name}"].to_pylist() for name in labels.names],
    }
    return Checkpoint(settings.out, key)


def _write_bundle(
    directory: Path, settings: Train, labels: Labels, parts: Parts, distilled: Distilled
) -> None:
    """Export, check and measure the model; write all files, the manifest last."""
    reading, served, samples = distilled.reading, distilled.served, distilled.samples
    pad_id = reading.encoding.pad_id
    held_out = parts["held_out"]
    probe = pad(samples, held_out[:_PROBE_SAMPLES], pad_id)
    export_onnx(served, probe, directory / files.MODEL)
    onnx = OnnxModel(directory / files.MODEL)
    error = export_error(served, onnx, probe)
    if distilled.tokens is not None:
        export_tokens(distilled.tokens, probe, directory / files.EXPLAIN)

    predictions = predict(onnx, samples, pad_id)
    unseen, unseen_predictions = labels.take(held_out), predictions.take(held_out)
    metrics = measure(unseen_predictions, unseen, labels.take(known(parts)))
    metrics.export_error = error
    # 8 bits quicken matrix products, of which a bag has none.
    if not isinstance(served.proxy, Bag):
        unseen_samples = [samples[index] for index in held_out]
        metrics.int8_spearman = _quantised(directory, unseen_samples, pad_id, unseen_predictions)

    manifest = BundleManifest()
    manifest.CopyFrom(labels.manifest)
    manifest.encoding.CopyFrom(reading.encoding)
    family, _, argument = _backbone(settings).partition(":")
    manifest.proxy.backbone = f"{family}:{public_name(argument)}" if argument else family
    manifest.proxy.split_by = settings.split_by
    manifest.proxy.parameter_count = sum(weight.numel() for weight in served.parameters())
    for column, target in enumerate(manifest.targets):
        target.value_quantiles[:] = _percentiles(predictions.value[:, column])
    manifest.out_of_distribution.score_quantiles[:] = _percentiles(unseen_predictions.ood)
    manifest.out_of_distribution.threshold = float(
        np.quantile(unseen_predictions.ood, _OOD_QUANTILE)
    )
    manifest.metrics.CopyFrom(metrics)
    text = json_format.MessageToJson(metrics, preserving_proto_field_name=True)
    (directory / files.METRICS).write_text(text + "\n")
    explainer = Explainer(directory, manifest) if distilled.tokens else None
    write_report(directory / files.REPORT, manifest, unseen, unseen_predictions, explainer)
    files.write_manifest(directory, manifest)


def _quantised(
    directory: Path, samples: Sequence[Encoded], pad_id: int, exact: Predictions
) -> float:
    """Write the quantised model, and keep it where it ranks as the exact one does."""
    path = directory / files.QUANTISED
    quantise(directory / files.MODEL, path)
    found = agreement(predict(OnnxModel(path), samples, pad_id), exact)
    if found < AGREEMENT_LIMIT:
        path.unlink()
        print(
            f"in 8 bits the proxy ranks samples otherwise (rank correlation {found:.4f}, "
            f"{AGREEMENT_LIMIT} is needed): the bundle has no {files.QUANTISED}",
            file=sys.stderr,
        )
    return found


def _percentiles(values: Floats) -> list[float]:
    return [float(value) for value in np.percentile(values, range(101))]
