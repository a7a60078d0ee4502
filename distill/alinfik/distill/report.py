"""Writes `report.html`: one file, no external resources, readable by someone who buys data."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from alinfik.distill.labels import Labels
from alinfik.distill.measure import Predictions
from alinfik.v1 import BundleManifest

_EXAMPLES = 5
_EXCERPT = 280


@dataclass(frozen=True)
class _Example:
    provider: str
    text: str
    value: float
    label: float


def write_report(
    path: Path, manifest: BundleManifest, labels: Labels, predictions: Predictions
) -> None:
    """Write the report of a bundle.

    Args:
        path: the HTML file.
        manifest: with its metrics filled in.
        labels: the held-out samples, N.
        predictions: of the same samples.
    """
    environment = Environment(
        loader=PackageLoader("alinfik.distill"), autoescape=select_autoescape(["html.j2"])
    )
    template = environment.get_template("report.html.j2")
    targets = [
        {
            "metrics": metrics,
            "plot": _scatter(labels.values[:, column], predictions.value[:, column], labels),
            "providers": _by_provider(labels, predictions, column),
            "highest": _examples(labels, predictions, column, highest=True),
            "lowest": _examples(labels, predictions, column, highest=False),
        }
        for column, metrics in enumerate(manifest.metrics.targets)
    ]
    path.write_text(
        template.render(manifest=manifest, targets=targets, created=manifest.create_time)
    )


def _by_provider(
    labels: Labels, predictions: Predictions, column: int
) -> list[dict[str, str | int | float]]:
    providers = np.array([row.provider or "(none)" for row in labels.rows])
    rows: list[dict[str, str | int | float]] = [
        {
            "name": str(name),
            "count": int((providers == name).sum()),
            "value": float(np.median(predictions.value[providers == name, column])),
            "label": float(np.median(labels.values[providers == name, column])),
        }
        for name in np.unique(providers)
    ]
    return sorted(rows, key=lambda row: -float(row["label"]))


def _examples(
    labels: Labels, predictions: Predictions, column: int, *, highest: bool
) -> list[_Example]:
    order = np.argsort(predictions.value[:, column])
    rows = labels.rows
    examples: dict[str, _Example] = {}
    for index in order[::-1] if highest else order:
        # Copies say nothing that the first does not.
        examples.setdefault(
            rows[index].group,
            _Example(
                provider=rows[index].provider,
                text=_excerpt(f"{rows[index].prompt}\n{rows[index].completion}".strip()),
                value=float(predictions.value[index, column]),
                label=float(labels.values[index, column]),
            ),
        )
    return list(examples.values())[:_EXAMPLES]


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def _scatter(label: np.ndarray, value: np.ndarray, labels: Labels) -> str:
    """Plot value against label, a colour each provider; return a data URI."""
    # Here, since it takes seconds to load and most commands draw nothing.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    providers = np.array([row.provider or "(none)" for row in labels.rows])
    for name in np.unique(providers):
        chosen = providers == name
        axes.scatter(label[chosen], value[chosen], s=12, alpha=0.7, label=str(name))
    low, high = float(min(label.min(), value.min())), float(max(label.max(), value.max()))
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
    span = max(float(np.median(np.abs(label))), 1e-12)
    axes.set_xscale("symlog", linthresh=span)
    axes.set_yscale("symlog", linthresh=span)
    axes.set_xlabel("LinFiK label (by the language model's gradients)")
    axes.set_ylabel("value (by the proxy)")
    axes.legend(fontsize=7)
    image = io.BytesIO()
    figure.savefig(image, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(image.getvalue()).decode()
