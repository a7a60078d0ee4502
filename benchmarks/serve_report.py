"""The tables and figures of `benchmarks.serve`.

In: the limit and what came of every load. Out: two tables and a JSON object on standard output.
"""

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from rich.console import Console
from rich.table import Table

from benchmarks.ghz import Opinion
from benchmarks.limit import Alone, Limit, Way
from benchmarks.load import REFUSED, Load
from benchmarks.serving import Usage

_HOLDS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}
_LIMITS = {
    "stream_ratio": (">=", 0.90),
    "unary32_ratio": (">=", 0.85),
    "goodput_ratio_300": (">=", 0.95),
    "p99_over_batch_80": ("<", 4.0),
    "refusal_ms_p50": ("<=", 50.0),
    "retry_info": (">=", 1.0),
    "memory_ratio_soak": ("<=", 1.05),
    "failed": ("<=", 0.0),
}
# No server comes near a bag's model: what it must reach is a speed.
_BAG_LIMITS = {"stream_samples_per_second": (">=", 20_000.0)} | {
    name: bound
    for name, bound in _LIMITS.items()
    if name not in ("stream_ratio", "unary32_ratio", "p99_over_batch_80")
}


@dataclass(frozen=True)
class Point:
    """One way to load the server, what came of it, what it took, and what the model could do."""

    label: str
    load: Load
    usage: Usage
    limit: Limit

    @property
    def ratio(self) -> float:
        """Samples valued a second, over the model's alone."""
        return self.load.goodput / self.limit.samples_per_second


def report(
    backbone: str,
    alone: Alone,
    way: Way,
    rounds: Sequence[Mapping[str, Point]],
    opinion: Opinion | None,
) -> None:
    """Print everything; ``way`` is the server's. Medians over the rounds are what counts."""
    console = Console(width=140)
    for points in rounds:
        console.print(loads(alone, points, opinion if points is rounds[-1] else None))
        for point in points.values():
            for status, count in point.load.failed.items():
                console.print(f"{point.label}: {count:,} calls ended with {status}")
    each = [figures(alone, way, points) for points in rounds]
    # The last round may have a soak besides.
    found = {
        name: median(figures[name] for figures in each if name in figures) for name in each[-1]
    }
    found["failed"] = sum(figures["failed"] for figures in each)
    limits = _BAG_LIMITS if backbone == "bag" else _LIMITS
    table = Table("figure", "value", "limit", "")
    for name, value in found.items():
        sign, bound = limits.get(name, ("", 0.0))
        verdict = ("holds" if _HOLDS[sign](value, bound) else "missed") if sign else ""
        table.add_row(name, f"{value:,.4g}", f"{sign} {bound:,g}" if sign else "", verdict)
    console.print(table)
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


def loads(alone: Alone, points: Mapping[str, Point], opinion: Opinion | None) -> Table:
    """A row for each way to load the server."""
    table = Table("load", "samples/s", "of limit")
    for title in ("p50 ms", "p99 ms", "p99.9 ms", "refused", "in ms", "MB", "its cores", "ours"):
        table.add_column(title, justify="right")
    tokens, workers = alone.best
    way = f"model alone, {workers} x {tokens} tokens"
    table.add_row(way, f"{_mean_limit(points):,.0f}", "1")
    for point in points.values():
        load, usage = point.load, point.usage
        refusal = f"{load.latency_ms(50, status=REFUSED)[0]:,.1f}" if load.refused else ""
        table.add_row(
            point.label,
            f"{load.goodput:,.0f}",
            f"{point.ratio:.2f}",
            *(f"{latency:,.1f}" for latency in load.latency_ms(50, 99, 99.9)),
            f"{load.refused:.0%}",
            refusal,
            f"{usage.most_bytes / 1e6:,.0f}",
            f"{usage.server_cores:.2f}",
            f"{usage.generator_cores:.2f}",
        )
    if opinion:
        speed = opinion.samples_per_second
        latencies = (f"{opinion.latency_ms[percent]:,.1f}" for percent in (50, 99))
        table.add_row("Score of 32, by ghz", f"{speed:,.0f}", "", *latencies)
    return table


def figures(alone: Alone, way: Way, points: Mapping[str, Point]) -> dict[str, float]:
    """What the run comes to; `benchmarks.serve` says what each figure is."""
    rates = {name: point.load.goodput for name, point in points.items()}
    overload, usage = points["open300"].load, points["open300"].usage
    size = max(answer.valued for answer in overload.answers)
    peak = max(rates[name] for name in (f"score{size}", "open50", "open80"))
    found = {
        "limit_samples_per_second": _mean_limit(points),
        "tokenise_microseconds": 1e6 * alone.tokenise_seconds,
        "batch_tokens": way[0],
        "batches_at_a_time": way[1],
        "full_batch_ms": 1000 * points["open80single"].limit.batch_seconds,
        "stream_samples_per_second": rates["stream1"],
    }
    found |= {
        f"{name}_ratio": points[point].ratio
        for name, point in (
            ("stream", "stream1"),
            ("four_streams", "stream4"),
            ("unary1", "score1"),
            ("unary8", "score8"),
            ("unary32", "score32"),
        )
    }
    found["goodput_ratio_300"] = rates["open300"] / peak
    for name, point in (("", "open80single"), (f"_of_{size}", "open80")):
        busy, limit = points[point].load, points[point].limit
        p99, queued = busy.latency_ms(99)[0], busy.queued_ms(99, limit.samples_per_second)
        found[f"p99_over_batch_80{name}"] = p99 / (1000 * limit.batch_seconds)
        found[f"p99_over_queue_80{name}"] = p99 / queued
    found |= {
        "refused_300": overload.refused,
        "refusal_ms_p50": overload.latency_ms(50, status=REFUSED)[0],
        "retry_info": overload.retry_info,
        "memory_bytes_300": usage.most_bytes,
        "memory_ratio_300": usage.most_bytes / usage.first_bytes,
    }
    if soak := points.get("soak"):
        found["memory_ratio_soak"] = soak.usage.last_bytes / soak.usage.first_bytes
        found["memory_most_ratio_soak"] = soak.usage.most_bytes / soak.usage.first_bytes
    found["failed"] = sum(point.load.failed.total() for point in points.values())
    return found


def _mean_limit(points: Mapping[str, Point]) -> float:
    return mean(point.limit.samples_per_second for point in points.values())
