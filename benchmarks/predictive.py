"""How well labels predict what an optimiser step does: `python -m benchmarks.predictive`.

A model is warmed up by AdamW, so that its second moments are real. There each item, a single sample
or a group of 32, is stepped on from the same weights, by SGD and by AdamW, at several learning
rates; what a step takes off a target's loss is its *drop*. The target is two disjoint halves:

    LinFiK   label of the item for half A, under each normalisation; of a group, its samples' mean
    FiK      drop of half A at some learning rate, as Pan et al. (arXiv 2503.01052) measure it
    truth    drop of half B at the learning rate that a trainer would use: 2e-5 for AdamW; for SGD
             1e-3, the largest power of ten at which most single samples' steps lower the loss

All is in float32, since bfloat16 weights cannot hold such small steps; neither gradients nor steps
are clipped, and weight decay is 0. A forward pass for every drop is nearly the whole cost. So texts
are cut to 64 tokens, and half B is measured at no learning rate below the trainer's. Groups are put
together from twenty blocks of 8 samples of one kind, in shares that differ from group to group; a
block is in several groups, so that groups are not independent and their intervals too narrow.

It takes 38 minutes on two cores with other work beside it; `--samples 10 --groups 8` a third of
that. `--figure docs/predictive.svg` draws it. A table comes first; the last line is a JSON object,
in which OPT is `sgd` or `adamw`, ITEM `single` or `group`, NORM `none`, `global` or `tensor`, and
correlations are Spearman's:

    OPT_ITEM_NORM           LinFiK with truth, and `_low`, `_high`: its 90 % bootstrap interval
    OPT_ITEM_NORM_gain      that less OPT_ITEM_none, for `global` and `tensor`, and its interval
    OPT_ITEM_slope          first-order drop of half A with truth, and its interval; for SGD that is
                            LinFiK `none`, for AdamW LinFiK as scaled by the optimiser's state
    OPT_ITEM_NORM_large     LinFiK with the drop of half B at ten times the trainer's learning rate
    OPT_ITEM_fik            FiK at the trainer's learning rate with truth: what measuring reaches
    OPT_ITEM_fik_worst      FiK with truth at the learning rate where that is lowest
    OPT_ITEM_fik_stability  lowest correlation of FiK at one learning rate with FiK at another
    OPT_ITEM_error_RATE     |drop / first-order drop - 1| of half A at a learning rate, median
    fik_stability_min       lowest of the OPT_ITEM_fik_stability
    minutes                 how long it took

LinFiK has no learning rate, so that its stability is 1.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alinfik.distill.batches import Batch, batched_by_length, pad
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.llm import LLM, load_llm
from alinfik.distill.samples import read_rows
from benchmarks.optimiser_steps import Moments, Weights, warm_up
from benchmarks.predictive_figure import draw
from benchmarks.predictive_report import REFERENCE, STEPS, Labels, Outcome, report
from demo.models import smollm2

_KINDS = ("alpaca", "gsm8k_train", "mbpp", "wikitext2", "dolly")
_BATCH_TOKENS = 1024
_WARM_UP_STEPS = 8
_WARM_UP_OF_A_KIND = 16
_BLOCK_SAMPLES = 8
_BLOCKS_OF_A_KIND = 4
_GROUP_BLOCKS = 4
# Below 1, so that most groups lean on one or two kinds.
_CONCENTRATION = 0.7


@dataclass(frozen=True)
class Block:
    """Samples of one kind, of which groups are put together.

    Attributes:
        gradient: mean of the samples' gradients [P], in bfloat16, since twenty must fit in memory.
        labels: mean of the samples' labels.
    """

    gradient: Tensor
    labels: Labels


@dataclass(frozen=True)
class Bench:
    """A model where labels are taken, and what steps from there are measured by.

    Attributes:
        halves: the target's batches, by half.
        losses: their mean losses before any step.
        target: gradient [P] of half A's loss.
    """

    llm: LLM
    weights: Weights
    moments: Moments
    halves: dict[str, list[Batch]]
    losses: dict[str, float]
    target: Tensor

    def labels(self, gradient: Tensor) -> Labels:
        """LinFiK of a sample's gradient [P] for half A, under each normalisation."""
        pairs = list(
            zip(
                gradient.split(self.weights.sizes),
                self.target.split(self.weights.sizes),
                strict=True,
            )
        )
        products = torch.stack([ours @ theirs for ours, theirs in pairs])
        norms = torch.stack([ours.norm() * theirs.norm() for ours, theirs in pairs])
        return {
            "none": float(products.sum()),
            "global": float(products.sum() / (gradient.norm() * self.target.norm())),
            "tensor": float((products / norms).nan_to_num().sum()),
        }

    def outcome(self, gradient: Tensor, labels: Labels) -> Outcome:
        """Step on a gradient by every optimiser at every learning rate."""
        slopes: dict[str, float] = {}
        drops: dict[tuple[str, float, str], float] = {}
        for optimiser, rates in STEPS.items():
            direction = gradient if optimiser == "sgd" else self.moments.direction(gradient)
            slopes[optimiser] = float(direction @ self.target)
            for rate in rates:
                self.weights.step(direction, rate)
                for half in "AB" if rate >= REFERENCE[optimiser] else "A":
                    after = self.weights.loss(self.halves[half])
                    drops[optimiser, rate, half] = self.losses[half] - after
        self.weights.back()
        return Outcome(labels, slopes, drops)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="JSONL files")
    parser.add_argument("--model", default=str(smollm2()), help="language model")
    parser.add_argument("--samples", type=int, default=40, help="single samples, at most 160")
    parser.add_argument("--groups", type=int, default=32, help="groups of 32 samples")
    parser.add_argument("--target-samples", type=int, default=8, help="in each half")
    parser.add_argument("--token-limit", type=int, default=64)
    parser.add_argument("--figure", type=Path, help="where to draw, .svg or .png")
    options = parser.parse_args()
    begun = time.perf_counter()
    random = np.random.default_rng(0)
    llm = load_llm(options.model, dtype="float32")
    llm.encoding.token_limit = options.token_limit
    blocks, warm_up_batches = pool(llm, options.data, random)
    bench = prepare(llm, options.data, options.target_samples, warm_up_batches)
    singles, made = step_on_samples(bench, blocks, options.samples)
    groups = step_on_groups(bench, made, options.groups, random)
    figures = report({"single": singles, "group": groups})
    if options.figure:
        draw({"single": singles, "group": groups}, options.figure)
    figures["minutes"] = (time.perf_counter() - begun) / 60
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


def pool(
    llm: LLM, data: Path, random: np.random.Generator
) -> tuple[list[list[Encoded]], list[Batch]]:
    """Draw blocks, and other samples of all kinds for the warm-up."""
    encoder = Encoder(llm.tokenizer, llm.encoding)
    blocks: list[list[Encoded]] = []
    others: list[Encoded] = []
    for kind in _KINDS:
        rows = list(read_rows(data / f"{kind}.jsonl"))
        count = _BLOCKS_OF_A_KIND * _BLOCK_SAMPLES
        drawn = random.permutation(len(rows))[: count + _WARM_UP_OF_A_KIND]
        samples = encoder.encode([rows[index] for index in drawn])
        blocks += [samples[at : at + _BLOCK_SAMPLES] for at in range(0, count, _BLOCK_SAMPLES)]
        others += samples[count:]
    steps = [list(range(step, len(others), _WARM_UP_STEPS)) for step in range(_WARM_UP_STEPS)]
    pad_id = llm.encoding.pad_id
    return blocks, [pad(others, indices, pad_id).to(llm.device) for indices in steps]


def _batches(llm: LLM, samples: Sequence[Encoded]) -> list[Batch]:
    batches = batched_by_length(samples, _BATCH_TOKENS, llm.encoding.pad_id)
    return [batch.to(llm.device) for batch in batches]


def prepare(llm: LLM, data: Path, samples: int, warm_up_batches: list[Batch]) -> Bench:
    """Warm the model up, and take the target's losses and gradient there."""
    weights = Weights(llm)
    moments = warm_up(weights, warm_up_batches, REFERENCE["adamw"])
    encoded = Encoder(llm.tokenizer, llm.encoding).encode(
        list(read_rows(data / "gsm8k_test.jsonl"))[: 2 * samples]
    )
    halves = {"A": _batches(llm, encoded[:samples]), "B": _batches(llm, encoded[samples:])}
    losses = {half: weights.loss(batches) for half, batches in halves.items()}
    return Bench(llm, weights, moments, halves, losses, weights.gradient(halves["A"]))


def step_on_samples(
    bench: Bench, blocks: list[list[Encoded]], count: int
) -> tuple[list[Outcome], list[Block]]:
    """Label every sample of the blocks, and step on ``count`` of them, evenly spread."""
    total = sum(map(len, blocks))
    stepped = set(np.linspace(0, total, count, endpoint=False).astype(int).tolist())
    outcomes: list[Outcome] = []
    made: list[Block] = []
    seen = 0
    for block in blocks:
        mean = torch.zeros_like(bench.target)
        labels: list[Labels] = []
        for sample in block:
            gradient = bench.weights.gradient(_batches(bench.llm, [sample]))
            mean += gradient / len(block)
            labels.append(bench.labels(gradient))
            if seen in stepped:
                outcomes.append(bench.outcome(gradient, labels[-1]))
            seen += 1
        made.append(Block(mean.bfloat16(), _mean(labels)))
        print(f"samples: {seen} of {total} labelled, {len(outcomes)} stepped on", flush=True)
    return outcomes, made


def step_on_groups(
    bench: Bench, blocks: list[Block], count: int, random: np.random.Generator
) -> list[Outcome]:
    """Step on groups of blocks, whose kinds have shares that differ from group to group."""
    outcomes: list[Outcome] = []
    drawn: set[frozenset[int]] = set()
    while len(outcomes) < count:
        shares = random.dirichlet([_CONCENTRATION] * len(_KINDS)).repeat(_BLOCKS_OF_A_KIND)
        # Gumbel's way to draw without replacement.
        keys = np.log(shares + 1e-12) + random.gumbel(size=len(blocks))
        chosen = frozenset(np.argsort(-keys)[:_GROUP_BLOCKS].tolist())
        if chosen in drawn:
            continue
        drawn.add(chosen)
        gradient = torch.zeros_like(bench.target)
        for index in chosen:
            gradient += blocks[index].gradient.float() / _GROUP_BLOCKS
        labels = _mean([blocks[index].labels for index in chosen])
        outcomes.append(bench.outcome(gradient, labels))
        print(f"groups: {len(outcomes)} of {count} stepped on", flush=True)
    return outcomes


def _mean(labels: Sequence[Labels]) -> Labels:
    return {name: float(np.mean([one[name] for one in labels])) for name in labels[0]}


if __name__ == "__main__":
    main()
