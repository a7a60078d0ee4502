"""Says how well any proxy could agree with labels, given how many samples a target has.

A target of other samples of the same kind would give other labels. Two disjoint halves of it show
by how much: from the rank correlation of their labels follows what two targets of the whole size
would agree at, and what the labels and the truth that they are drawn around do (Spearman 1910,
Brown 1910). In: targets and a few rows of the pool. Knows nothing of files.
"""

import math
from dataclasses import dataclass, replace

from alinfik.command import progress
from alinfik.distill.gradient_cache import GradientCache
from alinfik.distill.labeller import Job
from alinfik.distill.llm import LLM
from alinfik.distill.ranks import spearman
from alinfik.distill.recipe import Recipe
from alinfik.distill.samples import Row
from alinfik.distill.target import target_gradients

# What a target's size is recommended for: the remaining noise hides little of a proxy's skill.
_ENOUGH = 0.99


@dataclass(frozen=True)
class Ceiling:
    """What the noise of a target's labels leaves.

    Attributes:
        half_spearman: rank correlation of labels by two disjoint halves of the target.
        spearman: the highest that a proxy can be expected to reach with labels by the whole.
        enough_samples: the target's size at which that would be 0.99; 0 where the halves do not
            agree at all.
    """

    half_spearman: float
    spearman: float
    enough_samples: int


def ceiling_of(half_spearman: float, samples: int) -> Ceiling:
    """Return the ceiling of a target of so many samples, whose halves agree so well.

    Noise falls as the size grows: reliability r over 1 - r is in proportion to it, and a perfect
    proxy's correlation with the labels is the root of r.
    """
    if half_spearman <= 0:
        return Ceiling(half_spearman, 0.0, 0)
    per_half = half_spearman / max(1 - half_spearman, 1e-9)
    reliability = 2 * per_half / (1 + 2 * per_half)
    wanted = _ENOUGH**2 / (1 - _ENOUGH**2)
    enough = math.ceil(samples / 2 * wanted / per_half)
    return Ceiling(half_spearman, math.sqrt(reliability), max(2, enough))


def ceilings(
    llm: LLM, recipe: Recipe, targets: dict[str, list[Row]], rows: list[Row], cache: GradientCache
) -> dict[str, Ceiling]:
    """Label some rows by the halves of every target that has two samples or more."""
    recipe = replace(recipe, token_values=False)
    found: dict[str, Ceiling] = {}
    for name, samples in targets.items():
        if len(samples) < 2:
            continue
        # Every other one, since a file may be sorted.
        halves = {f"{name}, half {half}": samples[half - 1 :: 2] for half in (1, 2)}
        job = Job.of(recipe, llm, target_gradients(llm, recipe, halves, cache))
        with progress(f"halves of {name}", len(rows)) as advance:
            table = job.labeller_of(llm).label(rows, advance)
        first, second = (table[f"label_{half}"].to_numpy() for half in halves)
        found[name] = ceiling_of(spearman(first, second), len(samples))
    return found
