"""How well labels, and measuring itself, predicted what optimiser steps did.

In: an `Outcome` an item. Out: a table, and the figures that `benchmarks.predictive` documents.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from alinfik.distill.settings import Normalisation
from benchmarks.bootstrap import Estimate, estimate

# Learning rates by optimiser: too small for float32, small, a trainer's, ten times that.
STEPS = {"sgd": (1e-6, 1e-4, 1e-3, 1e-2), "adamw": (2e-8, 2e-6, 2e-5, 2e-4)}
REFERENCE = {"sgd": 1e-3, "adamw": 2e-5}
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)

Labels = dict[Normalisation, float]


@dataclass(frozen=True)
class Outcome:
    """What is known of one item, a sample or a group.

    Attributes:
        labels: LinFiK for half A, by normalisation.
        slopes: to first order, what a step of each optimiser takes off half A's loss, nats per unit
            learning rate.
        drops: what it took off in truth, nats, by optimiser, learning rate and half.
    """

    labels: Labels
    slopes: dict[str, float]
    drops: dict[tuple[str, float, str], float]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of two arrays [N]; not a number where one is constant."""
    # Tens of thousands of these are taken; scipy's own also finds a p-value, at ten times the cost.
    one, other = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    length = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / length) if length > 0 else float("nan")


def drops(outcomes: list[Outcome], optimiser: str, rate: float, half: str) -> np.ndarray:
    """Measured drops [N]."""
    return np.array([outcome.drops[optimiser, rate, half] for outcome in outcomes])


def labels(outcomes: list[Outcome], normalisation: Normalisation) -> np.ndarray:
    """LinFiK [N]."""
    return np.array([outcome.labels[normalisation] for outcome in outcomes])


def truth(outcomes: list[Outcome], optimiser: str) -> np.ndarray:
    """Drops [N] of half B at a trainer's learning rate: what is to be predicted."""
    return drops(outcomes, optimiser, REFERENCE[optimiser], "B")


def linfik(outcomes: list[Outcome], optimiser: str, normalisation: Normalisation) -> Estimate:
    """How well labels predict the truth."""
    return estimate(spearman, labels(outcomes, normalisation), truth(outcomes, optimiser))


def slope(outcomes: list[Outcome], optimiser: str) -> Estimate:
    """How well the first order of the optimiser's own step predicts the truth."""
    slopes = np.array([outcome.slopes[optimiser] for outcome in outcomes])
    return estimate(spearman, slopes, truth(outcomes, optimiser))


def fik(outcomes: list[Outcome], optimiser: str, rate: float) -> Estimate:
    """How well measuring at one learning rate predicts the truth."""
    return estimate(spearman, drops(outcomes, optimiser, rate, "A"), truth(outcomes, optimiser))


def report(items: dict[str, list[Outcome]]) -> dict[str, float]:
    """Print the table and return the figures that matter."""
    figures: dict[str, float] = {}
    columns = [(optimiser, item) for optimiser in STEPS for item in items]
    table = Table("with the measured drop", *(" ".join(column) for column in columns))

    def row(title: str, key: str, found: list[Estimate]) -> None:
        table.add_row(title, *map(str, found))
        for (optimiser, item), one in zip(columns, found, strict=True):
            name = f"{optimiser}_{item}_{key}"
            figures[name] = one.value
            if not key.endswith("_large"):
                figures.update({f"{name}_low": one.low, f"{name}_high": one.high})

    for name in NORMALISATIONS:
        row(f"LinFiK {name}", name, [linfik(items[item], opt, name) for opt, item in columns])
    row("first order of the step", "slope", [slope(items[item], opt) for opt, item in columns])
    for name in NORMALISATIONS[1:]:
        gains = [_gain(items[item], opt, name) for opt, item in columns]
        row(f"  {name} less none", f"{name}_gain", gains)
    for name in NORMALISATIONS:
        found = [_at_large(items[item], opt, name) for opt, item in columns]
        row(f"LinFiK {name}, 10 times the rate", f"{name}_large", found)
    for place in range(len(STEPS["sgd"])):
        rates = " or ".join(f"{rates[place]:.0e}" for rates in STEPS.values())
        found = [fik(items[item], opt, STEPS[opt][place]) for opt, item in columns]
        table.add_row(f"FiK at {rates}", *map(str, found))
    table.add_section()
    for optimiser, item in columns:
        figures |= _of_measuring(items[item], optimiser, f"{optimiser}_{item}")
    for place in range(len(STEPS["sgd"])):
        keys = [f"{opt}_{item}_error_{STEPS[opt][place]:.0e}" for opt, item in columns]
        rates = " or ".join(f"{rates[place]:.0e}" for rates in STEPS.values())
        table.add_row(f"first-order error at {rates}", *(f"{figures[key]:.3f}" for key in keys))
    stability = [figures[f"{opt}_{item}_fik_stability"] for opt, item in columns]
    table.add_row("FiK against itself, at worst", *(f"{value:.3f}" for value in stability))
    Console(width=150).print(table)
    return figures | {"fik_stability_min": min(stability)}


def _gain(outcomes: list[Outcome], optimiser: str, normalisation: Normalisation) -> Estimate:
    def gain(one: np.ndarray, none: np.ndarray, drop: np.ndarray) -> float:
        return spearman(one, drop) - spearman(none, drop)

    one, none = (labels(outcomes, name) for name in (normalisation, "none"))
    return estimate(gain, one, none, truth(outcomes, optimiser))


def _at_large(outcomes: list[Outcome], optimiser: str, normalisation: Normalisation) -> Estimate:
    largest = drops(outcomes, optimiser, STEPS[optimiser][-1], "B")
    return estimate(spearman, labels(outcomes, normalisation), largest)


def _of_measuring(outcomes: list[Outcome], optimiser: str, prefix: str) -> dict[str, float]:
    """What FiK reaches, how it hangs on the learning rate, and how far from linear steps are."""
    figures: dict[str, float] = {}
    slopes = np.array([outcome.slopes[optimiser] for outcome in outcomes])
    measured = {rate: drops(outcomes, optimiser, rate, "A") for rate in STEPS[optimiser]}
    for rate, drop in measured.items():
        error = np.abs(drop / (rate * slopes) - 1)
        figures[f"{prefix}_error_{rate:.0e}"] = float(np.median(error))
    predictions = [fik(outcomes, optimiser, rate).value for rate in measured]
    figures[f"{prefix}_fik"] = fik(outcomes, optimiser, REFERENCE[optimiser]).value
    figures[f"{prefix}_fik_worst"] = min(predictions)
    figures[f"{prefix}_fik_stability"] = min(
        spearman(one, other) for one, other in combinations(measured.values(), 2)
    )
    return figures
