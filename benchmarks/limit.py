"""What no server can beat: the model in ONNX Runtime, its input ready, with all cores.

In: a bundle and rows. Out: samples a second. The rows are tokenised ahead and sorted by length, and
the best of several batch sizes counts, each tried with all cores on one batch and with a batch a
core.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
from tokenizers import Tokenizer

from alinfik.distill.batches import Batch, batched_by_length
from alinfik.distill.bundle import MODEL, QUANTISED, TOKENIZER, read_manifest
from alinfik.distill.encoding import Encoder
from alinfik.distill.export import INPUTS, OUTPUTS
from alinfik.distill.samples import Row

# Of the padded tokens of a batch.
_BUDGETS = (512, 1024, 2048, 4096, 8192)
_TRY_SECONDS = 1.0
# Of the batches, in the order of their lengths: a slow model takes half a minute for all.
_TRIED = slice(None, None, 8)


@dataclass(frozen=True)
class Limit:
    """How quick the model is, and how it was run.

    Attributes:
        samples_per_second: in the best way found.
        batch_tokens: most padded tokens of a batch, in that way.
        workers: batches at a time, in that way.
        tokenise_seconds: CPU time to tokenise a sample, which the model does not need here.
        batch_seconds: how long a full batch takes, by its budget and the batches at a time.
    """

    samples_per_second: float
    batch_tokens: int
    workers: int
    tokenise_seconds: float
    batch_seconds: dict[tuple[int, int], float]


def served_model(bundle: Path) -> str:
    """Return the file of the model that a server runs on a CPU."""
    return QUANTISED if (bundle / QUANTISED).exists() else MODEL


def measured_limit(bundle: Path, rows: list[Row], seconds: float) -> Limit:
    """Find the best way to run the model on rows, and measure it for so many seconds."""
    cores = len(os.sched_getaffinity(0))
    encoding = read_manifest(bundle).encoding
    encoder = Encoder(Tokenizer.from_file(str(bundle / TOKENIZER)), encoding)
    begun = time.process_time()
    samples = encoder.encode(rows)
    tokenise_seconds = (time.process_time() - begun) / len(rows)
    batches = {
        budget: list(batched_by_length(samples, budget, encoding.pad_id)) for budget in _BUDGETS
    }
    models = {
        workers: _Model(bundle, workers, cores // workers)
        for workers in sorted({1, max(1, cores // 2), cores})
    }
    tried = {budget: batches[budget][_TRIED] for budget in _BUDGETS}
    rounds = {
        (budget, workers): model.seconds_a_round(tried[budget], _TRY_SECONDS)
        for budget in _BUDGETS
        for workers, model in models.items()
    }
    budget, workers = min(rounds, key=lambda way: rounds[way] / _samples(tried[way[0]]))
    taken = models[workers].seconds_a_round(batches[budget], seconds)
    batch_seconds = {
        (budget, workers): workers * seconds / len(tried[budget])
        for (budget, workers), seconds in rounds.items()
    }
    return Limit(len(rows) / taken, budget, workers, tokenise_seconds, batch_seconds)


def _samples(batches: list[Batch]) -> int:
    return sum(len(batch.input_ids) for batch in batches)


class _Model:
    """A bundle's model: ``workers`` batches at a time, ``threads`` cores each."""

    def __init__(self, bundle: Path, workers: int, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            bundle / served_model(bundle), options, providers=["CPUExecutionProvider"]
        )
        self._pool = ThreadPoolExecutor(workers)

    def seconds_a_round(self, batches: list[Batch], seconds: float) -> float:
        """Run all batches again and again for at least so long; return the mean time of a round."""
        feeds = [{name: getattr(batch, name).numpy() for name in INPUTS} for batch in batches]

        def run(feed: dict[str, object]) -> None:
            self._session.run(list(OUTPUTS), feed)

        run(feeds[0])
        rounds, begun = 0, time.perf_counter()
        while (taken := time.perf_counter() - begun) < seconds:
            list(self._pool.map(run, feeds))
            rounds += 1
        return taken / rounds
