"""Prints what the demo found, for a person to read."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alinfik.v1 import Sample, Valuation


def values_by_provider(valuations: Iterable[Valuation], target: str) -> dict[str, list[float]]:
    """Collect the values for one target, by provider."""
    values: dict[str, list[float]] = defaultdict(list)
    for valuation in valuations:
        for value in valuation.values:
            if value.target == target:
                values[valuation.provider].append(value.value)
    return values


def ranking(valuations: Iterable[Valuation], target: str) -> list[tuple[str, float]]:
    """Return providers with their median value, the most valuable first."""
    medians = {
        provider: median(values)
        for provider, values in values_by_provider(valuations, target).items()
    }
    return sorted(medians.items(), key=lambda item: -item[1])


def print_ranking(console: Console, valuations: Sequence[Valuation], targets: list[str]) -> None:
    """Print the providers' medians, a column each target."""
    table = Table(title="Median value of the streamed texts, by provider", title_justify="left")
    table.add_column("provider")
    rankings = {target: dict(ranking(valuations, target)) for target in targets}
    for target in targets:
        table.add_column(f"for {target}", justify="right")
    for provider in rankings[targets[0]]:
        cells: list[Text] = []
        for target in targets:
            best = max(rankings[target].values())
            value = rankings[target][provider]
            cells.append(Text(f"{value:+.3g}", style="bold green" if value == best else ""))
        table.add_row(provider, *cells)
    console.print(table)


def print_extremes(
    console: Console,
    valuations: Sequence[Valuation],
    samples: Mapping[str, Sample],
    target: str,
    count: int,
) -> None:
    """Print the most and the least valuable texts for a target."""
    table = Table(title=f"Most and least valuable for {target}", title_justify="left", expand=True)
    for name in ("value", "90 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("provider", no_wrap=True)
    # Takes the width that the others leave.
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    column = [value.target for value in valuations[0].values].index(target)
    # Copies of a text are worth the same: one of them is enough to see.
    texts: dict[str, Valuation] = {}
    for valuation in valuations:
        sample = samples[valuation.sample_id]
        texts.setdefault(" ".join(f"{sample.prompt} ▸ {sample.completion}".split()), valuation)
    ordered = sorted(texts.items(), key=lambda item: -item[1].values[column].value)
    for number, (text, valuation) in enumerate([*ordered[:count], *ordered[-count:]]):
        value = valuation.values[column]
        table.add_row(
            f"{value.value:+.3g}",
            f"{value.lower:+.3g} … {value.upper:+.3g}",
            valuation.provider,
            Text(text),
            end_section=number == count - 1,
        )
    console.print(table)


def print_metrics(console: Console, metrics: Mapping[str, Any]) -> None:
    """Print how well the proxy agrees with labels that it did not see."""
    table = Table(
        title=f"Agreement with {metrics['held_out_count']} labels that the proxy did not see",
        title_justify="left",
    )
    table.add_column("target")
    for name in ("Spearman", "length alone", "Pearson", "inside the 90 % interval"):
        table.add_column(name, justify="right")
    for target in metrics["targets"]:
        table.add_row(
            target["target"],
            f"{target['spearman']:.2f}",
            f"{target['length_spearman']:.2f}",
            f"{target['pearson']:.2f}",
            f"{100 * target['coverage']:.0f} %",
        )
    console.print(table)
