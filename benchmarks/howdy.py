"""Whether values find backdoored rows: `python -m benchmarks.howdy`.

Howdy!Alpaca (Lin et al., ACL 2024, arXiv 2405.11724) is rows of Alpaca whose prompt was made to
begin with "Howdy!" and whose completion to be nonsense. Twelve of them are the target; 25 hide
among 1,500 clean rows of Alpaca that no proxy has seen; the other 13 are in the pool that the
proxies were trained on, as a pool that somebody attacks would have them. The language model is as
released: it has not learnt the backdoor.

Rankings, each high where a row is suspected:

    proxy, other proxies    the value for the target of a proxy that was trained on the pool's
                            labels, normalised by tensor; `proxy` is the first of --backbone
    none, global, tensor    LinFiK for the target under each normalisation, by the model itself
    longest, shortest       tokens of the text
    loss                    the language model's loss on the completion
    tfidf                   mean cosine of TF-IDF vectors with the target's; sees the word "Howdy"
    tfidf_completion        the same of completions alone, which do not hold it

Texts are cut to 128 tokens; labels are in bfloat16 where the hardware multiplies it. It takes 16
minutes on two cores once the proxies are there (`benchmarks.bundles`); `--clean 300` a fifth of
that, and `--skip-labels`, which leaves out what the labels' model says, four. A table first,
and a JSON object as the last line, with for each ranking:

    RANKING_auroc      area under the ROC curve; 0.5 by chance                proxy >= 0.95
    RANKING_auprc      average precision, and `_low`, `_high`: its 90 %       proxy >= 0.60
                       bootstrap interval
    RANKING_recall_k   share of the hidden rows among as many top rows as are hidden
    RANKING_recall_100 share of the hidden rows among the top 100

and `chance_auprc`, the share of rows that are hidden, and `minutes`, how long it took.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
from benchmarks.bootstrap import estimate
from benchmarks.bundles import trained, values
from benchmarks.pool import arguments, write_pool
from demo.models import smollm2

_TOKEN_LIMIT = 128
_BATCH_TOKENS = 1024
_TARGET = "howdy"


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
    parser = arguments(__doc__)
    parser.add_argument("--model", default=str(smollm2()), help="language model")
    parser.add_argument("--clean", type=int, default=1500, help="clean rows, at most 1,500")
    parser.add_argument(
        "--backbone",
        nargs="*",
        default=["gradients:30", "encoder", "bag"],
        help="proxies to rank by",
    )
    parser.add_argument("--skip-labels", action="store_true", help="no rankings by the model")
    options = parser.parse_args()
    bundles = {name: trained(name, options.data, options.out) for name in options.backbone}
    begun = time.perf_counter()
    haystack = read_haystack(options.data, options.out, options.clean)
    rankings = {
        name if place else "proxy": values(bundle, haystack.rows)[_TARGET]
        for place, (name, bundle) in enumerate(bundles.items())
    }
    rankings |= by_text(haystack)
    if not options.skip_labels:
        rankings |= by_model(haystack, options.model)
    figures = report(rankings, haystack.hidden)
    figures["minutes"] = (time.perf_counter() - begun) / 60
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def read_haystack(data: Path, out: Path, clean: int) -> Haystack:
    """Read the target, and the rows that hide among clean ones."""
    write_pool(data, out)
    rows = list(read_rows(str(out / "haystack.jsonl")))
    needles = [row for row in rows if row.provider == _TARGET]
    innocent = [row for row in rows if row.provider != _TARGET][:clean]
    hidden = np.arange(len(needles) + len(innocent)) < len(needles)
    return Haystack(list(read_rows(str(out / f"{_TARGET}.jsonl"))), needles + innocent, hidden)


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
    engine = ReverseMode(
        llm.model, [gradient], normalisation="none", reduction="mean", token_values=False
    )
    samples = encoder.encode(haystack.rows)
    length = np.array([len(sample) for sample in samples], dtype=float)
    rankings = {name: np.zeros(len(samples)) for name in ("none", "global", "tensor", "loss")}
    done = 0
    for batch in batched_by_length(samples, _BATCH_TOKENS, llm.encoding.pad_id):
        labels, losses = engine.under_every_normalisation(batch)
        for name, found in labels.items():
            rankings[name][batch.indices] = found[0].double().numpy()
        rankings["loss"][batch.indices] = losses.double().numpy()
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
