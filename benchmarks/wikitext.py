"""WikiText as the target: `python -m benchmarks.wikitext`.

What in a mixed pool would make the language model better at encyclopaedic prose? 96 passages of
WikiText-2 are the target, of articles that the pool does not hold; 1,000 rows of the pool of
`benchmarks.pool` are labelled for it, and a proxy is distilled from the labels. Shown are the
providers' median labels and values, how well the proxy ranks held-out rows, and how well labels and
values find the pool's own WikiText passages.

It takes twenty minutes on two cores, most of it labelling; `--rows 300` a third. Labels and bundle
are kept in `runs/benchmarks/wikitext-ROWS`. A JSON object is the last line:

    spearman, tfidf_spearman   with the labels of held-out rows: the proxy, and words alone
    coverage                   of the 90 % intervals
    labels_auroc, proxy_auroc  WikiText passages among all held-out rows
"""

import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from alinfik.distill.bundle import read_manifest
from alinfik.distill.commands import Label, Train
from alinfik.distill.label import label
from alinfik.distill.labels import read_labels
from alinfik.distill.splits import split
from alinfik.distill.train import train
from benchmarks.bundles import values
from benchmarks.pool import arguments, write_pool
from demo.models import smollm2

_TARGET = "wikitext"
_TARGET_SIZE = 96
_PROVIDER = "wikitext2"
_TOKEN_LIMIT = 128


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default=str(smollm2()), help="language model")
    parser.add_argument("--backbone", default="encoder", help="proxy to distil")
    parser.add_argument("--rows", type=int, default=1000, help="rows to label")
    options = parser.parse_args()
    begun = time.perf_counter()
    write_pool(options.data, options.out)
    directory = options.out / f"wikitext-{options.rows}"
    directory.mkdir(parents=True, exist_ok=True)
    write_target_and_pool(options.data, options.out, directory, options.rows)
    label(
        Label(
            model=options.model,
            target={_TARGET: str(directory / "target.jsonl")},
            pool=[str(directory / "pool.jsonl")],
            out=directory / "labels",
            token_limit=_TOKEN_LIMIT,
        )
    )
    bundle = directory / options.backbone.replace(":", "-")
    if not bundle.exists():
        train(Train(labels=directory / "labels", out=bundle, backbone=options.backbone))
    figures = report(directory / "labels", bundle)
    figures["minutes"] = (time.perf_counter() - begun) / 60
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def write_target_and_pool(data: Path, out: Path, directory: Path, count: int) -> None:
    """Write a target of whole articles, and the pool's first rows that are not of these."""
    with (data / f"{_PROVIDER}.jsonl").open() as lines:
        passages = [json.loads(line) for line in lines]
    target = passages[:_TARGET_SIZE]
    articles = {row["article"] for row in target}
    with (out / "pool.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    pool = [row for row in rows if row.get("article") not in articles][:count]
    for name, rows in (("target", target), ("pool", pool)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(text)


def report(labels_directory: Path, bundle: Path) -> dict[str, float]:
    """Print the table and return the figures."""
    labels = read_labels(labels_directory)
    held_out = labels.take(split(labels.rows)["held_out"])
    rows = held_out.rows
    value, label_of = values(bundle, rows)[_TARGET], held_out.values[:, 0]
    providers = np.array([row.provider for row in rows])
    table = Table("provider", "held out", "median label", "median value")
    for provider in np.unique(providers):
        of = providers == provider
        medians = [f"{np.median(found[of]):.3g}" for found in (label_of, value)]
        table.add_row(str(provider), str(of.sum()), *medians)
    Console(width=110).print(table)
    metrics = read_manifest(bundle).metrics.targets[0]
    own = providers == _PROVIDER
    return {
        "spearman": metrics.spearman,
        "tfidf_spearman": metrics.tfidf_spearman,
        "coverage": metrics.coverage,
        "labels_auroc": float(roc_auc_score(own, label_of)),
        "proxy_auroc": float(roc_auc_score(own, value)),
    }


if __name__ == "__main__":
    main()
