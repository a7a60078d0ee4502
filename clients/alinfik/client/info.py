"""`alinfik info`: what a server's bundles value, how, and how well."""

import json

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alinfik.client.sync import Client
from alinfik.client.visible import printable
from alinfik.v1 import BundleManifest, BundleSummary, LossReduction, Normalisation


def show_bundles(client: Client, *, as_json: bool) -> None:
    """Print every loaded bundle to standard output.

    Args:
        client: the server to ask.
        as_json: print one line a bundle instead of tables, ``{"active": …, "shadow": …, "bundle":
            manifest}``.
    """
    console = Console()
    for summary in client.bundles():
        manifest = client.bundle(summary.bundle_id)
        if as_json:
            print(_json_line(manifest, summary))
        else:
            role = " (active)" if summary.active else " (shadow)" if summary.shadow else ""
            # Whole, to be copied, however narrow the terminal is.
            console.print(f"bundle {manifest.bundle_id}{role}", soft_wrap=True, highlight=False)
            console.print(_settings(manifest))
            console.print(_targets(manifest))


def _json_line(manifest: BundleManifest, summary: BundleSummary) -> str:
    bundle = json_format.MessageToJson(manifest, preserving_proto_field_name=True, indent=None)
    roles = json.dumps({"active": summary.active, "shadow": summary.shadow})
    return f'{roles[:-1]}, "bundle": {bundle}}}'


def _settings(manifest: BundleManifest) -> Table:
    labels = manifest.labels
    table = Table(show_header=False, box=None)
    reduction = LossReduction.Name(labels.loss_reduction).removeprefix("LOSS_REDUCTION_").lower()
    normalisation = Normalisation.Name(labels.normalisation).removeprefix("NORMALISATION_").lower()
    parameters = f"{manifest.proxy.parameter_count:,} parameters"
    for name, value in (
        ("created", f"{manifest.create_time.ToDatetime():%Y-%m-%d %H:%M} UTC"),
        ("language model", manifest.language_model.name),
        ("proxy", f"{manifest.proxy.backbone}, {parameters}"),
        ("labels", f"{labels.sample_count:,} in {labels.dtype}, loss {reduction} over tokens"),
        ("normalisation", normalisation),
        ("unit of values", labels.unit),
        ("token limit", f"{manifest.encoding.token_limit:,}"),
        ("held out", f"{manifest.metrics.held_out_count:,} samples"),
    ):
        table.add_row(name, Text(printable(value)))
    return table


def _targets(manifest: BundleManifest) -> Table:
    measured = {metrics.target: metrics for metrics in manifest.metrics.targets}
    table = Table("target")
    for heading in (
        "samples",
        "median value",
        "Spearman",
        "of length alone",
        "Pearson",
        "coverage",
    ):
        table.add_column(heading, justify="right")
    for target in manifest.targets:
        metrics = measured.get(target.name)
        quality = (
            [
                f"{metrics.spearman:.3f}",
                f"{metrics.length_spearman:.3f}",
                f"{metrics.pearson:.3f}",
                f"{metrics.coverage:.1%}",
            ]
            if metrics
            else ["not measured"]
        )
        median = target.value_quantiles[50]
        table.add_row(Text(target.name), f"{target.sample_count:,}", f"{median:.4g}", *quality)
    return table
