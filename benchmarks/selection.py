"""Training on a chosen tenth of a pool: `python -m benchmarks.selection`.

The language model is trained for one epoch on the tenth of `fresh.jsonl` (`benchmarks.pool`) that
each method ranks highest for the target gsm8k, and its loss on 200 other questions of GSM8K is
measured before and after. Once with GSM8K's own rows in the pool, once without them: where the
target's own kind is on offer, knowing it by its looks is enough; where it is not, only what helps
does. Methods:

    random        a tenth by lot, another one for each seed
    longest       most tokens
    loss          highest loss of the language model
    bm25          mean BM25 score with the target's samples as queries
    minilm        mean cosine of MiniLM's mean states with the target's
    none, global, tensor    LinFiK labels under each normalisation
    proxy         the value of a proxy that has seen none of these rows (`benchmarks.bundles`)

AdamW, batches of 8 samples in an order of the seed's, learning rate 1e-5 after a linear warm-up;
float32 weights, bfloat16 products where the hardware has them. With 1,000 rows and five seeds it
takes three hours on two cores, one with `--unseen 60 --methods bm25 minilm`, and a third of that
with `--rows 400`. A table and a figure, `runs/benchmarks/selection.svg`, of how much the loss fell
with 90 % intervals over seeds, and a JSON object as the last line, with for each setting, `with_`
and `without_` the own domain:

    SETTING_METHOD_drop        mean drop of the target's loss, nats
    SETTING_proxy_gain_ratio   what the proxy's choice gains over random, over what the labels'
                               (tensor) gains                                             >= 0.85
    proxy_gain_ratio           the lower of the two
    SETTING_proxy_overlap      share of the labels' choice that is the proxy's too
"""

import copy
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bm25s
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student
from tokenizers import Tokenizer
from transformers import AutoModel

from alinfik.command import progress
from alinfik.distill.backbones import minilm
from alinfik.distill.batches import batched_by_length, pad
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.llm import LLM, choose_dtype, load_fast_tokenizer, load_llm
from alinfik.distill.losses import reduce_tokens, token_losses
from alinfik.distill.reverse_mode import ReverseMode
from alinfik.distill.samples import Row, read_rows
from alinfik.distill.selection import select_parameters
from alinfik.distill.target import target_gradient
from benchmarks.bundles import trained, values
from benchmarks.pool import arguments, write_pool
from demo.models import smollm2

METHODS = (
    "random",
    "longest",
    "loss",
    "bm25",
    "minilm",
    "none",
    "global",
    "tensor",
    "proxy",
)

_TARGET = "gsm8k"
_SHARE = 0.1
_TOKEN_LIMIT = 128
_BATCH_TOKENS = 1024
_BATCH_SAMPLES = 8
_RATE = 1e-5
_WARM_UP_STEPS = 3
_LEVEL = 0.9


@dataclass(frozen=True)
class Material:
    """What every method chooses from: rows [N], their samples, and the target."""

    rows: list[Row]
    samples: list[Encoded]
    target: list[Row]


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default=str(smollm2()), help="language model")
    parser.add_argument("--backbone", default="gradients:30", help="proxy to choose by")
    parser.add_argument("--rows", type=int, default=1000, help="rows to choose from, at most 1,000")
    parser.add_argument("--unseen", type=int, default=200, help="questions to measure losses on")
    parser.add_argument("--seeds", type=int, default=5, help="trainings a method, at least 2")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=METHODS,
        help="random, tensor and proxy too",
    )
    options = parser.parse_args()
    bundle = trained(options.backbone, options.data, options.out)
    begun = time.perf_counter()
    write_pool(options.data, options.out)
    fresh = list(read_rows(str(options.out / "fresh.jsonl")))
    order = np.random.default_rng(0).permutation(len(fresh))[: options.rows]
    rows = [fresh[index] for index in order]
    llm = load_llm(options.model)
    llm.encoding.token_limit = _TOKEN_LIMIT
    encoder = Encoder(llm.tokenizer, llm.encoding)
    target = list(read_rows(str(options.out / f"{_TARGET}.jsonl")))
    unseen = encoder.encode(list(read_rows(str(options.out / "gsm8k_unseen.jsonl"))))
    material = Material(rows, encoder.encode(rows), target)
    rankings = by_text(material) | by_model(material, llm, encoder)
    rankings["proxy"] = values(bundle, rows)[_TARGET]
    trainer = Trainer(options.model, unseen[: options.unseen], llm.encoding.pad_id)
    own = np.array([row.provider == _TARGET for row in rows])
    drops: dict[str, dict[str, list[float]]] = {}
    overlaps: dict[str, float] = {}
    methods = [one for one in METHODS if one in {*options.methods, "random", "tensor", "proxy"}]
    with progress("train", 2 * len(methods) * options.seeds) as advance:
        for setting, allowed in (("with", np.ones_like(own)), ("without", ~own)):
            found = drops[setting] = {method: list[float]() for method in methods}
            for method, seed in itertools.product(methods, range(options.seeds)):
                chosen = choose(rankings.get(method), allowed, seed)
                found[method].append(trainer.drop([material.samples[i] for i in chosen], seed))
                advance(note=f"{setting} {method} {np.mean(found[method]):.4f}")
            report(setting, found)
            by_labels, by_proxy = (choose(rankings[one], allowed, 0) for one in ("tensor", "proxy"))
            overlaps[f"{setting}_proxy_overlap"] = float(np.isin(by_labels, by_proxy).mean())
    draw(drops, options.out / "selection.svg")
    figures = summary(drops) | overlaps
    figures["minutes"] = (time.perf_counter() - begun) / 60
    print(json.dumps({name: round(value, 5) for name, value in figures.items()}))


def choose(scores: np.ndarray | None, allowed: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows of the best tenth among those allowed, or a tenth by lot."""
    candidates = np.flatnonzero(allowed)
    count = max(_BATCH_SAMPLES, round(_SHARE * len(candidates)))
    if scores is None:
        return np.random.default_rng(seed).choice(candidates, count, replace=False)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:count]]


def by_text(material: Material) -> dict[str, np.ndarray]:
    """Rank by what needs no gradients."""
    texts, target = (
        [f"{row.prompt}\n{row.completion}" for row in of] for of in (material.rows, material.target)
    )
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    queries = bm25s.tokenize(target, return_ids=False, show_progress=False)
    return {
        "longest": np.array([len(sample) for sample in material.samples], dtype=float),
        "bm25": np.mean([index.get_scores(query) for query in queries], axis=0),
        "minilm": (_states(texts) @ _states(target).T).mean(axis=1),
    }


@torch.no_grad()
def _states(texts: Sequence[str]) -> np.ndarray:
    """MiniLM's mean states [N, D], each of length 1."""
    source = minilm()
    tokenizer: Tokenizer = load_fast_tokenizer(source).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(_TOKEN_LIMIT)
    samples = [Encoded(found.ids, 0, truncated=False) for found in tokenizer.encode_batch(texts)]
    model = AutoModel.from_pretrained(source).eval()
    states = np.zeros((len(samples), model.config.hidden_size))
    for batch in batched_by_length(samples, 4096, pad_id=0):
        found = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
        mask = batch.attention_mask.unsqueeze(-1)
        mean = (found * mask).sum(dim=1) / mask.sum(dim=1)
        states[batch.indices] = torch.nn.functional.normalize(mean).numpy()
    return states


def by_model(material: Material, llm: LLM, encoder: Encoder) -> dict[str, np.ndarray]:
    """Rank by the language model's loss and by LinFiK under each normalisation."""
    pad_id = llm.encoding.pad_id
    target = batched_by_length(encoder.encode(material.target), _BATCH_TOKENS, pad_id)
    gradient = target_gradient(llm.model, target, "mean", select_parameters(llm.model, "all"))
    engine = ReverseMode(
        llm.model, [gradient], normalisation="none", reduction="mean", token_values=False
    )
    rankings = {name: np.zeros(len(material.rows)) for name in ("loss", "none", "global", "tensor")}
    for batch in batched_by_length(material.samples, _BATCH_TOKENS, pad_id):
        labels, losses = engine.under_every_normalisation(batch)
        rankings["loss"][batch.indices] = losses.double().numpy()
        for name, found in labels.items():
            rankings[name][batch.indices] = found[0].double().numpy()
    return rankings


class Trainer:
    """Trains the language model from where it was released, time and again.

    Args:
        model: what to load.
        unseen: samples to measure the loss on.
        pad_id: fills batches up.
    """

    def __init__(self, model: str, unseen: list[Encoded], pad_id: int) -> None:
        self._model = load_llm(model, dtype="float32").model
        self._start = copy.deepcopy(self._model.state_dict())
        self._half = choose_dtype("auto", self._model.device) == torch.bfloat16
        self._pad_id = pad_id
        self._unseen = list(batched_by_length(unseen, 2048, pad_id))
        self._before = self._loss()

    def drop(self, samples: list[Encoded], seed: int) -> float:
        """Train for one epoch on samples; return by how much the unseen loss falls, nats."""
        self._model.load_state_dict(self._start)
        self._model.requires_grad_(requires_grad=True)
        order = np.random.default_rng(seed).permutation(len(samples)).tolist()
        optimiser = torch.optim.AdamW(self._model.parameters(), lr=_RATE, weight_decay=0.0)
        starts = range(0, len(order), _BATCH_SAMPLES)
        for step, start in enumerate(starts):
            for group in optimiser.param_groups:
                group["lr"] = _RATE * min(1.0, (step + 1) / _WARM_UP_STEPS)
            batch = pad(samples, order[start : start + _BATCH_SAMPLES], self._pad_id)
            on_device = batch.to(self._model.device)
            with torch.autocast(self._model.device.type, dtype=torch.bfloat16, enabled=self._half):
                losses = token_losses(self._model, {}, on_device)
            reduce_tokens(losses, on_device.completion_mask, "mean").mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        self._model.requires_grad_(requires_grad=False)
        return self._before - self._loss()

    @torch.no_grad()
    def _loss(self) -> float:
        found: list[torch.Tensor] = []
        for batch in self._unseen:
            here = batch.to(self._model.device)
            with torch.autocast(self._model.device.type, dtype=torch.bfloat16, enabled=self._half):
                losses = token_losses(self._model, {}, here)
            found.append(reduce_tokens(losses.double(), here.completion_mask, "mean"))
        return float(torch.cat(found).mean())


def interval(drops: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 90 % interval by Student's t."""
    error = float(np.std(drops, ddof=1)) / np.sqrt(len(drops))
    return float(np.mean(drops)), float(student.ppf((1 + _LEVEL) / 2, len(drops) - 1) * error)


def report(setting: str, drops: dict[str, list[float]]) -> None:
    """Print a setting's table, the largest drop first."""
    title = f"{setting} the target's own domain in the pool"
    table = Table("chosen by", "drop of the target's loss, nats", title=title)
    for method, found in sorted(drops.items(), key=lambda item: -float(np.mean(item[1]))):
        mean, half = interval(found)
        table.add_row(method, f"{mean:.4f} ± {half:.4f}")
    Console(width=110).print(table)


def summary(drops: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Return the figures."""
    figures: dict[str, float] = {}
    for setting, by_method in drops.items():
        means = {method: float(np.mean(found)) for method, found in by_method.items()}
        for method, mean in means.items():
            figures[f"{setting}_{method}_drop"] = mean
        gain = means["proxy"] - means["random"]
        figures[f"{setting}_proxy_gain_ratio"] = gain / (means["tensor"] - means["random"])
    figures["proxy_gain_ratio"] = min(figures[f"{one}_proxy_gain_ratio"] for one in drops)
    return figures


def draw(drops: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw every method's drop with its interval, a panel a setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(drops))
    for axes, (setting, by_method) in zip(np.atleast_1d(panels), drops.items(), strict=True):
        ordered = sorted(by_method, key=lambda method: float(np.mean(by_method[method])))
        for place, method in enumerate(ordered):
            mean, half = interval(by_method[method])
            colour = "C1" if method == "proxy" else "C0"
            axes.errorbar(mean, place, xerr=half, fmt="o", color=colour, capsize=3)
        axes.set_yticks(range(len(ordered)), ordered)
        axes.set_title(f"{setting} the own domain")
        axes.set_xlabel("drop of the target's loss, nats")
        axes.grid(alpha=0.3, axis="x")
    figure.savefig(path)


if __name__ == "__main__":
    main()
