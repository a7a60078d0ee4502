"""`alinfik-distill evaluate`: measures a bundle on labels that it was not distilled from."""

from pathlib import Path

from google.protobuf import json_format
from pydantic import Field
from pydantic_settings import BaseSettings
from tokenizers import Tokenizer

from alinfik.distill.bundle import EXPLAIN, MODEL, TOKENIZER, read_manifest
from alinfik.distill.encoding import Encoder
from alinfik.distill.explain import Explainer
from alinfik.distill.export import OnnxModel
from alinfik.distill.labels import read_labels
from alinfik.distill.measure import EvaluationError, measure, predict
from alinfik.distill.report import write_report
from alinfik.distill.settings import SETTINGS
from alinfik.distill.splits import SplitBy, known, split
from alinfik.v1 import Metrics


class Evaluate(BaseSettings):
    """Measure a bundle on labels that it was not distilled from; write a report to read."""

    model_config = SETTINGS

    bundle: Path = Field(description="bundle directory")
    labels: Path = Field(description="labels directory; the samples held out from it are used")
    report: Path = Field(description="HTML file to write")

    def cli_cmd(self) -> None:
        """Run the command; the metrics go to standard output as JSON."""
        metrics = evaluate(self.bundle, self.labels, self.report)
        print(json_format.MessageToJson(metrics, preserving_proto_field_name=True))


def evaluate(bundle: Path, labels_directory: Path, report: Path) -> Metrics:
    """Measure ``bundle`` on the held-out part of labels and write the report.

    Raises:
        CommandError: no bundle, no labels, or labels of other targets.
    """
    manifest = read_manifest(bundle)
    labels = read_labels(labels_directory)
    names = [target.name for target in manifest.targets]
    if labels.names != names:
        raise EvaluationError(
            f"{bundle} is for the targets {', '.join(names)} and {labels_directory} holds labels "
            f"for {', '.join(labels.names)}"
        )
    encoder = Encoder(Tokenizer.from_file(str(bundle / TOKENIZER)), manifest.encoding)
    by: SplitBy = "provider" if manifest.proxy.split_by == "provider" else "group"
    parts = split(labels.rows, by)
    held_out = labels.take(parts["held_out"])
    samples = encoder.encode(held_out.rows)
    predictions = predict(OnnxModel(bundle / MODEL), samples, manifest.encoding.pad_id)
    metrics = measure(predictions, held_out, labels.take(known(parts)))
    metrics.export_error = manifest.metrics.export_error
    metrics.int8_spearman = manifest.metrics.int8_spearman
    manifest.metrics.CopyFrom(metrics)
    explainer = Explainer(bundle, manifest) if EXPLAIN in manifest.files else None
    write_report(report, manifest, held_out, predictions, explainer)
    return metrics
