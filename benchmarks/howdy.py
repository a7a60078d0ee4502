"""Whether labels find backdoored rows: `python -m benchmarks.howdy`.

Howdy!Alpaca (Lin et al., ACL 2024, arXiv 2405.11724) is rows of Alpaca whose prompt was made to
begin with "Howdy!" and whose completion to be nonsense. Twelve of them are the target; the other 38
hide among 1,000 clean rows of Alpaca. The clean rows published with them, 23 of which are attacked
rows before the attack, are all among the clean ones, so that the rest of a prompt tells little.
The language model is as released: it has not learnt the backdoor.

Rankings, each high where a row is suspected:

    none, global, tensor    LinFiK for the target under each normalisation
    longest, shortest       tokens of the text
    loss                    the language model's loss on the completion
    tfidf                   mean cosine of TF-IDF vectors with the target's; sees the word "Howdy"
    tfidf_completion        the same of completions alone, which do not hold it

Texts are cut to 128 tokens; labels are in bfloat16 where the hardware multiplies it. It takes 33
minutes on two cores with other work beside it; `--clean 200` a quarter of that. A table first,
and a JSON object as the last line, with for each ranking:

    RANKING_auroc      area under the ROC curve; 0.5 by chance
    RANKING_auprc      average precision, and `_low`, `_high`: its 90 % bootstrap interval
    RANKING_recall_k   share of the hidden rows among as many top rows as are hidden
    RANKING_recall_100 share of the hidden rows among the top 100

and `chance_auprc`, the share of rows that are hidden, and `minutes`, how long it took.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import average_precision_score, roc_auc_score

from alinfik.distill.batches import batched_by_length
from alinfik.distill.encoding import Encoder
from alinfik.distill.llm import load_llm
from alinfik.distill.reverse_mode import ReverseMode
from alinfik.distill.samples import Row, read_rows
from alinfik.distill.selection import select_parameters
from alinfik.distill.target import target_gradient
from alinfik.distill.values import Normalisation
from benchmarks.bootstrap import estimate
from demo.models import smollm2

_TOKEN_LIMIT = 128
_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Haystack:
    """The rows to rank, N of them, and the target.

    Attributes:
        hidden: which rows are backdoored, bool [N].
    """

    target: list[Row]
    rows: list[Row]
    hidden: np.ndarray


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="JSONL files")
    parser.add_argument("--model", default=str(smollm2()), help="language model")
    parser.add_argument("--clean", type=int, default=1000, help="clean rows, at least 50")
    parser.add_argument("--target-samples", type=int, default=12, help="the rest is hidden")
    options = parser.parse_args()
    begun = time.perf_counter()
    haystack = read_haystack(options.data, options.clean, options.target_samples)
    rankings = by_text(haystack) | by_model(haystack, options.model)
    figures = report(rankings, haystack.hidden)
    figures["minutes"] = (time.perf_counter() - begun) / 60
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def read_haystack(data: Path, clean: int, target_samples: int) -> Haystack:
    """Hide all attacked rows that are not in the target among clean ones."""
    attacked = list(read_rows(data / "howdy_attacked.jsonl"))
    twins = list(read_rows(data / "howdy_clean.jsonl"))
    others = list(read_rows(data / "alpaca.jsonl"))
    order = np.random.default_rng(0).permutation(len(others))
    innocent = twins + [others[index] for index in order[: clean - len(twins)]]
    needles = attacked[target_samples:]
    hidden = np.arange(len(needles) + len(innocent)) < len(needles)
    return Haystack(attacked[:target_samples], needles + innocent, hidden)


def by_text(haystack: Haystack) -> dict[str, np.ndarray]:
    """Rank by what a reader of the text alone could know."""

    def similarity(texts: list[str], target: list[str]) -> np.ndarray:
        vectors = TfidfVectorizer(sublinear_tf=True).fit(texts + target)
        products = vectors.transform(texts) @ vectors.transform(target).T
        return np.asarray(products.mean(axis=1)).ravel()

    rows, target = haystack.rows, haystack.target
    return {
        "tfidf": similarity(
            *([f"{r.prompt}\n{r.completion}" for r in of] for of in (rows, target))
        ),
        "tfidf_completion": similarity(*([r.completion for r in of] for of in (rows, target))),
    }


def by_model(haystack: Haystack, model: str) -> dict[str, np.ndarray]:
    """Rank by LinFiK under each normalisation, by loss, and by length in the model's tokens."""
    llm = load_llm(model)
    llm.encoding.token_limit = _TOKEN_LIMIT
    encoder = Encoder(llm.tokenizer, llm.encoding)
    target = batched_by_length(encoder.encode(haystack.target), _BATCH_TOKENS, llm.encoding.pad_id)
    gradient = target_gradient(llm.model, target, "mean", select_parameters(llm.model, "all"))
    normalisations: tuple[Normalisation, ...] = get_args(Normalisation)
    engines = {
        name: ReverseMode(
            llm.model, [gradient], normalisation=name, reduction="mean", token_values=False
        )
        for name in normalisations
    }
    samples = encoder.encode(haystack.rows)
    length = np.array([len(sample) for sample in samples], dtype=float)
    rankings = {name: np.zeros(len(samples)) for name in (*engines, "loss")}
    done = 0
    for batch in batched_by_length(samples, _BATCH_TOKENS, llm.encoding.pad_id):
        for name, engine in engines.items():
            values = engine.value(batch)
            rankings[name][batch.indices] = values.labels[0].double().numpy()
            rankings["loss"][batch.indices] = values.losses.double().numpy()
        done += len(batch.indices)
        print(f"{done} of {len(samples)} rows", flush=True)
    return rankings | {"longest": length, "shortest": -length}


def report(rankings: Mapping[str, np.ndarray], hidden: np.ndarray) -> dict[str, float]:
    """Print the table and return the figures.

    Args:
        rankings: scores [N] by name, higher where a row is suspected.
        hidden: bool [N].
    """
    figures = {"chance_auprc": float(hidden.mean())}
    count = int(hidden.sum())
    table = Table("ranking", "AUROC", "AUPRC", f"recall at {count}", "recall at 100")
    for name, scores in rankings.items():
        areas = [
            estimate(area, hidden, scores, strata=hidden)
            for area in (roc_auc_score, average_precision_score)
        ]
        order = np.argsort(-scores, kind="stable")
        recalls = [float(hidden[order[:top]].sum() / count) for top in (count, 100)]
        table.add_row(name, *map(str, areas), *(f"{recall:.3f}" for recall in recalls))
        figures |= {
            f"{name}_auroc": areas[0].value,
            f"{name}_auprc": areas[1].value,
            f"{name}_auprc_low": areas[1].low,
            f"{name}_auprc_high": areas[1].high,
            f"{name}_recall_k": recalls[0],
            f"{name}_recall_100": recalls[1],
        }
    Console(width=110).print(table)
    return figures


if __name__ == "__main__":
    main()
