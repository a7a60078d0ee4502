"""`alinfik-distill evaluate`: measures a bundle on labels that it was not distilled from."""

import sys
from pathlib import Path

from tokenizers import Tokenizer

from alinfik.distill.bundle import EXPLAIN, MODEL, TOKENIZER, read_manifest
from alinfik.distill.disk import check_place
from alinfik.distill.encoding import Encoder
from alinfik.distill.explain import Explainer
from alinfik.distill.export import OnnxModel
from alinfik.distill.labels import Labels, read_labels
from alinfik.distill.measure import EvaluationError, measure, predict
from alinfik.distill.report import write_report
from alinfik.distill.settings import SplitBy
from alinfik.distill.splits import known, split
from alinfik.v1 import BundleManifest, Metrics


def evaluate(bundle: Path, labels_directory: Path, report: Path) -> Metrics:
    """Measure ``bundle`` on labels that it was not distilled from and write the report.

    Of the labels that it was distilled from, these are the part that was held out; of another
    pool, all.

    Raises:
        CommandError: no bundle, no labels, labels of other targets or in another unit, or a place
            where no report can be written.
    """
    manifest = read_manifest(bundle)
    check_place(report, "file")
    labels = read_labels(labels_directory)
    other_pool = _check(bundle, manifest, labels_directory, labels.manifest)
    encoder = Encoder(Tokenizer.from_file(str(bundle / TOKENIZER)), manifest.encoding)
    unseen, fitted = (labels, None) if other_pool else _held_out(labels, manifest)
    samples = encoder.encode(unseen.rows)
    predictions = predict(OnnxModel(bundle / MODEL), samples, manifest.encoding.pad_id)
    metrics = measure(predictions, unseen, fitted)
    metrics.export_error = manifest.metrics.export_error
    metrics.int8_spearman = manifest.metrics.int8_spearman
    if not other_pool:
        # Of the same samples. The labels' tokens may not be the proxy's, to measure it here.
        for target, own in zip(metrics.targets, manifest.metrics.targets, strict=True):
            target.token_spearman = own.token_spearman
    manifest.metrics.CopyFrom(metrics)
    explainer = Explainer(bundle, manifest) if EXPLAIN in manifest.files else None
    report.parent.mkdir(parents=True, exist_ok=True)
    write_report(report, manifest, unseen, predictions, explainer, other_pool=other_pool)
    return metrics


def _held_out(labels: Labels, manifest: BundleManifest) -> tuple[Labels, Labels]:
    """The labels that the bundle was not fitted to, and those that it was."""
    by: SplitBy = "provider" if manifest.proxy.split_by == "provider" else "group"
    parts = split(labels.rows, by)
    return labels.take(parts["held_out"]), labels.take(known(parts))


def _check(bundle: Path, ours: BundleManifest, directory: Path, theirs: BundleManifest) -> bool:
    """Refuse labels that values cannot be compared with; tell of those that are not the bundle's.

    Returns:
        Whether they are of another pool.

    Raises:
        EvaluationError: their targets or their unit are others.
    """
    names, labelled = ([target.name for target in one.targets] for one in (ours, theirs))
    if labelled != names:
        raise EvaluationError(
            f"{bundle} is for the targets {', '.join(names)} and {directory} holds labels for "
            f"{', '.join(labelled)}"
        )
    for field in ("normalisation", "loss_reduction"):
        if getattr(ours.labels, field) != getattr(theirs.labels, field):
            raise EvaluationError(
                f"{directory} holds labels of another {field.replace('_', ' ')} than {bundle} was "
                "distilled from: its values are in another unit"
            )
    shas = ([target.sha256 for target in one.targets] for one in (ours, theirs))
    other_pool = ours.labels.pool_sha256 != theirs.labels.pool_sha256
    changed = {
        "of another language model": ours.language_model.sha256 != theirs.language_model.sha256,
        "for other targets": next(shas) != next(shas),
        "of another pool": other_pool,
    }
    if differences := [what for what, other in changed.items() if other]:
        print(
            f"the labels are {' and '.join(differences)} than the bundle's; where the pool is "
            "another, all of it is measured, copies of what the bundle was distilled from among it",
            file=sys.stderr,
        )
    return other_pool
