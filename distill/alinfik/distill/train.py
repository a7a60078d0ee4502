"""`alinfik-distill train`: distils a proxy from labels and writes the bundle."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from google.protobuf import json_format
from numpy.typing import NDArray
from pydantic import Field, StringConstraints
from pydantic_settings import BaseSettings
from tokenizers import Tokenizer

from alinfik.command import CommandError
from alinfik.distill import bundle as files
from alinfik.distill.batches import pad
from alinfik.distill.calibrate import ServedModel, described
from alinfik.distill.checkpoint import Checkpoint
from alinfik.distill.encoding import Encoder
from alinfik.distill.export import OnnxModel, export_error, export_onnx
from alinfik.distill.fit import Plan, Training, estimate, fit
from alinfik.distill.intervals import Spread, conformal_width
from alinfik.distill.labels import Labels, read_labels
from alinfik.distill.llm import choose_device, load_tokenizer, model_source
from alinfik.distill.measure import measure, predict
from alinfik.distill.proxy import Proxy, build_proxy
from alinfik.distill.report import write_report
from alinfik.distill.settings import SETTINGS
from alinfik.distill.splits import Part, Parts, SplitBy, split
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


class TrainError(CommandError):
    """Labels that no proxy can be distilled from."""


class Train(BaseSettings):
    """Distil a proxy from labels, export it, and write the bundle that the server loads."""

    model_config = SETTINGS

    labels: Path = Field(description="labels directory")
    out: Path = Field(description="bundle directory to write; must not exist")
    backbone: Annotated[str, StringConstraints(pattern=r"^layers:[1-9]\d*$")] = Field(
        default="layers:6",
        description="layers:N, the LLM's first N layers; more know more and are slower to serve",
    )
    model: str | None = Field(
        default=None, description="where the LLM is now, if not where it was labelled with"
    )
    split_by: SplitBy = Field(
        default="group",
        description="what is trained on or held out as a whole: a `group` with its "
        "near-duplicates; or a `provider`, to see how the proxy does on one it does not know",
    )
    epochs: int = Field(default=8, ge=1, description="passes over the training samples, at most")
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
    torch.manual_seed(settings.seed)
    source = model_source(settings.model or labels.model)
    tokenizer = load_tokenizer(source)
    _check_tokenizer(tokenizer, labels)
    proxy = build_proxy(settings.backbone, source, len(labels.names))
    parts = split(labels.rows, settings.split_by)
    if empty := [purpose for part, purpose in _PURPOSES.items() if not parts[part]]:
        raise TrainError(
            f"{settings.labels} leaves no samples to {empty[0]}: with --split-by "
            f"{settings.split_by}, what is alike stays together; label more text, of more kinds"
        )
    served = _distil(settings, proxy, labels, parts)
    with files.new_bundle(settings.out) as directory:
        tokenizer.save(str(directory / files.TOKENIZER))
        _write_bundle(directory, settings, labels, parts, served)


def _check_tokenizer(tokenizer: Tokenizer, labels: Labels) -> None:
    """The labels' token values are those of one tokenizer's tokens."""
    first = labels.take([0])
    if Encoder(tokenizer, labels.manifest.encoding).encode(first.rows) != first.samples:
        raise TrainError(
            "the model's tokenizer is not the one that the labels were made with; give --model "
            f"{labels.manifest.language_model.name} where it is now"
        )


def _distil(settings: Train, proxy: Proxy, labels: Labels, parts: Parts) -> ServedModel:
    """Train on one part of the labels, stop by another, calibrate on a third."""
    pad_id = labels.manifest.encoding.pad_id
    proxy.to(choose_device())
    plan = Plan(
        epochs=settings.epochs,
        patience=settings.patience,
        batch_tokens=settings.batch_tokens,
        pad_id=pad_id,
        seed=settings.seed,
    )
    checkpoint = Checkpoint(
        settings.out,
        {
            "settings": settings.model_dump(mode="json"),
            "labels": [labels.table[f"label_{name}"].to_pylist() for name in labels.names],
        },
    )
    training, validation, calibration = (
        labels.take(parts[part]) for part in ("train", "validation", "calibration")
    )
    scale = fit(proxy, _training(training), _training(validation), plan, checkpoint)
    checkpoint.discard()
    proxy.cpu()
    scale.cpu()

    def residuals(part: Labels) -> tuple[Floats, Floats]:
        """What describes the samples [N, F'], and by how much the proxy is off [N, K]."""
        found = estimate(proxy, part.samples, pad_id)
        fitted = scale.fit(torch.tensor(part.values, dtype=torch.float32))
        return described(found).double().numpy(), (found.samples - fitted).double().numpy()

    spread = Spread(*residuals(validation))
    descriptions, away = residuals(calibration)
    sizes = spread(torch.tensor(descriptions, dtype=torch.float32)).double().numpy()
    half_width = conformal_width(np.abs(away) / sizes)
    features = estimate(proxy, training.samples, pad_id).features.double().numpy()
    return ServedModel(proxy, scale, spread, half_width, features).eval()


def _training(labels: Labels) -> Training:
    return Training(labels.samples, labels.values, labels.token_values, labels.token_split)


def _write_bundle(
    directory: Path, settings: Train, labels: Labels, parts: Parts, served: ServedModel
) -> None:
    """Export, check and measure the model; write all files, the manifest last."""
    encoding = labels.manifest.encoding
    held_out = parts["held_out"]
    probe = pad(labels.samples, held_out[:_PROBE_SAMPLES], encoding.pad_id)
    export_onnx(served, probe, directory / files.MODEL)
    onnx = OnnxModel(directory / files.MODEL)
    error = export_error(served, onnx, probe)

    predictions = predict(onnx, labels.samples, encoding.pad_id)
    unseen, unseen_predictions = labels.take(held_out), predictions.take(held_out)
    metrics = measure(unseen_predictions, unseen, labels.take(parts["train"]))
    metrics.export_error = error

    manifest = BundleManifest()
    manifest.CopyFrom(labels.manifest)
    manifest.proxy.backbone = settings.backbone
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
    write_report(directory / files.REPORT, manifest, unseen, unseen_predictions)
    files.write_manifest(directory, manifest)


def _percentiles(values: Floats) -> list[float]:
    return [float(value) for value in np.percentile(values, range(101))]
