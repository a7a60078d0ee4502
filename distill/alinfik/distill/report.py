"""Writes `report.html`: one file, no external resources, readable by someone who buys data."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray

from alinfik.distill.baselines import length_scores
from alinfik.distill.explain import Explainer, Explanation
from alinfik.distill.labels import Labels
from alinfik.distill.measure import Predictions
from alinfik.distill.quantise import AGREEMENT_LIMIT
from alinfik.distill.ranks import spearman_interval
from alinfik.distill.samples import Row
from alinfik.v1 import BundleManifest

Floats = NDArray[np.float64]

_EXAMPLES = 5
_EXCERPT = 280
_LENGTH_BANDS = 5
# In the table, the largest; all are in `metrics.json`.
_MOST_PROVIDERS = 50


@dataclass(frozen=True)
class Piece:
    """Some characters of a text, and how far and which way they move the value, from -1 to 1."""

    text: str
    share: float


@dataclass(frozen=True)
class _Example:
    provider: str
    pieces: list[Piece]
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
    path: Path,
    manifest: BundleManifest,
    labels: Labels,
    predictions: Predictions,
    explainer: Explainer | None,
    *,
    other_pool: bool = False,
) -> None:
    """Write the report of a bundle.

    Args:
        path: the HTML file.
        manifest: with its metrics filled in.
        labels: the held-out samples, N.
        predictions: of the same samples.
        explainer: colours the examples' tokens; None where the bundle has no token values.
        other_pool: they are not what was held out when the bundle was distilled.
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
                "likely": spearman_interval(metrics.spearman, len(labels)),
                "plot": scatter(label, value, providers),
                "calibration": calibration(label, value, list(metrics.tenth_coverage)),
                "lengths": _by_length(labels, value, label),
                "examples": _Examples(labels, column, value, explainer).by_title(),
            }
        )
    page = template.render(
        manifest=manifest,
        targets=targets,
        agreement_limit=AGREEMENT_LIMIT,
        most_providers=_MOST_PROVIDERS,
        other_pool=other_pool,
    )
    path.write_text(page, encoding="utf-8")


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


class _Examples:
    """Held-out samples worth looking at for one target.

    Args:
        labels: N.
        column: the target's.
        value: [N], what the proxy says for it.
        explainer: see `write_report`.
    """

    def __init__(
        self, labels: Labels, column: int, value: Floats, explainer: Explainer | None
    ) -> None:
        self._rows = labels.rows
        self._label = labels.values[:, column]
        self._value = value
        self._column = column
        self._explainer = explainer

    def by_title(self) -> dict[str, list[_Example]]:
        """Show what the proxy values most and least, and where it is most wrong, by rank."""
        too_high = self._value.argsort().argsort() - self._label.argsort().argsort()
        return {
            "Most valuable": self._first(np.argsort(-self._value)),
            "Least valuable": self._first(np.argsort(self._value)),
            "Most overvalued": self._first(np.argsort(-too_high)),
            "Most undervalued": self._first(np.argsort(too_high)),
        }

    def _first(self, order: NDArray[np.intp]) -> list[_Example]:
        groups: dict[str, int] = {}
        for index in order:
            # Copies say nothing that the first does not.
            groups.setdefault(self._rows[index].group, int(index))
            if len(groups) == _EXAMPLES:
                break
        return [
            _Example(
                provider=self._rows[index].provider,
                pieces=self._pieces(self._rows[index]),
                value=float(self._value[index]),
                label=float(self._label[index]),
            )
            for index in groups.values()
        ]

    def _pieces(self, row: Row) -> list[Piece]:
        if self._explainer is None:
            return _excerpt([Piece(f"{row.prompt}\n{row.completion}".strip(), 0.0)])
        (explanation,) = self._explainer.explain([row])
        return _excerpt(coloured(explanation, self._column))


def coloured(explanation: Explanation, column: int) -> list[Piece]:
    """Cut a text into its tokens, and what lies between them, with each token's share."""
    row = explanation.row
    text = row.prompt + row.completion
    values: defaultdict[tuple[int, int], float] = defaultdict(float)
    for (begin, end), value in zip(
        explanation.spans.tolist(), explanation.token_values[:, column].tolist(), strict=True
    ):
        # Several tokens may share a character, as those of an emoji's bytes do; and the start
        # token, which no one sees, can have more than all others together.
        if end > begin:
            values[begin, end] += value
    most = max(map(abs, values.values()), default=0.0) or 1.0
    pieces: list[Piece] = []
    done = 0
    for (begin, end), value in values.items():
        if end <= done:
            continue
        start = max(begin, done)
        pieces += [Piece(between, 0.0) for between in _between(text, done, start, row)]
        pieces.append(Piece(text[start:end], value / most))
        done = end
    pieces += [Piece(between, 0.0) for between in _between(text, done, len(text), row)]
    return pieces


def _between(text: str, start: int, end: int, row: Row) -> list[str]:
    """Return the characters from start to end, prompt and completion a line each."""
    middle = len(row.prompt)
    if start <= middle <= end and row.prompt:
        return [text[start:middle] + "\n" + text[middle:end]]
    return [text[start:end]] if end > start else []


def _excerpt(pieces: list[Piece]) -> list[Piece]:
    kept: list[Piece] = []
    room = _EXCERPT
    for piece in pieces:
        if len(piece.text) > room:
            return [*kept, Piece(piece.text[: max(room - 1, 0)] + "…", piece.share)]
        kept.append(piece)
        room -= len(piece.text)
    return kept
