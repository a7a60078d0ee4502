"""Fidelity against speed, for every member of the family: `python -m benchmarks.speed_quality`.

Every proxy was distilled from the labels of `benchmarks.pool`. For each, in float32 and, where it
ships, in int8: the rank correlation of its values with the labels of the held-out samples, and how
many samples and tokens a second ONNX Runtime values on all cores of this machine, in batches of
nearest lengths, tokenised ahead. Beside them, the same figures of labelling itself, by the same
language model, in batches of the same size, without token values, which is the quickest that it
goes.

It takes eight minutes on two cores once the proxies are there (`benchmarks.bundles`), and some ten
more for `gradients:30`. A table and a figure, `runs/benchmarks/speed_quality.svg`, and a JSON
object as the last line:

    encoder_int8_speedup   tokens a second of the encoder in int8 over labelling's     >= 50
    bag_speedup            the same of bag                                             >= 1,000
    FAMILY_TARGET_spearman of every proxy, FAMILY_int8_... where it ships
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from alinfik.distill.batches import Batch, batched_by_length
from alinfik.distill.bundle import MODEL, QUANTISED, TOKENIZER, read_manifest
from alinfik.distill.encoding import Encoder
from alinfik.distill.export import OnnxModel
from alinfik.distill.labels import Labels, read_labels
from alinfik.distill.llm import load_llm
from alinfik.distill.ranks import spearman
from alinfik.distill.reverse_mode import ReverseMode
from alinfik.distill.samples import read_rows
from alinfik.distill.selection import select_parameters
from alinfik.distill.splits import split
from alinfik.distill.target import target_gradient
from benchmarks.bundles import trained
from benchmarks.pool import TARGETS, arguments, labelled_pool
from demo.models import smollm2

# Repeated until so long has passed: a bag values the held-out samples in a blink.
_LEAST_SECONDS = 3.0
# What `label` takes by default. A server chooses for itself, for an encoder on two cores 512.
_BATCH_TOKENS = 1024
_TARGET_SAMPLES = 12


@dataclass(frozen=True)
class Point:
    """One model: how well it ranks, by target, and how quick it is."""

    name: str
    spearman: dict[str, float]
    samples_per_second: float
    tokens_per_second: float


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default=str(smollm2()), help="language model")
    parser.add_argument(
        "--backbone", nargs="*", default=["bag", "encoder", "layers:18", "gradients:30"]
    )
    parser.add_argument("--labelled", type=int, default=60, help="samples to time labelling by")
    options = parser.parse_args()
    bundles = {name: trained(name, options.data, options.out) for name in options.backbone}
    labels = read_labels(labelled_pool(options.data, options.out))
    held_out = labels.take(split(labels.rows)["held_out"])
    points = [
        measured(name if file == MODEL else f"{name}_int8", bundle, file, held_out)
        for name, bundle in bundles.items()
        for file in (MODEL, QUANTISED)
        if (bundle / file).exists()
    ]
    labelling = labelling_speed(options.model, options.out, held_out, options.labelled)
    report([*points, labelling])
    draw(points, options.out / "speed_quality.svg")
    speeds = {point.name: point.tokens_per_second for point in points}
    figures = {
        f"{point.name}_{target}_spearman": value
        for point in points
        for target, value in point.spearman.items()
    }
    figures |= {
        f"{name}_speedup": speed / labelling.tokens_per_second for name, speed in speeds.items()
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def measured(name: str, bundle: Path, file: str, held_out: Labels) -> Point:
    """Value the held-out samples with a bundle's model, and time it."""
    manifest = read_manifest(bundle)
    encoder = Encoder(Tokenizer.from_file(str(bundle / TOKENIZER)), manifest.encoding)
    samples = encoder.encode(held_out.rows)
    batches = list(batched_by_length(samples, _BATCH_TOKENS, manifest.encoding.pad_id))
    model = OnnxModel(bundle / file)
    found = np.zeros((len(samples), len(TARGETS)))
    for batch in batches:
        found[batch.indices] = model.run(batch)[0]
    rate = _rate(batches, model)
    return Point(
        name,
        {
            target: spearman(found[:, k], held_out.values[:, k])
            for k, target in enumerate(held_out.names)
        },
        len(samples) * rate,
        sum(map(len, samples)) * rate,
    )


def _rate(batches: list[Batch], model: OnnxModel) -> float:
    """How many times a second all batches go through, by the best of several rounds."""
    quickest, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _LEAST_SECONDS:
        before = time.perf_counter()
        for batch in batches:
            model.run(batch)
        quickest = min(quickest, time.perf_counter() - before)
    return 1 / quickest


def labelling_speed(model: str, out: Path, held_out: Labels, count: int) -> Point:
    """Label some of the held-out samples for the three targets, as quickly as it goes."""
    llm = load_llm(model)
    llm.encoding.CopyFrom(held_out.manifest.encoding)
    encoder = Encoder(llm.tokenizer, llm.encoding)
    everything = select_parameters(llm.model, "all")

    def gradient(target: str) -> dict[str, object]:
        rows = list(read_rows(str(out / f"{target}.jsonl")))[:_TARGET_SAMPLES]
        batches = batched_by_length(encoder.encode(rows), _BATCH_TOKENS, llm.encoding.pad_id)
        return target_gradient(llm.model, batches, "mean", everything)

    engine = ReverseMode(
        llm.model,
        [gradient(target) for target in TARGETS],
        normalisation="tensor",
        reduction="mean",
        token_values=False,
    )
    samples = held_out.samples[:count]
    batches = list(batched_by_length(samples, _BATCH_TOKENS, llm.encoding.pad_id))
    engine.value(batches[-1])
    begun = time.perf_counter()
    for batch in batches:
        engine.value(batch)
    seconds = time.perf_counter() - begun
    tokens = sum(map(len, samples))
    return Point("labelling", {}, len(samples) / seconds, tokens / seconds)


def report(points: list[Point]) -> None:
    """Print the table."""
    table = Table("model", *TARGETS, "samples/s", "tokens/s", "over labelling")
    slowest = points[-1].tokens_per_second
    for point in points:
        cells = [f"{point.spearman[t]:.3f}" if point.spearman else "1" for t in TARGETS]
        table.add_row(
            point.name,
            *cells,
            f"{point.samples_per_second:,.4g}",
            f"{point.tokens_per_second:,.5g}",
            f"{point.tokens_per_second / slowest:,.0f}",
        )
    Console(width=110).print(table)


def draw(points: list[Point], path: Path) -> None:
    """Draw fidelity against speed, a line a target."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", xlabel="samples a second", ylabel="rank correlation with held-out labels"
    )
    ordered = sorted(points, key=lambda point: point.samples_per_second)
    speeds = [point.samples_per_second for point in ordered]
    for target in TARGETS:
        axes.plot(speeds, [point.spearman[target] for point in ordered], "o-", label=target)
    for point in ordered:
        # In 8 bits a proxy stands close by the exact one: its name goes below, the other above.
        below = point.name.endswith("int8")
        end = min if below else max
        axes.annotate(
            point.name.replace("_", " "),
            (point.samples_per_second, end(point.spearman.values())),
            (0, -8 if below else 8),
            textcoords="offset points",
            rotation=-45 if below else 45,
            verticalalignment="top" if below else "bottom",
        )
    axes.margins(x=0.15, y=0.4)
    axes.grid(alpha=0.3)
    axes.legend(title="target")
    figure.savefig(path)


if __name__ == "__main__":
    main()
