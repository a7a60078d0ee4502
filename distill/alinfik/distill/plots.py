"""The report's pictures, as SVG inside the page.

In: values and labels of held-out samples. Out: data URIs. Knows nothing of manifests.
"""

import base64
import io
import warnings
from collections import Counter

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# As many as can be told apart.
_COLOURS = 10


def scatter(label: Floats, value: Floats, providers: list[str]) -> str:
    """Plot value against label, a colour for each of the largest providers and one for others."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    largest = [name for name, _ in Counter(providers).most_common(_COLOURS)]
    place = np.array([largest.index(name) if name in largest else -1 for name in providers])
    for number, name in enumerate(largest):
        chosen = place == number
        axes.scatter(label[chosen], value[chosen], s=12, alpha=0.7, label=_plain(name or "(none)"))
    if (others := place == -1).any():
        axes.scatter(
            label[others], value[others], s=12, alpha=0.5, color="0.7", label="others", zorder=0.5
        )
    low, high = float(min(label.min(), value.min())), float(max(label.max(), value.max()))
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
    span = max(float(np.median(np.abs(label))), 1e-12)
    axes.set_xscale("symlog", linthresh=span)
    axes.set_yscale("symlog", linthresh=span)
    axes.set_xlabel("LinFiK label (by the language model's gradients)")
    axes.set_ylabel("value (by the proxy)")
    axes.legend(fontsize=7)
    return _data_uri(figure)


def calibration(label: Floats, value: Floats, coverage: list[float]) -> str:
    """Plot, by tenth of the values, the labels found there and how many intervals hold them."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    tenths = [t for t in np.array_split(np.argsort(value, kind="stable"), 10) if len(t)]
    values = [float(value[tenth].mean()) for tenth in tenths]
    labels = [float(label[tenth].mean()) for tenth in tenths]
    ends = [min(values + labels), max(values + labels)]
    left.plot(ends, ends, color="0.6", linewidth=1)
    left.plot(values, labels, marker="o", markersize=4)
    left.set_xlabel("mean value of a tenth")
    left.set_ylabel("mean label")
    right.bar(range(1, len(coverage) + 1), [100 * share for share in coverage], color="0.7")
    right.axhline(90, color="tab:red", linewidth=1)
    right.set_ylim(0, 100)
    right.set_xticks(range(1, len(coverage) + 1))
    right.set_xlabel("tenth of the values, lowest first")
    right.set_ylabel("labels inside intervals, %")
    return _data_uri(figure)


def _plain(name: str) -> str:
    """Keep a legend from reading a name as a formula, or one with `_` first as none to show."""
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if name.startswith("_") else escaped


def _data_uri(figure: Figure) -> str:
    image = io.BytesIO()
    # Text stays text, which the reader's fonts write: ours lack most of the world's scripts.
    with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(image, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(image.getvalue()).decode()
