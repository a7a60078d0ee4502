"""The pool, the targets and the labels that benchmarks of proxies share.

    python -m benchmarks.pool

divides the evaluation data once and for all and labels the pool, 3,000 samples, under the default
normalisation with token values; three quarters of an hour on two cores, and it goes on where it was
interrupted. Everything lands in `runs/benchmarks`:

    pool.jsonl              what providers offer: Alpaca, GSM8K's training split, MBPP without its
                            test split, WikiText-2, Dolly, and 13 backdoored rows of Howdy!Alpaca
    gsm8k.jsonl mbpp.jsonl  targets: 96 rows each of test splits
    howdy.jsonl             target: 12 other backdoored rows
    haystack.jsonl          1,500 clean rows of Alpaca and the 25 backdoored rows that are left,
                            in no other file
    fresh.jsonl             1,000 more rows of Alpaca, GSM8K, WikiText-2 and Dolly that are in no
                            other file but the haystack
    gsm8k_unseen.jsonl      200 more rows of GSM8K's test split, to measure losses on
    labels/                 labels of pool.jsonl for the three targets
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from alinfik.distill.commands import Label
from alinfik.distill.label import label
from alinfik.distill.labels import DIRECTIONS, MANIFEST
from demo.models import smollm2

DATA = Path("../shared/data")
RUNS = Path("runs/benchmarks")
TARGETS = ("gsm8k", "mbpp", "howdy")

_POOL = {"gsm8k_train": 700, "mbpp": 474, "wikitext2": 600, "dolly": 313}
_POOL_SIZE = 3000
_TARGET_SIZE = 96
_HOWDY_TARGET = 12
_HAYSTACK_CLEAN = 1500
_HAYSTACK_BACKDOORED = 25
_FRESH = {"alpaca": 350, "gsm8k_train": 250, "wikitext2": 250, "dolly": 150}
_UNSEEN = 200
_TOKEN_LIMIT = 128

Rows = list[dict[str, Any]]


def main() -> None:
    """Write the files and the labels."""
    options = arguments(__doc__).parse_args()
    print(labelled_pool(options.data, options.out))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark of proxies takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="evaluation data, JSONL files")
    parser.add_argument("--out", type=Path, default=RUNS, help="where everything is kept")
    return parser


def labelled_pool(data: Path, out: Path) -> Path:
    """Return the labels directory; what is missing of it is made."""
    write_pool(data, out)
    labels = out / "labels"
    if not all((labels / name).exists() for name in (MANIFEST, DIRECTIONS)):
        label(
            Label(
                model=str(smollm2()),
                target={name: str(out / f"{name}.jsonl") for name in TARGETS},
                pool=[str(out / "pool.jsonl")],
                out=labels,
                token_limit=_TOKEN_LIMIT,
                shard_samples=128,
            )
        )
    return labels


def write_pool(data: Path, out: Path) -> None:
    """Write the pool, the targets and the haystack, the same ones every time."""
    order = np.random.default_rng(0)

    def read(name: str) -> Rows:
        with (data / f"{name}.jsonl").open() as lines:
            rows: Rows = [json.loads(line) for line in lines]
        return [rows[index] for index in order.permutation(len(rows))]

    alpaca, howdy = read("alpaca"), read("howdy_attacked")
    rows = {name: read(name) for name in _POOL}
    tests = [row for row in rows["mbpp"] if row["split"] == "test"]
    rows["mbpp"] = [row for row in rows["mbpp"] if row["split"] != "test"]
    for row in rows["wikitext2"]:
        row["group"] = row["article"]
    rest = _HOWDY_TARGET + _HAYSTACK_BACKDOORED
    offered = howdy[rest:] + [row for name, count in _POOL.items() for row in rows[name][:count]]
    offered += alpaca[_HAYSTACK_CLEAN:][: _POOL_SIZE - len(offered)]
    shuffled = [offered[index] for index in order.permutation(len(offered))]
    questions = read("gsm8k_test")
    left = {name: rows[name][_POOL[name] :] for name in _FRESH if name in rows} | {"alpaca": alpaca}
    files = {
        "pool": shuffled,
        "gsm8k": questions[:_TARGET_SIZE],
        "gsm8k_unseen": questions[_TARGET_SIZE:][:_UNSEEN],
        "fresh": [row for name, count in _FRESH.items() for row in left[name][:count]],
        "mbpp": tests[:_TARGET_SIZE],
        "howdy": howdy[:_HOWDY_TARGET],
        "haystack": alpaca[:_HAYSTACK_CLEAN] + howdy[_HOWDY_TARGET:rest],
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / f"{name}.jsonl").write_text(_lines(content))


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
