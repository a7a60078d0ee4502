"""Fidelity against the number of labels: `python -m benchmarks.sample_efficiency`.

Distils a proxy from ever more of the labels of `benchmarks.pool`, every time the first so many of
one random order, and measures its rank correlation with the labels of the same held-out samples;
beside it the ridge regression on TF-IDF that was fitted to the same labels.

With the pool's 3,000 labels, of which some 2,430 are not held out, `bag` takes seven minutes on two
cores, and `--sizes 250 500` a fifth of that. To go on to 4,000, label a larger pool
(`alinfik-distill label`) and name it by `--labels`. A table and a figure,
`runs/benchmarks/sample_efficiency.svg`, and a JSON object as the last line with
TARGET_spearman_SIZE and TARGET_tfidf_SIZE, and `minutes`.
"""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from alinfik.distill.backbones import Reading, build_backbone
from alinfik.distill.baselines import tfidf_scores
from alinfik.distill.batches import batched_by_length
from alinfik.distill.checkpoint import Checkpoint
from alinfik.distill.commands import Train
from alinfik.distill.distil import distil
from alinfik.distill.encoding import Encoder
from alinfik.distill.fit import Plan
from alinfik.distill.labels import Labels, read_labels
from alinfik.distill.llm import load_fast_tokenizer, model_source
from alinfik.distill.ranks import spearman
from alinfik.distill.splits import Parts, family_names, known, split
from alinfik.distill.training_data import training_data
from benchmarks.pool import arguments, labelled_pool

_SIZES = (250, 500, 1000, 2000, 4000)


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--labels", type=Path, help="labels directory; the pool's by default")
    parser.add_argument("--backbone", default="encoder", help="proxy to train")
    parser.add_argument("--sizes", type=int, nargs="*", default=_SIZES, help="labels to train on")
    options = parser.parse_args()
    begun = time.perf_counter()
    labels = read_labels(options.labels or labelled_pool(options.data, options.out))
    parts = split(labels.rows)
    order = np.random.default_rng(0).permutation(known(parts)).tolist()
    sizes = sorted({min(size, len(order)) for size in options.sizes})
    held_out = labels.take(parts["held_out"])
    curves: dict[str, list[float]] = {}
    for size in sizes:
        chosen = set(order[:size])
        some: Parts = {part: [i for i in rows if i in chosen] for part, rows in parts.items()}
        proxy = fidelity(options.backbone, labels, some, held_out)
        words = tfidf_scores(labels.take(order[:size]), held_out)
        for column, name in enumerate(labels.names):
            curves.setdefault(f"{name}_spearman", []).append(proxy[column])
            baseline = spearman(words[:, column], held_out.values[:, column])
            curves.setdefault(f"{name}_tfidf", []).append(baseline)
    report(sizes, curves)
    draw(sizes, curves, labels.names, options.out / "sample_efficiency.svg")
    figures = {
        f"{name}_{size}": value
        for name, found in curves.items()
        for size, value in zip(sizes, found, strict=True)
    }
    figures["minutes"] = (time.perf_counter() - begun) / 60
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


@torch.no_grad()
def fidelity(family: str, labels: Labels, parts: Parts, held_out: Labels) -> list[float]:
    """Return the rank correlation with held-out labels of a proxy of these parts, by target."""
    source = model_source(labels.model)
    llm = Reading(load_fast_tokenizer(source).backend_tokenizer, labels.manifest.encoding)
    backbone, reading = build_backbone(family, source, llm, labels.kernel)
    settings = Train.model_fields
    plan = Plan(
        epochs=settings["epochs"].default,
        patience=settings["patience"].default,
        batch_tokens=settings["batch_tokens"].default,
        pad_id=reading.encoding.pad_id,
        seed=0,
    )
    data = training_data(labels, family_names(labels.rows, "group"), llm, reading)
    with TemporaryDirectory() as scratch:
        checkpoint = Checkpoint(Path(scratch) / "proxy", {})
        served = distil(backbone, reading, labels, data, parts, plan, checkpoint).served
    samples = Encoder(reading.tokenizer, reading.encoding).encode(held_out.rows)
    values = np.zeros_like(held_out.values)
    for batch in batched_by_length(samples, 2048, plan.pad_id):
        found = served(batch.input_ids, batch.attention_mask, batch.completion_mask)
        values[batch.indices] = found[0].double().numpy()
    return [spearman(values[:, k], held_out.values[:, k]) for k in range(len(labels.names))]


def report(sizes: list[int], curves: dict[str, list[float]]) -> None:
    """Print the table."""
    table = Table("labels", *(name.replace("_", " ") for name in curves))
    for place, size in enumerate(sizes):
        table.add_row(str(size), *(f"{found[place]:.3f}" for found in curves.values()))
    Console(width=110).print(table)


def draw(sizes: list[int], curves: dict[str, list[float]], targets: list[str], path: Path) -> None:
    """Draw the curves, the proxy's in full lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", xlabel="labels trained on", ylabel="rank correlation with held-out labels"
    )
    for number, target in enumerate(targets):
        colour = f"C{number}"
        axes.plot(sizes, curves[f"{target}_spearman"], "o-", color=colour, label=target)
        axes.plot(sizes, curves[f"{target}_tfidf"], ":", color=colour, label=f"{target}, TF-IDF")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
