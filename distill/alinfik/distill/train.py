"""`alinfik-distill train`: distils a proxy from labels and writes the bundle."""

import random
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
from alinfik.distill.batches import batched_by_length, pad
from alinfik.distill.calibrate import ServedModel, conformal_width
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.export import OnnxModel, export_error, export_onnx
from alinfik.distill.fit import Training, fit
from alinfik.distill.labels import Labels, read_labels
from alinfik.distill.llm import choose_device, load_tokenizer, model_source
from alinfik.distill.measure import measure, predict
from alinfik.distill.proxy import Proxy, build_proxy
from alinfik.distill.report import write_report
from alinfik.distill.settings import SETTINGS
from alinfik.distill.splits import indices_of
from alinfik.v1 import BundleManifest

Floats = NDArray[np.float64]

# Held-out samples past this quantile of the strangeness score count as out of distribution.
_OOD_QUANTILE = 0.95
_FEWEST_LABELS = 60
_PROBE_SAMPLES = 16


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
    epochs: int = Field(default=8, ge=1, description="passes over the training samples")
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
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    source = model_source(settings.model or labels.model)
    tokenizer = load_tokenizer(source)
    _check_tokenizer(tokenizer, labels)
    served = _distil(settings, build_proxy(settings.backbone, source, len(labels.names)), labels)
    with files.new_bundle(settings.out) as directory:
        tokenizer.save(str(directory / files.TOKENIZER))
        _write_bundle(directory, settings, labels, served)


def _check_tokenizer(tokenizer: Tokenizer, labels: Labels) -> None:
    """The labels' token values are those of one tokenizer's tokens."""
    first = labels.take([0])
    if Encoder(tokenizer, labels.manifest.encoding).encode(first.rows) != first.samples:
        raise TrainError(
            "the model's tokenizer is not the one that the labels were made with; give --model "
            f"{labels.manifest.language_model.name} where it is now"
        )


def _distil(settings: Train, proxy: Proxy, labels: Labels) -> ServedModel:
    """Train on one part of the labels, calibrate on another."""
    pad_id = labels.manifest.encoding.pad_id
    proxy.to(choose_device())
    training = labels.take(indices_of(labels.groups, "train"))
    calibration = labels.take(indices_of(labels.groups, "calibration"))
    scale = fit(
        proxy,
        Training(training.samples, training.values, training.token_values, training.token_split),
        epochs=settings.epochs,
        batch_tokens=settings.batch_tokens,
        pad_id=pad_id,
    )
    proxy.cpu()
    scale.cpu()
    estimates, _ = _estimate(proxy, calibration.samples, pad_id)
    fitted = scale.fit(torch.tensor(calibration.values, dtype=torch.float32)).double().numpy()
    _, features = _estimate(proxy, training.samples, pad_id)
    return ServedModel(proxy, scale, conformal_width(estimates - fitted), features).eval()


@torch.no_grad()
def _estimate(proxy: Proxy, samples: list[Encoded], pad_id: int) -> tuple[Floats, Floats]:
    """Return fitted estimates [N, K] and pooled features [N, F], in the samples' order."""
    rows: dict[int, tuple[Floats, Floats]] = {}
    for batch in batched_by_length(samples, padded_tokens=2048, pad_id=pad_id):
        estimate = proxy(batch.input_ids, batch.attention_mask, batch.completion_mask)
        outputs = estimate.samples.double().numpy(), estimate.features.double().numpy()
        rows |= {
            index: (outputs[0][row], outputs[1][row]) for row, index in enumerate(batch.indices)
        }
    estimates, features = zip(*(rows[index] for index in range(len(samples))), strict=True)
    return np.stack(estimates), np.stack(features)


def _write_bundle(directory: Path, settings: Train, labels: Labels, served: ServedModel) -> None:
    """Export, check and measure the model; write all files, the manifest last."""
    encoding = labels.manifest.encoding
    held_out = indices_of(labels.groups, "held_out")
    probe = pad(labels.samples, held_out[:_PROBE_SAMPLES], encoding.pad_id)
    export_onnx(served, probe, directory / files.MODEL)
    onnx = OnnxModel(directory / files.MODEL)
    error = export_error(served, onnx, probe)

    predictions = predict(onnx, labels.samples, encoding.pad_id)
    unseen, unseen_predictions = labels.take(held_out), predictions.take(held_out)
    metrics = measure(unseen_predictions, unseen)
    metrics.export_error = error

    manifest = BundleManifest()
    manifest.CopyFrom(labels.manifest)
    manifest.proxy.backbone = settings.backbone
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
