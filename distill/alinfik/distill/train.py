"""`alinfik-distill train`: distils a proxy from labels and writes the bundle."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from google.protobuf import json_format
from numpy.typing import NDArray

from alinfik.command import CommandError
from alinfik.distill import bundle as files
from alinfik.distill.backbones import Reading, build_backbone, layer_count
from alinfik.distill.batches import memory_error, pad
from alinfik.distill.checkpoint import Checkpoint
from alinfik.distill.commands import Train
from alinfik.distill.disk import check_place
from alinfik.distill.distil import Distilled, distil
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.explain import Explainer
from alinfik.distill.export import (
    OnnxModel,
    TokenOnnxModel,
    export_error,
    export_onnx,
)
from alinfik.distill.fit import Plan
from alinfik.distill.labels import Labels, read_labels
from alinfik.distill.llm import load_fast_tokenizer, model_source, public_name
from alinfik.distill.measure import (
    FEWEST_MEASURED,
    Predictions,
    agreement,
    measure,
    measure_tokens,
    predict,
)
from alinfik.distill.quantise import AGREEMENT_LIMIT, quantise
from alinfik.distill.report import write_report
from alinfik.distill.rows import Row
from alinfik.distill.settings import Size, SplitBy
from alinfik.distill.splits import Part, Parts, family_names, known, parts_of
from alinfik.distill.training_data import training_data
from alinfik.v1 import BundleManifest

Floats = NDArray[np.float64]

# Held-out samples past this quantile of the strangeness score count as out of distribution.
_OOD_QUANTILE = 0.95
_FEWEST_LABELS = 60
_PROBE_SAMPLES = 16


class TrainError(CommandError):
    """Labels that no proxy can be distilled from."""


@memory_error("lower --batch-tokens, or choose a smaller --size")
def train(settings: Train) -> None:
    """Write the bundle that ``settings`` describe.

    Raises:
        CommandError: no labels, too few labels, no model, or an export that does not agree.
    """
    files.refuse_existing(settings.out)
    check_place(settings.out, "directory")
    labels = read_labels(settings.labels)
    if len(labels) < _FEWEST_LABELS:
        raise TrainError(
            f"{settings.labels} holds {len(labels)} labels; a proxy needs at least {_FEWEST_LABELS}"
        )
    families = family_names(labels.rows, settings.split_by)
    parts = parts_of(families)
    _check_parts(settings, parts, families, labels.rows)
    torch.manual_seed(settings.seed)
    source, llm = _llm(settings, labels)
    family = settings.backbone or _family(settings.size, source, labels)
    if settings.epochs and family.partition(":")[0] in ("bag", "gradients"):
        raise TrainError(f"--epochs trains an encoder or layers:N; {family} has only regressions")
    adapter = labels.manifest.language_model.adapter
    if adapter and family.startswith("layers") and settings.model is None:
        print(
            f"the labels are of the model with the adapter {adapter}, and {family} is the model "
            "without; --model takes a directory where the two are merged",
            file=sys.stderr,
        )
    backbone, reading = build_backbone(family, source, llm, labels.kernel)
    plan = Plan(
        epochs=settings.epochs,
        patience=settings.patience,
        batch_tokens=settings.batch_tokens,
        pad_id=reading.encoding.pad_id,
        seed=settings.seed,
    )
    data = training_data(labels, families, llm, reading)
    checkpoint = _checkpoint(settings, labels)
    distilled = distil(backbone, reading, labels, data, parts, plan, checkpoint)
    with files.new_bundle(settings.out) as directory:
        distilled.reading.tokenizer.save(str(directory / files.TOKENIZER))
        _write_bundle(directory, family, settings.split_by, labels, parts, distilled)
    checkpoint.discard()
    for line in _summary(settings.out):
        print(line, file=sys.stderr)


def _summary(bundle: Path) -> Iterator[str]:
    metrics = files.read_manifest(bundle).metrics
    yield f"{bundle} is written; on {metrics.held_out_count} held-out samples"
    for one in metrics.targets:
        yield (
            f"  {one.target}: rank correlation with labels {one.spearman:.3f}, words alone "
            f"{one.tfidf_spearman:.3f}; intervals hold {one.coverage:.0%} of labels"
        )


def _check_parts(
    settings: Train, parts: Parts, families: Sequence[str], rows: Sequence[Row]
) -> None:
    """See that there is enough to measure the proxy on, to find intervals and to train with."""
    needed: dict[Part, str] = {"held_out": "measure the proxy on"}
    judged = known(parts)
    if settings.epochs:
        needed |= {"train": "train on", "validation": "stop the training by"}
        judged = parts["validation"] + parts["calibration"]
    short = [
        f"{len(parts[part])} samples to {purpose}, and {FEWEST_MEASURED} are needed"
        for part, purpose in needed.items()
        if len(parts[part]) < FEWEST_MEASURED
    ]
    if not short and len({families[index] for index in judged}) < 2:
        short = ["no two kinds of samples to find intervals with"]
    if short:
        providers, kinds = len({row.provider for row in rows}), len(set(families))
        joined = (
            f", and {providers} providers are {kinds} {'family' if kinds == 1 else 'families'}, "
            "since a text of theirs is another's too"
            if settings.split_by == "provider" and kinds < providers
            else ""
        )
        raise TrainError(
            f"{settings.labels} leaves {short[0]}: with --split-by {settings.split_by}, what is "
            f"alike stays together{joined}; label more text, of more kinds"
        )


def _family(size: Size, llm: str, labels: Labels) -> str:
    if size == "large":
        return f"{'gradients' if labels.directions else 'layers'}:{layer_count(llm)}"
    return {"small": "bag", "medium": "encoder"}[size]


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
        # Of the proxy's parameters, by their names.
        "format": 4,
        "settings": settings.model_dump(mode="json"),
        "labels": [labels.table[f"label_{name}"].to_pylist() for name in labels.names],
    }
    return Checkpoint(settings.out, key)


def _write_bundle(
    directory: Path,
    family: str,
    split_by: SplitBy,
    labels: Labels,
    parts: Parts,
    distilled: Distilled,
) -> None:
    """Export, check and measure the model; write all files, the manifest last."""
    reading, served, samples = distilled.reading, distilled.served, distilled.data.samples
    pad_id = reading.encoding.pad_id
    held_out = parts["held_out"]
    probe = pad(samples, held_out[:_PROBE_SAMPLES], pad_id)
    export_onnx(served, distilled.tokens, probe, directory / files.MODEL, directory / files.EXPLAIN)
    onnx = OnnxModel(directory / files.MODEL)
    error = export_error(served, onnx, probe)
    unseen, unseen_samples = labels.take(held_out), [samples[index] for index in held_out]
    predictions = predict(onnx, unseen_samples, pad_id)
    del onnx  # of the largest, two in memory at once may be too many
    metrics = measure(predictions, unseen, labels.take(known(parts)))
    of_tokens = [0.0] * len(labels.names)
    if distilled.tokens is not None:
        explaining = TokenOnnxModel(directory / files.EXPLAIN)
        of_tokens = measure_tokens(explaining, distilled.data.take(held_out), pad_id)
    metrics.export_error = error
    for target, found in zip(metrics.targets, of_tokens, strict=True):
        target.token_spearman = found
    kind, _, argument = family.partition(":")
    # 8 bits quicken matrix products, of which a bag has none, and lose what is small on a way back:
    # SmolLM2's ranks samples at 0.89 then.
    if kind not in ("bag", "gradients"):
        metrics.int8_spearman = _quantised(directory, unseen_samples, pad_id, predictions)

    manifest = BundleManifest()
    manifest.CopyFrom(labels.manifest)
    manifest.encoding.CopyFrom(reading.encoding)
    manifest.proxy.backbone = f"{kind}:{public_name(argument)}" if argument else kind
    manifest.proxy.split_by = split_by
    manifest.proxy.parameter_count = sum(weight.numel() for weight in served.parameters())
    # Of what the proxy was fitted to, its values are spread wider than those of any other text.
    honest = np.concatenate([distilled.unfitted, predictions.value])
    for column, target in enumerate(manifest.targets):
        target.value_quantiles[:] = _percentiles(honest[:, column])
    manifest.out_of_distribution.score_quantiles[:] = _percentiles(predictions.ood)
    manifest.out_of_distribution.threshold = float(np.quantile(predictions.ood, _OOD_QUANTILE))
    manifest.metrics.CopyFrom(metrics)
    text = json_format.MessageToJson(metrics, preserving_proto_field_name=True)
    (directory / files.METRICS).write_text(text + "\n")
    explainer = Explainer(directory, manifest) if distilled.tokens else None
    write_report(directory / files.REPORT, manifest, unseen, predictions, explainer)
    files.write_manifest(directory, manifest)


def _quantised(
    directory: Path, samples: Sequence[Encoded], pad_id: int, exact: Predictions
) -> float:
    """Write the quantised model, and keep it where it ranks as the exact one does."""
    path = directory / files.QUANTISED
    quantise(directory / files.MODEL, path)
    found = agreement(exact, predict(OnnxModel(path), samples, pad_id))
    if found < AGREEMENT_LIMIT:
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)
        print(
            f"in 8 bits the proxy ranks samples otherwise (rank correlation {found:.4f}, "
            f"{AGREEMENT_LIMIT} is needed): the bundle has no {files.QUANTISED}",
            file=sys.stderr,
        )
    return found


def _percentiles(values: Floats) -> list[float]:
    return [float(value) for value in np.percentile(values, range(101))]
