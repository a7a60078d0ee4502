"""Draws how measuring hangs on the step size, and labels do not."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.bootstrap import Estimate
from benchmarks.predictive_report import (
    NORMALISATIONS,
    REFERENCE,
    STEPS,
    Outcome,
    drops,
    fik,
    linfik,
    spearman,
)

_COLOURS = {"none": "tab:red", "global": "tab:blue", "tensor": "tab:green"}
_NAMES = {"sgd": "SGD", "adamw": "AdamW", "single": "single samples", "group": "groups of 32"}


def draw(items: dict[str, list[Outcome]], path: Path) -> None:
    """Draw a panel for each optimiser and kind of item; the same outcomes make the same bytes."""
    # Text as text: it can be searched, and does not hang on the fonts of the machine.
    mpl.rcParams |= {"svg.hashsalt": "alinfik", "svg.fonttype": "none", "font.size": 10}
    figure = Figure(figsize=(10, 7), layout="constrained")
    grid = figure.subplots(
        len(items), 2 * len(STEPS), sharey=True, width_ratios=(3, 1) * len(STEPS)
    )
    for axes, (item, outcomes) in zip(grid, items.items(), strict=True):
        for place, optimiser in enumerate(STEPS):
            left, right = axes[2 * place : 2 * place + 2]
            _fik(left, outcomes, optimiser)
            _linfik(right, outcomes, optimiser)
            left.set_title(f"{_NAMES[optimiser]}, {_NAMES[item]}", loc="left")
        axes[0].set_ylabel("rank correlation")
    for axes in grid[-1, ::2]:
        axes.set_xlabel("learning rate at which FiK is measured")
    for axes in grid[-1, 1::2]:
        axes.set_xlabel("LinFiK\nwith the drop")
    figure.suptitle(
        "Predicting what a step takes off an unseen half of the target (bars: 90 % intervals)"
    )
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=len(names))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=100)


def _fik(axes: Axes, outcomes: list[Outcome], optimiser: str) -> None:
    rates, chosen = STEPS[optimiser], REFERENCE[optimiser]
    axes.axvline(chosen, color="0.8", linestyle="--", zorder=0)
    axes.annotate(
        "predicted step",
        (chosen, 0.02),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-6, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        color="0.4",
    )
    measured = [drops(outcomes, optimiser, rate, "A") for rate in rates]
    itself = drops(outcomes, optimiser, chosen, "A")
    agreement = [spearman(one, itself) for one in measured]
    axes.plot(rates, agreement, color="0.6", marker="s", label="FiK with FiK at the predicted step")
    found = [fik(outcomes, optimiser, rate) for rate in rates]
    axes.errorbar(
        rates, *_bars(found), color="0.1", marker="o", capsize=3, label="FiK with the drop"
    )
    axes.set_xscale("log")
    axes.grid(axis="y", color="0.9")


def _linfik(axes: Axes, outcomes: list[Outcome], optimiser: str) -> None:
    for place, name in enumerate(NORMALISATIONS):
        found = [linfik(outcomes, optimiser, name)]
        axes.errorbar([place], *_bars(found), color=_COLOURS[name], marker="o", capsize=3)
    axes.set_xticks(range(len(NORMALISATIONS)), NORMALISATIONS, rotation=45)
    axes.set_xlim(-0.6, len(NORMALISATIONS) - 0.4)
    axes.grid(axis="y", color="0.9")


def _bars(found: list[Estimate]) -> tuple[list[float], list[list[float]]]:
    values = [one.value for one in found]
    below = [one.value - one.low for one in found]
    above = [one.high - one.value for one in found]
    return values, [below, above]
