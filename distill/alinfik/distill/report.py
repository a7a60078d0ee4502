"""Writes `report.html`: one file, no external resources, readable by someone who buys data."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray

from alinfik.distill.baselines import length_scores
from alinfik.distill.labels import Labels
from alinfik.distill.measure import Predictions
from alinfik.v1 import BundleManifest

Floats = NDArray[np.float64]

_EXAMPLES = 5
_EXCERPT = 280
_LENGTH_BANDS = 5


@dataclass(frozen=True)
class _Example:
    provider: str
    text: str
    value: float
    label: float


@dataclass(frozen=True)
class _LengthBand:
    """Texts of some length: how they were valued, and how they should have been."""

    shortest: int
    longest: int
    count: int
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
    # Here, since it takes seconds to load and most commands draw nothing.
    from alinfik.distill.plots import calibration, scatter

    environment = Environment(
        loader=PackageLoader("alinfik.distill"), autoescape=select_autoescape(["html.j2"])
    )
    template = environment.get_template("report.html.j2")
    providers = [row.provider for row in labels.rows]
    targets: list[dict[str, object]] = []
    for column, metrics in enumerate(manifest.metrics.targets):
        value, label = predictions.value[:, column], labels.values[:, column]
        targets.append(
            {
                "metrics": metrics,
                "plot": scatter(label, value, providers),
                "calibration": calibration(label, value, list(metrics.tenth_coverage)),
                "lengths": _by_length(labels, value, label),
                "examples": _examples(labels, value, label),
            }
        )
    path.write_text(
        template.render(manifest=manifest, targets=targets, created=manifest.create_time)
    )


def _by_length(labels: Labels, value: Floats, label: Floats) -> list[_LengthBand]:
    lengths = length_scores(labels).astype(int)
    bands = np.array_split(np.argsort(lengths, kind="stable"), _LENGTH_BANDS)
    return [
        _LengthBand(
            shortest=int(lengths[band].min()),
            longest=int(lengths[band].max()),
            count=len(band),
            value=float(np.median(value[band])),
            label=float(np.median(label[band])),
        )
        for band in bands
        if len(band)
    ]


def _examples(labels: Labels, value: Floats, label: Floats) -> dict[str, list[_Example]]:
    """Show what the proxy values most and least, and where it is most wrong, by rank."""
    too_high = value.argsort().argsort() - label.argsort().argsort()
    return {
        "Most valuable": _first(labels, value, label, np.argsort(-value)),
        "Least valuable": _first(labels, value, label, np.argsort(value)),
        "Most overvalued": _first(labels, value, label, np.argsort(-too_high)),
        "Most undervalued": _first(labels, value, label, np.argsort(too_high)),
    }


def _first(labels: Labels, value: Floats, label: Floats, order: NDArray[np.intp]) -> list[_Example]:
    rows = labels.rows
    examples: dict[str, _Example] = {}
    for index in order:
        # Copies say nothing that the first does not.
        examples.setdefault(
            rows[index].group,
            _Example(
                provider=rows[index].provider,
                text=_excerpt(f"{rows[index].prompt}\n{rows[index].completion}".strip()),
                value=float(value[index]),
                label=float(label[index]),
            ),
        )
        if len(examples) == _EXAMPLES:
            break
    return list(examples.values())


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"
