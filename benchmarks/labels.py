"""What labels cost, against a forward pass: `python -m benchmarks.labels`.

One run, fifteen minutes on two cores, measures in float32 and bfloat16 the forward pass of the
language model, both engines at one and at three targets, and the loop over single samples that
implementations of TracIn, LESS and RapidIn use; for each the seconds per 1,000 tokens, the memory
above the model's own, and the rank correlation of its labels with the float32 loop's. The last line
is one JSON object, with these limits:

    forward_ratio        the better engine at one target over the forward pass, same dtype  <= 3.4
    three_targets_ratio  the better engine at three targets over the same at one            <= 1.5
    bf16_spearman        bfloat16 labels against float32 ones, normalised by tensor         >= 0.99
    bf16_over_fp32_loop  bfloat16 labels a second over the float32 loop's                   >= 4
"""

import argparse
import gc
import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

from alinfik.distill.batches import Batch, batched_by_length, pad
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.forward_mode import ForwardMode
from alinfik.distill.llm import LLM, load_llm
from alinfik.distill.losses import Parameters, reduce_tokens, token_losses
from alinfik.distill.reverse_mode import ReverseMode
from alinfik.distill.samples import Row, read_rows
from alinfik.distill.selection import select_parameters
from alinfik.distill.settings import Normalisation
from alinfik.distill.target import target_gradient
from alinfik.distill.values import ValueEngine
from demo.models import smollm2

_TARGETS = {"gsm8k": "gsm8k_test.jsonl", "mbpp": "mbpp.jsonl", "dolly": "dolly.jsonl"}
_POOL = ("alpaca.jsonl", "gsm8k_train.jsonl", "mbpp.jsonl", "wikitext2.jsonl", "dolly.jsonl")
_TARGET_SAMPLES = 12
_TOKEN_LIMIT = 128
_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Measured:
    """One method's cost, and its labels for the first target [N]."""

    method: str
    dtype: str
    seconds_per_1000_tokens: float
    peak_bytes: int
    labels: Tensor | None


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="JSONL files")
    parser.add_argument("--model", default=str(smollm2()), help="language model")
    parser.add_argument("--samples", type=int, default=50, help="how many to value")
    options = parser.parse_args()
    rows = {name: list(read_rows(options.data / name)) for name in {*_POOL, *_TARGETS.values()}}
    share = options.samples // len(_POOL)
    pool = [row for name in _POOL for row in rows[name][100 : 100 + share]]
    targets = [rows[name][:_TARGET_SAMPLES] for name in _TARGETS.values()]
    measured = [
        found
        for dtype in ("float32", "bfloat16")
        for found in measure_all(options.model, dtype, pool, targets)
    ]
    report(measured)


def measure_all(
    model: str, dtype: str, pool: list[Row], targets: list[list[Row]]
) -> list[Measured]:
    """Measure every method in one dtype."""
    llm = load_llm(model, dtype=dtype, attention="sdpa")
    llm.encoding.token_limit = _TOKEN_LIMIT
    encoder = Encoder(llm.tokenizer, llm.encoding)
    samples = encoder.encode(pool)
    everything = select_parameters(llm.model, "all")
    gradients = [
        target_gradient(llm.model, _batches(llm, encoder.encode(rows)), "mean", everything)
        for rows in targets
    ]
    last = {name: gradients[0][name] for name in select_parameters(llm.model, "last:10")}

    def reverse(
        count: int, normalisation: Normalisation, *, token_values: bool
    ) -> Callable[[], ValueEngine]:
        return lambda: ReverseMode(
            llm.model,
            gradients[:count],
            normalisation=normalisation,
            reduction="mean",
            token_values=token_values,
        )

    def last_layers() -> ValueEngine:
        return ReverseMode(
            llm.model, [last], normalisation="tensor", reduction="mean", token_values=False
        )

    methods: dict[str, Callable[[], ValueEngine]] = {
        "reverse, 1 target, none": reverse(1, "none", token_values=False),
        "reverse, 1 target, tensor": reverse(1, "tensor", token_values=False),
        "reverse, 3 targets, tensor": reverse(3, "tensor", token_values=False),
        "reverse, 3 targets, tensor, token values": reverse(3, "tensor", token_values=True),
        "reverse, 1 target, tensor, last 10 layers": last_layers,
        "forward, 1 target, none": lambda: ForwardMode(llm.model, gradients[:1], "mean"),
        "forward, 3 targets, none": lambda: ForwardMode(llm.model, gradients, "mean"),
    }
    found = [_measured("forward pass", dtype, llm, samples, lambda: _forward_pass(llm, samples))]
    for name, make in methods.items():
        # Forward mode cannot differentiate fused attention.
        llm.model.set_attn_implementation("eager" if name.startswith("forward") else "sdpa")
        engine = make()
        found.append(
            _measured(name, dtype, llm, samples, lambda e=engine: _engine(llm, e, samples))
        )
        del engine
    llm.model.set_attn_implementation("sdpa")
    for normalisation in ("none", "tensor"):
        name = f"per-sample loop, 1 target, {normalisation}"

        def loop(chosen: str = normalisation) -> Tensor:
            return _loop(llm, gradients[0], samples, chosen)

        found.append(_measured(name, dtype, llm, samples, loop))
    return found


def _batches(llm: LLM, samples: list[Encoded]) -> list[Batch]:
    return list(batched_by_length(samples, _BATCH_TOKENS, llm.encoding.pad_id))


@torch.no_grad()
def _forward_pass(llm: LLM, samples: list[Encoded]) -> None:
    for batch in _batches(llm, samples):
        token_losses(llm.model, {}, batch.to(llm.device))


def _engine(llm: LLM, engine: ValueEngine, samples: list[Encoded]) -> Tensor:
    labels = torch.zeros(len(samples))
    for batch in _batches(llm, samples):
        labels[batch.indices] = engine.value(batch).labels[0].float()
    return labels


def _loop(llm: LLM, gradient: Parameters, samples: list[Encoded], normalisation: str) -> Tensor:
    """One backward pass a sample, and its gradient's product with the target's."""
    labels: list[Tensor] = []
    parameters = dict(llm.model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for index in range(len(samples)):
        batch = pad(samples, [index], llm.encoding.pad_id).to(llm.device)
        losses = token_losses(llm.model, {}, batch)
        reduce_tokens(losses, batch.completion_mask, "mean").sum().backward()
        label = torch.zeros(())
        for name, parameter in parameters.items():
            assert parameter.grad is not None  # noqa: S101  every parameter has a part in the loss
            ours, theirs = parameter.grad.float(), gradient[name]
            product = (ours * theirs).sum()
            label = label + (
                product / (ours.norm() * theirs.norm()) if normalisation == "tensor" else product
            )
            parameter.grad = None
        labels.append(label.cpu())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return torch.stack(labels)


def _measured(
    method: str, dtype: str, llm: LLM, samples: list[Encoded], run: Callable[[], Tensor | None]
) -> Measured:
    with _peak_memory(llm.device) as peak:
        begun = time.perf_counter()
        labels = run()
        if llm.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    tokens = sum(len(sample) for sample in samples)
    print(f"{dtype:9} {method:42} {1000 * seconds / tokens:6.2f} s / 1,000 tokens", flush=True)
    return Measured(method, dtype, 1000 * seconds / tokens, peak(), labels)


@contextmanager
def _peak_memory(device: torch.device) -> Generator[Callable[[], int]]:
    """Yield a function that tells the most memory used within the block, above that before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
        return
    process, stop = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.01):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: most - before
    finally:
        stop.set()
        watcher.join()


def report(measured: list[Measured]) -> None:
    """Print the table and, last, the figures that have limits."""
    by_name = {(found.method, found.dtype): found for found in measured}

    def seconds(method: str, dtype: str) -> float:
        return by_name[method, dtype].seconds_per_1000_tokens

    table = Table("method", "dtype", "s / 1,000 tokens", "over forward", "peak MB", "Spearman")
    for found in measured:
        correlation = ""
        if found.labels is not None:
            oracle = "tensor" if "tensor" in found.method else "none"
            exact = by_name[f"per-sample loop, 1 target, {oracle}", "float32"].labels
            correlation = f"{spearmanr(found.labels, exact).statistic:.4f}"
        table.add_row(
            found.method,
            found.dtype,
            f"{found.seconds_per_1000_tokens:.2f}",
            f"{found.seconds_per_1000_tokens / seconds('forward pass', found.dtype):.2f}",
            f"{found.peak_bytes / 1e6:.0f}",
            correlation,
        )
    Console(width=110).print(table)
    one = min(
        ("reverse, 1 target, none", "forward, 1 target, none"), key=lambda m: seconds(m, "bfloat16")
    )
    half = by_name["reverse, 1 target, tensor", "bfloat16"]
    exact = by_name["reverse, 1 target, tensor", "float32"]
    figures = {
        "forward_ratio": seconds(one, "bfloat16") / seconds("forward pass", "bfloat16"),
        "forward_ratio_float32": min(
            seconds("reverse, 1 target, none", "float32"),
            seconds("forward, 1 target, none", "float32"),
        )
        / seconds("forward pass", "float32"),
        "three_targets_ratio": seconds("reverse, 3 targets, tensor", "bfloat16")
        / seconds("reverse, 1 target, tensor", "bfloat16"),
        "bf16_spearman": spearmanr(half.labels, exact.labels).statistic,
        "bf16_over_fp32_loop": seconds("per-sample loop, 1 target, none", "float32")
        / seconds(one, "bfloat16"),
    }
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
